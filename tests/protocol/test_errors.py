#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Error values, malformed requests, an export that goes away."""
import random

from nbdtest import *  # noqa: F401,F403

MODES = (False, True)
BA = "base:allocation"


@test(generic=True)
def unknown_command_is_einval(s):
    """Error values: SHOULD return EINVAL if it receives an unknown command."""
    for mode in MODES:
        with s.open(structured=mode) as c:
            for cmd in (9, 10, 100, 255, 256, 0x7FFF, 0xFFFF):
                r = c.do(cmd, 0, 512)
                must(r.error == EINVAL, "command %d got %s", cmd, r.errors)
            must(not c.read(0, 512).errors, "the connection did not survive")
            c.disc()


@test
def every_unknown_command_is_einval(s):
    """Error values; NBD_CMD_RESIZE belongs to an extension."""
    with s.open("pat") as c:
        cmds = [8] + list(range(9, 2000)) + list(range(0x8000, 0x8100)) + list(range(0xFF00, 0x10000))
        c.post(b"".join(c.pack(k, 12345, 0xFFFFFFFF, k & 1)[0] for k in cmds))
        for _ in cmds:
            _, p = c.wait_any()
            must(p.error == EINVAL, "command %d got %s", p.cmd, p.errors)
        must(c.read(0, 512).data == pattern(0, 512), "the connection did not survive")
        c.disc()


@test
def unknown_command_has_no_payload(s):
    """Request message: data follows only a request of type NBD_CMD_WRITE."""
    with s.open("pat") as c:
        b1, k1 = c.pack(77, 0, 28)
        b2, k2 = c.pack(CMD_READ, 512, 512)
        c.send(b1 + b2)
        must(c.wait(k1).error == EINVAL, "no EINVAL")
        must(c.wait(k2).data == pattern(512, 512), "the next request was taken for a payload")
        c.disc()


@test
def error_comes_with_a_message_in_structured_mode(s):
    """Structured reply chunk message: SHOULD prefer a structured reply, with a string payload."""
    with s.open("pat", contexts=[BA]) as c:
        for r in (c.read(4 * M, 1), c.status(4 * M, 1), c.do(1234), c.read(0, 512, 1 << 9),
                  c.do(CMD_TRIM, 0, 512), c.do(CMD_CACHE, 4 * M, 1)):
            must(not r.simple, "command %d: a simple reply", r.cmd)
            must(r.message, "command %d: no message", r.cmd)
            must("\n" not in r.message, "command %d: message of several lines", r.cmd)
        c.disc()


@test
def eoverflow_and_enotsup_come_only_where_the_page_has_them(s):
    """Error values: SHOULD NOT return EOVERFLOW but for READ with structured replies, or lengths
    above the maximum payload; SHOULD NOT return ENOTSUP but for fast zeroes, which are not offered."""
    for mode in (dict(structured=False), dict(structured=True), dict(extended=True)):
        with s.open("huge", ["base:allocation"] if mode != dict(structured=False) else None,
                    **mode) as c:
            must(not c.tflags & SEND_FAST_ZERO, "fast zeroes are offered")
            long = c.read(0, 32 * M + 1)
            must(long.error == (EOVERFLOW if c.structured else EINVAL), "got %s", long.errors)
            for cmd in list(range(3, 12)) + [0xFFFF]:
                for length in (0, 512, 32 * M + 1, 0xFFFFFFFF):
                    for flags in (0, NO_HOLE, FAST_ZERO, FAST_ZERO | NO_HOLE, DF, REQ_ONE):
                        r = c.do(cmd, 8192, length, flags)
                        must(r.error in (0, EPERM, EINVAL), "command %d got %s", cmd, r.errors)
            c.disc()


@test(generic=True)
def request_without_its_magic_closes(s):
    """Terminating the transmission phase: MAY disconnect on a violation; nothing else is sound."""
    for mode in MODES:
        for magic in (0, SIMPLE_MAGIC, STRUCTURED_MAGIC, 0x12560953, 0x25609514, 0xFFFFFFFF):
            with s.open(structured=mode) as c:
                b, _ = c.pack(CMD_READ, 0, 512, magic=magic)
                c.send(b)
                c.expect_close(allow=128)


