#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""LIST_META_CONTEXT and SET_META_CONTEXT."""
from nbdtest import *  # noqa: F401,F403

BA = "base:allocation"
DIRTY = "qemu:dirty-bitmap:backup-vda"


def structured(s):
    c = s.hello()
    c.negotiate_structured()
    return c


def go_and_ask(c, name, off=0, n=4096):
    c.go(name)
    r = c.status(off, n)
    c.disc()
    return r


@test(generic=True)
def set_meta_context_before_structured_reply_is_invalid(s):
    """NBD_OPT_SET_META_CONTEXT: a server SHOULD send NBD_REP_ERR_INVALID."""
    with s.hello() as c:
        ids, t = c.set_meta(s.name, [BA])
        must(t == ERR_INVALID and not ids, "got %s", rep_name(t))
        c.abort()


@test
def set_meta_context_before_structured_reply_selects_nothing_later(s):
    """NBD_OPT_SET_META_CONTEXT: MUST NOT be requested before structured replies."""
    with s.hello() as c:
        c.set_meta("vda", [BA])
        c.negotiate_structured()
        must(go_and_ask(c, "vda").error == EINVAL, "status was answered")


@test
def list_meta_context_before_structured_reply_is_answered_or_invalid(s):
    """NBD_OPT_LIST_META_CONTEXT: a server MAY send NBD_REP_ERR_INVALID."""
    with s.hello() as c:
        names, t = c.list_meta("vda")
        must(t == ERR_INVALID or (t == REP_ACK and BA in names), "got %s", rep_name(t))
        c.go("vda")
        c.disc()


@test(generic=True)
def list_without_queries_lists_all(s):
    """NBD_OPT_LIST_META_CONTEXT: zero queries return all contexts; SHOULD NOT be TOO_BIG."""
    with structured(s) as c:
        names, t = c.list_meta(s.name)
        must(t == REP_ACK, "got %s", rep_name(t))
        must(BA in names, "listed %s", names)
        c.abort()


@test
def list_names_the_dirty_bitmap(s):
    """NBD_OPT_LIST_META_CONTEXT; interface.md "Exports and their meta contexts"."""
    with structured(s) as c:
        must(sorted(c.list_meta("vda")[0]) == [BA, DIRTY], "listed %s", c.list_meta("vda"))
        must(c.list_meta("pat")[0] == [BA], "listed %s", c.list_meta("pat"))
        c.abort()


@test(generic=True)
def base_colon_lists_base_allocation(s):
    """The base: namespace: `base:` MUST be supported as a wildcard for LIST_META_CONTEXT."""
    with structured(s) as c:
        must(c.list_meta(s.name, ["base:"]) == ([BA], REP_ACK), "got %s", c.list_meta(s.name, ["base:"]))
        must(c.list_meta(s.name, [BA]) == ([BA], REP_ACK), "exact name")
        c.abort()


@test(house=True)
def qemu_wildcards_list_the_bitmap(s):
    """interface.md: wildcards in LIST_META_CONTEXT as QEMU."""
    with structured(s) as c:
        for q in ("qemu:", "qemu:dirty-bitmap:", DIRTY):
            must(c.list_meta("vda", [q]) == ([DIRTY], REP_ACK), "%s gave %s", q, c.list_meta("vda", [q]))
        for q in ("qemu:dirty-bitmap", "qemu:dirty", "qemu:dirty-bitmap:backup", "qemu:dirty-bitmap:x",
                  "qemu:allocation-depth", DIRTY + "x", "qemu:DIRTY-BITMAP:"):
            got = c.list_meta("vda", [q])
            must(got == ([], REP_ACK) or got == ([], ERR_INVALID), "%s gave %s", q, got)
        c.abort()


@test(generic=True)
def unknown_base_leaf_is_ignored(s):
    """The base: namespace: an unrecognized leaf-name MUST be ignored rather than an error."""
    with structured(s) as c:
        for leaf in ("nothing", "allocatio", "allocation2", "ALLOCATION", ":allocation"):
            must(c.list_meta(s.name, ["base:" + leaf]) == ([], REP_ACK), "LIST %s", leaf)
            must(c.set_meta(s.name, ["base:" + leaf]) == ({}, REP_ACK), "SET %s", leaf)
        c.abort()


