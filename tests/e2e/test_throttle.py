#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A backup is not read faster than it was said, and an adaptive one gives way to the guest.

Speeds are judged by the daemon's own numbers (bytes and milliseconds), and from outside only in the
direction in which a slow machine cannot fail: never faster than the speed allows.
"""
import os
import struct
import time

import backups
import nbdclient
from harness import K, M, Stack, wait_for
from held import Held
from nbdclient import CMD_BLOCK_STATUS, CMD_READ, CMD_TRIM, F_DF, NBDError
from tap import diag, main, test

SIZE = 16 * M
PIECE = 256 * K
ALLOC = "base:allocation"


def content(seed):
    return bytes((i * seed + 1) % 255 + 1 for i in range(4096)) * (SIZE // 4096)


def cool(image):
    """Out of the page cache: reads of it go to the daemon's pool (but for a TMPDIR on tmpfs)."""
    fd = os.open(image, os.O_RDWR)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def told(q, ident):
    return next(b for b in q.cmd("query-backups") if b["id"] == ident)


def most(speed, ms):
    """What may have been begun in that time."""
    return speed * (ms + 1) // 1000 + speed // 10 + PIECE


def simple(where, export):
    """A client without structured replies: each answer comes in one piece."""
    c = nbdclient.NBD(where)
    c.client_flags()
    return c.go(export)


def waiting(c, n=2, length=PIECE):
    """Has c wait: the first read is answered, of the others none."""
    for i in range(n):
        c.send(CMD_READ, i * length, length)
    assert c.recv().error == 0
    return c


@test
def a_speed_is_for_all_connections_and_disks_together():
    """Two disks, on each a client with two connections, one that wants whole replies and one that
    reads a delta export.  The page cache has one of the disks: its reads are answered on the loop,
    those of the other in the pool.  What they get is right, and all of it is counted."""
    speed = 12 * M
    with Stack() as s:
        a, b = content(7), content(11)
        s.start("vda", SIZE, a)
        cool(s.start("vdb", SIZE, b).image)
        with s.qmp() as q:
            began = time.monotonic_ns()
            ident, _ = backups.begin(q, ["vda", "vdb"], speed=speed)
            got = {}

            def whole():
                with s.connect("vda") as c:
                    got["df"] = b"".join(c.read(off, 4 * M, F_DF) for off in range(0, SIZE, 4 * M))

            def old():
                with simple(s.nbd, "vdb+delta") as c:
                    got["old"] = b"".join(c.read(off, M) for off in range(0, SIZE, M))

            backups.in_threads([
                lambda: got.update(a=backups.pull(s.nbd, "vda", connections=2)),
                lambda: got.update(b=backups.pull(s.nbd, "vdb", connections=2)), whole, old])
            now = told(q, ident)
            took_ms = (time.monotonic_ns() - began) // 1000000
            assert got["a"] == a and got["df"] == a and got["b"] == b and got["old"] == b
            total = 4 * SIZE
            assert now["speed"] == now["current-speed"] == speed and not now["adaptive"], now
            assert now["throttled-bytes"] == total, now
            # A client has its last byte before the loop hears that the kernel took it.
            wait_for("all is counted", lambda: sum(
                d["bytes-read"] for d in told(q, ident)["disks"]) == total)
            assert total <= most(speed, now["throttle-age-ms"]), now
            assert total <= most(speed, took_ms) + 4 * M, took_ms  # 4 MiB: the largest whole reply
            assert now["throttle-waits"] > 0 and now["throttled-ms"] > 0, now
            assert now["backoffs"] == 0, now
            diag("%d MiB in %d ms, %d waits" % (total // M, now["throttle-age-ms"],
                                                now["throttle-waits"]))
            backups.end(q, ident)
            after = told(q, ident)
            assert after["speed"] == speed and "current-speed" not in after, after


@test
def who_waits_holds_up_nobody_else():
    """At 1 byte per second the second read waits for days.  Behind it on the same connection block
    status is answered, a checkpoint is made, and another backup of the same disk is read."""
    with Stack() as s:
        data = content(13)
        s.start("vda", SIZE, data)
        with s.qmp() as q:
            slow, _ = backups.begin(q, [{"disk": "vda", "export": "slow"}], speed=1)
            bad = [waiting(s.connect("slow", [ALLOC]))]
            for _ in range(30):  # more than the pool has threads
                bad.append(s.connect("slow", [ALLOC]))
                for i in range(20):
                    bad[-1].send(CMD_READ, i * 512 * K, 512 * K, F_DF if i % 2 else 0)
            for c in bad:
                cookie = c.send(CMD_BLOCK_STATUS, 0, SIZE)
                r = c.recv()
                assert r.cookie == cookie and not r.error, r.text
            fast, _ = backups.begin(q, ["vda"], checkpoint="c")
            assert backups.pull(s.nbd, "vda") == data
            backups.end(q, fast)
            now = told(q, slow)
            assert now["throttled-bytes"] == PIECE and now["throttle-waits"] == 31, now
            for c in bad:
                c.close()
            wait_for("they have gone", lambda: told(q, slow)["disks"][0]["clients"] == 0)
            backups.end(q, slow)


@test
def who_goes_gives_its_place_to_those_behind():
    """At 1 KiB per second one waits to read 8 MiB in one piece, which takes hours; the next goes on
    when that one has gone."""
    with Stack() as s:
        s.start("vda", SIZE, content(17))
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"], speed=K)
            first, second, third = (s.connect("vda") for _ in range(3))
            first.read(0, 4 * K)
            second.send(CMD_READ, 0, 8 * M, F_DF)
            wait_for("it waits", lambda: told(q, ident)["throttle-waits"] == 1)
            third.send(CMD_READ, 4 * K, 4 * K)
            wait_for("so does the next", lambda: told(q, ident)["throttle-waits"] == 2)
            second.close()
            assert third.recv().error == 0
            first.close()
            third.close()
            backups.end(q, ident)


