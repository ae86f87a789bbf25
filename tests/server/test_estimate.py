#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""backup-estimate: what a backup would be, while nothing is begun and nothing changes."""
import os
import re
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from harness import K, M, Stack, tree, wait_for  # noqa: E402
from qmpclient import QMPError  # noqa: E402
from tap import main, test  # noqa: E402

SIZE, BLOCK = 16 * M, 64 * K
GRAIN = {"granularity": "64K"}


def estimate(qmp, *disks):
    got = qmp.cmd("backup-estimate", disks=[{"disk": d} if isinstance(d, str) else d for d in disks])
    assert set(got) == {"disks"}, got
    return got["disks"]


def refused(qmp, pattern, **args):
    try:
        answer = qmp.cmd("backup-estimate", **args)
    except QMPError as e:
        assert re.search(pattern, e.desc), e.desc
        return
    raise AssertionError("%r was accepted: %r" % (args, answer))


@test
def an_estimate_is_what_the_backup_then_is():
    with Stack() as s:
        disk = s.start("vda", SIZE + 4 * K, **GRAIN)
        with disk.connect() as guest, s.qmp() as q:
            e, = estimate(q, "vda")
            assert (e["disk"], e["size"], e["dirty-bytes"], e["extents"]) == \
                ("vda", SIZE + 4 * K, SIZE + 4 * K, 1), e
            q.cmd("checkpoint-create", name="a", disks=["vda"])
            e, = estimate(q, {"disk": "vda", "since": "a"})
            assert (e["dirty-bytes"], e["extents"]) == (0, 0), e
            guest.write(0, b"x")
            guest.write(M - 1, b"xx")           # two blocks, one extent
            q.cmd("checkpoint-create", name="b", disks=["vda"])
            guest.write(2 * BLOCK, b"x")
            guest.write(SIZE, b"x")             # the last block has 4 KiB
            for base, wanted in (("a", (4 * BLOCK + 4 * K, 4)), ("b", (BLOCK + 4 * K, 2))):
                e, = estimate(q, {"disk": "vda", "since": base})
                assert (e["dirty-bytes"], e["extents"]) == wanted, (base, e)
                begun = q.cmd("backup-begin", id=base, disks=[{"disk": "vda", "since": base}])
                assert begun["disks"][0]["dirty-bytes"] == wanted[0]
                q.cmd("backup-end", id=base, success=False)


@test
def an_estimate_changes_nothing():
    with Stack() as s:
        disk = s.start("vda", SIZE, **GRAIN)
        s.start("vdb", SIZE, **GRAIN)
        with disk.connect() as guest, s.qmp() as q:
            q.cmd("checkpoint-create", name="c", disks=["vda", "vdb"])
            guest.write(0, b"x" * M)
            before = tree(s.state), tree(s.runtime), q.cmd("query-disks")
            first = estimate(q, {"disk": "vda", "since": "c"}, "vdb")
            assert [d["disk"] for d in first] == ["vda", "vdb"], first
            # what could refuse a backup-begin for its exports' sake is no matter of an estimate
            estimate(q, {"disk": "vda", "export": "e", "exportbitmap": "m"},
                     {"disk": "vdb", "export": "e"})
            assert (tree(s.state), tree(s.runtime), q.cmd("query-disks")) == before
            assert q.cmd("query-backups") == []
            assert {e["event"] for e in q.events} <= {"CHECKPOINT_CREATED"}, q.events


@test
def what_backup_begin_refuses_of_the_disks_is_refused():
    with Stack() as s:
        s.start("vda", SIZE, **GRAIN)
        with s.qmp() as q:
            refused(q, "'disks' is missing")
            refused(q, "must not be empty", disks=[])
            refused(q, "array of objects", disks=["vda"])
            refused(q, "'id' is unexpected", id="x", disks=[{"disk": "vda"}])
            refused(q, "'nonsense' is unexpected", disks=[{"disk": "vda", "nonsense": 1}])
            refused(q, "no disk 'vdx'", disks=[{"disk": "vdx"}])
            refused(q, "named twice", disks=[{"disk": "vda"}, {"disk": "vda"}])
            refused(q, "no checkpoint 'c'", disks=[{"disk": "vda", "since": "c"}])
            refused(q, "at most 256 disks", disks=[{"disk": "vda"}] * 257)
            q.cmd("backup-begin", id="b", checkpoint="c", disks=[{"disk": "vda"}])
            refused(q, "'b', which still runs", disks=[{"disk": "vda", "since": "c"}])
            q.cmd("backup-end", id="b")
            q.cmd("checkpoint-create", name="d", disks=["vda"])
            for name in os.listdir(os.path.join(s.state, "vda")):
                if name.startswith("epoch-"):
                    epoch = int(name.split("-")[1])
                    if epoch == q.cmd("query-disks")[0]["epoch"] - 1:
                        os.unlink(os.path.join(s.state, "vda", name))
            refused(q, "full backup", disks=[{"disk": "vda", "since": "c"}])
            estimate(q, {"disk": "vda", "since": "d"})


