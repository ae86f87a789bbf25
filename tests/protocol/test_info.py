#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""INFO and GO."""
from nbdtest import *  # noqa: F401,F403

BOTH = (OPT_INFO, OPT_GO)


@test(generic=True)
def info_tells_the_export_and_acks(s):
    """NBD_OPT_INFO: at least one NBD_REP_INFO with NBD_INFO_EXPORT, then ACK."""
    with s.hello() as c:
        must(c.info(s.name).ok, "INFO failed")
        c.abort()


@test(generic=True)
def info_stays_in_haggling(s):
    """NBD_OPT_INFO: does not move to the transmission phase."""
    with s.hello() as c:
        for _ in range(5):
            must(c.info(s.name).ok, "INFO failed")
        c.abort()


@test(generic=True)
def go_enters_transmission(s):
    """NBD_OPT_GO."""
    with s.hello() as c:
        c.go(s.name)
        c.read(0, 512)
        c.disc()


@test(generic=True)
def go_without_information_requests_works(s):
    """NBD_OPT_GO: MAY specify an empty list.  clients.md rule 6."""
    with s.hello() as c:
        c.go(s.name, [])
        c.disc()


@test(generic=True)
def info_and_go_with_the_same_parameters_agree(s):
    """NBD_OPT_INFO: the server MUST reply with the same set of information."""
    for infos in ([], [INFO_BLOCK_SIZE], [INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE, INFO_EXPORT]):
        with s.hello() as c:
            a = c.info(s.name, infos)
            b = c.go(s.name, infos)
            must(a.items == b.items, "INFO %s, GO %s", a.items, b.items)
            c.disc()


@test
def unknown_export_is_err_unknown(s):
    """NBD_OPT_INFO: NBD_REP_ERR_UNKNOWN, without NBD_REP_INFO replies."""
    with s.hello() as c:
        for opt in BOTH:
            for name in (b"nope", b"VDA", b"vda ", b"vda/", b"vda\0", b"vd", b"x" * 4096, b"\xc3\xa4"):
                i = c.info(name, [INFO_BLOCK_SIZE, INFO_NAME], opt)
                must(i.final in (ERR_UNKNOWN, ERR_INVALID) if b"\0" in name else
                     i.final == ERR_UNKNOWN, "%r got %s", name[:20], rep_name(i.final))
        c.go("vda")
        c.disc()


@test
def failed_go_stays_in_haggling(s):
    """NBD_OPT_GO: able to return errors."""
    with s.hello() as c:
        for _ in range(3):
            must(c.info("nope", opt=OPT_GO).final == ERR_UNKNOWN, "not UNKNOWN")
            must(c.option(OPT_LIST)[-1].type == REP_ACK, "LIST failed")
        c.go("vda")
        c.disc()


@test(generic=True)
def block_size_is_told_when_asked(s):
    """NBD_INFO_BLOCK_SIZE; the values' rules (powers of two, order) are checked by nbdwire."""
    with s.hello() as c:
        i = c.go(s.name, [INFO_BLOCK_SIZE])
        must(i.block_size, "no block size")
        bmin, bpref, bmax = i.block_size
        must(bmax >= min(1 << 20, i.size), "maximum payload %d SHOULD be at least 2^20", bmax)
        must(i.size % bmin == 0, "size %d is no multiple of the minimum block %d", i.size, bmin)
        c.disc()


@test(house=True)
def name_and_description_are_told_when_asked(s):
    """NBD_INFO_NAME, NBD_INFO_DESCRIPTION: the same as in LIST."""
    with s.hello() as c:
        listed = {r.name: r.description for r in c.option(OPT_LIST)[:-1]}
        for name in listed:
            i = c.info(name, [INFO_NAME, INFO_DESCRIPTION])
            must(i.items.get(INFO_NAME) == name.encode(), "name %r", i.items.get(INFO_NAME))
            d = i.items.get(INFO_DESCRIPTION, b"").decode()
            must(d == listed[name], "description %r in INFO, %r in LIST", d, listed[name])
        c.abort()


@test
def canonical_name_of_the_default_export_is_told(s):
    """NBD_INFO_NAME: the server's canonical name of the export."""
    with Fixture(["only:1M:pattern"]) as f, f.hello() as c:
        i = c.info("", [INFO_NAME])
        must(i.ok, "got %s", rep_name(i.final))
        must(i.items.get(INFO_NAME) == b"only", "name %r", i.items.get(INFO_NAME))
        c.go("", [INFO_NAME])
        must(c.read(0, 64).data == pattern(0, 64), "wrong bytes")
        c.disc()


