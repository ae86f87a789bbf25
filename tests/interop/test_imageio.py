#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""ovirt-imageio's NBD client.  Debian has no package of it: VARVE_INTEROP_IMAGEIO (run --imageio) is a
folder with its source, of which nothing is built or installed."""
import json
import os

import clients
import harness
from clients import client, main, need, spawn
from harness import can_connect, wait_for
from history import BIG, BLOCK, HERE
from reach import TCP, UNIX
from tap import Skip

SOURCE = os.environ.get("VARVE_INTEROP_IMAGEIO")


def url(h, r, export):
    return "nbd:%s:exportname=%s" % (
        "127.0.0.1:%d" % h.port if r.tcp else "unix:" + h.s.nbd, export)


def copy(h, r, export, target, dirty):
    """Onto a file that nbdkit serves; what imageio tells of extents."""
    need("nbdkit")
    if not SOURCE:
        raise Skip("ovirt-imageio's source is not here (run --imageio DIR)")
    if clients.ROOT:
        raise Skip("ovirt-imageio is run with this machine's Python only")
    sock = os.path.join(h.s.socks, "imageio.sock")
    p = spawn(h, ["nbdkit", "-f", "-U", sock, "--exit-with-parent", "file", target])
    try:
        wait_for("nbdkit listens", lambda: can_connect(sock), p)
        job = {"from": url(h, r, export), "to": "nbd:unix:%s" % sock, "dirty": dirty}
        env = {"PYTHONPATH": SOURCE, "PYTHONDONTWRITEBYTECODE": "1"}
        out = harness.run(["/usr/bin/python3", os.path.join(HERE, "imageio_copy.py"),
                           json.dumps([job])], env=env).stdout
        return json.loads(out)[0]
    finally:
        h.s.stop(p)
        if os.path.exists(sock):
            os.unlink(sock)


@client("ovirt-imageio", "full copies by its NBD backend, 4 workers", [UNIX, TCP])
def imageio_makes_full_copies(h, r):
    """Onto files that hold something else: what is zero in the backup is written, too."""
    for export in ("vda-full", "vda"):
        model = h.model(export)[0]
        target = h.s.image("copy.img", model.size, b"\xee" * model.size)
        zero, size = copy(h, r, export, target, False)
        assert size == model.size and zero == sum(n for _, n, f in model.allocation() if f)
        h.expect_copy(export, target)


@client("ovirt-imageio", "an incremental copy by its NBD backend onto yesterday's", [UNIX, TCP])
def imageio_makes_todays_of_yesterdays(h, r):
    """Also of a disk of more than 4 GiB."""
    small, big = h.yesterdays_copy(), h.s.image("big.copy", BIG)
    with open(big, "r+b") as f:
        for b, data in h.monday["big"].blocks.items():
            os.pwrite(f.fileno(), data, b * BLOCK)
    for export, target in (("vda", small), ("big", big)):
        dirty, size = copy(h, r, export, target, True)
        assert [dirty, size] == [sum(n for _, n in h.tuesday[export].changed()), h.tuesday[export].size]
        h.expect_copy(export, target)


if __name__ == "__main__":
    main()
