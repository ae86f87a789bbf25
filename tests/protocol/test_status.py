#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""BLOCK_STATUS."""
import os
import random
import select
import tempfile

from nbdtest import *  # noqa: F401,F403

BA = "base:allocation"
DIRTY = "qemu:dirty-bitmap:backup-vda"
MAXLEN = 0xFFFFFFFF


def total(ext):
    return sum(n for n, _ in ext)


def cut(ext, n):
    out = []
    for m, f in ext:
        if n <= 0:
            break
        out.append((min(m, n), f))
        n -= m
    return out


def check(c, e, off, n, flags=0):
    """Each extent list is a true account from off on; returns how far they reach."""
    r = c.status(off, n, flags)
    must(not r.errors, "[%d, +%d) got %s", off, n, r.errors)
    ends = set()
    for i, ext in r.status.items():
        name = c.contexts[i]
        have = total(ext)
        want = e.allocation(off, have) if name == BA else e.dirty(off, have)
        got = merge(ext)
        if name == BA:  # HOLE | ZERO or ZERO alone: both are true of zeroes
            got, want = ([(m, f and 2) for m, f in x] for x in (got, want))
        must(got == want, "%s [%d, +%d): %s, want %s", name, off, n, got[:5], want[:5])
        ends.add(have)
    return r, ends


@test(generic=True)
def status_without_contexts_is_einval(s):
    """Metadata querying: SHOULD reply with EINVAL without selecting at least one context."""
    for mode in (True, False):
        with s.open(structured=mode) as c:
            r = c.status(0, 512)
            must(r.error == EINVAL, "got %s", r.errors)
            must(not c.read(0, 512).errors, "the connection did not survive")
            c.disc()


@test
def status_after_a_selection_of_nothing_is_einval(s):
    """NBD_OPT_SET_META_CONTEXT: no context selected, no BLOCK_STATUS."""
    with s.open("vda", contexts=[]) as c:
        must(c.status(0, 512).error == EINVAL, "answered")
        c.disc()


