#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""--access: no client sees another's exports, contexts or names; shown by trying."""
from nbdtest import *  # noqa: F401,F403
from tlslib import *  # noqa: F401,F403

BA = "base:allocation"
MINE, YOURS, NONE = "vda", "vdb", "vdx"  # may be seen; may not; does not exist
EXPORTS3 = ["vda:4M:pattern,dirty=mine", "vdb:8M:half,dirty=yours", "vda@mon:4M:pattern,dirty=mon,unlisted",
            "vda+delta:4M:pattern,unlisted", "vdb@mon:8M:half,dirty=mon,unlisted",
            "vdb+delta:8M:half,unlisted", "vdb@vda:8M:half,unlisted"]
K1 = "11" * 32


def rules(*lines, name="rules"):
    path = os.path.join(tmpdir(), name)
    with open(path, "w") as f:
        f.write("\n".join(lines) + "\n")
    return path


def me():
    return "uid:%d" % os.getuid()


class AccessFixture(Fixture):
    def __init__(self, *lines, exports=None, args=(), **kw):
        self.rules = rules(*lines, name="rules-%d" % id(self))
        super().__init__(exports or EXPORTS3, ["--access", self.rules, *args], **kw)

    def write(self, *lines):
        with open(self.rules, "w") as f:
            f.write("\n".join(lines) + "\n")

    def reload(self):
        self.proc.send_signal(1)
        return self._line() == "reload ok"


def listed(c):
    rs = c.option(OPT_LIST)
    must(rs[-1].type == REP_ACK, "LIST got %s", rs[-1])
    return [r.name for r in rs[:-1]]


def answers(c, opt, data):
    """All bytes of an option's replies."""
    return [(r.type, r.data) for r in c.option(opt, data)]


def probes(name):
    """Every option that names an export, in every shape."""
    for opt in (OPT_INFO, OPT_GO):
        for infos in ([], [INFO_EXPORT], [INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE], [77]):
            yield opt, Conn.info_data(name, infos)
    for opt in (OPT_LIST_META, OPT_SET_META):
        for queries in ([], [BA], ["qemu:"], ["qemu:dirty-bitmap:"], ["qemu:dirty-bitmap:yours"],
                        ["qemu:dirty-bitmap:mon", BA], ["nonsense"], [""]):
            yield opt, Conn.meta_data(name, queries)


def check_hidden(c, names, none=NONE):
    """Each name is answered as one that does not exist, to the byte, in every option."""
    for name in names:
        for (opt, data), (_, data_none) in zip(probes(name), probes(none)):
            got, want = answers(c, opt, data), answers(c, opt, data_none)
            must(got == want, "%s, option %d: %s, but for %s: %s", name, opt, got, none, want)
            must(got[-1][0] & ERR, "%s, option %d: %s", name, opt, got)


def check_visible(c, names):
    for name in names:
        must(c.info(name).ok, "%s is not seen", name)
        must(BA in c.list_meta(name)[0], "%s: no contexts", name)


@test(house=True)
def without_rules_everybody_sees_all(s):
    """--access is not given."""
    with s.hello() as c:
        must(set(listed(c)) == {e.name for e in s.exports.values() if e.listed}, "not all")
        c.abort()


@test(house=True)
def list_names_only_what_the_client_may_see(s):
    """NBD_OPT_LIST: MAY omit some, e.g. those that the client has no access to."""
    with AccessFixture(me() + " " + MINE) as f, f.hello() as c:
        must(listed(c) == [MINE], "listed %s", listed(c))
        c.abort()


@test(house=True)
def hidden_export_is_answered_as_one_that_does_not_exist(s):
    """INFO, GO, LIST_META_CONTEXT and SET_META_CONTEXT, byte by byte."""
    with AccessFixture(me() + " " + MINE) as f, f.hello() as c:
        for structured in (False, True):
            if structured:
                c.negotiate_structured()
            check_hidden(c, [YOURS, "vdb@mon", "vdb+delta", "vdb@vda", "vdb@nope", "vdbb"])
        check_visible(c, [MINE, "vda@mon", "vda+delta"])
        c.go(MINE)
        must(c.read(0, 512).data == pattern(0, 512), "wrong bytes")
        c.disc()


