#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Size constraints, numbers of connections and of requests in flight."""
from nbdtest import *  # noqa: F401,F403

FINE = "qemu:dirty-bitmap:f"

MODES = (False, True)
BA = "base:allocation"


@test
def maximum_payload_is_what_the_server_was_given(s):
    """NBD_INFO_BLOCK_SIZE: maximum payload size."""
    needs("--max-request")
    with Fixture(["vda:64M:half"], ["--max-request", str(M)]) as f:
        for mode in MODES:
            with f.open("vda", structured=mode, infos=[INFO_BLOCK_SIZE]) as c:
                must(c.block_size[2] == M, "maximum payload %d", c.block_size[2])
                must(c.read(0, M).data == pattern(0, M), "wrong bytes")
                for n in (M + 1, M + 512, 2 * M, 32 * M, 33 * M, 0xFFFFFFFF):
                    if n > 64 * M:
                        r = c.read(0, n)
                        must(r.error in (EINVAL, EOVERFLOW), "got %s", r.errors)
                        continue
                    r = c.read(0, n)
                    if r.errors:
                        must(r.error in (EINVAL, EOVERFLOW) and not r.content, "got %s", r.errors)
                    else:
                        must(r.data == f.exports["vda"].content(0, n), "wrong bytes")
                must(c.read(0, 512).data == pattern(0, 512), "the connection did not survive")
                c.disc()


