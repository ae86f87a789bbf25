#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The map: which blocks are dirty after a checkpoint, exactly, for nbdinfo and a raw client."""
import re

import backups
import nbdclient
from harness import K, M, Stack, run
from tap import main, rng, test

SIZE, BLOCK = 64 * M, 64 * K
CONTEXT = "qemu:dirty-bitmap:backup-vda"


def nbdinfo_map(uri, context):
    """[(offset, length, word, description)] as nbdinfo prints it."""
    out = []
    for line in run(["nbdinfo", "--map=" + context, uri]).stdout.splitlines():
        m = re.match(r"\s*(\d+)\s+(\d+)\s+(\d+)\s*(.*?)\s*$", line)
        assert m, "nbdinfo printed %r" % line
        out.append((int(m[1]), int(m[2]), int(m[3]), m[4]))
    return out


def dirtied_by(write, content=b"\x11" * SIZE, size=SIZE, granularity="64K"):
    """The map after `write(connection)`, by nbdinfo and by the raw client, which agree; the pulled
    image and the disk's content are compared too.  Returns [(offset, length)] of what is dirty."""
    with Stack() as s:
        disk = s.start("vda", size, content, granularity=granularity)
        with s.qmp() as q:
            q.cmd("checkpoint-create", name="before", disks=["vda"])
            with disk.connect() as c:
                write(c)
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "before"}])
            seen = nbdinfo_map(s.uri("vda"), CONTEXT)
            assert all((w, d) in ((0, "clean"), (1, "dirty")) for _, _, w, d in seen), seen
            assert [e[0] for e in seen] == [sum(e[1] for e in seen[:i]) for i in range(len(seen))]
            assert sum(e[1] for e in seen) == size
            raw = backups.extents(s.nbd, "vda", CONTEXT)
            assert raw == [e[:3] for e in seen], (raw, seen)
            with disk.connect() as c:
                live = b"".join(c.read(o, 16 * M) for o in range(0, size, 16 * M))
            assert backups.pull(s.nbd, "vda") == live, "the view is not what was written"
            backups.end(q, ident)
        return [(off, n) for off, n, word, _ in seen if word], live


def blocks(*numbers):
    """Ranges of single blocks, neighbours joined."""
    out = []
    for b in numbers:
        if out and out[-1][0] + out[-1][1] == b * BLOCK:
            out[-1] = (out[-1][0], out[-1][1] + BLOCK)
        else:
            out.append((b * BLOCK, BLOCK))
    return out


@test
def four_blocks_written_are_the_four_extents_printed():
    """64 KiB at each of 0, 1M, 32M, 64M-64K: nbdinfo prints exactly the seven extents."""
    with Stack() as s:
        disk = s.start("vda", SIZE, granularity="64K")
        with s.qmp() as q:
            q.cmd("checkpoint-create", name="before", disks=["vda"])
            with disk.connect() as c:
                for off in (0, M, 32 * M, SIZE - BLOCK):
                    c.write(off, b"\xaa" * BLOCK)
            ident, answer = backups.begin(q, [{"disk": "vda", "since": "before"}])
            assert answer["vda"]["context"] == CONTEXT, answer
            assert answer["vda"]["dirty-bytes"] == 4 * BLOCK, answer
            expected, off = [], 0
            for n, word in ((65536, 1), (983040, 0), (65536, 1), (32440320, 0), (65536, 1),
                            (33423360, 0), (65536, 1)):
                expected.append((off, n, word, "dirty" if word else "clean"))
                off += n
            assert off == SIZE
            assert nbdinfo_map(s.uri("vda"), CONTEXT) == expected
            assert backups.extents(s.nbd, "vda", CONTEXT) == [e[:3] for e in expected]
            backups.end(q, ident)


@test
def small_writes_dirty_exactly_the_blocks_they_touch():
    """10 bytes at 1000, 2 bytes at 1M-1, zeroes of 5000 bytes at 48M+100."""
    def write(c):
        c.write(1000, b"0123456789")
        c.write(M - 1, b"ab")
        c.zero(48 * M + 100, 5000)
    dirty, live = dirtied_by(write)
    assert dirty == blocks(0, 15, 16, 768), dirty
    assert live[999:1011] == b"\x110123456789\x11"
    assert live[M - 2:M + 2] == b"\x11ab\x11"
    assert live[48 * M + 99:48 * M + 5101] == b"\x11" + bytes(5000) + b"\x11"


@test
def trims_dirty_and_read_as_zeroes():
    """A trim of whole blocks, of parts of blocks, and across blocks."""
    def write(c):
        c.trim(2 * M, 2 * BLOCK)
        c.trim(8 * M + 4096, 4096)
        c.trim(9 * M - 512, 1024)
    dirty, live = dirtied_by(write)
    assert dirty == blocks(32, 33, 128, 143, 144), dirty
    for off, n in ((2 * M, 2 * BLOCK), (8 * M + 4096, 4096), (9 * M - 512, 1024)):
        assert live[off:off + n] == bytes(n) and live[off + n] == 0x11


