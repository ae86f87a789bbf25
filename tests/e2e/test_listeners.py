#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Where varved listens: unix, TCP (IPv4, IPv6, port 0), vsock, sockets that systemd opened."""
import os
import re
import socket
import sys
import threading

import nbdclient
import qmpclient
from harness import VARVED, Stack, can_connect, wait_for
from tap import Skip, main, test

CID_LOCAL = 1  # VMADDR_CID_LOCAL

# Runs varved as systemd does: its sockets from 3 on, and its own pid in the environment.
ACTIVATE = """
import os, sys
names, fds, argv = sys.argv[1], [int(x) for x in sys.argv[2].split(",")], sys.argv[3:]
high = [os.dup2(fd, 100 + i) for i, fd in enumerate(fds)]
for i, fd in enumerate(high):
    os.dup2(fd, 3 + i)
    os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names)
os.execv(argv[0], argv)
"""


def listeners(s):
    with s.qmp() as q:
        return q.cmd("query-nbd-server")["listeners"]


def greets(sock):
    sock.settimeout(20)
    return sock.recv(18)[:8] == b"NBDMAGIC"


def listening(family, address):
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind(address)
    sock.listen()
    return sock


def activate(s, names, socks, *extra):
    """varved with these sockets; they are closed here."""
    fds = ",".join(str(x.fileno()) for x in socks)
    cmd = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-c", ACTIVATE, names, fds, VARVED,
           "--state-dir", s.state, "--runtime-dir", s.runtime] + list(extra)
    s.daemon = s.spawn("varved", cmd, pass_fds=[x.fileno() for x in socks])
    for x in socks:
        x.close()
    return s.daemon


@test
def port_0_is_told_as_the_real_one():
    """IPv4 and IPv6, in the log and in query-nbd-server; each greets."""
    with Stack() as s:
        s.start_daemon("--listen", "unix:" + s.nbd, "--listen", "tcp:127.0.0.1:0",
                       "--listen", "tcp:[::1]:0")
        unix, four, six = listeners(s)
        assert unix == "unix:" + s.nbd, unix
        host, port = re.fullmatch(r"tcp:(127\.0\.0\.1):(\d+)", four).groups()
        with socket.create_connection((host, int(port))) as c:
            assert int(port) and greets(c)
        host, port = re.fullmatch(r"tcp:\[(::1)\]:(\d+)", six).groups()
        with socket.create_connection((host, int(port))) as c:
            assert int(port) and greets(c)


@test
def all_addresses_of_both_families_are_served_by_one_listener():
    with Stack() as s:
        s.start_daemon("--listen", "unix:" + s.nbd, "--listen", "tcp:[::]:0")
        port = int(listeners(s)[1].rpartition(":")[2])
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, port)) as c:
                assert greets(c)


@test
def vsock_listens_and_tells_its_port():
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError:
        raise Skip("the kernel has no vsock")
    with Stack() as s:
        s.start_daemon("--listen", "unix:" + s.nbd, "--listen", "vsock:0")
        assert re.fullmatch(r"vsock:[1-9]\d*", listeners(s)[1]), listeners(s)


@test
def vsock_client_is_served():
    """Over the kernel's loopback, where it has one."""
    with Stack() as s:
        try:
            c = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        except OSError:
            raise Skip("the kernel has no vsock")
        s.start_daemon("--listen", "unix:" + s.nbd, "--listen", "vsock:0")
        c.settimeout(3)
        try:
            c.connect((CID_LOCAL, int(listeners(s)[1].partition(":")[2])))
        except OSError:
            raise Skip("the kernel has no vsock loopback")
        with c:
            assert greets(c)


def refused(q, pattern, command, **args):
    try:
        answer = q.cmd(command, **args)
    except qmpclient.QMPError as e:
        assert re.search(pattern, e.desc), (command, args, e.desc)
        return
    raise AssertionError("%s %r was accepted: %r" % (command, args, answer))


def unix_at(path):
    return {"type": "unix", "data": {"path": path}}


TCP_0 = {"type": "inet", "host": "127.0.0.1", "port": "0"}