@test(house=True)
def hidden_export_name_closes_as_an_unknown_one_does(s):
    """NBD_OPT_EXPORT_NAME."""
    with AccessFixture(me() + " " + MINE) as f:
        for name in (YOURS, "vdb@mon", "vdb+delta", NONE):
            with f.hello() as c:
                c.send_opt(OPT_EXPORT_NAME, name.encode())
                c.expect_close()
        for name in (MINE, "vda@mon", "vda+delta"):
            with f.hello() as c:
                c.export_name(name)
                c.disc()


@test(house=True)
def hidden_and_unknown_take_the_same_time(s):
    """The same class of time: medians of 300 of each, in turns, differ by less than half."""
    with AccessFixture(me() + " " + MINE) as f, f.hello() as c:
        took = {YOURS: [], NONE: []}
        for _ in range(300):
            for name in took:
                data = c.info_data(name)
                began = time.perf_counter()
                c.option(OPT_INFO, data)
                took[name].append(time.perf_counter() - began)
        a, b = (sorted(v)[150] for v in took.values())
        must(a < 1.5 * b and b < 1.5 * a, "%.0f and %.0f us", a * 1e6, b * 1e6)
        c.abort()


@test(house=True)
def empty_name_means_the_only_export_the_client_sees(s):
    """The default export: others' exports make it neither ambiguous nor visible."""
    with AccessFixture(me() + " " + MINE) as f, f.hello() as c:
        must(c.info("").size == 4 * M, "not vda")
        c.go("")
        must(c.read(0, 512).data == pattern(0, 512), "wrong bytes")
        c.disc()
        with f.hello() as d:
            d.export_name("")
            must(d.size == 4 * M, "not vda")
            d.disc()
    with AccessFixture(me() + " vd?") as f, f.hello() as c:
        must(c.info("").final == ERR_UNKNOWN, "two are no default")
        c.abort()
    with AccessFixture("uid:%d *" % (os.getuid() + 1)) as f:
        f.check_serves = lambda: None
        with f.hello() as c:
            must(answers(c, OPT_INFO, c.info_data("")) == answers(c, OPT_INFO, c.info_data(NONE)),
                 "the empty name tells something")
            must(listed(c) == [], "listed")
            c.abort()
        with f.hello() as c:
            c.send_opt(OPT_EXPORT_NAME)
            c.expect_close()


@test(house=True)
def contexts_of_a_hidden_export_cannot_be_selected_or_kept(s):
    """SET_META_CONTEXT for a hidden export drops the selection, as for an unknown one."""
    for name in (YOURS, NONE):
        with AccessFixture(me() + " " + MINE) as f, f.hello() as c:
            c.negotiate_structured()
            c.set_meta(MINE, [BA])
            must(c.set_meta(name, [BA])[1] == ERR_UNKNOWN, "not UNKNOWN")
            c.go(MINE)
            must(c.do(CMD_BLOCK_STATUS, 0, 512).error == EINVAL, "the selection is still there")
            c.disc()


@test(house=True)
def pattern_does_not_match_by_the_name_of_a_base(s):
    """vdb@vda is vdb's bytes: a rule for vda does not open it."""
    with AccessFixture(me() + " *a") as f, f.hello() as c:
        check_hidden(c, ["vdb@vda"])
        check_visible(c, ["vda", "vda@mon"])
        c.abort()


@test(house=True)
def uid_rules_tell_unix_clients_from_tcp_clients(s):
    """uid: is SO_PEERCRED's, so a TCP client has none."""
    with AccessFixture(me() + " vda", "ip:127.0.0.0/8 vdb") as f:
        with f.hello() as c:
            must(listed(c) == ["vda"], "unix: %s", listed(c))
            check_hidden(c, ["vdb"])
            c.abort()
        with f.hello(tcp=True) as c:
            must(listed(c) == ["vdb"], "tcp: %s", listed(c))
            check_hidden(c, ["vda"])
            c.abort()


