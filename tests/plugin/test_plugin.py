#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The plugin as a data plugin of nbdkit: every callback against an array of bytes.

REQUESTS (default 1500; LONG=1: 50000) random requests a run; the seed is printed.
"""
import os
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))

import backups  # noqa: E402
import nbdclient  # noqa: E402
from harness import K, M, PLUGIN, Stack, run, tree  # noqa: E402
from nbdclient import (CMD_CACHE, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES,  # noqa: E402
                       F_FAST_ZERO, F_FUA, F_NO_HOLE, ENOTSUP, EPERM, ZERO)
from tap import main, number, rng, test  # noqa: E402

REQUESTS = number("REQUESTS", 1500, 50000)
SIZE = 32 * M + 3 * K + 17   # no multiple of anything
ALLOC = "base:allocation"


class Model:
    """A connection and what its part [lo, hi) of the disk should hold."""

    def __init__(self, c, array, lo, hi, random):
        self.c, self.array, self.lo, self.hi, self.random = c, array, lo, hi, random

    def edge(self):
        """An offset at, just before or just after where blocks, copies and pieces meet."""
        step = self.random.choice((512, 4 * K, 64 * K, M))
        at = self.random.randrange(SIZE // step + 1) * step + self.random.randrange(-2, 3)
        return min(max(at, self.lo), self.hi)

    def range(self, most=6 * M):
        r = self.random
        if r.random() < 0.5:
            start, stop = sorted((self.edge(), self.edge()))
            if start < stop <= start + most:
                return start, stop - start
        n = r.choice((1, r.randrange(1, 600), 4096, r.randrange(1, 200 * K), r.randrange(1, most)))
        n = min(n, self.hi - self.lo)
        return r.randrange(self.lo, self.hi - n + 1), n

    def read(self):
        off, n = self.range()
        assert self.c.read(off, n) == self.array[off:off + n], "read %d+%d" % (off, n)

    def write(self):
        off, n = self.range()
        data = self.random.randbytes(n)
        self.c.write(off, data, self.random.choice((0, 0, F_FUA)))
        self.array[off:off + n] = data

    def zero(self):
        off, n = self.range()
        flags = self.random.choice((0, F_NO_HOLE)) | self.random.choice((0, F_FAST_ZERO)) \
            | self.random.choice((0, 0, F_FUA))
        try:
            self.c.zero(off, n, flags)
        except nbdclient.NBDError as e:
            # not fast: nothing may have been done
            assert e.errno == ENOTSUP and flags & F_FAST_ZERO, e
            assert self.c.read(off, n) == self.array[off:off + n]
            return
        self.array[off:off + n] = bytes(n)

    def trim(self):
        off, n = self.range()
        self.c.trim(off, n, self.random.choice((0, 0, F_FUA)))
        self.array[off:off + n] = bytes(n)

    def hints(self):
        off, n = self.range()
        self.c.call(CMD_CACHE, off, n)
        if self.random.random() < 0.2:
            self.c.flush()

    def extents(self):
        off, n = self.range(16 * M)
        for length, flags in self.c.status(off, n)[ALLOC]:
            stop = min(off + length, SIZE)
            if flags & ZERO and self.lo <= off and stop <= self.hi:
                assert not any(self.array[off:stop]), "zero extent at %d holds data" % off
            off = stop

    def step(self):
        self.random.choices((self.read, self.write, self.zero, self.trim, self.hints, self.extents),
                            (5, 6, 2, 2, 1, 1))[0]()


def same(s, array):
    at = backups.first_difference(s.content(s.path("vda.img")), bytes(array))
    assert at is None, "the image differs from the model at %d" % at


@test
def random_requests_act_as_on_an_array():
    """One connection, every kind of request at any byte offset; then the image file itself."""
    random = rng("model")
    with Stack() as s:
        array = bytearray(random.randbytes(M)) * 33
        array = array[:SIZE]
        disk = s.serve("vda", s.image("vda.img", SIZE, array))
        with disk.connect(contexts=[ALLOC]) as c:
            assert c.size == SIZE
            m = Model(c, array, 0, SIZE, random)
            for _ in range(REQUESTS):
                m.step()
        assert s.stop(disk.process) == 0
        same(s, array)


@test
def parallel_requests_act_as_on_an_array():
    """Four connections whose parts meet inside blocks, pieces and pages, with a backup open, so
    that every write preserves; the backup stays what the disk was."""
    random = rng("parallel")
    with Stack() as s:
        array = bytearray(random.randbytes(M)) * 33
        array = array[:SIZE]
        before = bytes(array)
        disk = s.serve("vda", s.image("vda.img", SIZE, array), granularity="64K")
        s.start_daemon()
        s.wait_disk("vda", "live")
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"])
            edges = [0] + sorted(random.randrange(SIZE) for _ in range(3)) + [SIZE]

            def one(i):
                with disk.connect(contexts=[ALLOC]) as c:
                    m = Model(c, array, edges[i], edges[i + 1], rng("parallel-%d" % i))
                    for _ in range(REQUESTS // 4):
                        if m.hi > m.lo:
                            m.step()
            backups.in_threads([lambda i=i: one(i) for i in range(4)])
            same(s, array)
            assert backups.pull(s.nbd, "vda") == before
            backups.end(q, ident)


@test
def many_requests_in_flight_on_one_connection():
    """64 writes to neighbouring sectors of the same blocks under way at once."""
    random = rng("flight")
    with Stack() as s:
        disk = s.serve("vda", s.image("vda.img", SIZE), granularity="64K")
        array = bytearray(SIZE)
        with disk.connect() as c:
            sectors = list(range(2048))
            random.shuffle(sectors)
            for n in sectors:
                data = random.randbytes(512)
                array[n * 512:n * 512 + 512] = data
                c.send(CMD_WRITE, n * 512, 512, data=data)
                if len(c.pending) >= 64:
                    assert c.recv().error == 0
            while c.pending:
                assert c.recv().error == 0
            assert c.read(0, 2 * M) == array[:2 * M]
        s.stop(disk.process)
        same(s, array)


@test
def it_offers_what_the_file_plugin_does():
    """multi-conn, flush, FUA, trim, zero, fast zero, cache, extents, parallel requests."""
    with Stack() as s:
        disk = s.serve("vda", s.image("vda.img", SIZE))
        for what in ("multi-conn", "flush", "fua", "trim", "zero", "fast-zero", "cache", "df",
                     "structured-reply"):
            run(["nbdinfo", "--can", what, disk.uri])
        assert run(["nbdinfo", "--is", "read-only", disk.uri], check=False).returncode == 2
        with disk.connect(contexts=[ALLOC]) as c:
            c.write(16 * M, b"x" * 65536)
            got = c.map(ALLOC)
            assert any(f & ZERO for _, _, f in got), "holes are not told"
            assert any(not f and o <= 16 * M < o + n for o, n, f in got), got
        dumped = run(["nbdkit", "--dump-plugin", PLUGIN], env=s.nbdkit_env()).stdout
        lines = dict(line.split("=", 1) for line in dumped.splitlines() if "=" in line)
        assert lines["name"] == "varve" and lines["max_thread_model"] == "parallel", dumped
        assert lines["version"], dumped
        for callback in ("pread", "pwrite", "flush", "trim", "zero", "can_fua", "can_fast_zero",
                         "can_cache", "can_extents", "extents", "can_multi_conn"):
            assert lines.get("has_" + callback) == "1", callback


@test
def help_tells_every_parameter():
    with Stack() as s:
        text = run(["nbdkit", PLUGIN, "--help"], env=s.nbdkit_env()).stdout
        for key in ("file=", "name=", "state-dir=", "runtime-dir=", "granularity=", "durability=",
                    "scratch-dir=", "scratch-max=", "on-scratch-full=", "freeze-timeout="):
            assert key in text, "%s is not in --help" % key
        assert "/var/lib/varve" in text and "/run/varve" in text


@test
def read_only_tracks_nothing_and_keeps_all():
    """nbdkit -r: reads, refuses writes with EPERM, and changes neither image nor state."""
    with Stack() as s:
        image = s.image("vda.img", SIZE, b"\x11" * SIZE)
        disk = s.serve("vda", image)
        with disk.connect() as c:
            c.write(0, b"tracked")
        s.start_daemon()
        s.wait_disk("vda", "live")
        s.command("checkpoint-create", name="c", disks=["vda"])
        with disk.connect() as c:
            c.write(M, b"since c")
        assert s.stop(s.daemon) == 0
        assert s.stop(disk.process) == 0
        before, content = tree(s.state), s.content(image)
        disk = s.serve("vda", image, "-r")
        with disk.connect() as c:
            assert c.flags & nbdclient.TF_READ_ONLY
            assert c.read(0, 7) == b"tracked"
            for cmd, data in ((CMD_WRITE, b"x" * 512), (CMD_TRIM, None), (CMD_WRITE_ZEROES, None)):
                try:
                    c.call(cmd, 0, 512, 0, data)
                    raise AssertionError("a read-only disk took command %d" % cmd)
                except nbdclient.NBDError as e:
                    assert e.errno == EPERM, e
        assert s.stop(disk.process) == 0
        assert s.content(image) == content
        servers = ("vda/lock", "vda/image-witness")  # who serves it, and when
        assert {k: v for k, v in tree(s.state).items() if k not in servers} == \
            {k: v for k, v in before.items() if k not in servers}
        disk = s.serve("vda", image)
        s.start_daemon()
        s.wait_disk("vda", "live")
        with s.qmp() as q:
            ident, answer = backups.begin(q, [{"disk": "vda", "since": "c"}])
            got = backups.dirty(s.nbd, "vda", answer["vda"]["context"])
            assert len(got) == 1 and got[0][0] == M, got
            backups.end(q, ident)


@test
def it_tracks_without_a_daemon():
    """No daemon runs from start to stop of nbdkit, twice: a later one finds all bits."""
    with Stack() as s:
        image = s.image("vda.img", SIZE, b"\x11" * SIZE)
        disk = s.serve("vda", image, granularity="64K")
        s.start_daemon()
        s.wait_disk("vda", "live")
        s.command("checkpoint-create", name="c", disks=["vda"])
        assert s.stop(s.daemon) == 0
        for i in range(2):
            assert s.stop(disk.process) == 0
            disk = s.serve("vda", image)
            with disk.connect() as c:
                c.write((3 + 5 * i) * M, b"nobody watches")
                c.trim((4 + 5 * i) * M, 100)
        s.start_daemon()
        s.wait_disk("vda", "live")
        with s.qmp() as q:
            ident, answer = backups.begin(q, [{"disk": "vda", "since": "c"}])
            got = backups.dirty(s.nbd, "vda", answer["vda"]["context"])
            assert got == [(i * M, 64 * K) for i in (3, 4, 8, 9)], got
            backups.end(q, ident)


def sampled(s, name):
    """What the control page says of the guest's writes: begun, ended, ns (lib/control.h)."""
    with open(os.path.join(s.runtime, name, "control"), "rb") as f:
        return struct.unpack("=3Q", f.read(160)[136:])