@test
def more_listeners_come_and_go_and_those_of_the_beginning_stay():
    """With exports of a running backup; who is connected where one ends goes on."""
    with Stack() as s:
        disk = s.start("vda", 1 << 20, content=b"v" * (1 << 20))
        path = os.path.join(s.runtime, "more.sock")
        with s.qmp() as q:
            first = q.cmd("query-nbd-server")["listeners"]
            refused(q, "^NBD server not running: .*query-nbd-server", "nbd-server-stop")
            q.cmd("backup-begin", id="b", disks=[{"disk": "vda"}])
            assert q.cmd("nbd-server-start", addr=unix_at(path)) == {"listener": "unix:" + path}
            tcp = q.cmd("nbd-server-start", addr=TCP_0)["listener"]
            host, port = re.fullmatch(r"tcp:(127\.0\.0\.1):([1-9]\d*)", tcp).groups()
            assert q.cmd("query-nbd-server")["listeners"] == first + ["unix:" + path, tcp]
            refused(q, re.escape(path), "nbd-server-start", addr=unix_at(path))
            refused(q, "cannot listen at tcp:", "nbd-server-start",
                    addr=dict(TCP_0, port=port))
            refused(q, "more.sock|" + re.escape(disk.image), "nbd-server-start",
                    addr=unix_at(disk.image))
            assert q.cmd("query-nbd-server")["listeners"] == first + ["unix:" + path, tcp]
            with nbdclient.connect(path, "vda") as c, \
                    socket.create_connection((host, int(port))) as other:
                assert greets(other) and c.read(0, 4) == b"vvvv"
                refused(q, "^NBD server not running at unix:/nowhere", "nbd-server-stop",
                        addr=unix_at("/nowhere"))
                refused(q, "^NBD server not running at unix:", "nbd-server-stop",
                        addr=unix_at(s.nbd))
                q.cmd("nbd-server-stop", addr=unix_at(path))
                assert not os.path.exists(path) and can_connect(s.nbd)
                assert q.cmd("query-nbd-server")["listeners"] == first + [tcp]
                assert c.read(4096, 4) == b"vvvv", "who was connected does not go on"
            q.cmd("nbd-server-start", addr=unix_at(path))
            q.cmd("nbd-server-stop")
            assert q.cmd("query-nbd-server")["listeners"] == first and not os.path.exists(path)
            try:
                socket.create_connection((host, int(port))).close()
                raise AssertionError("it still listens at " + tcp)
            except ConnectionRefusedError:
                pass
            for i in range(32):
                q.cmd("nbd-server-start", addr=TCP_0)
            refused(q, "has 32 listeners that were started.*nbd-server-stop", "nbd-server-start",
                    addr=TCP_0)
            q.cmd("nbd-server-stop")
            q.cmd("nbd-server-start", addr=unix_at(path))
        s.stop(s.daemon)
        assert not os.path.exists(path)
        s.start_daemon()
        assert listeners(s) == first


@test
def a_daemon_ends_in_time_while_listeners_come_and_go():
    """Whoever asked is told that it ends, or is disconnected; nobody waits for a loop that left."""
    with Stack() as s:
        s.start_daemon()
        begun, ends = [], []

        def come_and_go():
            try:
                with s.qmp() as q:
                    while True:
                        q.cmd("nbd-server-start", addr=TCP_0)
                        q.cmd("nbd-server-stop")
                        begun.append(1)
            except (EOFError, OSError, qmpclient.QMPError) as e:
                ends.append(e)

        threads = [threading.Thread(target=come_and_go, daemon=True) for _ in range(4)]
        for t in threads:
            t.start()
        wait_for("listeners come and go", lambda: len(begun) > 20 or len(ends) == 4)
        assert s.stop(s.daemon) == 0
        with open(s.daemon.log) as f:
            assert "not all ended in time" not in f.read()
        for t in threads:
            t.join(60)
        assert len(ends) == 4


@test
def wrong_addresses_are_refused_with_a_reason():
    for where, what in (("vsock:x", "port"), ("vsock:4294967295", "port"), ("vsock:-1", "port"),
                        ("udp:1", "neither"),
                        ("tcp:127.0.0.1:65536", "port"), ("tcp:127.0.0.1:4294967296", "port"), ("tcp:1.2.3.4", "HOST:PORT"), ("unix:", "path")):
        with Stack() as s:
            p = s.spawn("varved", [VARVED, "--state-dir", s.state, "--runtime-dir", s.runtime,
                                   "--listen", where])
            s.started.remove(p)  # its end with 1 is what is asked for
            assert p.wait(60) == 1, where
            log = open(p.log).read()
            assert what in log and where in log, log