@test
def the_end_of_a_backup_ends_who_waits():
    """backup-end, a daemon that is told to end, one that is killed; a daemon that starts throttles
    on."""
    with Stack() as s:
        s.start("vda", SIZE, content(19))
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"], speed=1)
            c = waiting(s.connect("vda"))
            backups.end(q, ident)
            try:
                assert c.recv().error == nbdclient.ESHUTDOWN
            except (EOFError, OSError):
                pass
            c.close()
            ident, _ = backups.begin(q, ["vda"], speed=1, adaptive=True)
            c = waiting(s.connect("vda"))
        assert s.stop(s.daemon) == 0
        with open(s.daemon.log) as f:
            assert "not all ended" not in f.read()
        c.close()
        for _ in range(2):
            s.start_daemon()
            s.wait_disk("vda", "live")
            with s.qmp() as q:
                now = told(q, ident)
                assert now["speed"] == 1 and now["adaptive"] is True, now
                assert now["throttled-bytes"] == 0 and now["state"] == "running", now
                with s.connect("vda") as c:
                    waiting(c)
                    now = told(q, ident)
                    assert now["throttled-bytes"] == PIECE and now["throttle-waits"] == 1, now
            s.kill(s.daemon)
        s.start_daemon()


class Reader:
    """Reads on, until told to stop."""

    def __init__(self, stack, export):
        self.stack, self.export, self.stopped = stack, export, False

    def run(self):
        with self.stack.connect(self.export) as c:
            off = 0
            while not self.stopped:
                c.read(off, PIECE)
                off = (off + PIECE) % SIZE


def sampled(s):
    """Writes of the guest that were begun and ended, of those that are measured (lib/control.h)."""
    with open(os.path.join(s.runtime, "vda", "control"), "rb") as f:
        return struct.unpack("=2Q", f.read(152)[136:])


def write_that_hangs(s, c):
    """Holds one of the guest's writes that are measured, which one in eight is."""
    point = "write.image.before"
    while True:
        s.hold(point)
        c.send(nbdclient.CMD_WRITE, 0, 4 * K, 0, b"w" * 4 * K)
        s.wait_held(point)
        begun, ended = sampled(s)
        if begun > ended:
            return point
        s.let_go(point)
        assert c.recv().error == 0
        os.unlink(os.path.join(s.points, point + ".hit"))


@test
def a_read_that_fails_leaves_the_line():
    """A read's first piece fails in the pool while its second one waits for days.  Nothing of it
    waits any more then; and what comes behind it is not taken for it."""
    with Stack() as s:
        s.start("vda", SIZE, content(41))
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"], speed=1, release=True)
            with s.connect("vda", [ALLOC]) as c:
                c.call(CMD_TRIM, 0, PIECE)
                for n in (20, 1, 100):  # memory of the first ones may become that of the others
                    for _ in range(n):
                        c.send(*((CMD_READ, 0, 2 * PIECE) if n == 1 else (CMD_BLOCK_STATUS, 0, M)))
                    for _ in range(n):
                        assert bool(c.recv().error) == (n == 1)
                    if n == 1:
                        now = told(q, ident)
                        assert now["throttle-waits"] == 1 and now["throttled-bytes"] == PIECE, now
            backups.end(q, ident)


def adapts(speed):
    with Held(SIZE, content(23)) as s, s.qmp() as q, s.disk.connect() as c:
        for i in range(200):  # what a write takes when nobody reads
            c.write(i * 4 * K, b"v" * 4 * K)
        ident, _ = backups.begin(q, ["vda"], adaptive=True, **({"speed": speed} if speed else {}))
        reader = Reader(s, "vda")

        def story():
            try:
                wait_for("reading begins", lambda: told(q, ident)["throttled-bytes"] > 4 * M)
                # The first write to a block has to keep it, which may well be slower than before.
                before = told(q, ident)
                point = write_that_hangs(s, c)
                low = wait_for("it slows down", lambda: (
                    lambda b: b if b["backoffs"] > before["backoffs"] and
                    0 < b["current-speed"] <= 2 * M else None)(told(q, ident)))
                diag("at %d KiB/s after %d backoffs" % (low["current-speed"] // K,
                                                        low["backoffs"]))
                assert low["guest-write-base-ns"] > 0, low
                assert low["guest-write-ns"] > 2 * low["guest-write-base-ns"], low
                s.let_go(point)
                assert c.recv().error == 0
                wait_for("it is as fast as before",
                         lambda: told(q, ident)["current-speed"] == speed)
            finally:
                reader.stopped = True

        backups.in_threads([reader.run, story])
        now = told(q, ident)
        assert now["speed"] == speed and now["adaptive"] is True, now
        if speed:
            assert now["throttled-bytes"] <= most(speed, now["throttle-age-ms"]), now
        backups.end(q, ident)


@test
def an_adaptive_backup_gives_way_to_the_guest_and_comes_back():
    """
        reader   reads at the speed
        guest    a write hangs in the image's pwrite
        daemon   backs off, to the floor
        guest    the write ends; it makes no more
        daemon   rises to the speed again
    """
    adapts(32 * M)


@test
def without_a_speed_it_becomes_free_again():
    """The same, with nothing but the guest to hold it back."""
    adapts(0)


if __name__ == "__main__":
    main()
