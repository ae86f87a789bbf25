#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""varved --metrics: what it tells, to whom, and what clients cannot do to it."""
import json
import os
import re
import signal
import socket

import backups
import prometheus
import rawhttp
from harness import K, M, VARVED, Stack, can_connect, wait_for
from held import Held
from nbdclient import CMD_WRITE
from qmpclient import QMPError
import tap
from tap import main, test
from test_listeners import activate, listening

SYSTEM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../system")
ASK = rawhttp.GET % ("/metrics", "x")

tap.tests.clear()  # those of test_listeners


def place(s):
    return os.path.join(s.socks, "metrics.sock")


def start(s, *extra):
    s.start_daemon("--metrics", "unix:" + place(s), *extra)
    return place(s)


def scraped(where):
    status, fields, body = rawhttp.get(where, "/metrics")
    assert status == 200 and fields["content-type"] == "text/plain; version=0.0.4; charset=utf-8", fields
    return prometheus.samples(body.decode())


# --- what it tells ----------------------------------------------------------------------------------


@test
def metrics_tell_what_the_queries_tell():
    """Two disks, a good backup, a failed one, one that runs; a disk that is not served any more."""
    with Stack() as s:
        where = start(s)
        vda = s.start("vda", 16 * M, b"\x5a" * (16 * M), granularity="64K", scratch_max="5M")
        vdb = s.start("vdb", 8 * M)
        with s.qmp() as q:
            good, _ = backups.begin(q, ["vda"])
            backups.end(q, good)
            backups.end(q, backups.begin(q, ["vda", "vdb"])[0], success=False)
            backups.begin(q, ["vda"])
            with vda.connect() as c:
                c.write(3 * 64 * K + 10, b"x" * 100)
            s.stop(vdb.process)
            s.wait_disk("vdb", "offline")
            with s.connect("vda"):
                got, disks = scraped(where), {d["name"]: d for d in q.cmd("query-disks")}
            done = [b for b in q.cmd("query-backups") if b["id"] == good][0]
        for name, value in {
                'varve_disk_state{disk="vda",state="live"}': 1,
                'varve_disk_state{disk="vda",state="offline"}': 0,
                'varve_disk_state{disk="vdb",state="offline"}': 1,
                'varve_disk_degraded{disk="vda"}': 0,
                'varve_disk_size_bytes{disk="vda"}': 16 * M, 'varve_disk_size_bytes{disk="vdb"}': 8 * M,
                'varve_disk_dirty_bytes{disk="vda"}': 64 * K,
                'varve_disk_intent_regions{disk="vda"}': disks["vda"]["intent-regions"],
                'varve_scratch_used_bytes{disk="vda"}': 64 * K, 'varve_scratch_max_bytes{disk="vda"}': 5 * M,
                'varve_preserved_bytes_total{disk="vda"}': 64 * K,
                'varve_bitmaps_inconsistent{disk="vda"}': 0,
                # The newest that ended well, not the newest; vdb had none.
                'varve_last_success_timestamp_seconds{disk="vda"}': int(done["time"]),
                'varve_last_success_timestamp_seconds{disk="vdb"}': 0,
                'varve_backups{state="running"}': 1, 'varve_backups{state="degraded"}': 0,
                'varve_backups{state="broken"}': 0, "varve_nbd_clients": 1, "varve_nbd_refused_total": 0,
        }.items():
            assert got[name] == value, (name, got[name])
        assert got["varve_nbd_connections_total"] > 1
        assert 'varve_scratch_max_bytes{disk="vdb"}' not in got  # none is set


@test
def one_text_is_told_in_three_ways():
    with Stack() as s:
        where = start(s)
        s.start("vda", M)
        text = s.command("query-metrics")["text"]
        assert not prometheus.judged(text), prometheus.judged(text)
        ways = [text, rawhttp.get(where, "/metrics")[2].decode(), s.varve("metrics").stdout]
        assert [list(prometheus.samples(t)) for t in ways] == [list(prometheus.samples(text))] * 3
        assert [re.findall("^#.*", t, re.MULTILINE) for t in ways] == [re.findall(
            "^#.*", text, re.MULTILINE)] * 3