@test
def empty_name_is_unknown_when_there_is_no_default(s):
    """NBD_OPT_INFO: an empty name specifies the default export (if any)."""
    with s.hello() as c:
        for opt in BOTH:
            t = c.info("", [], opt).final
            must(t == ERR_UNKNOWN, "got %s", rep_name(t))
        c.abort()


@test(generic=True)
def unknown_information_request_is_ignored(s):
    """NBD_OPT_INFO: the server MUST ignore any information requests it does not understand."""
    with s.hello() as c:
        a = c.info(s.name, [INFO_BLOCK_SIZE])
        b = c.info(s.name, [4, 5, 99, 0x8000, 0xFFFF, INFO_BLOCK_SIZE])
        must(b.ok, "got %s", rep_name(b.final))
        must(a.items == b.items, "answers differ: %s, %s", a.items, b.items)
        c.abort()


@test
def information_requested_twice_is_told_once(s):
    """NBD_REP_INFO: a particular information type SHOULD only appear once."""
    for infos in ([INFO_BLOCK_SIZE] * 2, [INFO_EXPORT] * 5, [INFO_NAME, INFO_NAME, INFO_BLOCK_SIZE]):
        with s.hello() as c:
            i = c.info("vda", infos)  # nbdwire refuses a type that comes twice
            must(i.ok or i.final == ERR_INVALID, "got %s", rep_name(i.final))
            c.go("vda")
            c.disc()


@test
def information_may_be_asked_in_any_order(s):
    """NBD_OPT_INFO: one or more items, in any order."""
    import itertools
    with s.hello() as c:
        want = c.info("vda", [0, 1, 2, 3]).items
        for p in itertools.permutations([0, 1, 2, 3]):
            must(c.info("vda", p).items == want, "order %s changes the answer", p)
        c.abort()


@test
def each_set_of_information_requests_gets_what_it_asks(s):
    """NBD_OPT_INFO: EXPORT always; NAME, DESCRIPTION and BLOCK_SIZE when asked, alone or with
    others, whatever unknown ones stand between."""
    with Fixture(["a:1M:pattern,description=what it is", "b:1M:pattern,pref=65536"]) as f:
        for n in range(64):
            asked = [i for i in (INFO_DESCRIPTION, INFO_BLOCK_SIZE, INFO_EXPORT, INFO_NAME, 77, 0xFFFF)
                     if n >> (i % 7) & 1]
            for opt in BOTH:
                for e in f.exports.values():
                    want = {INFO_EXPORT: struct.pack(">QH", M, 0)[:8]}
                    if INFO_NAME in asked:
                        want[INFO_NAME] = e.name.encode()
                    if INFO_DESCRIPTION in asked and "description" in e.opts:
                        want[INFO_DESCRIPTION] = e.opts["description"].encode()
                    if INFO_BLOCK_SIZE in asked:
                        want[INFO_BLOCK_SIZE] = struct.pack(">III", 1, int(e.opts.get("pref", 4096)),
                                                            32 * M)
                    with f.hello() as c:
                        got = dict(c.info(e.name, asked, opt).items)
                        got[INFO_EXPORT] = got[INFO_EXPORT][:8]
                        must(got == want, "%s asked of %s: %s", asked, e.name, got)


@test
def many_information_requests_are_answered_once_each(s):
    """NBD_OPT_INFO: 16 bits count them."""
    with s.hello() as c:
        i = c.info("vda", list(range(3, 2000)))
        must(i.ok or i.final == ERR_TOO_BIG, "got %s", rep_name(i.final))
        c.go("vda")
        c.disc()


@test(generic=True)
def malformed_info_is_invalid(s):
    """NBD_OPT_INFO: name length MUST be no larger than the data length - 6; counts must fit."""
    n = s.name.encode()
    full = struct.pack(">I", len(n)) + n
    cases = {
        "no data": b"",
        "half a length": b"\0\0",
        "no count": full,
        "half a count": full + b"\0",
        "name beyond data": struct.pack(">I", len(n) + 7) + n + struct.pack(">H", 0),
        "name of 2^32-1": b"\xff\xff\xff\xff" + n + b"\0\0",
        "name of 2^31": b"\x80\0\0\0" + n + b"\0\0",
        "count beyond data": full + struct.pack(">H", 1),
        "count of 65535": full + struct.pack(">HH", 65535, 3),
        "half a request": full + struct.pack(">HB", 1, 0),
        "more data than counted": full + struct.pack(">HHH", 1, 3, 3),
        "trailing byte": full + struct.pack(">HB", 0, 0),
    }
    for opt in BOTH:
        with s.hello() as c:
            for what, data in cases.items():
                rs = c.option(opt, data)
                must(rs[-1].type == ERR_INVALID, "%s (option %d) got %s", what, opt, rs)
            c.abort()


