#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Listeners, and the end of the server.  The fixture closes with a deadline of 2 s on SIGTERM."""
import fcntl

from nbdtest import *  # noqa: F401,F403

MODES = (False, True)
BA = "base:allocation"
# 2 s, and what a loaded machine and a leak checker take; far below what a hang would be.
ENDS_WITHIN = 2 + 6


def has_ipv6():
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("::1", 0))
            return True
        except OSError:
            return False


def ends(f):
    code = f.wait_exit(ENDS_WITHIN)
    must(code == 0, "exit status %d: %s", code, f.last_words())


@test
def server_without_clients_ends(s):
    """Terminating the transmission phase; server/nbd/nbd-server.h varve_nbd_server_close."""
    with Fixture(["a:1M:pattern"]) as f:
        f.terminate()
        ends(f)


@test
def server_with_idle_clients_ends_and_closes_them(s):
    """Terminating the transmission phase: a hard disconnect on shutdown."""
    with Fixture(["a:1M:pattern"]) as f:
        conns = [f.open(structured=m, tcp=t) for m in MODES for t in MODES]
        f.terminate()
        for c in conns:
            c.expect_close()
        ends(f)


@test
def server_with_haggling_clients_ends(s):
    """Termination of the session: if the server is being shut down it SHOULD error further options."""
    with Fixture(["a:1M:pattern"]) as f:
        conns = [f.connect(), f.hello(), f.hello(), f.hello()]
        conns[2].send(b"\0")
        conns[3].send_opt(OPT_GO, b"", length=100)
        f.terminate()
        for c in conns[1:]:
            c.drain()
        ends(f)


@test
def server_with_clients_that_never_read_ends(s):
    """Issue 3: within a deadline whatever clients do (QEMU's unix client blocks shutdown for ever)."""
    with Fixture(["a:64M:pattern,dirty=d"]) as f:
        for i in range(8):
            c = f.open(contexts=[BA], tcp=i % 2 == 1, rcvbuf=4096)
            c.send(b"".join(c.pack(CMD_READ, 0, 32 * M)[0] for _ in range(16)))
        c = f.open(structured=False)
        c.send(c.pack(CMD_WRITE, 0, 32 * M)[0] + bytes(M))
        f.check_serves()
        f.terminate()
        ends(f)


@test
def server_with_clients_that_never_stop_asking_ends(s):
    """Issue 3: within a deadline whatever clients do."""
    with Fixture(["a:64M:pattern"]) as f:
        conns = [f.open() for _ in range(4)]
        f.check_serves()
        f.terminate()
        open_conns = list(conns)
        end = time.monotonic() + ENDS_WITHIN + DEADLINE
        while open_conns:
            must(time.monotonic() < end, "still served")
            for c in list(open_conns):
                try:
                    r = c.read(0, 65536)
                    must(not r.errors or r.error == ESHUTDOWN, "got %s", r.errors)
                except (Closed, OSError):
                    open_conns.remove(c)
        ends(f)


@test
def reply_in_flight_is_delivered_before_the_end(s):
    """Terminating the transmission phase: SHOULD wait for inflight requests to be serviced.

    client: READ (blocks on the gate) | SIGTERM | socket vanishes | gate opens | reply, close"""
    gate = os.path.join(tempfile.mkdtemp(dir=tmpdir()), "gate")
    for mode in MODES:
        with Fixture(["a:1M:pattern,slow=" + gate, "b:1M:pattern"], name="b") as f:
            with f.open("a", structured=mode) as c:
                open(gate, "w").close()
                cookie = c.cmd(CMD_READ, 4096, 4096)
                f.check_serves()  # by then the loop has seen the read
                f.terminate()
                eventually(lambda: not os.path.exists(f.sock), "the socket gone")
                os.unlink(gate)
                r = c.wait(cookie)
                must(r.error == ESHUTDOWN or r.data == pattern(4096, 4096), "got %s", r.errors)
                c.expect_close()
            ends(f)


