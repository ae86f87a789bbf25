#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""virtnbdbackup's NBD classes, extent handler, backup and restore code (vnb.py) and our exports."""
import os

from clients import client, main
from harness import M
from history import BIG, BLOCK, SIZE, Guest, Model, backups
from reach import TCP, UNIX, X509
from tap import rng
from vnb_jobs import backup, vnb

PACKAGE = "virtnbdbackup"
OVER = [UNIX, TCP, X509]  # it can be told neither a user and a key, nor TLS over a unix socket


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


def series(h):
    """A disk with a full, two incremental backups and a differential one, all of which run.  Returns
    ({export: Model}, what ends and removes all)."""
    random, s = rng("levels"), h.s
    disk = s.serve("levels", s.image("levels.img", 16 * M), granularity="64K")
    s.wait_disk("levels", "live")
    running, models = [], {}

    def begin(export, since=None):
        one = {"disk": "levels", "export": export, "exportbitmap": "backup-" + export}
        running.append(backups.begin(h.q, [dict(one, since=since) if since else one])[0])
        models[export] = guest.model.copy()

    def end():
        for ident in running:
            backups.end(h.q, ident)
        h.drop("levels")

    with disk.connect() as c:
        guest = Guest(c, Model(16 * M))
        guest.write(0, random.randbytes(4 * M))
        h.q.cmd("checkpoint-create", name="full", disks=["levels"])
        begin("level-full")
        guest.write(M + 100, random.randbytes(200000))
        guest.trim(2 * M, M)
        h.q.cmd("checkpoint-create", name="first", disks=["levels"])
        begin("level-inc1", "full")
        guest.write(2 * M, random.randbytes(100))
        guest.zero(0, M)
        guest.write(9 * M, random.randbytes(M))
        begin("level-inc2", "first")
        begin("level-diff", "full")
        guest.write(0, random.randbytes(16 * M))
    return models, end


@client(PACKAGE, "levels full, inc, inc and diff, restored to each instant", OVER)
def each_level_is_restored_to_its_instant(h, r):
    """The differential one goes onto the full one, and is what both incremental ones make of it."""
    models, end = series(h)
    try:
        chains = {"level-full": [0], "level-inc1": [0, 1], "level-inc2": [0, 1, 2],
                  "level-diff": [0, 3]}
        files = {h.s.image(export + ".img", 16 * M): (export, c) for export, c in chains.items()}
        vnb(h, [backup(h, r, export, export[len("level-"):].rstrip("12")) for export in chains],
            {path: c for path, (_, c) in files.items()})
        for path, (export, _) in files.items():
            at = models[export].difference(path)
            assert at is None, "%s: the restored disk differs at %d" % (export, at)
            os.unlink(path)
    finally:
        end()


if __name__ == "__main__":
    main()
