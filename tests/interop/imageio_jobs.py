# SPDX-License-Identifier: BSD-3-Clause
"""How ovirt-imageio's code (imageio_copy.py) is run.  Debian has no package of it:
VARVE_INTEROP_IMAGEIO (run --imageio) is a folder with its source, of which nothing is built or
installed."""
import json
import os

import clients
import harness
from clients import need, spawn
from harness import can_connect, wait_for
from history import HERE
from tap import Skip

SOURCE = os.environ.get("VARVE_INTEROP_IMAGEIO")


def url(h, r, export):
    return "nbd:%s:exportname=%s" % (
        "127.0.0.1:%d" % h.port if r.tcp else "unix:" + h.s.nbd, export)


def imageio_copies(h, r, export, target, dirty, at=None):
    """Onto a file that nbdkit serves, from the server that `at` reaches; what imageio tells of extents."""
    need("nbdkit")
    if not SOURCE:
        raise Skip("ovirt-imageio's source is not here (run --imageio DIR)")
    if clients.ROOT:
        raise Skip("ovirt-imageio is run with this machine's Python only")
    sock = os.path.join(h.s.socks, "imageio.sock")
    p = spawn(h, ["nbdkit", "-f", "-U", sock, "--exit-with-parent", "file", target])
    try:
        wait_for("nbdkit listens", lambda: can_connect(sock), p)
        job = {"from": url(at or h, r, export), "to": "nbd:unix:%s" % sock, "dirty": dirty}
        env = {"PYTHONPATH": SOURCE, "PYTHONDONTWRITEBYTECODE": "1"}
        out = harness.run(["/usr/bin/python3", os.path.join(HERE, "imageio_copy.py"),
                           json.dumps([job])], env=env).stdout
        return json.loads(out)[0]
    finally:
        h.s.stop(p)
        if os.path.exists(sock):
            os.unlink(sock)