@test
def alerts_and_dashboard_ask_for_metrics_that_there_are():
    with Stack() as s:
        s.start("vda", M, scratch_max="1M")
        known = {k.partition("{")[0] for k in prometheus.samples(s.command("query-metrics")["text"])}
        for name in ("alerts.yml", "grafana.json"):
            with open(os.path.join(SYSTEM, name), encoding="utf-8") as f:
                asked = set(re.findall(r"\bvarve_\w+", f.read()))
            assert len(asked) > 5 and asked <= known, (name, asked - known)


def pauses(where):
    return scraped(where)["varve_freeze_pause_seconds_count"]


@test
def each_boundary_that_held_writers_is_in_the_histogram():
    """One for each boundary, not for each disk; none where nobody serves the disk, and none for a transaction
    without a boundary."""
    with Stack() as s:
        where = start(s)
        s.start("vda", M)
        vdb = s.start("vdb", M)
        before = pauses(where)
        for i in range(5):
            s.command("checkpoint-create", name="c%d" % i, disks=["vda", "vdb"])
        assert pauses(where) == before + 5
        s.command("transaction", actions=[])
        s.command("checkpoint-delete", name="c0")
        assert pauses(where) == before + 5
        s.stop(vdb.process)
        s.wait_disk("vdb", "offline")
        s.command("checkpoint-create", name="x", disks=["vdb"])
        assert pauses(where) == before + 5
        s.command("checkpoint-create", name="y", disks=["vdb", "vda"])
        assert pauses(where) == before + 6
        got, name = scraped(where), "varve_freeze_pause_seconds"
        assert got[name + "_sum"] > 0
        bounds = [float(k.split('"')[1]) for k in got if k.startswith(name + "_bucket")]
        assert {0.0001, 0.0003, 0.001, 0.1, 2, float("inf")} <= set(bounds), bounds
        for b in bounds:  # what a bound says is what counts there
            assert got[name + '_bucket{le="%s"}' % ("+Inf" if b == float("inf") else "%g" % b)] <= 6


@test
def a_boundary_that_the_guests_deadline_ended_is_in_the_histogram():
    """
        writer   enters the epoch, is held
        daemon   checkpoint-create: quiesce; the deadline of 500 ms ends it, there is no boundary
        metrics  a pause that was not shorter than that
    """
    with Held(M, bytes(M), freeze_timeout="500ms") as s:
        path = place(s)
        s.stop(s.daemon)
        start(s)
        s.wait_disk("vda", "live")
        with s.disk.connect() as c:
            s.hold("write.image.before")
            c.send(CMD_WRITE, 0, 512, data=b"x" * 512)
            s.wait_held("write.image.before")
            try:
                s.command("checkpoint-create", name="c", disks=["vda"])
                raise AssertionError("a boundary was made across a write under way")
            except QMPError:
                pass
            s.let_go("write.image.before")
            assert c.recv().error == 0
        got = scraped(path)
        name = "varve_freeze_pause_seconds"
        assert got[name + "_count"] == 1 and got[name + "_sum"] >= 0.5, got
        assert got[name + '_bucket{le="0.2"}'] == 0


@test
def bitmaps_that_cannot_be_used_are_counted():
    with Stack() as s:
        where = start(s)
        vda = s.start("vda", M)
        for name in ("a", "b"):
            s.command("block-dirty-bitmap-add", node="vda", name=name)
        name = 'varve_bitmaps_inconsistent{disk="vda"}'
        assert scraped(where)[name] == 0
        s.stop(vda.process)
        s.wait_disk("vda", "offline")
        with open(vda.image, "r+b") as f:  # somebody else
            f.write(b"foreign")
        os.utime(vda.image)
        wait_for("it is found", lambda: scraped(where)[name] == 2)
        assert {b["inconsistent"] for b in s.command("query-block")[0]["dirty-bitmaps"]} == {True}


# --- to whom ----------------------------------------------------------------------------------------


