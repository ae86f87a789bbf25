#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Point in time: what is pulled is the disk at one instant, while guests write at full speed.

ROUNDS (default 10; LONG=1: 50), DISK_MB (default 64; LONG=1: 256), WRITERS (default 4) choose the
size of the run.  The oracle is replay.py; it does not use the code under test.
"""
import time

import backups
from harness import K, M, Stack, wait_for
from replay import Replay
from tap import diag, main, number, rng, test
from writers import Guests

ROUNDS = number("ROUNDS", 10, 50)
SIZE = number("DISK_MB", 64, 256) * M
WRITERS = number("WRITERS", 4)


class Backup:
    """A backup that is open: begun between two instants, with the export it is read by."""

    def __init__(self, qmp, export, checkpoint, since=None):
        disk = {"disk": "vda", "export": export}
        if since:
            disk["since"] = since
        self.checkpoint = checkpoint
        self.called = time.monotonic_ns()
        self.id, answer = backups.begin(qmp, [disk], checkpoint=checkpoint)
        self.replied = time.monotonic_ns()
        self.export, self.context = answer["vda"]["export"], answer["vda"]["context"]
        assert self.export == export
        self.dirty_bytes = answer["vda"]["dirty-bytes"]

    def pull(self, where):
        self.image = backups.pull(where, self.export, connections=3)
        self.dirty = backups.dirty(where, self.export, self.context)
        self.holes = [(off, n) for off, n, flags in
                      backups.extents(where, self.export, backups.ALLOC) if flags]
        assert self.dirty_bytes == sum(n for _, n in self.dirty), "dirty-bytes of backup-begin"

    def check(self, oracle, previous):
        """It is the disk at its instant, and the previous full one + dirty extents is it too."""
        oracle.check(self.image, self.called, self.replied, self.checkpoint)
        if previous is not None:
            healed = backups.apply(previous, self.image, self.dirty)
            at = backups.first_difference(healed, self.image)
            assert at is None, "%s: changed at %d, but not dirty" % (self.checkpoint, at)
        for off, n in self.holes:
            assert not any(self.image[off:off + n]), \
                "%s: base:allocation says zero at %d+%d" % (self.checkpoint, off, n)


def let_guests_write(guests, requests):
    before = guests.progress()

    def enough():
        guests.check()
        return guests.progress() >= before + requests
    wait_for("guests write %d requests" % requests, enough)


def rounds(granularity, count, name):
    random = rng(name)
    with Stack() as s:
        disk = s.start("vda", SIZE, granularity=granularity)
        with s.qmp() as q, Guests(disk, SIZE, WRITERS, random) as guests:
            oracle, previous, last = Replay(guests, bytes(SIZE)), None, None
            for i in range(count):
                let_guests_write(guests, random.randrange(20, 200))
                b = Backup(q, "round-%d" % i, "c%d" % i, last)
                b.pull(s.nbd)
                b.check(oracle, previous)
                backups.end(q, b.id)
                if last:
                    q.cmd("checkpoint-delete", name=last)
                previous, last = b.image, b.checkpoint
            guests.stop()
            diag("%d rounds, guests wrote %d requests, %d MiB" % (
                count, len(guests.log), guests.moved // M))


@test
def every_pulled_image_is_the_disk_at_its_instant():
    """Blocks of 64 KiB shared by many sectors: each round's image is one consistent cut of the
    writers' logs, and previous full + dirty extents is the next full."""
    rounds("64K", ROUNDS, "instants-64K")


@test
def so_it_is_with_the_smallest_blocks():
    """The same with blocks of 4 KiB."""
    rounds("4K", max(3, ROUNDS // 3), "instants-4K")


@test
def three_open_backups_of_different_instants_are_each_exact():
    """Three backups begun one after another, all open, pulled at the same time: each is the disk at
    its own instant; they end in any order without hurting those that are still open."""
    random = rng("three")
    with Stack() as s:
        disk = s.start("vda", SIZE, granularity="64K")
        with s.qmp() as q, Guests(disk, SIZE, WRITERS, random) as guests:
            oracle, previous, last = Replay(guests, bytes(SIZE)), None, None
            for i in range(max(2, ROUNDS // 4)):
                trio = []
                for j in range(3):
                    let_guests_write(guests, random.randrange(20, 100))
                    trio.append(Backup(q, "e%d.%d" % (i, j), "c%d.%d" % (i, j), last))
                backups.in_threads([lambda b=b: b.pull(s.nbd) for b in trio])
                for b in trio:
                    b.check(oracle, previous)
                # the oldest is read once more when a random other one has ended
                gone = trio[random.choice((1, 2))]
                backups.end(q, gone.id)
                again = backups.pull(s.nbd, trio[0].export)
                assert again == trio[0].image, "an open backup changed when another one ended"
                for b in random.sample([b for b in trio if b is not gone], 2):
                    backups.end(q, b.id)
                previous, last = trio[2].image, trio[2].checkpoint


@test
def an_open_backup_does_not_change_while_guests_write():
    """Read again and again, at any size and offset, an open view gives the same bytes."""
    random = rng("steady")
    with Stack() as s:
        disk = s.start("vda", SIZE)
        with s.qmp() as q, Guests(disk, SIZE, WRITERS, random) as guests:
            let_guests_write(guests, 100)
            b = Backup(q, "vda", "c")
            b.pull(s.nbd)
            b.check(Replay(guests, bytes(SIZE)), None)
            with s.connect("vda") as c:
                for _ in range(300):
                    n = min(random.choice((1, 511, 512, 4096, 65536, 1 << 20, 4 << 20))
                            + random.randrange(3), SIZE)
                    off = random.randrange(0, SIZE - n + 1)
                    assert c.read(off, n) == b.image[off:off + n], (off, n)
            assert backups.pull(s.nbd, "vda", chunk=256 * K) == b.image
            backups.end(q, b.id)


if __name__ == "__main__":
    main()
