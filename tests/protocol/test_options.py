#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Option haggling in general: unknown options, ABORT, STRUCTURED_REPLY, STARTTLS, order."""
import itertools

from nbdtest import *  # noqa: F401,F403

UNKNOWN = (0, 4, 12, 13, 255, 1000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@test(generic=True)
def unknown_option_is_unsup(s):
    """Baseline: messages not implemented MUST get NBD_REP_ERR_UNSUP."""
    with s.hello() as c:
        for o in UNKNOWN:
            t = c.final(o)
            must(t == ERR_UNSUP, "option %#x got %s", o, rep_name(t))
        c.abort()


@test(generic=True)
def data_of_an_unknown_option_is_skipped(s):
    """Newstyle negotiation: the length allows the server to skip options it does not understand."""
    decoy = struct.pack(">QII", IHAVEOPT, OPT_ABORT, 0)
    with s.hello() as c:
        for data in (b"x", b"\0" * 3, decoy, decoy * 100, bytes(4096)):
            t = c.final(77, data)
            must(t == ERR_UNSUP, "got %s", rep_name(t))
        c.go(s.name)
        c.disc()


@test
def data_too_long_to_keep_is_answered_as_the_option_wants(s):
    """Baseline: options not implemented MUST get UNSUP; NBD_OPT_ABORT: SHOULD ignore any data;
    NBD_OPT_LIST, STRUCTURED_REPLY, EXTENDED_HEADERS, STARTTLS: data SHOULD be INVALID; else
    NBD_REP_ERR_TOO_BIG: the request is too large to process.  However much it is."""
    due = {12: ERR_UNSUP, 77: ERR_UNSUP, OPT_PEEK_EXPORT: ERR_UNSUP, OPT_LIST: ERR_INVALID,
           OPT_STRUCTURED: ERR_INVALID, OPT_EXTENDED: ERR_INVALID, OPT_STARTTLS: ERR_INVALID,
           OPT_INFO: ERR_TOO_BIG, OPT_GO: ERR_TOO_BIG, OPT_LIST_META: ERR_TOO_BIG,
           OPT_SET_META: ERR_TOO_BIG}
    for n in (64 * K + 1, M):
        with s.hello() as c:
            c.negotiate_structured()
            for opt, want in due.items():
                t = c.final(opt, bytes(n))
                must(t == want, "option %d of %d bytes got %s", opt, n, rep_name(t))
            must(c.final(OPT_ABORT, bytes(n)) == REP_ACK, "no ACK")
            c.expect_close()


@test(generic=True)
def option_after_an_unknown_one_is_parsed(s):
    """Baseline: the server MUST NOT fail to parse the next message received."""
    with s.hello() as c:
        for _ in range(10):
            c.final(99, b"abc")
            must(c.info(s.name).ok, "INFO failed")
        c.abort()


@test(generic=True)
def option_may_come_byte_by_byte(s):
    """Newstyle negotiation: a stream has no message borders."""
    with s.hello() as c:
        data = c.info_data(s.name, [INFO_BLOCK_SIZE])
        for b in struct.pack(">QII", IHAVEOPT, OPT_INFO, len(data)) + data:
            c.send(bytes([b]))
        must(c.info_replies(s.name).ok, "INFO failed")
        c.abort()


@test
def option_may_be_cut_at_any_byte(s):
    """Newstyle negotiation: a stream has no message borders."""
    with s.hello() as c:
        data = c.info_data("vda", [INFO_BLOCK_SIZE])
        stream = struct.pack(">QII", IHAVEOPT, OPT_INFO, len(data)) + data
        for n in range(1, len(stream)):
            c.send(stream[:n])
            # what was sent so far must not be answered: any byte would break the next parse
            c.send(stream[n:])
            must(c.info_replies("vda").ok, "INFO failed")
        c.abort()


@test(generic=True)
def abort_is_acknowledged(s):
    """NBD_OPT_ABORT: the server MUST reply with NBD_REP_ACK."""
    with s.hello() as c:
        must(c.final(OPT_ABORT) == REP_ACK, "no ACK")


@test
def abort_is_followed_by_close(s):
    """NBD_OPT_ABORT: terminates the session."""
    with s.hello() as c:
        must(c.final(OPT_ABORT) == REP_ACK, "no ACK")
        c.expect_close()


@test(generic=True)
def abort_with_data_is_acknowledged(s):
    """NBD_OPT_ABORT: a server SHOULD ignore any data sent."""
    with s.hello() as c:
        must(c.final(OPT_ABORT, b"because") == REP_ACK, "no ACK")


@test
def abort_without_waiting_for_the_reply_harms_nobody(s):
    """NBD_OPT_ABORT: the client may close without waiting for a reply."""
    for i in range(50):
        c = s.hello()
        c.send_opt(OPT_ABORT)
        c.close() if i % 2 else c.reset()
    s.check_serves()


@test(generic=True)
def structured_reply_is_acknowledged(s):
    """NBD_OPT_STRUCTURED_REPLY."""
    with s.hello() as c:
        c.negotiate_structured()
        c.go(s.name)
        must(not c.read(0, 512).simple, "simple reply")
        c.disc()


@test(generic=True)
def structured_reply_with_data_is_invalid(s):
    """NBD_OPT_STRUCTURED_REPLY: data SHOULD be rejected with NBD_REP_ERR_INVALID."""
    with s.hello() as c:
        t = c.final(OPT_STRUCTURED, b"1")
        must(t == ERR_INVALID, "got %s", rep_name(t))
        c.abort()


@test
def refused_structured_reply_is_not_negotiated(s):
    """NBD_OPT_STRUCTURED_REPLY: negotiated by ACK only."""
    with s.hello() as c:
        c.final(OPT_STRUCTURED, b"1")
        c.go("vda")
        must(not c.tflags & SEND_DF, "SEND_DF is set")
        must(c.read(0, 512).simple, "structured reply")
        c.disc()


@test(generic=True)
def structured_reply_twice_stays_negotiated(s):
    """Fixed newstyle: a repeated message MAY fail with INVALID, no more."""
    with s.hello() as c:
        c.negotiate_structured()
        t = c.final(OPT_STRUCTURED)
        must(t in (REP_ACK, ERR_INVALID), "got %s", rep_name(t))
        c.go(s.name)
        must(not c.read(0, 512).simple, "simple reply")
        c.disc()


@test(generic=True, plain=True)
def starttls_without_tls_is_refused(s):
    """NOTLS mode: POLICY, UNSUP, or another permitted error; never ACK, never TLS_REQD."""
    with s.hello() as c:
        t = c.final(OPT_STARTTLS)
        must(t in (ERR_POLICY, ERR_UNSUP, ERR_PLATFORM), "got %s", rep_name(t))
        c.abort()


@test(generic=True, plain=True)
def starttls_with_data_is_refused(s):
    """NBD_OPT_STARTTLS: an error, for example INVALID."""
    with s.hello() as c:
        t = c.final(OPT_STARTTLS, b"please")
        must(t in (ERR_POLICY, ERR_UNSUP, ERR_PLATFORM, ERR_INVALID), "got %s", rep_name(t))
        c.abort()


@test
def refused_starttls_forgets_nothing(s):
    """NBD_OPT_STARTTLS: state is dropped when this command succeeds."""
    with s.hello() as c:
        c.negotiate_structured()
        c.set_meta("vda", ["base:allocation"])
        c.final(OPT_STARTTLS)
        c.go("vda")
        must(not c.status(0, 65536).errors, "the context was forgotten")
        c.disc()


@test(generic=True, plain=True)
def nothing_gets_tls_reqd_without_tls(s):
    """NOTLS mode: the server MUST NOT respond to any option request with TLS_REQD."""
    with s.hello() as c:
        for o in list(range(2, 12)) + [500]:
            if o in (OPT_ABORT, OPT_GO):
                continue
            data = c.info_data("none") if o == OPT_INFO else b""
            t = c.option(o, data)[-1].type
            must(t != ERR_TLS_REQD, "option %d got TLS_REQD", o)
        c.abort()


@test(generic=True)
def extended_headers_are_granted_or_unsup(s):
    """NBD_OPT_EXTENDED_HEADERS: known only to the extension."""
    with s.hello() as c:
        t = c.final(OPT_EXTENDED)
        must(t in (REP_ACK, ERR_UNSUP), "got %s", rep_name(t))
        c.abort()


@test
def extended_request_without_negotiation_closes(s):
    """Reserved magic values: used only as the extension says."""
    with s.open("vda", structured=True) as c:
        c.send(struct.pack(">IHHQQQ", EXT_REQUEST_MAGIC, 0, CMD_READ, 1, 0, 512))
        c.expect_close()


@test
def options_work_in_every_order(s):
    """Fixed newstyle: options in any order; only contexts wait for structured replies."""
    def structured(c):
        t = c.final(OPT_STRUCTURED)
        must(t in (REP_ACK, ERR_INVALID), "STRUCTURED_REPLY got %s", rep_name(t))

    def listing(c):
        must(c.option(OPT_LIST)[-1].type == REP_ACK, "LIST failed")

    def info(c):
        must(c.info("vda", [INFO_BLOCK_SIZE, INFO_NAME]).ok, "INFO failed")

    def metas(c):
        t = c.list_meta("vda")[1]
        must(t == REP_ACK or (t == ERR_INVALID and not c.structured), "LIST_META %s", rep_name(t))

    def setm(c):
        t = c.set_meta("vda", ["base:allocation"])[1]
        must(t == (REP_ACK if c.structured else ERR_INVALID), "SET_META %s", rep_name(t))

    for order in itertools.permutations((structured, listing, info, metas, setm)):
        with s.hello() as c:
            for step in order:
                step(c)
            selected = dict(c.contexts)
            c.go("vda")
            r = c.status(0, 4096)
            must(bool(r.errors) != bool(selected), "status %s with contexts %s", r.errors, selected)
            c.disc()


@test
def options_may_be_repeated(s):
    """Fixed newstyle: state-changing repeats MAY be INVALID, queries work each time."""
    with s.hello() as c:
        c.negotiate_structured()
        first = None
        for _ in range(30):
            got = ([(r.type, r.data) for r in c.option(OPT_LIST)], c.list_meta("vda"),
                   c.info("vda", [INFO_BLOCK_SIZE]).items)
            must(first in (None, got), "answers changed")
            first = got
            must(c.set_meta("vda", ["base:allocation"])[1] == REP_ACK, "SET failed")
        c.go("vda")
        must(not c.status(0, 4096).errors, "status failed")
        c.disc()


@test
def haggling_goes_on_after_each_error(s):
    """Termination of the session during option haggling: the server MUST simply error options."""
    with s.hello() as c:
        for _ in range(3):
            for opt, data in ((99, b""), (OPT_STARTTLS, b""), (OPT_LIST, b"x"), (OPT_INFO, b""),
                              (OPT_GO, b"\xff" * 9), (OPT_STRUCTURED, b"y"), (OPT_SET_META, b"\0"),
                              (OPT_LIST_META, b"\xff" * 4), (OPT_GO, c.info_data("nope"))):
                rs = c.option(opt, data)
                must(rs[-1].is_error, "option %d %r got %s", opt, data, rs)
        c.go("vda")
        must(c.read(0, 512).data == s.exports["vda"].content(0, 512), "wrong bytes")
        c.disc()


main()
