# SPDX-License-Identifier: BSD-3-Clause
"""qemu-img on exports of ours, and the dirty bitmap as it sees it."""
import json

from clients import run


def dotted(opts, prefix=""):
    """{"a": {"b": 1}} as a.b=1"""
    out = []
    for k, v in opts.items():
        out += dotted(v, prefix + k + ".") if isinstance(v, dict) else ["%s%s=%s" % (prefix, k, v)]
    return out


def image(h, r, export, **more):
    """The arguments that name an export: objects, and --image-opts with its value."""
    objects, opts = r.qemu(h, export, **more)
    return objects, ["--image-opts", ",".join(dotted(opts))]


def qemu_img(h, r, verb, export, *args, options=(), **more):
    objects, opts = image(h, r, export, **more)
    return run(h, ["qemu-img", verb, *objects, *options, *opts, *args])


def dirty_by_qemu(h, r, export, context, at=None):
    """[(offset, length)] from the server that `at` reaches: what is dirty shows as "data": false, QEMU's
    convention."""
    objects, opts = image(at or h, r, export, x_dirty_bitmap=context)
    got = json.loads(run(h, ["qemu-img", "map", *objects, "--output=json", *opts]).stdout)
    out = []
    for e in got:
        if not e["data"]:
            if out and sum(out[-1]) == e["start"]:
                out[-1] = (out[-1][0], out[-1][1] + e["length"])
            else:
                out.append((e["start"], e["length"]))
    return out