@test
def zeroes_dirty_and_read_as_zeroes():
    """Write-zeroes with and without leave to punch a hole, also where zeroes were before."""
    def write(c):
        c.zero(3 * M, BLOCK)
        c.zero(5 * M + 7, 13, flags=2)
        c.zero(40 * M, 8 * M)
        c.zero(60 * M, 3 * M, flags=2)
        c.zero(60 * M, 3 * M)
    dirty, live = dirtied_by(write)
    assert dirty == blocks(48, 80, *range(640, 768), *range(960, 1008)), dirty
    assert live[40 * M:48 * M] == bytes(8 * M) and live[60 * M:63 * M] == bytes(3 * M)
    assert live[5 * M + 6:5 * M + 21] == b"\x11" + bytes(13) + b"\x11"


@test
def rewriting_equal_bytes_dirties():
    """What was written counts, not what changed."""
    dirty, _ = dirtied_by(lambda c: c.write(7 * M, b"\x11" * 512))
    assert dirty == blocks(112), dirty


@test
def reads_flushes_and_cache_hints_dirty_nothing():
    """Only requests that change the disk dirty it."""
    def write(c):
        c.read(0, 4 * M)
        c.flush()
        c.call(5, 0, 4 * M)  # CACHE
    dirty, _ = dirtied_by(write)
    assert dirty == [], dirty


@test
def zero_length_requests_dirty_nothing():
    """Writes, zeroes and trims of no bytes: an error or success, but no dirt, and the connection
    lives."""
    def write(c):
        for cmd in (nbdclient.CMD_WRITE, nbdclient.CMD_WRITE_ZEROES, nbdclient.CMD_TRIM):
            for off in (0, 5 * M, SIZE - 1):
                try:
                    c.call(cmd, off, 0, 0, b"" if cmd == nbdclient.CMD_WRITE else None)
                except nbdclient.NBDError:
                    pass
        assert c.read(0, 1) == b"\x11"
    dirty, _ = dirtied_by(write)
    assert dirty == [], dirty


@test
def an_epoch_begins_clean_and_bitmaps_of_bases_are_apart():
    """since C names what came after C, not what came before, for each of three checkpoints."""
    with Stack() as s:
        disk = s.start("vda", SIZE, granularity="64K")
        with s.qmp() as q, disk.connect() as c:
            for i in range(3):
                c.write(i * M, b"x")
                q.cmd("checkpoint-create", name="c%d" % i, disks=["vda"])
            c.write(3 * M, b"x")
            ident, _ = backups.begin(q, ["vda"])
            assert backups.dirty(s.nbd, "vda", CONTEXT) == [(0, SIZE)], "full: all is dirty"
            for i in range(3):
                got = backups.dirty(s.nbd, "vda@c%d" % i, "qemu:dirty-bitmap:c%d" % i)
                assert got == [(j * M, BLOCK) for j in range(i + 1, 4)], (i, got)
            c.write(9 * M, b"after the boundary")
            got = backups.dirty(s.nbd, "vda@c2", "qemu:dirty-bitmap:c2")
            assert got == [(3 * M, BLOCK)], "a write after the boundary shows: %s" % got
            backups.end(q, ident)


@test
def a_disk_that_ends_inside_a_block_is_mapped_to_its_last_byte():
    """A size that is no multiple of the block: the last block's extent ends with the disk."""
    size = 16 * M + 12 * K + 512
    with Stack() as s:
        disk = s.start("vda", size, b"\x22" * size, granularity="64K")
        with s.qmp() as q, disk.connect() as c:
            q.cmd("checkpoint-create", name="c", disks=["vda"])
            c.write(size - 1, b"z")
            ident, answer = backups.begin(q, [{"disk": "vda", "since": "c"}])
            got = backups.extents(s.nbd, "vda", CONTEXT)
            assert got == [(0, 16 * M, 0), (16 * M, 12 * K + 512, 1)], got
            assert answer["vda"]["dirty-bytes"] == 12 * K + 512, answer
            assert backups.pull(s.nbd, "vda") == b"\x22" * (size - 1) + b"z"
            backups.end(q, ident)


@test
def random_requests_dirty_what_a_model_says():
    """Random writes, zeroes and trims at any byte offset, against an array of blocks, at each
    granularity from 4 KiB to 1 MiB."""
    random = rng("map-model")
    for granularity in ("4K", "64K", "1M"):
        block = {"4K": 4 * K, "64K": 64 * K, "1M": M}[granularity]
        touched = set()

        def write(c):
            for _ in range(60):
                n = random.choice((1, 2, 512, 4096, 70000, 3 * M))
                off = random.randrange(SIZE - n + 1)
                random.choice((lambda: c.write(off, b"w" * n), lambda: c.zero(off, n),
                               lambda: c.trim(off, n)))()
                touched.update(range(off // block, (off + n - 1) // block + 1))
        dirty, _ = dirtied_by(write, granularity=granularity)
        got = {b for off, n in dirty for b in range(off // block, (off + n) // block)}
        assert got == touched, (granularity, sorted(got ^ touched)[:10])


if __name__ == "__main__":
    main()
