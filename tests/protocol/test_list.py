#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""LIST."""
from nbdtest import *  # noqa: F401,F403


def names(c):
    rs = c.option(OPT_LIST)
    must(rs[-1].type == REP_ACK, "LIST got %s", rs[-1])
    return [r.name for r in rs[:-1]]


@test(generic=True)
def list_ends_with_ack(s):
    """NBD_OPT_LIST: zero or more SERVER replies, followed by ACK."""
    with s.hello() as c:
        names(c)
        c.abort()


@test
def list_names_every_listed_export_once(s):
    """NBD_OPT_LIST: one NBD_REP_SERVER for each export."""
    with s.hello() as c:
        want = sorted(e.name for e in s.exports.values() if e.listed)
        must(names(c) == want, "listed %s, want %s", names(c), want)
        c.abort()


@test(house=True)
def list_keeps_quiet_about_unlisted_exports(s):
    """server/nbd/export.h: `listed`."""
    with s.hello() as c:
        must("hidden" not in names(c), "hidden is listed")
        c.abort()


@test
def list_of_nothing_is_just_ack(s):
    """NBD_OPT_LIST: zero or more."""
    with Fixture(["a:1M:zero,unlisted"]) as f, f.hello() as c:
        must(names(c) == [], "listed %s", names(c))
        c.abort()


@test
def list_of_500_exports_is_complete(s):
    """NBD_OPT_LIST."""
    exports = ["export-%04d:1M:zero" % i for i in range(500)]
    with Fixture(exports) as f, f.hello() as c:
        must(names(c) == sorted(f.exports), "not all")
        must(names(c) == sorted(f.exports), "not all the second time")
        c.go("export-0499")
        c.disc()


@test(generic=True)
def list_with_data_is_invalid(s):
    """NBD_OPT_LIST: SHOULD reject a request that includes data with NBD_REP_ERR_INVALID."""
    with s.hello() as c:
        for data in (b"\0", b"vda", bytes(1000)):
            t = c.final(OPT_LIST, data)
            must(t == ERR_INVALID, "%d bytes got %s", len(data), rep_name(t))
        c.abort()


@test(generic=True)
def what_list_names_can_be_opened(s):
    """NBD_REP_SERVER: the name as expected by INFO and GO."""
    with s.hello() as c:
        for name in names(c):
            must(c.info(name).ok, "INFO %r failed", name)
        c.abort()


main()
