#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 of the daemon at every step of a job's life, from the command that begins it to its durable
end, of one that completes and of one that is cancelled.  Whatever happens, the next daemon has it come
to its end: then its bitmap is exact, or there was no such job.

KILLS (default 8; LONG=1: all steps) is how many are tried of each; a step is a call that changes a
file (die.c)."""
import os

import bitmaps
from dying import Dying
from harness import K, M
from jobs import concluded, job
from tap import diag, main, number, rng, test

SIZE, BLOCK = 4 * M, 64 * K
KILLS = number("KILLS", 8, 1 << 30)


class Life:
    """A disk, an older copy of it that lacks some blocks, and a bitmap `there` with one of its own."""

    def __init__(self, s):
        self.s = s
        content = os.urandom(SIZE)
        self.disk = s.start("vda", SIZE, content, granularity="64K")
        self.older = s.image("older.img", SIZE, content[:5 * BLOCK] + bytes(2 * BLOCK) + content[7 * BLOCK:])
        with s.qmp() as q, self.disk.connect() as c:
            bitmaps.add(q, "there")
            c.write(20 * BLOCK, content[20 * BLOCK:21 * BLOCK])
        self.count, self.there = 0, {20}

    def run(self, q, name, ident, cancel):
        """The job's life as its user sees it."""
        q.cmd("block-dirty-bitmap-diff", node="vda", name=name, reference=self.older, job_id=ident,
              speed=1 if cancel else 0)
        if cancel:
            q.cmd("job-cancel", id=ident)
        concluded(q, ident)

    def once(self, name, cancel, nth, after):
        """True: the daemon died at the step."""
        self.count += 1
        ident = "j%d" % self.count
        orders, daemon = self.s.orders["varved"], self.s.daemon
        with self.s.qmp() as q:
            orders.arm(nth, after)
            try:
                self.run(q, name, ident, cancel)
            except (EOFError, OSError, TimeoutError):
                pass
        died = self.s.disarm("varved", daemon)
        if died:
            for path in (self.s.control, self.s.nbd):
                if os.path.exists(path):
                    os.unlink(path)
            self.s.start_daemon()
            self.s.wait_disk("vda", "live")
        self.check(name, ident, cancel, died)
        return died

    def check(self, name, ident, cancel, died):
        with self.s.qmp() as q:
            begun = job(q, ident)
            assert begun or died, "the job is lost"
            if begun and begun["status"] != "concluded" and cancel:
                q.cmd("block-job-set-speed", device=ident, speed=0)  # the cancelling did not happen
            j = concluded(q, ident) if begun else {"cancelled": True}
            assert "error" not in j, j
            have = bitmaps.infos(q)
            assert "there" in have and not any(b["busy"] or b["inconsistent"] for b in have.values())
            done = not j.get("cancelled")
            assert done or cancel or not begun, "a job was cancelled that nobody cancelled"
            assert name == "there" or (name in have) == done, (j, sorted(have))
            if done and name == "there":
                self.there |= {5, 6}
            want = dict({"new": {5, 6}} if "new" in have else {}, there=self.there)
            got = bitmaps.frozen(self.s, q, sorted(want))
            assert got == want, (got, want)
            if "new" in have:
                q.cmd("block-dirty-bitmap-remove", node="vda", name="new")
            blocks = [n for n in os.listdir(os.path.join(self.s.state, "vda")) if n.startswith("blocks-")]
            assert len(blocks) <= 1, blocks  # that of `there`


def every_step(name, cancel):
    with Dying() as s:
        random = rng("%s-%s" % (name, cancel))
        t = Life(s)
        assert not t.once(name, cancel, 1 << 30, False)
        steps = [(i, after) for i in range(1, s.orders["varved"].calls() + 1) for after in (False, True)]
        kills = 0
        for nth, after in random.sample(steps, min(KILLS, len(steps))):
            kills += t.once(name, cancel, nth, after)
        diag("%d steps, %d kills" % (len(steps) // 2, kills))


@test
def a_diff_that_makes_a_bitmap_killed_at_any_step():
    every_step("new", False)


@test
def a_diff_that_extends_a_bitmap_killed_at_any_step():
    every_step("there", False)


@test
def a_job_that_is_cancelled_killed_at_any_step():
    every_step("new", True)


if __name__ == "__main__":
    main()