@test(generic=True)
def unknown_namespace_is_ignored(s):
    """NBD_OPT_LIST_META_CONTEXT: MUST ignore query strings belonging to an unknown namespace."""
    with structured(s) as c:
        for q in ("x-nothing:", "x-nothing:here", "other:thing", "Base:allocation", "\u00e4:b"):
            must(c.list_meta(s.name, [q]) == ([], REP_ACK), "LIST %s gave %s", q, c.list_meta(s.name, [q]))
            must(c.set_meta(s.name, [q]) == ({}, REP_ACK), "SET %s", q)
        must(c.list_meta(s.name, ["x-nothing:here", BA]) == ([BA], REP_ACK), "BA beside an unknown")
        c.abort()


@test(generic=True)
def query_without_colon_is_invalid_or_ignored(s):
    """NBD_OPT_LIST_META_CONTEXT: semantically invalid requests MAY be INVALID."""
    with structured(s) as c:
        for q in ("base", "", "allocation", "basex", "\u00e4"):
            for f in (c.list_meta, c.set_meta):
                got, t = f(s.name, [q])
                must(not got and t in (REP_ACK, ERR_INVALID), "%r gave %s, %s", q, got, rep_name(t))
        c.abort()


@test(generic=True)
def several_queries_list_each_context_once(s):
    """NBD_OPT_LIST_META_CONTEXT: contexts which match one or more of the queries."""
    with structured(s) as c:
        must(c.list_meta(s.name, [BA, "base:", BA, "base:"]) == ([BA], REP_ACK), "not once")
        c.abort()


@test
def several_queries_list_the_union(s):
    """NBD_OPT_LIST_META_CONTEXT: contexts which match one or more of the queries."""
    with structured(s) as c:
        got, t = c.list_meta("vda", ["qemu:", DIRTY, "base:", BA])
        must(sorted(got) == [BA, DIRTY], "got %s", got)
        c.abort()


@test(generic=True)
def id_in_list_is_zero(s):
    """NBD_OPT_LIST_META_CONTEXT: the ID is reserved and SHOULD be set to zero."""
    with structured(s) as c:
        for r in c.option(OPT_LIST_META, c.meta_data(s.name, []))[:-1]:
            must(r.id == 0, "id %d", r.id)
        c.abort()


@test
def list_does_not_select(s):
    """NBD_OPT_LIST_META_CONTEXT only lists."""
    with structured(s) as c:
        c.list_meta("vda", [BA])
        must(go_and_ask(c, "vda").error == EINVAL, "status was answered")


@test
def list_does_not_unselect(s):
    """NBD_OPT_SET_META_CONTEXT alone changes the set."""
    with structured(s) as c:
        c.set_meta("vda", [BA])
        c.list_meta("vda", ["qemu:"])
        c.list_meta("pat", [])
        c.option(OPT_LIST_META, b"\xff")
        must(not go_and_ask(c, "vda").errors, "the selection was dropped")


@test
def unknown_export_has_no_contexts(s):
    """NBD_REP_ERR_UNKNOWN: the requested export is not available."""
    with structured(s) as c:
        for f in (c.list_meta, c.set_meta):
            for name in ("nope", "vd", b"vda\0", ""):
                got, t = f(name, [BA])
                must(not got and t in (ERR_UNKNOWN, ERR_INVALID), "%r gave %s", name, rep_name(t))
                must(t == ERR_UNKNOWN or name == b"vda\0", "%r gave %s", name, rep_name(t))
        c.abort()


@test(generic=True)
def set_selects_exact_names(s):
    """NBD_OPT_SET_META_CONTEXT: one reply for each selected context, then ACK."""
    with structured(s) as c:
        ids, t = c.set_meta(s.name, [BA])
        must(t == REP_ACK and list(ids.values()) == [BA], "got %s %s", ids, rep_name(t))
        must(not go_and_ask(c, s.name, n=512).errors, "status failed")


@test
def set_gives_each_context_its_own_id(s):
    """NBD_OPT_SET_META_CONTEXT: each with a unique metadata context ID."""
    for order in ([BA, DIRTY], [DIRTY, BA]):
        with structured(s) as c:
            ids, t = c.set_meta("vda", order)  # nbdwire refuses equal ids
            must(sorted(ids.values()) == [BA, DIRTY], "got %s", ids)
            r = go_and_ask(c, "vda")
            must(set(r.status) == set(ids), "chunks for %s", r.status)


@test(generic=True)
def set_with_wildcard_selects_nothing(s):
    """The base: namespace: `base:` MUST be ignored during SET; in general a wildcard SHOULD be."""
    with structured(s) as c:
        for q in ("base:", "qemu:", "qemu:dirty-bitmap:", "varve:"):
            must(c.set_meta(s.name, [q]) == ({}, REP_ACK), "%s gave %s", q, c.set_meta(s.name, [q]))
        c.abort()


