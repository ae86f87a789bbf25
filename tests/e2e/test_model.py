#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The model test: random operations on the whole stack and on plain arrays; compare all the time.

Two disks; guests' requests, checkpoints, backups of one disk or both, ends with and without
success, kills and restarts of daemon and nbdkit, disks that nobody serves for a while.  STEPS
(default 150; LONG=1: 5000); the seed is printed, and the steps are when it fails.
"""
import collections

import backups
from harness import K, M, Stack
from tap import diag, main, number, rng, test

STEPS = number("STEPS", 150, 5000)
SIZES = {"a": 6 * M + 5 * K + 1, "b": 3 * M}
BLOCK = 4 * K


class ModelDisk:
    def __init__(self, name, size):
        self.name, self.size = name, size
        self.data = bytearray(b"\x77" * size)
        self.since = {}          # checkpoint -> blocks written after it

    def touch(self, off, n):
        blocks = range(off // BLOCK, (off + n - 1) // BLOCK + 1)
        for changed in self.since.values():
            changed.update(blocks)

    def everything(self):
        return set(range((self.size - 1) // BLOCK + 1))


class ModelBackup:
    def __init__(self, ident, checkpoint):
        self.id, self.checkpoint = ident, checkpoint
        self.disks = {}          # disk -> (export, bytes, dirty, {base: dirty}, context)


class Model:
    def __init__(self, s, random):
        self.s, self.random = s, random
        self.trace = collections.deque(maxlen=60)
        self.disks = {n: ModelDisk(n, size) for n, size in SIZES.items()}
        self.open = {}           # id -> ModelBackup
        self.live = {}           # disk -> connection of its guest
        self.count = 0
        for name, d in self.disks.items():
            s.serve(name, s.image(name + ".img", d.size, bytes(d.data)), granularity="4K")
            self.live[name] = s.disks[name].connect()
        s.start_daemon()
        self.wait()

    def wait(self):
        for name in self.disks:
            self.s.wait_disk(name, "live" if name in self.live else "offline")
        self.q = self.s.qmp()

    def some_disks(self):
        return self.random.sample(sorted(self.disks), self.random.choice((1, 1, 2)))

    # -- steps ---------------------------------------------------------------------------------

    def write(self):
        r = self.random
        if not self.live:
            return
        name = r.choice(sorted(self.live))
        d, c = self.disks[name], self.live[name]
        for _ in range(r.randrange(1, 12)):
            n = r.choice((1, 512, 5000, r.randrange(1, 300 * K), r.randrange(1, 3 * M)))
            off = r.randrange(d.size - n + 1)
            kind = r.choice(("write", "write", "zero", "trim"))
            self.trace.append("%s %s %d+%d" % (kind, name, off, n))
            d.touch(off, n)
            if kind == "write":
                data = r.randbytes(1) * n
                c.write(off, data)
                d.data[off:off + n] = data
            else:
                (c.zero if kind == "zero" else c.trim)(off, n)
                d.data[off:off + n] = bytes(n)

    def create(self):
        self.count += 1
        name, disks = "c%d" % self.count, self.some_disks()
        self.trace.append("checkpoint %s of %s" % (name, disks))
        self.q.cmd("checkpoint-create", name=name, disks=disks)
        for d in disks:
            self.disks[d].since[name] = set()

    def own(self):
        """Checkpoints whose own backup runs."""
        return {b.checkpoint for b in self.open.values() if b.checkpoint}

    def delete(self):
        known = sorted({(n, c) for n, d in self.disks.items() for c in d.since} -
                       {(n, c) for n in self.disks for c in self.own()})
        if not known:
            return
        disk, name = self.random.choice(known)
        self.trace.append("delete %s of %s" % (name, disk))
        self.q.cmd("checkpoint-delete", name=name, disks=[disk])
        del self.disks[disk].since[name]

    def begin(self):
        if len(self.open) >= 4:
            return
        r = self.random
        self.count += 1
        checkpoint = "k%d" % self.count if r.random() < 0.6 else None
        args, chosen = [], self.some_disks()
        bases = {}
        for name in chosen:
            usable = sorted(set(self.disks[name].since) - self.own())
            entry = {"disk": name, "export": "%s-%d" % (name, self.count)}
            bases[name] = r.choice(usable) if usable and r.random() < 0.7 else None
            if bases[name]:
                entry["since"] = bases[name]
            args.append(entry)
        self.trace.append("begin %s checkpoint %s" % (args, checkpoint))
        extra = {"checkpoint": checkpoint} if checkpoint else {}
        ident, answer = backups.begin(self.q, args, **extra)
        b = ModelBackup(ident, checkpoint)
        for name in chosen:
            d = self.disks[name]
            dirty = set(d.since[bases[name]]) if bases[name] else d.everything()
            others = {c: set(d.since[c]) for c in d.since if c not in self.own()}
            b.disks[name] = (answer[name]["export"], bytes(d.data), dirty, others,
                             answer[name]["context"])
            if checkpoint:
                d.since[checkpoint] = set()
        self.open[ident] = b

    def end(self):
        if not self.open:
            return
        b = self.open.pop(self.random.choice(sorted(self.open)))
        success = self.random.random() < 0.6
        self.trace.append("end %s %s" % (b.id, success))
        backups.end(self.q, b.id, success)
        if b.checkpoint and not success:
            for name in b.disks:
                del self.disks[name].since[b.checkpoint]

    def daemon(self):
        how = self.random.choice(("kill", "stop"))
        self.trace.append(how + " daemon")
        self.q.close()
        (self.s.kill if how == "kill" else self.s.stop)(self.s.daemon)
        for _ in range(self.random.randrange(3)):
            self.random.choice((self.write, self.nbdkit))()
        self.s.start_daemon()
        self.wait()

    def nbdkit(self):
        """One disk's nbdkit goes, by a kill or a stop, and may come back later."""
        name = self.random.choice(sorted(self.disks))
        if name in self.live:
            how = self.random.choice(("kill", "stop"))
            self.trace.append("%s nbdkit of %s" % (how, name))
            self.live.pop(name).close()
            process = self.s.disks[name].process
            (self.s.kill if how == "kill" else self.s.stop)(process)
            if self.random.random() < 0.4:
                return
        self.trace.append("serve " + name)
        self.s.serve(name, self.s.path(name + ".img"))
        self.live[name] = self.s.disks[name].connect()

    def nbdkit_beside_daemon(self):
        self.nbdkit()
        self.q.close()
        self.wait()

    # -- comparing -----------------------------------------------------------------------------

    def blocks(self, export, context, d):
        out = set()
        for off, n in backups.dirty(self.s.nbd, export, context):
            assert off % BLOCK == 0 and (n % BLOCK == 0 or off + n == d.size), (off, n)
            out.update(range(off // BLOCK, (off + n - 1) // BLOCK + 1))
        return out

    def compare(self):
        where = self.s.nbd
        for b in self.open.values():
            for name, (export, data, dirty, others, context) in b.disks.items():
                d = self.disks[name]
                at = backups.first_difference(backups.pull(where, export, connections=2), data)
                assert at is None, "%s differs at %d" % (export, at)
                assert self.blocks(export, context, d) == dirty, "dirty map of %s" % export
                for off, n, flags in backups.extents(where, export, backups.ALLOC):
                    assert not flags or not any(data[off:off + n]), (export, off, n, flags)
                for base in self.random.sample(sorted(others), min(2, len(others))):
                    if base not in d.since:
                        continue
                    got = self.blocks("%s@%s" % (export, base), backups.DIRTY + base, d)
                    assert got == others[base], "%s@%s: %s" % (export, base,
                                                               sorted(got ^ others[base])[:5])
        running = {b["id"] for b in self.q.cmd("query-backups") if b["state"] == "running"}
        assert running == set(self.open), (running, set(self.open))
        for name, d in self.disks.items():
            assert self.s.content(self.s.path(name + ".img")) == d.data
            names = {c["name"] for c in self.q.cmd("query-checkpoints", disk=name)}
            assert names == set(d.since), (name, names, set(d.since))

    def step(self):
        self.random.choices(
            (self.write, self.create, self.delete, self.begin, self.end, self.daemon,
             self.nbdkit_beside_daemon, self.compare), (30, 8, 6, 12, 8, 4, 6, 10))[0]()


@test
def random_operations_act_as_on_arrays():
    """After any history views, dirty maps, checkpoints and backups are the model's."""
    with Stack() as s:
        model = Model(s, rng("model"))
        try:
            for _ in range(STEPS):
                model.step()
            model.compare()
        except BaseException:
            diag("the last steps:\n  " + "\n  ".join(model.trace))
            raise
        for c in model.live.values():
            c.disc()
        model.q.close()


if __name__ == "__main__":
    main()
