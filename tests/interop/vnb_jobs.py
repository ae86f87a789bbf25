# SPDX-License-Identifier: BSD-3-Clause
"""Jobs for virtnbdbackup's code (vnb.py), and how they are run."""
import json
import os
import shutil

from clients import at_home, need, run, spawn
from harness import can_connect, wait_for
from history import HERE


def backup(h, r, disk, level, **more):
    job = dict({"do": "backup", "disk": disk, "level": level, "to": h.s.path("vnb"), "qemu": False,
                "compress": False}, **more)
    if r.tcp:
        job.update(host="127.0.0.1", port=h.port, tls=r.tls is not None)
    else:
        job["socket"] = h.s.nbd
    return job


def vnb(h, backups, targets):
    """Makes the backups, and restores them with virtnbdrestore's code: {file: [backup, ...]}.  nbdkit
    serves the files."""
    need("virtnbdbackup", "nbdkit")
    # Where a root sees it; not with the mode of a source that may be read-only (make distcheck).
    here = shutil.copyfile(os.path.join(HERE, "vnb.py"), h.s.path("vnb.py"))
    os.makedirs(h.s.path("vnb"))
    servers, jobs = [], list(backups)
    try:
        for i, (target, files) in enumerate(targets.items()):
            sock = os.path.join(h.s.socks, "restore%d.sock" % i)
            p = spawn(h, ["nbdkit", "-f", "-U", sock, "--exit-with-parent", "file", target])
            servers.append((p, sock))
            wait_for("nbdkit listens", lambda: can_connect(sock), p)
            jobs.append({"do": "restore", "files": files, "socket": sock})
        cmd = ["/usr/bin/python3", here, json.dumps(jobs)]
        return json.loads(run(h, at_home(h, cmd)).stdout.splitlines()[-1])
    finally:
        for p, sock in servers:
            h.s.stop(p)
            if os.path.exists(sock):
                os.unlink(sock)
        shutil.rmtree(h.s.path("vnb"))
