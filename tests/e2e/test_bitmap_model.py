#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The model test of bitmaps: random transactions of all that changes bitmaps and checkpoints, guests'
writes, backups with every base and mode, aborts, ends of daemon and nbdkit; and the same on plain sets.

STEPS (default 120) or SECONDS=n, for how long; the seed is printed, and the last steps when it fails.
"""
import collections
import copy
import os
import time

import backups
from bitmaps import PREFIX, base_export, infos
from harness import K, M, Stack
from qmpclient import QMPError
from tap import diag, main, number, rng, test

STEPS = number("STEPS", 120, 4000)
SECONDS = int(os.environ.get("SECONDS") or 0)
SIZE = 4 * M + 5 * K
BLOCKS = {"a": 4 * K, "b": 16 * K}    # one size, so that bitmaps can be merged across


class Bitmap:
    def __init__(self, block, granularity, records, transient):
        self.block, self.records, self.transient = block, records, transient
        self.unit = max(granularity, block)
        self.blocks = set()
        self.version = object()    # another one with each change by a command

    def seen(self):
        """As its readers see it: blocks."""
        n = self.unit // self.block
        last = (SIZE - 1) // self.block
        return {b for u in {b // n for b in self.blocks}
                for b in range(u * n, min(u * n + n, last + 1))}

    def count(self):
        return count(self.seen(), self.block)


def count(blocks, block):
    return sum(min(block, SIZE - b * block) for b in blocks)


def converted(blocks, block, to):
    out = set()
    for b in blocks:
        end = min((b + 1) * block, SIZE)
        out.update(range(b * block // to, (end - 1) // to + 1))
    return out


class Disk:
    def __init__(self, name):
        self.name, self.block = name, BLOCKS[name]
        self.data = bytearray(b"\x77" * SIZE)
        self.bitmaps, self.since = {}, {}


class Backup:
    """fresh: {disk: what was written since the boundary}."""

    def __init__(self):
        self.disks, self.fresh, self.bases, self.checkpoint = {}, {}, {}, None


class Refused(Exception):
    pass


class World:
    """What there should be; copied before a transaction."""

    def __init__(self):
        self.disks = {n: Disk(n) for n in BLOCKS}
        self.open = {}

    def users(self, disk, name):
        return [(i, b.bases[disk][1]) for i, b in self.open.items()
                if b.bases.get(disk, (None,))[0] == ("bitmap", name)]

    def own(self):
        return {b.checkpoint for b in self.open.values()}

    def bitmap(self, disk, name):
        """One that a command may use."""
        if name not in self.disks[disk].bitmaps:
            raise Refused("not found")
        if self.users(disk, name):
            raise Refused("in use")
        return self.disks[disk].bitmaps[name]

    # -- actions -------------------------------------------------------------------------------

    def do(self, action):
        kind, data = action["type"], action["data"]
        if kind == "abort":
            raise Refused("aborted")
        getattr(self, kind.replace(PREFIX, "bitmap_").replace("-", "_"))(data)

    def bitmap_add(self, data):
        d = self.disks[data["node"]]
        if data["name"] in d.bitmaps:
            raise Refused("already exists")
        d.bitmaps[data["name"]] = Bitmap(d.block, data["granularity"],
                                         not data.get("disabled", False),
                                         not data.get("persistent", True))

    def bitmap_remove(self, data):
        self.bitmap(data["node"], data["name"])
        del self.disks[data["node"]].bitmaps[data["name"]]

    def changed(self, data, **fields):
        b = self.bitmap(data["node"], data["name"])
        b.__dict__.update(fields, version=object())

    def bitmap_clear(self, data):
        self.changed(data, blocks=set())

    def bitmap_enable(self, data):
        self.changed(data, records=True)

    def bitmap_disable(self, data):
        self.changed(data, records=False)

    def bitmap_copy(self, data):
        b = self.bitmap(data["node"], data["name"])
        d = self.disks[data["node"]]
        if data["target"] in d.bitmaps:
            raise Refused("already exists")
        d.bitmaps[data["target"]] = new = copy.copy(b)
        new.blocks, new.version = set(b.blocks), object()

    def bitmap_merge(self, data):
        target, add = self.bitmap(data["node"], data["target"]), set()
        for source in data["bitmaps"]:
            node = source["node"] if isinstance(source, dict) else data["node"]
            b = self.bitmap(node, source["name"] if isinstance(source, dict) else source)
            exact = node == data["node"] and b.unit <= target.unit
            add |= b.blocks if exact else converted(b.seen(), b.block, target.block)
        target.blocks = target.blocks | add
        target.version = object()

    def checkpoint_create(self, data):
        for n in data["disks"]:
            if data["name"] in self.disks[n].since:
                raise Refused("already")
            self.disks[n].since[data["name"]] = set()

    def checkpoint_delete(self, data):
        for n in data["disks"]:
            if data["name"] not in self.disks[n].since:
                raise Refused("no checkpoint")
            if data["name"] in self.own():
                raise Refused("still runs")
            del self.disks[n].since[data["name"]]

    def backup_begin(self, data):
        new = Backup()
        for e in data["disks"]:
            d = self.disks[e["disk"]]
            mode = e.get("bitmap-mode", "on-success")
            base, dirty = None, set(range((SIZE - 1) // d.block + 1))
            if "since" in e:
                if e["since"] not in d.since:
                    raise Refused("no checkpoint")
                if e["since"] in self.own():
                    raise Refused("still runs")
                base, dirty = ("since", e["since"]), set(d.since[e["since"]])
            elif "bitmap" in e:
                users = self.users(d.name, e["bitmap"])
                if e["bitmap"] not in d.bitmaps:
                    raise Refused("not found")
                if users and (mode != "never" or any(m != "never" for _, m in users)):
                    raise Refused("in use")
                base, dirty = ("bitmap", e["bitmap"]), d.bitmaps[e["bitmap"]].seen()
            if any(k == e["export"] for b in self.open.values() for k, *_ in b.disks.values()):
                raise Refused("exists already")
            others = {n: (b.version, b.seen()) for n, b in d.bitmaps.items() if b.blocks}
            new.disks[d.name] = (e["export"], bytes(d.data), dirty, others)
            new.fresh[d.name] = set()
            new.bases[d.name] = (base, mode, d.bitmaps[base[1]].version
                                 if base and base[0] == "bitmap" else None)
        if any(n in b.bases and b.instant == "now" for n in new.disks for b in self.open.values()):
            raise Refused("two backups")
        new.instant = "now"
        if "checkpoint" in data:
            self.checkpoint_create({"name": data["checkpoint"], "disks": list(new.disks)})
            new.checkpoint = data["checkpoint"]
        self.open[data["id"]] = new

    # -- what else happens ---------------------------------------------------------------------

    def touch(self, disk, off, n):
        d = self.disks[disk]
        blocks = range(off // d.block, (off + n - 1) // d.block + 1)
        for s in list(d.since.values()) + [b.fresh[disk] for b in self.open.values()
                                           if disk in b.fresh]:
            s.update(blocks)
        for b in d.bitmaps.values():
            if b.records:
                b.blocks.update(blocks)

    def end(self, ident, success):
        b = self.open.pop(ident)
        for disk, (base, mode, version) in b.bases.items():
            m = self.disks[disk].bitmaps.get(base[1]) if base and base[0] == "bitmap" else None
            if m and success and mode != "never" and m.version is version:
                m.blocks = set(b.fresh[disk]) if m.records else set()
                m.version = object()
            if b.checkpoint and not success:
                del self.disks[disk].since[b.checkpoint]

    def daemon_ended(self):
        for d in self.disks.values():
            d.bitmaps = {n: b for n, b in d.bitmaps.items() if not b.transient}


def versioned_copy(world):
    """A deep copy in which versions stay the same objects."""
    memo = {}
    for d in world.disks.values():
        for b in d.bitmaps.values():
            memo[id(b.version)] = b.version
    for b in world.open.values():
        for _, _, version in b.bases.values():
            memo[id(version)] = version
        for disk in b.disks.values():
            for version, _ in disk[3].values():
                memo[id(version)] = version
    return copy.deepcopy(world, memo)


class Model:
    def __init__(self, s, random):
        self.s, self.random, self.count = s, random, 0
        self.trace = collections.deque(maxlen=40)
        self.world, self.live = World(), {}
        self.done = collections.Counter()
        for name, d in self.world.disks.items():
            s.serve(name, s.image(name + ".img", SIZE, bytes(d.data)), granularity=str(d.block))
            self.live[name] = s.disks[name].connect()
        s.start_daemon()
        self.wait()

    def wait(self):
        for name in BLOCKS:
            self.s.wait_disk(name, "live" if name in self.live else "offline")
        self.q = self.s.qmp()

    # -- one action ----------------------------------------------------------------------------

    def name(self, what):
        self.count += 1
        return "%s%d" % (what, self.count)

    def some(self, things, unknown=0.03):
        things = sorted(things)
        return self.random.choice(things) if things and self.random.random() > unknown else "no"

    def action(self, world):
        r = self.random
        disk = r.choice(sorted(BLOCKS))
        d = world.disks[disk]
        verb = r.choice(("add", "add", "remove", "clear", "enable", "disable", "copy", "merge",
                         "merge", "create", "create", "delete", "backup"))
        data = {"node": disk, "name": self.some(d.bitmaps)}
        if verb == "add":
            data.update(name=self.name("m") if r.random() < 0.95 else self.some(d.bitmaps, 0),
                        granularity=r.choice((512, 4 * K, 16 * K, 64 * K, 256 * K)))
            for key, p in (("disabled", 0.3), ("persistent", 0.8)):
                if r.random() < 0.5:
                    data[key] = r.random() < p
        elif verb == "copy":
            data["target"] = self.name("m")
        elif verb == "merge":
            sources = []
            for _ in range(r.randrange(4)):
                other = r.choice(sorted(BLOCKS))
                name = self.some(world.disks[other].bitmaps)
                sources.append(name if other == disk and r.random() < 0.5
                               else {"node": other, "name": name})
            data = {"node": disk, "target": self.some(d.bitmaps), "bitmaps": sources}
        elif verb == "create":
            return {"type": "checkpoint-create",
                    "data": {"name": self.name("c"), "disks": self.some_disks()}}
        elif verb == "delete":
            return {"type": "checkpoint-delete",
                    "data": {"name": self.some(d.since), "disks": [disk]}}
        elif verb == "backup":
            return self.backup_action(world)
        return {"type": PREFIX + verb, "data": data}

    def some_disks(self):
        return self.random.sample(sorted(BLOCKS), self.random.choice((1, 1, 2)))

    def backup_action(self, world):
        r = self.random
        data = {"id": self.name("k"), "disks": []}
        for disk in self.some_disks():
            d, e = world.disks[disk], {"disk": disk, "export": self.name("e")}
            how = r.choice(("full", "since", "bitmap", "bitmap", "bitmap"))
            if how == "since":
                e["since"] = self.some(d.since)
            elif how == "bitmap":
                e["bitmap"] = self.some(d.bitmaps)
                e["bitmap-mode"] = r.choice(("on-success", "never", "never", "always"))
            data["disks"].append(e)
        if r.random() < 0.4:
            data["checkpoint"] = self.name("c")
        return {"type": "backup-begin", "data": data}

    # -- steps ---------------------------------------------------------------------------------

    def write(self):
        r = self.random
        if not self.live:
            return
        name = r.choice(sorted(self.live))
        d, c = self.world.disks[name], self.live[name]
        for _ in range(r.randrange(1, 8)):
            n = r.choice((1, 512, 5000, r.randrange(1, 100 * K)))
            off = r.randrange(SIZE - n + 1)
            kind = r.choice(("write", "write", "zero", "trim"))
            self.trace.append("%s %s %d+%d" % (kind, name, off, n))
            self.world.touch(name, off, n)
            if kind == "write":
                data = r.randbytes(1) * n
                c.write(off, data)
                d.data[off:off + n] = data
            else:
                (c.zero if kind == "zero" else c.trim)(off, n)
                d.data[off:off + n] = bytes(n)

    def transaction(self):
        trial, actions, refusal = versioned_copy(self.world), [], None
        for _ in range(self.random.choice((1, 1, 1, 2, 3, 6, 10))):
            action = self.action(trial)
            if action["type"] == "backup-begin" and len(self.world.open) > 3:
                continue
            if self.random.random() < 0.02:
                action = {"type": "abort", "data": {}}
            actions.append(action)
            if refusal:
                continue
            try:
                trial.do(action)
            except Refused as e:
                if self.random.random() < 0.7:    # most of the time something is to happen
                    actions.pop()
                    trial = versioned_copy(self.world)
                    for done in actions:
                        trial.do(done)
                else:
                    refusal = str(e)
        single = len(actions) == 1 and actions[0]["type"] != "abort" and self.random.random() < 0.7
        self.trace.append("%s %s -> %s" % ("command" if single else "transaction", actions,
                                           refusal or "done"))
        try:
            if single:
                self.q.execute(actions[0]["type"], actions[0]["data"])
            else:
                self.q.cmd("transaction", actions=actions)
        except QMPError as e:
            assert refusal and refusal in e.desc, (refusal, e.desc)
            self.done["refused"] += 1
            return
        assert not refusal, "it should have been refused: " + refusal
        for b in trial.open.values():
            b.instant = "before"
        self.world = trial
        self.done.update(a["type"] for a in actions)

    def end(self):
        if not self.world.open:
            return
        ident, success = self.some(self.world.open, 0), self.random.random() < 0.6
        self.trace.append("end %s %s" % (ident, success))
        backups.end(self.q, ident, success)
        self.world.end(ident, success)
        self.done["end"] += 1

    def daemon(self):
        how = self.random.choice(("kill", "stop"))
        self.trace.append(how + " daemon")
        self.q.close()
        (self.s.kill if how == "kill" else self.s.stop)(self.s.daemon)
        self.world.daemon_ended()
        for _ in range(self.random.randrange(3)):
            self.random.choice((self.write, self.nbdkit))()
        self.s.start_daemon()
        self.wait()
        self.done["daemon"] += 1

    def nbdkit(self):
        name = self.random.choice(sorted(BLOCKS))
        if name in self.live:
            how = self.random.choice(("kill", "stop"))
            self.trace.append("%s nbdkit of %s" % (how, name))
            self.live.pop(name).close()
            (self.s.kill if how == "kill" else self.s.stop)(self.s.disks[name].process)
            if self.random.random() < 0.4:
                return
        self.trace.append("serve " + name)
        self.s.serve(name, self.s.path(name + ".img"))
        self.live[name] = self.s.disks[name].connect()
        self.done["nbdkit"] += 1

    def nbdkit_beside_daemon(self):
        self.nbdkit()
        self.q.close()
        self.wait()

    # -- comparing -----------------------------------------------------------------------------

    def blocks(self, export, context, d):
        out = set()
        for off, n in backups.dirty(self.s.nbd, export, context):
            assert off % d.block == 0 and (n % d.block == 0 or off + n == SIZE), (off, n)
            out.update(range(off // d.block, (off + n - 1) // d.block + 1))
        return out

    def compare_backup(self, b, name):
        d = self.world.disks[name]
        export, data, dirty, others = b.disks[name]
        at = backups.first_difference(backups.pull(self.s.nbd, export, connections=2), data)
        assert at is None, "%s differs at %d" % (export, at)
        got = self.blocks(export, backups.DIRTY + "backup-" + name, d)
        assert got == dirty, "%s: %s" % (export, sorted(got ^ dirty)[:5])
        for base in self.random.sample(sorted(others), min(2, len(others))):
            version, want = others[base]
            if base not in d.bitmaps or d.bitmaps[base].version is not version:
                continue
            got = self.blocks(base_export(export, base), backups.DIRTY + base, d)
            assert got == want, "%s@%s: %s" % (export, base, sorted(got ^ want)[:5])
            self.done["bases"] += 1

    def compare(self):
        for b in self.world.open.values():
            for name in b.disks:
                self.compare_backup(b, name)
        running = {b["id"] for b in self.q.cmd("query-backups") if b["state"] == "running"}
        assert running == set(self.world.open), (running, set(self.world.open))
        for name, d in self.world.disks.items():
            assert self.s.content(self.s.path(name + ".img")) == d.data
            got = {n: (b["count"], b["granularity"], b["recording"], b["busy"], b["persistent"],
                       b["inconsistent"]) for n, b in infos(self.q, name).items()}
            want = {n: (b.count(), b.unit, b.records, bool(self.world.users(name, n)),
                        not b.transient, False) for n, b in d.bitmaps.items()}
            assert got == want, "bitmaps of %s: %s" % (name, {
                n: (got.get(n), want.get(n)) for n in set(got) | set(want)
                if got.get(n) != want.get(n)})
            got = {c["name"]: c["disks"][0]["dirty-bytes"]
                   for c in self.q.cmd("query-checkpoints", disk=name)}
            want = {n: count(blocks, d.block) for n, blocks in d.since.items()}
            assert got == want, (name, got, want)
        self.done["compared"] += 1

    def step(self):
        self.random.choices((self.write, self.transaction, self.end, self.daemon,
                             self.nbdkit_beside_daemon, self.compare),
                            (30, 40, 8, 3, 4, 12))[0]()


@test
def random_transactions_act_as_on_sets():
    """After any history bitmaps, checkpoints and backups hold what the model's sets hold."""
    with Stack() as s:
        model, start, step = Model(s, rng("bitmaps")), time.monotonic(), 0
        try:
            while time.monotonic() - start < SECONDS if SECONDS else step < STEPS:
                model.step()
                step += 1
            model.compare()
        except BaseException:
            diag("step %d, the last ones:\n  %s" % (step, "\n  ".join(model.trace)))
            raise
        diag("%d steps: %s" % (step, dict(model.done)))
        for c in model.live.values():
            c.disc()
        model.q.close()


if __name__ == "__main__":
    main()
