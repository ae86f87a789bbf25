#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""varve pull --delta and varve apply over running backups, and killed at each of their steps."""
import os
import shutil
import signal
import subprocess

import backups
from dying import Orders
from harness import K, M, PRELOAD, VARVE, Stack
from incremental import BITMAP
from preloaded import library
from tap import LONG, diag, main, number, rng, test

SIZE = 16 * M


def change(c, random, count=12):
    for _ in range(count):
        off, n = random.randrange(0, SIZE - M), random.randrange(1, 300 * K)
        random.choice((lambda: c.write(off, random.randbytes(n)), lambda: c.zero(off, n),
                       lambda: c.trim(off, n)))()


def content_of(c):
    return b"".join(c.read(o, 8 * M) for o in range(0, SIZE, 8 * M))


def put_back(s, *names):
    """full.img and its stamp as they were kept, times and all."""
    for name in names or ("full.img", "full.img.varve"):
        shutil.copy2(s.path("keep/" + name), s.path(name))


def keep(s):
    os.mkdir(s.path("keep"))
    for name in ("full.img", "full.img.varve"):
        shutil.copy2(s.path(name), s.path("keep/" + name))


@test
def each_delta_since_a_checkpoint_leads_to_its_instant():
    random, rounds = rng("checkpoints"), number("ROUNDS", 5, 30)
    with Stack() as s:
        disk = s.start("vda", SIZE, granularity="64K")
        with s.qmp() as q, disk.connect() as c:
            change(c, random)
            states = [content_of(c)]
            ident, _ = backups.begin(q, ["vda"], checkpoint="c0")
            change(c, random)
            s.varve("pull", s.uri("vda"), s.path("full.img"))
            backups.end(q, ident)
            keep(s)
            for i in range(1, rounds + 1):
                change(c, random)
                states.append(content_of(c))
                ident, _ = backups.begin(q, [{"disk": "vda", "since": "c%d" % (i - 1)}],
                                         checkpoint="c%d" % i)
                change(c, random)  # while it is pulled: the next one's
                s.varve("pull", s.uri("vda"), "--delta", s.path("deltas"), "--context", BITMAP,
                        "--verify")
                backups.end(q, ident)
            # All at once, and one after another.
            s.varve("apply", s.path("deltas"), s.path("full.img"), "--verify")
            assert s.content(s.path("full.img")) == states[-1]
            put_back(s)
            os.mkdir(s.path("some"))
            for i in range(1, rounds + 1):
                shutil.copy(s.path("deltas/%06d.delta" % i), s.path("some"))
                s.varve("apply", s.path("some"), s.path("full.img"))
                at = backups.first_difference(s.content(s.path("full.img")), states[i])
                assert at is None, "after delta %d it differs at %d" % (i, at)


@test
def a_bitmap_that_moves_is_told_from_one_that_did_not():
    """After a backup whose success was not said, the changes are since the older instant: that is no
    delta behind the one that was pulled, and is refused; since the right instant it is taken."""
    random = rng("bitmap")
    with Stack() as s:
        disk = s.start("vda", SIZE, granularity="64K")
        with s.qmp() as q, disk.connect() as c:
            change(c, random)
            q.cmd("block-dirty-bitmap-add", node="vda", name="b0")
            ident, _ = backups.begin(q, [{"disk": "vda", "bitmap": "b0"}])
            s.varve("pull", s.uri("vda"), s.path("full.img"))
            backups.end(q, ident)

            def delta(success):
                change(c, random)
                state = content_of(c)
                ident, _ = backups.begin(q, [{"disk": "vda", "bitmap": "b0"}])
                r = s.varve("pull", s.uri("vda"), "--delta", s.path("deltas"), "--context", BITMAP,
                            check=False)
                backups.end(q, ident, success)
                return state, r

            _, r = delta(True)
            assert r.returncode == 0, r.stderr
            state, r = delta(False)
            assert r.returncode == 0, r.stderr
            _, r = delta(True)
            assert r.returncode == 1 and "another folder" in r.stderr, r.stderr
            s.varve("apply", s.path("deltas"), s.path("full.img"))
            assert s.content(s.path("full.img")) == state


@test
def another_disk_of_the_same_name_and_epochs_is_told_from_this_one():
    random = rng("other")
    with Stack() as s, Stack() as other:
        for stack in (s, other):
            disk = stack.start("vda", SIZE, granularity="64K")
            with stack.qmp() as q, disk.connect() as c:
                ident, _ = backups.begin(q, ["vda"], checkpoint="c0")
                stack.varve("pull", stack.uri("vda"), stack.path("full.img"))
                backups.end(q, ident)
                change(c, random)
                backups.begin(q, [{"disk": "vda", "since": "c0"}], id="b")
        s.varve("pull", s.uri("vda"), "--delta", s.path("deltas"), "--context", BITMAP)
        r = s.varve("apply", s.path("deltas"), other.path("full.img"), check=False)
        assert r.returncode == 1 and "belong together" in r.stderr, r.stderr
        r = s.varve("pull", other.uri("vda"), "--delta", s.path("deltas"), "--since", "c0",
                    check=False)
        assert r.returncode == 1 and "another folder" in r.stderr, r.stderr
        for stack in (s, other):
            with stack.qmp() as q:
                backups.end(q, "b")


