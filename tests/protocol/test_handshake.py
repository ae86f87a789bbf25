#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The first bytes: greeting, client flags, EXPORT_NAME."""
from nbdtest import *  # noqa: F401,F403


@test(generic=True)
def server_speaks_first_and_with_both_magics(s):
    """Newstyle negotiation."""
    with s.connect() as c:
        c.greeting()


@test
def tcp_gives_the_same_greeting(s):
    """Newstyle negotiation."""
    with s.connect() as a, s.connect(tcp=True) as b:
        must(a.recv(18) == b.recv(18), "greetings differ")


@test
def nagle_is_off(s):
    """Protocol phases: with TCP sockets both sides SHOULD set TCP_NODELAY.  (A copy of the server's
    own descriptors is looked at.)"""
    with s.hello(tcp=True) as c:
        c.go(s.name)
        found = s.tcp_options(socket.TCP_NODELAY)
        must(found and all(found), "TCP_NODELAY of its connections: %s", found)
        c.disc()


@test(generic=True)
def fixed_newstyle_is_offered(s):
    """Handshake flags: bit 0 MUST be set by servers that support the fixed newstyle."""
    with s.connect() as c:
        must(c.greeting() & FLAG_FIXED_NEWSTYLE, "FIXED_NEWSTYLE is not set")


@test(generic=True)
def no_zeroes_is_offered(s):
    """Handshake flags: bit 1."""
    with s.connect() as c:
        must(c.greeting() & FLAG_NO_ZEROES, "NO_ZEROES is not set")


@test(generic=True)
def no_other_handshake_flag_is_set(s):
    """Handshake flags: the server MUST NOT set any other flags."""
    with s.connect() as c:
        must(c.greeting() & ~3 == 0, "flags %#x", c.hflags)


@test(generic=True)
def unknown_client_flag_closes(s):
    """Client flags: the server MUST drop the connection if the client sets an unknown flag."""
    for bit in list(range(2, 32)):
        with s.connect() as c:
            c.greeting()
            c.send(struct.pack(">I", 1 << bit))
            c.expect_close()


@test(generic=True)
def unknown_client_flag_beside_known_ones_closes(s):
    """Client flags."""
    for flags in (7, 0x80000003, 0xFFFFFFFF, 0x10001):
        with s.connect() as c:
            c.greeting()
            c.send(struct.pack(">I", flags))
            c.expect_close()


@test(generic=True)
def export_name_pads_with_124_zeroes(s):
    """Newstyle negotiation: 124 zeroes unless NO_ZEROES was negotiated."""
    with s.connect() as c:
        c.hello(C_FIXED_NEWSTYLE)
        c.export_name(s.name)
        c.read(0, 512)
        c.disc()


@test(generic=True)
def export_name_with_no_zeroes_is_not_padded(s):
    """Client flags: if NO_ZEROES is set, the server MUST NOT send the 124 bytes."""
    with s.connect() as c:
        c.hello()
        c.export_name(s.name)
        c.read(0, 512)
        c.disc()


@test(generic=True)
def go_is_never_padded(s):
    """NBD_OPT_GO: no zero padding after ACK whether or not NO_ZEROES was negotiated."""
    for flags in (C_FIXED_NEWSTYLE, C_FIXED_NEWSTYLE | C_NO_ZEROES):
        with s.connect() as c:
            c.hello(flags)
            c.go(s.name)
            c.read(0, 512)
            c.disc()


@test(generic=True)
def client_without_fixed_newstyle_gets_its_export_by_name(s):
    """Newstyle negotiation: EXPORT_NAME is the one option of non-fixed newstyle."""
    for flags in (0, C_NO_ZEROES):
        with s.connect() as c:
            c.hello(flags)
            c.export_name(s.name)
            c.read(0, 512)
            c.disc()


@test(plain=True)
def client_without_fixed_newstyle_never_gets_tls(s):
    """TLS support: MUST operate in NOTLS mode unless both sides set FIXED_NEWSTYLE."""
    with s.connect() as c:
        c.hello(0)
        try:
            t = c.final(OPT_STARTTLS)
        except Closed:
            return
        must(t not in (REP_ACK, ERR_TLS_REQD), "STARTTLS got %s", rep_name(t))


