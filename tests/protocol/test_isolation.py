#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""No client sees another's exports, contexts, names or bytes: what test_access.py shows for plain
names, tried with names that are spelled, cut, encoded and joined as they should not be, in every
state of a connection; and bytes of many connections that are in flight at the same time."""
from nbdtest import *  # noqa: F401,F403
from tlslib import *  # noqa: F401,F403

BA = "base:allocation"
MINE = "vda"
# "vdb" is hidden and "vdx" does not exist: what the one gets, the other must get, to the byte.
EXPORTS3 = ["vda:4M:pattern,dirty=mine", "vdb:8M:half,dirty=yours,description=topsecret",
            "vda@mon:4M:pattern,dirty=mon,unlisted", "vda+delta:4M:pattern,unlisted",
            "vdb@mon:8M:half,dirty=mon,unlisted", "vdb+delta:8M:half,unlisted",
            "vdb@mon+delta:8M:half,unlisted", "vdb@vda:8M:half,unlisted"]
SPELLINGS = [
    "vd%s", "vd%s@mon", "vd%s+delta", "vd%s@mon+delta", "vd%s@vda", "vd%s@", "vd%s+", "vd%s@@mon", "vd%s+delta@mon",
    "vd%s+delta+delta", "@vd%s", "+vd%s", "@mon@vd%s", "vda@mon@vd%s", "vda+vd%s", "vda,vd%s", "vda vd%s", "vda/../vd%s",
    "./vd%s", "/vd%s", "vd%s/", "//host/vd%s", "?vd%s", "vd%s?", "*%s", "vd[%s]", "[vV]d%s", "?d%s", "{vda,vd%s}",
    "VD%s", "Vd%s", " vd%s", "vd%s ", "vd%s\n", "\tvd%s", "\"vd%s\"", "'vd%s'", "vd%s\0", "\0vd%s", "vda\0vd%s",
    "vd%s\0vda", "vd\0%s", "%76d%s", "vd%s%40mon", "vd%s%2Bdelta", "vd%s%00", "\ufeffvd%s", "vd%s\ufeff",
    "\u200bvd%s", "vd\u200d%s", "vd%s\u0301", "\uff56\uff44%s", "v\u217e%s", "vd%s\u00ad", "vd%s\u202e",
    "vd%s" + "b" * 252, "vd%s" + "@mon" * 1000, "vda@" + "vd%s" * 1000, "n" * 4093 + "vd%s", "vd%s" + "n" * 5000,
    "vd%s" + "\0" * 300,
]
RAW = [b"vd%s\xff", b"\xc1\xb6d%s", b"\xf6d%s", b"vd%s\xc0\x80", b"vd%s\xed\xa0\x80"]  # no UTF-8


def pairs():
    for s in SPELLINGS:
        yield s.replace("%s", "b").encode(), s.replace("%s", "x").encode()
    yield b"VDB", b"VDX"
    yield "vd\uff42".encode(), "vd\uff58".encode()
    yield b"vd%62", b"vd%78"
    for s in RAW:
        yield s.replace(b"%s", b"b"), s.replace(b"%s", b"x")


def me():
    return "uid:%d" % os.getuid()


class Hidden(Fixture):
    """Serves with rules."""

    def __init__(self, *lines, exports=None, args=(), **kw):
        self.rules = os.path.join(tmpdir(), "rules-%d" % id(self))
        with open(self.rules, "w") as f:
            f.write("\n".join(lines) + "\n")
        super().__init__(exports or EXPORTS3, ["--access", self.rules, *args], **kw)


def probes(name):
    """Every option that names an export, in several shapes."""
    for opt in (OPT_INFO, OPT_GO):
        for infos in ([], [INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE]):
            yield opt, Conn.info_data(name, infos)
    for opt in (OPT_LIST_META, OPT_SET_META):
        for queries in ([], [BA, "qemu:dirty-bitmap:yours", "qemu:dirty-bitmap:mon"], ["qemu:", "*", ""]):
            yield opt, Conn.meta_data(name, queries)


def check_pairs(c):
    for hidden, unknown in pairs():
        for (opt, data), (_, data_unknown) in zip(probes(hidden), probes(unknown)):
            got = [(r.type, r.data) for r in c.option(opt, data)]
            want = [(r.type, r.data) for r in c.option(opt, data_unknown)]
            want = [(t, d.replace(unknown, hidden)) for t, d in want]
            must(got == want, "%r, option %d: %s, but %r: %s", hidden[:40], opt, got, unknown[:40], want)
            must(got[-1][0] & ERR, "%r, option %d: %s", hidden[:40], opt, got)


@test(house=True)
def no_spelling_of_a_hidden_name_finds_it(s):
    """INFO, GO, LIST_META_CONTEXT, SET_META_CONTEXT: each as for a name that does not exist, to the
    byte, before and after structured replies."""
    with Hidden(me() + " vda") as f:
        with f.hello() as c:
            for negotiate in (None, c.negotiate_structured, c.negotiate_extended):
                if negotiate:
                    negotiate()
                check_pairs(c)
            must(c.info(MINE).ok, "its own is not seen")
            c.abort()


@test(house=True)
def no_spelling_opens_a_hidden_name_by_export_name(s):
    """NBD_OPT_EXPORT_NAME: closed as for an unknown one."""
    with Hidden(me() + " vda") as f:
        for hidden, _ in pairs():
            with f.hello() as c:
                c.send_opt(OPT_EXPORT_NAME, hidden)
                c.expect_close()


@test(house=True)
def identity_of_another_client_hides_as_well(s):
    """In plain, under TLS with a certificate that has no right, and under TLS with one that has."""
    with Hidden('dn:"CN=iso1,O=Example" vdb', "any vda",
                args=["--tls", "on", "--tls-verify-peer", "--tls-certificates", ca().dir]) as f:
        with f.hello() as c:
            check_pairs(c)
            upgrade(c, context(client=ca().client("iso2")))
            check_pairs(c)
            c.negotiate_structured()
            check_pairs(c)
            c.abort()
        with upgrade(f.hello(), context(client=ca().client("iso1"))) as c:
            must(c.info("vdb").ok, "who may see it does not")
            c.abort()


class Tap:
    """A socket that keeps what it received."""

    def __init__(self, sock):
        self._sock, self.heard = sock, bytearray()

    def recv(self, *args):
        d = self._sock.recv(*args)
        self.heard += d
        return d

    def recv_into(self, view, *args):
        n = self._sock.recv_into(view, *args)
        self.heard += bytes(view[:n])
        return n

    def __getattr__(self, name):
        return getattr(self._sock, name)


@test(house=True)
def nothing_that_a_client_hears_names_what_it_may_not_see(s):
    """Names, contexts, descriptions: whatever is asked without naming them, and however it fails."""
    secret = ["topsecret:8M:half,dirty=topsecretbase,description=topsecret",
              "topsecret@topsecretbase:8M:half,dirty=topsecretbase,unlisted"]
    with Hidden(me() + " vda", exports=EXPORTS3[:1] + EXPORTS3[2:4] + secret) as f, f.connect() as c:
        tap = c.sock = Tap(c.sock)
        c.hello()
        for _ in range(2):
            c.option(OPT_LIST)
            for name in ("", "vda", "vda@mon", "vda@", "vda@top", "top", "*", "topsecre", "nope", "vda+delta", "t" * 5000):
                for opt, data in probes(name):
                    if opt != OPT_GO:
                        c.option(opt, data)
            c.option(99, b"x")
            c.negotiate_structured()
        got, _ = c.list_meta(MINE, ["", "*", "qemu:", "qemu:dirty-bitmap:", "qemu:dirty-bitmap:*", "base:", "varve:",
                                    "qemu:dirty-bitmap:t", "topsecre"])
        must(set(got) <= {BA, "qemu:dirty-bitmap:mine"}, "contexts %s", got)
        must(not c.set_meta(MINE, ["qemu:dirty-bitmap:topsecretbase"])[0], "another's context was selected")
        c.set_meta(MINE, [BA])
        c.go(MINE)
        for cmd, off, n in ((CMD_READ, 4 * M, 512), (CMD_READ, 0, 512), (CMD_TRIM, 0, 512), (99, 0, 0),
                            (CMD_BLOCK_STATUS, 0, 4 * M), (CMD_BLOCK_STATUS, 0, 8 * M)):
            c.do(cmd, off, n)
        c.disc()
        must(len(tap.heard) > 1000, "the tap heard %d bytes", len(tap.heard))
        at = tap.heard.find(b"topsecret")
        must(at < 0, "it heard %r", bytes(tap.heard[max(0, at - 40):at + 40]))


@test
def replies_reach_the_connection_that_asked(s):
    """Equal cookies on 24 connections of one loop, to two exports, all in flight at once: each gets
    the bytes that it asked for.

    The gate is a file: reads wait while it exists, so that the last is sent before one is answered."""
    gate = os.path.join(tempfile.mkdtemp(dir=tmpdir()), "gate")
    with Fixture(["one:16M:pattern,slow=" + gate, "two:16M:striped,slow=" + gate],
                 ["--network-threads", "1"]) as f:
        f.check_serves()
        conns = [(f.exports[name], f.open(name, structured=how != "simple", extended=how == "extended"))
                 for i in range(4) for name in ("one", "two") for how in ("simple", "structured", "extended")]
        open(gate, "w").close()
        for i, (e, c) in enumerate(conns):
            c.send(b"".join(c.pack(CMD_READ, (i * 16 + k) * 40000 + i, 30000, cookie=k + 1)[0] for k in range(16)))
        os.unlink(gate)
        for e, c in conns:
            for _ in range(16):
                cookie, p = c.wait_any()
                must(p.data == e.content(p.off, p.len), "%s: wrong bytes at %d", e.name, p.off)
            c.disc()


main()
