#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A runtime directory that is full, cannot be written, or cannot be made: the guest gets its disk, says so
wherever somebody may look, and nothing that was written is forgotten."""
import errno
import os
import stat

import backups
import smallfs
from harness import K, M, VARVED, Stack, run, wait_for
from qmpclient import QMPError
from releases import BLOCK, GRAIN, SIZE, cmd_refused, content, disk_content, one
from tap import main, test

WITHOUT = "served without its runtime directory"


def log_of(process):
    with open(process.log, errors="replace") as f:
        return f.read()


def changes(q):
    q.cmd("query-version")  # takes in what was sent
    return [(e["data"]["state"], e["data"]["degraded"]) for e in q.events
            if e["event"] == "DISK_STATE_CHANGED"]


def wait_degraded(s, degraded):
    def there():
        d = s.disk_info("vda")
        return d["state"] == "live" and d["degraded"] == degraded and d
    return wait_for("degraded: %s" % degraded, there)


def full_backup(s, q, checkpoint):
    ident, _ = backups.begin(q, ["vda"], checkpoint=checkpoint)
    got = backups.pull(s.nbd, "vda")
    backups.end(q, ident)
    return got


def incremental(s, q, since, base):
    """What an incremental makes of the base is the disk; the bytes that it had to carry."""
    ident, answer = backups.begin(q, [{"disk": "vda", "since": since}])
    ranges = backups.dirty(s.nbd, "vda", answer["vda"]["context"])
    got = backups.apply(base, backups.pull(s.nbd, "vda"), ranges)
    assert backups.first_difference(bytes(got), disk_content(s.disks["vda"])) is None
    backups.end(q, ident)
    return sum(n for _, n in ranges)


def refused_without(q):
    for name, args in (("checkpoint-create", {"name": "no", "disks": ["vda"]}),
                       ("backup-begin", {"disks": [{"disk": "vda"}]})):
        try:
            q.execute(name, args)
        except QMPError as e:
            assert WITHOUT in e.desc and "until nbdkit is started again" in e.desc, e.desc
            continue
        raise AssertionError("%s was not refused" % name)


def guest_works(disk, byte):
    with disk.connect() as guest:
        guest.write(2 * M, byte * BLOCK)
        guest.flush()
        assert guest.read(2 * M, BLOCK) == byte * BLOCK


@test
def with_a_full_one_the_guest_gets_its_disk_a_kill_costs_regions_and_a_restart_heals():
    with Stack() as s, smallfs.tmpfs(s.runtime, 2 * M):
        disk = s.start("vda", SIZE, content(1), **GRAIN)
        with s.qmp() as q:
            full = full_backup(s, q, "c1")
            guest_works(disk, b"a")
            s.stop(disk.process)
            for name in os.listdir(os.path.join(s.runtime, "vda")):  # as after a reboot
                os.unlink(os.path.join(s.runtime, "vda", name))
            filler = smallfs.fill(s.runtime)
            s.serve("vda", disk.image, **GRAIN)
            d = wait_degraded(s, True)
            assert WITHOUT in d["reason"] and os.strerror(errno.ENOSPC) in d["reason"], d
            assert WITHOUT in log_of(disk.process)
            assert changes(q)[-1] == ("live", True), changes(q)
            assert "live, degraded" in s.varve("status").stdout
            assert WITHOUT in s.varve("status", "vda").stdout
            refused_without(q)
            with disk.connect() as guest:
                guest.write(12 * M, b"b" * BLOCK)
            s.kill(disk.process)
            os.unlink(filler)
            s.serve("vda", disk.image, **GRAIN)
            d = wait_degraded(s, False)
            assert "1 region (1M)" in d["found"]["what"], d["found"]
            assert changes(q)[-1] == ("live", False), changes(q)
            assert incremental(s, q, "c1", full) == M + BLOCK


@test
def a_clean_stop_without_one_is_exact():
    with Stack() as s, smallfs.tmpfs(s.runtime, 2 * M):
        s.start_daemon()
        filler = smallfs.fill(s.runtime)
        disk = s.serve("vda", s.image("vda.img", SIZE, content(1)), **GRAIN)
        wait_degraded(s, True)  # a new disk
        s.stop(disk.process)
        os.unlink(filler)
        s.serve("vda", disk.image, **GRAIN)
        with s.qmp() as q:
            wait_degraded(s, False)
            full = full_backup(s, q, "c1")
            s.stop(disk.process)
            for name in os.listdir(os.path.join(s.runtime, "vda")):
                os.unlink(os.path.join(s.runtime, "vda", name))
            filler = smallfs.fill(s.runtime)
            s.serve("vda", disk.image, **GRAIN)
            wait_degraded(s, True)
            guest_works(disk, b"c")
            s.stop(disk.process)
            os.unlink(filler)
            s.serve("vda", disk.image, **GRAIN)
            wait_degraded(s, False)
            assert incremental(s, q, "c1", full) == BLOCK


@test
def one_that_cannot_be_written_or_made_is_done_without_and_the_daemon_is_told():
    """The link, too, has no place there."""
    with Stack() as s, smallfs.tmpfs(s.path("ro"), M) as ro:
        image = s.image("vda.img", SIZE, content(1))
        s.start_daemon()
        with open(s.path("file"), "w"):
            pass
        assert smallfs.run("mount", "-o", "remount,ro", ro).returncode == 0
        with s.qmp() as q:
            for runtime in (ro, s.path("file"), s.path("no/such/folder")):
                disk = s.serve("vda", image, runtime_dir=runtime, **GRAIN)
                d = wait_degraded(s, True)
                assert WITHOUT in d["reason"] and runtime in d["reason"], d
                assert WITHOUT in log_of(disk.process)
                refused_without(q)
                guest_works(disk, b"d")
                s.stop(disk.process)
                wait_for("offline", lambda: s.disk_info("vda")["state"] == "offline")
            disk = s.serve("vda", image, **GRAIN)
            wait_degraded(s, False)
            full_backup(s, q, "c1")


@test
def what_is_there_is_taken_over_in_a_full_one_and_backups_go_on():
    old = content(1)
    with Stack() as s, smallfs.tmpfs(s.runtime, 2 * M):
        disk = s.start("vda", SIZE, old, **GRAIN)
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"], checkpoint="c1")
            guest_works(disk, b"e")
            s.kill(disk.process)
            filler = smallfs.fill(s.runtime)
            s.serve("vda", disk.image, **GRAIN)
            wait_degraded(s, False)
            guest_works(disk, b"f")
            assert backups.pull(s.nbd, "vda") == old
            backups.end(q, ident)
            os.unlink(filler)
            assert incremental(s, q, "c1", old) == BLOCK


@test
def in_a_full_one_an_image_that_others_wrote_is_found_and_the_guest_gets_its_disk():
    """A page could be taken over, but the next era wants new files: it is given up, and so are views."""
    with Stack() as s, smallfs.tmpfs(s.runtime, 2 * M):
        disk = s.start("vda", SIZE, content(1), **GRAIN)
        with s.qmp() as q:
            full_backup(s, q, "c1")
            ident, _ = backups.begin(q, ["vda"])
            s.stop(disk.process)
            with open(disk.image, "r+b") as f:
                f.write(b"others")
            s.kill(s.daemon)  # it would find out first, and fail as we do
            filler = smallfs.fill(s.runtime)
            s.serve("vda", disk.image, **GRAIN)
        s.start_daemon()
        with s.qmp() as q:
            wait_for("degraded", lambda: s.disk_info("vda")["degraded"])
            assert s.disk_info("vda")["state"] == "inconsistent", s.disk_info("vda")
            guest_works(disk, b"g")
            assert one(q, ident)["state"] == "failed", one(q, ident)
            s.stop(disk.process)
            os.unlink(filler)
            s.serve("vda", disk.image, **GRAIN)
            wait_for("not degraded", lambda: not s.disk_info("vda")["degraded"])
            cmd_refused(q, "wrote to it", "backup-begin", disks=[{"disk": "vda", "since": "c1"}])
            full = full_backup(s, q, "c2")
            assert incremental(s, q, "c2", full) == 0


@test
def a_daemon_that_starts_in_a_full_one_serves_and_ends_backups():
    old = content(1)
    with Stack() as s, smallfs.tmpfs(s.runtime, 2 * M):
        disk = s.start("vda", SIZE, old, **GRAIN)
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"], checkpoint="c1")
        guest_works(disk, b"h")
        s.kill(s.daemon)
        filler = smallfs.fill(s.runtime)
        s.start_daemon()
        with s.qmp() as q:
            assert backups.pull(s.nbd, "vda") == old
            backups.end(q, ident)
            os.unlink(filler)
            assert incremental(s, q, "c1", old) == BLOCK


@test
def a_daemon_that_can_make_no_socket_names_it_and_leaves_nothing():
    with Stack() as s, smallfs.tmpfs(s.path("ro"), M) as ro:
        assert smallfs.run("mount", "-o", "remount,nr_inodes=2", ro).returncode == 0  # the lock's
        r = run([VARVED, "--state-dir", s.state, "--runtime-dir", ro], check=False)
        assert r.returncode == 1, r
        assert ro in r.stderr and os.strerror(errno.ENOSPC) in r.stderr, r.stderr
        assert [f for f in os.listdir(ro)
                if stat.S_ISSOCK(os.stat(os.path.join(ro, f)).st_mode)] == []


if __name__ == "__main__":
    main()
