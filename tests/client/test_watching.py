#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What one watches with: events, metrics and their HTTP, colours on a terminal."""
import json
import os
import pty
import re
import socket
import subprocess
import sys

from fakevarved import FakeVarved
from harness import K, M, VARVE, Folder, good, main, refused, test

DISKS = [
    {"name": "vda", "state": "live", "size": 64 * M, "dirty-bytes": 448 * K, "intent-regions": 2,
     "scratch": {"used": 1536, "max": 4096}, "checkpoints": [], "bitmaps": [], "backups": ["b2"]},
    {"name": "vdb", "state": "inconsistent", "size": M, "dirty-bytes": 0, "intent-regions": 0,
     "scratch": {"used": 0, "max": None}, "checkpoints": [], "bitmaps": [], "backups": []},
]
BACKUPS = [
    {"id": "b0", "state": "completed", "time": 1700000000.25, "disks": [{"disk": "vda"}]},
    {"id": "b1", "state": "completed", "time": 1700000500.75, "disks": [{"disk": "vda"}, {"disk": "vdc"}]},
    {"id": "b2", "state": "degraded", "time": 1700000900, "disks": [{"disk": "vda"}]},
    {"id": "b3", "state": "failed", "time": 1700000950, "disks": [{"disk": "vda"}]},
    {"id": "b4", "state": "broken", "time": 1700000960, "disks": [{"disk": "vdb"}]},
]
SERVER = {"clients": [{"peer": "x"}], "accepted": 7, "refused": 1}
REPLIES = {"query-disks": DISKS, "query-backups": BACKUPS, "query-nbd-server": SERVER}
EVENT = {"event": "BACKUP_BROKEN", "data": {"id": "b\x1b4", "reason": "no room", "n": [1]},
         "timestamp": {"seconds": 1700000000, "microseconds": 0}}
SAMPLE = re.compile(r'varve_[a-z_]+(?:\{[a-z]+="(?:[^"\\\n]|\\.)*"(?:,[a-z]+="(?:[^"\\\n]|\\.)*")*\})? \d+')


class Daemon(Folder):
    def __init__(self, replies=None, **kw):
        super().__init__()
        self.control = self("c.sock")
        self.daemon = FakeVarved(self.control, REPLIES if replies is None else replies, **kw)

    def __enter__(self):
        self.daemon.__enter__()
        return self

    def __exit__(self, *exc):
        self.daemon.__exit__(*exc)
        super().__exit__(*exc)


def samples(text):
    """{name and labels: value}; the text is Prometheus' format, each name has its type once."""
    out, types = {}, []
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            types.append(line.split()[2])
        elif not line.startswith("# HELP "):
            assert SAMPLE.fullmatch(line), line
            assert re.match("[a-z_]+", line).group() == types[-1], line
            out[line.rsplit(" ", 1)[0]] = int(line.rsplit(" ", 1)[1])
    assert len(types) == len(set(types)) > 8
    return out


@test
def metrics_are_what_one_alerts_on():
    with Daemon() as d:
        got = samples(good("--control", d.control, "metrics"))
    for name, value in {
            'varve_disk_state{disk="vda",state="live"}': 1,
            'varve_disk_state{disk="vda",state="missing"}': 0,
            'varve_disk_state{disk="vdb",state="inconsistent"}': 1,
            'varve_disk_dirty_bytes{disk="vda"}': 448 * K,
            'varve_scratch_used_bytes{disk="vda"}': 1536, 'varve_scratch_max_bytes{disk="vda"}': 4096,
            # The newest that ended well, not the newest; vdb had none.
            'varve_last_success_timestamp_seconds{disk="vda"}': 1700000500,
            'varve_last_success_timestamp_seconds{disk="vdb"}': 0,
            'varve_backups{state="degraded"}': 1, 'varve_backups{state="broken"}': 1,
            'varve_backups{state="running"}': 0,
            "varve_nbd_clients": 1, "varve_nbd_connections_total": 7, "varve_nbd_refused_total": 1,
    }.items():
        assert got.pop(name) == value, name
    assert 'varve_scratch_max_bytes{disk="vdb"}' not in got  # none is set
    refused("--control", "/nowhere", "metrics", says="/nowhere")


