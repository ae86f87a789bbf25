#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""varve pull that is cut short at any of its steps, by a kill or a loss of power, and goes on from the same
backup or another one."""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile

import backups
from dying import Orders
from harness import HERE, K, M, PRELOAD, VARVE, Stack, wait_for
from lossy import LossFs
from preloaded import library
from tap import LONG, diag, main, number, rng, test

sys.path.append(os.path.join(HERE, "..", "client"))
from fakenbd import FakeNbd, hang_up  # noqa: E402

SIZE, PIECE = 4 * M, 256 * K
CONTEXT = "qemu:dirty-bitmap:b"
ROUNDS = number("ROUNDS", 40, 1000)


class View:
    """What a backup's export shows, and the blocks of 64K that are dirty in it since the base."""

    def __init__(self, ident, content, dirty):
        self.content = content
        self.description = "disk d at the start of its epoch %d, view %016x, changes since the start of " \
            "epoch 3 [0123456789abcdef]" % (ident, ident)
        self.contexts = {"base:allocation": self.extents(lambda b: 0 if any(self.block(b)) else 3),
                         CONTEXT: self.extents(lambda b: int(b in dirty))}

    def block(self, b):
        return self.content[b * 64 * K:(b + 1) * 64 * K]

    @staticmethod
    def extents(flags):
        return [(64 * K, flags(b)) for b in range(SIZE // (64 * K))]

    def serve(self, sock, pieces=None):
        return FakeNbd(sock, self.content, self.contexts, after_reads=pieces, then=hang_up, greet=1,
                       description=self.description)


class Case:
    """A base, two views since, and a place for the file."""

    def __init__(self, random, incremental, folder=None):
        self.short = tempfile.mkdtemp(prefix="pr-", dir="/dev/shm")
        self.random, self.file = random, os.path.join(folder or self.short, "out.img")
        self.args = ["--context", CONTEXT] if incremental else []
        self.base = self.some(bytes(SIZE), range(SIZE // (64 * K)))
        first = random.sample(range(SIZE // (64 * K)), 40)
        second = sorted(set(first) | set(random.sample(range(SIZE // (64 * K)), 10)))
        one = self.some(self.base, first)
        self.views = [View(1, one, set(first)), View(2, self.some(one, second), set(second))]
        self.orders = Orders(os.path.join(self.short, "die"))

    def some(self, content, blocks):
        """Other bytes, or none, in those blocks."""
        out = bytearray(content)
        for b in blocks:
            fresh = self.random.choice((bytes(64 * K), self.random.randbytes(64 * K)))
            out[b * 64 * K:(b + 1) * 64 * K] = fresh
        return bytes(out)

    def pull(self, view, nth=0, after=False, pieces=None):
        """What it tells and of which view, if it has ended well.  An increment onto one that is half a later
        view is refused: then that view's."""
        preload = (os.environ.get("VARVE_PRELOAD") or PRELOAD) + " " + library("die")
        with view.serve(os.path.join(self.short, "s"), pieces):
            self.orders.arm(nth, after)
            r = subprocess.run([VARVE, "--json", "pull", "nbd+unix:///d?socket=%s/s" % self.short, self.file,
                                *self.args], capture_output=True, text=True, check=False,
                               env=dict(os.environ, LD_PRELOAD=preload.strip(), DIE_FILE=self.orders.path))
            self.orders.map[0:4] = bytes(4)
        assert r.returncode in (0, 1, -signal.SIGKILL), r
        if r.returncode == 1 and "later instant" in r.stderr:
            assert self.args and view is self.views[0], r.stderr
            return self.pull(self.views[1], nth, after, pieces)
        assert r.returncode != 1 or "same command again finishes it" in r.stderr, r.stderr
        return (json.loads(r.stdout), view) if r.returncode == 0 else None

    def begin(self):
        """As before the first pull."""
        folder = os.path.dirname(self.file)
        for name in os.listdir(folder):
            if "out.img" in name:
                os.unlink(os.path.join(folder, name))
        if self.args:
            with open(self.file, "wb") as f:
                f.write(self.base)

    def content(self):
        with open(self.file, "rb") as f:
            return f.read()

    def check(self, view, what):
        """Nothing that is no backup looks like one; and the last pull makes one."""
        if not os.path.exists(self.file + ".partial"):
            here = self.content() if os.path.exists(self.file) else None
            assert here in ([self.base] if self.args else [None]) + [v.content for v in self.views], what
            if here != self.base and here is not None:
                return False
        told, view = self.pull(view)
        got = self.content()
        assert got == view.content, "%s: it differs at %s" % (
            what, next((i for i, (a, b) in enumerate(zip(got, view.content)) if a != b), None))
        assert not os.path.exists(self.file + ".partial")
        return told["from"] > 0

    def close(self):
        shutil.rmtree(self.short)


def killed_at_each_step(incremental):
    case = Case(rng("kills %d" % incremental), incremental)
    try:
        for pieces in (8, None):
            went_on = nth = 0
            died = True
            while died:
                nth += 1 if LONG or nth < 12 or nth > 20 else 3
                for after in (False, True):
                    for then in case.views:
                        case.begin()
                        case.pull(case.views[0], nth, after, pieces)
                        died = case.orders.calls() >= nth
                        went_on += case.check(then, (nth, after, pieces, then.description))
            diag("%d calls, %d times it went on" % (nth - 1, went_on))
            assert went_on > 0
    finally:
        case.close()


@test
def full_pull_killed_at_any_step_and_run_again():
    """The server hangs up after some reads, so that what it has come to is saved, or does not; the pull is
    killed on the way; then comes the same view or another one."""
    killed_at_each_step(False)


@test
def incremental_pull_killed_at_any_step_and_run_again():
    killed_at_each_step(True)


def lost_power(incremental):
    random = rng("losses %d" % incremental)
    went_on = 0
    with LossFs() as fs:
        case = Case(random, incremental, fs.mount)
        try:
            for i in range(ROUNDS):
                what = ["round %d" % i]
                case.begin()
                fs.tell("sync")
                for _ in range(random.randrange(1, 4)):
                    if not incremental and os.path.exists(case.file):
                        break  # it was killed when all had been done
                    view = random.choice(case.views)
                    nth, after = random.choice((0, random.randrange(1, 50))), random.random() < 0.5
                    pieces = random.randrange(1, 18)
                    what.append((case.views.index(view), nth, after, pieces))
                    done = case.pull(view, nth, after, pieces)
                    if random.random() < 0.7:
                        seed = random.randrange(1, 1 << 30)
                        what.append("lose %d" % seed)
                        fs.tell("lose %d" % seed)
                    if done:
                        break
                went_on += case.check(random.choice(case.views), what)
        finally:
            case.close()
    diag("%d rounds, %d times it went on" % (ROUNDS, went_on))
    assert went_on > 0


@test
def full_pull_goes_on_after_losses_of_power():
    lost_power(False)


@test
def incremental_pull_goes_on_after_losses_of_power():
    lost_power(True)


def cut_short(s, out):
    """Kills a pull of vda once its marker says that some of it is durable."""
    def copied():
        try:
            with open(out + ".partial") as f:
                return json.load(f)["copied"] > 0
        except FileNotFoundError:
            return False
    p = subprocess.Popen([VARVE, "pull", s.uri("vda"), out], stdout=subprocess.DEVNULL)
    try:
        wait_for("some of it is durable", copied, p)
    finally:
        s.kill(p)


@test
def a_backup_is_gone_on_with_across_the_daemons_restart_and_another_one_is_not():
    """Its view has the same name until it ends; one of the next backup has another name."""
    random, size = rng("stack"), 24 * M
    with Stack() as s:
        disk = s.start("vda", size, random.randbytes(size), granularity="64K")
        state, out = s.content(disk.image), s.path("out.img")
        with s.qmp() as q:
            backups.begin(q, ["vda"], id="a", speed=4 * M)
        with disk.connect() as c:
            c.write(0, random.randbytes(8 * M))
            cut_short(s, out)
            s.stop(s.daemon)
            s.start_daemon()
            s.wait_disk("vda", "live")
            told = json.loads(s.varve("--json", "pull", s.uri("vda"), out, "--verify").stdout)
            assert told["from"] > 0 and s.content(out) == state, told
            os.unlink(out)
            cut_short(s, out)
            with s.qmp() as q:
                backups.end(q, "a", False)
                c.write(M, random.randbytes(8 * M))
                c.flush()
                state = s.content(disk.image)
                backups.begin(q, ["vda"], id="b")
            told = json.loads(s.varve("--json", "pull", s.uri("vda"), out).stdout)
            assert told["from"] == 0 and s.content(out) == state, told
            with s.qmp() as q:
                backups.end(q, "b")


if __name__ == "__main__":
    main()