@test(house=True)
def other_uids_see_nothing(s):
    """A uid that is not named."""
    if os.getuid():
        raise Skip("needs root")
    with AccessFixture("uid:0 *", "uid:12345 vdb") as f:
        os.chmod(f.dir, 0o755)
        os.chmod(f.sock, 0o777)
        here = os.getcwd()
        os.chdir(f.dir)  # the folders above it may be closed to others
        os.seteuid(12345)
        try:
            with Conn(("unix", os.path.basename(f.sock))).hello() as c:
                os.seteuid(0)
                must(listed(c) == ["vdb"], "listed %s", listed(c))
                check_hidden(c, ["vda"])
                c.abort()
        finally:
            os.seteuid(0)
            os.chdir(here)


@test(house=True)
def addresses_are_compared_by_their_networks(s):
    """ip: of IPv4, IPv6, and IPv4 that comes in at [::]."""
    with AccessFixture("ip:127.0.0.2/31 vda", "ip:127.0.0.1 vdb", "ip:::1 vda vdb",
                       listen=["tcp:[::]:0"], name="vdb") as f:
        f.where = f.tcp = ("tcp", "127.0.0.1", f.tcp[2])
        with f.hello() as c:
            must(listed(c) == ["vdb"], "127.0.0.1: %s", listed(c))
            c.abort()
        with Conn(("tcp", "::1", f.tcp[2])).hello() as c:
            must(listed(c) == ["vda", "vdb"], "::1: %s", listed(c))
            c.abort()


@test(house=True)
def certificates_open_their_own_exports(s):
    """dn: the subject as an RFC 4514 string, verified."""
    one, two = ca().client("backup1"), ca().client("backup2")
    with AccessFixture('dn:"CN=backup1,O=Example" vda', 'dn:"CN=backup2,O=Example" vdb',
                       args=["--tls", "require", "--tls-verify-peer", "--tls-certificates",
                             ca().dir]) as f:
        f.check_serves = lambda: None
        for folder, own, other in ((one, "vda", "vdb"), (two, "vdb", "vda")):
            with upgrade(f.hello(), context(client=folder)) as c:
                must(listed(c) == [own], "listed %s", listed(c))
                check_hidden(c, [other, other + "@mon", other + "+delta"])
                check_visible(c, [own, own + "@mon", own + "+delta"])
                c.go(own)
                c.disc()
        with upgrade(f.hello(), context(client=ca().client("backup3"))) as c:
            must(listed(c) == [], "listed %s", listed(c))
            check_hidden(c, ["vda", "vdb"])
            c.abort()


@test(house=True)
def keys_open_their_own_exports(s):
    """psk: the user."""
    nbd = libnbd()
    keys = psk_file({"alice": K1, "bob": "22" * 32}, "access.psk")
    with AccessFixture("psk:alice vda", "psk:bob vdb",
                       args=["--tls", "require", "--tls-psk", keys]) as f:
        f.check_serves = lambda: None

        def opened(user, name):
            h = nbd.NBD()
            h.set_tls(nbd.TLS_REQUIRE)
            h.set_tls_username(user)
            h.set_tls_psk_file(keys)
            h.set_export_name(name)
            try:
                h.connect_unix(f.sock)
            except nbd.Error as e:
                return e.string
            h.shutdown()
            return True
        must(opened("alice", "vda") is True and opened("bob", "vdb") is True, "own")
        for user, other in (("alice", "vdb"), ("bob", "vda"), ("alice", "vdb@mon")):
            must(opened(user, other) == opened(user, NONE).replace(NONE, other), "%s", other)
        h = nbd.NBD()
        h.set_opt_mode(True)
        h.set_tls(nbd.TLS_REQUIRE)
        h.set_tls_username("bob")
        h.set_tls_psk_file(keys)
        h.connect_unix(f.sock)
        names = []
        h.opt_list(lambda name, desc: names.append(name))
        must(names == ["vdb"], "listed %s", names)
        h.opt_abort()