@test
def request_during_shutdown_is_eshutdown(s):
    """Terminating the transmission phase: subsequently received requests SHOULD be NBD_ESHUTDOWN.

    client: READ (blocks on the gate) | SIGTERM | socket vanishes | client: more requests"""
    gate = os.path.join(tempfile.mkdtemp(dir=tmpdir()), "gate")
    for mode in MODES:
        with Fixture(["a:1M:pattern,slow=" + gate, "b:1M:pattern"], name="b") as f:
            with f.open("a", structured=mode, contexts=[BA] if mode else None) as c:
                open(gate, "w").close()
                first = c.cmd(CMD_READ, 4096, 4096)
                f.check_serves()
                f.terminate()
                eventually(lambda: not os.path.exists(f.sock), "the socket gone")
                later = [c.cmd(CMD_READ, 0, 512), c.cmd(CMD_FLUSH), c.cmd(CMD_READ, 1 << 40, 1)]
                if mode:
                    later.append(c.cmd(CMD_BLOCK_STATUS, 0, 512))
                for k in later:
                    r = c.wait(k)
                    must(r.error in (ESHUTDOWN, EINVAL) if r.off == 1 << 40 else r.error == ESHUTDOWN,
                         "command %d got %s", r.cmd, r.errors)
                os.unlink(gate)
                c.wait(first)
                c.expect_close()
            ends(f)


@test
def disk_that_hangs_over_the_deadline_does_not_keep_clients(s):
    """Issue 3: all within a deadline.  The gate opens only after the client was let go."""
    gate = os.path.join(tempfile.mkdtemp(dir=tmpdir()), "gate")
    with Fixture(["a:1M:pattern,slow=" + gate, "b:1M:pattern"], name="b") as f:
        with f.open("a") as c:
            open(gate, "w").close()
            c.cmd(CMD_READ, 4096, 4096)
            f.check_serves()
            f.terminate()
            try:
                c.deadline = ENDS_WITHIN
                c.wait_any()
                c.expect_close()
            except Closed:
                pass
            finally:
                os.unlink(gate)
        ends(f)


@test
def option_during_shutdown_is_err_shutdown_or_the_end(s):
    """Termination of the session: SHOULD error further options (other than ABORT) with SHUTDOWN."""
    gate = os.path.join(tempfile.mkdtemp(dir=tmpdir()), "gate")
    with Fixture(["a:1M:pattern,slow=" + gate, "b:1M:pattern"], name="b") as f:
        with f.open("a") as holder, f.hello() as c, f.hello() as d:
            open(gate, "w").close()
            k = holder.cmd(CMD_READ, 4096, 4096)
            f.check_serves()
            f.terminate()
            eventually(lambda: not os.path.exists(f.sock), "the socket gone")
            try:
                for opt, data in ((OPT_LIST, b""), (OPT_INFO, c.info_data("b")), (OPT_GO, c.info_data("b")), (99, b"")):
                    t = c.option(opt, data)[-1].type
                    must(t == ERR_SHUTDOWN, "option %d got %s", opt, rep_name(t))
                must(c.final(OPT_ABORT) == REP_ACK, "ABORT was not acknowledged")
            except Closed:
                pass
            try:
                must(d.final(OPT_ABORT) == REP_ACK, "ABORT was not acknowledged")
            except Closed:
                pass
            os.unlink(gate)
            holder.wait(k)
        ends(f)


@test
def nobody_new_is_let_in_during_shutdown(s):
    """server/nbd/nbd-server.h varve_nbd_server_close: stops listening."""
    gate = os.path.join(tempfile.mkdtemp(dir=tmpdir()), "gate")
    with Fixture(["a:1M:pattern,slow=" + gate, "b:1M:pattern"], name="b") as f:
        with f.open("a") as c:
            open(gate, "w").close()
            k = c.cmd(CMD_READ, 4096, 4096)
            f.check_serves()
            f.terminate()
            eventually(lambda: not os.path.exists(f.sock), "the socket gone")
            for tcp in (False, True):
                try:
                    with f.connect(tcp) as n:
                        n.greeting()
                        raise Violation("a new client was greeted")
                except (OSError, Closed):
                    pass
            os.unlink(gate)
            c.wait(k)
        ends(f)


@test
def second_sigterm_changes_nothing(s):
    """server/nbd/nbd-server.h: closed is called exactly once."""
    with Fixture(["a:64M:pattern"]) as f:
        c = f.open(rcvbuf=4096)
        c.send(b"".join(c.pack(CMD_READ, 0, 32 * M)[0] for _ in range(16)))
        f.check_serves()
        f.terminate()
        eventually(lambda: not os.path.exists(f.sock), "the socket gone")
        f.terminate()
        ends(f)


@test
def unix_socket_is_removed_in_the_end(s):
    """server/nbd/nbd-server.h varve_nbd_server_close: unlinks unix sockets."""
    with Fixture(["a:1M:pattern"]) as f:
        must(os.path.exists(f.sock), "no socket")
        f.stop()
        must(not os.path.exists(f.sock), "the socket is still there")


