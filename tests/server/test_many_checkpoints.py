#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Hundreds of checkpoints of a large disk: right, and at a price that goes by what was written.

What the daemon does is counted by the kernel (bytes and calls of read, in /proc), not timed."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
import backups  # noqa: E402
from harness import G, K, M, Stack  # noqa: E402
import nbdclient  # noqa: E402
from nbdclient import OptError  # noqa: E402
from tap import diag, main, number, rng, test  # noqa: E402

SIZE, BLOCK = 1024 * G, 8 * K     # a map of 16 MiB
MAP = SIZE // BLOCK // 8
LIVE = 3 * MAP // 4096            # calls that read a live map: the daemon's tick may come between
MANY = number("CHECKPOINTS", 200, 500)
SMALL = 64 * M                    # of the second disk
PAGE = 64 * K                     # and how much reading one checkpoint may cost


def reads(process):
    """Bytes and calls so far."""
    with open("/proc/%d/io" % process.pid) as f:
        io = dict(line.split(": ") for line in f)
    return int(io["rchar"]), int(io["syscr"])


class Counted:
    """What a command reads: `with Counted(process) as c`, then c.bytes and c.calls."""

    def __init__(self, process):
        self.process = process

    def __enter__(self):
        self.before = reads(self.process)
        return self

    def __exit__(self, *exc):
        after = reads(self.process)
        self.bytes, self.calls = (b - a for a, b in zip(self.before, after))


class Model:
    """Blocks written in each epoch, and which checkpoint begins it."""

    def __init__(self):
        self.names, self.written = [], [set()]

    def create(self, name):
        self.names.append(name)
        self.written.append(set())

    def delete(self, name):
        i = self.names.index(name)
        del self.names[i]
        self.written[i] |= self.written.pop(i + 1)  # its changes fall to its predecessor

    def since(self, name):
        return set().union(*self.written[self.names.index(name) + 1:])


def agrees(qmp, model, disk="vda"):
    listed = qmp.cmd("query-checkpoints", disk=disk)
    assert [c["name"] for c in listed] == model.names
    for c in listed:
        entry, = c["disks"]
        assert entry["usable"], c
        assert entry["dirty-bytes"] == len(model.since(c["name"])) * BLOCK, c


def maps(s, disk="vda"):
    return len([f for f in os.listdir(os.path.join(s.state, disk)) if f.endswith(".map")])


