#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""checkpoint-export and checkpoint-import: a checkpoint that was deleted and comes back from its
file is as good as one that never went, or it is refused."""
import contextlib
import errno
import json
import os
import re
import shutil
import struct

import backups
from harness import K, M, Stack, run, tree
from nbdclient import CMD_READ
from qmpclient import QMPError
from tap import main, number, rng, test

SIZE, BLOCK = 64 * M, 64 * K


def write_both(guests, r, n, part):
    """The same writes to all disks, within the part'th quarter."""
    for _ in range(n):
        off = part * SIZE // 4 + r.randrange(SIZE // 4 // 4096 - 16) * 4096
        data = r.randbytes(r.choice((512, 4096, 64 * K)))
        for g in guests:
            g.write(off, data)


def state_files(s, disk="vda"):
    return sorted(f for f in os.listdir(os.path.join(s.state, disk))
                  if re.match(r"(epoch|blocks)-.*\.map$", f))


def checkpoint(q, name, disk="vda"):
    """Its entry for the disk, or None."""
    found = [d for c in q.cmd("query-checkpoints", disk=disk) if c["name"] == name
             for d in c["disks"]]
    assert len(found) < 2, found
    return found[0] if found else None


def exports(q, disk="vda"):
    return [(c["name"], d["epoch"], d["known-until"], d["deleted"])
            for c in q.cmd("query-checkpoints", disk=disk, exported=True) for d in c["disks"]]


def refused(q, pattern, command, **args):
    try:
        answer = q.cmd(command, **args)
    except QMPError as e:
        assert re.search(pattern, e.desc), (command, args, e.desc)
        return
    raise AssertionError("%s %r was accepted: %r" % (command, args, answer))


def refused_unchanged(s, q, pattern, command, **args):
    before = tree(s.state), q.cmd("query-checkpoints"), q.cmd("query-checkpoints", exported=True)
    refused(q, pattern, command, **args)
    assert before == (tree(s.state), q.cmd("query-checkpoints"),
                      q.cmd("query-checkpoints", exported=True)), (command, args)


def dirty_since(s, q, name, disks=("vda",)):
    """{disk: (dirty ranges, the image, what the backup said)} of a backup since the checkpoint."""
    ident, answer = backups.begin(q, [{"disk": d, "since": name} for d in disks])
    out = {d: (backups.dirty(s.nbd, d, answer[d]["context"]), backups.pull(s.nbd, d),
               answer[d]["dirty-bytes"]) for d in disks}
    backups.end(q, ident, success=False)
    return out


def restart_daemon(s, *disks, kill=False):
    if kill:
        s.kill(s.daemon)
    else:
        s.stop(s.daemon)
    s.start_daemon()
    for d in disks:
        s.wait_disk(d, "live")


