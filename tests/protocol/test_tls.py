#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""STARTTLS, certificates, pre-shared keys, and what can be done to them.  (A long list, one rule a
test.)"""
import random
import ssl
import warnings

from nbdtest import *  # noqa: F401,F403
from tlslib import *  # noqa: F401,F403

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
BA = "base:allocation"
K1, K2 = "11" * 32, "22" * 32


# --- STARTTLS -------------------------------------------------------------------------------------

@test
def starttls_when_off_is_a_policy(s):
    """NOTLS mode: MUST respond with POLICY (or UNSUP)."""
    with s.hello() as c:
        must(c.final(OPT_STARTTLS) == ERR_POLICY, "not POLICY")
        c.go("vda")
        c.disc()


@test
def everything_works_under_tls_1_2_and_1_3(s):
    """TLS versions: MUST support 1.2, SHOULD support later ones."""
    with TlsFixture() as f:
        for v in (V12, V13):
            for tcp in (False, True):
                with tls_open(f, contexts=[BA], ctx=context(lo=v, hi=v), tcp=tcp) as c:
                    e = f.exports["vda"]
                    must(c.read(4 * M - 5000, 9999).data == e.content(4 * M - 5000, 9999), "bytes")
                    must(c.read(0, 8 * M).data == e.content(0, 8 * M), "wrong bytes of a long read")
                    (ext,) = c.status(0, 8 * M).status.values()
                    must(ext == e.allocation(0, 8 * M), "wrong map")
                    c.disc()


@test
def tls_1_1_is_refused(s):
    """TLS versions: older ones SHOULD NOT be supported by default."""
    with TlsFixture() as f:
        ctx = context()
        ctx.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            ctx.minimum_version = ctx.maximum_version = ssl.TLSVersion.TLSv1_1
        refused(f, ctx)


@test
def simple_replies_of_any_length_pass_tls(s):
    """Transmission without structured replies: whole replies of many records."""
    with TlsFixture(exports=["big:64M:pattern"]) as f, upgrade(f.hello()) as c:
        c.go("big")
        for off, n in ((0, 1), (1, 16383), (3, 16384), (5, 16385), (7, 32 * M - 1), (0, 32 * M)):
            must(c.read(off, n).data == pattern(off, n), "wrong bytes at %d+%d", off, n)
        c.disc()


@test
def starttls_forgets_what_was_negotiated(s):
    """NBD_OPT_STARTTLS: the server MUST NOT preserve any negotiation state."""
    with TlsFixture("on") as f, f.hello() as c:
        c.negotiate_structured()
        c.set_meta("vda", [BA])
        upgrade(c)
        must(c.final(OPT_SET_META, c.meta_data("vda", [BA])) == ERR_INVALID,
             "structured replies survived")
        c.go("vda")
        must(not c.tflags & SEND_DF, "structured replies survived")
        must(c.read(0, 512).simple, "a structured reply")
        must(c.do(CMD_BLOCK_STATUS, 0, 512).error == EINVAL, "contexts survived")
        c.disc()
    with TlsFixture("on") as f, f.hello() as c:
        c.negotiate_extended()
        upgrade(c)
        c.structured = c.extended = False
        c.go("vda")
        must(c.read(0, 512).simple, "extended headers survived")
        c.disc()


@test
def starttls_may_come_after_any_options_and_forgets_them_all(s):
    """Client-side requirements: the client MAY send STARTTLS at any time; NBD_OPT_STARTTLS: nothing
    of what was negotiated before is kept, whatever it was."""
    def failing_go(c):
        must(c.info("nope", [], OPT_GO).final == ERR_UNKNOWN, "GO")

    steps = [lambda c: c.option(OPT_LIST), lambda c: c.info("vda", [INFO_BLOCK_SIZE]),
             lambda c: c.list_meta("vda"), lambda c: c.final(77, b"?"), failing_go,
             lambda c: c.negotiate_structured(), lambda c: c.set_meta("vda", [BA]),
             lambda c: c.negotiate_extended(), lambda c: c.set_meta("vda", [BA, "qemu:dirty-bitmap:backup-vda"]),
             lambda c: c.final(OPT_STARTTLS, b"x")]
    with TlsFixture("on") as f:
        for n in range(len(steps) + 1):
            for again in (False, True):
                with f.hello() as c:
                    for step in steps[:n]:
                        step(c)
                    upgrade(c)
                    c.extended = False
                    flags = c.info("vda").flags
                    must(not flags & (SEND_DF | BLOCK_STATUS_PAYLOAD), "flags %#x", flags)
                    must(c.final(OPT_SET_META, c.meta_data("vda", [BA])) == ERR_INVALID, "SET")
                    if again:
                        c.negotiate_structured()
                        c.set_meta("vda", [BA])
                    c.go("vda")
                    must(c.read(0, 512).simple != again, "replies are not as negotiated under TLS")
                    r = c.status(0, 512)
                    must(len(r.status) == 1 if again else r.error == EINVAL, "status %s", r.errors)
                    c.disc()


@test
def second_starttls_is_invalid(s):
    """FORCEDTLS, SELECTIVETLS: it MUST reply with INVALID."""
    for mode in ("on", "require"):
        with TlsFixture(mode) as f, upgrade(f.hello()) as c:
            must(c.final(OPT_STARTTLS) == ERR_INVALID, "not INVALID")
            must(c.final(OPT_STARTTLS, b"x") == ERR_INVALID, "not INVALID")
            c.go("vda")
            c.disc()


@test
def starttls_with_data_is_invalid_and_tls_can_still_begin(s):
    """NBD_OPT_STARTTLS: for example INVALID if the client included data."""
    with TlsFixture() as f, f.hello() as c:
        for data in (b"\0", b"please", bytes(1000)):
            must(c.final(OPT_STARTTLS, data) == ERR_INVALID, "not INVALID")
        upgrade(c).go("vda")
        c.disc()


@test
def on_serves_in_plain_too(s):
    """SELECTIVETLS without TLS-only exports: TLS_REQD never comes."""
    with TlsFixture("on") as f, f.hello() as c:
        for opt in (OPT_LIST, OPT_INFO, OPT_LIST_META, OPT_SET_META, 77):
            must(c.option(opt)[-1].type != ERR_TLS_REQD, "option %d", opt)
        c.go("vda")
        must(c.read(0, 512).data == f.exports["vda"].content(0, 512), "wrong bytes")
        c.disc()


@test
def require_refuses_every_option_before_tls(s):
    """FORCEDTLS: any other option, unsupported ones too, MUST get TLS_REQD."""
    with TlsFixture() as f, f.hello() as c:
        info = c.info_data("vda")
        for opt in (OPT_LIST, OPT_PEEK_EXPORT, OPT_INFO, OPT_GO, OPT_STRUCTURED, OPT_LIST_META,
                    OPT_SET_META, OPT_EXTENDED, 77, 0xFFFFFFFF):
            for data in (b"", info, b"x" * 1000, b"x" * 100000):
                t = c.final(opt, data)
                must(t == ERR_TLS_REQD, "option %d of %d got %s", opt, len(data), rep_name(t))
        upgrade(c)
        for opt in (OPT_LIST, OPT_PEEK_EXPORT, OPT_INFO, OPT_STRUCTURED, OPT_EXTENDED, 77):
            must(c.option(opt)[-1].type != ERR_TLS_REQD, "TLS_REQD under TLS")
        c.go("vda")
        c.disc()


@test
def require_acks_abort_in_plain(s):
    """FORCEDTLS: ABORT is the other option that works."""
    with TlsFixture() as f, f.hello() as c:
        c.abort()


@test
def require_closes_at_export_name(s):
    """FORCEDTLS: as this request cannot error, it MUST terminate the session."""
    with TlsFixture() as f:
        for name in (b"vda", b"nope", b""):
            with f.hello() as c:
                c.send_opt(OPT_EXPORT_NAME, name)
                c.expect_close()


@test
def export_name_works_under_tls(s):
    """NBD_OPT_EXPORT_NAME after STARTTLS."""
    with TlsFixture() as f:
        for flags in (C_FIXED_NEWSTYLE, C_FIXED_NEWSTYLE | C_NO_ZEROES):
            with f.connect() as c:
                c.hello(flags)
                upgrade(c)
                c.export_name("vda")
                must(c.read(0, 512).data == f.exports["vda"].content(0, 512), "wrong bytes")
                c.disc()


@test
def without_fixed_newstyle_there_is_no_tls_and_no_tls_reqd(s):
    """TLS support: MUST operate in NOTLS mode unless both sides set FIXED_NEWSTYLE."""
    for mode in ("on", "require"):
        with TlsFixture(mode) as f:
            for opt in (OPT_STARTTLS, OPT_LIST):
                with f.connect() as c:
                    c.hello(0)
                    try:
                        t = c.option(opt)[-1].type
                    except Closed:
                        must(mode == "require" and opt == OPT_LIST, "closed")
                        continue
                    must(t != ERR_TLS_REQD, "TLS_REQD")
                    must(opt != OPT_STARTTLS or t == ERR_POLICY, "STARTTLS got %s", rep_name(t))
            with f.connect() as c:
                c.hello(0)
                c.send_opt(OPT_EXPORT_NAME, b"vda")
                if mode == "require":
                    c.expect_close()


# --- plain bytes behind STARTTLS ------------------------------------------------------------------

def read_all(c):
    """Bytes from the socket until the server closes."""
    got = b""
    while True:
        try:
            d = c.sock.recv(1 << 20)
        except ConnectionResetError:
            return got
        if not d:
            return got
        got += d


def behind():
    """What an attacker would put there: options, requests, half of them, a second STARTTLS."""
    go = Conn.info_data("pat")
    return [struct.pack(">QII", IHAVEOPT, OPT_GO, len(go)) + go,
            struct.pack(">QII", IHAVEOPT, OPT_LIST, 0), b"\0",
            struct.pack(">QII", IHAVEOPT, OPT_STRUCTURED, 0),
            struct.pack(">QII", IHAVEOPT, OPT_STARTTLS, 0),
            struct.pack(">QII", IHAVEOPT, OPT_ABORT, 0), b"\x16\x03\x01\x02\x00\x01"]


@test(house=True)
def bytes_in_one_segment_with_starttls_close(s):
    """CVE class "STARTTLS injection": what came in plain must never be taken as come under TLS."""
    for mode in ("on", "require"):
        with TlsFixture(mode) as f:
            for junk in behind():
                with f.hello() as c:
                    c.send(struct.pack(">QII", IHAVEOPT, OPT_STARTTLS, 0) + junk)
                    c.expect_close(allow=20)
                    must(len(c.buf) == 0, "answered %r", bytes(c.buf))


@test(house=True)
def plain_bytes_after_the_ack_are_no_options(s):
    """The same, a moment later: they are no TLS record, and so end the connection."""
    with TlsFixture() as f:
        for junk in behind()[:-1]:
            with f.hello() as c:
                ask_starttls(c)
                c.send(junk * (1 if len(junk) > 4 else 100))
                c.half_close()
                got = read_all(c)
                must(struct.pack(">Q", REP_MAGIC) not in got, "answered in plain: %r", got)
                must(len(got) <= 7 or got[0] == 21, "more than an alert came: %r", got[:80])


@test(house=True)
def injected_option_has_no_effect_on_the_session(s):
    """A man in the middle adds an option behind the client's STARTTLS: the client's TLS fails."""
    with TlsFixture() as f, f.hello() as c:
        c.send(struct.pack(">QII", IHAVEOPT, OPT_STARTTLS, 0) +
               struct.pack(">QII", IHAVEOPT, OPT_STRUCTURED, 0))
        try:
            r = c.opt_reply(OPT_STARTTLS)
            must(r.type == REP_ACK, "got %s", r)
            c.sock = context().wrap_socket(c.sock, server_hostname="localhost")
            c.go("vda")
        except (ssl.SSLError, OSError, Closed):
            return
        raise AssertionError("the session went on")


# --- peers that stall or send garbage ---------------------------------------------------------------

def client_hello():
    """The first flight of a client, as bytes."""
    inp, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    o = context().wrap_bio(inp, out, server_hostname="localhost")
    try:
        o.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return out.read()


@test(house=True)
def handshake_limit_holds_at_every_byte_of_tls(s):
    """handshake_timeout_ms: from accept to transmission, TLS included."""
    hello = client_hello()
    with TlsFixture(args=["--handshake-timeout", "600"]) as f:
        with tls_open(f) as good:
            conns = []
            for n in (0, 1, 4, 5, 6, 50, len(hello) - 1, len(hello)):
                c = f.hello()
                ask_starttls(c)
                c.send(hello[:n])
                conns.append(c)
            done = upgrade(f.hello())  # TLS is there, and then no option comes
            for c in conns + [done]:
                try:
                    c.drain()
                except ssl.SSLError:
                    pass
                c.close()
            must(good.read(0, 512).data == f.exports["vda"].content(0, 512), "a good one was hit")
            good.disc()


@test(house=True)
def client_hello_that_drips_is_ended_too(s):
    """The limit does not begin anew with each byte."""
    hello = client_hello()
    with TlsFixture(args=["--handshake-timeout", "500"]) as f, f.hello() as c:
        ask_starttls(c)
        began = time.monotonic()
        try:
            for b in hello:
                c.send(bytes([b]))
                time.sleep(0.05)
                must(time.monotonic() - began < DEADLINE, "still open")
        except Closed:
            pass
        must(time.monotonic() - began < 5, "it took %.1f s", time.monotonic() - began)


class Tap:
    """Decrypts by itself, so that records can be cut and broken."""

    def __init__(self, c, ctx=None):
        ask_starttls(c)
        self.c, self.inp, self.out = c, ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = (ctx or context()).wrap_bio(self.inp, self.out, server_hostname="localhost")
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                c.send(self.out.read())
                self.inp.write(c.sock.recv(65536))
        c.send(self.out.read())

    def seal(self, data):
        self.tls.write(data)
        return self.out.read()

    def recv(self, n):
        got = b""
        while len(got) < n:
            try:
                got += self.tls.read(n - len(got))
            except ssl.SSLWantReadError:
                d = self.c.sock.recv(65536)
                must(d, "closed")
                self.inp.write(d)
        return got

    def go(self, name="vda"):
        data = Conn.info_data(name)
        self.c.send(self.seal(struct.pack(">QII", IHAVEOPT, OPT_GO, len(data)) + data))
        while True:
            _, _, t, n = struct.unpack(">QIII", self.recv(20))
            self.recv(n)
            if t == REP_ACK:
                return self
            must(t == REP_INFO, "GO got %#x", t)


def request(cmd=CMD_READ, off=0, n=512):
    return struct.pack(">IHHQQI", REQUEST_MAGIC, 0, cmd, 1, off, n)


@test(house=True)
def half_a_record_holds_up_nobody(s):
    """A peer that stops in mid-record: others are served, and the daemon ends in time."""
    with TlsFixture() as f:
        taps = []
        for cut in (1, 3, 5, 6, 20, -1):
            t = Tap(f.hello()).go()
            t.c.send(t.seal(request())[:cut])
            taps.append(t)
        f.check_serves()
        f.terminate()
        must(f.wait_exit(5) == 0, "status")
        for t in taps:
            t.c.close()


@test(house=True)
def half_a_record_counts_as_silence(s):
    """idle_timeout_ms holds for who sends no whole request."""
    with TlsFixture(args=["--idle-timeout", "500"]) as f:
        t = Tap(f.hello()).go()
        t.c.send(t.seal(request())[:10])
        t.c.drain()
        t.c.close()


@test(house=True)
def record_in_single_bytes_is_served(s):
    """A stream has no message borders, nor has TLS's."""
    with TlsFixture() as f:
        t = Tap(f.hello()).go()
        for b in t.seal(request(n=100)):
            t.c.send(bytes([b]))
        must(t.recv(116)[16:] == f.exports["vda"].content(0, 100), "wrong bytes")
        t.c.close()


