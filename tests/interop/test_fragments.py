#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A bitmap in as many pieces as can be: every other block of 4 KiB is dirty.  `run` makes more pieces
than QEMU's server tells in one reply (131,072), which is where virtnbdbackup loses data of it."""
import json
import os

from clients import client, main, need, run
from harness import K, M
from history import ALLOC, backups, bitmap
from nbdclient import CMD_WRITE
from qemu_map import dirty_by_qemu
from reach import UNIX
from vnb_jobs import backup, vnb

PIECES = 140000 if os.environ.get("VARVE_INTEROP_ALL") else 4000
SIZE = (PIECES * 8 * K + M - 1) // M * M
CONTEXT = bitmap("backup-pieces")


class Pieces:
    """The disk, and a backup of it that runs."""

    def __init__(self, h):
        self.h, s = h, h.s
        self.before = (b"before" * (SIZE // 6 + 1))[:SIZE]
        self.disk = s.serve("pieces", s.image("pieces.img", SIZE, self.before), granularity="4K")
        s.wait_disk("pieces", "live")
        h.q.cmd("checkpoint-create", name="whole", disks=["pieces"])
        self.content = bytearray(self.before)
        with self.disk.connect() as c:
            for i in range(PIECES):
                data = b"%08d" % i
                self.content[i * 8 * K:i * 8 * K + 8] = data
                c.send(CMD_WRITE, i * 8 * K, 8, data=data)
                while len(c.pending) > 64 or (c.pending and i == PIECES - 1):
                    assert c.recv().error == 0
        self.ident, _ = backups.begin(h.q, [{"disk": "pieces", "since": "whole"}])
        self.dirty = [(i * 8 * K, 4 * K) for i in range(PIECES)]

    def expect(self, path):
        with open(path, "rb") as f:
            at = backups.first_difference(f.read(), bytes(self.content))
        assert at is None, "the copy differs at %d" % at
        os.unlink(path)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        backups.end(self.h.q, self.ident)
        self.h.drop("pieces")


@client("libnbd-bin", "nbdinfo --map of a bitmap in %d pieces; nbdcopy of NAME+delta" % PIECES, [UNIX])
def libnbd_knows_every_piece(h, r):
    with Pieces(h) as p:
        got = json.loads(run(h, ["nbdinfo", "--map=" + CONTEXT, "--json", r.uri(h, "pieces")]).stdout)
        assert [(e["offset"], e["length"]) for e in got if e["type"] == 1] == p.dirty
        whole = json.loads(run(h, ["nbdinfo", "--map=" + ALLOC, "--json", r.uri(h, "pieces")]).stdout)
        assert {e["type"] for e in whole} == {0}, "every block holds data"
        need("nbdkit")
        target = h.s.image("copy.img", SIZE, p.before)
        run(h, ["nbdcopy", "--destination-is-zero", "-S", "0", r.uri(h, "pieces+delta"),
                "--", "[", "nbdkit", "file", target, "]"])
        p.expect(target)


@client("qemu-utils", "qemu-img map of a bitmap in %d pieces, one extent a reply" % PIECES, [UNIX])
def qemu_knows_every_piece(h, r):
    with Pieces(h) as p:
        assert dirty_by_qemu(h, r, "pieces", CONTEXT) == p.dirty


@client("virtnbdbackup", "an incremental of %d pieces, restored onto the copy of before" % PIECES, [UNIX])
def virtnbdbackup_loses_no_piece(h, r):
    with Pieces(h) as p:
        target = h.s.image("copy.img", SIZE, p.before)
        vnb(h, [backup(h, r, "pieces", "inc")], {target: [0]})
        p.expect(target)


if __name__ == "__main__":
    main()