@test
def an_imported_checkpoint_is_as_good_as_one_that_never_went():
    """vda's is exported, deleted and imported, vdb's is not; both get the same writes before the
    export, between it and the import, and after that, while daemons and plugins come and go."""
    for round_ in range(number("ROUNDS", 2, 20)):
        r = rng("writes-%d" % round_)
        with Stack() as s:
            for name in ("vda", "vdb"):
                s.start(name, SIZE, granularity="64K")
            ckp = s.path("c.ckp")

            @contextlib.contextmanager
            def guests():
                with s.disks["vda"].connect() as a, s.disks["vdb"].connect() as b:
                    yield [a, b]

            with s.qmp() as q, guests() as g:
                write_both(g, r, 20, 0)
                q.cmd("checkpoint-create", name="base", disks=["vda", "vdb"])
                write_both(g, r, 5, 0)
                made = q.cmd("checkpoint-create", name="c", disks=["vda", "vdb"])
                previous = [bytes(x.read(0, SIZE // 2) + x.read(SIZE // 2, SIZE // 2)) for x in g]
                write_both(g, r, 5, 1)
                q.cmd("checkpoint-create", name="mid", disks=["vda", "vdb"])
                write_both(g, r, 5, 2)
                told = q.cmd("checkpoint-export", disk="vda", name="c", file=ckp)
                assert told["epoch"] == made["disks"][0]["epoch"] < told["known-until"], told
                q.cmd("checkpoint-delete", name="c", disks=["vda"])
                if round_ % 2:
                    q.cmd("checkpoint-delete", name="mid", disks=["vda"])
                write_both(g, r, 5, 3)
            s.kill(s.disks["vda"].process)
            s.serve("vda", s.disks["vda"].image, granularity="64K")
            restart_daemon(s, "vda", "vdb", kill=round_ % 2 == 0)
            with s.qmp() as q, guests() as g:
                assert exports(q) == [("c", told["epoch"], told["known-until"], True)]
                write_both(g, r, 3, 1)
                q.cmd("checkpoint-create", name="later", disks=["vda", "vdb"])
                write_both(g, r, 3, 2)
                q.cmd("checkpoint-create", name="gone", disks=["vda", "vdb"])
                q.cmd("checkpoint-delete", name="gone")  # and what nobody needs is merged
                back = q.cmd("checkpoint-import", disk="vda", name="c", file=ckp)
                assert back["epoch"] == told["known-until"], (back, told)
                assert q.events[-1]["event"] == "CHECKPOINT_CREATED", q.events
                assert [f for f in state_files(s) if f.startswith("blocks-")], state_files(s)
                write_both(g, r, 3, 3)
            restart_daemon(s, "vda", "vdb", kill=round_ % 2 == 1)
            with s.qmp() as q:
                a, b = (checkpoint(q, "c", d) for d in ("vda", "vdb"))
                assert a["usable"] and a["dirty-bytes"] == b["dirty-bytes"], (a, b)
                # One command had made both, and they are one entry again.
                assert [len(c["disks"]) for c in q.cmd("query-checkpoints")
                        if c["name"] == "c"] == [2]
                estimate = q.cmd("backup-estimate", disks=[{"disk": "vda", "since": "c"}])
                got = dirty_since(s, q, "c", ("vda", "vdb"))
                assert got["vda"] == got["vdb"], "another backup than since the one that stayed"
                assert estimate["disks"][0]["dirty-bytes"] == got["vda"][2]
                for d, before in zip(("vda", "vdb"), previous):
                    ranges, now, _ = got[d]
                    assert backups.apply(before, now, ranges) == now, d
                # Deleted again, its changes fall to the one before it, as the other's do.
                q.cmd("checkpoint-delete", name="c", exported=True)
                assert not [f for f in state_files(s) if f.startswith("blocks-")], state_files(s)
                assert exports(q) == []
                got = dirty_since(s, q, "base", ("vda", "vdb"))
                assert got["vda"] == got["vdb"]
                for name in ("base", "later"):
                    q.cmd("checkpoint-delete", name=name)
                q.cmd("checkpoint-delete", name="mid")
                assert len(state_files(s)) == len(state_files(s, "vdb")) == 1, state_files(s)


@test
def its_own_boundary_will_do_where_that_is_still_there():
    with Stack() as s:
        disk = s.start("vda", SIZE, granularity="64K")
        ckp, second = s.path("c.ckp"), s.path("c2.ckp")
        with disk.connect() as g, s.qmp() as q:
            actions = [{"type": "checkpoint-create", "data": {"name": n, "disks": ["vda"]}}
                       for n in ("c", "twin")]
            q.cmd("transaction", actions=actions)
            g.write(5 * BLOCK, b"x")
            q.cmd("checkpoint-create", name="later", disks=["vda"])
            told = q.cmd("checkpoint-export", disk="vda", name="c", file=ckp)
            assert told["dirty-bytes"] == BLOCK
            g.write(7 * BLOCK, b"x")
            q.cmd("checkpoint-delete", name="c", exported=True)
            back = q.cmd("checkpoint-import", disk="vda", name="c", file=ckp)
            assert back["epoch"] == told["epoch"] and back["time"] == told["time"], (back, told)
            assert not [f for f in state_files(s) if f.startswith("blocks-")]
            assert dirty_since(s, q, "c") == dirty_since(s, q, "twin")
            # Without it the boundary of another checkpoint does, if the file knows up to that.
            q.cmd("checkpoint-delete", name="twin")
            q.cmd("checkpoint-delete", name="c")
            back = q.cmd("checkpoint-import", disk="vda", name="c", file=ckp)
            assert back["epoch"] == told["known-until"], (back, told)
            # What was imported can be exported; the new file knows more, and of the same instant.
            g.write(9 * BLOCK, b"x")
            q.cmd("checkpoint-create", name="last", disks=["vda"])
            again = q.cmd("checkpoint-export", disk="vda", name="c", file=second)
            assert again["epoch"] == told["epoch"] and again["time"] == told["time"]
            assert again["known-until"] > told["known-until"] and again["dirty-bytes"] == 3 * BLOCK
            q.cmd("checkpoint-delete", name="c")
            q.cmd("checkpoint-delete", name="later")
            g.write(11 * BLOCK, b"x")
            refused_unchanged(s, q, "Disk 'vda': checkpoint 'c' cannot be imported: what was written "
                              r"since it was exported cannot be told, the boundary before epoch \d+ "
                              "is not kept any more: begin a full backup",
                              "checkpoint-import", disk="vda", name="c", file=ckp)
            q.cmd("checkpoint-import", disk="vda", name="c", file=second)
            want = [(n * BLOCK, BLOCK) for n in (5, 7, 9, 11)]
            assert dirty_since(s, q, "c")["vda"][0] == want


@test
def exports_deletes_and_imports_leave_one_note_and_no_file():
    with Stack() as s:
        disk = s.start("vda", SIZE, granularity="64K")
        with disk.connect() as g, s.qmp() as q:
            q.cmd("checkpoint-create", name="c", disks=["vda"])
            g.write(0, b"x")
            files, sizes = [], []
            for i in range(6):
                files.append(s.path("c%d.ckp" % i))
                q.cmd("checkpoint-create", name="between", disks=["vda"])
                q.cmd("checkpoint-export", disk="vda", name="c", file=files[-1])
                assert len(exports(q)) == 1 and not exports(q)[0][3], exports(q)
                assert checkpoint(q, "c")["exported"]
                q.cmd("checkpoint-delete", name="c")
                q.cmd("checkpoint-delete", name="between")
                assert len(exports(q)) == 1 and exports(q)[0][3], exports(q)
                g.write((i + 1) * BLOCK, b"x")
                q.cmd("checkpoint-import", disk="vda", name="c", file=files[-1])
                sizes.append(len(state_files(s)))
            # the map since the boundary that is kept, the live one, and the blocks
            assert sizes[1:] == [3] * 5 or sizes[1:] == [2] * 5, sizes
            # All of the files are as good as the last one.
            got = dirty_since(s, q, "c")
            assert got["vda"][0] == [(0, 7 * BLOCK)], got["vda"][0]
            for f in files:
                q.cmd("checkpoint-delete", name="c")
                q.cmd("checkpoint-import", disk="vda", name="c", file=f)
                assert dirty_since(s, q, "c") == got, f
            q.cmd("checkpoint-delete", name="c", exported=True)
            assert q.cmd("query-checkpoints", exported=True) == [] and len(state_files(s)) == 1
            # Given up by a name whose checkpoint is gone already.
            q.cmd("checkpoint-create", name="d", disks=["vda"])
            q.cmd("checkpoint-export", disk="vda", name="d", file=s.path("d.ckp"))
            q.cmd("checkpoint-delete", name="d")
            refused(q, "There is no checkpoint 'd'", "checkpoint-delete", name="d")
            assert len(exports(q)) == 1
            q.cmd("checkpoint-delete", name="d", exported=True)
            assert exports(q) == [] and len(state_files(s)) == 1
            refused(q, "There is no checkpoint 'd'", "checkpoint-delete", name="d", exported=True)


@test
def a_state_directory_from_an_older_copy_is_found_out():
    """Its epochs have the numbers that the file knows, once it has gone on; and other births.  Nobody
    writes meanwhile: of a write the image's own time would tell."""
    with Stack() as s:
        s.start("vda", SIZE, granularity="64K")
        ckp, copy = s.path("c.ckp"), s.path("copy")
        s.stop(s.daemon)
        s.stop(s.disks["vda"].process)
        shutil.copytree(s.state, copy)

        def start():
            s.serve("vda", s.disks["vda"].image, granularity="64K")
            s.start_daemon()
            s.wait_disk("vda", "live")

        start()
        with s.qmp() as q:
            q.cmd("checkpoint-create", name="c", disks=["vda"])
            q.cmd("checkpoint-create", name="d", disks=["vda"])
            told = q.cmd("checkpoint-export", disk="vda", name="c", file=ckp)
        s.stop(s.daemon)
        s.stop(s.disks["vda"].process)
        shutil.rmtree(s.state)
        shutil.copytree(copy, s.state)
        shutil.rmtree(s.runtime)
        os.mkdir(s.runtime)
        start()
        with s.qmp() as q:
            refused_unchanged(s, q, "it was exported in epoch %d, and the state directory, which is "
                              r"from an older copy, knows \d+ only: begin a full backup"
                              % told["known-until"],
                              "checkpoint-import", disk="vda", name="c", file=ckp)
            live = 0
            while live < told["known-until"]:
                made = q.cmd("checkpoint-create", name="n%d" % live, disks=["vda"])
                live = made["disks"][0]["epoch"]
            refused_unchanged(s, q, "epoch %d is another one than that in which it was exported, the "
                              "state directory went on from an older copy: begin a full backup"
                              % told["known-until"],
                              "checkpoint-import", disk="vda", name="c", file=ckp)


@test
def a_host_that_went_down_since_adds_what_was_under_way_and_the_file_still_fits():
    """Y is the epoch that was live when the host went down: its file is finished, not made anew."""
    with Stack() as s:
        disk = s.start("vda", SIZE, granularity="64K")
        ckp = s.path("c.ckp")
        with disk.connect() as g, s.qmp() as q:
            q.cmd("checkpoint-create", name="c", disks=["vda"])
            g.write(0, b"x")
            q.cmd("checkpoint-create", name="d", disks=["vda"])
            q.cmd("checkpoint-export", disk="vda", name="c", file=ckp)
            q.cmd("checkpoint-delete", name="c")
            g.write(BLOCK, b"x")
        s.kill(disk.process)
        s.kill(s.daemon)
        shutil.rmtree(s.runtime)
        os.mkdir(s.runtime)
        s.serve("vda", disk.image, granularity="64K")
        s.start_daemon()
        s.wait_disk("vda", "live")
        with s.qmp() as q:
            q.cmd("checkpoint-create", name="e", disks=["vda"])
            q.cmd("checkpoint-import", disk="vda", name="c", file=ckp)
            # the region of the intent log that both writes are in
            assert dirty_since(s, q, "c")["vda"][0] == [(0, M)]
            assert checkpoint(q, "c")["usable"]


@test
def epochs_that_are_missing_or_damaged_since_are_found_out():
    with Stack() as s:
        disk = s.start("vda", SIZE, granularity="64K")
        ckp = s.path("c.ckp")
        with disk.connect() as g, s.qmp() as q:
            q.cmd("checkpoint-create", name="c", disks=["vda"])
            g.write(0, b"x")
            q.cmd("checkpoint-create", name="d", disks=["vda"])
            told = q.cmd("checkpoint-export", disk="vda", name="c", file=ckp)
            q.cmd("checkpoint-delete", name="c")
            g.write(BLOCK, b"x")
            q.cmd("checkpoint-create", name="e", disks=["vda"])
            known = os.path.join(s.state, "vda", "epoch-%d-%d.map" % ((told["known-until"],) * 2))
            with open(known, "r+b") as f:      # a bit of the map
                f.seek(8192)
                f.write(b"\xff")
            refused_unchanged(s, q, "its checksum does not match its contents: begin a full backup",
                              "checkpoint-import", disk="vda", name="c", file=ckp)
            with open(known, "r+b") as f:
                f.seek(8192)
                f.write(b"\x02")
            q.cmd("checkpoint-import", disk="vda", name="c", file=ckp)
            q.cmd("checkpoint-delete", name="c")
            os.rename(known, s.path("kept.map"))
            refused_unchanged(s, q, "is not kept any more: begin a full backup",
                              "checkpoint-import", disk="vda", name="c", file=ckp)
            os.rename(s.path("kept.map"), known)
            q.cmd("checkpoint-import", disk="vda", name="c", file=ckp)


@test
def what_the_checkpoints_own_backup_could_not_read_is_in_the_file():
    with Stack() as s:
        disk = s.start("vda", SIZE, content=b"\x5a" * SIZE, granularity="64K")
        ckp = s.path("c.ckp")
        with s.qmp() as q, disk.connect() as g:
            q.cmd("checkpoint-create", name="base", disks=["vda"])
            ident, _ = backups.begin(q, ["vda"], checkpoint="c")
            refused_unchanged(s, q, "Disk 'vda': checkpoint 'c' belongs to backup '%s', which still "
                              "runs: end that first" % ident,
                              "checkpoint-export", disk="vda", name="c", file=ckp)
            os.truncate(disk.image, 32 * M)
            with s.connect("vda") as c:
                c.send(CMD_READ, 40 * M, 3 * BLOCK)
                assert c.recv().error == errno.EIO
            os.truncate(disk.image, SIZE)
            backups.end(q, ident)
            g.write(0, b"y")
            q.cmd("checkpoint-export", disk="vda", name="c", file=ckp)
            q.cmd("checkpoint-delete", name="c")
            g.write(2 * BLOCK, b"y")
            q.cmd("checkpoint-import", disk="vda", name="c", file=ckp)
            want = [(0, BLOCK), (2 * BLOCK, BLOCK), (40 * M, 3 * BLOCK)]
            assert dirty_since(s, q, "c")["vda"][0] == want
            assert checkpoint(q, "c")["dirty-bytes"] == 5 * BLOCK


@test
def what_a_backup_of_its_instant_could_not_read_is_in_the_file_or_there_is_none():
    """Also where the checkpoint is not the backup's own; and those behind it, which may stand on it."""
    with Stack() as s:
        disk = s.start("vda", SIZE, content=b"\x5a" * SIZE, granularity="64K")
        with s.qmp() as q:
            q.cmd("checkpoint-create", name="before", disks=["vda"])
            q.cmd("transaction", actions=[
                {"type": "backup-begin", "data": {"id": "b", "disks": [{"disk": "vda"}]}},
                {"type": "checkpoint-create", "data": {"name": "beside", "disks": ["vda"]}}])
            q.cmd("checkpoint-create", name="behind", disks=["vda"])
            os.truncate(disk.image, 32 * M)
            with s.connect("vda") as c:
                c.send(CMD_READ, 40 * M, 3 * BLOCK)
                assert c.recv().error == errno.EIO
            os.truncate(disk.image, SIZE)
            q.cmd("checkpoint-export", disk="vda", name="before", file=s.path("before"))
            for name in ("beside", "behind"):
                refused_unchanged(s, q, "Disk 'vda': what backup 'b', which still runs, cannot read "
                                  "belongs to checkpoint '%s', too: end that first" % name,
                                  "checkpoint-export", disk="vda", name=name, file=s.path(name))
            backups.end(q, "b")
            for name in ("beside", "behind", "before"):
                if name != "before":
                    q.cmd("checkpoint-export", disk="vda", name=name, file=s.path(name))
                q.cmd("checkpoint-delete", name=name)
                q.cmd("checkpoint-import", disk="vda", name=name, file=s.path(name))
                want = [] if name == "before" else [(40 * M, 3 * BLOCK)]
                assert dirty_since(s, q, name)["vda"][0] == want, name


@test
def a_running_backup_since_an_imported_one_keeps_it_over_a_restart():
    with Stack() as s:
        disk = s.start("vda", SIZE, granularity="64K")
        ckp = s.path("c.ckp")
        with disk.connect() as g, s.qmp() as q:
            q.cmd("checkpoint-create", name="c", disks=["vda"])
            g.write(0, b"x")
            q.cmd("checkpoint-create", name="d", disks=["vda"])
            q.cmd("checkpoint-export", disk="vda", name="c", file=ckp)
            q.cmd("checkpoint-delete", name="c")
            g.write(2 * BLOCK, b"x")
            # An abort leaves neither; then both at one instant.
            both = [{"type": "checkpoint-import", "data": {"disk": "vda", "name": "c", "file": ckp}},
                    {"type": "backup-begin", "data": {"id": "b", "disks": [
                        {"disk": "vda", "since": "c"}]}}]
            refused(q, "aborted", "transaction", actions=both + [{"type": "abort", "data": {}}])
            assert checkpoint(q, "c") is None and q.cmd("query-backups") == []
            assert not [f for f in state_files(s) if f.startswith("blocks-")]
            q.cmd("transaction", actions=both)
            g.write(4 * BLOCK, b"x")
            context, want = backups.DIRTY + "backup-vda", [(0, BLOCK), (2 * BLOCK, BLOCK)]
            for ending in (s.stop, s.kill, None):
                assert backups.dirty(s.nbd, "vda", context) == want
                assert backups.dirty(s.nbd, "vda@c", backups.DIRTY + "c") == want
                # at the boundary that the imported one stands at, but another base
                assert backups.dirty(s.nbd, "vda@d", backups.DIRTY + "d") == want[1:]
                with s.qmp() as other:
                    refused(other, "Disk 'vda': backup 'b', which still runs, needs what checkpoint "
                            "'c' was imported with: end that first",
                            "checkpoint-delete", name="c")
                if ending:
                    ending(s.daemon)
                    s.start_daemon()
                    s.wait_disk("vda", "live")
        with s.qmp() as q:
            # By their descriptions clients tell bases apart.
            told = [json.loads(run(["nbdinfo", "--json", "--no-content", s.uri("vda@" + n)]).stdout)
                    ["exports"][0]["description"].split(", changes since ")[1] for n in ("c", "d")]
            assert told[0] != told[1] and "epoch" in told[1], told
            q.cmd("backup-end", id="b")
            q.cmd("checkpoint-delete", name="c")


@test
def exports_are_limited_and_none_is_dropped_for_another():
    with Stack() as s:
        s.start("vda", SIZE, granularity="64K")
        with s.qmp() as q:
            q.cmd("transaction", actions=[
                {"type": "checkpoint-create", "data": {"name": "c%d" % i, "disks": ["vda"]}}
                for i in range(101)])
            for i in range(100):
                q.cmd("checkpoint-export", disk="vda", name="c%d" % i, file=s.path("c%d" % i))
            refused_unchanged(s, q, "Disk 'vda' keeps the boundaries of 100 exported checkpoints, "
                              "more there cannot be: give up some with checkpoint-delete and "
                              '"exported": true',
                              "checkpoint-export", disk="vda", name="c100", file=s.path("c100"))
            assert not os.path.exists(s.path("c100")) and not os.path.exists(s.path("c100.tmp"))
            q.cmd("checkpoint-export", disk="vda", name="c5", file=s.path("c5-again"))
            q.cmd("checkpoint-delete", name="c7", exported=True)
            q.cmd("checkpoint-export", disk="vda", name="c100", file=s.path("c100"))


@test
def each_wrong_argument_is_told_and_changes_nothing():
    with Stack() as s:
        s.start("vda", SIZE, granularity="64K")
        s.start("vdb", SIZE, granularity="64K")
        ckp, other, fifo = s.path("c.ckp"), s.path("other.ckp"), s.path("fifo")
        os.mkfifo(fifo)
        os.mkdir(s.path("dir"))
        os.symlink("nowhere", s.path("dangling"))
        with open(s.path("mine.tmp"), "wb") as f:
            f.write(b"mine")
        with s.qmp() as q:
            q.cmd("checkpoint-create", name="c", disks=["vda"])
            q.cmd("checkpoint-create", name="d", disks=["vda", "vdb"])
            q.cmd("checkpoint-export", disk="vda", name="c", file=ckp)
            q.cmd("checkpoint-export", disk="vda", name="d", file=other)
            good = dict(disk="vda", name="c", file=s.path("new.ckp"))
            both = [
                ("Parameter 'disk' is missing", {"disk": None}),
                ("Parameter 'name' is missing", {"name": None}),
                ("Parameter 'file' is missing", {"file": None}),
                ("Parameter 'x' is unexpected", {"x": 1}),
                ("Invalid parameter type for 'disk', expected: string", {"disk": ["vda"]}),
                ("Invalid parameter type for 'name', expected: string", {"name": 7}),
                ("Invalid parameter type for 'file', expected: string", {"file": True}),
                ("Parameter 'file' must be an absolute path", {"file": "c.ckp"}),
                ("Parameter 'file' must be an absolute path", {"file": ""}),
                ("name.*'../c'", {"name": "../c"}),
                ("There is no disk 'vdx'|vdx", {"disk": "vdx"}),
            ]
            for command in ("checkpoint-export", "checkpoint-import"):
                for pattern, change in both:
                    args = {k: v for k, v in dict(good, **change).items() if v is not None}
                    refused_unchanged(s, q, pattern, command, **args)

            cannot = "^Disk 'vda': checkpoint 'c' cannot be exported: "
            for pattern, change in (
                    ("^Disk 'vda' has no checkpoint 'x': query-checkpoints lists", {"name": "x"}),
                    ("^Disk 'vdb' has no checkpoint 'c': query-checkpoints lists", {"disk": "vdb"}),
                    (cannot + ckp + " exists already: give another name, or remove it",
                     {"file": ckp}),
                    (cannot + ".*fifo exists already", {"file": fifo}),
                    (cannot + ".*dir exists already", {"file": s.path("dir")}),
                    (cannot + ".*dangling exists already", {"file": s.path("dangling")}),
                    (cannot + ".*mine.tmp exists already: an export that died may have left it: "
                     "remove it", {"file": s.path("mine")}),
                    (cannot + "cannot create .*nowhere/x.*No such file", {"file": s.path("nowhere/x")}),
                    (cannot + "cannot create .*Not a directory", {"file": ckp + "/x"}),
                    (cannot + ".*(too long)", {"file": "/" + "x" * 300}),
                    (cannot + ".*(too long)", {"file": "/" + "x/" * 3000})):
                files = tree(s.dir)
                refused_unchanged(s, q, pattern, "checkpoint-export", **dict(good, **change))
                assert tree(s.dir) == files, change

            q.cmd("checkpoint-delete", name="c")
            with open(ckp, "rb") as f:
                whole = f.read()
            bent = {"empty": b"", "short": whole[:300], "long": whole + b"x", "text": b"varve\n" * 99,
                    "head": whole[:60] + b"\xff" + whole[61:],
                    "tail": whole[:-1] + bytes([whole[-1] ^ 1]),
                    "newer": whole[:8] + struct.pack("<I", 2) + whole[12:]}
            for name, data in bent.items():
                with open(s.path(name), "wb") as f:
                    f.write(data)
            with open(s.path("huge"), "wb") as f:
                f.write(whole)
                f.truncate(1 << 40)
            cannot = "^Disk 'vda': checkpoint 'c' cannot be imported: "
            for pattern, change in (
                    (cannot + "cannot open .*new.ckp: No such file", {}),
                    (cannot + "cannot open .*Not a directory", {"file": ckp + "/x"}),
                    (cannot + "cannot open .*too long", {"file": "/" + "x" * 300}),
                    (cannot + ".*fifo is not a regular file", {"file": fifo}),
                    (cannot + ".*dir is not a regular file", {"file": s.path("dir")}),
                    (cannot + "/dev/zero is not a regular file", {"file": "/dev/zero"}),
                    (cannot + ".*empty is no file that checkpoint-export made", {"file": s.path("empty")}),
                    (cannot + ".*text is no file that checkpoint-export made", {"file": s.path("text")}),
                    (cannot + ".*short is damaged: it ends too early: use another copy of it",
                     {"file": s.path("short")}),
                    (cannot + ".*long is damaged: it has 337 bytes, not the 336",
                     {"file": s.path("long")}),
                    (cannot + ".*huge is damaged: it has 1099511627776 bytes", {"file": s.path("huge")}),
                    (cannot + ".*head is damaged: the checksum of its head does not match",
                     {"file": s.path("head")}),
                    (cannot + ".*tail is damaged: its checksum does not match", {"file": s.path("tail")}),
                    (cannot + ".*newer has format 2, this varve knows format 1 only",
                     {"file": s.path("newer")}),
                    (cannot + ".*other.ckp holds checkpoint 'd': give that name", {"file": other}),
                    ("^Disk 'vdb': checkpoint 'c' cannot be imported: .*c.ckp is of another disk, which "
                     "was called 'vda'", {"disk": "vdb", "file": ckp}),
                    ("^Disk 'vda' has a checkpoint 'd' already: delete that first",
                     {"name": "d", "file": other})):
                refused_unchanged(s, q, pattern, "checkpoint-import", **dict(good, **change))
            for command, wrong in (("checkpoint-delete", {"name": "d"}), ("query-checkpoints", {})):
                refused_unchanged(s, q, "Invalid parameter type for 'exported', expected: boolean",
                                  command, exported="yes", **wrong)
            # and after all that it can be imported
            os.unlink(s.path("mine.tmp"))
            q.cmd("checkpoint-import", disk="vda", name="c", file=ckp)


@test
def the_command_line_exports_and_imports():
    with Stack() as s:
        disk = s.start("vda", SIZE, granularity="64K")
        with disk.connect() as g:
            s.varve("checkpoint", "create", "c", "vda")
            g.write(0, b"x")
            s.varve("checkpoint", "create", "d", "vda")
        here = os.getcwd()
        os.chdir(s.dir)
        try:
            told = s.varve("checkpoint", "export", "c", "vda", "c.ckp").stdout
        finally:
            os.chdir(here)
        assert re.match(r"checkpoint c of vda, made at .*, and the 64K that changed since are in %s\n$"
                        % s.path("c.ckp"), told), told
        s.varve("checkpoint", "delete", "c")
        lines = s.varve("checkpoint", "list", "--exported").stdout.splitlines()
        assert len(lines) == 2 and lines[1].endswith("deleted, can be imported"), lines
        told = s.varve("checkpoint", "import", "c", "vda", s.path("c.ckp")).stdout
        assert re.match(r"checkpoint c of vda, made at .*, is there again\n$", told), told
        r = s.varve("checkpoint", "import", "c", "vda", s.path("c.ckp"), check=False)
        assert r.returncode == 1 and r.stderr.count("\n") == 1, r
        assert "has a checkpoint 'c' already" in r.stderr, r.stderr
        told = s.varve("checkpoint", "delete", "--exported", "c").stdout
        assert told == "checkpoint c deleted, and its exports given up\n", told
        assert s.varve("checkpoint", "list", "--exported").stdout == "no exported checkpoints\n"
        r = s.varve("checkpoint", "export", "c", "vda", check=False)
        assert r.returncode == 2, r


if __name__ == "__main__":
    main()
