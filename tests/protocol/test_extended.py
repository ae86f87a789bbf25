#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Extended headers: proto.md of the branch extension-ext-header, "EXTENDED_HEADERS" below."""
import itertools

from nbdtest import *  # noqa: F401,F403

BA = "base:allocation"
VDA_DIRTY = "qemu:dirty-bitmap:backup-vda"


def ext(s, name=None, contexts=None, **kw):
    return s.open(name, contexts, extended=True, **kw)


def alive(c):
    must(c.read(0, 512).data == pattern(0, 512), "wrong bytes afterwards")


# --- the option ----------------------------------------------------------------------------------

@test
def extended_headers_are_granted_first_later_and_twice(s):
    """NBD_OPT_EXTENDED_HEADERS: SHOULD be supported even if structured replies are not negotiated;
    a client MAY ask for those first."""
    for before in ((), (OPT_STRUCTURED,), (OPT_EXTENDED,), (OPT_STRUCTURED, OPT_EXTENDED)):
        with s.hello() as c:
            for o in before:
                c.final(o)
            c.negotiate_extended()
            c.go("pat")
            alive(c)
            c.disc()


@test
def extended_headers_with_data_are_invalid(s):
    """NBD_OPT_EXTENDED_HEADERS: SHOULD reject a request that includes data with ERR_INVALID; nothing
    is negotiated then."""
    with s.hello() as c:
        t = c.final(OPT_EXTENDED, b"x")
        must(t == ERR_INVALID, "got %s", rep_name(t))
        c.go("pat")
        must(c.read(0, 512).simple, "something was negotiated")
        c.disc()


@test
def structured_replies_after_extended_headers_are_refused(s):
    """NBD_OPT_STRUCTURED_REPLY: ERR_EXT_HEADER_REQD where extended headers were negotiated, which
    take precedence."""
    with s.hello() as c:
        c.negotiate_extended()
        t = c.final(OPT_STRUCTURED)
        must(t == ERR_EXT_HEADER_REQD, "got %s", rep_name(t))
        c.go("pat")
        alive(c)
        c.disc()


@test
def options_work_in_every_order_with_extended_headers(s):
    """Fixed newstyle: options in any order; contexts want either kind of chunks first, and the last
    of the two that was granted counts."""
    def structured(c):
        t = c.final(OPT_STRUCTURED)
        must(t == (ERR_EXT_HEADER_REQD if c.extended else REP_ACK), "got %s", rep_name(t))

    def extended(c):
        c.negotiate_extended()

    def info(c):
        flags = c.info("vda", [INFO_BLOCK_SIZE]).flags
        must(bool(flags & BLOCK_STATUS_PAYLOAD) == bool(c.extended and c.contexts), "%#x", flags)

    def listing(c):
        must(c.list_meta("vda")[1] == REP_ACK, "LIST_META failed")

    def setm(c):
        t = c.set_meta("vda", [BA])[1]
        must(t == (REP_ACK if c.structured else ERR_INVALID), "SET_META %s", rep_name(t))

    for order in itertools.permutations((structured, extended, info, listing, setm)):
        with s.hello() as c:
            for step in order + order:
                step(c)
            c.go("vda")
            must(not c.status(0, 4096).errors, "no status")
            c.disc()


@test
def export_name_after_extended_headers_closes(s):
    """NBD_OPT_EXPORT_NAME: MUST NOT be used after extended headers; there is no error reply."""
    with s.hello() as c:
        c.negotiate_extended()
        c.send_opt(OPT_EXPORT_NAME, b"pat")
        c.expect_close()


@test
def contexts_need_only_extended_headers(s):
    """NBD_OPT_SET_META_CONTEXT: structured replies or extended headers first."""
    with ext(s, "vda", [BA, VDA_DIRTY]) as c:
        e = s.exports["vda"]
        p = c.status(0, e.size)
        must(merge(p.status[c.context_id(BA)]) == e.allocation(0, e.size), "wrong allocation")
        must(merge(p.status[c.context_id(VDA_DIRTY)]) == e.dirty(0, e.size), "wrong dirty map")
        c.disc()


