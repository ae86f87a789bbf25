#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""READ of what cannot be read."""
from nbdtest import *  # noqa: F401,F403

MODES = (False, True)


@test
def read_error_is_told_with_message_and_offset(s):
    """NBD_CMD_READ: MUST include an error chunk; the fixture's reads fail with EIO, "lost"."""
    with s.open("bad") as c:
        for off, n in ((65536, 4096), (65536 + 512, 512), (65536 + 4095, 1), (0, M), (61440, 8192)):
            r = c.read(off, n)
            must(r.error == EIO, "[%d, +%d) got %s", off, n, r.errors)
            must("lost" in r.message, "message %r", r.message)
        must(c.read(0, 65536).data == pattern(0, 65536), "before the lost range")
        must(c.read(69632, 4096).data == pattern(69632, 4096), "behind the lost range")
        c.disc()


@test
def content_beside_a_read_error_is_right_before_its_offset(s):
    """NBD_CMD_READ: data with no subsequent error offset is valid, else up to that offset."""
    with s.open("bad") as c:
        for off, n in ((0, M), (0, 65537), (60000, 100000), (65536 + 4095, 300000)):
            r = c.read(off, n)
            must(r.errors, "no error")
            offs = [o for _, _, o in r.errors]
            must(None in offs or any(65536 - 256 * K < o < 65536 + 4096 for o in offs),
                 "error at %s", offs)
            for start, data in r.parts:
                good = len(data)
                for o in offs:
                    if o is None:
                        good = 0
                    elif start <= o < start + len(data):
                        good = min(good, o - start)
                must(data[:good] == pattern(start, good), "wrong bytes in the chunk at %d", start)
        c.disc()


@test
def read_error_has_the_offset_of_the_first_byte_that_failed(s):
    """NBD_REPLY_TYPE_ERROR_OFFSET: to that offset a request had success; what is in front of it is
    delivered, though it was read in one piece with what failed (the fixture leaves 0xff there)."""
    ranges = ((65536, 4096), (300000, 1), (524288, 10), (700001, 3))
    spec = ":1M:%s," + ",".join("errors=%d+%d" % r for r in ranges)
    with Fixture(["p" + spec % "pattern", "h" + spec % "striped"]) as f:
        for name in f.exports:
            e = f.exports[name]
            for mode in (dict(structured=True), dict(extended=True)):
                with f.open(name, **mode) as c:
                    for off, n in ((0, M), (65536, 1), (65535, 2), (65537, 9), (69632, M - 69632),
                                   (300000, 1), (299999, 100), (300001, 300000), (262144, 300000),
                                   (4096 * 70 + 1, 400000), (524298, 200000), (65530, 100)):
                        first = min(max(b, off) for b, l in ranges if b < off + n and off < b + l)
                        for flags in (0, DF):
                            r = c.read(off, n, flags)
                            must([x[::2] for x in r.errors] == [(EIO, first)],
                                 "[%d, +%d) got %s, not %d", off, n, r.errors, first)
                            got = sorted(r.parts)
                            for at, data in got:
                                must(data == e.content(at, len(data)), "wrong bytes at %d", at)
                            front = b"".join(d for at, d in got if at < first)
                            must(flags or front == e.content(off, first - off),
                                 "[%d, +%d): %d bytes in front of %d", off, n, len(front), first)
                    c.disc()


@test
def read_error_with_df_is_one_reply(s):
    """NBD_CMD_READ: with DF at most one content chunk, and error chunks."""
    with s.open("bad") as c:
        r = c.read(32768, 65536, DF)
        must(r.error == EIO, "got %s", r.errors)
        must(c.read(0, 4096, DF).data == pattern(0, 4096), "wrong bytes")
        c.disc()


@test
def read_error_in_simple_mode_sends_no_payload(s):
    """NBD_CMD_READ, simple replies: MUST NOT send any payload for this request."""
    with s.open("bad", structured=False) as c:
        for off, n in ((65536, 4096), (0, M), (65536 + 100, 1)):
            r = c.read(off, n)
            must(r.error == EIO, "got %s", r.errors)
        must(c.read(0, 4096).data == pattern(0, 4096), "the connection did not survive")
        c.disc()


@test
def read_error_does_not_touch_others_in_flight(s):
    """Transmission: a request's error is its own."""
    for mode in MODES:
        with s.open("bad", structured=mode) as c:
            blob = b"".join(c.pack(CMD_READ, o, 4096)[0] for o in range(0, 256 * K, 4096))
            c.send(blob)
            for _ in range(64):
                _, p = c.wait_any()
                if p.off == 65536:
                    must(p.error == EIO, "no error")
                else:
                    must(p.data == pattern(p.off, 4096), "wrong bytes at %d", p.off)
            c.disc()


main()