@test(house=True)
def certificate_that_is_not_asked_for_opens_nothing(s):
    """Without --tls-verify-peer nobody has a DN."""
    with AccessFixture('dn:"CN=backup1,O=Example" vda',
                       args=["--tls", "on", "--tls-certificates", ca().dir]) as f:
        f.check_serves = lambda: None
        with upgrade(f.hello(), context(client=ca().client("backup1"))) as c:
            must(listed(c) == [], "listed %s", listed(c))
            c.abort()


@test(house=True)
def tls_adds_to_what_the_address_may_see(s):
    """In plain the address counts; under TLS the identity, too."""
    one = ca().client("backup1")
    with AccessFixture('dn:"CN=backup1,O=Example" vda', "any vdb", name="vdb",
                       args=["--tls", "on", "--tls-verify-peer", "--tls-certificates",
                             ca().dir]) as f:
        with f.hello() as c:
            must(listed(c) == ["vdb"], "plain: %s", listed(c))
            check_hidden(c, ["vda"])
            upgrade(c, context(client=one))
            must(listed(c) == ["vda", "vdb"], "TLS: %s", listed(c))
            c.go("vda")
            c.disc()


@test(house=True)
def sighup_gives_and_takes(s):
    """New rules hold at once, and end connections that they do not allow."""
    with AccessFixture(me() + " vda") as f:
        a, hs = f.open("vda"), f.hello()
        hs.negotiate_structured()
        hs.set_meta("vda", [BA])
        f.write(me() + " vdb")
        f.name = "vdb"
        must(listed(hs) == ["vda"], "new rules without SIGHUP")
        must(f.reload(), "reload failed")
        a.drain()
        a.close()
        must(listed(hs) == ["vdb"], "old rules hold")
        check_hidden(hs, ["vda"])
        hs.go("vdb")
        must(hs.do(CMD_BLOCK_STATUS, 0, 512).error == EINVAL, "contexts of vda survived")
        hs.disc()
        b = f.open("vdb")
        f.write(me() + " vd*")
        must(f.reload(), "reload failed")
        must(not b.read(0, 512).errors, "a client that may stay was hit")
        b.disc()


@test(house=True)
def selection_ends_with_the_right_to_see_it(s):
    """What was selected of an export that was hidden for a while is selected no more."""
    with AccessFixture(me() + " vda") as f, f.hello() as c:
        c.negotiate_structured()
        c.set_meta("vda", [BA])
        for line in (" vdb", " vda"):
            f.write(me() + line)
            must(f.reload(), "reload failed")
            listed(c)
        c.go("vda")
        must(c.do(CMD_BLOCK_STATUS, 0, 512).error == EINVAL, "the selection is still there")
        c.disc()


@test(house=True)
def sighup_with_a_wrong_rule_keeps_the_old_ones(s):
    """A failure keeps the old rules and logs file and line."""
    with AccessFixture(me() + " vda") as f:
        c = f.open("vda")
        f.write("any *", "user:me vda")
        must(not f.reload(), "taken")
        must("%s:2: " % f.rules in f.last_words(), "log: %s", f.last_words())
        with f.hello() as d:
            must(listed(d) == ["vda"], "listed %s", listed(d))
            d.abort()
        os.unlink(f.rules)
        must(not f.reload(), "taken")
        must(not c.read(0, 512).errors, "a client was hit")
        c.disc()


@test(house=True)
def wrong_rules_refuse_to_start(s):
    """A syntax error names file and line."""
    for text, line in (("any vda\nwho vda", 2), ("any", 1), ("# x\n\nip:1.2.3.4/8 vda", 3)):
        path = rules(text, name="wrong")
        r = run(*fixture_command(), "--listen", "unix:" + os.path.join(tmpdir(), "never"),
                "--export", "vda:1M:zero", "--access", path, status=1)
        said = r.stderr.decode().splitlines()
        must(len(said) == 1 and "%s:%d: " % (path, line) in said[0], "said %s", said)
    r = run(*fixture_command(), "--listen", "unix:" + os.path.join(tmpdir(), "never"),
            "--export", "vda:1M:zero", "--access", "/nonexistent/rules", status=1)
    must(b"/nonexistent/rules" in r.stderr, "said %s", r.stderr)


main()