@test(house=True)
def requests_cut_anywhere_between_records_are_served(s):
    """A request may lie in 28 records, and 200 requests in one."""
    with TlsFixture() as f:
        t = Tap(f.hello()).go()
        t.c.send(b"".join(t.seal(bytes([b])) for b in request(n=100)))
        must(t.recv(116)[16:] == f.exports["vda"].content(0, 100), "wrong bytes")
        t.c.send(t.seal(b"".join(request(off=i, n=1) for i in range(500))))
        t.recv(500 * 17)
        t.c.close()


@test(house=True)
def broken_record_closes_and_is_never_a_request(s):
    """A flipped bit anywhere in a record behind its type and version, which TLS 1.3 ignores."""
    with TlsFixture() as f:
        for at in range(3, 50, 3):
            t = Tap(f.hello()).go()
            rec = bytearray(t.seal(request()))
            rec[at % len(rec)] ^= 1 << at % 8
            t.c.send(bytes(rec))
            t.c.half_close()
            n = len(read_all(t.c))
            must(n < 200, "%d bytes came for a request broken at %d", n, at)
            t.c.close()


@test(house=True)
def replayed_record_closes(s):
    """A record sent twice is no request twice."""
    with TlsFixture() as f:
        t = Tap(f.hello()).go()
        rec = t.seal(request())
        t.c.send(rec + rec)
        t.c.half_close()
        must(len(read_all(t.c)) < 2 * 512, "it was answered twice")
        t.c.close()


