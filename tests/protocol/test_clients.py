#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The rules of shared/clients.md: what real clients need beyond proto.md."""
from nbdtest import *  # noqa: F401,F403

BA = "base:allocation"
PREFIX = "qemu:dirty-bitmap:"


def dirty_context(s, name=None):
    """The export's one dirty bitmap; Skip if the target has none."""
    with s.hello() as c:
        c.negotiate_structured()
        got, t = c.list_meta(name or s.name, [PREFIX])
        c.abort()
    if not got:
        raise Skip("the target has no dirty bitmap")
    return got[0]


def total(ext):
    return sum(n for n, _ in ext)


def same_end(c, r):
    ends = {c.contexts[i]: total(x) for i, x in r.status.items()}
    must(len(set(ends.values())) == 1, "contexts end at %s", ends)
    return next(iter(ends.values()))


@test(generic=True)
def clients_rule_1_all_contexts_end_at_same_offset(s):
    """clients.md 1: vnb lays allocation extents end to end and advances by the bitmap's length."""
    ctx = [BA, dirty_context(s)]
    for order in (ctx, ctx[::-1]):
        with s.open(contexts=order) as c:
            z = min(c.size, 0xFFFFFE00)
            for off, n in ((0, z), (0, 512), (z // 3 // 512 * 512, z // 2 // 512 * 512), (z - 512, 512)):
                for flags in (0, REQ_ONE):
                    same_end(c, c.status(off, n, flags))
            c.disc()


@test
def clients_rule_1_holds_when_one_context_is_cut(s):
    """clients.md 1: seen with qemu-nbd, which cuts each context at 131072 extents by itself."""
    with Fixture(["f:64G:half,allfine=f", "g:3G:zero,allfine=g,dirty=h"]) as f:
        for name, ctxs in (("f", [BA, PREFIX + "f"]), ("f", [PREFIX + "f", BA]),
                           ("g", [BA, PREFIX + "g", PREFIX + "h"])):
            with f.open(name, contexts=ctxs) as c:
                for n in (0xFFFFF000, 3 * G, 129 * 1024 * 8192 + 5):
                    if n <= c.size:
                        for flags in (0, REQ_ONE):
                            same_end(c, c.status(0, n, flags))
                c.disc()


@test
def clients_rule_1_whole_walk_stays_in_step(s):
    """clients.md 1: also query after query, where each reply may be cut."""
    with Fixture(["f:16G:half,allfine=f"]) as f:
        with f.open("f", contexts=[BA, PREFIX + "f"]) as c:
            off = steps = 0
            while off < c.size:
                r = c.status(off, min(0xFFFFF000, c.size - off))
                must(not r.errors, "got %s", r.errors)
                off += same_end(c, r)
                steps += 1
                must(steps < 200, "no progress")
            c.disc()


@test(generic=True)
def clients_rule_2_whole_export_below_4_gib_in_one_reply(s):
    """clients.md 2: vnb otherwise asks again with a length past the end and fails."""
    ctx = [BA, dirty_context(s)]
    with s.open(contexts=ctx) as c:
        if c.size < 1 << 32:
            must(same_end(c, c.status(0, c.size)) == c.size, "not whole")
        c.disc()


@test
def clients_rule_2_holds_for_3_gib_and_for_4_gib_less_a_block(s):
    """clients.md 2; at 64 KiB a block that is up to 65,536 extents."""
    with Fixture(["a:%d:half,dirty=d" % (4 * G - 64 * K), "b:%d:half,dirty=d" % (4 * G - 1)]) as f:
        for srv, name, d in ((s, "big", "backup-big"), (f, "a", "d"), (f, "b", "d")):
            e = srv.exports[name]
            with srv.open(name, contexts=[BA, PREFIX + d]) as c:
                r = c.status(0, c.size)
                must(same_end(c, r) == c.size, "not whole: %d", same_end(c, r))
                must(r.status[c.context_id(PREFIX + d)] == e.dirty(0, e.size), "wrong map")
                c.disc()


@test
def clients_rule_2_reply_stays_below_1048575_extents(s):
    """clients.md 2: imageio drops the connection above 1,048,575 extents in a reply."""
    with Fixture(["f:64G:zero,allfine=f"]) as f:
        with f.open("f", contexts=[BA, PREFIX + "f"]) as c:
            for n in (0xFFFFF000, 0xFFFFFFFF):
                for ext in c.status(0, n).status.values():
                    must(len(ext) <= 1048575, "%d extents", len(ext))
            c.disc()


@test(generic=True)
def clients_rule_3_zeroes_in_dirty_ranges_are_no_holes(s):
    """clients.md 3: vnb skips "dirty and hole" and so keeps old bytes on restore.

    The fixture lies on purpose (holes in dirty ranges): there the test is that the server passes
    each context's words on as the export gives them; a target must keep the rule itself."""
    d = dirty_context(s)
    with s.open(contexts=[BA, d]) as c:
        off = 0
        while off < min(c.size, 4 * G):
            r = c.status(off, min(0xFFFFFE00, c.size - off))
            marks = {}
            for name in (BA, d):
                pos, marks[name] = off, []
                for n, f in r.status[c.context_id(name)]:
                    marks[name].append((pos, pos + n, f))
                    pos += n
            if s.fixture:
                e = s.exports[s.name]
                must(r.status[c.context_id(BA)] == e.allocation(off, pos - off), "words were changed")
                must(r.status[c.context_id(d)] == e.dirty(off, pos - off), "words were changed")
            else:
                holes = [(a, b) for a, b, f in marks[BA] if f & 1]
                for a, b, f in marks[d]:
                    bad = [h for h in holes if f & 1 and h[0] < b and a < h[1]]
                    must(not bad, "dirty [%d, %d) is a hole", a, b)
            off = pos
        c.disc()


@test(generic=True)
def clients_rule_4_base_allocation_is_always_offered(s):
    """clients.md 4: without it imageio fails and vnb 2.x writes an empty incremental."""
    with s.hello() as c:
        c.negotiate_structured()
        for name in (s.exports if s.fixture else [s.name]):
            for queries in ([], ["base:"], [BA]):
                must(BA in c.list_meta(name, queries)[0], "%s: not listed with %s", name, queries)
            must(list(c.set_meta(name, [BA])[0].values()) == [BA], "%s: cannot be set", name)
        c.abort()


@test(generic=True)
def clients_rule_4_context_that_does_not_exist_costs_no_other(s):
    """clients.md, imageio: SET_META(base:allocation, qemu:allocation-depth, bitmap)."""
    d = dirty_context(s)
    with s.hello() as c:
        c.negotiate_structured()
        ids, t = c.set_meta(s.name, [BA, "qemu:allocation-depth", d])
        must(t == REP_ACK and {BA, d} <= set(ids.values()) <= {BA, d, "qemu:allocation-depth"},
             "got %s %s", ids, rep_name(t))
        c.go(s.name)
        r = c.status(0, min(c.size, 2 * G) // 512 * 512)
        must(len(r.status) == len(ids), "chunks for %s", r.status)
        c.disc()


@test(generic=True)
def clients_rule_5_one_dirty_bitmap_per_export(s):
    """clients.md 5: imageio lists `qemu:dirty-bitmap:` and refuses two."""
    with s.hello() as c:
        c.negotiate_structured()
        for name in (s.exports if s.fixture else [s.name]):
            got, t = c.list_meta(name, [PREFIX])
            must(t == REP_ACK and len(got) <= 1, "%s: %s", name, got)
        c.abort()


@test(generic=True)
def clients_rule_6_block_sizes_are_advertised(s):
    """clients.md 6: 1 / 4096 or the block / 32 MiB."""
    with s.hello() as c:
        for opt in (OPT_INFO, OPT_GO):
            i = c.info(s.name, [INFO_BLOCK_SIZE], opt)
            must(i.block_size, "no block sizes")
            bmin, bpref, bmax = i.block_size
            must(bmin == 1 and bpref >= 4096 and bmax == 32 * M, "got %s", i.block_size)
        c.disc()


@test(generic=True)
def clients_rule_6_block_sizes_are_never_required(s):
    """clients.md 6: imageio sends GO with no information request."""
    with s.hello() as c:
        c.go(s.name, [])
        must(not c.read(0, 1).errors and not c.read(511, 3).errors, "unaligned read failed")
        c.disc()
    with s.hello() as c:
        c.export_name(s.name)
        must(not c.read(1, 1).errors, "unaligned read failed")
        c.disc()


@test(generic=True)
def clients_rule_6_extents_are_multiples_of_the_minimum_block(s):
    """clients.md 6; proto.md NBD_CMD_BLOCK_STATUS says the same."""
    with s.open(contexts=[BA], infos=[INFO_BLOCK_SIZE]) as c:
        bmin = c.block_size[0] if c.block_size else 512
        (ext,) = c.status(0, min(c.size, 0xFFFF0000)).status.values()
        must(not any(n % bmin for n, _ in ext), "extents %s", ext[:5])
        c.disc()


@test(generic=True)
def clients_rule_7_only_bit_0_in_the_dirty_word(s):
    """clients.md 7: vnb asserts 0 or 1."""
    d = dirty_context(s)
    with s.open(contexts=[d]) as c:
        (ext,) = c.status(0, min(c.size, 0xFFFFFE00)).status.values()
        must({f for _, f in ext} <= {0, 1}, "words %s", {f for _, f in ext})
        c.disc()


@test(generic=True)
def clients_rule_8_repeated_queries_count_once(s):
    """clients.md 8: vnb >= 2.21 sends `base:allocation` twice."""
    for n in (2, 3, 10):
        with s.hello() as c:
            c.negotiate_structured()
            ids, t = c.set_meta(s.name, [BA] * n)
            must(t == REP_ACK and list(ids.values()) == [BA], "got %s %s", ids, rep_name(t))
            c.go(s.name)
            must(len(c.status(0, 512).status) == 1, "two chunks")
            c.disc()


@test(generic=True)
def clients_rule_8_holds_beside_the_bitmap(s):
    """clients.md 8: SET_META(base:allocation, base:allocation, bitmap, bitmap)."""
    d = dirty_context(s)
    with s.hello() as c:
        c.negotiate_structured()
        ids, t = c.set_meta(s.name, [BA, BA, d, d, BA])
        must(t == REP_ACK and sorted(ids.values()) == sorted([BA, d]), "got %s", ids)
        c.go(s.name)
        must(len(c.status(0, 512).status) == 2, "chunks")
        c.disc()


@test(generic=True)
def clients_rule_9_sixteen_connections_to_one_export(s):
    """clients.md 9: vnb keeps one open beside nbdinfo; imageio opens workers + 1."""
    conns = [s.open(contexts=[BA]) for _ in range(16)]
    for c in conns:
        c.cmd(CMD_READ, 0, 512)
    for c in conns:
        must(not c.wait_any()[1].errors, "failed")
    for c in conns:
        c.disc()


@test(generic=True)
def clients_rule_9_can_multi_conn_is_set(s):
    """clients.md 9: nbdcopy opens several only if the flag is set."""
    with s.hello() as c:
        for name in (s.exports if s.fixture else [s.name]):
            must(c.info(name).flags & CAN_MULTI_CONN, "%s: not set", name)
        c.go(s.name)
        c.disc()


@test
def clients_rule_10_one_extent_per_reply_is_cheap(s):
    """clients.md 10: QEMU asks REQ_ONE; 262,000 extents took 15 s against qemu-nbd.

    In a map of 786,432 extents, near its end, 2000 queries may take 10 times what 2000 flushes
    take: a server that walks the map, or builds it whole, takes thousands of times as long."""
    with Fixture(["f:3G:zero,allfine=f"]) as f:
        with f.open("f", contexts=[PREFIX + "f"]) as c:
            def timed(cmd, at):
                began = time.monotonic()
                for i in range(2000):
                    off = at + i * 4096 if cmd == CMD_BLOCK_STATUS else 0
                    r = c.do(cmd, off, c.size - off if cmd == CMD_BLOCK_STATUS else 0,
                             REQ_ONE if cmd == CMD_BLOCK_STATUS else 0)
                    must(not r.errors, "got %s", r.errors)
                return time.monotonic() - began
            base = timed(CMD_FLUSH, 0)
            for at in (0, 2 * G):
                took = timed(CMD_BLOCK_STATUS, at)
                must(took < 10 * base + 0.5, "2000 queries took %.2f s, 2000 flushes %.2f s", took, base)
            c.disc()


@test(generic=True)
def clients_rule_12_set_answers_with_the_context_asked_and_no_other(s):
    """clients.md 12: QEMU's client gives up if the server answers SET with another or an extra one."""
    d = dirty_context(s)
    for q in (BA, d):
        with s.hello() as c:
            c.negotiate_structured()
            rs = c.option(OPT_SET_META, c.meta_data(s.name, [q]))
            must([getattr(r, "name", None) for r in rs] == [q, None], "%s got %s", q, rs)
            c.context_export, c.contexts = s.name, {rs[0].id: q}
            c.go(s.name)
            must(len(c.status(0, 512).status) == 1, "chunks")
            c.disc()


@test
def conversation_of_virtnbdbackup_2(s):
    """clients.md, table: STRUCTURED_REPLY, SET_META(base:allocation twice, bitmap), GO + BLOCK_SIZE,
    status of the whole, reads by the merged extents."""
    d = PREFIX + "backup-vda"
    e = s.exports["vda"]
    with s.hello() as c:
        c.negotiate_structured()
        c.set_meta("vda", [BA, BA, d])
        c.go("vda", [INFO_BLOCK_SIZE])
        r = c.status(0, c.size)
        must(same_end(c, r) == c.size, "not whole")
        off = 0
        for n, f in r.status[c.context_id(d)]:
            if f and off < 4 * M:
                must(c.read(off, n).data == e.content(off, n), "wrong bytes")
            off += n
        c.disc()


@test
def conversation_of_imageio(s):
    """clients.md, table: LIST_META("qemu:dirty-bitmap:"), SET_META of three, GO without requests, no
    NO_ZEROES; 5 connections, 2 GiB steps, 4 MiB reads."""
    conns = []
    for _ in range(5):
        c = s.connect()
        c.hello(C_FIXED_NEWSTYLE)
        c.negotiate_structured()
        got, _ = c.list_meta("big", [PREFIX])
        must(got == [PREFIX + "backup-big"], "listed %s", got)
        c.set_meta("big", [BA, "qemu:allocation-depth", got[0]])
        must(sorted(c.contexts.values()) == [BA, got[0]], "got %s", c.contexts)
        c.go("big", [])
        conns.append(c)
    off = 0
    while off < conns[0].size:
        n = min(2 * G, conns[0].size - off)
        must(same_end(conns[0], conns[0].status(off, n)) == n, "not whole")
        off += n
    for i, c in enumerate(conns):
        c.cmd(CMD_READ, i * 4 * M, 4 * M)
    for i, c in enumerate(conns):
        _, p = c.wait_any()
        must(p.data == s.exports["big"].content(i * 4 * M, 4 * M), "wrong bytes")
        c.disc()


@test
def conversation_of_libnbd_1_18_and_later(s):
    """clients.md, table: asks for extended headers first, then as before if they are not granted."""
    with s.hello() as c:
        if c.final(OPT_EXTENDED) == REP_ACK:
            c.close()
            return  # granted: the extension's own tests take over
        c.negotiate_structured()
        c.set_meta("vda", [BA])
        c.go("vda", [INFO_BLOCK_SIZE, INFO_NAME, INFO_DESCRIPTION])
        must(not c.status(0, 64 * M).errors, "status failed")
        c.disc()


@test
def conversation_of_qemu_img_map(s):
    """clients.md, table: SET_META(one), GO + BLOCK_SIZE, REQ_ONE to the end."""
    d = PREFIX + "backup-vda"
    e = s.exports["vda"]
    with s.hello() as c:
        c.negotiate_structured()
        c.set_meta("vda", [d])
        c.go("vda", [INFO_BLOCK_SIZE])
        got, off = [], 0
        while off < c.size:
            (ext,) = c.status(off, c.size - off, REQ_ONE).status.values()
            got += ext
            off += ext[0][0]
        must(merge(got) == e.dirty(0, e.size), "wrong map")
        c.disc()


main()
