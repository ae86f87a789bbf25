#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""block-dirty-bitmap-diff: a bitmap that is what an incremental onto an older copy needs.

DIFF_ROUNDS (default 6; LONG=1: 30) is how often a disk under load is compared with an older backup
of it, DISK_MB (default 32; LONG=1: 128) how large it is.
"""
import os
import shutil

import backups
import bitmaps
import jobs
from bitmaps import G64, SIZE, Disk, refused
from foreign import foreign_write
from harness import G, K, M, Stack, wait_for
from jobs import concluded, diff, diffed, job
from tap import diag, main, number, rng, test
from writers import Guests

ROUNDS = number("DIFF_ROUNDS", 6, 30)
LOADED = number("DISK_MB", 32, 128) * M
TIB = 1024 * G


def copy_of(s, name="copy.img"):
    """The image as it is now, for a guest that has flushed."""
    path = s.path(name)
    shutil.copyfile(s.path("vda.img"), path)
    return path


def healed(s, q, reference, bitmap="b"):
    """The reference after an incremental from the bitmap, and the view that this was taken of."""
    ident, _ = backups.begin(q, [{"disk": "vda", "bitmap": bitmap, "export": "look",
                                  "bitmap-mode": "never"}])
    image = backups.pull(s.nbd, "look")
    dirty = backups.dirty(s.nbd, "look", backups.DIRTY + "backup-vda")
    backups.end(q, ident)
    return backups.apply(reference, image, dirty), image


def check_healed(s, q, path, bitmap="b"):
    got, image = healed(s, q, s.content(path), bitmap)
    at = backups.first_difference(got, image)
    assert at is None, "differs at %d, but is not dirty" % at


@test
def a_copy_of_the_disk_as_it_is_gives_an_empty_bitmap():
    with Disk() as (s, c, q):
        c.write(3 * M, os.urandom(5 * M))
        c.flush()
        j = diffed(q, "b", copy_of(s))
        assert j["type"] == "diff" and j["disk"] == "vda" and j["bitmap"] == "b", j
        assert j["total-progress"] == SIZE and j["ended"] >= j["time"], j
        b = bitmaps.infos(q)["b"]
        assert b["count"] == 0 and b["recording"] and not b["busy"] and b["persistent"], b
        c.write(9 * M, b"x")
        assert bitmaps.count(q, "b") == G64


@test
def blocks_that_differ_are_dirty_and_no_others():
    """Also where only one side has data: a hole against zeroes is no difference."""
    random = rng("differ")
    with Disk() as (s, c, q):
        c.write(0, random.randbytes(8 * M))
        c.write(40 * M, bytes(M), 0)  # zeroes that take space
        c.flush()
        copy = bytearray(s.content(s.path("vda.img")))
        want = {700}
        for _ in range(20):
            at = random.randrange(SIZE)
            copy[at] ^= 0x55
            want.add(at // G64)
        old = s.image("old.img", SIZE)
        with open(old, "r+b") as f:  # sparse where it can be
            for at in range(0, SIZE, G64):
                if any(copy[at:at + G64]):
                    f.seek(at)
                    f.write(copy[at:at + G64])
        c.write(700 * G64, b"only in the disk")
        diffed(q, "b", old)
        assert bitmaps.frozen(s, q, ["b"])["b"] == want


def rounds(s, q, guests, random):
    older = None
    for i in range(ROUNDS):
        if older is None:
            ident, _ = backups.begin(q, ["vda"])
            older = s.path("older.img")
            with open(older, "wb") as f:
                f.write(backups.pull(s.nbd, "vda"))
            backups.end(q, ident)
        before = guests.progress()
        wait_for("guests write", lambda: guests.progress() >= before + random.randrange(20, 200))
        ident = diff(q, "b", older, speed=2 * LOADED)
        for _ in range(3):  # epochs that only the job needs
            q.cmd("checkpoint-create", name="k", disks=["vda"])
            q.cmd("checkpoint-delete", name="k")
        assert "error" not in concluded(q, ident)
        got, image = healed(s, q, s.content(older))
        at = backups.first_difference(got, image)
        assert at is None, "round %d: differs at %d, but is not dirty" % (i, at)
        q.cmd("block-dirty-bitmap-remove", node="vda", name="b")
        if random.random() < 0.5:
            with open(older, "wb") as f:
                f.write(image)
        guests.check()


@test
def with_writers_under_way_an_older_copy_and_the_dirty_blocks_are_the_view():
    """Blocks are torn while they are compared: they are in the epochs since the job's start."""
    random = rng("rounds")
    with Stack() as s:
        disk = s.start("vda", LOADED, granularity="64K")
        with s.qmp() as q, Guests(disk, LOADED, 4, random) as guests:
            rounds(s, q, guests, random)
            diag("%d rounds, guests wrote %d requests" % (ROUNDS, guests.progress()))


