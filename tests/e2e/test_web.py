#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""varved --web: the page, what it asks for, and what others cannot do with it.  How a browser draws it is
tests/interop/test_chromium.py's."""
import json
import os
import re
import socket
from urllib.parse import quote

import backups
import rawhttp
from harness import K, M, Stack, can_connect, wait_for
from qmpclient import QMPError
import tap
from tap import main, test
from test_listeners import activate, listening

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../server/web")
ODD = "<img src=x onerror='alert(1)'>&\u00e4\"%/+ =?#"  # as a bitmap may be called

tap.tests.clear()  # those of test_listeners


def start(s, *extra):
    path = os.path.join(s.socks, "web.sock")
    s.start_daemon("--web", "unix:" + path, *extra)
    return path


def api(where, path):
    status, fields, body = rawhttp.get(where, "/api/" + path)
    assert fields["content-type"] == "application/json" and "content-security-policy" in fields
    return status, json.loads(body)


def told(where, path):
    status, value = api(where, path)
    assert status == 200, (path, value)
    return value


@test
def the_api_tells_what_the_queries_tell():
    with Stack() as s:
        where = start(s)
        vda = s.start("vda", 16 * M)
        s.start("vdb", M)
        with s.qmp() as q:
            q.cmd("block-dirty-bitmap-add", node="vda", name=ODD)
            q.cmd("checkpoint-create", name="c", disks=["vda", "vdb"])
            with vda.connect() as c:
                c.write(M, b"x" * M)
            ident, _ = backups.begin(q, ["vda"], checkpoint="d")
            backups.end(q, ident)
            backups.begin(q, [{"disk": "vda", "since": "c"}])
            for path, command, args in (
                    ("disks", "query-disks", {}), ("disks?disk=vdb", "query-disks", {"disk": "vdb"}),
                    ("checkpoints", "query-checkpoints", {}),
                    ("checkpoints?disk=vda", "query-checkpoints", {"disk": "vda"}),
                    ("backups", "query-backups", {}), ("jobs", "query-jobs", {}),
                    ("block", "query-block", {}), ("version", "query-version", {}),
                    ("changes?disk=vda", "query-changes", {"disk": "vda"}),
                    ("changes?disk=vda&since=c", "query-changes", {"disk": "vda", "since": "c"}),
                    ("changes?bitmap=%s&disk=vda" % quote(ODD, safe=""), "query-changes",
                     {"disk": "vda", "bitmap": ODD})):
                assert told(where, path) == q.execute(command, args), path
            assert told(where, "nbd-server").keys() == q.cmd("query-nbd-server").keys()


