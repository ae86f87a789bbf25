#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Two disks in two nbdkit processes are backed up at one instant.

A guest writes a counter to A, waits for the answer, then writes the same counter to B.  In no
backup of both is B's counter ahead of A's, nor A's more than one ahead.  ROUNDS (default 40;
LONG=1: 500).
"""
import struct
import threading

import backups
import nbdclient
from harness import M, Stack, wait_for
from qmpclient import QMPError
from tap import diag, main, number, rng, test

ROUNDS = number("ROUNDS", 40, 500)


class Counter:
    def __init__(self, a, b, offset):
        self.n, self.error, self.stop = 0, None, False
        self.a, self.b, self.offset = a, b, offset
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        try:
            with self.a.connect() as a, self.b.connect() as b:
                while not self.stop:
                    word = struct.pack("<Q", self.n + 1)
                    a.write(self.offset, word)
                    b.write(self.offset, word)
                    self.n += 1
        except BaseException as e:
            self.error = e

    def end(self):
        self.stop = True
        self.thread.join()
        if self.error:
            raise self.error


class Noise:
    """Writers that keep both disks busy, so that quiescing them takes its time."""

    def __init__(self, disks, random):
        self.stop, self.errors = False, []
        self.threads = [threading.Thread(target=self._run, args=(d, random.random()), daemon=True)
                        for d in disks]
        for t in self.threads:
            t.start()

    def _run(self, disk, seed):
        random = rng(seed)
        try:
            with disk.connect() as c:
                while not self.stop:
                    c.write(random.randrange(4, 12) * M, bytes(random.choice((4096, 2 * M))))
        except BaseException as e:
            self.errors.append(e)

    def end(self):
        self.stop = True
        for t in self.threads:
            t.join()
        if self.errors:
            raise self.errors[0]


@test
def the_second_disk_is_never_ahead_of_the_first():
    """Counters are at two offsets, written by two guests, while others load both disks."""
    random = rng("two-disks")
    with Stack() as s:
        a, b = s.start("a", 16 * M), s.start("b", 16 * M)
        offsets = (512, 3 * M)
        counters = [Counter(a, b, o) for o in offsets]
        noise = Noise((a, b), random)
        behind = []
        with s.qmp() as q:
            for i in range(ROUNDS):
                start = counters[0].n
                wait_for("the counter moves", lambda: counters[0].n > start or counters[0].error)
                order = ["a", "b"] if random.random() < 0.5 else ["b", "a"]
                ident, answer = backups.begin(q, order)
                assert sorted(answer) == ["a", "b"]
                with s.connect("a") as ca, s.connect("b") as cb:
                    for o in offsets:
                        na, = struct.unpack("<Q", ca.read(o, 8))
                        nb, = struct.unpack("<Q", cb.read(o, 8))
                        assert nb <= na, "round %d: B holds %d, A only %d" % (i, nb, na)
                        assert na <= nb + 1, "round %d: A holds %d, B still %d" % (i, na, nb)
                        behind.append(na - nb)
                backups.end(q, ident)
        noise.end()
        for c in counters:
            c.end()
        diag("%d rounds, counter at %d, A was ahead in %d" % (ROUNDS, counters[0].n, sum(behind)))


@test
def checkpoints_of_two_disks_are_made_at_one_instant():
    """The same for checkpoint-create: what B has since the checkpoint, A has too."""
    with Stack() as s:
        size, block = 64 * M, 4096
        a, b = (s.start(n, size, granularity="4K") for n in "ab")
        state = {"n": 0, "stop": False, "error": None}

        def guest():
            """Writes block n of A, then block n of B, for n = 0, 1, 2..."""
            try:
                with a.connect() as ca, b.connect() as cb:
                    while not state["stop"] and state["n"] < size // block:
                        ca.write(state["n"] * block, b"a")
                        cb.write(state["n"] * block, b"b")
                        state["n"] += 1
            except BaseException as e:
                state["error"] = e

        t = threading.Thread(target=guest, daemon=True)
        t.start()
        made = []
        with s.qmp() as q:
            for i in range(min(ROUNDS, 100)):
                before = state["n"]
                wait_for("the guest writes", lambda: state["n"] > before or not t.is_alive())
                q.cmd("checkpoint-create", name="c%d" % i, disks=["a", "b"])
                made.append("c%d" % i)
            state["stop"] = True
            t.join()
            if state["error"]:
                raise state["error"]
            ident, _ = backups.begin(q, ["a", "b"])
            for name in made:
                first = []
                for disk in "ab":
                    got = backups.dirty(s.nbd, "%s@%s" % (disk, name), backups.DIRTY + name)
                    first.append(got[0][0] // block if got else state["n"])
                # A's first block after the boundary is B's or the one after it
                assert first[0] in (first[1], first[1] + 1), (name, first)
            backups.end(q, ident)


@test
def a_backup_of_two_disks_happens_to_both_or_to_none():
    """When the second disk's part is refused, the first has no backup, no checkpoint, no export."""
    with Stack() as s:
        s.start("a", 16 * M)
        s.start("b", 16 * M)
        with s.qmp() as q:
            before = q.cmd("query-checkpoints"), q.cmd("query-backups")
            for bad in ({"disk": "b", "since": "nowhere"}, {"disk": "c"}, {"disk": "a"}):
                try:
                    backups.begin(q, ["a", bad], checkpoint="c")
                    raise AssertionError("backup-begin with %s succeeded" % bad)
                except QMPError:
                    pass
                assert (q.cmd("query-checkpoints"), q.cmd("query-backups")) == before, bad
                with nbdclient.NBD(s.nbd) as c:
                    assert c.client_flags().list_exports() == []
                    c.option(nbdclient.OPT_ABORT)


if __name__ == "__main__":
    main()
