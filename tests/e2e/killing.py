# SPDX-License-Identifier: BSD-3-Clause
"""Guests at full speed, commands, and a death in the middle of them; then what there must be again.
test_kill_loop.py has processes killed, test_lost_writes.py has the machine lose its power as well."""
import threading
import time

import backups
from bitmaps import PREFIX, base_export, blocks_of
from chain import Chain
from harness import K, M, wait_for
from qmpclient import QMPError
from replay import Replay
from writers import SECTOR, Content, Guests

SIZE, WRITERS = 8 * M, 2


class Loop:
    """All that happens to one disk, and what is known of it."""
    exact = True             # nothing may be dirty that was not written

    def __init__(self, s, random, block):
        self.s, self.random, self.block = s, random, block
        self.image = s.image("vda.img", SIZE)
        self.chain = Chain(s, block)
        self.open = []           # backups, oldest first
        self.checkpoints = []    # to be deleted some day
        self.bitmaps = []        # [name, (called, replied), end or None], oldest first
        self.count = self.starts_killed = self.instants = 0
        self.pending = None      # (kind, what, called) of a command without an answer
        self.serve()
        s.start_daemon()
        s.wait_disk("vda", "live")
        with s.qmp() as q:
            self.chain.complete(q, s.content(self.image))

    def serve(self):
        self.disk = self.s.serve("vda", self.image, granularity=str(self.block))

    def name(self, letter):
        self.count += 1
        return "%s%d" % (letter, self.count)

    # -- commands, while guests write -----------------------------------------------------------------

    def try_(self, kind, what, run):
        """Runs a command that may meet the death; true if it was answered with success."""
        self.pending = (kind, what, time.monotonic_ns())
        try:
            with self.s.qmp() as q:
                run(q)
        except QMPError as e:
            if kind != "end":  # an end that failed is said again
                self.pending = ("refused " + kind, what, str(e))
            return False
        except (EOFError, OSError):
            return False
        called, self.pending = self.pending[2], None
        return called, time.monotonic_ns()

    def create(self):
        name = self.name("c")
        if self.try_("create", name, lambda q: q.cmd("checkpoint-create", name=name, disks=["vda"])):
            self.checkpoints.append(name)

    def delete(self):
        if self.checkpoints:
            name = self.random.choice(self.checkpoints)
            if self.try_("delete", name, lambda q: q.cmd("checkpoint-delete", name=name)):
                self.checkpoints.remove(name)

    def begin(self):
        if len(self.open) < 3:
            b = self.chain.new(full=self.random.random() < 0.3)
            b.base, b.guests, b.initial = self.chain.image, self.guests, self.initial
            if self.try_("begin", b, b.begin):
                self.open.append(b)

    def pull(self):
        if self.open:
            try:
                self.random.choice(self.open).pull(self.s.nbd)
            except (EOFError, OSError):
                pass

    def end(self):
        ready = [b for b in self.open if b.image is not None]
        if ready:
            b, success = self.random.choice(ready), self.random.random() < 0.6
            if self.try_("end", (b, success), lambda q: backups.end(q, b.id, success)):
                self.has_ended(b, success)

    def has_ended(self, b, success):
        self.verify(b)
        self.open.remove(b)
        if success and b.called > self.chain.last.called:
            self.checkpoints.append(self.chain.last.checkpoint)
            self.chain.succeeded(b, b.base)
        elif success:
            self.checkpoints.append(b.checkpoint)

    def rotate(self):
        """As a manager does: in one transaction the old bitmap stops, a new one begins."""
        name, old = self.name("m"), self.bitmaps[-1] if self.bitmaps else None
        actions = [{"type": PREFIX + "add", "data": {"node": "vda", "name": name,
                                                     "granularity": self.block}}]
        if old:
            actions.insert(self.random.randrange(2), {
                "type": PREFIX + "disable", "data": {"node": "vda", "name": old[0]}})
        gone = self.bitmaps[0] if len(self.bitmaps) > 2 else None
        if gone:
            actions.append({"type": PREFIX + "remove", "data": {"node": "vda", "name": gone[0]}})
        when = self.try_("rotate", (name, old, gone), lambda q: q.cmd("transaction", actions=actions))
        if when:
            self.has_rotated(name, old, gone, when)

    def has_rotated(self, name, old, gone, when):
        if old:
            old[2] = when
        if gone:
            self.bitmaps.remove(gone)
        self.bitmaps.append([name, when, None])

    # -- one kill -------------------------------------------------------------------------------------

    def writers(self, number_):
        """Guests of a generation of their own: no bytes of theirs are like those of former ones."""
        content = Content(SIZE, b"gen%05d" % number_)
        at, n = SIZE // 2 // M * M + 8 * SECTOR, WRITERS * SECTOR
        with self.disk.connect() as c:
            sent = time.monotonic_ns()
            c.zero(at, n)
            self.chain.ledger.add(at, n, sent, time.monotonic_ns())
        self.initial = self.s.content(self.image)
        self.guests = Guests(self.disk, SIZE, WRITERS, self.random, 512 * K, content)
        assert self.guests.markers == at

    def once(self, number_):
        s, r = self.s, self.random
        self.writers(number_)
        program = r.choice(("nbdkit", "varved"))
        both = r.random() < 0.3
        victim = self.disk.process if program == "nbdkit" else s.daemon
        by_call = r.random() < 0.7
        nth = r.randrange(1, 300 if program == "nbdkit" else 100)
        self.what = "kill %d: %s%s at %s %d" % (number_, program, " (and the other)" if both else "",
                                                "call" if by_call else "guests' request", nth)
        killer = None
        if by_call:
            s.orders[program].arm(nth, r.random() < 0.5)
        else:
            def kill():
                wait_for("guests write", lambda: self.guests.progress() >= nth or self.guests.errors)
                s.kill(victim)
            killer = threading.Thread(target=kill, daemon=True)
            killer.start()
        commands = (self.create, self.delete, self.begin, self.pull, self.end, self.rotate)
        while victim.poll() is None and not self.pending:
            r.choices(commands, (3, 2, 4, 3, 2, 3))[0]()
        victim.wait(60)
        if killer:
            killer.join()
        else:
            s.orders[program].disarm()
        assert s.dead(victim)
        self.come_back(program, both)
        self.chain.ledger.take(self.guests)
        self.check()

    def come_back(self, program, both):
        s = self.s
        if both:
            s.kill(s.daemon if program == "nbdkit" else self.disk.process)
        served = program == "varved" and not both
        if served:
            before = self.guests.progress()
            wait_for("guests go on without a daemon",
                     lambda: self.guests.progress() > before + 5 or self.guests.errors)
        else:
            self.guests.abandon()
        self.restart(program, both)
        self.resolve()
        if served:
            self.guests.stop()

    def restart(self, program, both):
        s, r = self.s, self.random
        starts = [(p, f) for p, f in (("nbdkit", self.serve), ("varved", s.start_daemon))
                  if both or p == program]
        r.shuffle(starts)
        for p, start in starts:
            while r.random() < 0.3:
                if s.start_dying(p, r.randrange(1, 20), r.random() < 0.5, start):
                    break
                self.starts_killed += 1
            else:
                start()
        s.wait_disk("vda", "live")

    def resolve(self):
        """What became of the command that was under way."""
        now, pending, self.pending = time.monotonic_ns(), self.pending, None
        if not pending:
            return
        kind, what, called = pending
        with self.s.qmp() as q:
            there = {c["name"] for c in q.cmd("query-checkpoints")}
            runs = {b["id"] for b in q.cmd("query-backups") if b["state"] == "running"}
            maps = {b["name"]: b for n in q.cmd("query-named-block-nodes") for b in n["dirty-bitmaps"]}
            if kind == "create" and what in there:
                self.checkpoints.append(what)
            elif kind == "delete" and what not in there:
                self.checkpoints.remove(what)
            elif kind == "begin":
                assert (what.id in runs) == (what.checkpoint in there), "begun by half"
                if what.id in runs:
                    what.replied = now
                    self.open.append(what)
            elif kind == "end":
                b, success = what
                backups.end(q, b.id, success)  # as a client does that had no answer
                self.has_ended(b, success)
            elif kind == "rotate":
                name, old, gone = what
                done = name in maps
                assert not old or maps[old[0]]["recording"] != done, "half a transaction"
                assert not gone or (gone[0] in maps) != done, "half a transaction"
                if done:
                    self.has_rotated(name, old, gone, (called, now))
            elif kind == "refused begin":
                assert what.id not in runs and what.checkpoint not in there, called
            elif kind == "refused create":
                assert what not in there, called
            elif kind == "refused delete":
                assert what in there, called
            elif kind == "refused rotate":
                assert what[0] not in maps, called

    # -- comparing ------------------------------------------------------------------------------------

    def verify(self, b):
        """The backup is the disk at its instant: once against the log of the guests of then."""
        if b.guests:
            Replay(b.guests, b.initial).check(b.image, b.called, b.replied, b.id)
            b.guests = b.initial = None
            self.instants += 1

    def check(self):
        s, content = self.s, self.s.content(self.image)
        for b in self.open:
            b.pull(s.nbd)
            self.verify(b)
        with s.qmp() as q:
            runs = {b["id"] for b in q.cmd("query-backups") if b["state"] == "running"}
            assert runs == {b.id for b in self.open}, (runs, [b.id for b in self.open])
            there = {c["name"] for c in q.cmd("query-checkpoints")}
            want = set(self.checkpoints) | {self.chain.last.checkpoint} | {
                b.checkpoint for b in self.open}
            assert there == want, (there ^ want)
            ident, _ = backups.begin(q, [{"disk": "vda", "export": "look"}])
            for name, start, end in self.bitmaps:
                got = blocks_of(s, base_export("look", name), name, self.block)
                sure, maybe = self.chain.ledger.since(*start, end)
                assert sure <= got, "%s lacks %s" % (name, sorted(sure - got)[:5])
                assert got <= maybe or not self.exact, "%s: %s" % (name, sorted(got - maybe)[:5])
            backups.end(q, ident, False)
            self.found = self.chain.complete(q, content, self.exact, self.what)
        self.chain.ledger.forget(min([self.chain.last.called] + [b[1][0] for b in self.bitmaps]))
