#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What real clients rely on: one test for each rule of clients.md, through the whole stack, and the
sequences of requests that its table lists, sent as those clients send them."""
import glob

import backups
import nbdclient
from harness import G, K, M
from incremental import ALLOC, BITMAP, BLOCK, SIZE, Incremental
from nbdclient import F_REQ_ONE, HOLE, ZERO
from tap import diag, main, rng, test


def every_other_block(n, step=2):
    def write(c):
        for b in range(0, n, step):
            c.send(nbdclient.CMD_WRITE, b * 4 * K, 8, data=b"fragment")
            if len(c.pending) > 32:
                c.recv()
        while c.pending:
            assert c.recv().error == 0
    return write


@test
def rule_1_all_contexts_of_a_reply_end_at_the_same_offset():
    """Queries at many offsets and lengths, over a map of which each context has other extents."""
    with Incremental(granularity="4K", write=every_other_block(4096)) as b, \
            b.connect([ALLOC, BITMAP]) as c:
        for off in range(0, SIZE, 3 * M + 4096):
            for length in (4096, 1 * M, SIZE - off):
                length = min(length, SIZE - off)
                for flags in (0, F_REQ_ONE):
                    got = c.status(off, length, flags)
                    assert sorted(got) == [ALLOC, BITMAP]
                    ends = {sum(n for n, _ in e) for e in got.values()}
                    assert len(ends) == 1, (off, length, flags, ends)
                    assert 0 < ends.pop() <= length


@test
def rule_2_a_query_over_the_whole_export_is_answered_whole():
    """Also when the map is as fragmented as can be; allocation is no finer than 64 KiB."""
    with Incremental(granularity="4K", write=every_other_block(SIZE // (4 * K))) as b, \
            b.connect([ALLOC, BITMAP]) as c:
        got = c.status(0, SIZE)
        for name, extents in got.items():
            assert sum(n for n, _ in extents) == SIZE, name
            assert len(extents) <= 1048575
        assert len(got[BITMAP]) > SIZE // (8 * K), "not fragmented: %d" % len(got[BITMAP])
        off = 0
        for n, flags in got[ALLOC]:
            assert off % BLOCK == 0, "allocation finer than 64 KiB at %d" % off
            off += n
    # 8 GiB: not in one request of 32 bits; the largest aligned query is answered whole
    with Incremental(size=8 * G, full=True) as b, b.connect([ALLOC, BITMAP]) as c:
        most = 0xFFFFFFFF // BLOCK * BLOCK
        for name, extents in c.status(0, most).items():
            assert sum(n for n, _ in extents) >= most, name


@test
def rule_3_zeroes_inside_dirty_ranges_are_zero_without_hole():
    """Blocks trimmed or zeroed since the base: ZERO, not HOLE; clean holes may be holes."""
    with Incremental() as b:
        alloc = backups.extents(b.s.nbd, "vda", ALLOC)
        dirty = backups.dirty(b.s.nbd, "vda", BITMAP)
        for number in (10, 20, SIZE // BLOCK - 2, SIZE // BLOCK - 1):
            off = number * BLOCK
            assert any(o <= off < o + n for o, n in dirty), "block %d is not dirty" % number
            flags = [f for o, n, f in alloc if o <= off < o + n]
            assert flags == [ZERO], "block %d: base:allocation %s" % (number, flags)
        for o, n, f in alloc:
            for d, dn in dirty:
                if o < d + dn and d < o + n:
                    assert not f & HOLE, "dirty and hole at %d" % max(o, d)
            if f:
                assert f & ZERO and not any(b.live[o:o + n]), "no zeroes at %d+%d" % (o, n)
        assert any(f & HOLE for _, _, f in alloc), "the disk's holes are not told"


@test
def rule_4_base_allocation_is_always_offered():
    """By every export of a backup, full or incremental, whatever its name."""
    with Incremental() as b:
        for export in ("vda", "vda@base", "vda+delta", "vda@base+delta"):
            with nbdclient.NBD(b.s.nbd) as c:
                c.client_flags()
                c.structured_reply()
                assert ALLOC in c.list_meta(export), export
                assert c.set_meta(export, [ALLOC]) == [ALLOC], export
                c.go(export)
                assert sum(n for n, _ in c.status(0, SIZE)[ALLOC]) == SIZE
    with Incremental(full=True) as b, nbdclient.NBD(b.s.nbd) as c:
        c.client_flags()
        c.structured_reply()
        assert ALLOC in c.list_meta("vda")
        c.option(nbdclient.OPT_ABORT)


@test
def rule_5_an_export_has_one_dirty_bitmap():
    """LIST_META_CONTEXT with QEMU's wildcards names exactly one."""
    with Incremental() as b:
        for export, bitmap in (("vda", BITMAP), ("vda@base", "qemu:dirty-bitmap:base")):
            with nbdclient.NBD(b.s.nbd) as c:
                c.client_flags()
                c.structured_reply()
                for query in ("qemu:", "qemu:dirty-bitmap:"):
                    assert c.list_meta(export, [query]) == [bitmap], (export, query)
                everything = c.list_meta(export)
                assert [n for n in everything if n.startswith("qemu:")] == [bitmap], everything
                c.option(nbdclient.OPT_ABORT)