@test(generic=True)
def status_gives_one_chunk_per_context(s):
    """NBD_CMD_BLOCK_STATUS: exactly one chunk per selected context id (nbdwire counts)."""
    with s.open(contexts=[BA]) as c:
        r = c.status(0, min(c.size, 1 << 30) // 512 * 512)
        must(len(r.status) == 1 and not r.simple, "got %s", r.status)
        c.disc()


@test
def status_with_two_contexts_gives_two_chunks(s):
    """NBD_CMD_BLOCK_STATUS: several contexts in one reply, only the last chunk DONE."""
    for order in ([BA, DIRTY], [DIRTY, BA]):
        with s.open("vda", contexts=order) as c:
            for flags in (0, REQ_ONE):
                r = c.status(0, 64 * M, flags)
                must(len(r.status) == 2, "got %s", r.status)
            c.disc()


@test
def status_tells_the_truth(s):
    """NBD_REPLY_TYPE_BLOCK_STATUS: consecutive portions starting from offset."""
    for e in s.exports.values():
        ctx = [BA] + ([e.dirty_context] if e.dirty_context else [])
        with s.open(e.name, contexts=ctx) as c:
            n = min(e.size, MAXLEN)
            check(c, e, 0, n)
            check(c, e, e.size // 2, min(n, e.size - e.size // 2))
            check(c, e, e.size - 1, 1)
            check(c, e, 0, 1)
            c.disc()


@test
def status_is_exact_at_unaligned_offsets(s):
    """NBD_CMD_BLOCK_STATUS: length and offset define the range of interest."""
    rng = random.Random(3)
    for name in ("vda", "odd", "fine"):
        e = s.exports[name]
        with s.open(name, contexts=[BA, e.dirty_context]) as c:
            for _ in range(100):
                off = rng.randrange(e.size)
                check(c, e, off, rng.randrange(1, e.size - off + 1))
            for off in (65535, 65536, 65537, 1, e.size // 2 - 1):
                check(c, e, off, 2)
                check(c, e, off, 65536)
            c.disc()


@test(house=True)
def status_never_reaches_beyond_the_request(s):
    """Issue 3: never beyond the request (proto.md lets the final extent do so)."""
    rng = random.Random(4)
    for name in ("vda", "odd", "huge"):
        e = s.exports[name]
        with s.open(name, contexts=[BA] + ([e.dirty_context] if e.dirty_context else [])) as c:
            for _ in range(50):
                off = rng.randrange(e.size)
                n = rng.randrange(1, min(MAXLEN, e.size - off) + 1)
                for ext in c.status(off, n).status.values():
                    must(total(ext) <= n, "%d for a request of %d", total(ext), n)
            c.disc()


@test
def neighbouring_extents_differ(s):
    """NBD_CMD_BLOCK_STATUS: SHOULD use different status values between consecutive descriptors."""
    for name in ("vda", "fine", "huge", "zero"):
        e = s.exports[name]
        with s.open(name, contexts=[BA] + ([e.dirty_context] if e.dirty_context else [])) as c:
            r = c.status(0, min(e.size, MAXLEN))
            for ext in r.status.values():
                must(all(a[1] != b[1] for a, b in zip(ext, ext[1:])), "not merged: %s", ext[:4])
            c.disc()


@test(generic=True)
def req_one_gives_one_extent_within_the_request(s):
    """NBD_CMD_FLAG_REQ_ONE: exactly one descriptor, not longer than the request (nbdwire counts)."""
    with s.open(contexts=[BA]) as c:
        for off, n in ((0, 512), (0, 65536), (512, 512), (c.size // 1024 * 512, 512)):
            must(not c.status(off, n, REQ_ONE).errors, "failed")
        c.disc()


@test
def req_one_is_exact(s):
    """NBD_CMD_FLAG_REQ_ONE."""
    e = s.exports["vda"]
    with s.open("vda", contexts=[DIRTY]) as c:
        i = c.context_id(DIRTY)
        for off, n, want in ((0, 65536, (65536, 0)), (0, 131072, (65536, 0)), (65536, MAXLEN // 2, None),
                             (65537, 10, (10, 1)), (65535, 10, (1, 0)), (e.size - 1, 1, (1, 1))):
            if want is None:
                n, want = e.size - off, (65536, 1)
            r = c.status(off, n, REQ_ONE)
            must(r.status[i] == [want], "[%d, +%d) gave %s", off, n, r.status)
        c.disc()


@test(generic=True)
def walk_makes_progress_to_the_end(s):
    """NBD_CMD_BLOCK_STATUS: at least one descriptor of non-zero length: a client makes progress."""
    for flags in (0, REQ_ONE):
        with s.open(contexts=[BA]) as c:
            off, steps, end = 0, 0, min(c.size, 4 * G) // 512 * 512
            while off < end and steps < 2000:
                r = c.status(off, min(end - off, 128 * M), flags)
                must(not r.errors, "got %s", r.errors)
                off += max(512, min(total(x) for x in r.status.values()))
                steps += 1
            c.disc()


@test
def walk_by_one_extent_is_the_same_map(s):
    """NBD_CMD_FLAG_REQ_ONE: the same extents, one at a time."""
    e = s.exports["vda"]
    with s.open("vda", contexts=[DIRTY]) as c:
        i = c.context_id(DIRTY)
        whole = c.status(0, e.size).status[i]
        got, off = [], 0
        while off < e.size:
            x = c.status(off, e.size - off, REQ_ONE).status[i]
            got += x
            off += x[0][0]
        must(merge(got) == merge(whole), "maps differ")
        c.disc()


@test
def walk_in_odd_steps_is_the_same_map(s):
    """NBD_CMD_BLOCK_STATUS: whatever the requests' borders, the account is one."""
    e = s.exports["odd"]
    with s.open("odd", contexts=[BA, "qemu:dirty-bitmap:d"]) as c:
        for step in (1000, 4097, 65535, 65537, 300001):
            got, off = [], 0
            i = c.context_id("qemu:dirty-bitmap:d")
            while off < e.size:
                x = c.status(off, min(step, e.size - off)).status[i]
                got += x
                off += total(x)
            must(merge(got) == e.dirty(0, e.size), "maps differ at step %d", step)
        c.disc()


@test(generic=True)
def status_beyond_the_end_is_einval(s):
    """NBD_CMD_BLOCK_STATUS: SHOULD return EINVAL for sectors beyond the size of the device."""
    with s.open(contexts=[BA]) as c:
        z = c.size
        for off, n in ((z, 512), (z - 512, 1024), (z + 512, 512), (1 << 63, 512),
                       ((1 << 64) - 512, 512), ((1 << 64) - 512, 1024)):
            r = c.status(off, n)
            must(r.error == EINVAL, "[%d, +%d) of %d got %s", off, n, z, r.errors)
            must(not r.status, "status beside the error")
        must(not c.status(0, 512).errors, "the connection did not survive")
        c.disc()


@test
def one_byte_beyond_the_end_is_einval(s):
    """NBD_CMD_BLOCK_STATUS: EINVAL; also where offset + length overflows 64 bits."""
    with s.open("odd", contexts=[BA, "qemu:dirty-bitmap:d"]) as c:
        z = c.size
        for off, n in ((z, 1), (z - 1, 2), (0, z + 1), ((1 << 64) - 1, 2), ((1 << 64) - 1, MAXLEN),
                       ((1 << 64) - z, z), (0, MAXLEN)):
            for flags in (0, REQ_ONE):
                r = c.status(off, n, flags)
                must(r.error == EINVAL, "[%d, +%d) got %s", off, n, r.errors)
        c.disc()


@test(generic=True)
def status_of_length_0_does_not_disconnect(s):
    """NBD_CMD_BLOCK_STATUS: unspecified, although the server SHOULD NOT disconnect."""
    with s.open(contexts=[BA]) as c:
        for off in (0, 512, c.size):
            for flags in (0, REQ_ONE):
                b, cookie = c.pack(CMD_BLOCK_STATUS, off, 0, flags)
                p = c.pending[cookie]
                p.len = 1 << 32  # nothing is specified: an extent of any length may come
                c.send(b)
                c.wait(cookie)
        must(not c.status(0, 512).errors, "the connection did not survive")
        c.disc()


@test
def unknown_flags_of_status_are_einval(s):
    """Error values: SHOULD return EINVAL for an unknown or inapplicable command flag."""
    with s.open("vda", contexts=[BA]) as c:
        for bit in (1, 2, 4, 5, 6, 9, 15):
            for more in (0, REQ_ONE):
                r = c.status(0, 512, 1 << bit | more)
                must(r.error == EINVAL, "flag bit %d got %s", bit, r.errors)
        must(not c.status(0, 512).errors, "the connection did not survive")
        c.disc()


@test
def status_of_a_query_of_4_gib_is_answered(s):
    """NBD_CMD_BLOCK_STATUS: length is 32 bits; an extent's length too."""
    with s.open("huge", contexts=[BA]) as c:
        for off in (0, 1, 4 * G, 5 * T + 77, 8 * T - MAXLEN):
            r = c.status(off, MAXLEN)
            (ext,) = r.status.values()
            must(total(ext) == MAXLEN and len(ext) == 1, "got %s", ext)
        c.disc()


@test
def reply_never_holds_more_than_2_20_extents(s):
    """NBD_REPLY_TYPE_BLOCK_STATUS: SHOULD NOT send more than 2^20 extents in a chunk."""
    with Fixture(["f:64G:zero,allfine=f"]) as f:
        e = f.exports["f"]
        with f.open("f", contexts=[BA, "qemu:dirty-bitmap:f"]) as c:
            i = c.context_id("qemu:dirty-bitmap:f")
            for off, n in ((0, MAXLEN - MAXLEN % 4096), (2048, MAXLEN)):  # 2^20 - 1, 2^20 + 1 runs
                r = c.status(off, n)
                must(not r.errors, "got %s", r.errors)
                ext = r.status[i]
                must(len(ext) <= 1 << 20, "%d extents", len(ext))  # nbdwire refuses more, too
                must(ext == e.dirty(off, total(ext)), "wrong extents")
                off += total(ext)
                x = c.status(off, 3 * 4096).status[i]
                must(x[0][1] == off // 4096 & 1, "the next query goes on wrongly")
            c.disc()


@test
def statuses_in_flight_are_answered_once_each(s):
    """Transmission: any number in flight."""
    e = s.exports["vda"]
    with s.open("vda", contexts=[BA, DIRTY]) as c:
        offs = [o * 65536 for o in range(256)]
        c.send(b"".join(c.pack(CMD_BLOCK_STATUS, o, 131072)[0] for o in offs))
        i = c.context_id(DIRTY)
        for _ in offs:
            _, p = c.wait_any()
            must(p.status[i] == e.dirty(p.off, 131072), "wrong status at %d", p.off)
        c.disc()


@test
def reads_and_statuses_may_be_mixed_in_flight(s):
    """Structured reply chunk message: chunks of different replies may be interleaved."""
    e = s.exports["vda"]
    with s.open("vda", contexts=[BA, DIRTY]) as c:
        blob = b""
        for k in range(60):
            blob += c.pack(CMD_READ, k * 99991, 200000)[0]
            blob += c.pack(CMD_BLOCK_STATUS, k * 99991, 200000)[0]
            blob += c.pack(CMD_READ, e.size, 1)[0]
        c.send(blob)
        i = c.context_id(DIRTY)
        for _ in range(180):
            _, p = c.wait_any()
            if p.off == e.size:
                must(p.error == EINVAL, "got %s", p.errors)
            elif p.cmd == CMD_READ:
                must(p.data == e.content(p.off, p.len), "wrong bytes")
            else:
                must(p.status[i] == e.dirty(p.off, p.len), "wrong status")
        c.disc()


@test
def statuses_that_memory_has_wait_for_no_disk(s):
    """What a map in memory tells is answered at once, if it is not too long; else by the pool."""
    gate = os.path.join(tempfile.mkdtemp(dir=tmpdir()), "gate")
    with Fixture(["vda:64M:half,allfine=f,now=1M+32M,slow=" + gate], ["--network-threads", "1"]) as f:
        e = f.exports["vda"]
        open(gate, "w").close()
        holders = [f.open("vda") for _ in range(12)]  # more than the pool has threads
        for c in holders:
            c.send(b"".join(c.pack(CMD_READ, 40 * M + k * M, M)[0] for k in range(4)))
        with f.open("vda", contexts=[BA, e.dirty_context]) as c:
            i = c.context_id(e.dirty_context)
            for off, n in ((M, 1), (M, 4 * M), (2 * M + 77, M + 11), (33 * M - 1, 1), (25 * M, 8 * M)):
                for flags in (0, REQ_ONE):
                    r = c.status(off, n, flags)
                    covered = total(r.status[i])
                    must(flags or covered == n, "%d of %d bytes", covered, n)
                    must(r.status[i] == e.dirty(off, covered), "wrong status at %d", off)
            long = c.pack(CMD_BLOCK_STATUS, M, 16 * M)[0]  # 4096 runs
            cold = c.pack(CMD_BLOCK_STATUS, 0, 2 * M)[0]   # its first half is not in memory
            c.send(long + cold)
            with f.open("vda", contexts=[BA, e.dirty_context]) as other:
                other.status(M, 4096)
            must(not select.select([c.sock], [], [], 0)[0], "what is the pool's was answered")
            os.unlink(gate)
            for _ in range(2):
                _, p = c.wait_any()
                must(total(p.status[i]) == p.len, "%d bytes", total(p.status[i]))
                must(p.status[i] == e.dirty(p.off, p.len), "wrong status at %d", p.off)
            c.disc()
        for c in holders:
            for _ in range(4):
                _, p = c.wait_any()
                must(p.data == e.content(p.off, p.len), "wrong bytes")


@test
def status_error_with_two_contexts_is_one_reply(s):
    """Structured reply flags: no chunk after the one marked DONE (QEMU sends one here)."""
    needs("statuserrors")
    with Fixture(["b:1M:pattern,dirty=d,statuserrors=65536+4096"]) as f:
        for ctx in ([BA, "qemu:dirty-bitmap:d"], [BA]):
            with f.open("b", contexts=ctx) as c:
                for flags in (0, REQ_ONE):
                    for off, n in ((65536, 4096), (65536, 1), (69631, 1)):
                        r = c.status(off, n, flags)
                        if r.errors:
                            must(r.error == EIO, "got %s", r.errors)
                must(not c.status(0, 4096).errors, "before the range")
                must(c.read(65536, 512).data == pattern(65536, 512), "read failed")
                c.disc()


@test
def when_the_last_of_several_contexts_fails_nothing_follows_done(s):
    """Structured reply flags: DONE marks the final chunk; nbdwire takes whatever follows it for a
    violation.  (QEMU sends the chunks of contexts that it could tell, the last with DONE, and then
    the error.)  The error is of the whole reply, has a text, and is no bad request's."""
    ctx = [BA, "qemu:dirty-bitmap:d"]
    with Fixture(["b:1M:pattern,dirty=d,statuserrors=65536+4096,lastfails"]) as f:
        for mode in (dict(structured=True), dict(extended=True)):
            with f.open("b", contexts=ctx, **mode) as c:
                for flags in (0, REQ_ONE):
                    for _ in range(20):
                        c.cmd(CMD_BLOCK_STATUS, 65536, 512, flags)
                    for _ in range(20):
                        r = c.wait_any()[1]
                        must([e[:2] for e in r.errors] == [(EIO, "lost")], "got %s", r.errors)
                must(len(c.status(0, 4096).status) == 2, "not both contexts before the range")
                must(c.status(M, 1).error == EINVAL, "a bad request")
                c.disc()


@test
def req_one_gives_one_extent_for_each_context(s):
    """NBD_CMD_FLAG_REQ_ONE: every reply chunk MUST contain exactly one descriptor (nbdwire counts),
    which tells the truth."""
    e = s.exports["vda"]
    for mode in (dict(structured=True), dict(extended=True)):
        with s.open("vda", contexts=[BA, DIRTY], **mode) as c:
            for off, n in ((0, e.size), (65536, e.size - 65536), (32 * M - 5, 100), (1, 1)):
                r = c.status(off, n, REQ_ONE)
                must(len(r.status) == 2, "got %s", r.status)
                for i, ext in r.status.items():
                    want = e.dirty if c.contexts[i] == DIRTY else e.allocation
                    must(ext == want(off, total(ext)), "[%d, +%d) gave %s", off, n, r.status)
            c.disc()


main()
