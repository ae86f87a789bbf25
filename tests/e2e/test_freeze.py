#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The freeze: no write is lost or doubled across boundaries.

CHECKPOINTS (default 200; LONG=1: 1000) boundaries are made while guests write every block of a disk
exactly once.  Boundaries are begun while writes are under way: each round hands the writers their
next share of blocks and makes the boundary while they are at it.
"""
import bisect
import threading
import time

import backups
from harness import K, Stack, wait_for
from tap import diag, main, number, rng, test

CHECKPOINTS = number("CHECKPOINTS", 200, 1000)
BLOCK = 4 * K
SHARE = 160               # blocks handed out for one boundary
WRITERS = 4


class OnceWriters:
    """Writers that write each block exactly once, as far as they are allowed to."""

    def __init__(self, disk, nblocks, random):
        self.order = list(range(nblocks))
        random.shuffle(self.order)
        self.times = {}           # block -> (sent, done)
        self.allowed = 0
        self.next = 0
        self.cond = threading.Condition()
        self.errors = []
        self.random = random
        self.threads = [threading.Thread(target=self._run, args=(disk,), daemon=True)
                        for _ in range(WRITERS)]
        for t in self.threads:
            t.start()

    def _take(self):
        with self.cond:
            while self.next >= min(self.allowed, len(self.order)):
                if self.next >= len(self.order):
                    return None
                self.cond.wait(1)
            self.next += 1
            return self.order[self.next - 1]

    def _run(self, disk):
        try:
            with disk.connect() as c:
                while (block := self._take()) is not None:
                    sent = time.monotonic_ns()
                    c.write(block * BLOCK + block % 8 * 512, b"%-512d" % block)
                    self.times[block] = (sent, time.monotonic_ns())
        except BaseException as e:
            self.errors.append(repr(e))

    def allow(self, more):
        with self.cond:
            self.allowed += more
            self.cond.notify_all()

    def taken(self):
        return self.next

    def finish(self):
        self.allow(len(self.order))
        for t in self.threads:
            t.join()
        assert not self.errors, "guest I/O failed: %s" % self.errors


def in_flight(writers, called, replied):
    """Writes that were under way at some moment of a boundary."""
    return sum(1 for sent, done in list(writers.times.values()) if sent < replied and done > called)


def wait_share(writers, share):
    """Lets a share go and waits until it has been begun, so that the boundary meets it."""
    before = writers.taken()
    writers.allow(share)
    wait_for("writers begin their share", lambda: writers.taken() > before or writers.errors
             or writers.taken() >= len(writers.order))


@test
def every_block_written_once_is_dirty_in_exactly_one_epoch():
    """A backup at each boundary, since the checkpoint before: its bitmap is that one epoch.  Over
    all of them each block is dirty exactly once, in an epoch that its write can lie in."""
    random = rng("freeze")
    nblocks = CHECKPOINTS * SHARE
    with Stack() as s:
        disk = s.start("vda", nblocks * BLOCK, granularity="4K")
        writers = OnceWriters(disk, nblocks, random)
        where, bounds, raced = {}, [], 0
        with s.qmp() as q:
            q.cmd("checkpoint-create", name="c0", disks=["vda"])
            last = "c0"
            for i in range(1, CHECKPOINTS + 2):
                if i <= CHECKPOINTS:
                    wait_share(writers, SHARE)
                else:
                    writers.finish()
                called = time.monotonic_ns()
                ident, answer = backups.begin(q, [{"disk": "vda", "since": last}],
                                              checkpoint="c%d" % i)
                replied = time.monotonic_ns()
                raced += in_flight(writers, called, replied) if i % 20 == 0 else 0
                for off, n in backups.dirty(s.nbd, "vda", answer["vda"]["context"]):
                    for block in range(off // BLOCK, (off + n) // BLOCK):
                        assert block not in where, \
                            "block %d is dirty in epochs %d and %d" % (block, where[block], i)
                        where[block] = i
                backups.end(q, ident)
                q.cmd("checkpoint-delete", name=last)
                bounds.append((called, replied))
                last = "c%d" % i
        lost = [b for b in range(nblocks) if b not in where]
        assert not lost, "%d writes are in no epoch, e.g. block %d" % (len(lost), lost[0])
        for block, epoch in where.items():
            sent, done = writers.times[block]
            assert sent <= bounds[epoch - 1][1], "block %d is dirty before it was written" % block
            assert epoch == 1 or done >= bounds[epoch - 2][0], \
                "block %d was written before the epoch that has it" % block
        diag("%d boundaries, %d blocks; at every 20th boundary %.1f writes were under way" % (
            CHECKPOINTS, nblocks, raced / max(1, CHECKPOINTS // 20)))
        assert raced > 0, "no boundary met a write: the test proves nothing"


@test
def checkpoints_alone_divide_writes_as_their_times_say():
    """Checkpoints without backups, read at the end through NAME@BASE: what was written since each.
    The sets shrink from one to the next, and a write that was done before a checkpoint began is
    not since it, one sent after its answer is."""
    random = rng("freeze-names")
    count = CHECKPOINTS
    nblocks = count * SHARE
    with Stack() as s:
        disk = s.start("vda", nblocks * BLOCK, granularity="4K")
        writers = OnceWriters(disk, nblocks, random)
        bounds = []
        with s.qmp() as q:
            for i in range(count):
                wait_share(writers, SHARE)
                called = time.monotonic_ns()
                q.cmd("checkpoint-create", name="c%d" % i, disks=["vda"])
                bounds.append((called, time.monotonic_ns()))
            writers.finish()
            ident, _ = backups.begin(q, ["vda"])
            # the last checkpoint since which a block is dirty, among those that are looked at
            last, before = {}, set(range(nblocks))
            looked = list(range(0, count, max(1, count // 100)))
            for i in looked:
                name = "c%d" % i
                now = {b for off, n in backups.dirty(s.nbd, "vda@" + name, backups.DIRTY + name)
                       for b in range(off // BLOCK, (off + n) // BLOCK)}
                assert now <= before, "since %s names what since an older one does not" % name
                last.update((b, i) for b in now)
                before = now
            called = [bounds[i][0] for i in looked]
            replied = [bounds[i][1] for i in looked]
            for block, (sent, done) in writers.times.items():
                must = bisect.bisect_left(replied, sent) - 1   # the last answered before it was sent
                may = bisect.bisect_left(called, done) - 1     # the last called before it was done
                at = looked.index(last[block]) if block in last else -1
                assert at >= must, "block %d: written after c%d, lost" % (block, looked[must])
                assert at <= may, "block %d: done before c%d, yet since it" % (block, looked[at])
            backups.end(q, ident)


if __name__ == "__main__":
    main()