def sockets_of(pid):
    """Inodes of the process's sockets."""
    inodes = set()
    for fd in os.listdir("/proc/%d/fd" % pid):
        try:
            inodes |= set(re.findall(r"socket:\[(\d+)\]", os.readlink("/proc/%d/fd/%s" % (pid, fd))))
        except FileNotFoundError:  # it was closed meanwhile
            pass
    return inodes


def listening_sockets(pid):
    """How many listening sockets the process has."""
    inodes, found = sockets_of(pid), 0
    for table, column, state, inode in (("unix", 3, "00010000", 6), ("tcp", 3, "0A", 9), ("tcp6", 3, "0A", 9)):
        with open("/proc/net/" + table, encoding="utf-8") as f:
            for line in f.read().splitlines()[1:]:
                words = line.split()
                found += words[column] == state and words[inode] in inodes
    return found


@test
def nobody_listens_unless_it_is_asked_for():
    with Stack() as s:
        s.start_daemon()
        assert listening_sockets(s.daemon.pid) == 2  # control and NBD
    with Stack() as s:
        start(s)
        assert listening_sockets(s.daemon.pid) == 3


@test
def it_listens_where_it_was_told_in_each_family():
    with Stack() as s:
        paths = [os.path.join(s.socks, n) for n in ("a", "b")]
        s.start_daemon("--metrics", "unix:" + paths[0], "--metrics", "unix:" + paths[1])
        for path in paths:
            assert scraped(path)
        assert s.stop(s.daemon) == 0
        assert not os.path.exists(paths[0]) and not os.path.exists(paths[1])
    for where in ("tcp:127.0.0.1:0", "tcp:[::1]:0"):
        with Stack() as s:
            s.start_daemon("--metrics", where)
            address = rawhttp.listener(s.daemon, "metrics")
            assert scraped(address)
            # Prometheus is told any name; a proxy asks so, too.
            assert rawhttp.get(address, "/metrics", host="backup.example")[0] == 200
            assert rawhttp.get(address, "http://backup.example/metrics")[0] == 200


@test
def a_place_that_cannot_be_listened_at_ends_the_daemon():
    for where, says in (("/tmp/x", "metrics: /tmp/x: neither"), ("tcp:x", "HOST:PORT is needed"),
                        ("unix:/nowhere/x", "/nowhere/x")):
        with Stack() as s:
            p = s.spawn("varved", [VARVED, "--state-dir", s.state, "--runtime-dir", s.runtime, "--metrics",
                                   where])
            s.started.remove(p)  # its end with 1 is what is asked for
            assert p.wait(60) == 1
            with open(p.log, encoding="utf-8") as f:
                assert says in f.read(), where


@test
def sockets_of_systemd_named_metrics_are_used_and_left_in_place():
    with Stack() as s:
        nbd = os.path.join(s.socks, "n.sock")
        activate(s, "metrics:nbd:metrics", [
            listening(socket.AF_UNIX, place(s)), listening(socket.AF_UNIX, nbd),
            listening(socket.AF_UNIX, place(s) + "2")])
        wait_for("varved's control socket", lambda: can_connect(s.control), s.daemon)
        assert scraped(place(s)) and scraped(place(s) + "2")
        with s.qmp() as q:
            assert q.cmd("query-nbd-server")["listeners"] == ["unix:" + nbd]
        assert s.stop(s.daemon) == 0
        for path in (place(s), place(s) + "2", nbd):
            os.unlink(path)


# --- requests, right and wrong ----------------------------------------------------------------------


