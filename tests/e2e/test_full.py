#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Full and failing file systems below everything: the guest goes on as long as its own image allows, no
backup has a wrong byte, what gave way is told, and it heals."""
import errno
import os
import threading

import backups
import smallfs
from harness import K, M, Stack, wait_for
from nbdclient import NBDError
from qmpclient import QMPError
from releases import (BLOCK, GRAIN, SIZE, assert_error, cmd_refused, content, disk_content, one)
from tap import main, test


def events(q, name):
    q.cmd("query-version")  # takes in what was sent
    return [e["data"] for e in q.events if e["event"] == name]


def no_wrong_byte(c, old):
    """Reads all of it block by block; the bytes that could not be had."""
    bad = 0
    for off in range(0, len(old), BLOCK):
        try:
            assert c.read(off, BLOCK) == old[off:off + BLOCK], off
        except NBDError as e:
            assert e.errno == errno.EIO, e
            bad += BLOCK
    return bad


# --- the scratch --------------------------------------------------------------------------------------

@test
def the_file_system_that_preimages_fill_is_told_at_80_percent():
    old = content(1)
    with Stack() as s, smallfs.tmpfs(s.path("scratch"), 19 * M) as scratch:
        disk = s.serve("vda", s.image("vda.img", SIZE, old), scratch_dir=scratch,
                       scratch_reserve="0", **GRAIN)
        s.start_daemon("--scratch-dir", scratch)
        s.wait_disk("vda", "live")
        with s.qmp() as q, disk.connect() as guest:
            ident, _ = backups.begin(q, ["vda"])
            guest.write(0, b"a" * 14 * M)
            two_ticks(s, q)
            assert not events(q, "SCRATCH_THRESHOLD")
            guest.write(14 * M, b"a" * 2 * M)
            e = wait_for("the event", lambda: events(q, "SCRATCH_THRESHOLD"))
            assert e == [{"disk": "vda", "limit": "file-system", "used": e[0]["used"],
                          "max": 19 * M}], e
            assert 16 * M <= e[0]["used"] <= 17 * M, e
            two_ticks(s, q)
            assert len(events(q, "SCRATCH_THRESHOLD")) == 1
            with s.connect("vda") as c:
                assert c.read(0, SIZE) == old
            backups.end(q, ident)


def two_ticks(s, q):
    for i in range(2):
        ident, _ = backups.begin(q, [{"disk": "vda", "export": "tick%d" % i}], ttl=1)
        wait_for("a tick", lambda: one(q, ident)["state"] == "failed")


@test
def preimages_leave_the_reserve_and_the_chain_heals():
    """By the files: the full backup before, and the incremental after the one that lost ranges."""
    old = content(1)
    with Stack() as s, smallfs.tmpfs(s.path("small"), 60 * M) as small:
        image = os.path.join(small, "vda.img")
        with open(image, "wb") as f:
            f.write(old)
        disk = s.serve("vda", image, scratch_dir=small, scratch_reserve="36M", **GRAIN)
        s.start_daemon("--scratch-dir", small)
        s.wait_disk("vda", "live")
        with s.qmp() as q, disk.connect() as guest:
            ident, _ = backups.begin(q, ["vda"], checkpoint="c1")
            full = backups.pull(s.nbd, "vda")
            backups.end(q, ident)
            guest.write(M, b"b" * 14 * M)
            now = disk_content(disk)
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "c1"}], checkpoint="c2")
            guest.write(8 * M, b"c" * 8 * M)
            for off in range(0, 8 * M, 2 * BLOCK):
                guest.write(off, b"c" * BLOCK)
            st = os.statvfs(small)
            assert 35 * M <= st.f_bavail * st.f_frsize <= 38 * M, st
            wait_for("degraded", lambda: events(q, "BACKUP_DEGRADED"))
            b = one(q, ident)
            assert b["state"] == "degraded" and 3 * M <= b["lost-bytes"] <= 5 * M, b
            inc = bytearray(full)
            with s.connect("vda", [backups.DIRTY + "backup-vda"]) as c:
                ranges = [(o, n) for o, n, flags in c.map(backups.DIRTY + "backup-vda") if flags]
                assert ranges == [(M, 14 * M)], ranges
                failed = 0
                for at in range(M, 15 * M, M):
                    try:
                        inc[at:at + M] = c.read(at, M)
                        assert inc[at:at + M] == now[at:at + M], at
                    except NBDError as e:
                        assert "could not be kept" in e.text, e
                        failed += M  # with blocks that nobody has written since
                assert failed >= 6 * M
            backups.end(q, ident)
            guest.write(5 * M, b"d" * BLOCK)
            ident, answer = backups.begin(q, [{"disk": "vda", "since": "c2"}])
            ctx = answer["vda"]["context"]
            healed = backups.apply(inc, backups.pull(s.nbd, "vda"),
                                   backups.dirty(s.nbd, "vda", ctx))
            assert backups.first_difference(bytes(healed), disk_content(disk)) is None
            backups.end(q, ident)


@test
def a_write_waits_for_room_that_is_wanted_and_the_backup_has_it_all():
    old = content(1)
    with Stack() as s, smallfs.tmpfs(s.path("scratch"), 12 * M) as scratch:
        disk = s.serve("vda", s.image("vda.img", SIZE, old), scratch_dir=scratch,
                       on_scratch_full="wait", scratch_wait="600s", **GRAIN)
        s.start_daemon("--scratch-dir", scratch)
        s.wait_disk("vda", "live")
        with s.qmp() as q, disk.connect() as guest, disk.connect() as other:
            ident, _ = backups.begin(q, ["vda"], release=True)
            done = threading.Event()

            def write():
                guest.write(0, b"a" * SIZE)
                done.set()

            t = threading.Thread(target=write)
            t.start()
            # The next write has found no room.
            wait_for("no more is kept", lambda: (lambda st: st.f_bavail * st.f_frsize < 3 * M)(
                os.statvfs(scratch)))
            q.cmd("checkpoint-create", name="meanwhile", disks=["vda"])  # freezes, and is not held up
            assert not done.is_set()
            assert other.read(SIZE - BLOCK, BLOCK) == old[-BLOCK:]
            with s.connect("vda") as c:
                for off in range(0, SIZE, 2 * M):
                    assert c.read(off, 2 * M) == old[off:off + 2 * M]
                    c.trim(off, 2 * M)
            t.join()
            assert one(q, ident)["state"] == "running"
            backups.end(q, ident)
            assert disk_content(disk) == b"a" * SIZE


@test
def a_guest_that_needs_the_space_breaks_the_backup_and_gets_it():
    """A sparse image beside its scratch on a file system with room for only one of them."""
    size = 48 * M
    with Stack() as s, smallfs.tmpfs(s.path("small"), 52 * M) as small:
        image = os.path.join(small, "vda.img")
        with open(image, "wb") as f:
            f.write(b"x" * 20 * M)
            f.truncate(size)
        disk = s.serve("vda", image, scratch_dir=small, scratch_reserve="0", **GRAIN)
        s.start_daemon("--scratch-dir", small)
        s.wait_disk("vda", "live")
        with s.qmp() as q, disk.connect() as guest:
            ident, _ = backups.begin(q, ["vda"], checkpoint="c1")
            guest.write(0, b"a" * 16 * M)
            assert s.disk_info("vda")["scratch"]["used"] == 16 * M
            guest.write(20 * M, b"b" * 28 * M)  # 16 fit, and 12 more do where the scratch was
            e = wait_for("the event", lambda: events(q, "BACKUP_BROKEN"))
            assert e[0]["id"] == ident and "the guest needed the space" in e[0]["reason"], e
            with s.connect("vda") as c:
                assert_error(c, 0, BLOCK, errno.EIO, "")
            assert guest.read(0, 20 * M) == b"a" * 16 * M + b"x" * 4 * M
            assert guest.read(20 * M, 28 * M) == b"b" * 28 * M
            cmd_refused(q, "broken", "backup-end", id=ident)
            backups.end(q, ident, success=False)
            # Tracking is right, and the next backup works.
            ident, answer = backups.begin(q, ["vda"])
            assert backups.pull(s.nbd, "vda") == disk_content(disk)
            backups.end(q, ident)


@test
def a_guest_whose_image_is_full_gets_its_own_error_and_tracking_is_right():
    size = 48 * M
    with Stack() as s, smallfs.tmpfs(s.path("small"), 24 * M) as small:
        image = os.path.join(small, "vda.img")
        with open(image, "wb") as f:
            f.write(b"x" * 4 * M)
            f.truncate(size)
        disk = s.serve("vda", image, **GRAIN)
        s.start_daemon()
        s.wait_disk("vda", "live")
        with s.qmp() as q, disk.connect() as guest:
            ident, _ = backups.begin(q, ["vda"], checkpoint="c1")
            full = backups.pull(s.nbd, "vda")
            backups.end(q, ident)
            filler = smallfs.fill(small, M)
            try:
                guest.write(8 * M, b"y" * 8 * M)
                raise AssertionError("it had room")
            except NBDError as e:
                assert e.errno == errno.ENOSPC, e
            guest.write(0, b"z" * 4 * M)  # where it has its space it goes on
            os.unlink(filler)
            guest.write(16 * M, b"w" * M)
            ident, answer = backups.begin(q, [{"disk": "vda", "since": "c1"}])
            got = backups.apply(full, backups.pull(s.nbd, "vda"),
                                backups.dirty(s.nbd, "vda", answer["vda"]["context"]))
            assert backups.first_difference(bytes(got), disk_content(disk)) is None
            backups.end(q, ident)


@test
def what_the_scratch_device_could_not_take_is_never_believed():
    """A thin device that is full: writing to the file system succeeds, writing it back does not."""
    size, old = 64 * M, content(1) * 4
    with Stack() as s, smallfs.thin(s.path("scratch"), 200 * M, 24 * M) as scratch:
        disk = s.serve("vda", s.image("vda.img", size, old), scratch_dir=scratch,
                       scratch_reserve="0", **GRAIN)
        s.start_daemon("--scratch-dir", scratch)
        s.wait_disk("vda", "live")
        with s.qmp() as q, disk.connect() as guest:
            ident, _ = backups.begin(q, ["vda"])
            guest.write(0, b"a" * size)
            os.sync()  # the pages are clean now, and some of them are nowhere
            with open("/proc/sys/vm/drop_caches", "w") as f:
                f.write("1\n")
            with s.connect("vda") as c:
                bad = no_wrong_byte(c, old)
            assert bad > 0
            e = wait_for("the event", lambda: events(q, "BACKUP_BROKEN"))
            assert "did not all come to its device" in e[0]["reason"], e
            s.kill(s.daemon)  # the next one is told nothing by the kernel
            s.start_daemon("--scratch-dir", scratch)
            s.wait_disk("vda", "live")
        with s.qmp() as q:
            cmd_refused(q, "broken", "backup-end", id=ident)
            backups.end(q, ident, success=False)
            assert guest_content(disk, size) == b"a" * size


# --- state and runtime directory ------------------------------------------------------------------------

def no_boundary(q, name):
    for command, args in (("checkpoint-create", {"name": name, "disks": ["vda"]}),
                          ("backup-begin", {"disks": [{"disk": "vda", "export": "x"}]})):
        try:
            q.execute(command, args)
        except QMPError as e:
            assert os.strerror(errno.ENOSPC) in e.desc and "'vda'" in e.desc, e.desc
            continue
        raise AssertionError("%s was not refused" % command)


@test
def with_a_full_state_directory_the_guest_goes_on_backups_end_and_it_heals():
    """Nothing changes but the end of a backup; with room again the chain is complete."""
    with Stack() as s, smallfs.tmpfs(s.state, 8 * M):
        disk = s.start("vda", SIZE, content(1), **GRAIN)
        with s.qmp() as q, disk.connect() as guest:
            ident, _ = backups.begin(q, ["vda"], checkpoint="c1")
            full = backups.pull(s.nbd, "vda")
            backups.end(q, ident)
            guest.write(0, b"a" * 2 * M)
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "c1"}], checkpoint="c2")
            with s.connect("vda") as c:
                inc = c.read(0, 2 * M)
            filler = smallfs.fill(s.state)
            guest.write(M, b"b" * 4 * M)  # cannot be kept; what is read later is lost to the backup
            wait_for("degraded", lambda: events(q, "BACKUP_DEGRADED"))
            no_boundary(q, "c3")
            assert [c["name"] for c in q.cmd("query-checkpoints")] == ["c1", "c2"]
            assert [b["id"] for b in q.cmd("query-backups") if b["state"] == "degraded"] == [ident]
            backups.end(q, ident)
            assert one(q, ident)["state"] == "completed"
            guest.write(6 * M, b"c" * M)
            os.unlink(filler)
            ident, answer = backups.begin(q, [{"disk": "vda", "since": "c2"}], checkpoint="c3")
            got = bytearray(full)
            got[0:2 * M] = inc
            got = backups.apply(got, backups.pull(s.nbd, "vda"),
                                backups.dirty(s.nbd, "vda", answer["vda"]["context"]))
            assert backups.first_difference(bytes(got), disk_content(disk)) is None
            backups.end(q, ident)


@test
def with_a_full_runtime_directory_no_boundary_is_made_and_nothing_else_suffers():
    with Stack() as s, smallfs.tmpfs(s.runtime, 2 * M):
        disk = s.start("vda", SIZE, content(1), **GRAIN)
        with s.qmp() as q, disk.connect() as guest:
            ident, _ = backups.begin(q, ["vda"], checkpoint="c1")
            filler = smallfs.fill(s.runtime)
            old = disk_content(disk)
            no_boundary(q, "c2")
            guest.write(0, b"a" * SIZE)
            assert backups.pull(s.nbd, "vda") == old
            backups.end(q, ident)
            os.unlink(filler)
            ident, answer = backups.begin(q, [{"disk": "vda", "since": "c1"}])
            assert sum(n for _, n in backups.dirty(s.nbd, "vda", answer["vda"]["context"])) == SIZE
            assert backups.pull(s.nbd, "vda") == b"a" * SIZE
            backups.end(q, ident)


def guest_content(disk, size):
    with disk.connect() as guest:
        return guest.read(0, size)


if __name__ == "__main__":
    main()