@test
def what_is_written_behind_the_comparison_is_in_the_bitmap():
    """One piece is compared, one of its blocks written, and a boundary made and forgotten: the epoch
    of the write is needed by nobody but the job."""
    with Disk() as (s, c, q):
        c.write(0, os.urandom(SIZE))
        c.flush()
        ident = diff(q, "b", copy_of(s), speed=1)
        wait_for("a piece is compared", lambda: job(q, ident)["current-progress"] == M)
        c.write(3 * G64, b"behind it")
        q.cmd("checkpoint-create", name="c", disks=["vda"])
        q.cmd("checkpoint-delete", name="c")
        q.cmd("checkpoint-create", name="c", disks=["vda"])
        q.cmd("checkpoint-delete", name="c")
        q.cmd("block-job-set-speed", device=ident, speed=0)
        assert "error" not in concluded(q, ident)
        assert bitmaps.frozen(s, q, ["b"])["b"] == {3}


@test
def a_peer_that_is_slower_than_the_writers_changes_nothing():
    random = rng("slow")
    with Stack() as s:
        disk = s.start("vda", 16 * M, granularity="64K")
        with s.qmp() as q:
            older = copy_of(s)
            with Guests(disk, 16 * M, 2, random, largest=1 * M) as guests, \
                    jobs.nbdkit(s, "--filter=delay", "file", older, "delay-read=100ms") as peer:
                diffed(q, "b", peer.uri)
                check_healed(s, q, older)
                guests.check()