@test
def requests_get_the_answers_that_they_should():
    with Stack() as s:
        where = start(s)
        for request, status in (
                ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200), ("GET /metrics HTTP/1.0\n\n", 200),
                ("GET /metrics?a=b&c HTTP/1.1\r\nHost: x\r\nX: y\r\n\r\n", 200),
                ("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200), ("HEAD /x HTTP/1.0\r\n\r\n", 404),
                ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 200),
                ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404), ("GET /metricsx HTTP/1.0\r\n\r\n", 404),
                ("GET /metrics/ HTTP/1.0\r\n\r\n", 404), ("GET /../metrics HTTP/1.0\r\n\r\n", 404),
                ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcd", 405),
                ("PUT / HTTP/1.0\r\n\r\n", 405), ("TRACE /metrics HTTP/1.0\r\n\r\n", 405),
                ("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 405), ("CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 405),
                ("GET /metrics\r\n\r\n", 400), ("GET /metrics HTTP/1.1\r\n\r\n", 400), ("\r\n\r\n", 400),
                ("GET /metrics HTTP/1.0\r\n a: b\r\n\r\n", 400), ("GET /metrics\0 HTTP/1.0\r\n\r\n", 400),
                ("GET /metrics HTTP/2.0\r\n\r\n", 505), ("\x16\x03\x01\x02\r\n\r\n", 400)):
            got, fields, body = rawhttp.ask(where, request.encode())
            assert got == status, (request, got)
            assert fields.get("allow") == ("GET, HEAD" if got == 405 else None), fields
            assert (b"varve_" in body) == (got == 200 and not request.startswith("HEAD")), request
        # Whoever says no more after half a request is told; with a whole one, he is answered.
        assert rawhttp.ask(where, b"GET /metrics", half_close=True)[0] == 400
        assert rawhttp.ask(where, ASK.encode(), half_close=True)[0] == 200
        size = int(rawhttp.ask(where, b"HEAD /metrics HTTP/1.0\r\n\r\n")[1]["content-length"])
        assert size == len(rawhttp.get(where, "/metrics")[2])


@test
def heads_come_in_any_pieces_and_are_bounded():
    with Stack() as s:
        where = start(s)
        with rawhttp.connect(where) as c:
            for byte in ASK:
                c.sendall(byte.encode())
            assert rawhttp.parse(rawhttp.everything(c))[0] == 200
        fits = b"GET /metrics HTTP/1.0\r\na: %s\r\n\r\n"
        fits %= b"x" * (8192 - len(fits) + 2)
        assert len(fits) == 8192 and rawhttp.ask(where, fits)[0] == 200
        assert rawhttp.ask(where, fits.replace(b"x", b"xx", 1))[0] == 431
        assert rawhttp.ask(where, b"x" * 8192)[0] == 431
        # Much more than is read: it is not waited for, and the daemon goes on.
        with rawhttp.connect(where) as c:
            try:
                for _ in range(100):
                    c.sendall(b"GET / HTTP/1.0\r\n" * 10000)
            except (BrokenPipeError, ConnectionResetError):
                pass
        assert scraped(where)


# --- clients that are no friends --------------------------------------------------------------------


@test
def who_sends_his_request_byte_by_byte_is_cut_off():
    with Stack() as s:
        where = start(s, "--handshake-timeout", "300ms")
        with rawhttp.connect(where) as silent, rawhttp.connect(where) as slow:
            slow.sendall(b"GET /met")
            assert rawhttp.parse(rawhttp.everything(slow))[0] == 408
            assert rawhttp.parse(rawhttp.everything(silent))[0] == 408
        assert scraped(where)


@test
def any_number_of_silent_connections_leaves_room():
    """The longest silent ones go: whoever asks is answered, though none of them is late."""
    with Stack() as s:
        where = start(s, "--handshake-timeout", "1000s")
        before = len(sockets_of(s.daemon.pid))
        silent = [rawhttp.connect(where) for _ in range(300)]
        for c in silent[:150]:
            try:
                c.sendall(b"GET /met")
            except BrokenPipeError:
                pass
        for _ in range(20):
            assert scraped(where)
        with s.qmp() as q:
            assert q.cmd("query-version")
        assert len(sockets_of(s.daemon.pid)) - before <= 130
        assert rawhttp.everything(silent[0]) == b""
        silent[-1].sendall(ASK.encode())
        assert rawhttp.parse(rawhttp.everything(silent[-1]))[0] == 200
        for c in silent:
            c.close()
        wait_for("they have gone", lambda: len(sockets_of(s.daemon.pid)) <= before)


def many_disks(s):
    """So that an answer is more than a socket takes."""
    for i in range(1000):
        os.mkdir(os.path.join(s.state, "%s%d" % ("long" * 12, i)))
        with open(os.path.join(s.state, "%s%d" % ("long" * 12, i), "disk.json"), "w", encoding="utf-8") as f:
            f.write("{}")