@test
def systemd_sockets_are_used_and_left_in_place():
    """NBD over unix and TCP and the control socket; no default listener; none is unlinked."""
    with Stack() as s:
        control = os.path.join(s.socks, "c.sock")
        nbd = os.path.join(s.socks, "n.sock")
        tcp = listening(socket.AF_INET, ("127.0.0.1", 0))
        port = tcp.getsockname()[1]
        activate(s, "nbd:control:tcp", [listening(socket.AF_UNIX, nbd),
                                        listening(socket.AF_UNIX, control), tcp])
        with qmpclient.QMP(control) as q:
            got = q.cmd("query-nbd-server")["listeners"]
        assert got == ["unix:" + nbd, "tcp:127.0.0.1:%d" % port], got
        for family, address in ((socket.AF_UNIX, nbd), (socket.AF_INET, ("127.0.0.1", port))):
            with socket.socket(family, socket.SOCK_STREAM) as c:
                c.connect(address)
                assert greets(c)
        assert not os.path.exists(s.nbd) and not os.path.exists(s.control)
        assert s.stop(s.daemon) == 0
        assert os.path.exists(nbd) and os.path.exists(control)
        os.unlink(nbd)
        os.unlink(control)


@test
def listen_stands_beside_systemds_sockets():
    with Stack() as s:
        other = os.path.join(s.socks, "o.sock")
        nbd = os.path.join(s.socks, "n.sock")
        activate(s, "nbd", [listening(socket.AF_UNIX, nbd)], "--listen", "unix:" + other)
        wait_for("varved's control socket", lambda: can_connect(s.control), s.daemon)
        assert listeners(s) == ["unix:" + other, "unix:" + nbd]
        s.stop(s.daemon)
        assert not os.path.exists(other)
        os.unlink(nbd)


@test
def sockets_meant_for_another_process_are_not_touched():
    """LISTEN_PID is somebody else's."""
    with Stack() as s:
        p = s.spawn("varved", ["env", "LISTEN_PID=1", "LISTEN_FDS=1", VARVED, "--state-dir", s.state,
                               "--runtime-dir", s.runtime])
        wait_for("varved's control socket", lambda: can_connect(s.control), p)
        assert listeners(s) == ["unix:" + s.nbd]


@test
def what_systemd_passes_must_be_a_listening_socket():
    for make in (lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), lambda: socket.socket()):
        for name in ("nbd", "control"):
            with Stack() as s:
                p = activate(s, name, [make()])
                s.started.remove(p)
                assert p.wait(60) == 1
                assert "no listening" in open(p.log).read()
                s.daemon = None


@test
def without_files_to_spare_clients_wait_and_nothing_spins():
    """At the limit of descriptors new clients wait in the kernel's queue, and are served later."""
    with Stack() as s:
        p = s.spawn("varved", ["prlimit", "--nofile=100:100", VARVED, "--state-dir", s.state,
                               "--runtime-dir", s.runtime])
        s.daemon = p
        wait_for("varved's NBD socket", lambda: can_connect(s.nbd), p)
        many = []
        for _ in range(120):
            c = socket.socket(socket.AF_UNIX)
            c.connect(s.nbd)
            many.append(c)
        wait_for("the log says so", lambda: "NBD clients wait" in open(p.log).read(), p)
        assert open(p.log).read().count("NBD clients wait") == 1
        for c in many[:60]:
            c.close()
        for c in many[60:]:
            assert greets(c)
            c.close()


@test
def network_threads_leave_each_other_threads_to_read_with():
    """One hanging disk must not take all: each network thread has at least four, or is the only one."""
    with Stack() as s:
        p = s.spawn("varved", [VARVED, "--state-dir", s.state, "--runtime-dir", s.runtime, "--threads",
                               "8", "--network-threads", "3"])
        s.started.remove(p)
        assert p.wait(60) == 2
        assert "at most 2" in open(p.log).read(), open(p.log).read()
    for threads, network in ((8, 2), (3, 1), (1, 1)):
        with Stack() as s:
            s.start_daemon("--threads", threads, "--network-threads", network)
            with nbdclient.NBD(s.nbd) as c:
                c.client_flags()
                assert not c.list_exports()


if __name__ == "__main__":
    main()