@test
def one_write_in_eight_is_measured():
    """For readers in other processes; kept over a kill -9, but for what was under way; a large
    write counts once for each MiB."""
    with Stack() as s:
        disk = s.serve("vda", s.image("vda.img", 32 * M))
        with disk.connect() as c:
            for i in range(1600):
                c.write(i * 4 * K, b"x" * 4 * K)
        begun, ended, ns = sampled(s, "vda")
        # each of nbdkit's threads measures its first
        assert begun == ended and 200 <= begun <= 200 + 16, (begun, ended)
        assert 100 * begun < ns < 60 * 10**9, ns
        with disk.connect() as c:
            for i in range(160):
                c.write(0, b"y" * (3 * M + 1))
        after, ended, _ = sampled(s, "vda")
        assert after == ended and 80 <= after - begun <= 80 + 4 * 16, (begun, after)
        with open(os.path.join(s.runtime, "vda", "control"), "r+b") as f:
            f.seek(136)  # as if it died with writes under way
            f.write(struct.pack("=Q", after + 5))
        s.kill(disk.process)
        s.serve("vda", disk.image)
        assert sampled(s, "vda")[:2] == (after, after), sampled(s, "vda")


@test
def requests_past_the_end_are_refused():
    """A request past the end is refused; the connection lives and nothing is written."""
    with Stack() as s:
        disk = s.serve("vda", s.image("vda.img", SIZE, b"\x11" * SIZE))
        with disk.connect() as c:
            for cmd, data in ((CMD_WRITE, b"y" * 1024), (CMD_WRITE_ZEROES, None), (CMD_TRIM, None),
                              (CMD_READ, None)):
                try:
                    c.call(cmd, SIZE - 512, 1024, 0, data)
                    raise AssertionError("command %d past the end" % cmd)
                except nbdclient.NBDError:
                    pass
            assert c.read(SIZE - 512, 512) == b"\x11" * 512
        assert os.path.getsize(s.path("vda.img")) == SIZE


if __name__ == "__main__":
    main()