@test
def request_after_a_bad_magic_is_not_answered(s):
    """Terminating the transmission phase."""
    with s.open("pat") as c:
        bad, k1 = c.pack(CMD_READ, 0, 512, magic=REQUEST_MAGIC + 256)
        good, k2 = c.pack(CMD_READ, 0, 512)
        c.send(bad + good * 3)
        c.expect_close(allow=128)


@test
def replies_before_a_bad_magic_are_sound(s):
    """Transmission: what was asked rightly may be answered or cut off, never garbled."""
    for mode in MODES:
        with s.open("vda", structured=mode) as c:
            blob = b"".join(c.pack(CMD_READ, i * 65536, 65536)[0] for i in range(50))
            c.post(blob + b"\0" * 28)
            try:
                for _ in range(50):
                    _, p = c.wait_any()
                    must(p.data == s.exports["vda"].content(p.off, p.len), "wrong bytes")
            except Closed:
                continue
            c.expect_close()


@test
def random_requests_get_what_the_page_says(s):
    """Error values, READ, BLOCK_STATUS, WRITE: 3000 requests, right and wrong, many in flight."""
    seed = int(os.environ.get("NBD_TEST_SEED", "20261121"))
    rng = random.Random(seed)
    e = s.exports["vda"]
    dirty = e.dirty_context
    edge = [0, 1, 511, 512, 65535, 65536, e.size // 2 - 1, e.size // 2, e.size - 1, e.size, e.size + 1,
            (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
    for mode in MODES:
        with s.open("vda", structured=mode, contexts=[BA, dirty] if mode else None) as c:
            known = {CMD_READ: DF if mode else 0, CMD_BLOCK_STATUS: REQ_ONE, CMD_CACHE: 0}
            fua = FUA if c.tflags & SEND_FUA else 0

            def judge(p):
                beyond = p.off + p.len > e.size
                if p.cmd in (CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES):
                    must(p.error in (EPERM, EINVAL, ENOSPC), "seed %d: %s got %s", seed, vars(p), p.errors)
                elif p.cmd not in known or p.flags & ~(known[p.cmd] | fua) or beyond or \
                        (p.cmd == CMD_BLOCK_STATUS and not mode):
                    must(p.error == EINVAL, "seed %d: command %d [%d, +%d) flags %#x got %s", seed, p.cmd,
                         p.off, p.len, p.flags, p.errors)
                elif p.cmd == CMD_READ:
                    if p.len > 65536 and p.flags & DF and p.error == EOVERFLOW:
                        return
                    must(not p.errors and p.data == e.content(p.off, p.len),
                         "seed %d: READ [%d, +%d) flags %#x: %s", seed, p.off, p.len, p.flags, p.errors)
                elif p.cmd == CMD_BLOCK_STATUS:
                    must(not p.errors, "seed %d: status %s", seed, p.errors)
                    got = p.status[c.context_id(dirty)]
                    have = sum(n for n, _ in got)
                    must(merge(got) == e.dirty(p.off, have), "seed %d: status [%d, +%d)", seed, p.off, p.len)
                    must(have == p.len or p.flags & REQ_ONE, "seed %d: short status", seed)
                else:
                    must(not p.errors, "seed %d: CACHE %s", seed, p.errors)

            for _ in range(30):
                blob = b""
                for _ in range(50):
                    cmd = rng.choice([CMD_READ] * 5 + [CMD_BLOCK_STATUS] * 3 +
                                     [CMD_WRITE, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, 9, 99])
                    flags = rng.choice([0] * 6 + [DF, REQ_ONE, FUA, 1 << rng.randrange(16)])
                    off = rng.choice([rng.choice(edge), rng.randrange(e.size), rng.randrange(e.size)])
                    n = rng.choice([1, 512, 4096, 65536, rng.randrange(1, 200000)])
                    blob += c.pack(cmd, off, n, flags)[0]
                    if cmd == CMD_WRITE:
                        blob += b"\x25\x60\x95\x13" * (n // 4) + b"%" * (n % 4)
                c.post(blob)
                for _ in range(50):
                    judge(c.wait_any()[1])
            c.disc()


@test
def withdrawn_export_disconnects_its_clients(s):
    """server/nbd/export.h: withdrawn; fixture: SIGUSR1 withdraws the first export."""
    with Fixture(["gone:4M:pattern,dirty=d", "stays:4M:pattern"], name="stays") as f:
        idle = f.open("gone")
        simple = f.open("gone", structured=False)
        other = f.open("stays")
        f.proc.send_signal(signal.SIGUSR1)
        idle.expect_close()
        simple.expect_close()
        must(other.read(0, 512).data == pattern(0, 512), "the other export's client suffered")
        other.disc()


@test
def withdrawn_export_is_unknown(s):
    """NBD_REP_ERR_UNKNOWN: the requested export is not available."""
    with Fixture(["gone:4M:pattern,dirty=d", "stays:4M:pattern"], name="stays") as f:
        watch = f.open("gone")
        early = f.hello()
        early.negotiate_structured()
        early.set_meta("gone", [BA])
        must(early.info("gone").ok, "INFO failed")
        f.proc.send_signal(signal.SIGUSR1)
        watch.expect_close()
        for c in (early, f.hello()):
            with c:
                must(c.info("gone").final == ERR_UNKNOWN, "INFO finds it")
                must(c.info("gone", opt=OPT_GO).final == ERR_UNKNOWN, "GO finds it")
                must([r.name for r in c.option(OPT_LIST)[:-1]] == ["stays"], "LIST shows it")
                if c.structured:
                    must(c.set_meta("gone", [BA])[1] == ERR_UNKNOWN, "SET_META finds it")
                c.abort()
        with f.hello() as c:
            c.send_opt(OPT_EXPORT_NAME, b"gone")
            c.expect_close()


@test
def export_withdrawn_under_load_closes_cleanly(s):
    """Terminating the transmission phase: whole replies, then the end; nothing garbled."""
    with Fixture(["gone:64M:pattern,dirty=d", "stays:4M:pattern"], name="stays") as f:
        conns = [f.open("gone", contexts=[BA, "qemu:dirty-bitmap:d"]) for _ in range(8)]
        for c in conns:
            c.send(b"".join(c.pack(CMD_READ, i * 300000, 300000)[0]
                            + c.pack(CMD_BLOCK_STATUS, 0, 64 * M)[0] for i in range(100)))
        conns[0].wait_any()  # the others' replies fill their sockets
        f.proc.send_signal(signal.SIGUSR1)
        for c in conns:
            with c:
                try:
                    while c.pending:
                        _, p = c.wait_any()  # judged by nbdwire; a cut reply ends in Closed
                        if p.cmd == CMD_READ and not p.errors:
                            must(p.data == pattern(p.off, p.len), "wrong bytes")
                except Closed:
                    continue
                c.expect_close()
        f.check_serves()


@test
def export_withdrawn_with_a_read_in_flight_closes(s):
    """client: READ (blocks on the gate) | SIGUSR1 | gate opens | the connection ends."""
    gate = os.path.join(tempfile.mkdtemp(dir=tmpdir()), "gate")
    with Fixture(["gone:4M:pattern,slow=" + gate, "stays:4M:pattern"], name="stays") as f:
        idle = f.open("gone")
        with f.open("gone") as c:
            open(gate, "w").close()
            c.cmd(CMD_READ, 0, 4096)
            f.proc.send_signal(signal.SIGUSR1)
            idle.expect_close()
            os.unlink(gate)
            try:
                c.wait_any()
            except Closed:
                pass
            c.pending.clear()
            c.expect_close()


main()
