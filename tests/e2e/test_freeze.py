#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The freeze: no write is lost or doubled across boundaries.

CHECKPOINTS (default 200; LONG=1: 1000) boundaries are made while guests write every block of a disk
exactly once.  Writers are let go before each boundary, it is begun when they write, and they are
held back when it has been answered, so that each boundary meets writes under way.
"""
import bisect
import threading
import time

import backups
from harness import K, Stack, wait_for
from tap import diag, main, number, rng, test

CHECKPOINTS = number("CHECKPOINTS", 200, 1000)
BLOCK = 4 * K
SHARE = 300               # blocks for one boundary, on average at most
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

    def go(self):
        """Lets them go on, and returns when they do (or have nothing left)."""
        with self.cond:
            before = self.next
            self.allowed = len(self.order)
            self.cond.notify_all()
        wait_for("writers write", lambda: self.next > before or self.next == len(self.order)
                 or self.errors)

    def hold(self):
        with self.cond:
            self.allowed = self.next

    def finish(self):
        self.go()
        for t in self.threads:
            t.join()
        assert not self.errors, "guest I/O failed: %s" % self.errors


def boundaries_met(writers, bounds):
    """How many boundaries, as (called, replied), had a write under way at some moment."""
    replied = [b[1] for b in bounds]
    met = set()
    for sent, done in writers.times.values():
        i = bisect.bisect_right(replied, sent)
        if i < len(bounds) and bounds[i][0] < done:
            met.add(i)
    return len(met)


@test
def every_block_written_once_is_dirty_in_exactly_one_epoch():
    """A backup at each boundary, since the checkpoint before: its bitmap is that one epoch.  Over
    all of them each block is dirty exactly once, in an epoch that its write can lie in."""
    random = rng("freeze")
    nblocks = CHECKPOINTS * SHARE
    with Stack() as s:
        disk = s.start("vda", nblocks * BLOCK, granularity="4K")
        writers = OnceWriters(disk, nblocks, random)
        where, bounds = {}, []
        with s.qmp() as q:
            q.cmd("checkpoint-create", name="c0", disks=["vda"])
            last = "c0"
            for i in range(1, CHECKPOINTS + 2):
                if i <= CHECKPOINTS:
                    writers.go()
                else:
                    writers.finish()
                called = time.monotonic_ns()
                ident, answer = backups.begin(q, [{"disk": "vda", "since": last}],
                                              checkpoint="c%d" % i)
                replied = time.monotonic_ns()
                writers.hold()
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
        met = boundaries_met(writers, bounds)
        diag("%d blocks, %d boundaries, %d of them met writes" % (nblocks, CHECKPOINTS, met))
        assert met >= CHECKPOINTS // 10, "too few boundaries met writes: this proves little"


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
                writers.go()
                called = time.monotonic_ns()
                q.cmd("checkpoint-create", name="c%d" % i, disks=["vda"])
                bounds.append((called, time.monotonic_ns()))
                writers.hold()
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
                must = bisect.bisect_left(replied, sent) - 1  # the last answered before it was sent
                may = bisect.bisect_left(called, done) - 1     # the last called before it was done
                at = looked.index(last[block]) if block in last else -1
                assert at >= must, "block %d: written after c%d, lost" % (block, looked[must])
                assert at <= may, "block %d: done before c%d, yet since it" % (block, looked[at])
            met = boundaries_met(writers, bounds)
            assert met >= count // 10, "only %d boundaries met writes" % met
            backups.end(q, ident)


if __name__ == "__main__":
    main()
