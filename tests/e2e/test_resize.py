#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""disk-resize: the image of a stopped disk grows and shrinks, and every chain goes on across it.

ROUNDS (default 8; LONG=1: 60) resizes of each kind of size are tried.  The seed is printed.
"""
import fcntl
import os
import shutil

import backups
from bitmaps import base_export, refused
from dying import Dying
from harness import K, M, Stack, wait_for
from qmpclient import QMPError
from tap import diag, main, number, rng, test

BLOCK, UNIT = 4 * K, 64 * K
ROUNDS = number("ROUNDS", 8, 60)
GARBAGE = b"\xee"       # what an old copy has where the disk was not, or is not any more


def resize_copy(copy, size):
    return bytearray(copy[:size]) + GARBAGE * (size - len(copy))  # none, if it is negative


class Base:
    """What a checkpoint or bitmap of that granularity stands for: a copy of before, the blocks written
    since, and, once the disk was resized, how small it has been."""

    def __init__(self, data, unit=BLOCK):
        self.copy, self.unit, self.written, self.smallest = bytes(data), unit, set(), None

    def may_be_dirty(self, size):
        """Blocks in units of which something was written, cut off, or has come."""
        units = {b * BLOCK // self.unit for b in self.written}
        if self.smallest is not None:
            units.update(range(self.smallest // self.unit, size // self.unit + 1))
        return {b for u in units for b in range(u * self.unit // BLOCK, (u + 1) * self.unit // BLOCK)}


class Life:
    """A disk that is written, backed up, stopped, resized, served again."""

    def __init__(self, s, random, size):
        self.s, self.random, self.count, self.bases = s, random, 0, {}
        self.data = bytearray(b"\x42" * size)
        self.image = s.image("vda.img", size, bytes(self.data))
        self.serve()
        s.start_daemon()
        s.wait_disk("vda", "live")
        with s.qmp() as q:
            q.cmd("block-dirty-bitmap-add", node="vda", name="rec", granularity=UNIT)
        self.bases["rec"] = Base(self.data, UNIT)
        self.checkpoint()

    def serve(self):
        self.disk = self.s.serve("vda", self.image, granularity="4K")

    def write(self, count):
        with self.disk.connect() as c:
            for _ in range(count):
                off = self.random.randrange(len(self.data))
                n = min(self.random.choice((1, 700, 9000)), len(self.data) - off)
                data = self.random.randbytes(1) * n
                c.write(off, data)
                self.data[off:off + n] = data
                for b in self.bases.values():
                    b.written.update(range(off // BLOCK, (off + n - 1) // BLOCK + 1))

    def checkpoint(self):
        self.count += 1
        name = "c%d" % self.count
        self.s.command("checkpoint-create", name=name, disks=["vda"])
        self.bases[name] = Base(self.data)

    def resized(self, size):
        """The model: what is cut off is gone, what comes is zeroes."""
        before = len(self.data)
        self.data = self.data[:size] + bytes(max(0, size - before))
        for b in self.bases.values():
            b.smallest = min(b.smallest if b.smallest is not None else before, before, size)

    def stop(self, kill=False):
        if kill:
            self.s.kill(self.disk.process)
        else:
            assert self.s.stop(self.disk.process) == 0
        wait_for("nobody serves it", lambda: self.s.disk_info("vda")["state"] != "live")

    def resize(self, size):
        self.s.command("disk-resize", disk="vda", size=size)
        self.resized(size)
        assert os.path.getsize(self.image) == size
        assert self.s.disk_info("vda")["size"] == size

    def check(self):
        """A backup is the image; with each base the copy of then becomes it; and nothing is dirty that
        was neither written nor cut off or come since."""
        size = len(self.data)
        assert self.s.content(self.image) == self.data
        with self.s.qmp() as q:
            ident, _ = backups.begin(q, [{"disk": "vda", "export": "look"}])
            whole = backups.pull(self.s.nbd, "look", 1)
            at = backups.first_difference(whole, self.data)
            assert at is None, "the view differs at %d" % at
            for name, base in self.bases.items():
                ranges = backups.dirty(self.s.nbd, base_export("look", name), backups.DIRTY + name)
                healed = backups.apply(resize_copy(base.copy, size), whole, ranges)
                at = backups.first_difference(healed, self.data)
                assert at is None, "since %s: differs at %d, but is clean" % (name, at)
                wrong = {b for off, n in ranges for b in range(off // BLOCK, (off + n - 1) // BLOCK + 1)}
                wrong -= base.may_be_dirty(size)
                assert not wrong, "since %s: dirty for no reason: %s" % (name, sorted(wrong)[:5])
            backups.end(q, ident, False)

    def forget_one(self):
        name = self.random.choice(sorted(set(self.bases) - {"rec"}))
        self.s.command("checkpoint-delete", name=name)
        del self.bases[name]


def sizes(random, odd):
    """Some of each: by little, by much, the same again soon."""
    n = random.choice((3, 40, 130, 200)) * UNIT + random.randrange(16) * BLOCK
    return n + random.choice((1, 511, 512, 4095)) if odd else n


def chain(odd):
    with Stack() as s:
        r = rng("resize-odd" if odd else "resize-whole")
        life = Life(s, r, sizes(r, odd))
        seen = [len(life.data)]
        for _ in range(ROUNDS):
            life.write(6)
            if r.random() < 0.7:
                life.checkpoint()
                life.write(2)
            life.stop(kill=r.random() < 0.4)
            for _ in range(r.choice((1, 1, 2, 3))):
                size = r.choice(seen) if r.random() < 0.4 else sizes(r, odd)
                life.resize(size)
                seen.append(size)
            if r.random() < 0.5:
                s.kill(s.daemon)
                s.start_daemon()
            if r.random() < 0.5:
                life.check()
            life.serve()
            s.wait_disk("vda", "live")
            if r.random() < 0.5:
                life.write(4)
            life.check()
            if len(life.bases) > 4:
                life.forget_one()


@test
def chains_go_on_across_sizes_of_whole_blocks():
    """Grown, shrunk, shrunk and grown again to the size it had: since every checkpoint and bitmap from
    before, what came, went or came back is dirty, and what was there all the time is exact."""
    chain(odd=False)


@test
def chains_go_on_across_odd_sizes():
    """The same with sizes that are no whole blocks: the block in which the smaller size ends is dirty."""
    chain(odd=True)


@test
def refused_while_served_or_backed_up():
    """Naming who serves it, and leaving image and tracking alone; what makes no sense, too."""
    with Stack() as s:
        life = Life(s, rng("refused"), M)
        with s.qmp() as q:
            refused(q, "'vda' is served by process %d: stop that first" % life.disk.process.pid,
                    "disk-resize", disk="vda", size=2 * M)
            backups.begin(q, ["vda"], id="b")
            life.stop()
            for size in (2 * M, M // 2):
                refused(q, "'vda' has a running backup: end that first", "disk-resize", disk="vda",
                        size=size)
            backups.end(q, "b", False)
            refused(q, "at least 1", "disk-resize", disk="vda", size=0)
            with open(life.image, "r+b") as f:
                fcntl.lockf(f, fcntl.LOCK_EX)
                refused(q, "locked", "disk-resize", disk="vda", size=2 * M)
            os.chmod(life.image, 0o444)
            q.cmd("disk-resize", disk="vda", size=M)  # it has that size
        os.chmod(life.image, 0o644)
        life.serve()
        s.wait_disk("vda", "live")
        life.check()


@test
def a_size_that_somebody_else_gave_is_taken_when_an_operator_says_so():
    """The plugin refuses and points to disk-resize, query-disks tells; then the disk is of that size, and
    nothing from before is believed until disk-adopt, which makes the chain exact."""
    for size in (3 * M + 700, M - 100):
        with Stack() as s:
            life = Life(s, rng("hand"), 2 * M)
            life.write(5)
            life.stop()
            os.truncate(life.image, size)
            info = wait_for("it is seen", lambda: (lambda d: d if d["state"] == "inconsistent" else None)(
                s.disk_info("vda")))
            assert "disk-resize" in info["reason"] and str(size) in info["reason"], info
            try:
                life.serve()
            except RuntimeError:
                s.killed.add(s.started[-1].pid)
            else:
                raise AssertionError("it was served")
            with open(s.started[-1].log) as f:
                text = f.read()
            assert "disk-resize" in text and str(size) in text, text
            life.resize(size)
            life.serve()
            s.wait_disk("vda", "inconsistent")
            with s.qmp() as q:
                refused(q, "disk-adopt", "backup-begin", disks=[{"disk": "vda", "since": "c1"}])
                q.cmd("disk-adopt", disk="vda", trust=True)
            s.wait_disk("vda", "live")
            life.check()


@test
def a_file_cut_by_others_and_given_its_size_back_is_not_what_it_was():
    """Others cut the image, disk-resize says the size that it had: what was cut off is dirty, even to who
    says that nobody wrote."""
    with Stack() as s:
        life = Life(s, rng("cut"), 2 * M)
        life.write(5)
        life.stop()
        os.truncate(life.image, M + 5)
        life.resized(M + 5)
        life.resize(2 * M)
        with s.qmp() as q:
            q.cmd("disk-adopt", disk="vda", trust=True)
        life.serve()
        s.wait_disk("vda", "live")
        life.check()


@test
def exported_checkpoints_and_explicit_blocks_follow():
    """A file exported before a resize is imported after it; blocks that no epoch tells, too."""
    for sizes_ in ((3 * M + 5,), (M - 5,), (M, 2 * M)):
        with Stack() as s:
            life = Life(s, rng("export"), 2 * M)
            file = os.path.join(s.short, "file")
            life.write(5)
            with s.qmp() as q:
                life.checkpoint()
                q.cmd("block-dirty-bitmap-add", node="vda", name="sum", granularity=BLOCK)
                q.cmd("block-dirty-bitmap-merge", node="vda", target="sum", bitmaps=["rec"])
                life.bases["sum"] = life.bases["rec"]
                q.cmd("checkpoint-export", disk="vda", name="c1", file=file)
                q.cmd("checkpoint-delete", name="c1")
            life.write(3)
            life.stop()
            for size in sizes_:
                life.resize(size)
            life.serve()
            s.wait_disk("vda", "live")
            life.write(3)
            s.command("checkpoint-import", disk="vda", name="c1", file=file)
            life.check()


@test
def the_command_line_says_it():
    with Stack() as s:
        life = Life(s, rng("cli"), M)
        life.stop()
        out = s.varve("disk", "resize", "vda", "3M").stdout
        assert out == "disk vda has 3145728 bytes\n", out
        life.resized(3 * M)
        assert "3" in s.varve("status", "vda").stdout
        bad = s.varve("disk", "resize", "vda", "much", check=False)
        assert bad.returncode == 2 and "is no size" in bad.stderr, bad
        life.serve()
        s.wait_disk("vda", "live")
        bad = s.varve("disk", "resize", "vda", "1M", check=False)
        assert bad.returncode == 1 and str(life.disk.process.pid) in bad.stderr, bad
        life.check()


# -- deaths ---------------------------------------------------------------------------------------------


def die_once(s, life, size, nth, after, crash):
    """The command with an order to die; then, with the order to die again, who comes next.  True: it
    died."""
    before = len(life.data)
    s.orders["varved"].arm(nth, after)
    replied = False
    with s.qmp() as q:
        try:
            q.cmd("disk-resize", disk="vda", size=size)
            replied = True
        except (EOFError, OSError):
            pass
    if not s.disarm("varved", s.daemon):
        assert replied
        life.resized(size)
        return False
    if crash:  # while the live epoch is sealed that may cost all of it
        shutil.rmtree(os.path.join(s.runtime, "vda"))
        for b in life.bases.values():
            b.written.update(range(before // BLOCK + 1))
    program = life.random.choice(("nbdkit", "varved"))
    start = life.serve if program == "nbdkit" else s.start_daemon
    if not s.start_dying(program, life.random.randrange(1, 30), life.random.random() < 0.5, start):
        start()
    if program == "nbdkit":
        s.start_daemon()
    else:
        wait_for("it is offline", lambda: s.disk_info("vda")["state"] == "offline")
        if life.random.random() < 0.5:
            s.command("disk-resize", disk="vda", size=size)
        life.serve()
    s.wait_disk("vda", "live")
    now = s.disk_info("vda")["size"]
    assert now == os.path.getsize(life.image), now
    assert now == size or now == before and not replied, (before, size, now)
    if now == size:
        life.resized(size)
    return True


@test
def killed_at_any_step_it_is_the_old_size_or_the_new_one():
    """Killed at each step of the command, and who comes next in its start: the disk has one of the two
    sizes, by plugin, daemon or the same command again, and the chain is exact; where the runtime folder has
    gone, too, it is right."""
    with Dying() as s:
        r = rng("resize-steps")
        life = Life(s, r, 2 * M + 512)
        nth, kills, stride = 1, 0, number("STRIDE", 5, 1)
        nth = r.randrange(1, stride + 1)
        while nth:
            life.write(3)
            crash = r.random() < 0.3
            life.stop(kill=not crash and r.random() < 0.5)
            size = r.choice((M, 2 * M + 512, 3 * M + 700, 4 * M))
            if size == len(life.data):
                size += 8 * K
            died = die_once(s, life, size, nth, r.random() < 0.5, crash)
            if not died:
                life.serve()
                s.wait_disk("vda", "live")
            kills += died
            nth = nth + stride if died else 0
            life.check()
        diag("%d kills" % kills)


@test
def finished_by_the_daemon_and_resized_back_it_is_not_the_disk_of_before():
    """varved finishes what was begun when it starts, and is told the old size again: what it knew of the
    disk of that size is not what it goes on with."""
    with Dying() as s:
        life, before, nth = Life(s, rng("back"), 2 * M), 2 * M, 0
        life.write(5)
        life.stop()
        while os.path.getsize(life.image) == before:
            nth += 1
            s.orders["varved"].arm(nth, True)
            with s.qmp() as q:
                try:
                    q.cmd("disk-resize", disk="vda", size=M)
                except (EOFError, OSError):
                    pass
            assert s.disarm("varved", s.daemon), "it was done"
            s.start_daemon()
        life.resized(M)
        wait_for("it is finished", lambda: s.disk_info("vda")["size"] == M)
        for size in (before, M, before):
            life.resize(size)
            life.check()
            life.serve()
            s.wait_disk("vda", "live")
            life.write(3)
            life.check()
            life.stop(kill=True)


if __name__ == "__main__":
    main()