@test
def name_longer_than_a_string_may_be_is_an_error(s):
    """Conventions: a string MUST be no longer than 4096 bytes."""
    with s.hello() as c:
        for opt in BOTH:
            for n in (4097, 5000, 60000):
                i = c.info(b"v" * n, [], opt)
                must(i.final in (ERR_INVALID, ERR_TOO_BIG, ERR_UNKNOWN), "%d bytes got %s", n,
                     rep_name(i.final))
        c.go("vda")
        c.disc()


@test
def name_of_4096_bytes_is_served(s):
    """Conventions: strings of up to 4096 bytes."""
    name = "n" * 4096
    with Fixture([name + ":1M:pattern"]) as f:
        for how in ("go", "export_name"):
            with f.hello() as c:
                getattr(c, how)(name)
                must(c.read(0, 64).data == pattern(0, 64), "wrong bytes")
                c.disc()
        with f.hello() as c:
            rs = c.option(OPT_LIST)
            must([r.name for r in rs[:-1]] == [name], "LIST %s", rs)
            c.negotiate_structured()
            must(c.list_meta(name)[0] == ["base:allocation"], "contexts")
            must(c.info(name, [INFO_NAME]).items[INFO_NAME] == name.encode(), "INFO_NAME")
            c.abort()


@test
def names_are_utf8_and_compared_as_bytes(s):
    """Conventions: a string is UTF-8."""
    with Fixture(["dänische-Küche:1M:pattern", "a b@c+delta:1M:zero"]) as f:
        for name in f.exports:
            with f.hello() as c:
                c.go(name)
                c.disc()
        with f.hello() as c:
            must(c.info("da\u0308nische-Ku\u0308che").final == ERR_UNKNOWN, "another normal form")
            c.abort()


@test
def unlisted_export_can_be_used(s):
    """NBD_OPT_GO: by name."""
    with s.open("hidden") as c:
        must(c.read(8, 8).data == pattern(8, 8), "wrong bytes")
        c.disc()


@test
def size_is_told_exactly(s):
    """NBD_INFO_EXPORT: 64 bits, size in bytes."""
    with s.hello() as c:
        for e in s.exports.values():
            must(c.info(e.name).size == e.size, "%s: %s", e.name, c.info(e.name).size)
        c.abort()


@test
def read_only_is_told(s):
    """Transmission flags: bit 1; nothing that writes is exposed."""
    with s.hello() as c:
        c.negotiate_structured()
        for name in s.exports:
            f = c.info(name).flags
            must(f & READ_ONLY, "READ_ONLY is not set")
            must(not f & (SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO), "flags %#x", f)
        c.abort()


@test(generic=True)
def df_flag_follows_structured_replies(s):
    """Transmission flags: SEND_DF MUST be clear if structured replies have not been negotiated."""
    with s.hello() as c:
        must(not c.info(s.name).flags & SEND_DF, "SEND_DF before structured replies")
        c.negotiate_structured()
        must(c.info(s.name).flags & SEND_DF, "no SEND_DF with structured replies")
        c.abort()


@test(house=True)
def flush_and_cache_are_exposed(s):
    """Transmission flags: bits 2 and 10 (the server is to have FLUSH and CACHE)."""
    with s.hello() as c:
        f = c.info("vda").flags
        must(f & SEND_FLUSH, "no SEND_FLUSH")
        must(f & SEND_CACHE, "no SEND_CACHE")
        c.abort()


@test
def export_of_zero_bytes_can_be_opened(s):
    """NBD_INFO_EXPORT: size is unsigned, 0 is a size."""
    with Fixture(["empty:0:zero", "x:1M:zero"], name="x") as f:
        with f.open("empty", contexts=["base:allocation"]) as c:
            must(c.size == 0, "size %d", c.size)
            must(c.read(0, 1).error == EINVAL, "read beyond the end")
            must(c.status(0, 1).error == EINVAL, "status beyond the end")
            c.disc()


main()