@test
def payload_flag_is_offered_where_contexts_were_negotiated(s):
    """NBD_FLAG_BLOCK_STATUS_PAYLOAD: MUST NOT without extended headers, SHOULD NOT without contexts;
    SEND_DF as with structured replies."""
    for extended in (False, True):
        for contexts in (None, [], [BA]):
            with s.open("vda", contexts, extended=extended) as c:
                want = extended and bool(contexts)
                must(bool(c.tflags & BLOCK_STATUS_PAYLOAD) == want, "extended %s contexts %s: %#x",
                     extended, contexts, c.tflags)
                must(c.tflags & SEND_DF, "no SEND_DF")
                c.disc()
    with s.hello() as c:  # contexts of another export count for nothing
        c.negotiate_extended()
        c.set_meta("vda", [BA])
        must(not c.go("pat").flags & BLOCK_STATUS_PAYLOAD, "contexts of another export")
        c.disc()


# --- headers -------------------------------------------------------------------------------------

@test
def compact_request_of_an_extended_client_closes(s):
    """Request message: only the extended request after the negotiation."""
    with ext(s, "vda") as c:
        c.send(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_READ, 1, 0, 512) + bytes(4))
        c.expect_close()


@test
def every_reply_is_an_extended_chunk_with_the_requests_offset(s):
    """Extended reply chunk: all replies, also errors and those without payload; offset MUST match
    the request's (the codec judges each)."""
    with ext(s, "vda", [BA]) as c:
        e = s.exports["vda"]
        for off, n in ((0, 1), (12345, 70000), (e.size // 2 - 5, 4 * M), (e.size - 1, 1)):
            for flags in (0, DF):
                must(c.read(off, n, flags).data == e.content(off, n), "wrong bytes at %d", off)
        must(not c.do(CMD_FLUSH).errors, "FLUSH")
        must(not c.do(CMD_CACHE, 4096, M).errors, "CACHE")
        must(c.read(e.size, 1).error == EINVAL, "beyond the end")
        must(c.do(99, 5, 7).error == EINVAL, "unknown command")
        must(c.do(CMD_TRIM, 4096, 4096).error == EPERM, "TRIM")
        must(not c.status(12345, 54321).errors, "status")
        c.disc()


@test
def holes_and_errors_of_reads_are_extended(s):
    """Structured reply types: content and error chunks carry their own offsets behind the header."""
    with ext(s, "zero") as c:
        p = c.read(M + 1, 8 * M)
        must(p.data == bytes(8 * M) and p.holes, "no hole")
        c.disc()
    with ext(s, "bad") as c:
        p = c.read(0, M)
        must(p.error == EIO and p.message and p.errors[0][2] is not None, "got %s", p.errors)
        alive(c)
        c.disc()


@test
def reads_in_flight_are_answered_whole(s):
    """Ordering: chunks of many requests may mix."""
    with ext(s, "vda") as c:
        e = s.exports["vda"]
        cookies = {c.cmd(CMD_READ, i * M - (i > 0), 300000): i * M - (i > 0) for i in range(60)}
        while cookies:
            cookie, p = c.wait_any()
            off = cookies.pop(cookie)
            must(p.data == e.content(off, 300000), "wrong bytes at %d", off)
        c.disc()


# --- 64-bit lengths ------------------------------------------------------------------------------

@test
def status_of_8_tib_comes_in_one_reply(s):
    """BLOCK_STATUS_EXT: extents beyond 32 bits."""
    with ext(s, "huge", [BA]) as c:
        p = c.status(0, 8 * T)
        must(list(p.status.values()) == [[(8 * T, 3)]], "got %s", list(p.status.values()))
        p = c.status(5 * G + 7, 7 * T)
        must(list(p.status.values()) == [[(7 * T, 3)]], "got %s", list(p.status.values()))
        c.disc()


@test
def cache_takes_64_bit_lengths(s):
    """Request message: effect lengths utilize 64 bits."""
    with ext(s, "huge") as c:
        must(not c.do(CMD_CACHE, 0, 8 * T).errors, "CACHE of 8 TiB")
        must(c.do(CMD_CACHE, 1, 8 * T).error == EINVAL, "CACHE beyond the end")
        c.disc()


@test
def lengths_near_2_to_64_are_refused(s):
    """Size constraints: beyond the export is EINVAL; no sum wraps round."""
    with ext(s, "vda", [BA]) as c:
        for cmd in (CMD_READ, CMD_CACHE, CMD_BLOCK_STATUS):
            for off, n in ((0, 2**64 - 1), (512, 2**64 - 512), (2**64 - 512, 1024), (0, 2**32 + 512)):
                must(c.do(cmd, off, n).error == EINVAL, "%d: %d+%d was taken", cmd, off, n)
        must(not c.read(0, 512).errors, "dead")
        c.disc()


@test
def reads_beyond_the_maximum_are_eoverflow(s):
    """NBD_CMD_READ: MAY be rejected up front with EOVERFLOW, also beyond 32 bits."""
    with ext(s, "huge") as c:
        for n in (32 * M + 1, G, 2**32 + 512, 4 * T):
            must(c.read(0, n).error == EOVERFLOW, "%d", n)
        must(not c.read(0, 32 * M).errors, "32 MiB")
        c.disc()


# --- payloads ------------------------------------------------------------------------------------

@test
def writes_are_eperm_and_their_payload_is_drained(s):
    """NBD_CMD_FLAG_PAYLOAD_LEN: length bytes follow; a refused one is consumed."""
    with ext(s, "pat") as c:
        decoy = struct.pack(">IHHQQQ", EXT_REQUEST_MAGIC, 0, CMD_READ, 666, 0, 512)
        for n in (1, 31, 32, 33, 4096, 65537, 3 * M + 5, 32 * M):
            payload = (decoy * (n // 32 + 1))[:n]
            must(c.do(CMD_WRITE, 0, n, PAYLOAD_LEN, payload).error == EPERM, "%d bytes", n)
            alive(c)
        c.disc()


@test
def write_without_payload_len_has_no_payload(s):
    """Request message: the flag MUST be set for WRITE; without it nothing follows the header."""
    with ext(s, "pat") as c:
        must(c.do(CMD_WRITE, 0, 4096).error == EINVAL, "not EINVAL")
        alive(c)
        c.disc()


@test
def payload_of_other_commands_is_drained_and_einval(s):
    """NBD_CMD_FLAG_PAYLOAD_LEN: EINVAL unless the command documents a payload."""
    with ext(s, "pat") as c:
        for cmd in (CMD_READ, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, 8, 500):
            for n in (0, 1, 32, 5000):
                r = c.do(cmd, 0, n, PAYLOAD_LEN, b"\x21" * n)
                must(r.error == EINVAL, "command %d with %d bytes got %s", cmd, n, r.errors)
                alive(c)
        c.disc()


@test
def payload_beyond_the_maximum_closes(s):
    """Request message: SHOULD hard disconnect above the maximum payload."""
    for cmd in (CMD_WRITE, CMD_BLOCK_STATUS, CMD_READ):
        for n in (32 * M + 1, 2**32, 2**64 - 1):
            with ext(s, "vda", [BA]) as c:
                c.send(c.pack(cmd, 0, n, PAYLOAD_LEN)[0])
                c.expect_close()


@test
def payload_len_of_a_compact_client_is_einval(s):
    """Request message: in the compact style MUST NOT be used; only WRITE has a payload."""
    with s.open("pat", [BA]) as c:
        for cmd in (CMD_READ, CMD_CACHE, CMD_BLOCK_STATUS):
            must(c.do(cmd, 0, 512, PAYLOAD_LEN).error == EINVAL, "command %d", cmd)
        must(c.do(CMD_WRITE, 0, 512, PAYLOAD_LEN, bytes(512)).error in (EPERM, EINVAL), "WRITE")
        alive(c)
        c.disc()


# --- filtered block status -----------------------------------------------------------------------

@test
def status_is_filtered_by_its_payload(s):
    """NBD_CMD_BLOCK_STATUS: replies only for the contexts of the payload, in any order of them."""
    with ext(s, "vda", [BA, VDA_DIRTY]) as c:
        e = s.exports["vda"]
        ba, d = c.context_id(BA), c.context_id(VDA_DIRTY)
        for ids in ([ba], [d], [ba, d], [d, ba]):
            p = c.filtered(100, e.size - 100, ids)
            must(not p.errors, "%s got %s", ids, p.errors)
            for i, want in ((ba, e.allocation), (d, e.dirty)):
                must(i not in ids or merge(p.status[i]) == want(100, e.size - 100), "wrong map")
        p = c.filtered(0, e.size, [d], REQ_ONE)
        must(p.status[d] == [(64 * K, 0)], "REQ_ONE got %s", p.status)
        must(len(c.status(0, e.size).status) == 2, "the filter stayed")
        c.disc()


@test
def filtered_status_takes_64_bit_effect_lengths(s):
    """NBD_CMD_BLOCK_STATUS: 64 bits, effect length."""
    with ext(s, "huge", [BA]) as c:
        p = c.filtered(0, 8 * T, [c.context_id(BA)])
        must(list(p.status.values()) == [[(8 * T, 3)]], "got %s", p.status)
        c.disc()


@test
def filtered_status_beyond_the_end_is_einval(s):
    """NBD_CMD_BLOCK_STATUS: EINVAL for an effect length exceeding the export; of 0, no disconnect."""
    with ext(s, "vda", [BA]) as c:
        for off, n in ((0, 64 * M + 1), (64 * M, 1), (0, 2**64 - 1), (1, 2**64 - 1)):
            must(c.filtered(off, n, [c.context_id(BA)]).error == EINVAL, "%d+%d", off, n)
        must(c.filtered(0, 0, [c.context_id(BA)]).error in (0, EINVAL), "effect length 0")
        alive(c)
        c.disc()


def refused(c, payload):
    r = c.do(CMD_BLOCK_STATUS, 0, len(payload), PAYLOAD_LEN, payload)
    must(r.error == EINVAL and r.message, "payload of %d bytes got %s", len(payload), r.errors)
    alive(c)


@test
def wrong_status_payloads_are_drained_and_einval(s):
    """NBD_CMD_BLOCK_STATUS: duplicate or unknown ids, a wrong length: MUST gracefully consume the
    payload before EINVAL."""
    with ext(s, "vda", [BA, VDA_DIRTY]) as c:
        ba, d = c.context_id(BA), c.context_id(VDA_DIRTY)
        n = struct.pack(">Q", 512)

        def ids(*which):
            return n + b"".join(struct.pack(">I", i) for i in which)
        unknown = next(i for i in range(1, 100) if i not in (ba, d))
        for payload in (ids(ba, ba), ids(unknown), ids(0), ids(2**32 - 1), ids(ba, unknown),
                        ids(ba, d, ba), ids(*([ba] * 5000)), ids(), b"", n[:4], n + b"\0\0\0",
                        ids(ba) + b"\0", bytes(M)):
            refused(c, payload)
        must(not c.filtered(0, 512, [ba]).errors, "dead")
        c.disc()


@test
def filtered_status_without_contexts_is_einval(s):
    """NBD_FLAG_BLOCK_STATUS_PAYLOAD: not advertised, not supported, but drained."""
    with ext(s, "vda") as c:
        refused(c, struct.pack(">QI", 512, 1))
        must(c.status(0, 512).error == EINVAL, "status without contexts")
        c.disc()


@test
def status_payload_may_come_in_pieces(s):
    """NBD_CMD_BLOCK_STATUS: a stream has no message borders."""
    with ext(s, "vda", [BA, VDA_DIRTY]) as c:
        e = s.exports["vda"]
        d = c.context_id(VDA_DIRTY)
        blob, cookies = b"", {}
        for i in range(20):
            payload = struct.pack(">QI", M, d)
            b, cookie = c.pack(CMD_BLOCK_STATUS, i * M, M, PAYLOAD_LEN, wire_len=len(payload))
            c.pending[cookie].wanted = [d]
            cookies[cookie] = i * M
            blob += b + payload
        for i in range(0, len(blob), 13):
            c.send(blob[i:i + 13])
        while cookies:
            cookie, p = c.wait_any()
            must(merge(p.status[d]) == e.dirty(cookies.pop(cookie), M), "wrong map")
        c.disc()


main()