class Chain:
    """A backup that is running, two deltas before it, and varve that dies when it is told."""

    def __init__(self, s):
        self.library = library("die")
        self.s, self.orders = s, Orders(os.path.join(s.short, "die-varve"))
        random = rng("kills")
        disk = s.start("vda", SIZE, granularity="64K")
        with s.qmp() as q, disk.connect() as c:
            change(c, random)
            self.states = [content_of(c)]
            ident, _ = backups.begin(q, ["vda"], checkpoint="c0")
            s.varve("pull", s.uri("vda"), s.path("full.img"))
            backups.end(q, ident)
            for i in (1, 2):
                change(c, random)
                self.states.append(content_of(c))
                ident, _ = backups.begin(q, [{"disk": "vda", "since": "c%d" % (i - 1)}],
                                         checkpoint="c%d" % i)
                s.varve("pull", s.uri("vda"), "--delta", s.path("deltas"), "--context", BITMAP)
                backups.end(q, ident)
            change(c, random)
            self.states.append(content_of(c))
            backups.begin(q, [{"disk": "vda", "since": "c2"}], id="b")
        keep(s)

    def killed(self, nth, after, *args):
        """True: it died at its nth call."""
        preload = (os.environ.get("VARVE_PRELOAD") or PRELOAD) + " " + self.library
        self.orders.arm(nth, after)
        r = subprocess.run([VARVE, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                           env=dict(os.environ, LD_PRELOAD=preload.strip(),
                                    DIE_FILE=self.orders.path), check=False)
        if self.orders.disarm():
            assert r.returncode == -signal.SIGKILL, r
            return True
        assert r.returncode == 0, r.stderr
        return False

    def end(self):
        with self.s.qmp() as q:
            backups.end(q, "b")


def steps():
    """Each call, before and after; not LONG, fewer and fewer of the many that are all alike."""
    nth = 1
    while True:
        for after in (False, True):
            yield nth, after
        nth += 1 if LONG or nth < 12 else nth // 6


@test
def pull_of_a_delta_killed_at_any_step():
    """There is a whole delta or none, and the same command leads to the one."""
    with Stack() as s:
        chain = Chain(s)
        pull = ("pull", s.uri("vda"), "--delta", s.path("deltas"), "--context", BITMAP, "--verify")
        made = s.path("deltas/000003.delta")
        for nth, after in steps():
            if os.path.exists(made):
                os.unlink(made)
            died = chain.killed(nth, after, *pull)
            put_back(s)
            s.varve("apply", s.path("deltas"), s.path("full.img"))
            want = chain.states[3 if os.path.exists(made) else 2]
            assert s.content(s.path("full.img")) == want, (nth, after)
            s.varve(*pull)
            s.varve("apply", s.path("deltas"), s.path("full.img"))
            assert s.content(s.path("full.img")) == chain.states[3], (nth, after)
            assert sorted(os.listdir(s.path("deltas"))) == ["%06d.delta" % i for i in (1, 2, 3)]
            if not died:
                break
        diag("%d calls" % chain.orders.calls())
        chain.end()


@test
def apply_killed_at_any_step():
    """FILE is what it was, is marked, or is done; the same command finishes it."""
    with Stack() as s:
        chain = Chain(s)
        s.varve("pull", s.uri("vda"), "--delta", s.path("deltas"), "--context", BITMAP)
        apply = ("apply", s.path("deltas"), s.path("full.img"))
        marker = s.path("full.img.partial")
        marked = 0
        for nth, after in steps():
            put_back(s)
            died = chain.killed(nth, after, *apply, "--verify")
            if os.path.exists(marker):
                marked += 1
            else:
                got = s.content(s.path("full.img"))
                assert got in (chain.states[0], chain.states[3]), (nth, after)
            s.varve(*apply, "--verify")
            assert s.content(s.path("full.img")) == chain.states[3], (nth, after)
            assert not os.path.exists(marker)
            if not died:
                break
        diag("%d calls, %d times marked" % (chain.orders.calls(), marked))
        assert marked > 10
        for name in os.listdir(s.dir):  # what a kill between a file and its name leaves
            if name.startswith(".full.img."):
                os.unlink(s.path(name))
        chain.end()


if __name__ == "__main__":
    main()