@test
def rule_6_block_sizes_are_advertised_never_required():
    """1 / 4096 or the block / 32 MiB; GO without information requests reads at odd offsets too."""
    with Incremental() as b:
        with b.connect() as c:
            low, preferred, high = c.blocksize
            assert (low, high) == (1, 32 * M) and preferred in (4096, BLOCK), c.blocksize
        with nbdclient.NBD(b.s.nbd) as c:
            c.client_flags()
            c.structured_reply()
            c.set_meta("vda", [ALLOC, BITMAP])
            c.go("vda", want=())
            assert c.blocksize is None, "block sizes came unasked"
            assert c.read(12345, 7) == b.live[12345:12352]
            assert c.read(0, 32 * M) == b.live[:32 * M]
            for extents in c.status(0, SIZE).values():
                assert all(n > 0 for n, _ in extents)


@test
def rule_7_only_bit_0_is_in_the_dirty_word():
    """Whatever lies in a dirty range, its word is 1, else 0."""
    with Incremental(granularity="4K", write=every_other_block(1024)) as b:
        for export, bitmap in (("vda", BITMAP), ("vda@base", "qemu:dirty-bitmap:base")):
            words = {f for _, _, f in backups.extents(b.s.nbd, export, bitmap)}
            assert words == {0, 1}, words


@test
def rule_8_repeated_queries_count_once():
    """SET_META_CONTEXT with base:allocation twice selects it once."""
    with Incremental() as b, nbdclient.NBD(b.s.nbd) as c:
        c.client_flags()
        c.structured_reply()
        got = c.set_meta("vda", [ALLOC, ALLOC, BITMAP, ALLOC])
        assert sorted(got) == [ALLOC, BITMAP], got
        c.go("vda")
        assert sorted(c.status(0, SIZE)) == [ALLOC, BITMAP]


@test
def rule_9_sixteen_connections_at_once_and_can_multi_conn():
    """All answer, all see the same bytes; a seventeenth (nbdinfo beside) is no problem."""
    with Incremental() as b:
        connections = [b.connect() for _ in range(16)]
        assert all(c.flags & nbdclient.TF_CAN_MULTI_CONN for c in connections)
        assert all(c.flags & nbdclient.TF_READ_ONLY for c in connections)
        for i, c in enumerate(connections):
            c.send(nbdclient.CMD_READ, i * M, M)
        for i, c in enumerate(connections):
            assert bytes(c.recv().buf) == b.live[i * M:(i + 1) * M]
        with b.connect() as c:
            assert c.read(0, 8) == b"new data"
        for c in connections:
            c.disc()


