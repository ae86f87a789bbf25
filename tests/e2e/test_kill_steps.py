#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 at every step of every command: each one either happened or did not, and all is exact.

A step is a call of the daemon or of nbdkit that changes a file, or a message between them (die.c);
the process dies right before or right after it.  What there should be is told by plain sets.
STEPS_EACH (default 1; LONG=1: all) is how many steps of each command are tried.  The seed is printed.
"""
import copy
import os

import backups
from bitmaps import PREFIX, base_export
from dying import Dying
from harness import K, M
from qmpclient import QMPError
from tap import diag, main, number, rng, test

SIZE, BLOCK = M + 512, 4 * K
EACH = number("STEPS_EACH", 1, 1 << 30)


class Model:
    """Names, and the blocks that each of them should have."""

    def __init__(self):
        self.checkpoints, self.bitmaps, self.recording = {}, {}, set()
        self.backups = {}        # id -> (export, content, dirty, checkpoint)

    def touch(self, blocks):
        for b in self.checkpoints.values():
            b |= blocks
        for name in self.recording:
            self.bitmaps[name] |= blocks

    def own(self):
        return {b[3] for b in self.backups.values()}

    def names(self):
        return sorted(self.checkpoints), sorted(self.bitmaps), sorted(self.backups)

    def __str__(self):
        sets = dict(self.checkpoints, **self.bitmaps)
        return "backups %s, recording %s\n%s" % (sorted(self.backups), sorted(self.recording), "\n".join(
            "    %s: %s" % (n, b if b is None else sorted(b)) for n, b in sorted(sets.items())))


class Steps:
    def __init__(self, s, random):
        self.s, self.random, self.count = s, random, 0
        self.model, self.data = Model(), bytearray(b"\x42" * SIZE)
        self.image = s.image("vda.img", SIZE, bytes(self.data))
        self.serve()
        s.start_daemon()
        s.wait_disk("vda", "live")
        self.kills = self.steps = 0
        self.imported = set()    # of these there is none that a backup is based on
        self.exported = None     # the checkpoint and the file of the last export

    def serve(self):
        self.disk = self.s.serve("vda", self.image, granularity="4K")

    def name(self, letter):
        self.count += 1
        return "%s%d" % (letter, self.count)

    # -- commands: (what, its effect on the model); made now, run later --------------------------------

    def create(self, m):
        name = self.name("c")
        return ("checkpoint-create", {"name": name, "disks": ["vda"]},
                lambda m: m.checkpoints.update({name: set()}))

    def delete(self, m):
        name = self.random.choice(sorted(set(m.checkpoints) - m.own()))
        return ("checkpoint-delete", {"name": name}, lambda m: m.checkpoints.pop(name))

    def begin(self, m):
        ident, checkpoint = self.name("b"), self.name("k")
        base = self.random.choice(sorted(set(m.checkpoints) - m.own() - self.imported))
        content = bytes(self.data)

        def effect(m):
            m.backups[ident] = (ident, content, set(m.checkpoints[base]), checkpoint)
            m.checkpoints[checkpoint] = set()
        return ("backup-begin", {"id": ident, "checkpoint": checkpoint, "disks": [
            {"disk": "vda", "since": base, "export": ident}]}, effect)

    def end(self, m, success):
        ident = self.random.choice(sorted(m.backups))

        def effect(m):
            checkpoint = m.backups.pop(ident)[3]
            if not success:
                del m.checkpoints[checkpoint]
        return ("backup-end", {"id": ident, "success": success}, effect)

    def end_well(self, m):
        return self.end(m, True)

    def end_badly(self, m):
        return self.end(m, False)

    def add(self, m):
        name = self.name("m")

        def effect(m):
            m.bitmaps[name] = set()
            m.recording.add(name)
        return (PREFIX + "add", {"node": "vda", "name": name, "granularity": BLOCK}, effect)

    def clear(self, m):
        name = self.random.choice(sorted(m.bitmaps))
        return (PREFIX + "clear", {"node": "vda", "name": name},
                lambda m: m.bitmaps[name].clear())

    def remove(self, m):
        name = self.random.choice(sorted(m.bitmaps))

        def effect(m):
            del m.bitmaps[name]
            m.recording.discard(name)
        return (PREFIX + "remove", {"node": "vda", "name": name}, effect)

    def merge(self, m):
        target, source = self.random.sample(sorted(m.bitmaps), 2)

        def effect(m):
            m.bitmaps[target] |= m.bitmaps[source]
        return (PREFIX + "merge", {"node": "vda", "target": target, "bitmaps": [source]}, effect)

    def transaction(self, m):
        old, new, checkpoint = self.random.choice(sorted(m.bitmaps)), self.name("m"), self.name("c")

        def effect(m):
            m.recording.discard(old)
            m.bitmaps[new] = set()
            m.recording.add(new)
            m.checkpoints[checkpoint] = set()
        return ("transaction", {"actions": [
            {"type": PREFIX + "disable", "data": {"node": "vda", "name": old}},
            {"type": PREFIX + "add", "data": {"node": "vda", "name": new,
                                               "granularity": BLOCK}},
            {"type": "checkpoint-create", "data": {"name": checkpoint, "disks": ["vda"]}}]}, effect)

    def file(self):
        return os.path.join(self.s.short, self.name("file"))

    def export(self, m):
        name, file = self.random.choice(sorted(set(m.checkpoints) - m.own())), self.file()
        self.exported = name, file
        return ("checkpoint-export", {"disk": "vda", "name": name, "file": file}, lambda m: None)

    def check_export(self, replied):
        """The file is there or it is not; if it is, the checkpoint comes back from it."""
        (name, file), self.exported = self.exported, None
        assert os.path.exists(file) or not replied, file
        if os.path.exists(file) and name in self.model.checkpoints:
            with self.s.qmp() as q:
                q.cmd("checkpoint-delete", name=name)
                q.cmd("checkpoint-import", disk="vda", name=name, file=file)
            self.imported.add(name)
            self.judge("import of " + name, self.model, self.model, True)

    def import_(self, m):
        name, file = self.name("i"), self.file()
        m.checkpoints[name] = set()
        with self.s.qmp() as q:
            q.cmd("checkpoint-create", name=name, disks=["vda"])
            self.write(2)
            q.cmd("checkpoint-create", name=name + "x", disks=["vda"])
            q.cmd("checkpoint-export", disk="vda", name=name, file=file)
            q.cmd("checkpoint-delete", name=name)
            q.cmd("checkpoint-delete", name=name + "x")
        self.write(1)
        blocks = m.checkpoints.pop(name)
        self.imported.add(name)
        return ("checkpoint-import", {"disk": "vda", "name": name, "file": file},
                lambda m: m.checkpoints.update({name: set(blocks)}))

    COMMANDS = (create, delete, begin, end_well, end_badly, add, clear, remove, merge, transaction,
                export, import_)

    def provide(self):
        """Enough of everything, so that each command finds what it needs, and not too much."""
        m = self.model
        few = lambda: len(set(m.checkpoints) - m.own() - self.imported) < 2
        want = [(self.create, few), (self.create, few),
                (self.end_well, lambda: len(m.backups) > 2 or
                 m.backups and self.random.random() < 0.05),
                (self.begin, lambda: not m.backups),
                (self.add, lambda: len(m.bitmaps) < 2), (self.add, lambda: len(m.bitmaps) < 2),
                (self.remove, lambda: len(m.bitmaps) > 3),
                (self.delete, lambda: len(set(m.checkpoints) - m.own()) > 4)]
        with self.s.qmp() as q:
            for make, wanted in want:
                if wanted():
                    command, args, effect = make(m)
                    q.execute(command, args)
                    effect(m)
                    self.write(1)

    # -- the guest ------------------------------------------------------------------------------------

    def write(self, count, models=None):
        with self.disk.connect() as c:
            for _ in range(count):
                off = self.random.randrange(SIZE)
                n = min(self.random.choice((1, 700, 9000)), SIZE - off)
                data = self.random.randbytes(1) * n
                for m in models or (self.model,):
                    m.touch(set(range(off // BLOCK, (off + n - 1) // BLOCK + 1)))
                c.write(off, data)
                self.data[off:off + n] = data

    # -- after a death --------------------------------------------------------------------------------

    def restart(self, program, models):
        """Starts again what died, and dies in the start now and then; the guest goes on if it can."""
        s, r = self.s, self.random
        if program == "varved" and r.random() < 0.5:
            self.write(2, models)
        both = r.random() < 0.25
        if both:
            s.kill(self.disk.process if program == "varved" else s.daemon)
        starts = [(p, f) for p, f in (("nbdkit", self.serve), ("varved", s.start_daemon))
                  if both or p == program]
        r.shuffle(starts)
        for p, start in starts:
            while r.random() < 0.3:
                if s.start_dying(p, r.randrange(1, 16), r.random() < 0.5, start):
                    break
                self.kills += 1
            else:
                start()
        self.wait_live()
        self.write(1, models)

    def wait_live(self):
        try:
            self.s.wait_disk("vda", "live")
        except TimeoutError:
            diag(self.s.disk_info("vda"))
            raise

    def blocks(self, export, context):
        return {b for off, n in backups.dirty(self.s.nbd, export, backups.DIRTY + context)
                for b in range(off // BLOCK, (off + n - 1) // BLOCK + 1)}

    def actual(self):
        """Model of what there is; its backups are compared with what they were at their instant."""
        m = Model()
        with self.s.qmp() as q:
            for b in q.cmd("query-backups"):
                if b["state"] in ("running", "degraded", "broken"):
                    assert b["state"] == "running", b
                    m.backups[b["id"]] = None
            running = [i for i in m.backups]
            own = {self.all[i][3] for i in running}
            names = [c["name"] for c in q.cmd("query-checkpoints")]
            maps = [b for n in q.cmd("query-named-block-nodes") for b in n["dirty-bitmaps"]]
            ident, _ = backups.begin(q, [{"disk": "vda", "export": "look"}])
            for name in names:
                m.checkpoints[name] = (None if name in own else
                                       self.blocks(base_export("look", name), name))
            for b in maps:
                assert not b["inconsistent"], b
                m.bitmaps[b["name"]] = self.blocks(base_export("look", b["name"]), b["name"])
                if b["recording"]:
                    m.recording.add(b["name"])
            assert backups.pull(self.s.nbd, "look", 1) == self.data
            backups.end(q, ident, False)
        for i in running:
            export, content, dirty, _ = m.backups[i] = self.all[i]
            at = backups.first_difference(backups.pull(self.s.nbd, export, 1), content)
            assert at is None, "open backup %s differs at %d" % (i, at)
            assert self.blocks(export, "backup-vda") == dirty, "dirty map of %s" % i
        return m

    def same(self, a, m):
        own = m.own()
        return (a.names() == m.names() and a.bitmaps == m.bitmaps and a.recording == m.recording and
                all(c in own or a.checkpoints[c] == m.checkpoints[c] for c in m.checkpoints))

    def judge(self, what, before, after, replied):
        self.all = dict(before.backups, **after.backups)
        actual = self.actual()
        if replied is not False and self.same(actual, after):
            self.model = after
        elif replied is not True and self.same(actual, before):
            self.model = before
        else:
            raise AssertionError("%s: neither before nor after it (answer: %s):\nis %s\nbefore %s\n"
                                 "after %s" % (what, replied, actual, before, after))

    # -- one command ----------------------------------------------------------------------------------

    def once(self, make, program, nth, after_it):
        """Runs one command with the order to die at the nth step; true if it was carried out."""
        self.provide()
        self.write(3)
        command, args, effect = make(self, self.model)
        before, after = self.model, copy.deepcopy(self.model)
        effect(after)
        what = "%s, %s killed %s step %d" % (command, program, "after" if after_it else "before", nth)
        process = self.disk.process if program == "nbdkit" else self.s.daemon
        replied = None
        with self.s.qmp() as q:
            self.s.orders[program].arm(nth, after_it)
            try:
                q.execute(command, args)
                replied = True
            except QMPError as e:
                replied = False
                what += " (%s)" % e
            except (EOFError, OSError):
                pass
        died = self.s.disarm(program, process)
        if died:
            self.kills += 1
            self.restart(program, (before, after))
        else:
            assert replied is True, what + ": failed without a death"
            self.write(1, (before, after))
        try:
            self.judge(what, before, after, replied)
        except AssertionError as e:
            raise AssertionError(what) from e
        if self.exported:
            self.check_export(replied)
        return died

    def count_steps(self, make, program):
        assert not self.once(make, program, 1 << 30, False)
        return self.s.orders[program].calls()


def every_command(program):
    with Dying() as s:
        t = Steps(s, rng("steps-" + program))
        tried = []
        for make in Steps.COMMANDS:
            n = t.count_steps(make, program)
            steps = [(i, after) for i in range(1, n + 1) for after in (False, True)]
            tried.append("%s %d" % (make.__name__, n))
            for nth, after in t.random.sample(steps, min(EACH, len(steps))):
                t.once(make, program, nth, after)
        diag("steps: %s; %d kills" % (", ".join(tried), t.kills))


@test
def daemon_killed_at_any_step_of_any_command():
    """The command happened or it did not; what was answered happened, what was refused did not; every
    checkpoint and bitmap has exactly its blocks; open backups are the disk at their instant."""
    every_command("varved")


@test
def nbdkit_killed_at_any_step_of_any_command():
    """The same where the disk's server dies."""
    every_command("nbdkit")