@test(house=True)
def garbage_where_tls_should_begin(s):
    """As much as the server takes; memory stays bounded."""
    with TlsFixture() as f:
        before = f.rss()
        for seed in range(4):
            junk = random.Random(seed).randbytes(M)
            if seed % 2:
                junk = b"\x16\x03\x01\x40\x00" + junk
            with f.hello() as c:
                ask_starttls(c)
                end = time.monotonic() + DEADLINE
                try:
                    while True:  # what comes within half a second after the alert is thrown away
                        c.send(junk)
                        must(time.monotonic() < end, "still open")
                except Closed:
                    pass
        must(f.rss() < before + 64 * M, "the server grew by %d MiB", (f.rss() - before) >> 20)


@test(house=True)
def refused_clients_cannot_flood_the_log(s):
    """Not more than ten lines in a second."""
    with TlsFixture() as f:
        began = time.monotonic()
        for _ in range(300):
            with f.hello() as c:
                ask_starttls(c)
                c.send(b"garbage" * 10)
                c.half_close()
                read_all(c)
        lines = f.last_words(1 << 20).count("NBD client")
        allowed = 10 * (int(time.monotonic() - began) + 2)
        must(0 < lines <= min(allowed, 299), "%d lines, %d are allowed", lines, allowed)


@test(house=True)
def records_without_content_hold_up_nobody(s):
    """As many as the server takes, or 20,000: it ends the session or goes on, and does not grow."""
    with TlsFixture() as f:
        before = f.rss()
        with f.connect() as c:
            c.tls = context()
            c.hello()
            try:
                for _ in range(20):
                    c.sock.sock.sendall(b"\x17\x03\x03\0\0" * 1000)
                    f.check_serves()
            except (BrokenPipeError, ConnectionResetError):
                pass
        must(f.rss() < before + 16 * M, "the server grew by %d KiB", (f.rss() - before) // K)


@test(house=True)
def endless_handshake_messages_are_refused(s):
    """A ClientHello that claims 16 MiB, in records that are all right."""
    with TlsFixture() as f:
        for turn in range(2):  # in the first a sanitizer's quarantine fills
            before = f.rss()
            for c in (f.hello() for _ in range(10)):
                ask_starttls(c)
                try:
                    for i in range(1100):
                        body = (b"\x01\xff\xff\xff" if not i else b"") + bytes(16000)
                        c.send(b"\x16\x03\x01" + struct.pack(">H", len(body)) + body)
                except Closed:
                    pass
                c.close()
        must(f.rss() < before + 64 * M, "the server grew by %d MiB", (f.rss() - before) >> 20)


@test(house=True)
def client_that_closes_at_any_byte_of_tls_harms_nobody(s):
    """Ends and resets in mid-handshake."""
    hello = client_hello()
    with TlsFixture() as f:
        fds = f.open_fds()
        for n in range(0, len(hello) + 1, 9):
            c = f.hello()
            ask_starttls(c)
            c.send(hello[:n])
            (c.close if n % 2 else c.reset)()
        f.check_serves()
        eventually(lambda: f.open_fds() <= fds, "descriptors are closed")


@test(house=True)
def client_that_takes_nothing_is_dropped_and_costs_little(s):
    """write_timeout_ms and the budget hold under TLS as in plain."""
    with TlsFixture(exports=["big:64M:pattern"], args=["--write-timeout", "700"]) as f:
        before = f.rss()
        taps = [Tap(f.hello(rcvbuf=4096)).go("big") for _ in range(4)]
        for t in taps:
            t.c.send(t.seal(b"".join(request(n=32 * M) for _ in range(16))))
        f.check_serves()
        must(f.rss() < before + 400 * M, "the server grew by %d MiB", (f.rss() - before) >> 20)
        eventually(lambda: _gone(taps), "they are dropped")
        for t in taps:
            t.c.close()


def _gone(taps):
    for t in taps:
        try:
            t.c.send(t.seal(b"x"))
            return False
        except (Closed, ssl.SSLError, OSError):
            pass
    return True


@test
def fifty_tls_clients_at_once_get_their_bytes(s):
    """Sessions do not mix."""
    with TlsFixture() as f:
        conns = [tls_open(f, ("vda", "pat")[i % 2]) for i in range(50)]
        for i, c in enumerate(conns):
            c.cmd(CMD_READ, i * 1000, 70000)
        for i, c in enumerate(conns):
            _, p = c.wait_any()
            name = ("vda", "pat")[i % 2]
            must(p.data == f.exports[name].content(i * 1000, 70000), "client %d: wrong bytes", i)
            c.disc()


@test
def close_notify_comes_at_an_orderly_end(s):
    """Terminating the transmission phase: shut down the TLS session."""
    with TlsFixture() as f:
        ctx = context(strict=True)
        c = tls_open(f, ctx=ctx)
        c.cmd(CMD_READ, 0, 4 * M)
        c.send(request(CMD_DISC, 0, 0))
        while True:  # ragged ends raise
            if not c.sock.recv(1 << 20):
                break
        c.close()
        c = upgrade(f.hello(), ctx)
        c.option(OPT_ABORT)
        must(c.sock.recv(100) == b"", "no close_notify after ABORT")
        c.close()
        c = tls_open(f, ctx=ctx)
        f.proc.send_signal(10)  # withdraws vda
        must(c.sock.recv(100) == b"", "no close_notify when the export goes")
        c.close()


@test
def close_notify_of_the_client_ends_the_session(s):
    """The client's orderly end, without DISC."""
    with TlsFixture() as f:
        c = tls_open(f)
        c.cmd(CMD_READ, 0, 512)
        c.wait_any()
        raw = c.sock.unwrap()
        must(raw.recv(100) == b"", "it stays open")
        raw.close()


@test
def sigterm_ends_tls_clients_in_order(s):
    """Shutdown: replies in flight end, then close_notify, within the deadline."""
    f = TlsFixture()
    ctx = context(strict=True)
    c, idle, shaking = tls_open(f, ctx=ctx), tls_open(f, ctx=ctx), f.hello()
    ask_starttls(shaking)
    f.terminate()
    for x in (c, idle):
        must(x.sock.recv(100) == b"", "no close_notify")
    must(f.wait_exit(5) == 0, "status")
    for x in (c, idle, shaking):
        x.close()


# --- certificates -----------------------------------------------------------------------------------

@test
def without_verify_peer_no_certificate_is_needed(s):
    """--tls-verify-peer is not given: certificates are not even asked for."""
    with TlsFixture() as f:
        for ctx in (context(), context(client=ca().expired())):
            with tls_open(f, ctx=ctx) as c:
                c.disc()


@test
def verify_peer_wants_a_good_certificate(s):
    """--tls-verify-peer: absent, foreign, expired, wrong purpose are refused; why is logged."""
    ours = ca()
    good = context(client=ours.client("backup1"))
    stranger = ca("other").client("backup1")
    with TlsFixture(args=["--tls-verify-peer"], ctx=good) as f:
        for v in (V12, V13):
            for folder in (None, stranger, ours.expired(), ours.client("srv", "tls_www_server\n")):
                refused(f, context(client=folder, lo=v, hi=v))
            with tls_open(f, ctx=context(client=ours.client("backup1"), lo=v, hi=v)) as c:
                c.disc()
        log = f.last_words(20000)
        must("expired" in log and "issuer" in log and "Certificate is required" in log,
             "the log does not say why: %s", log)


@test
def refused_certificate_is_told_by_an_alert(s):
    """The client learns why, not just that the line is dead."""
    ours = ca()
    with TlsFixture(args=["--tls-verify-peer"], ctx=context(client=ours.client("backup1"))) as f:
        must("alert" in refused(f, context(lo=V13)), "no alert")
        must("alert" in refused(f, context(client=ours.expired(), lo=V13)), "no alert")


@test
def revoked_certificate_is_refused(s):
    """ca-crl.pem, read at the start and again at SIGHUP."""
    mine = CA("crl")
    lost, kept = mine.client("lost"), mine.client("kept")
    ctx = context(mine, kept)
    with TlsFixture(args=["--tls-verify-peer"], certificates=mine.dir, ctx=ctx) as f:
        with tls_open(f, ctx=context(mine, lost)) as before:
            mine.revoke(lost)
            must(f.reload(), "reload failed")
            refused(f, context(mine, lost))
            must(not before.read(0, 512).errors, "an open session was hit")
            before.disc()
    with TlsFixture(args=["--tls-verify-peer"], certificates=mine.dir, ctx=ctx) as f:
        refused(f, context(mine, lost))


@test
def sighup_changes_the_certificate_for_new_connections(s):
    """SIGHUP: new connections use the new files, open ones go on."""
    mine = CA("rotate")

    def serial():
        with upgrade(f.hello(), context(mine)) as c:
            n = c.sock.getpeercert()["serialNumber"]
            c.abort()
            return n
    with TlsFixture(certificates=mine.dir, ctx=context(mine)) as f:
        old = serial()
        with tls_open(f, ctx=context(mine)) as c, f.hello() as shaking:
            ask_starttls(shaking)
            mine.server("server2")
            must(serial() == old, "changed without SIGHUP")
            must(f.reload(), "reload failed")
            must(serial() != old, "not changed")
            must(c.read(0, 512).data == f.exports["vda"].content(0, 512), "an open session was hit")
            c.disc()
            shaking.sock = context(mine).wrap_socket(shaking.sock, server_hostname="localhost")
            must(shaking.sock.getpeercert()["serialNumber"] == old, "changed in mid-handshake")


@test
def sighup_with_a_broken_file_keeps_the_old_ones(s):
    """SIGHUP: a failure keeps the old ones and logs why."""
    mine = CA("broken")
    path = os.path.join(mine.dir, "server-key.pem")
    with TlsFixture(certificates=mine.dir, ctx=context(mine)) as f:
        with open(path) as k:
            good = k.read()
        for bad in ("", "garbage", None):
            if bad is None:
                os.unlink(path)
            else:
                with open(path, "w") as k:
                    k.write(bad)
            must(not f.reload(), "taken: %r", bad)
            must("server-key.pem" in f.last_words(), "the log says %s", f.last_words())
            f.check_serves()
        with open(path, "w") as k:
            k.write(good)
        must(f.reload(), "not taken")


def start_fails(*args):
    r = run(*fixture_command(), "--listen", "unix:" + os.path.join(tmpdir(), "never"), "--export",
            "vda:1M:zero", *args, status=1)
    words = [w for w in r.stderr.decode().splitlines() if "LeakSanitizer" not in w]
    must(len(words) == 1, "not one line: %s", words)
    return words[0]


@test
def bad_files_at_the_start_are_named_in_one_line(s):
    """A missing, unreadable or wrong file: one line that names it and says what to do."""
    mine = CA("start")
    for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
        path = os.path.join(mine.dir, name)
        os.rename(path, path + ".away")
        args = ["--tls", "on", "--tls-certificates", mine.dir]
        said = start_fails(*args)
        must(name in said and "No such file" in said and "--tls-certificates wants" in said, said)
        for junk in ("", "garbage\n", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
            with open(path, "w") as f:
                f.write(junk)
            must(name in start_fails(*args), "%s is not named: %s", name, start_fails(*args))
        os.unlink(path)
        os.mkdir(path)
        must("not a regular file" in start_fails(*args), start_fails(*args))
        os.rmdir(path)
        os.rename(path + ".away", path)
    with open(os.path.join(mine.dir, "ca-crl.pem"), "w") as f:
        f.write("garbage")
    must("ca-crl.pem" in start_fails("--tls", "on", "--tls-certificates", mine.dir), "CRL")
    os.unlink(os.path.join(mine.dir, "ca-crl.pem"))
    os.replace(os.path.join(ca("other").client("k"), "client-key.pem"),
               os.path.join(mine.dir, "server-key.pem"))
    must("server-key.pem" in start_fails("--tls", "on", "--tls-certificates", mine.dir), "mismatch")
    must("/nonexistent" in start_fails("--tls", "on", "--tls-psk", "/nonexistent"), "psk")
    bad = psk_file({"alice": "xyz"}, "bad.psk")
    must("bad.psk:1: " in start_fails("--tls", "on", "--tls-psk", bad), "psk line")


@test
def options_that_contradict_each_other_are_refused(s):
    """Nobody believes to have TLS who has none."""
    must("needs --tls-certificates" in start_fails("--tls", "require"), "nothing to prove with")
    must("--tls-psk does nothing" in start_fails("--tls-psk", "/x"), "off")
    must("--tls-verify-peer does nothing" in start_fails("--tls-verify-peer"), "off")
    must("--tls-verify-peer needs" in start_fails("--tls", "on", "--tls-verify-peer", "--tls-psk",
                                                  psk_file({"a": K1}, "vp.psk")), "no CA")


# --- pre-shared keys --------------------------------------------------------------------------------

def psk_connect(f, user, path):
    nbd = libnbd()
    h = nbd.NBD()
    h.set_tls(nbd.TLS_REQUIRE)
    h.set_tls_username(user)
    h.set_tls_psk_file(path)
    h.set_export_name("vda")
    h.connect_unix(f.sock)
    return h


def psk_refused(f, user, path):
    nbd = libnbd()
    try:
        psk_connect(f, user, path).shutdown()
    except nbd.Error as e:
        return e.string
    raise AssertionError("%s got in" % user)


@test
def psk_lets_in_who_has_the_key(s):
    """--tls-psk: right key; wrong key and unknown user are refused in the same words."""
    keys = psk_file({"alice": K1, "bob": K2})
    with TlsFixture(args=["--tls-psk", keys]) as f:
        h = psk_connect(f, "alice", keys)
        must(h.pread(100000, 77) == f.exports["vda"].content(77, 100000), "wrong bytes")
        h.shutdown()
        wrong = psk_refused(f, "alice", psk_file({"alice": K2}, "w.psk"))
        unknown = psk_refused(f, "mallory", psk_file({"mallory": K1}, "u.psk"))
        must(wrong == unknown, "'%s' and '%s'", wrong, unknown)
        f.check_serves()  # certificates beside keys


@test
def psk_alone_needs_no_certificates(s):
    """--tls-psk without --tls-certificates; who has no key does not get in."""
    keys = psk_file({"alice": K1}, "alone.psk")
    f = TlsFixture(args=["--tls-psk", keys], certificates=False)
    refused(f, context())
    psk_connect(f, "alice", keys).shutdown()
    f.stop()


@test
def psk_beside_verify_peer_is_proof_enough(s):
    """Either a certificate or a key."""
    keys = psk_file({"alice": K1}, "vp2.psk")
    good = context(client=ca().client("backup1"))
    with TlsFixture(args=["--tls-psk", keys, "--tls-verify-peer"], ctx=good) as f:
        psk_connect(f, "alice", keys).shutdown()
        refused(f, context())


@test
def sighup_reads_the_keys_again(s):
    """SIGHUP: users come and go; a broken file keeps the old ones."""
    keys = psk_file({"alice": K1}, "hup.psk")
    bob = psk_file({"bob": K2}, "bob.psk")
    with TlsFixture(args=["--tls-psk", keys]) as f:
        psk_refused(f, "bob", bob)
        os.replace(psk_file({"bob": K2}, "new.psk"), keys)
        must(f.reload(), "reload failed")
        psk_connect(f, "bob", bob).shutdown()
        psk_refused(f, "alice", psk_file({"alice": K1}, "a.psk"))
        with open(keys, "w") as k:
            k.write("bob\n")
        must(not f.reload(), "taken")
        must("hup.psk:1" in f.last_words(), "the log says %s", f.last_words())
        psk_connect(f, "bob", bob).shutdown()


# --- clients ----------------------------------------------------------------------------------------

@test
def libnbd_tools_speak_tls(s):
    """nbdinfo and nbdcopy with nbds:// and nbds+unix://, certificates and keys."""
    info, copy = program("nbdinfo"), program("nbdcopy")
    keys = psk_file({"alice": K1}, "tools.psk")
    folder = ca().client("backup1")
    good = context(client=folder)
    with TlsFixture(args=["--tls-psk", keys, "--tls-verify-peer"], ctx=good) as f:
        tcp = "nbds://localhost:%d/pat?tls-certificates=%s" % (f.tcp[2], folder)
        psk = "nbds+unix://alice@/pat?socket=%s&tls-psk-file=%s" % (f.sock, keys)
        for uri in (tcp, psk):
            must(run(info, "--size", uri).stdout.strip() == b"%d" % (4 * M), "size")
            out = os.path.join(f.dir, "copy")
            run(copy, uri, out)
            with open(out, "rb") as got:
                must(got.read() == pattern(0, 4 * M), "%s: wrong copy", uri)
        run(info, "--size", "nbd+unix:///pat?socket=" + f.sock, status=1)


@test
def qemu_img_speaks_tls(s):
    """qemu-img with tls-creds-x509 and tls-creds-psk."""
    img = program("qemu-img")
    keydir = os.path.join(tmpdir(), "qemu-psk")
    os.mkdir(keydir)
    keys = psk_file({"alice": K1}, "qemu-psk/keys.psk")
    folder = ca().client("backup1")
    with TlsFixture(args=["--tls-psk", keys, "--tls-verify-peer"],
                    ctx=context(client=folder)) as f:
        creds = ("tls-creds-x509,id=t,endpoint=client,verify-peer=on,dir=" + folder,
                 "tls-creds-psk,id=t,endpoint=client,username=alice,dir=" + keydir)
        for i, obj in enumerate(creds):
            out = os.path.join(f.dir, "q%d" % i)
            run(img, "convert", "--object", obj, "--image-opts", "-O", "raw",
                "driver=nbd,host=localhost,port=%d,export=pat,tls-creds=t" % f.tcp[2], out)
            with open(out, "rb") as got:
                must(got.read() == pattern(0, 4 * M), "wrong copy")


main()