def cpu_ns(pid):
    """CPU time that a process has used in all its threads."""
    total = 0
    for path in glob.glob("/proc/%d/task/*/schedstat" % pid):
        with open(path) as f:
            total += int(f.read().split()[0])
    return total


@test
def rule_10_one_extent_a_reply_is_cheap():
    """A walk with REQ_ONE takes exactly one request an extent, and what a request costs the daemon
    does not grow with the extents there are (CPU time with 32 times as many, not the clock)."""
    random = rng("req-one")
    cost = {}
    for fragments in (1024, 32768):
        with Incremental(256 * M, "4K", write=every_other_block(2 * fragments)) as b, \
                b.connect([BITMAP]) as c:
            got = c.status(0, c.size)[BITMAP]
            if fragments == 1024:
                off = requests = 0
                while off < c.size:
                    (n, _), = c.status(off, c.size - off, F_REQ_ONE)[BITMAP]
                    off += n
                    requests += 1
                assert requests == len(got), (requests, len(got))
            written = 2 * fragments * 4 * K
            before = cpu_ns(b.s.daemon.pid)
            for _ in range(4000):
                off = random.randrange(written)
                c.status(off, c.size - off, F_REQ_ONE)
            cost[fragments] = (cpu_ns(b.s.daemon.pid) - before) // 4000
    diag("CPU of a REQ_ONE request: %s ns" % cost)
    assert cost[32768] < 8 * cost[1024], cost  # growing with them it would be 32; caches cost some


@test
def rule_11_default_names_are_libvirts():
    """Export = disk name, bitmap = backup- + disk name; both can be chosen."""
    with Incremental() as b:
        assert b.answer["vda"]["export"] == "vda" and b.answer["vda"]["context"] == BITMAP
        ident, answer = backups.begin(b.q, [{"disk": "vda", "export": "mine",
                                             "exportbitmap": "my bitmap"}])
        assert answer["vda"]["export"] == "mine"
        assert answer["vda"]["context"] == "qemu:dirty-bitmap:my bitmap"
        with nbdclient.NBD(b.s.nbd) as c:
            c.client_flags()
            assert c.list_exports() == ["mine", "vda"], "LIST shows what is published, no more"
            c.option(nbdclient.OPT_ABORT)
        assert backups.dirty(b.s.nbd, "mine", "qemu:dirty-bitmap:my bitmap") == [(0, SIZE)]
        backups.end(b.q, ident)


@test
def rule_12_set_answers_with_what_was_asked_and_no_more():
    """QEMU asks for one context and gives up if it gets another or an extra one."""
    with Incremental() as b:
        for asked, granted in (([BITMAP], [BITMAP]), ([ALLOC], [ALLOC]),
                               (["qemu:dirty-bitmap:other"], []), (["qemu:dirty-bitmap:"], []),
                               (["base:"], [])):
            with nbdclient.NBD(b.s.nbd) as c:
                c.client_flags()
                c.structured_reply()
                assert c.set_meta("vda", asked) == granted, asked
                c.go("vda")
                if granted:
                    assert list(c.status(0, SIZE)) == granted


def merge(extents):
    out = []
    off = 0
    for n, flags in extents:
        if out and out[-1][2] == flags:
            out[-1][1] += n
        else:
            out.append([off, n, flags])
        off += n
    return out