@test(generic=True)
def set_without_queries_selects_nothing(s):
    """NBD_OPT_SET_META_CONTEXT: if zero queries are sent, MUST select no metadata contexts."""
    with structured(s) as c:
        must(c.set_meta(s.name, [])[0] == {}, "something")
        c.set_meta(s.name, [BA])
        must(c.set_meta(s.name, []) == ({}, REP_ACK), "not replaced")
        must(go_and_ask(c, s.name, n=512).error == EINVAL, "status was answered")


@test
def set_replaces_what_was_set_before(s):
    """NBD_OPT_SET_META_CONTEXT: replaces all previously-set metadata contexts."""
    with structured(s) as c:
        c.set_meta("vda", [BA, DIRTY])
        ids, t = c.set_meta("vda", [DIRTY])
        must(list(ids.values()) == [DIRTY], "got %s", ids)
        r = go_and_ask(c, "vda", 65536, 65536)
        must(r.status == {next(iter(ids)): [(65536, 1)]}, "got %s", r.status)


@test
def failed_set_drops_what_was_set_before(s):
    """NBD_OPT_SET_META_CONTEXT: replaces all (including when this command fails)."""
    for export, data in (("vda", b"\0\0"), ("vda", Conn.meta_data("vda", [BA])[:-1]),
                         ("vda", Conn.meta_data("vda", [BA]) + b"x"),
                         ("vda", Conn.meta_data("nope", [BA])), ("vda", b""),
                         ("vda", Conn.meta_data("vda", [BA]) + bytes(100000))):
        with structured(s) as c:
            c.set_meta("vda", [BA])
            rs = c.option(OPT_SET_META, data)
            must(rs[-1].is_error, "%r got %s", data, rs)
            c.contexts = {}
            must(go_and_ask(c, export).error == EINVAL, "status was answered after a failed SET")


@test
def contexts_of_another_export_do_not_count(s):
    """Metadata querying: used the same export name for the subsequent GO."""
    for enter in ("go", "export_name"):
        with structured(s) as c:
            c.set_meta("vda", [BA, DIRTY])
            getattr(c, enter)("pat")
            must(c.status(0, 4096).error == EINVAL, "status was answered")
            c.disc()
        with structured(s) as c:
            c.set_meta("pat", [BA])
            c.set_meta("vda", [BA])
            getattr(c, enter)("pat")
            must(c.status(0, 4096).error == EINVAL, "status was answered")
            c.disc()


@test
def contexts_work_with_export_name(s):
    """Metadata querying: ... the subsequent NBD_OPT_GO (or NBD_OPT_EXPORT_NAME)."""
    with structured(s) as c:
        c.set_meta("vda", [BA])
        c.export_name("vda")
        must(not c.status(0, 4096).errors, "status failed")
        c.disc()


@test
def contexts_survive_other_options(s):
    """NBD_OPT_SET_META_CONTEXT: only it (and STARTTLS) changes the set."""
    with structured(s) as c:
        c.set_meta("vda", [BA])
        c.info("pat")
        c.option(OPT_LIST)
        c.final(1234)
        c.info("nope")
        must(not go_and_ask(c, "vda").errors, "the selection was dropped")


@test
def contexts_of_the_default_export(s):
    """NBD_OPT_SET_META_CONTEXT with an empty name, GO with an empty name: the same export name."""
    with Fixture(["only:1M:pattern,dirty=b"]) as f, structured(f) as c:
        must(c.list_meta("", [BA]) == ([BA], REP_ACK), "LIST failed")
        ids, t = c.set_meta("", [BA, "qemu:dirty-bitmap:b"])
        must(len(ids) == 2, "got %s %s", ids, rep_name(t))
        must(not go_and_ask(c, "").errors, "status failed")


@test
def list_and_set_agree(s):
    """NBD_OPT_LIST_META_CONTEXT: contexts that are available to select."""
    with structured(s) as c:
        for name in s.exports:
            listed, t = c.list_meta(name)
            got, t = c.set_meta(name, listed)
            must(sorted(got.values()) == sorted(listed), "%s: %s", name, got)
        c.abort()


@test
def contexts_of_another_export_are_not_found(s):
    """NBD_OPT_LIST_META_CONTEXT: contexts available on the given export."""
    with structured(s) as c:
        for name in ("pat", "big", "odd"):
            must(c.set_meta(name, [DIRTY]) == ({}, REP_ACK), "SET on %s", name)
            must(c.list_meta(name, [DIRTY]) == ([], REP_ACK), "LIST on %s", name)
        c.abort()