@test
def stale_unix_socket_is_replaced(s):
    """server/nbd/nbd-server.h varve_nbd_server_listen: a stale socket is replaced when nobody listens."""
    d = tempfile.mkdtemp(dir=tmpdir())
    f = Fixture(["a:1M:pattern"], dir=d)
    f.kill()
    must(os.path.exists(f.sock), "test bug: no stale socket")
    with Fixture(["a:2M:pattern"], dir=d) as g:
        with g.open() as c:
            must(c.size == 2 * M, "size %d", c.size)
            c.disc()


@test
def living_unix_socket_is_not_stolen(s):
    """server/nbd/nbd-server.h varve_nbd_server_listen."""
    d = tempfile.mkdtemp(dir=tmpdir())
    with Fixture(["a:1M:pattern"], dir=d) as f:
        try:
            g = Fixture(["a:2M:pattern"], dir=d)
        except AssertionError:
            g = None
        if g:
            g.kill()
            raise Violation("a second server listens at the same place")
        with f.open() as c:
            must(c.size == 1 * M, "size %d", c.size)
            c.disc()


@test
def stale_unix_socket_is_left_to_the_server_that_is_replacing_it(s):
    """server/nbd/nbd-server.h varve_nbd_server_listen: two servers that start at once.

    we      lock the folder, as a server does that has found the stale socket and is about to bind
    server  finds the stale socket too; without the lock it would replace it now,
            and whichever of the two is the later one steals the other's"""
    d = tempfile.mkdtemp(dir=tmpdir())
    f = Fixture(["a:1M:pattern"], dir=d)
    f.kill()
    before = os.stat(f.sock).st_ino
    fd = os.open(d, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        g = Fixture(["a:2M:pattern"], dir=d)
    except AssertionError as e:
        must("lock" in str(e), "%s", e)
    else:
        g.kill()
        raise Violation("it listens although another server is at it")
    must(os.stat(f.sock).st_ino == before, "the socket was replaced")
    os.close(fd)
    with Fixture(["a:2M:pattern"], dir=d) as g, g.open() as c:
        must(c.size == 2 * M, "size %d", c.size)
        c.disc()


@test
def file_in_the_sockets_place_is_left_alone(s):
    """server/nbd/nbd-server.h varve_nbd_server_listen: only a stale *socket* is replaced."""
    d = tempfile.mkdtemp(dir=tmpdir())
    with open(os.path.join(d, "s"), "w") as x:
        x.write("precious")
    try:
        g = Fixture(["a:2M:pattern"], dir=d)
    except AssertionError:
        g = None
    if g:
        g.kill()
    with open(os.path.join(d, "s")) as x:
        must(x.read() == "precious", "the file was overwritten")
    must(g is None, "it listens where a file is")


@test
def several_listeners_serve_the_same_exports(s):
    """interface.md: --listen WHERE may be given several times; port 0 is told."""
    d = tempfile.mkdtemp(dir=tmpdir())
    listen = ["unix:%s/1" % d, "unix:%s/2" % d, "tcp:127.0.0.1:0", "tcp:localhost:0"]
    if has_ipv6():
        listen.append("tcp:[::1]:0")
    with Fixture(["a:1M:pattern"], listen=listen) as f:
        wheres = [parse_where(w) for w in f.ready]
        must(all(w[0] == "unix" or w[2] for w in wheres), "ports %s", f.ready)
        for w in wheres:
            with Conn(w) as c:
                c.hello()
                c.go("a")
                must(c.read(0, 512).data == pattern(0, 512), "wrong bytes")
                c.disc()


@test
def long_address_is_an_address(s):
    """interface.md: WHERE is tcp:HOST:PORT.  A whole IPv6 address has 39 digits and colons; without
    IPv6 the name is one that cannot be resolved, and the error must be about that."""
    if has_ipv6():
        with Fixture(["a:1M:pattern"], listen=["tcp:[0000:0000:0000:0000:0000:0000:0000:0001]:0"]) as f:
            with Conn(f.where) as c:
                c.hello()
                c.go("a")
                c.disc()
    try:
        Fixture(["a:1M:pattern"], listen=["tcp:a-host-of-long-name.somewhere.invalid:0"]).kill()
    except AssertionError as e:
        must("too long" not in str(e), "%s", e)


@test
def port_in_use_is_an_error(s):
    """server/nbd/nbd-server.h varve_nbd_server_listen."""
    with Fixture(["a:1M:pattern"]) as f:
        try:
            g = Fixture(["a:1M:pattern"], listen=[f.ready[1]])
        except AssertionError as e:
            must("ended" in str(e), "%s", e)
        else:
            g.kill()
            raise Violation("two servers on one port")


main()
