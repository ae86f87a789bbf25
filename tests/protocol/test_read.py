#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""READ, with simple and with structured replies."""
import fcntl
import random
import termios

from nbdtest import *  # noqa: F401,F403

MODES = (False, True)
BIG = 32 * M


def agree(c, e, off, n, flags=0):
    got = c.read(off, n, flags).data
    want = e.content(off, n)
    if got != want:
        i = next(i for i in range(n) if got[i] != want[i])
        must(False, "%s [%d, +%d): byte %d is %#x, want %#x", e.name, off, n, off + i, got[i], want[i])


@test(generic=True)
def read_without_negotiation_is_a_simple_reply(s):
    """Simple reply message: MUST be used if structured replies have not been negotiated."""
    with s.open(structured=False) as c:
        must(c.read(0, 512).simple, "structured")
        c.disc()


@test(generic=True)
def read_with_structured_replies_is_never_simple(s):
    """Structured reply chunk message: MUST NOT use a simple reply for READ, even for EINVAL."""
    with s.open() as c:
        must(not c.read(0, 512).simple, "simple")
        must(not c.read(c.size, 512).simple, "simple error")          # nbdwire refuses it as well
        must(not c.read(0, 512, 1 << 13).simple, "simple error for a bad flag")
        c.disc()


@test
def read_gives_the_exports_bytes(s):
    """NBD_CMD_READ: the same bytes in both reply modes."""
    for mode in MODES:
        for e in s.exports.values():
            if "errors" in e.opts:
                continue
            with s.open(e.name, structured=mode) as c:
                mid = e.size // 2
                for off, n in ((0, 1), (0, 512), (0, 65536), (mid - 4096, 8192), (e.size - 1, 1),
                               (e.size - 4096, 4096), (mid, 1), (mid - 1, 1), (mid - 1, 2)):
                    agree(c, e, off, n)
                c.disc()