def log_of(s):
    with open(s.daemon.log, encoding="utf-8") as f:
        return f.read()


@test
def who_does_not_read_holds_up_nobody():
    """64 who take nothing of a long answer: the next one waits until one of them has gone, and is told of in
    the log once; the control socket and NBD clients do not wait."""
    with Stack() as s:
        many_disks(s)
        where = start(s, "--write-timeout", "1000s")
        readers = [rawhttp.connect(where, rcvbuf=4096) for _ in range(64)]
        for c in readers:
            c.sendall(ASK.encode())
        for c in readers:
            c.recv(1, socket.MSG_PEEK)  # its answer has begun
        late = rawhttp.connect(where)
        late.sendall(ASK.encode())
        wait_for("late waits", lambda: "clients of metrics wait at" in log_of(s))
        with s.qmp() as q:
            assert q.cmd("query-version") and q.cmd("query-jobs") == []
        assert can_connect(s.nbd)
        readers[0].close()
        assert rawhttp.parse(rawhttp.everything(late))[0] == 200
        assert rawhttp.parse(rawhttp.everything(readers[1]))[0] == 200
        for c in readers + [late]:
            c.close()
        assert log_of(s).count("clients of metrics wait at") == 1


@test
def who_does_not_read_is_cut_off():
    with Stack() as s:
        many_disks(s)
        where = start(s, "--write-timeout", "500ms")
        size = len(rawhttp.get(where, "/metrics")[2])
        before = sockets_of(s.daemon.pid)
        with rawhttp.connect(where, rcvbuf=4096) as reader:
            reader.sendall(ASK.encode())
            reader.recv(1, socket.MSG_PEEK)
            wait_for("it has gone", lambda: sockets_of(s.daemon.pid) <= before)
            assert 0 < len(rawhttp.everything(reader)) < size


class Stopped:
    """A disk's server that does not answer, so that the clerk waits in a command."""

    def __init__(self, s, name):
        self.pid, self.s, self.name = s.disks[name].process.pid, s, name

    def __enter__(self):
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)
        self.q = self.s.qmp()
        self.q.send_raw(json.dumps({"execute": "checkpoint-create", "arguments": {
            "name": "c", "disks": [self.name]}}).encode())
        return self

    def __exit__(self, *exc):
        os.kill(self.pid, signal.SIGCONT)
        self.q.close()


@test
def who_waits_for_the_clerk_is_answered_in_his_turn():
    """Timeline: the clerk waits for a plugin; twenty ask, and a page that is not there is told at once; the
    clerk has done; all twenty have their answers."""
    with Stack() as s:
        where = start(s)
        s.start("vda", M)
        with Stopped(s, "vda"):
            waiting = [rawhttp.connect(where) for _ in range(20)]
            for c in waiting:
                c.sendall(ASK.encode())
            assert rawhttp.get(where, "/x")[0] == 404
        for c in waiting:
            with c:
                status, _, body = rawhttp.parse(rawhttp.everything(c))
                assert status == 200 and prometheus.samples(body.decode())


@test
def the_daemon_ends_in_peace_whatever_clients_do():
    """Silent ones, half requests, answers that are not read, and those who wait for the clerk."""
    with Stack() as s:
        many_disks(s)
        where = start(s)
        s.start("vda", M)
        clients = [rawhttp.connect(where) for _ in range(5)]
        clients[1].sendall(b"GET ")
        reader = rawhttp.connect(where, rcvbuf=4096)
        reader.sendall(ASK.encode())
        reader.recv(1, socket.MSG_PEEK)
        with Stopped(s, "vda"):
            for c in clients[2:]:
                c.sendall(ASK.encode())
            s.daemon.terminate()
            assert s.daemon.wait(60) == 0
            for c in clients[2:]:
                got = rawhttp.everything(c)
                assert not got or rawhttp.parse(got)[0] in (200, 503), got[:100]
            for c in clients[:2]:
                assert rawhttp.everything(c) == b""
        for c in clients + [reader]:
            c.close()
        assert not os.path.exists(where)
        assert not re.search("not all ended in time|still has handles", log_of(s)), log_of(s)


if __name__ == "__main__":
    main()