@test
def every_kind_of_nbd_server_will_do():
    """nbdkit, qemu-nbd with qcow2, one that knows no block status, and our own export of an older
    instant."""
    random = rng("servers")
    with Disk() as (s, c, q):
        for _ in range(20):
            c.write(random.randrange(SIZE - M), random.randbytes(random.randrange(1, M)))
        c.flush()
        older = copy_of(s)
        ident, _ = backups.begin(q, ["vda"])
        written = {random.randrange(SIZE // G64) for _ in range(10)}
        for block in written:
            c.write(block * G64, b"since then")
        with jobs.nbdkit(s, "file", older) as a, jobs.qcow2(s, older) as b, \
                jobs.nbdkit(s, "--filter=noextents", "file", older) as n:
            for name, where in (("a", a.uri), ("b", b.uri), ("n", n.uri), ("own", s.uri("vda"))):
                diffed(q, name, where)
        want = bitmaps.frozen(s, q, ["a", "b", "n", "own"])
        backups.end(q, ident)
        assert all(blocks == written for blocks in want.values()), (written, want)


@test
def a_hole_that_does_not_say_that_it_reads_as_zeroes_is_read():
    """edges.md 16: the peer has holes everywhere, and in them bytes that the disk does not have."""
    with Disk() as (s, c, q):
        c.write(0, b"\x11" * M)
        c.flush()
        with jobs.nbdkit(s, "eval", "get_size=echo %d" % SIZE, "can_extents=exit 0",
                         "pread=head -c $3 /dev/zero | tr '\\0' '\\21'",
                         "extents=echo 0 %d hole" % SIZE) as peer:
            diffed(q, "b", peer.uri)
        assert bitmaps.frozen(s, q, ["b"])["b"] == set(range(M // G64, SIZE // G64))


@test
def another_size_is_refused_or_what_is_missing_is_dirty():
    with Disk() as (s, c, q):
        c.write(0, os.urandom(SIZE))
        c.flush()
        content = s.content(s.path("vda.img"))
        small = s.image("small.img", SIZE - M - 100, content[:SIZE - M - 100])
        large = s.image("large.img", SIZE + M, content)
        for path in (small, large):
            j = concluded(q, diff(q, "b", path))
            assert "resize" in j["error"] and "vda" in j["error"] and path in j["error"], j
        assert bitmaps.infos(q) == {}
        diffed(q, "s", small, resize=True)
        diffed(q, "l", large, resize=True)
        assert bitmaps.frozen(s, q, ["s", "l"]) == {
            "s": set(range((SIZE - M - 100) // G64, SIZE // G64)), "l": set()}


def bad_peer(s, path, block):
    """The copy, of which one block cannot be read."""
    return jobs.nbdkit(
        s, "eval", "get_size=echo %d" % SIZE,
        "pread=if [ $4 -lt %d ] && [ $(($4 + $3)) -gt %d ]; then echo EIO bad >&2; exit 1; fi; "
        "dd if=%s iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none" % (
            (block + 1) * G64, block * G64, path))


@test
def a_read_error_fails_the_job_or_makes_its_block_dirty():
    with Disk() as (s, c, q):
        c.write(0, os.urandom(8 * M))
        c.flush()
        with bad_peer(s, copy_of(s), 37) as peer:
            j = concluded(q, diff(q, "b", peer.uri))
            assert "Input/output error" in j["error"] and peer.sock in j["error"], j
            assert bitmaps.infos(q) == {}
            diffed(q, "b", peer.uri, on_error="dirty")
        assert bitmaps.frozen(s, q, ["b"])["b"] == {37}


@test
def a_bitmap_that_is_there_keeps_what_it_has():
    """One that recorded, one that was disabled: both record behind it."""
    with Disk() as (s, c, q):
        c.flush()
        older = copy_of(s)
        c.write(5 * G64, b"before them")
        for name in ("on", "off"):
            bitmaps.add(q, name)
        c.write(7 * G64, b"recorded")
        bitmaps.change(q, "disable", "off")
        for name in ("on", "off"):
            diffed(q, name, older)
        c.write(9 * G64, b"later")
        assert bitmaps.frozen(s, q, ["on", "off"]) == {"on": {5, 7, 9}, "off": {5, 7, 9}}
        diffed(q, "on", copy_of(s))  # nothing leaves it, and what it had as blocks stays
        assert bitmaps.frozen(s, q, ["on"])["on"] == {5, 7, 9}
        check_healed(s, q, older, "on")


@test
def a_chain_that_others_writes_have_broken_is_repaired():
    """Everything is inconsistent; the bitmap of before and a new one hold what the last good copy
    needs.  A checkpoint stays unusable, and without it the disk is well."""
    with Stack() as s:
        disk = s.start("vda", 16 * M, b"\x22" * (16 * M), granularity="64K")
        with s.qmp() as q, disk.connect() as c:
            bitmaps.add(q, "old")
            q.cmd("checkpoint-create", name="c", disks=["vda"])
            older = copy_of(s)
            c.write(3 * M, b"ours")
        assert s.stop(disk.process) == 0
        foreign_write(disk.image)
        disk = s.serve("vda", disk.image)
        s.wait_disk("vda", "inconsistent")
        with s.qmp() as q, disk.connect() as c:
            assert bitmaps.infos(q)["old"]["inconsistent"]
            for name in ("old", "new"):
                diffed(q, name, older)
                c.write(9 * M, b"later")
                assert not bitmaps.infos(q)[name]["inconsistent"]
                assert bitmaps.frozen(s, q, [name])[name] >= {3 * M // G64, 5 * M // G64, 9 * M // G64}
                check_healed(s, q, older, name)
            refused(q, "vda", "backup-begin", disks=[{"disk": "vda", "since": "c"}])
            q.cmd("checkpoint-delete", name="c")
            s.wait_disk("vda", "live")


@test
def a_disk_that_nobody_serves_is_compared_too():
    with Stack() as s:
        disk = s.start("vda", 16 * M, os.urandom(16 * M), granularity="64K")
        older = copy_of(s)
        with disk.connect() as c:
            c.write(4 * M, b"after it")
        assert s.stop(disk.process) == 0
        s.wait_disk("vda", "offline")
        with s.qmp() as q:
            diffed(q, "b", older)
            assert bitmaps.frozen(s, q, ["b"])["b"] == {4 * M // G64}
            disk = s.serve("vda", disk.image)
            s.wait_disk("vda", "live")
            with disk.connect() as c:
                c.write(6 * M, b"served again")
            assert bitmaps.frozen(s, q, ["b"])["b"] == {4 * M // G64, 6 * M // G64}


@test
def what_was_written_to_a_reference_meanwhile_fails_the_job():
    with Disk() as (s, c, q):
        c.write(0, os.urandom(SIZE))
        c.flush()
        older = copy_of(s)
        ident = diff(q, "b", older, speed=1)
        wait_for("a piece is compared", lambda: job(q, ident)["current-progress"] == M)
        foreign_write(older)
        q.cmd("block-job-set-speed", device=ident, speed=0)
        j = concluded(q, ident)
        assert "written to" in j["error"] and older in j["error"], j
        assert bitmaps.infos(q) == {}


@test
def two_sparse_files_of_8_tib_are_compared_without_being_read():
    """A gibibyte of data in each (LONG=1; else 64M), here and there; what is a hole on both sides is
    never read: the job reads no more than there is."""
    random = rng("sparse")
    data, chunk = number("SPARSE_MB", 64, 1024) * M, 4 * M
    with Stack() as s:
        disk = s.start("vda", 8 * TIB)
        with s.qmp() as q, disk.connect() as c:
            for _ in range(data // chunk):
                c.write(random.randrange(8 * TIB // chunk) * chunk, random.randbytes(chunk))
            c.flush()
            older = s.path("older.img")
            jobs.sparse_copy(disk.image, older)
            at = random.randrange(8 * TIB // M) * M
            with open(older, "r+b") as f:
                f.seek(at)
                f.write(b"\xff" * 512)
            j = diffed(q, "b", older)
            diag("8 TiB with %d MiB of data took %.1f s" % (data // M, j["ended"] - j["time"]))
            unit = bitmaps.infos(q)["b"]["granularity"]
            assert bitmaps.count(q, "b") == unit
            ident, _ = backups.begin(q, [{"disk": "vda", "export": "look"}])
            assert (at // unit * unit, unit) in backups.dirty(s.nbd, "look@b", backups.DIRTY + "b")
            backups.end(q, ident, False)


if __name__ == "__main__":
    main()