@test
def read_is_byte_exact_at_unaligned_offsets(s):
    """NBD_CMD_READ: length and offset define the data to be read."""
    rng = random.Random(7)
    for mode in MODES:
        for name in ("pat", "odd", "vda"):
            e = s.exports[name]
            with s.open(name, structured=mode) as c:
                for base in (0, 511, 4095, 65535, e.size // 2 - 3, 262143, 262144 - 5):
                    for n in (1, 2, 7, 8, 9, 511, 513, 4097, 65537, 262145):
                        agree(c, e, base, min(n, e.size - base))
                for _ in range(60):
                    off = rng.randrange(e.size)
                    agree(c, e, off, rng.randrange(1, min(400000, e.size - off) + 1))
                c.disc()


@test
def whole_export_can_be_read(s):
    """NBD_CMD_READ: up to the maximum payload of 32 MiB."""
    for mode in MODES:
        for name in ("pat", "odd", "fine"):
            e = s.exports[name]
            with s.open(name, structured=mode) as c:
                agree(c, e, 0, e.size)
                c.disc()


@test
def read_of_the_maximum_payload_is_served(s):
    """Size constraints: a maximum payload size of at least 2^25."""
    for mode in MODES:
        with s.open("vda", structured=mode, infos=[INFO_BLOCK_SIZE]) as c:
            must(c.block_size[2] >= BIG, "maximum payload %d", c.block_size[2])
            agree(c, s.exports["vda"], 16 * M, BIG)
            c.disc()


@test(generic=True)
def last_byte_can_be_read(s):
    """NBD_CMD_READ: up to the export's size (by the minimum block size)."""
    for mode in MODES:
        with s.open(structured=mode, infos=[INFO_BLOCK_SIZE]) as c:
            n = c.block_size[0] if c.block_size else 512
            must(not c.read(c.size - n, n).errors, "failed")
            c.disc()


@test(generic=True)
def read_beyond_the_end_is_einval(s):
    """Error values: SHOULD return EINVAL for a read including sectors beyond the size."""
    for mode in MODES:
        with s.open(structured=mode) as c:
            z = c.size
            for off, n in ((z, 512), (z - 512, 1024), (z + 512, 512), (0, z + 512) if z < BIG else (z, 1),
                           (1 << 63, 512), ((1 << 64) - 512, 512), ((1 << 64) - 512, 1024)):
                r = c.read(off, n)
                must(r.error == EINVAL, "[%d, +%d) of %d got %s", off, n, z, r.errors)
                must(not r.content, "content beside the error")
            must(not c.read(0, 512).errors, "the connection did not survive")
            c.disc()


@test
def one_byte_beyond_the_end_is_einval(s):
    """Error values: nothing is cut or padded."""
    for mode in MODES:
        for name in ("odd", "pat"):
            z = s.exports[name].size
            with s.open(name, structured=mode) as c:
                for off, n in ((z, 1), (z - 1, 2), (0, z + 1), (z - 4096, 4097), (z + 1, 1),
                               ((1 << 64) - 1, 1), ((1 << 64) - 1, 2), ((1 << 64) - 1, 0xFFFFFFFF)):
                    r = c.read(off, n)
                    must(r.error == EINVAL, "[%d, +%d) of %d got %s", off, n, z, r.errors)
                c.disc()


@test(generic=True)
def read_of_length_0_does_not_disconnect(s):
    """NBD_CMD_READ: unspecified, although the server SHOULD NOT disconnect."""
    for mode in MODES:
        with s.open(structured=mode) as c:
            for off in (0, 512, c.size):
                c.read(off, 0)
            must(not c.read(0, 512).errors, "the connection did not survive")
            c.disc()


@test(generic=True)
def cookie_is_opaque(s):
    """Transmission: the server MUST use the same cookie, treating it as an opaque field."""
    for mode in MODES:
        with s.open(structured=mode) as c:
            for cookie in (0, 1, (1 << 64) - 1, 1 << 63, 0x6744669800000000, 0x0102030405060708, 0):
                r = c.wait(c.cmd(CMD_READ, 0, 512, cookie=cookie))
                must(not r.errors, "failed")
            c.disc()


@test(generic=True)
def every_request_in_flight_is_answered_once(s):
    """Transmission: replies need not be in order; each request has one reply."""
    for mode in MODES:
        with s.open(structured=mode) as c:
            blob, want = b"", {}
            for i in range(200):
                off = (i * 7919 * 512) % (c.size // 512 * 512)
                b, cookie = c.pack(CMD_READ, off, 512)
                blob += b
                want[cookie] = off
            c.send(blob)
            for _ in range(200):
                cookie, p = c.wait_any()
                must(not p.errors and p.off == want.pop(cookie), "wrong reply")
            must(not want, "unanswered")
            c.disc()  # a reply too many would come before the close


@test
def replies_in_flight_carry_their_own_bytes(s):
    """Transmission: the client can correlate which request is receiving a response."""
    rng = random.Random(11)
    e = s.exports["vda"]
    for mode in MODES:
        with s.open("vda", structured=mode) as c:
            reqs = [(rng.randrange(e.size - 300000), rng.randrange(1, 300000)) for _ in range(64)]
            blob = b"".join(c.pack(CMD_READ, o, n)[0] for o, n in reqs)
            c.send(blob)
            for _ in reqs:
                _, p = c.wait_any()
                must(p.data == e.content(p.off, p.len), "wrong bytes at %d", p.off)
            c.disc()


@test
def request_may_come_byte_by_byte(s):
    """Request message: a stream has no message borders."""
    with s.open("pat") as c:
        b, cookie = c.pack(CMD_READ, 4096, 4096)
        for x in b:
            c.send(bytes([x]))
        must(c.wait(cookie).data == pattern(4096, 4096), "wrong bytes")
        c.disc()


@test
def requests_in_one_piece_with_the_last_option_are_served(s):
    """Handshake: transmission mode is entered immediately after GO's ACK, or EXPORT_NAME; a stream has
    no message borders."""
    for opt in (OPT_GO, OPT_EXPORT_NAME):
        with s.hello() as c:
            data = c.info_data("pat") if opt == OPT_GO else b"pat"
            c.send(struct.pack(">QII", IHAVEOPT, opt, len(data)) + data +
                   b"".join(c.pack(CMD_READ, i * 512, 512)[0] for i in range(200)))
            if opt == OPT_GO:
                must(c.info_replies("pat", OPT_GO).ok, "GO failed")
            else:
                c.recv(10)
            for _ in range(200):
                p = c.wait_any()[1]
                must(p.data == pattern(p.off, 512), "wrong bytes")
            c.disc()


@test
def request_may_be_cut_at_any_byte(s):
    """Request message: a stream has no message borders."""
    with s.open("pat") as c:
        for n in range(1, 28):
            b1, k1 = c.pack(CMD_READ, n * 512, 512)
            b2, k2 = c.pack(CMD_READ, n * 1024, 512)
            blob = b1 + b2
            c.send(blob[:28 + n])
            must(c.wait(k1).data == pattern(n * 512, 512), "wrong bytes")
            c.send(blob[28 + n:])
            must(c.wait(k2).data == pattern(n * 1024, 512), "wrong bytes")
        c.disc()


@test(generic=True)
def df_gives_at_most_one_content_chunk(s):
    """NBD_CMD_READ: DF; the server MUST support lengths up to 65,536 bytes."""
    with s.open() as c:
        for off, n in ((0, 512), (0, 65536), (c.size // 2 // 512 * 512 - 32768, 65536),
                       (c.size // 512 * 512 - 65536, 65536)):
            r = c.read(off, n, DF)
            must(not r.errors and len(r.content) == 1, "%s", r.errors)
        c.disc()


@test
def df_across_data_and_hole_is_data(s):
    """NBD_CMD_READ: with DF and both data and a hole, MUST use OFFSET_DATA with zeroes present."""
    e = s.exports["vda"]
    with s.open("vda") as c:
        for off, n in ((32 * M - 32768, 65536), (32 * M - 1, 2), (32 * M - 1, 65536)):
            r = c.read(off, n, DF)
            must(not r.holes, "a hole chunk")
            must(r.data == e.content(off, n), "wrong bytes")
        c.disc()


@test
def df_beyond_65536_is_one_chunk_or_eoverflow(s):
    """NBD_CMD_READ: MAY reject with EOVERFLOW, in which case it MUST NOT send a content chunk."""
    e = s.exports["vda"]
    with s.open("vda") as c:
        for off, n in ((0, 65537), (0, M), (16 * M, 32 * M), (31 * M, 2 * M)):
            r = c.read(off, n, DF)
            if r.errors:
                must(r.error == EOVERFLOW and not r.content, "got %s", r.errors)
            else:
                must(r.data == e.content(off, n), "wrong bytes")
        c.disc()


@test(generic=True)
def df_without_structured_replies_is_einval(s):
    """Error values: EINVAL for a flag not applicable; SEND_DF is not set then."""
    with s.open(structured=False) as c:
        r = c.read(0, 512, DF)
        must(r.error == EINVAL, "got %s", r.errors)
        must(not c.read(0, 512).errors, "the connection did not survive")
        c.disc()


@test(house=True)
def zeroes_of_a_hole_do_not_travel(s):
    """NBD_REPLY_TYPE_OFFSET_HOLE: holes as hole chunks; 32 MiB of hole in 16 KiB at most."""
    for name, off in (("zero", 16 * M), ("vda", 32 * M), ("huge", 4 * T)):
        with s.open(name) as c:
            r = c.read(off, BIG)
            must(r.wire <= 16 * K, "%s: %d bytes on the wire", name, r.wire)
            must(not any(r.data), "not zeroes")
            c.disc()


@test
def chunk_borders_are_multiples_of_512(s):
    """NBD_CMD_READ: SHOULD use chunks with lengths and offsets as a multiple of 512, where possible."""
    for name in ("vda", "odd", "pat"):
        with s.open(name) as c:
            z = c.size
            for off, n in ((1, min(z - 1, 3 * M)), (777, min(z - 777, M + 13)), (z // 2 - 70001, 140003)):
                r = c.read(off, n)
                inner = {p for ch in r.content for p in ch} - {off, off + n}
                must(not any(p % 512 for p in inner), "borders %s", sorted(inner)[:5])
            c.disc()


@test
def read_larger_than_the_maximum_is_served_or_refused(s):
    """NBD_CMD_READ: MAY be split, or rejected with EOVERFLOW (EINVAL when too large for simple)."""
    for mode in MODES:
        with s.open("vda", structured=mode) as c:
            for n in (BIG + 1, BIG + 4096, 48 * M, 64 * M):
                r = c.read(0, n)
                if r.errors:
                    must(r.error in (EOVERFLOW, EINVAL) and not r.content, "got %s", r.errors)
                else:
                    must(r.data == s.exports["vda"].content(0, n), "wrong bytes")
            must(not c.read(0, 512).errors, "the connection did not survive")
            c.disc()


@test
def read_of_4_gib_is_served_or_refused(s):
    """NBD_CMD_READ: more than 2^32 - 8 bytes MUST be split or rejected."""
    for mode in MODES:
        with s.open("huge", structured=mode) as c:
            for n in (0xFFFFFFFF, 0xFFFFF000, 0x80000000):
                b, cookie = c.pack(CMD_READ, 0, n)
                c.send(b)
                p = c.pending[cookie]
                while not p.done:
                    c.message()
                    p.parts.clear()
                must(not p.errors or p.error in (EOVERFLOW, EINVAL), "got %s", p.errors)
            must(not c.read(0, 512).errors, "the connection did not survive")
            c.disc()


@test
def read_far_behind_4_gib_is_served(s):
    """Request message: offset is 64 bits."""
    for mode in MODES:
        with s.open("huge", structured=mode) as c:
            for off in (4 * G - 256, 4 * G, T + 1, 8 * T - 512):
                must(c.read(off, 512).data == bytes(512), "not zeroes")
            c.disc()


@test
def unknown_flags_of_read_are_einval(s):
    """Error values: SHOULD return EINVAL for an unknown or inapplicable command flag."""
    for mode in MODES:
        with s.open("pat", structured=mode) as c:
            for bit in (1, 3, 4, 5, 6, 7, 8, 12, 15):
                r = c.read(0, 512, 1 << bit)
                must(r.error == EINVAL, "flag bit %d got %s", bit, r.errors)
            must(c.read(0, 512).data == pattern(0, 512), "the connection did not survive")
            c.disc()


@test(generic=True)
def fua_on_read_follows_its_flag(s):
    """NBD_CMD_FLAG_FUA: with SEND_FUA the server MUST accept it on all commands."""
    for mode in MODES:
        with s.open(structured=mode) as c:
            r = c.read(0, 512, FUA)
            if c.tflags & SEND_FUA:
                must(not r.errors, "got %s", r.errors)
            c.disc()


@test
def slow_read_does_not_hold_up_other_exports(s):
    """Ordering of messages: commands MAY be out of order; issue 3: no connection waits for
    another's disk.

    The gate is a file: reads of `slow` block while it exists."""
    d = tempfile.mkdtemp(dir=tmpdir())
    gate = os.path.join(d, "gate")
    with Fixture(["pat:4M:pattern", "slow:4M:pattern,slow=" + gate]) as f:
        open(gate, "w").close()
        with f.open("slow") as c, f.open("pat") as good:
            cookie = c.cmd(CMD_READ, 0, 4096)
            for _ in range(10):
                must(good.read(4096, 4096).data == pattern(4096, 4096), "wrong bytes")
            must(cookie in c.pending, "test bug")
            os.unlink(gate)
            must(c.wait(cookie).data == pattern(0, 4096), "wrong bytes")
            good.disc()
            c.disc()


@test
def quick_reply_overtakes_a_slow_one(s):
    """Transmission: replies need not be sent in the same order as requests.

    client:  READs (block on the gate)  FLUSH, wrong requests: answered   gate opens   answered"""
    gate = os.path.join(tempfile.mkdtemp(dir=tmpdir()), "gate")
    with Fixture(["slow:4M:pattern,slow=" + gate]) as f:
        open(gate, "w").close()
        with f.open("slow") as c:
            reads = [c.cmd(CMD_READ, i * 512 * K, 100 * K) for i in range(2)]
            for quick, off in ((CMD_FLUSH, 0), (CMD_READ, 4 * M), (CMD_WRITE_ZEROES, 0)):
                cookie = c.cmd(quick, off, 0 if quick == CMD_FLUSH else 4096)
                must(c.wait_any()[0] == cookie, "the slow read came first")
            os.unlink(gate)
            for _ in reads:
                p = c.wait_any()[1]
                must(p.data == pattern(p.off, 100 * K), "wrong bytes")
            c.disc()


@test(house=True)
def many_slow_reads_do_not_hold_up_other_exports(s):
    """Issue 3: no connection waits for another's disk.  1280 reads stick, from 40 connections, so
    that every thread of a pool of any sensible size could be waiting for the one disk."""
    d = tempfile.mkdtemp(dir=tmpdir())
    gate = os.path.join(d, "gate")
    with Fixture(["pat:4M:pattern", "slow:4M:pattern,slow=" + gate]) as f:
        open(gate, "w").close()
        slow = [f.open("slow") for _ in range(40)]
        for c in slow:
            c.send(b"".join(c.pack(CMD_READ, i * 4096, 4096)[0] for i in range(32)))
        try:
            with f.open("pat", contexts=["base:allocation"], deadline=5) as good:
                must(good.read(4096, 4096).data == pattern(4096, 4096), "wrong bytes")
                must(not good.status(0, M).errors, "status failed")
                good.disc()
        finally:
            os.unlink(gate)
        for c in slow:
            for _ in range(32):
                _, p = c.wait_any()
                must(p.data == pattern(p.off, 4096), "wrong bytes")
            c.disc()


@test
def reads_that_memory_has_wait_for_no_disk(s):
    """Issue 3: reads are answered at once when the page cache has them, else by the pool."""
    gate = os.path.join(tempfile.mkdtemp(dir=tmpdir()), "gate")
    with Fixture(["vda:64M:half,now=1M+3M,slow=" + gate]) as f:
        e = f.exports["vda"]
        open(gate, "w").close()
        holders = [f.open("vda") for _ in range(12)]  # more than the pool has threads
        for c in holders:
            c.send(b"".join(c.pack(CMD_READ, 8 * M + k * M, M)[0] for k in range(4)))
        for mode in MODES:
            with f.open("vda", structured=mode) as c:
                for off, n in ((M, 1), (M, 2 * M), (2 * M + 77, M + 11), (4 * M - 1, 1)):
                    must(c.read(off, n).data == e.content(off, n), "wrong bytes")
                cold = c.pack(CMD_READ, 0, 2 * M)[0]  # its first half is not in memory
                warm = c.pack(CMD_READ, 2 * M, 4096)[0]
                c.send(cold + warm)
                os.unlink(gate)
                for _ in range(2):
                    _, p = c.wait_any()
                    must(p.data == e.content(p.off, p.len), "wrong bytes")
                open(gate, "w").close()
        os.unlink(gate)
        for c in holders:
            for _ in range(4):
                _, p = c.wait_any()
                must(p.data == e.content(p.off, p.len), "wrong bytes")


@test
def warm_read_behind_a_cold_one_does_not_wait_for_it(s):
    """Replies may come in any order: what memory has passes what a disk is asked for."""
    gate = os.path.join(tempfile.mkdtemp(dir=tmpdir()), "gate")
    with Fixture(["vda:64M:half,now=1M+3M,slow=" + gate]) as f:
        e = f.exports["vda"]
        with f.open("vda") as c:
            open(gate, "w").close()
            c.send(c.pack(CMD_READ, 8 * M, 4096)[0] + c.pack(CMD_READ, M, 4096)[0])
            _, p = c.wait_any()
            must(p.off == M and p.data == e.content(M, 4096), "the cold one came first")
            os.unlink(gate)
            _, p = c.wait_any()
            must(p.data == e.content(8 * M, 4096), "wrong bytes")


@test(plain=True)
def client_that_asks_for_much_that_memory_has_lets_others_have_their_turn(s):
    """Issue 3: no connection waits for another.  On one loop: 256 MiB of zeroes, read at once, against
    one small read that comes later."""
    with Fixture(["vda:64M:zero,now=0+64M"], ["--network-threads", "1"]) as f:
        with f.open("vda") as greedy, f.open("vda") as small:
            # Its pieces take turns too, so none of its replies is ready before nearly all are: until
            # then the other reads again and again.  A machine that sleeps may let us look too late,
            # so we may look again.
            for _ in range(5):
                greedy.send(b"".join(greedy.pack(CMD_READ, 0, 2 * M)[0] for _ in range(128)))
                between = 0
                while not struct.unpack("i", fcntl.ioctl(greedy.sock, termios.FIONREAD, bytes(4)))[0]:
                    must(small.read(5, 512).data == bytes(512), "wrong bytes")
                    between += 1
                for _ in range(128):
                    _, p = greedy.wait_any()
                    must(p.len == 2 * M and not p.errors, "a reply is missing")
                if between >= 8:
                    break
            must(between >= 8, "only %d were answered between the other's", between)


main()
