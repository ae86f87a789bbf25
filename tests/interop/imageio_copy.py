# SPDX-License-Identifier: BSD-3-Clause
"""ovirt-imageio's own NBD backend and the copy that its clients make (ovirt_imageio.client).  Run by
test_imageio.py, with the folder of its source in PYTHONPATH; argument: a JSON list of

    {"from": URL, "to": URL, "dirty": BOOL}      URLs as in a ticket of imageio's

Prints a JSON list: of each the sizes [zero or dirty, all] that its extents tell.
"""
import json
import sys
import types
import urllib.parse

# C code for files of hosts; it is not needed for NBD, and this way nothing has to be built.
sys.modules["ovirt_imageio._internal.ioutil"] = types.ModuleType("ioutil")

from ovirt_imageio._internal import backends  # noqa: E402
from ovirt_imageio.client import _io  # noqa: E402


def copy(job):
    def opened(url, mode, dirty):
        return backends.nbd.open(urllib.parse.urlparse(url), mode, sparse=mode != "r", dirty=dirty)

    with opened(job["from"], "r", job["dirty"]) as source, opened(job["to"], "r+", False) as target:
        _io.copy(source, target, dirty=job["dirty"])
        told = list(source.extents("dirty" if job["dirty"] else "zero"))
        return [sum(e.length for e in told if (e.dirty if job["dirty"] else e.zero)),
                sum(e.length for e in told)]


print(json.dumps([copy(job) for job in json.loads(sys.argv[1])]))
