#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Peers that send garbage, too much, too little, or never read.  (A long list, one idea a test.)

The section of proto.md behind all of it: "Termination of the session during option haggling" and
"Terminating the transmission phase": a violation MAY be answered by a disconnect; it must not be
answered by anything worse.  After each test the harness has a good client served."""
import os
import random

from nbdtest import *  # noqa: F401,F403

MODES = (False, True)
BA = "base:allocation"
GROWTH = 96 * M  # what one peer may cost, sanitizer's quarantine and all


def pour(c, data, times=1):
    """Sends as long as the server takes it; whether it took all."""
    try:
        for _ in range(times):
            c.send(data)
        return True
    except Closed:
        return False


def bounded(s, before, what):
    must(s.rss() < before + GROWTH, "%s: the server grew by %d MiB", what, (s.rss() - before) >> 20)


@test
def garbage_of_100_mb_on_a_fresh_connection(s):
    """Client flags: unknown ones MUST close."""
    before = s.rss()
    for seed in (1, 2):
        junk = random.Random(seed).randbytes(M)
        with s.connect() as c:
            must(not pour(c, junk, 100), "100 MB were swallowed, the connection is open")
    bounded(s, before, "garbage")


@test(plain=True)
def garbage_of_100_mb_after_good_flags(s):
    """Newstyle negotiation: an option opens with IHAVEOPT."""
    before = s.rss()
    with s.hello() as c:
        must(not pour(c, random.Random(3).randbytes(M), 100), "100 MB were swallowed")
    bounded(s, before, "garbage")


@test(plain=True)
def garbage_of_100_mb_in_transmission(s):
    """Request message: a request opens with its magic."""
    before = s.rss()
    for mode in MODES:
        with s.open("vda", structured=mode) as c:
            must(not pour(c, random.Random(4).randbytes(M), 100), "100 MB were swallowed")
    bounded(s, before, "garbage")


@test
def garbage_after_each_option_closes(s):
    """Newstyle negotiation: an option opens with IHAVEOPT."""
    junk = random.Random(5).randbytes(4096)
    for opt in (OPT_LIST, OPT_INFO, OPT_STRUCTURED, OPT_LIST_META, 99):
        with s.hello() as c:
            c.send_opt(opt, c.info_data("vda") if opt == OPT_INFO else b"")
            pour(c, junk)
            c.drain()


@test
def option_of_length_2_32_is_no_reason_to_grow(s):
    """Termination of the session: a server MAY disconnect if it believes in a denial of service."""
    before = s.rss()
    for opt in list(range(1, 12)) + [77]:
        for length in (0xFFFFFFFF, 0x80000000, 0x7FFFFFFF, 100 * M, M):
            with s.hello() as c:
                c.send_opt(opt, b"", length=length)
                took = pour(c, bytes(64 * K), 16)
                if length >= 100 * M:
                    bounded(s, before, "option %d of length %d" % (opt, length))
                if took and length == M:
                    # all of it was sent: now it must be answered or have closed
                    try:
                        c.option_replies(opt)
                    except Closed:
                        pass
    bounded(s, before, "options of 1 MiB")


@test
def option_too_long_is_too_big_or_invalid_or_closes(s):
    """NBD_REP_ERR_TOO_BIG: the request is too large to process."""
    for opt in (OPT_LIST, OPT_INFO, OPT_GO, OPT_STRUCTURED, OPT_LIST_META, OPT_SET_META, 77, 0xFFFFFFFF):
        for n in (5000, 40000, 70000, 200000):
            with s.hello() as c:
                c.send_opt(opt, b"", length=n)
                pour(c, b"\xff" * n)
                try:
                    r = c.option_replies(opt)[-1]
                except Closed:
                    continue
                must(r.type in (ERR_TOO_BIG, ERR_INVALID, ERR_UNSUP), "option %d of %d got %s", opt, n, r)
                c.go("vda")
                c.disc()


@test
def options_10000_in_a_row_are_answered_or_end(s):
    """Termination of the session: MUST simply error inbound options, or MAY disconnect at abuse."""
    before = s.rss()
    for opt, data in ((99, b"abc"), (OPT_LIST, b""), (OPT_INFO, Conn.info_data("nope"))):
        with s.hello() as c:
            try:
                for _ in range(10000):
                    c.option(opt, data)
            except Closed:
                pass
    bounded(s, before, "10,000 options")


@test
def options_10000_without_reading_are_bounded(s):
    """Fixed newstyle: the client MUST NOT send an option until the reply; one that does may wait."""
    before = s.rss()
    names = ["e%03d-" % i + "x" * 1000 for i in range(60)]
    with Fixture([n + ":1M:zero" for n in names]) as f:
        before = f.rss()
        with f.hello() as c:
            c.deadline = 3
            blob = struct.pack(">QII", IHAVEOPT, OPT_LIST, 0) * 1000  # 60 MB of replies
            try:
                for _ in range(10):
                    c.send(blob)
            except (Closed, Silence):
                pass
            bounded(f, before, "unread replies")
            f.check_serves()


@test
def pipelined_options_are_answered_in_order_or_end(s):
    """Fixed newstyle: the client MUST NOT do so; the server must not be confused."""
    with s.hello() as c:
        blob = b""
        for i in range(20):
            blob += struct.pack(">QII", IHAVEOPT, 1000 + i, 0)
        data = c.info_data("vda")
        blob += struct.pack(">QII", IHAVEOPT, OPT_GO, len(data)) + data
        b, cookie = c.pack(CMD_READ, 4096, 512)
        c.send(blob + b)
        try:
            for i in range(20):
                must(c.option_replies(1000 + i)[-1].type == ERR_UNSUP, "not UNSUP")
            must(c.info_replies("vda", OPT_GO).ok, "GO failed")
            must(c.wait(cookie).data == s.exports["vda"].content(4096, 512), "wrong bytes")
            c.disc()
        except Closed:
            pass


@test
def handshake_has_a_time_limit_at_every_stage(s):
    """Issue 3: limits on handshake time (server/nbd/nbd-server.h handshake_timeout_ms)."""
    needs("--handshake-timeout")
    data = Conn.info_data("vda")
    stages = {
        "nothing at all": b"",
        "half the flags": b"\0\0",
        "flags, no option": b"\0\0\0\3",
        "half an option header": b"\0\0\0\3" + struct.pack(">QI", IHAVEOPT, OPT_GO),
        "half an option's data": b"\0\0\0\3" + struct.pack(">QII", IHAVEOPT, OPT_GO, len(data)) + data[:4],
        "half of an unknown option": b"\0\0\0\3" + struct.pack(">QII", IHAVEOPT, 99, 60000) + bytes(9999),
        "a finished option": b"\0\0\0\3" + struct.pack(">QII", IHAVEOPT, OPT_LIST, 0),
    }
    with Fixture(["vda:1M:pattern"], ["--handshake-timeout", "400"]) as f:
        good = f.open("vda")
        conns = []
        for stage in stages.values():
            c = f.connect()
            c.greeting()
            c.send(stage)
            conns.append(c)
        for c in conns:
            c.drain()
            c.close()
        # the limit is the handshake's: one who is through may be silent for as long as he likes
        must(good.read(0, 512).data == pattern(0, 512), "the limit hit a client in transmission")
        good.disc()


@test
def handshake_that_drips_is_ended_too(s):
    """Issue 3: the limit is from accept to transmission, whatever comes meanwhile."""
    needs("--handshake-timeout")
    with Fixture(["vda:1M:pattern"], ["--handshake-timeout", "400"]) as f:
        with f.hello() as c:
            end = time.monotonic() + DEADLINE
            drip = struct.pack(">QII", IHAVEOPT, 99, 1 << 16) + bytes(1 << 16)
            for b in drip:
                must(time.monotonic() < end, "still open after %g s of dripping", DEADLINE)
                c.sock.settimeout(0.02)  # one byte each 20 ms, unless the server ends it
                try:
                    if not c.sock.recv(4096):
                        break
                except socket.timeout:
                    pass
                except ConnectionResetError:
                    break
                if not pour(c, bytes([b])):
                    break
        with f.hello() as c:  # the same with whole options, each answered
            end = time.monotonic() + DEADLINE
            try:
                while True:
                    must(time.monotonic() < end, "still haggling after %g s", DEADLINE)
                    c.option(99)
            except Closed:
                pass


@test
def flood_of_reads_without_reading_costs_little(s):
    """Issue 3: bounded memory per connection; a client that never reads delays nobody."""
    e = s.exports["vda"]
    with s.open("vda") as good:
        before = s.rss()
        for mode in MODES:
            with s.open("vda", structured=mode, rcvbuf=4096) as c:
                c.deadline = 2
                blob = b"".join(c.pack(CMD_READ, 0, 32 * M)[0] for _ in range(1000))
                try:
                    for _ in range(50):
                        c.send(blob)  # at some time the server stops taking requests
                except (Silence, Closed):
                    pass
                for i in range(50):
                    must(good.read(i * 4096, 4096).data == e.content(i * 4096, 4096), "wrong bytes")
                grown = s.rss() - before
                must(grown < 2 * GROWTH, "the server grew by %d MiB", grown >> 20)
        good.disc()


@test
def stalled_clients_together_cost_little_and_leave_the_others_their_part(s):
    """Issue 3: memory in all is bounded, whatever number of peers ask and take nothing.  The bound of
    server/nbd/nbd-pool.c: 64 MiB, and 260 KiB for each connection; a good client is served beyond it,
    with small and long reads, whole ones, and block status."""
    with Fixture(["vda:64M:half,dirty=d", "other:64M:half,dirty=d"]) as f:
        e = f.exports["vda"]
        before = f.rss()
        bad = []
        for i in range(60):
            c = f.open("vda" if i % 4 else "other", structured=i % 8 != 0, rcvbuf=4096,
                       contexts=[BA] if i % 8 else None)
            c.send(b"".join(c.pack(CMD_READ, k * 65536, 8 * M)[0] for k in range(32)))
            bad.append(c)
        for mode in MODES:
            with f.open("vda", structured=mode, contexts=[BA] if mode else None) as good:
                for n in (512, 4096, 256 * K, 200 * K):
                    for i in range(10):
                        must(good.read(i * 4096, n).data == e.content(i * 4096, n), "wrong bytes")
                if mode:
                    must(good.read(M, 8 * M).data == e.content(M, 8 * M), "wrong bytes")
                    must(not good.status(0, 64 * M).errors, "status failed")
                good.disc()
        grown = f.rss() - before
        bound = 64 * M + 2 * 8 * M + 60 * 260 * K + 32 * M
        if "thread" in os.environ.get("SANITIZER", ""):
            bound *= 5  # ThreadSanitizer's shadow of each byte
        if "address" in os.environ.get("SANITIZER", ""):
            bound += 64 * M  # AddressSanitizer's quarantine of 16 MiB, and its red zones
        must(grown < bound, "it grew by %d MiB", grown >> 20)
        for c in bad:
            c.close()


@test
def who_waits_for_the_memory_of_one_that_ends_has_its_turn_then(s):
    """server/nbd/nbd-pool.c: large replies in one piece are let in one after the other.  The first ends
    without having taken its own; nothing else happens that would give the second its turn."""
    with Fixture(["vda:64M:pattern"], ["--network-threads", "1", "--handshake-timeout", "3600000"]) as f:
        first = f.open("vda", structured=False, rcvbuf=4096)
        second = f.open("vda", structured=False)
        first.cmd(CMD_READ, 0, 32 * M)
        first.recv(16)  # it is made, and the rest does not fit into the socket
        cookie = second.cmd(CMD_READ, M, 32 * M)
        second.do(CMD_FLUSH)  # the read before it waits
        first.close()
        must(second.wait(cookie).data == pattern(M, 32 * M), "wrong bytes")
        second.disc()


@test
def flood_of_small_requests_without_reading_costs_little(s):
    """Issue 3: bytes queued are bounded; back-pressure by not reading."""
    for cmd, n in ((CMD_READ, 1), (CMD_FLUSH, 0), (99, 0), (CMD_BLOCK_STATUS, 64 * M), (CMD_TRIM, 512)):
        with s.open("vda", contexts=[BA, "qemu:dirty-bitmap:backup-vda"], rcvbuf=4096) as c:
            before = s.rss()
            c.deadline = 2
            blob = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, cmd, 5, 0, n) * 10000
            try:
                for _ in range(40):
                    c.send(blob)
            except (Silence, Closed):
                pass
            bounded(s, before, "command %d" % cmd)
            s.check_serves()


@test
def twenty_clients_that_never_read_delay_nobody(s):
    """Issue 3: a slow or dead client costs bounded memory and nothing to others."""
    e = s.exports["vda"]
    stalled = []
    for i in range(20):
        c = s.open("vda", contexts=[BA], tcp=i % 2 == 1)
        c.send(b"".join(c.pack(CMD_READ, 0, 32 * M)[0] for _ in range(16)))
        stalled.append(c)
    with s.open("vda", contexts=[BA]) as good:
        for i in range(100):
            off = i * 300007
            must(good.read(off, 65536).data == e.content(off, 65536), "wrong bytes")
            must(not good.status(off, M).errors, "status failed")
        good.disc()
    must(s.rss() < 20 * 40 * M + 512 * M, "%d MiB for 20 stalled clients", s.rss() >> 20)
    for c in stalled:
        c.close()


@test
def client_that_takes_nothing_is_dropped_in_time(s):
    """server/nbd/nbd-server.h write_timeout_ms."""
    needs("--write-timeout")
    with Fixture(["vda:64M:pattern"], ["--write-timeout", "300"]) as f:
        good = f.open()
        base = f.open_fds()
        for mode in MODES:
            with f.open(structured=mode) as c:
                c.send(b"".join(c.pack(CMD_READ, 0, 16 * M)[0] for _ in range(4)))
                eventually(lambda: f.open_fds() <= base, "the stalled client dropped")
        must(good.read(0, 512).data == pattern(0, 512), "the limit hit an idle client")
        good.disc()


@test
def client_that_takes_slowly_is_not_dropped(s):
    """server/nbd/nbd-server.h write_timeout_ms: one that takes nothing; slow is not nothing.

    client: asks for 2 MiB, takes 64 KiB each 50 ms | limit: 300 ms"""
    needs("--write-timeout")
    with Fixture(["vda:64M:pattern"], ["--write-timeout", "300"]) as f:
        with f.open(structured=False, rcvbuf=65536) as c:
            cookie = c.cmd(CMD_READ, 0, 2 * M)
            got = b""
            while len(got) < 16 + 2 * M:
                got += c.recv(min(64 * K, 16 + 2 * M - len(got)))
                time.sleep(0.05)  # the slowness itself, not a race
            must(got[16:] == pattern(0, 2 * M), "wrong bytes")
            del c.pending[cookie]
            c.disc()


@test
def idle_limit_ends_the_idle_only(s):
    """server/nbd/nbd-server.h idle_timeout_ms."""
    needs("--idle-timeout")
    with Fixture(["vda:1M:pattern"], ["--idle-timeout", "400"]) as f:
        idle, busy = f.open(), f.open()
        end = time.monotonic() + DEADLINE
        closed = False
        while not closed:
            must(time.monotonic() < end, "the idle client was not closed")
            must(busy.read(0, 512).data == pattern(0, 512), "wrong bytes")
            idle.sock.settimeout(0.02)
            try:
                closed = not idle.sock.recv(1)
            except socket.timeout:
                pass
            except ConnectionResetError:
                closed = True
        for _ in range(50):
            must(busy.read(0, 512).data == pattern(0, 512), "wrong bytes")
        busy.disc()


@test
def close_in_the_middle_of_a_reply(s):
    """Terminating the transmission phase: the client drops the session."""
    for i in range(40):
        c = s.open("vda", structured=i % 2 == 0, tcp=i % 4 > 1)
        c.send(b"".join(c.pack(CMD_READ, k * M, 8 * M)[0] for k in range(8)))
        c.recv(1 + i * 5000)
        c.close() if i % 3 else c.reset()


@test
def close_in_the_middle_of_a_request(s):
    """Terminating the transmission phase."""
    for n in range(1, 29):
        for mode in MODES:
            c = s.open("pat", structured=mode)
            b, _ = c.pack(CMD_WRITE if n % 2 else CMD_READ, 0, 4096)
            c.send((b + bytes(100))[:n + (n == 28) * 50])
            c.close() if n % 3 else c.reset()


@test
def close_with_requests_in_flight(s):
    """Terminating the transmission phase.  The gate keeps reads in flight while the client goes."""
    gate = os.path.join(tempfile.mkdtemp(dir=tmpdir()), "gate")
    with Fixture(["vda:64M:pattern,slow=" + gate, "b:1M:pattern"], name="b") as f:
        base = f.open_fds()
        open(gate, "w").close()
        for i in range(10):
            c = f.open("vda", structured=i % 2 == 0)
            c.send(b"".join(c.pack(CMD_READ, k * M, 65536)[0] for k in range(16)))
            c.close() if i % 3 else c.reset()
        os.unlink(gate)
        f.check_serves()
        eventually(lambda: f.open_fds() <= base, "the connections gone")


@test(plain=True)
def half_closed_client_is_let_go(s):
    """Terminating the transmission phase: a client that says no more is gone, sooner or later."""
    for mode in MODES:
        with s.open("vda", structured=mode) as c:
            c.send(b"".join(c.pack(CMD_READ, k * M, 65536)[0] for k in range(16)))
            c.half_close()
            c.drain()
    for stage in (b"", b"\0\0", b"\0\0\0\3", b"\0\0\0\3" + struct.pack(">QI", IHAVEOPT, OPT_GO)):
        with s.connect() as c:
            c.greeting()
            c.send(stage)
            c.half_close()
            c.drain()


@test
def connections_that_come_and_go_leave_nothing(s):
    """No descriptor is left of 600 short connections."""
    s.check_serves()
    base = s.open_fds()
    for i in range(600):
        c = s.connect(tcp=i % 2 == 1)
        if i % 3 == 1:
            c.greeting()
        if i % 3 == 2:
            c.hello().send_opt(OPT_GO, c.info_data("vda"))
        c.close() if i % 5 else c.reset()
    eventually(lambda: s.open_fds() <= base, "descriptors back to %d" % base)


@test
def silent_connections_500_delay_nobody(s):
    """Issue 3: 1,000 idle connections (here 500 that never speak)."""
    idle = [s.connect(tcp=i % 2 == 1) for i in range(500)]
    for c in idle[::50]:
        c.greeting()
    for _ in range(10):
        s.check_serves()
    for c in idle:
        c.close()


@test
def equal_cookies_in_flight_are_both_answered(s):
    """Transmission: clients SHOULD use distinct cookies; to the server they are opaque."""
    for mode in MODES:
        with s.open("pat", structured=mode) as c:
            b = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_FLUSH, 42, 0, 0)
            c.send(b * 3)
            for _ in range(3):
                c.pending[42] = Pending(CMD_FLUSH, 0, 0, 0)
                must(not c.wait(42).errors, "failed")
            c.disc()


@test
def names_that_want_to_be_formats_or_paths_find_nothing(s):
    """NBD_OPT_GO: names are just bytes."""
    with s.hello() as c:
        c.negotiate_structured()
        for name in (b"%s%s%s%n", b"../vda", b"/etc/passwd", b"vda\n", b"\x1b[31m", b"vda@", b"@", b"+delta",
                     b"vda+delta", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"%76da", bytes(range(1, 256))):
            t = c.info(name, [INFO_BLOCK_SIZE]).final
            must(t in (ERR_UNKNOWN, ERR_INVALID), "%r got %s", name, rep_name(t))
            t = c.set_meta(name, [BA])[1]
            must(t in (ERR_UNKNOWN, ERR_INVALID), "%r got %s", name, rep_name(t))
        c.abort()


@test
def bent_conversations_harm_nobody(s):
    """A whole good conversation with bytes flipped, doubled, cut: 400 times."""
    seed = int(os.environ.get("NBD_TEST_SEED", "5"))
    rng = random.Random(seed)
    before = s.rss()

    def opt(o, d=b""):
        return struct.pack(">QII", IHAVEOPT, o, len(d)) + d

    talk = (b"\0\0\0\3" + opt(OPT_STRUCTURED) + opt(OPT_LIST)
            + opt(OPT_LIST_META, Conn.meta_data("vda", ["qemu:"]))
            + opt(OPT_SET_META, Conn.meta_data("vda", [BA, "qemu:dirty-bitmap:backup-vda"]))
            + opt(OPT_INFO, Conn.info_data("vda", [1, 2, 3])) + opt(OPT_GO, Conn.info_data("vda", [3])))
    for i, cmd in enumerate((CMD_READ, CMD_BLOCK_STATUS, CMD_WRITE, CMD_CACHE, CMD_READ, CMD_FLUSH)):
        talk += struct.pack(">IHHQQI", REQUEST_MAGIC, 0, cmd, i, 65536, 512 if cmd != CMD_FLUSH else 0)
        talk += bytes(512) if cmd == CMD_WRITE else b""
    talk += struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_DISC, 0, 0, 0)
    for _ in range(400):
        t = bytearray(talk)
        for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
            k = rng.randrange(len(t))
            how = rng.randrange(4)
            if how == 0:
                t[k] ^= 1 << rng.randrange(8)
            elif how == 1:
                t[k] = rng.choice((0, 255, 127, 128))
            elif how == 2:
                t[k:k] = t[k:k + rng.randrange(1, 40)]
            else:
                del t[k:k + rng.randrange(1, 40)]
        with s.connect() as c:
            pour(c, bytes(t))
            try:
                c.half_close()
            except OSError:
                pass
            c.drain()
            must(s.alive, "seed %d: the server died of %s", seed, bytes(t).hex())
    bounded(s, before, "bent conversations")


@test
def floods_of_map_queries_without_reading_cost_little(s):
    """Issue 3: bytes queued are bounded.  Each query asks for a reply of 8 MiB; nobody takes them."""
    with Fixture(["f:64G:half,allfine=f", "a:1M:pattern"], name="a") as f:
        before = f.rss()
        stalled = []
        for _ in range(4):
            c = f.open("f", contexts=[BA, "qemu:dirty-bitmap:f"], rcvbuf=4096)
            c.send(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_BLOCK_STATUS, 5, 0, 0xFFFFF000) * 500)
            stalled.append(c)
        for _ in range(5):
            f.check_serves()
        for _ in range(20):  # while the maps are being made
            grown = f.rss() - before
            must(grown < 4 * GROWTH, "the server grew by %d MiB for 4 clients", grown >> 20)
            time.sleep(0.05)
        for c in stalled:
            c.close()


@test
def busy_clients_do_not_starve_another(s):
    """Issue 3: a client costs nothing to others.  Four threads ask, and read, as fast as they can."""
    import threading
    stop = threading.Event()
    e = s.exports["pat"]

    def busy(i):
        with s.open("zero" if i % 2 else "pat") as c:
            blob = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_READ if i % 2 else CMD_FLUSH, 5, 0,
                               32 * M if i % 2 else 0) * 50
            c.sock.settimeout(DEADLINE)
            while not stop.is_set():
                c.post(blob)
                c.sock.recv(1 << 20)

    threads = [threading.Thread(target=busy, args=(i,), daemon=True) for i in range(4)]
    for t in threads:
        t.start()
    try:
        with s.open("pat") as c:
            began = time.monotonic()
            for i in range(100):
                must(c.read(i * 512, 512).data == e.content(i * 512, 512), "wrong bytes")
            took = time.monotonic() - began
            must(took < DEADLINE / 2, "100 reads took %.1f s", took)
    finally:
        stop.set()
        for t in threads:
            t.join()


@test
def server_out_of_descriptors_recovers(s):
    """No more descriptors: accept fails; the server neither spins nor dies, and serves again later."""
    with Fixture(["a:1M:pattern"], nofile=48) as f:
        good = f.open()
        conns = []
        for i in range(80):
            try:
                conns.append(f.connect(tcp=i % 2 == 1, deadline=5))
            except (OSError, Silence):
                break
        must(good.read(0, 512).data == pattern(0, 512), "the client who is in suffers")
        began, wall = f.cpu(), time.monotonic()
        for _ in range(10):
            must(good.read(0, 512).data == pattern(0, 512), "the client who is in suffers")
            time.sleep(0.05)
        used, wall = f.cpu() - began, time.monotonic() - wall
        must(used < 0.5 * wall, "%.2f s of processor time in %.2f s", used, wall)
        for c in conns:
            c.close()

        def in_again():
            try:
                f.check_serves()
                return True
            except (AssertionError, OSError):
                return False
        eventually(in_again, "served again")
        good.disc()


@test(plain=True)
def descriptors_sent_along_are_not_kept(s):
    """A unix peer can attach descriptors to its bytes; nobody asked for them."""
    s.check_serves()
    base = s.open_fds()
    with s.open("pat") as c:
        for i in range(50):
            b, cookie = c.pack(CMD_READ, i * 512, 512)
            socket.send_fds(c.sock, [b], [0, 1, 2])
            must(c.wait(cookie).data == pattern(i * 512, 512), "wrong bytes")
        must(s.open_fds() <= base + 1, "%d descriptors, before %d", s.open_fds(), base)
        c.disc()


@test(plain=True)
def urgent_bytes_do_not_confuse(s):
    """TCP urgent data is not part of the stream."""
    with s.open("pat", tcp=True) as c:
        for i in range(20):
            c.sock.send(b"!", socket.MSG_OOB)
            must(c.read(i * 512, 512).data == pattern(i * 512, 512), "wrong bytes")
        c.disc()


@test
def waiting_for_a_slow_disk_is_not_idleness(s):
    """server/nbd/nbd-server.h: idle is a peer that neither sends nor takes; the limits are the peer's.

    client: READ (blocks on the gate) | another, idle, is closed by the limit | gate opens | reply"""
    needs("--idle-timeout")
    gate = os.path.join(tempfile.mkdtemp(dir=tmpdir()), "gate")
    with Fixture(["slow:1M:pattern,slow=" + gate, "b:1M:pattern"],
                 ["--idle-timeout", "300", "--write-timeout", "300"], name="b") as f:
        c, idle = f.open("slow"), f.open("b")
        open(gate, "w").close()
        cookie = c.cmd(CMD_READ, 4096, 4096)
        for _ in range(2):  # twice the limit, seen by its effect on another
            idle.drain()
            idle = f.open("b")
        os.unlink(gate)
        must(c.wait(cookie).data == pattern(4096, 4096), "wrong bytes")
        c.disc()


@test
def silent_connections_do_not_keep_the_places_for_ever(s):
    """Issue 3: limits on connections and on handshake time together."""
    needs("--handshake-timeout", "--max-connections")
    with Fixture(["a:1M:pattern"], ["--handshake-timeout", "400", "--max-connections", "4"]) as f:
        silent = [f.connect() for _ in range(4)]

        def in_again():
            try:
                f.check_serves()
                return True
            except (AssertionError, OSError):
                return False
        eventually(in_again, "a good client let in")
        for c in silent:
            c.close()


@test(plain=True)
def reply_goes_to_a_half_closed_client(s):
    """Terminating the transmission phase: a client that shut its sending side may still read; what
    was asked is answered whole, or cut off, never garbled."""
    e = s.exports["vda"]
    for mode in MODES:
        with s.open("vda", structured=mode) as c:
            c.send(b"".join(c.pack(CMD_READ, k * M, 300000)[0] for k in range(10)))
            c.half_close()
            try:
                for _ in range(10):
                    _, p = c.wait_any()
                    must(p.data == e.content(p.off, p.len), "wrong bytes")
            except Closed:
                continue
            c.expect_close()


@test
def lack_of_memory_costs_requests_or_connections_and_nothing_else(s):
    """Every Nth allocation of the server fails, at whatever point of a request or an option: what is
    answered is right, the server lives, and ends in order.  Eight long reads at once of stripes of
    zeroes make holes that are sent while pieces of their request wait and none is in the pool."""
    needs("--fail-alloc")
    e = Export("a:64M:striped")
    for every in list(range(7, 24, 2)) + [37, 61, 97]:
        with Fixture([e.spec], ["--fail-alloc", str(every)]) as f:
            for i in range(8):
                try:
                    with f.open("a", structured=i % 4 > 0) as c:
                        for k in range(8):
                            c.cmd(CMD_READ, k * 4 * M + i * 4096, 2 * M)
                        while c.pending:
                            _, p = c.wait_any()
                            must(p.errors or p.data == e.content(p.off, p.len), "wrong bytes")
                except (Closed, OSError):
                    pass


@test
def clients_that_come_and_go_under_load(s):
    """Connections in each stage, closing at random moments, from 6 threads at once."""
    import threading
    e = s.exports["vda"]
    wrong = []

    def worker(seed):
        rng = random.Random(seed)
        try:
            for _ in range(40):
                c = s.connect(tcp=rng.random() < 0.5)
                stage = rng.randrange(6)
                if stage > 0:
                    c.hello()
                if stage > 1:
                    c.negotiate_structured()
                    c.set_meta("vda", [BA, "qemu:dirty-bitmap:backup-vda"])
                if stage > 2:
                    c.go("vda")
                    for _ in range(rng.randrange(1, 20)):
                        c.cmd(rng.choice((CMD_READ, CMD_READ, CMD_BLOCK_STATUS, CMD_CACHE)),
                              rng.randrange(e.size - M), rng.randrange(1, M))
                    for _ in range(rng.randrange(len(c.pending) + 1)):
                        _, p = c.wait_any()
                        if p.cmd == CMD_READ and p.data != e.content(p.off, p.len):
                            wrong.append("wrong bytes at %d" % p.off)
                c.reset() if rng.random() < 0.5 else c.close()
        except BaseException as x:  # told by the test, not by the thread
            wrong.append(repr(x))

    threads = [threading.Thread(target=worker, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    must(not wrong, "%s", wrong[:3])


main()