@test
def names_cannot_forge_metrics():
    disk = dict(DISKS[0], name='a"} 1\nvarve_up 1\\')
    with Daemon(dict(REPLIES, **{"query-disks": [disk]})) as d:
        got = samples(good("--control", d.control, "metrics"))
    assert not any(name.startswith("varve_up") for name in got)


def http(control, request, close=True):
    """What a connection that sends this gets: (status line, body)."""
    ours, its = socket.socketpair()
    with ours:
        p = subprocess.Popen([VARVE, "--control", control, "metrics", "--http"], stdin=its, stdout=its,
                             stderr=subprocess.PIPE)
        its.close()
        try:
            ours.sendall(request)
            if close:
                ours.shutdown(socket.SHUT_WR)
        except BrokenPipeError:
            pass
        got = b""
        try:
            while chunk := ours.recv(65536):
                got += chunk
        except ConnectionResetError:
            pass
    err = p.stderr.read()
    p.wait(60)
    p.stderr.close()
    assert b"anitizer" not in err, err
    head, _, body = got.decode().partition("\r\n\r\n")
    if head:
        assert "Content-Length: %d" % len(body.encode()) in head.split("\r\n"), head
    return head.split("\r\n")[0], body


@test
def http_serves_one_page_and_nothing_else():
    with Daemon() as d:
        status, body = http(d.control, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status == "HTTP/1.1 200 OK" and samples(body)
        status, body = http(d.control, b"GET /metrics?x=1 HTTP/1.0\n\n", close=False)
        assert status == "HTTP/1.1 200 OK"
        for request, code in ((b"GET / HTTP/1.1\r\n\r\n", "404"), (b"GET /metricsx HTTP/1.1\r\n\r\n", "404"),
                              (b"GET /metrics", "400"), (b"GET /metrics\r\n\r\n", "404"),
                              (b"POST /metrics HTTP/1.1\r\n\r\n", "405"), (b"", "400"), (b"\r\n\r\n", "405"),
                              (b"GET /metrics\0 HTTP/1.1\r\n\r\n", "400"), (b"\xff" * 100, "400"),
                              (b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 5000, "400")):
            status, body = http(d.control, request)
            assert status.split()[1:2] in ([code], []) and "varve_" not in body, (request[:40], status)
            assert status or len(request) > 8192, request[:40]  # its tail may reset the connection
    status, body = http("/nowhere", b"GET /metrics HTTP/1.1\r\n\r\n")
    assert status.startswith("HTTP/1.1 503 ") and "nowhere" not in body


@test
def events_are_told_as_they_come():
    with Daemon({}, after=json.dumps(EVENT).encode() + b"\r\n") as d:
        for json_too in (False, True):
            p = subprocess.Popen([VARVE, "--control", d.control, "watch"] + ["--json"] * json_too,
                                 stdout=subprocess.PIPE, text=True, env={**os.environ, "TZ": "UTC"})
            line = p.stdout.readline()
            p.terminate()
            p.wait(60)
            p.stdout.close()
            if json_too:
                assert json.loads(line) == EVENT, line
            else:
                assert line == "2023-11-14 22:13:20 BACKUP_BROKEN id=b?4 reason=no room n=[1]\n", line
    refused("--control", "/nowhere", "watch", says="/nowhere")


def on_a_terminal(control, *args, **env):
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", **env)
        os.execv(VARVE, ["varve", "--control", control, *args])
    out = b""
    try:
        while chunk := os.read(fd, 65536):
            out += chunk
    except OSError:  # its end of the terminal is closed
        pass
    os.close(fd)
    os.waitpid(pid, 0)
    return out.decode()


@test
def states_are_in_colour_on_a_terminal_alone():
    with Daemon() as d:
        seen = on_a_terminal(d.control, "status", NO_COLOR="")
        assert "\x1b[32mlive\x1b[0m" in seen and "\x1b[31minconsistent\x1b[0m" in seen, seen
        plain = good("--control", d.control, "status")
        assert "\x1b" not in plain
        assert re.sub("\x1b\\[[0-9]*m", "", seen).replace("\r", "") == plain
        assert "\x1b" not in on_a_terminal(d.control, "status", NO_COLOR="1")


if __name__ == "__main__":
    sys.exit(main())