@test
def export_name_of_unknown_export_closes_without_a_word(s):
    """NBD_OPT_EXPORT_NAME: if the export does not exist, the server MUST terminate the session."""
    for name in (b"nope", b"VDA", b"vda ", b"vd", b"vdaa", b"vda\0", b"\xff\xfe", b"x" * 4096):
        with s.hello() as c:
            c.send_opt(OPT_EXPORT_NAME, name)
            c.expect_close()


@test
def export_name_longer_than_a_string_may_be_closes(s):
    """Conventions: a string MUST be no longer than 4096 bytes."""
    for n in (4097, 10000, 65536):
        with s.hello() as c:
            try:
                c.send_opt(OPT_EXPORT_NAME, b"v" * n)
            except Closed:
                pass
            c.expect_close()


@test
def empty_export_name_closes_when_there_is_no_default(s):
    """NBD_OPT_EXPORT_NAME: the empty name is the default export, if any; here are several."""
    with s.hello() as c:
        c.send_opt(OPT_EXPORT_NAME)
        c.expect_close()


@test
def empty_export_name_finds_the_only_listed_export(s):
    """NBD_OPT_EXPORT_NAME: the empty name is the default export."""
    with Fixture(["hid:1M:pattern,unlisted", "only:2M:pattern", "hid2:1M:pattern,unlisted"]) as f:
        with f.hello() as c:
            c.export_name("")
            must(c.size == 2 * M, "size %d", c.size)
            must(c.read(2 * M - 16, 16).data == pattern(2 * M - 16, 16), "wrong bytes")
            c.disc()


@test
def export_name_tells_the_same_as_go(s):
    """NBD_INFO_EXPORT: the same information as in response to EXPORT_NAME."""
    for name in s.exports:
        with s.hello() as a, s.hello() as b:
            a.export_name(name)
            b.go(name)
            must((a.size, a.tflags) == (b.size, b.tflags), "%s: EXPORT_NAME %s, GO %s", name,
                 (a.size, hex(a.tflags)), (b.size, hex(b.tflags)))
            must(a.size == s.exports[name].size, "size %d", a.size)


@test
def export_name_after_structured_reply_keeps_it(s):
    """NBD_OPT_STRUCTURED_REPLY: the server MUST use structured replies to READ."""
    with s.hello() as c:
        c.negotiate_structured()
        c.export_name("vda")
        must(c.tflags & SEND_DF, "no SEND_DF")
        must(not c.read(0, 4096).simple, "a simple reply")
        c.disc()


@test(generic=True)
def client_flags_may_come_byte_by_byte(s):
    """Newstyle negotiation: a stream has no message borders."""
    with s.connect() as c:
        c.greeting()
        for b in struct.pack(">I", 3):
            c.send(bytes([b]))
        c.cflags = 3
        c.go(s.name)
        c.disc()


@test(generic=True)
def client_flags_and_first_option_may_come_in_one_piece(s):
    """Newstyle negotiation."""
    with s.connect() as c:
        c.greeting()
        c.cflags = 3
        data = c.info_data(s.name)
        c.send(struct.pack(">IQII", 3, IHAVEOPT, OPT_GO, len(data)) + data)
        must(c.info_replies(s.name, OPT_GO).ok, "GO failed")
        c.disc()


@test
def client_that_does_not_wait_for_the_greeting_is_served(s):
    """Newstyle negotiation: both sides' first bytes may cross."""
    with s.connect() as c:
        data = c.info_data("vda")
        c.send(struct.pack(">IQII", 3, IHAVEOPT, OPT_GO, len(data)) + data)
        c.greeting()
        c.cflags = 3
        must(c.info_replies("vda", OPT_GO).ok, "GO failed")
        c.disc()


@test(generic=True)
def option_without_its_magic_closes(s):
    """Newstyle negotiation: each option opens with IHAVEOPT."""
    for magic in (0, NBDMAGIC, IHAVEOPT ^ 1, REP_MAGIC):
        with s.hello() as c:
            c.send_opt(OPT_LIST, magic=magic)
            c.expect_close(allow=120)  # an error reply before closing is no harm


@test
def client_that_closes_at_any_byte_of_the_handshake_harms_nobody(s):
    """Termination of the session during option haggling."""
    data = Conn.info_data("vda", [INFO_BLOCK_SIZE])
    stream = struct.pack(">IQII", 3, IHAVEOPT, OPT_GO, len(data)) + data
    for n in range(len(stream) + 1):
        c = s.connect()
        if n % 2:
            c.greeting()
        c.send(stream[:n])
        if n % 3:
            c.close()
        else:
            c.reset()
    s.check_serves()


main()