@test
def room_for_preimages_is_what_the_file_system_and_scratch_max_leave():
    with Stack() as s:
        disk = s.start("vda", SIZE, **GRAIN)
        small = s.serve("vdb", s.image("vdb", SIZE, b"z" * SIZE), scratch_max="1M", **GRAIN)
        s.wait_disk("vdb", "live")
        with disk.connect() as guest, small.connect() as other, s.qmp() as q:
            assert 0 < estimate(q, "vda")[0]["scratch-free"] <= shutil.disk_usage(s.state).total
            assert estimate(q, "vdb")[0]["scratch-free"] == M
            q.cmd("backup-begin", id="b", disks=[{"disk": "vdb"}])
            other.write(0, b"x" * 4 * BLOCK)
            assert estimate(q, "vdb")[0]["scratch-free"] == M - 4 * BLOCK
            other.write(0, b"x" * 2 * M)        # does not fit
            assert estimate(q, "vdb")[0]["scratch-free"] == 0
            q.cmd("backup-end", id="b")
            assert estimate(q, "vdb")[0]["scratch-free"] == M
            guest.write(0, b"x")


@test
def what_has_become_dirty_lately_is_told_by_the_second():
    with Stack() as s:
        disk = s.start("vda", SIZE, **GRAIN)
        with disk.connect() as guest, s.qmp() as q:
            guest.write(0, b"x" * M)
            q.cmd("checkpoint-create", name="c", disks=["vda"])
            # Counted by the daemon's tick; all of it is less than the count can be old.
            def seen():
                guest.write(seen.at, b"x")
                seen.at = (seen.at + BLOCK) % SIZE
                return estimate(q, "vda")[0]["dirty-bytes-per-second"]
            seen.at = 0
            rate = wait_for("a rate", seen)
            assert 0 < rate <= SIZE + 1, rate


@test
def a_disk_whose_live_map_is_gone_counts_as_dirty():
    """Doubt adds (I7): until somebody takes the disk nobody knows.  Then the intent log tells."""
    with Stack() as s:
        disk = s.start("vda", SIZE, **GRAIN)
        with s.qmp() as q:
            q.cmd("checkpoint-create", name="c", disks=["vda"])
        with disk.connect() as guest:
            guest.write(0, b"x")
        s.stop(s.daemon)
        s.kill(disk.process)
        shutil.rmtree(os.path.join(s.runtime, "vda"))
        s.start_daemon()
        with s.qmp() as q:
            e, = estimate(q, {"disk": "vda", "since": "c"})
            assert (e["dirty-bytes"], e["extents"]) == (SIZE, 1), e
            begun = q.cmd("backup-begin", id="b", disks=[{"disk": "vda", "since": "c"}])
            assert begun["disks"][0]["dirty-bytes"] == M
            q.cmd("backup-end", id="b", success=False)


@test
def the_command_line_says_the_same():
    with Stack() as s:
        disk = s.start("vda", SIZE, **GRAIN)
        with disk.connect() as guest:
            s.command("checkpoint-create", name="c", disks=["vda"])
            guest.write(0, b"x")
            out = s.varve("backup", "estimate", "--since", "c", "vda").stdout.splitlines()
            assert out[0].split() == ["DISK", "SIZE", "DIRTY", "EXTENTS", "SCRATCH-FREE",
                                      "DIRTIED/S"], out
            assert out[1].split()[:4] == ["vda", "16M", "64K", "1"], out
            r = s.varve("backup", "estimate", "--since", "d", "vda", check=False)
            assert r.returncode == 1 and "no checkpoint 'd'" in r.stderr, r.stderr


if __name__ == "__main__":
    main()
