#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""virtnbdbackup's NBD classes, extent handler, backup and restore code (vnb.py) and our exports."""
import json
import os
import shutil

from clients import at_home, client, main, need, run, spawn
from harness import can_connect, wait_for
from history import BIG, BLOCK, HERE, SIZE
from reach import TCP, UNIX, X509

PACKAGE = "virtnbdbackup"
OVER = [UNIX, TCP, X509]  # it can be told neither a user and a key, nor TLS over a unix socket


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


def chain(h, r, **more):
    """Full, incremental; the full alone and both restored into empty files."""
    monday, tuesday = (h.s.image(n, SIZE) for n in ("monday.img", "tuesday.img"))
    got = vnb(h, [backup(h, r, "vda-full", "full", **more), backup(h, r, "vda", "inc", **more)],
              {monday: [0], tuesday: [0, 1]})
    h.expect_copy("vda-full", monday)
    h.expect_copy("vda", tuesday)
    assert got[1]["data"] == sum(n for _, n in h.tuesday["vda"].changed()), got


@client(PACKAGE, "full and incremental backup, restored with its own code", OVER)
def full_and_incremental_are_restored(h, r):
    """What was zeroed since is zero after the restore: it has to be in the incremental."""
    chain(h, r)


@client(PACKAGE, "the same with lz4 (--compress)", [UNIX])
def compressed_backups_are_restored(h, r):
    chain(h, r, compress=True)


@client(PACKAGE, "the same with nbdinfo's map (--qemu)", [TCP])
def backups_by_nbdinfos_map_are_restored(h, r):
    """It runs nbdinfo while its own connection is open, once for each context."""
    chain(h, r, qemu=True)


@client(PACKAGE, "incremental backup of a disk of more than 4 GiB", OVER)
def an_incremental_of_a_large_disk_is_restored(h, r):
    target = h.s.image("restored.img", BIG)
    with open(target, "r+b") as f:
        for b, data in h.monday["big"].blocks.items():
            os.pwrite(f.fileno(), data, b * BLOCK)
    vnb(h, [backup(h, r, "big", "inc")], {target: [0]})
    h.expect_copy("big", target)


if __name__ == "__main__":
    main()