@test
def hundreds_of_checkpoints_cost_what_was_written_and_nothing_else():
    with Stack() as s:
        disk = s.start("vda", SIZE)
        s.serve("vdb", s.image("vdb", SMALL))
        s.wait_disk("vdb", "live")
        r, model = rng("blocks"), Model()
        with disk.connect() as guest, s.qmp() as q:
            runtime = os.path.join(s.runtime, "vda")
            made = {}
            for i in range(MANY):
                for _ in range(3):
                    blk = r.randrange(SIZE // BLOCK)
                    guest.write(blk * BLOCK, b"x")
                    model.written[-1].add(blk)
                both = i % 4 == 3
                with Counted(s.daemon) as made[i]:
                    q.cmd("checkpoint-create", name="c%d" % i,
                          disks=["vda", "vdb"] if both else ["vda"])
                model.create("c%d" % i)
                if i in (10, MANY - 1):
                    made[i].files = sorted(f.split(".")[-1] for f in os.listdir(runtime))
            # One more is no dearer than the eleventh, and the guest's writes know none of them:
            # the files that they mark are those of one epoch.
            diag("create: %d bytes, %d calls; then %d, %d" % (
                made[10].bytes, made[10].calls, made[MANY - 1].bytes, made[MANY - 1].calls))
            assert made[MANY - 1].files == made[10].files, (made[MANY - 1].files, made[10].files)
            # Once a minute a tick reads the live map, for the rate of backup-estimate; the old ones
            # are MANY times as much.
            assert made[MANY - 1].bytes <= made[10].bytes + MAP + M, "creating reads old epochs' maps"
            assert maps(s) == MANY + 1

            # All their maps are MANY times 16 MiB.
            with Counted(s.daemon) as c:
                agrees(q, model)
            diag("query-checkpoints: %d bytes, %d calls" % (c.bytes, c.calls))
            assert c.bytes <= 4 * MAP + MANY * PAGE and c.calls <= LIVE + 100 * MANY
            listed = {c["name"]: len(c["disks"]) for c in q.cmd("query-checkpoints")}
            assert listed == {"c%d" % i: 1 + (i % 4 == 3) for i in range(MANY)}

            for base in ("c0", "c%d" % (MANY // 2), "c%d" % (MANY - 1)):
                with Counted(s.daemon) as c:
                    _, begun = backups.begin(q, [{"disk": "vda", "since": base}], id=base)
                diag("backup-begin since %s: %d bytes, %d calls" % (base, c.bytes, c.calls))
                assert c.bytes <= 6 * MAP + MANY * PAGE and c.calls <= LIVE + 100 * MANY
                want = model.since(base)
                assert begun["vda"]["dirty-bytes"] == len(want) * BLOCK
                assert backups.dirty(s.nbd, "vda", begun["vda"]["context"]) == runs(want)
                backups.end(q, base)

            # Deleted from anywhere, one costs a merge of two neighbours.
            for name in ("c0", "c%d" % (MANY - 1), "c%d" % (MANY // 2), "c1", "c%d" % (MANY - 2),
                         "c%d" % (MANY // 2 - 1)):
                with Counted(s.daemon) as c:
                    q.cmd("checkpoint-delete", name=name, disks=["vda"])
                diag("delete %s: %d bytes, %d calls" % (name, c.bytes, c.calls))
                assert c.bytes <= 4 * MAP + MANY * PAGE and c.calls <= LIVE + 20 * MANY
                model.delete(name)
            agrees(q, model)
            # one for each, of merged epochs where others were deleted, and the live one
            assert maps(s) == len(model.names) + 1, maps(s)

            # Another daemon finds the same.
            s.stop(s.daemon)
            s.start_daemon()
        s.wait_disk("vda", "live")
        with s.qmp() as q:
            with Counted(s.daemon) as c:
                agrees(q, model)
            assert c.bytes <= 4 * MAP + MANY * PAGE
            for name in list(model.names):
                q.cmd("checkpoint-delete", name=name)
            assert maps(s) == 1
            for c in q.cmd("query-checkpoints"):  # on the other disk they were not deleted
                assert [d["disk"] for d in c["disks"]] == ["vdb"], c
                q.cmd("checkpoint-delete", name=c["name"])
            assert q.cmd("query-checkpoints") == [] and maps(s, "vdb") == 1


def runs(blocks):
    """[(offset, length)] of a set of blocks."""
    out = []
    for blk in sorted(blocks):
        if out and sum(out[-1]) == blk * BLOCK:
            out[-1] = (out[-1][0], out[-1][1] + BLOCK)
        else:
            out.append((blk * BLOCK, BLOCK))
    return out


@test
def every_one_of_them_is_a_base_of_a_running_backup():
    """NAME@BASE of each is there while a backup runs, and tells what changed since it."""
    with Stack() as s:
        disk = s.start("vda", SMALL, granularity="64K")
        with disk.connect() as guest, s.qmp() as q:
            for i in range(100):
                q.cmd("checkpoint-create", name="c%d" % i, disks=["vda"])
                guest.write(i * 64 * K, b"x")
            q.cmd("backup-begin", id="b", disks=[{"disk": "vda"}])
            for i in (0, 1, 50, 98, 99):
                assert backups.dirty(s.nbd, "vda@c%d" % i, "qemu:dirty-bitmap:c%d" % i) == \
                    [(i * 64 * K, (100 - i) * 64 * K)], i
            try:
                backups.dirty(s.nbd, "vda@c100", "qemu:dirty-bitmap:c100")
                raise AssertionError("a base that is not there")
            except OptError:
                pass
            q.cmd("backup-end", id="b")


@test
def bitmaps_that_record_share_what_is_read_of_the_epochs():
    """15 bitmaps that begin at different instants, one of them stopped, one with a gap, and epochs
    whose maps have no empty page: query-block reads each of them about once, not 15 times."""
    size, block, n = 16 * G, 4 * K, 60
    one = size // block // 8
    step = size // (one // 4096)    # one write in each page of a map
    with Stack() as s:
        disk = s.start("vda", size, granularity="4K")
        with disk.connect() as guest, s.qmp() as q:
            sets = {}

            def change(verb, name, **more):
                q.cmd("block-dirty-bitmap-" + verb, node="vda", name=name, **more)

            stopped = set()
            for i in range(n):
                if i % 4 == 0:
                    name = "b%d" % i
                    change("add", name, granularity=64 * K if i == 8 else 4 * K)
                    sets[name] = set()
                if i in (20, 24):
                    change("disable", "b%d" % (i - 4))
                    stopped.add("b%d" % (i - 4))
                if i == 30:
                    change("enable", "b20")
                    stopped.remove("b20")
                new = {(off // block + i) for off in range(0, size, step)}
                for blk in new:
                    guest.send(nbdclient.CMD_WRITE, blk * block, 1, data=b"x")
                for _ in new:
                    assert guest.recv().error == 0
                for name in set(sets) - stopped:
                    sets[name] |= new
                if i % 2:
                    q.cmd("checkpoint-create", name="c%d" % i, disks=["vda"])
            with Counted(s.daemon) as c:
                got = q.cmd("query-block")[0]["dirty-bitmaps"]
            sets["b8"] = {k for blk in sets["b8"] for k in range(blk // 16 * 16, blk // 16 * 16 + 16)}
            assert {b["name"]: b["count"] for b in got} == {
                name: len(blks) * block for name, blks in sets.items()}, got
            diag("query-block: %d bytes, %d calls" % (c.bytes, c.calls))
            assert c.bytes <= (n // 2 + 20) * 2 * one, (c.bytes, one)


if __name__ == "__main__":
    main()
