#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Commands that write are refused, and the connection goes on; FLUSH, CACHE, DISC."""
import threading

from nbdtest import *  # noqa: F401,F403

MODES = (False, True)


def alive(c):
    must(c.read(0, 512).data == pattern(0, 512), "wrong bytes after the refusal")


@test(generic=True)
def write_is_eperm_and_its_payload_is_drained(s):
    """Error values: SHOULD return EPERM for a write request on a read-only export."""
    for mode in MODES:
        with s.open(structured=mode) as c:
            if not c.tflags & READ_ONLY:
                raise Skip("the target can be written")
            for n in (512, 4096, 65536):
                r = c.do(CMD_WRITE, 0, n, payload=bytes(n))
                must(r.error == EPERM, "got %s", r.errors)
            must(not c.read(0, 512).errors, "the connection did not survive")
            c.disc()


@test
def write_of_any_length_is_drained(s):
    """NBD_CMD_WRITE: the payload belongs to the request, refused or not."""
    for mode in MODES:
        with s.open("pat", structured=mode) as c:
            for n in (1, 2, 27, 28, 29, 511, 4095, 65537, M - 1, 3 * M + 5):
                r = c.do(CMD_WRITE, 1, n, payload=b"\xaa" * n)
                must(r.error == EPERM, "%d bytes got %s", n, r.errors)
                alive(c)
            c.disc()


@test
def write_of_32_mib_is_drained(s):
    """Size constraints: a payload of up to 2^25 bytes SHOULD NOT be taken for an attack."""
    for mode in MODES:
        with s.open("vda", structured=mode) as c:
            r = c.do(CMD_WRITE, 0, 32 * M, payload=bytes(32 * M))
            must(r.error == EPERM, "got %s", r.errors)
            alive(c)
            c.disc()


@test
def write_payload_is_never_taken_for_requests(s):
    """NBD_CMD_WRITE: length bytes of data follow the header."""
    for mode in MODES:
        with s.open("pat", structured=mode) as c:
            decoy = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_READ, 666, 0, 512) * 1000
            for cut in range(0, 28, 3):
                payload = decoy[cut:]
                r = c.do(CMD_WRITE, 0, len(payload), payload=payload)
                must(r.error == EPERM, "got %s", r.errors)
            alive(c)
            c.disc()  # an answer to a decoy would come before the close


@test
def write_payload_may_come_in_pieces(s):
    """NBD_CMD_WRITE: a stream has no message borders."""
    with s.open("pat") as c:
        b, cookie = c.pack(CMD_WRITE, 0, 5000)
        nxt, k2 = c.pack(CMD_READ, 0, 512)
        blob = b + bytes(5000) + nxt
        for i in range(0, len(blob), 97):
            c.send(blob[i:i + 97])
        must(c.wait(cookie).error == EPERM, "no EPERM")
        must(c.wait(k2).data == pattern(0, 512), "wrong bytes")
        c.disc()


@test
def writes_and_reads_in_one_segment_are_all_answered(s):
    """Transmission: each request has one reply."""
    for mode in MODES:
        with s.open("pat", structured=mode) as c:
            blob = b""
            for i in range(50):
                blob += c.pack(CMD_WRITE, 0, 1000 + i)[0] + b"\x25\x60\x95\x13" * 250 + bytes(i)
                blob += c.pack(CMD_READ, i * 512, 512)[0]
            c.post(blob)
            for _ in range(100):
                _, p = c.wait_any()
                if p.cmd == CMD_WRITE:
                    must(p.error == EPERM, "got %s", p.errors)
                else:
                    must(p.data == pattern(p.off, 512), "wrong bytes")
            c.disc()


@test
def write_beyond_the_end_is_drained_and_refused(s):
    """Error values: ENOSPC beyond the size, EPERM on a read-only export."""
    with s.open("pat") as c:
        for off, n in ((4 * M, 512), (4 * M - 1, 2), ((1 << 64) - 1, 512), (1 << 63, 100000)):
            r = c.do(CMD_WRITE, off, n, payload=bytes(n))
            must(r.error in (EPERM, ENOSPC, EINVAL), "got %s", r.errors)
            alive(c)
        c.disc()


@test
def write_with_any_flag_is_drained_and_refused(s):
    """NBD_CMD_WRITE: a bad flag does not change where the next request begins."""
    with s.open("pat") as c:
        for flags in [1 << b for b in range(16)] + [0xFFFF & ~PAYLOAD_LEN]:
            r = c.do(CMD_WRITE, 0, 777, flags, payload=bytes(777))
            must(r.error in (EPERM, EINVAL), "flags %#x got %s", flags, r.errors)
            alive(c)
        c.disc()