@test
def nbdkit_killed_at_any_step_of_a_guests_write():
    """With a backup open, at every call of a write, zero or trim: the backup is the disk at its
    instant, what the image has got is dirty, and nothing is but what was written."""
    with Dying() as s:
        t = Steps(s, rng("steps-write"))
        kinds = ("write", "zero", "trim")
        for kind in kinds:
            nth = 1
            while nth:
                t.provide()
                first = t.random.randrange(0, SIZE // BLOCK - 2)
                off, n = first * BLOCK + 100, 2 * BLOCK
                s.orders["nbdkit"].arm(nth, after=t.random.random() < 0.5)
                c = t.disk.connect()
                try:
                    {"write": lambda: c.write(off, b"w" * n), "zero": lambda: c.zero(off, n),
                     "trim": lambda: c.trim(off, n)}[kind]()
                except (EOFError, OSError):
                    pass
                c.close()
                blocks = set(range(first, first + 3))
                before, after = t.model, copy.deepcopy(t.model)
                if s.disarm("nbdkit", t.disk.process):
                    nth += 1
                else:
                    before, nth = after, 0
                after.touch(blocks)
                now = s.content(t.image)
                if now != t.data:
                    before = after
                    t.data = bytearray(now)
                if nth:
                    t.kills += 1
                    t.restart("nbdkit", {id(m): m for m in (before, after)}.values())
                # bits of some of its blocks only: what is dirty lies between the two
                t.all = after.backups
                got = t.actual()
                assert got.names() == after.names()
                for have, least, most in ((got.bitmaps, before.bitmaps, after.bitmaps),
                                          (got.checkpoints, before.checkpoints, after.checkpoints)):
                    for name, blocks in have.items():
                        assert blocks is None or least[name] <= blocks <= most[name], (kind, nth, name)
                        if blocks is not None:
                            after_is = after.bitmaps if have is got.bitmaps else after.checkpoints
                            after_is[name] = blocks
                t.model = after
                # of bases that cannot be read yet, too, it is known from here on
                with t.disk.connect() as c:
                    c.write(off, b"W" * n)
                t.data[off:off + n] = b"W" * n
                after.touch(set(range(first, first + 3)))
        diag("%d kills" % t.kills)


@test
def killed_at_any_step_of_a_start():
    """Recovery that is cut off is begun again, however often: nothing changes by it."""
    with Dying() as s:
        t = Steps(s, rng("steps-start"))
        for program in ("nbdkit", "varved"):
            nth, stride = 1, 1
            while nth:
                t.provide()
                t.write(2)
                start = t.serve if program == "nbdkit" else s.start_daemon
                s.kill(t.disk.process if program == "nbdkit" else s.daemon)
                lives = s.start_dying(program, nth, t.random.random() < 0.5, start)
                t.kills += 1 if lives else 2
                nth = 0 if lives else nth + stride
                if not lives:
                    start()
                    stride = 1 if EACH > 1 else t.random.randrange(1, 6)
                t.wait_live()
                t.judge("start of " + program, t.model, t.model, True)
        diag("%d kills" % t.kills)


if __name__ == "__main__":
    main()
