#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Power loss on a file system that really forgets: what was not synced is gone, or there by halves.

Image and state directory lie on lossfs (lossfs.c). Under load, at any call of nbdkit or varved that
changes a file, the power goes: both are dead, the runtime directory is gone, of every file some of the
sectors that were not synced are kept, in any order, and of every directory some of the changes.  Then
the chain, an incremental backup since the last successful one, must be the image as it is now, byte for
byte; also where the disk lost what that backup had read.  Power goes in recoveries, too.

ROUNDS (default 8; LONG=1: 100).  The seed is printed, and each round's.
"""
from harness import K, M
from killing import SIZE, Loop
from lossy import Lossy
from qmpclient import QMPError
from tap import diag, main, number, rng, test

import backups

ROUNDS = number("ROUNDS", 8, 100)


class PowerLoop(Loop):
    exact = False            # doubt adds dirty blocks

    def lose(self):
        seed = self.random.randrange(1 << 32)
        self.what += ", power lost with %d" % seed
        self.s.power_loss(seed)

    def come_back(self, program, both):
        self.lose()
        self.guests.abandon()
        while not self.start_again():
            self.starts_killed += 1
            self.lose()
        self.s.wait_disk("vda", "live")
        self.views_are_gone()
        self.resolve()

    def start_again(self):
        s, r = self.s, self.random
        starts = [("nbdkit", self.serve), ("varved", s.start_daemon)]
        r.shuffle(starts)
        for p, start in starts:
            if r.random() >= 0.3:
                start()
            elif not s.start_dying(p, r.randrange(1, 30), r.random() < 0.5, start):
                return False
        return True

    def views_are_gone(self):
        """No backup that was open goes on, and none says that it does; its end gives all back."""
        pending = self.pending
        with self.s.qmp() as q:
            state = {b["id"]: b["state"] for b in q.cmd("query-backups")}
            if pending and pending[0] == "begin" and pending[1].id in state:
                self.pending = None
                self.open.append(pending[1])
            if pending and pending[0] == "end":
                b, success = pending[1]
                if state[b.id] != "completed" and (success or state[b.id] != "failed"):
                    self.pending = None  # it was not; a start may have found that it has failed
            for b in list(self.open):
                if pending and pending[0] == "end" and b is pending[1][0] and self.pending:
                    continue
                assert state[b.id] not in ("running", "degraded"), (b.id, state[b.id])
                try:
                    backups.end(q, b.id, False)
                except QMPError as e:
                    raise AssertionError("a broken backup cannot be ended: %s" % e)
                self.open.remove(b)


def rounds(block, count, name):
    with Lossy() as s:
        loop = PowerLoop(s, rng(name), block)
        dirty = differ = worst = 0
        for i in range(count):
            try:
                loop.once(i)
            except BaseException:
                diag(loop.what)
                loop.guests.stop_now.set()
                raise
            dirty, differ = dirty + loop.found[0], differ + loop.found[1]
            worst = max(worst, loop.found[0])
        diag("%d losses of power, %d of them in a recovery" % (s.losses, loop.starts_killed))
        diag("of %d MiB on average %d KiB were dirty (at most %d), and %d KiB did differ" % (
            SIZE // M, dirty // count // K, worst // K, differ // count // K))


@test
def after_a_loss_of_power_the_chain_is_the_image_with_small_blocks():
    """Blocks of 4 KiB; half of the rounds."""
    rounds(4 * K, ROUNDS - ROUNDS // 2, "losses-4K")


@test
def after_a_loss_of_power_the_chain_is_the_image_with_large_blocks():
    """Blocks of 64 KiB; half of the rounds."""
    rounds(64 * K, ROUNDS // 2, "losses-64K")


if __name__ == "__main__":
    main()