@test
def write_of_length_0_does_not_disconnect(s):
    """NBD_CMD_WRITE: unspecified, although the server SHOULD NOT disconnect."""
    with s.open("pat") as c:
        c.do(CMD_WRITE, 0, 0)
        c.do(CMD_WRITE, 4 * M, 0)
        alive(c)
        c.disc()


@test
def nothing_is_written(s):
    """Transmission flags: READ_ONLY: the server MUST error subsequent write operations."""
    with s.open("pat") as c:
        c.do(CMD_WRITE, 4096, 4096, payload=b"\xee" * 4096)
        c.do(CMD_TRIM, 4096, 4096)
        c.do(CMD_WRITE_ZEROES, 4096, 4096, NO_HOLE)
        must(c.read(0, 16384).data == pattern(0, 16384), "the export changed")
        c.disc()


@test(generic=True)
def trim_and_write_zeroes_are_refused(s):
    """Error values: EPERM for trim; NBD_CMD_WRITE_ZEROES: SHOULD return EPERM when read-only."""
    for mode in MODES:
        with s.open(structured=mode) as c:
            if not c.tflags & READ_ONLY:
                raise Skip("the target can be written")
            for cmd in (CMD_TRIM, CMD_WRITE_ZEROES):
                r = c.do(cmd, 0, 512)
                must(r.error in (EPERM, EINVAL), "command %d got %s", cmd, r.errors)
            must(not c.read(0, 512).errors, "the connection did not survive")
            c.disc()


@test
def trim_and_write_zeroes_are_eperm(s):
    """Error values: EPERM for a write or trim request on a read-only export."""
    for mode in MODES:
        with s.open("pat", structured=mode) as c:
            for cmd in (CMD_TRIM, CMD_WRITE_ZEROES):
                for off, n, flags in ((0, 4096, 0), (0, 4 * M, 0), (0, 512, FUA if c.tflags & SEND_FUA else 0)):
                    r = c.do(cmd, off, n, flags)
                    must(r.error == EPERM, "command %d got %s", cmd, r.errors)
            alive(c)
            c.disc()


@test
def large_effect_lengths_do_not_disconnect(s):
    """Size constraints: without a payload the server SHOULD NOT disconnect."""
    with s.open("huge") as c:
        for cmd in (CMD_TRIM, CMD_WRITE_ZEROES):
            r = c.do(cmd, 0, 0xFFFFFFFF)
            must(r.error in (EPERM, EOVERFLOW, EINVAL), "command %d got %s", cmd, r.errors)
        r = c.do(CMD_CACHE, 0, 0xFFFFFFFF)
        must(r.error in (0, EOVERFLOW, EINVAL), "CACHE got %s", r.errors)
        c.disc()


@test
def write_of_huge_length_drains_or_closes(s):
    """Size constraints: MAY disconnect if a payload is large enough to be an attack.

    The client claims 2^32-1 bytes and streams 64 MiB of them: either all is taken, or the server
    closes; it never answers with anything but an error, and never grows."""
    before = s.rss()
    for n in (0xFFFFFFFF, 0x80000000, 33 * M, 1 << 30):
        with s.open("pat") as c:
            b, _ = c.pack(CMD_WRITE, 0, n)
            try:
                c.send(b)
                for _ in range(64):
                    c.send(bytes(M))
                if n == 33 * M:
                    break
            except Closed:
                pass
            must(s.rss() < before + 64 * M, "the server grew by %d MiB", (s.rss() - before) >> 20)


@test
def write_error_comes_with_a_message_in_structured_mode(s):
    """Structured reply chunk message: SHOULD prefer sending errors via a structured reply."""
    with s.open("pat") as c:
        for r in (c.do(CMD_WRITE, 0, 512, payload=bytes(512)), c.do(CMD_TRIM, 0, 512)):
            must(not r.simple, "simple reply")
        c.disc()


@test(generic=True)
def flush_follows_its_flag(s):
    """NBD_CMD_FLUSH: allowed if SEND_FLUSH is set."""
    for mode in MODES:
        with s.open(structured=mode) as c:
            r = c.do(CMD_FLUSH)
            must(not r.errors or not c.tflags & SEND_FLUSH, "got %s", r.errors)
            must(not c.read(0, 512).errors, "the connection did not survive")
            c.disc()


@test
def flush_with_offset_or_length_harms_nobody(s):
    """NBD_CMD_FLUSH: length and offset are reserved, MUST be set to zero by the client."""
    with s.open("pat") as c:
        for off, n in ((1, 0), (0, 1), (1 << 63, 0xFFFFFFFF)):
            r = c.do(CMD_FLUSH, off, n)
            must(r.error in (0, EINVAL), "got %s", r.errors)
            alive(c)
        c.disc()