@test(generic=True)
def malformed_meta_option_is_invalid(s):
    """NBD_OPT_LIST_META_CONTEXT: syntactically invalid: MUST fail with NBD_REP_ERR_INVALID."""
    n = s.name.encode()
    name = struct.pack(">I", len(n)) + n
    one = struct.pack(">I", 1)
    cases = {
        "no data": b"",
        "half a name length": b"\0\0\0",
        "name beyond the data": struct.pack(">I", len(n) + 100) + n,
        "name of 2^32-1": b"\xff\xff\xff\xff" + n,
        "no count": name,
        "half a count": name + b"\0\0",
        "count without queries": name + one,
        "half a query length": name + one + b"\0\0",
        "query beyond the data": name + one + struct.pack(">I", 100) + b"base:",
        "query of 2^32-1": name + one + b"\xff\xff\xff\xff" + b"base:",
        "query of 2^31": name + one + b"\x80\0\0\0" + b"base:",
        "second query missing": name + struct.pack(">I", 2) + struct.pack(">I", 5) + b"base:",
    }
    for opt in (OPT_LIST_META, OPT_SET_META):
        with structured(s) as c:
            for what, data in cases.items():
                rs = c.option(opt, data)
                must(rs[-1].type == ERR_INVALID, "%s (option %d) got %s", what, opt, rs)
            c.abort()


@test
def data_after_the_last_query_is_invalid(s):
    """NBD_OPT_LIST_META_CONTEXT: syntactically invalid: MUST fail with NBD_REP_ERR_INVALID."""
    for opt in (OPT_LIST_META, OPT_SET_META):
        with structured(s) as c:
            for data in (c.meta_data("vda", []) + b"\0", c.meta_data("vda", [BA]) + b"base:"):
                rs = c.option(opt, data)
                must(rs[-1].type == ERR_INVALID, "option %d got %s", opt, rs)
            c.abort()


@test
def huge_query_count_in_little_data_is_invalid(s):
    """NBD_OPT_SET_META_CONTEXT: a count is no reason to reserve memory."""
    before = s.rss()
    for opt in (OPT_LIST_META, OPT_SET_META):
        with structured(s) as c:
            for count in (0xFFFFFFFF, 0x80000000, 0x40000000, 1 << 24):
                data = c.meta_data("vda", [])[:-4] + struct.pack(">I", count)
                rs = c.option(opt, data)
                must(rs[-1].type in (ERR_INVALID, ERR_TOO_BIG), "count %d got %s", count, rs)
            c.abort()
    must(s.rss() < before + 64 * M, "memory grew by %d bytes", s.rss() - before)


@test
def many_queries_are_answered_or_too_big(s):
    """NBD_OPT_LIST_META_CONTEXT: MAY fail with TOO_BIG if too many queries are requested."""
    for n in (10, 100, 1000, 7000):
        with structured(s) as c:
            got, t = c.set_meta("vda", ["x-a:%d" % (i % 7) for i in range(n)] + [BA])
            must(t in (ERR_TOO_BIG, ERR_INVALID) or (t == REP_ACK and list(got.values()) == [BA]),
                 "%d queries got %s %s", n, got, rep_name(t))
            must(t == REP_ACK or n > 100, "%d queries got %s", n, rep_name(t))
            c.go("vda")
            c.disc()


@test
def long_query_is_answered_or_refused(s):
    """Conventions: a string MUST be no longer than 4096 bytes."""
    with structured(s) as c:
        for n in (200, 4091, 4092, 20000):
            for f in (c.list_meta, c.set_meta):
                got, t = f("vda", ["base:" + "x" * n, BA])
                must(t in ((REP_ACK,) if n < 4092 else (REP_ACK, ERR_INVALID, ERR_TOO_BIG)),
                     "%d bytes got %s", n, rep_name(t))
                must(t != REP_ACK or BA in (got if isinstance(got, list) else got.values()), "no BA")
        c.abort()


@test
def queries_with_odd_bytes_harm_nobody(s):
    """Conventions: strings are UTF-8 without NUL; others are no reason to stumble."""
    with structured(s) as c:
        for q in (b"base:allocation\0", b"\0", b"base\0:allocation", b"base:\xff\xfe", b"\xff:x", b":",
                  b"::", b"qemu:dirty-bitmap:backup-vda\0", b"qemu:dirty-bitmap:\xc3", b"%n%s:%x"):
            for f in (c.list_meta, c.set_meta):
                got, t = f("vda", [q])
                must(not got and t in (REP_ACK, ERR_INVALID), "%r gave %s %s", q, got, rep_name(t))
        c.abort()


main()