@test
def virtnbdbackup_1_pulls_an_incremental():
    """SET_META(bitmap), GO + BLOCK_SIZE, one connection, one query over the whole disk, one read
    per merged extent up to the advertised maximum."""
    with Incremental() as b, nbdclient.NBD(b.s.nbd) as c:
        c.client_flags()
        c.structured_reply()
        assert c.set_meta("vda", [BITMAP]) == [BITMAP]
        c.go("vda", [nbdclient.INFO_BLOCK_SIZE])
        got = merge(c.status(0, min(SIZE, 0xFFFFFFFF // 4096 * 4096))[BITMAP])
        assert sum(n for _, n, _ in got) == SIZE
        for off, n, flags in got:
            assert flags in (0, 1)
            for at in range(off, off + n, c.blocksize[2]):
                step = min(c.blocksize[2], off + n - at)
                if flags:
                    assert c.read(at, step) == b.live[at:at + step]


@test
def virtnbdbackup_2_pulls_an_incremental_and_loses_nothing():
    """SET_META(base:allocation, base:allocation, bitmap) and its way of joining the two lists end
    to end: "dirty and hole" is skipped, so that must lose nothing."""
    with Incremental(granularity="4K", write=every_other_block(2048)) as b:
        yesterday = bytearray(b.live)
        dirty = backups.dirty(b.s.nbd, "vda", BITMAP)
        for off, n in dirty:
            yesterday[off:off + n] = b"\xee" * n
        with nbdclient.NBD(b.s.nbd) as c:
            c.client_flags()
            c.structured_reply()
            assert sorted(c.set_meta("vda", [ALLOC, ALLOC, BITMAP])) == [ALLOC, BITMAP]
            c.go("vda")
            got = c.status(0, SIZE)
            alloc = [(o, n, f) for o, n, f in merge(got[ALLOC])]
            for off, n, flags in merge(got[BITMAP]):
                for o, an, f in alloc:
                    lo, hi = max(off, o), min(off + n, o + an)
                    if lo < hi and flags and not f & HOLE:
                        yesterday[lo:hi] = c.read(lo, hi - lo)
        assert yesterday == b.live


@test
def imageio_pulls_an_incremental_with_its_sequence():
    """LIST_META("qemu:dirty-bitmap:"), SET_META with an unknown context among them, GO without
    information requests, no NO_ZEROES, 5 connections, 2 GiB steps, reads of 4 MiB."""
    with Incremental() as b:
        def open_one():
            c = nbdclient.NBD(b.s.nbd)
            c.client_flags(1)  # FIXED_NEWSTYLE only
            c.structured_reply()
            assert c.list_meta("vda", ["qemu:dirty-bitmap:"]) == [BITMAP]
            got = c.set_meta("vda", [ALLOC, "qemu:allocation-depth", BITMAP])
            assert sorted(got) == [ALLOC, BITMAP], got
            return c.go("vda", want=())
        workers = [open_one() for _ in range(5)]
        got = workers[0].status(0, min(SIZE, 2 * G))
        assert all(sum(n for n, _ in e) == SIZE for e in got.values())
        image = bytearray(SIZE)
        jobs = list(range(0, SIZE, 4 * M))

        def work(c):
            while jobs:
                try:
                    off = jobs.pop()
                except IndexError:
                    return
                image[off:off + 4 * M] = c.read(off, 4 * M)
        backups.in_threads([lambda c=c: work(c) for c in workers[1:]])
        assert image == b.live
        for c in workers:
            c.disc()


@test
def a_client_that_negotiates_nothing_reads_the_disk():
    """EXPORT_NAME, simple replies, with and without NO_ZEROES; writes get EPERM and the connection
    lives."""
    with Incremental() as b:
        for flags in (1, 3):
            with nbdclient.NBD(b.s.nbd) as c:
                c.client_flags(flags)
                c.export_name("vda")
                assert c.size == SIZE
                assert c.read(1, 4 * M) == b.live[1:1 + 4 * M]
                for cmd, data in ((nbdclient.CMD_WRITE, b"x" * 512),
                                  (nbdclient.CMD_WRITE_ZEROES, None), (nbdclient.CMD_TRIM, None)):
                    try:
                        c.call(cmd, 0, 512, 0, data)
                        raise AssertionError("command %d was not refused" % cmd)
                    except nbdclient.NBDError as e:
                        assert e.errno == nbdclient.EPERM, e
                assert c.read(0, 8) == b"new data"


if __name__ == "__main__":
    main()