@test
def the_map_has_each_change_in_its_cell():
    """Against the writes themselves, for cells of one block, of many, and one that the disk ends in."""
    with Stack() as s:
        start(s)
        size = 10 * M + 100 * K  # 161 blocks and a half
        vda = s.start("vda", size, granularity="64K")
        with s.qmp() as q, vda.connect() as c:
            assert q.cmd("query-changes", disk="vda")["dirty-bytes"] == 0
            c.write(0, b"a")
            q.cmd("checkpoint-create", name="c", disks=["vda"])
            q.cmd("block-dirty-bitmap-add", node="vda", name="b", granularity=M)
            for off, length in ((3 * M - 1, 2), (5 * M, 2 * M), (size - 1, 1)):
                c.write(off, b"x" * length)
            blocks = {47, 48} | set(range(80, 112)) | {161}
            for cells in (1, 2, 7, 100, 162, 1024, 65536):
                got = q.cmd("query-changes", disk="vda", since="c", cells=cells)
                cell, n = got["cell-bytes"], len(got["cells"])
                assert n <= cells and cell % (64 * K) == 0 and (n - 1) * cell < size <= n * cell, got
                want = [0] * n
                for b in blocks:
                    want[b * 64 * K // cell] += min(64 * K, size - b * 64 * K)
                assert got["cells"] == want and got["dirty-bytes"] == sum(want), (cells, got)
            assert q.cmd("query-changes", disk="vda")["cells"] == got["cells"][:162]
            coarse = q.cmd("query-changes", disk="vda", bitmap="b")  # in its own granularity
            assert [n > 0 for n in coarse["cells"]] == [b // 16 in (2, 3, 5, 6, 10) for b in range(162)], coarse


@test
def what_is_refused_says_why_as_the_control_socket_does():
    with Stack() as s:
        where = start(s)
        s.start("vda", M)
        for path, status, args in (
                ("changes?disk=no", 404, {"disk": "no"}), ("changes", 400, {}),
                ("changes?disk=vda&since=no", 404, {"disk": "vda", "since": "no"}),
                ("changes?disk=vda&since=a&bitmap=b", 400, {"disk": "vda", "since": "a", "bitmap": "b"})):
            try:
                s.command("query-changes", **args)
                raise AssertionError(path)
            except QMPError as e:
                got, value = api(where, path)
                assert value == {"error": {"class": e.cls, "desc": e.desc}}, value
                assert got == status, (path, got)
        for path in ("disks?x=1", "disks?disk=vda&disk=vda", "disks?disk=%zz", "disks?disk=%ff",
                     "disks?disk=%00", "disks?" + "x" * 5000, "changes?disk=vda&cells=1", "jobs?disk=vda"):
            status, value = api(where, path)
            assert status == 400 and value["error"]["class"] == "GenericError", (path, value)
        for path in ("/api", "/api/", "/api/quit", "/api/disk", "/api//disks", "/api/disks/", "/page.html",
                     "/page.js/", "//", "/%2e%2e/", "/metrics"):
            assert rawhttp.get(where, path)[0] == 404, path
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            for path in ("/", "/api/disks"):
                assert rawhttp.ask(where, ("%s %s HTTP/1.1\r\nHost: x\r\n\r\n" % (method, path)).encode())[0] == 405


@test
def the_page_loads_nothing_but_its_own_files_and_writes_no_markup():
    with Stack() as s:
        where = start(s)
        files = {"/": "text/html; charset=utf-8", "/page.css": "text/css; charset=utf-8",
                 "/page.js": "text/javascript; charset=utf-8", "/icon.svg": "image/svg+xml"}
        text = {}
        for path, kind in files.items():
            status, fields, body = rawhttp.get(where, path)
            assert status == 200 and fields["content-type"] == kind
            policy = dict(p.strip().split(" ", 1) for p in fields["content-security-policy"].split(";"))
            assert policy["default-src"] == "'none'" and "unsafe" not in str(policy), policy
            for kind in ("script", "style", "img", "connect"):
                assert policy.pop(kind + "-src") == "'self'"
            assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
            assert fields["x-content-type-options"] == "nosniff"
            with open(os.path.join(SOURCE, path[1:] or "page.html"), "rb") as f:
                assert body == f.read(), path
            text[path] = body.decode()
        page, script = text["/"], text["/page.js"]
        named = set(re.findall(r'(?:src|href)="([^"]*)"', page))
        assert named == {"page.css", "page.js", "icon.svg"}, named
        assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", page)
        assert not re.search(r"HTML|document\.write|\beval|Function\(|setAttribute\('on", script)
        assert "url(" not in text["/page.css"] and "@import" not in text["/page.css"]
        elsewhere = re.findall(r"\w+://[^'\"\s]*", page + script + text["/page.css"])
        assert elsewhere == ["http://www.w3.org/2000/svg"], elsewhere


@test
def a_name_that_is_not_ours_reads_nothing():
    """DNS rebinding: over TCP only; a unix socket is no place that a browser comes to by itself."""
    with Stack() as s:
        s.start_daemon("--web", "tcp:127.0.0.1:0")
        where = rawhttp.listener(s.daemon, "web page")
        port = ":%d" % where[1]
        for host in ("127.0.0.1" + port, "localhost" + port, "LOCALHOST", "[::1]" + port, "192.0.2.7",
                     socket.gethostname() + port):
            assert rawhttp.get(where, "/api/disks", host)[0] == 200, host
        for host in ("evil.example" + port, "localhost.evil.example", "127.0.0.1.evil.example" + port, "",
                     "x" * 300):
            for path in ("/", "/page.js", "/api/disks"):
                status, _, body = rawhttp.get(where, path, host)
                assert status == 421 and b"state" not in body, (host, path, status)
        assert rawhttp.get(where, "http://evil.example/", "localhost")[0] == 421
        assert rawhttp.get(where, "http://localhost/", "evil.example")[0] == 200
        assert rawhttp.ask(where, b"GET / HTTP/1.0\r\n\r\n")[0] == 200  # no browser
    with Stack() as s:
        assert rawhttp.get(start(s), "/", "backup.example")[0] == 200


@test
def the_name_that_it_listens_at_is_ours():
    with Stack() as s:
        s.start_daemon("--web", "tcp:localhost:0")
        where = rawhttp.listener(s.daemon, "web page")
        assert rawhttp.get(where, "/", "localhost")[0] == 200
        assert rawhttp.get(where, "/", "host.example")[0] == 421


@test
def sockets_of_systemd_named_web_are_used():
    with Stack() as s:
        path = os.path.join(s.socks, "w")
        activate(s, "web", [listening(socket.AF_UNIX, path)])
        wait_for("varved's NBD socket", lambda: can_connect(s.nbd), s.daemon)
        assert rawhttp.get(path, "/")[0] == 200
        assert s.stop(s.daemon) == 0
        os.unlink(path)


@test
def browsers_that_do_not_read_hold_up_neither_metrics_nor_the_control_socket():
    """64 that take nothing of long answers, and that is all there may be."""
    with Stack() as s:
        metrics = os.path.join(s.socks, "m")
        where = start(s, "--metrics", "unix:" + metrics)
        vda = s.start("vda", 64 * M, granularity="4K")
        with s.qmp() as q, vda.connect() as guest:
            for i in range(120):  # so that the list is longer than a socket takes
                q.cmd("block-dirty-bitmap-add", node="vda", name="%d%s" % (i, "long" * 240))
            guest.write(0, b"x")
            stuck = [rawhttp.connect(where, rcvbuf=4096) for _ in range(64)]
            for c in stuck:
                c.sendall((rawhttp.GET % ("/api/block", "x")).encode())
            for c in stuck:
                c.recv(1, socket.MSG_PEEK)
            late = rawhttp.connect(where)
            late.sendall((rawhttp.GET % ("/", "x")).encode())
            assert rawhttp.get(metrics, "/metrics")[0] == 200
            assert q.cmd("query-version")
            guest.write(M, b"x")
            assert len(rawhttp.parse(rawhttp.everything(stuck[0]))[2]) > 220000  # makes room
            assert rawhttp.parse(rawhttp.everything(late))[0] == 200
            for c in stuck + [late]:
                c.close()


if __name__ == "__main__":
    main()