@test
def chunks_stay_within_the_maximum_payload(s):
    """Structured reply types: no variable-length portion larger than the maximum payload."""
    needs("--max-request")
    with Fixture(["vda:64M:half,allfine=f"], ["--max-request", str(64 * K)]) as f:
        with f.open("vda", infos=[INFO_BLOCK_SIZE]) as c:
            for off in (0, 12345, 32 * M - 1000):
                must(c.read(off, 64 * K).data == f.exports["vda"].content(off, 64 * K), "wrong bytes")
            c.disc()
        for mode, each in ((dict(structured=True), 8), (dict(extended=True), 16)):
            with f.open("vda", [FINE], infos=[INFO_BLOCK_SIZE], **mode) as c:
                for off, n in ((0, 64 * M), (8 * M + 2048, 40 * M), (32 * M, 64 * K)):
                    (ext,) = c.status(off, n).status.values()  # nbdwire counts
                    covered = sum(e[0] for e in ext)
                    must(ext == f.exports["vda"].dirty(off, covered), "wrong extents")
                    must(covered == n or len(ext) == 64 * K // each, "cut at %d", len(ext))
                c.disc()


@test
def preferred_block_size_is_the_exports(s):
    """NBD_INFO_BLOCK_SIZE: preferred block size."""
    needs("pref=")
    with Fixture(["a:64M:pattern,pref=65536", "b:64M:pattern"]) as f, f.hello() as c:
        must(c.info("a", [INFO_BLOCK_SIZE]).block_size == (1, 65536, 32 * M), "a")
        must(c.info("b", [INFO_BLOCK_SIZE]).block_size == (1, 4096, 32 * M), "b")
        c.abort()


@test
def preferred_block_size_is_no_constraint(s):
    """Size constraints: only the minimum block size binds requests."""
    needs("pref=")
    with Fixture(["a:64M:pattern,pref=65536,dirty=d"]) as f:
        with f.open("a", contexts=[BA, "qemu:dirty-bitmap:d"], infos=[INFO_BLOCK_SIZE]) as c:
            must(c.read(3, 5).data == pattern(3, 5), "wrong bytes")
            must(not c.status(3, 5).errors, "status failed")
            c.disc()


@test
def requests_10000_in_flight_are_answered_once_each(s):
    """Transmission: any number in flight.  A second thread sends; back-pressure is no deadlock."""
    for mode in MODES:
        with s.open("pat", structured=mode) as c:
            blob = b"".join(c.pack(CMD_READ, (i * 512) % (4 * M), 512)[0] for i in range(10000))
            t = c.post(blob)
            for _ in range(10000):
                _, p = c.wait_any()
                must(p.data == pattern(p.off, 512), "wrong bytes")
            t.join()
            c.disc()


@test
def large_reads_64_in_flight_are_answered(s):
    """Transmission: 64 reads of 4 MiB in flight."""
    e = s.exports["vda"]
    for mode in MODES:
        with s.open("vda", structured=mode) as c:
            c.send(b"".join(c.pack(CMD_READ, i * 900001, 4 * M)[0] for i in range(64)))
            for _ in range(64):
                _, p = c.wait_any()
                must(p.data == e.content(p.off, p.len), "wrong bytes")
            c.disc()


@test
def connections_100_at_once_are_all_served(s):
    """Issue 3: 100 busy connections at once."""
    e = s.exports["vda"]
    conns = [s.open("vda", contexts=[BA, e.dirty_context], tcp=i % 2 == 1, structured=True)
             for i in range(100)]
    for rnd in range(3):
        for i, c in enumerate(conns):
            off = (i * 7 + rnd) * 65536 + i
            c.send(c.pack(CMD_READ, off, 65536)[0] + c.pack(CMD_BLOCK_STATUS, off, 65536)[0])
        for c in conns:
            for _ in range(2):
                _, p = c.wait_any()
                if p.cmd == CMD_READ:
                    must(p.data == e.content(p.off, p.len), "wrong bytes")
                else:
                    must(p.status[c.context_id(e.dirty_context)] == e.dirty(p.off, p.len), "wrong status")
    for c in conns:
        c.disc()


def surplus(f, tcp=False):
    """Whether one more connection is refused, and with which words."""
    with f.hello(tcp) as c:
        c.send_opt(OPT_LIST)
        r = c.opt_reply(OPT_LIST)
        c.send_opt(OPT_ABORT)
        return r.data.decode() if r.type == ERR_POLICY else None


@test(plain=True)
def connection_beyond_the_limit_is_told_so(s):
    """Issue 3: a refused connection gets an answer where the protocol has one (ERR_POLICY)."""
    needs("--max-connections")
    with Fixture(["vda:1M:pattern"], ["--max-connections", "4"]) as f:
        conns = [f.open() for _ in range(4)]
        for tcp in (False, True):
            with f.hello(tcp) as c:
                for opt, data in ((OPT_EXTENDED, b""), (OPT_STRUCTURED, b""),
                                  (OPT_LIST, b""), (OPT_STARTTLS, b""), (99, b"x"),
                                  (OPT_INFO, c.info_data("vda")), (OPT_GO, c.info_data("vda")),
                                  (OPT_GO, c.info_data("no such"))):
                    c.send_opt(opt, data)
                    r = c.opt_reply(opt)
                    must(r.type == ERR_POLICY, "option %d got %#x", opt, r.type)
                    must(b"all 4 connections" in r.data, "it says %r", r.data)
                c.send_opt(OPT_ABORT)
                must(c.opt_reply(OPT_ABORT).type == REP_ACK, "ABORT was not answered")
                c.drain()
            with f.hello(tcp) as c:
                c.send_opt(OPT_EXPORT_NAME, b"vda")
                c.expect_close()
        for c in conns:
            must(c.read(0, 512).data == pattern(0, 512), "a client within the limit suffered")


@test
def connections_refused_are_few_and_go_by_themselves(s):
    """Issue 3: those that are told are 64 at once; the others are closed; none outlasts its time."""
    needs("--max-connections")
    with Fixture(["vda:1M:pattern"], ["--max-connections", "1", "--handshake-timeout", "300"]) as f:
        kept = f.open()
        base = f.open_fds()
        idle = [f.connect(tcp=i % 2 == 1) for i in range(200)]
        told = 0
        for c in idle:
            try:
                c.greeting()
                told += 1
            except (Closed, OSError):
                pass
        must(0 < told <= 200, "%d were greeted", told)
        must(f.open_fds() <= base + 64, "%d descriptors, %d before", f.open_fds(), base)
        for c in idle:
            c.drain()
        eventually(lambda: f.open_fds() == base, "the refused are gone")
        must(kept.read(0, 512).data == pattern(0, 512), "the client within the limit suffered")


@test(plain=True)
def peer_that_takes_all_leaves_a_reserve_for_others(s):
    """Issue 3: one address cannot shut the others out."""
    needs("--max-connections")
    with Fixture(["vda:1M:pattern"], ["--max-connections", "96"]) as f:
        greedy = [f.open(tcp=True) for _ in range(93)]
        must("kept for others" in (surplus(f, tcp=True) or ""), "the greedy peer got the reserve")
        others = [f.open() for _ in range(3)]
        must("all 96 connections" in (surplus(f) or ""), "more connections than there may be")
        must(others[0].read(0, 512).data == pattern(0, 512), "wrong bytes")
        for c in greedy[:20]:
            c.disc()
        eventually(lambda: not surplus(f), "places free again")


@test(plain=True)
def peer_has_no_more_connections_than_it_may(s):
    """Issue 3: limits on connections per peer address."""
    needs("--max-per-peer")
    with Fixture(["vda:1M:pattern"], ["--max-per-peer", "3"]) as f:
        for tcp in (False, True):
            conns = [f.open(tcp=tcp) for _ in range(3)]
            must("all that one peer may have" in (surplus(f, tcp) or ""), "a fourth got in")
            conns[0].disc()
            eventually(lambda: not surplus(f, tcp), "a place free again")
            for c in conns[1:]:
                must(c.read(0, 512).data == pattern(0, 512), "wrong bytes")


def opened(f):
    """A connection, as soon as there is a place for it."""
    got = []

    def try_it():
        try:
            got.append(f.open())
        except (Violation, Closed):
            pass
        return got
    eventually(try_it, "a place free again")
    return got[0]


@test(plain=True)
def place_of_a_client_that_left_is_free_again(s):
    """Issue 3: limits on connections."""
    needs("--max-connections")
    with Fixture(["vda:1M:pattern"], ["--max-connections", "2"]) as f:
        for i in range(30):
            a, b = opened(f), opened(f)
            must(surplus(f), "a third one got in")
            if i % 3 == 0:
                a.reset()
                b.close()
            else:
                a.disc()
                b.disc()


@test
def idle_connections_cost_little(s):
    """Issue 3: memory stays within a bound: below 256 KiB for each idle connection."""
    s.check_serves()
    before = s.rss()
    conns = [s.open("vda", contexts=[BA]) for _ in range(200)]
    each = (s.rss() - before) // 200
    must(each < 256 * K, "%d KiB each", each // K)
    for c in conns:
        c.close()


@test
def idle_server_uses_no_processor(s):
    """An idle client and a stalled one cost no time: no loop spins."""
    e = s.exports["vda"]
    with s.open("vda") as idle, s.open("vda") as stalled, s.hello() as silent:
        stalled.send(b"".join(stalled.pack(CMD_READ, 0, 32 * M)[0] for _ in range(4)))
        must(idle.read(0, 512).data == e.content(0, 512), "wrong bytes")
        time.sleep(0.5)  # until the stalled one's replies have filled what there is to fill
        began = s.cpu()
        time.sleep(1)
        used = s.cpu() - began
        must(used < 0.3, "%.2f s of processor time in 1 s of idleness", used)


main()