@test(generic=True)
def cache_follows_its_flag(s):
    """NBD_CMD_CACHE: with SEND_CACHE it may do nothing, but is answered."""
    for mode in MODES:
        with s.open(structured=mode) as c:
            r = c.do(CMD_CACHE, 0, 512)
            must(not r.errors or not c.tflags & SEND_CACHE or r.error == EINVAL, "got %s", r.errors)
            must(not c.read(0, 512).errors, "the connection did not survive")
            c.disc()


@test(house=True)
def cache_within_the_export_succeeds(s):
    """NBD_CMD_CACHE."""
    for mode in MODES:
        with s.open("pat", structured=mode) as c:
            for off, n in ((0, 4 * M), (1, 1), (4 * M - 1, 1), (65536, 99999)):
                must(not c.do(CMD_CACHE, off, n).errors, "failed")
            alive(c)
            c.disc()


@test
def cache_of_4_gib_is_done_in_pieces(s):
    """NBD_CMD_CACHE; server/nbd/export.h: a hint is no longer than VARVE_EXPORT_CACHE_MAX, which the
    fixture asserts.  Reads get their turn meanwhile."""
    with s.open("huge") as c:
        for off, length in ((0, 0xFFFFFFFF), (4 * G - 4096, 4 * G - 8192), (12345, 3 * G)):
            cookie = c.cmd(CMD_CACHE, off, length)
            must(c.read(0, 512).data == bytes(512), "not zeroes")
            must(not c.wait(cookie).errors, "cache failed")
        c.disc()


@test
def cache_beyond_the_end_is_einval(s):
    """Size constraints: SHOULD report EINVAL if the request would exceed the export size."""
    with s.open("pat") as c:
        for off, n in ((4 * M, 1), (4 * M - 1, 2), ((1 << 64) - 1, 2), (0, 0xFFFFFFFF)):
            r = c.do(CMD_CACHE, off, n)
            must(r.error == EINVAL, "[%d, +%d) got %s", off, n, r.errors)
        c.disc()


@test
def cache_rejects_flags_it_does_not_know(s):
    """NBD_CMD_CACHE: if advertised, the server MUST reject any command flags it does not recognize."""
    with s.open("pat") as c:
        if not c.tflags & SEND_CACHE:
            raise Skip("no SEND_CACHE")
        for bit in (1, 2, 3, 4, 5, 6, 11, 15):
            r = c.do(CMD_CACHE, 0, 512, 1 << bit)
            must(r.error == EINVAL, "flag bit %d got %s", bit, r.errors)
        alive(c)
        c.disc()


@test(generic=True)
def disc_closes_without_a_reply(s):
    """NBD_CMD_DISC: there is no reply; the server MUST close."""
    for mode in MODES:
        with s.open(structured=mode) as c:
            c.disc()


@test
def disc_right_after_go_closes(s):
    """NBD_CMD_DISC."""
    for _ in range(20):
        with s.open("pat") as c:
            c.disc()


@test
def disc_handles_outstanding_requests_first(s):
    """NBD_CMD_DISC: the server MUST handle all outstanding requests."""
    for mode in MODES:
        with s.open("vda", structured=mode) as c:
            e = s.exports["vda"]
            blob = b"".join(c.pack(CMD_READ, i * 100003, 200000)[0] for i in range(20))
            c.send(blob + c.pack(CMD_DISC)[0])
            for _ in range(20):
                _, p = c.wait_any()
                must(p.data == e.content(p.off, p.len), "wrong bytes")
            c.expect_close()


@test
def disc_waits_for_a_slow_read(s):
    """NBD_CMD_DISC: the server MUST handle all outstanding requests.

    client: READ (blocks on the gate), DISC ... | other thread: opens the gate | server: reply, close"""
    gate = os.path.join(tempfile.mkdtemp(dir=tmpdir()), "gate")
    with Fixture(["pat:4M:pattern,slow=" + gate]) as f:
        with f.open("pat") as c:
            open(gate, "w").close()
            cookie = c.cmd(CMD_READ, 0, 4096)
            c.send(c.pack(CMD_DISC)[0])
            t = threading.Timer(0.2, os.unlink, [gate])
            t.start()
            must(c.wait(cookie).data == pattern(0, 4096), "wrong bytes")
            c.expect_close()
            t.join()


@test
def disc_with_offset_and_length_closes(s):
    """NBD_CMD_DISC: offset and length MUST be zero; whatever they are, it is the end."""
    with s.open("pat") as c:
        c.send(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_DISC, 7, 1 << 63, 512))
        c.expect_close(allow=64)


@test
def nothing_after_disc_is_answered(s):
    """NBD_CMD_DISC: the client MUST NOT send anything after it."""
    with s.open("pat") as c:
        b, _ = c.pack(CMD_READ, 0, 512)
        c.send(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_DISC, 0, 0, 0) + b * 100)
        c.expect_close()


main()
