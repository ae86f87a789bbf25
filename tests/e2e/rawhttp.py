# SPDX-License-Identifier: BSD-3-Clause
"""HTTP without anybody's help: what is sent is what the test says, what comes is looked at byte by byte.

A place is the path of a unix socket, or (host, port)."""
import re
import socket

from harness import WAIT, wait_for

GET = "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n"


def listener(process, name):
    """Where the daemon listens for that site, as its log tells."""
    def told():
        with open(process.log, encoding="utf-8") as f:
            return re.search(r"varved: %s at (\S+)" % name, f.read())
    where = wait_for("%s listens" % name, told, process).group(1)
    if where.startswith("unix:"):
        return where[5:]
    host, port = re.fullmatch(r"tcp:\[?([^]]*)\]?:(\d+)", where).groups()
    return host, int(port)


def connect(place, rcvbuf=None):
    sock = socket.socket(socket.AF_UNIX if isinstance(place, str) else
                         socket.AF_INET6 if ":" in place[0] else socket.AF_INET)
    if rcvbuf:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    sock.settimeout(WAIT)
    sock.connect(place)
    return sock


def everything(sock):
    """What comes until the end; a reset of a connection that had too much to say is an end, too."""
    got = b""
    while True:
        try:
            piece = sock.recv(65536)
        except ConnectionResetError:
            return got
        if not piece:
            return got
        got += piece


def parse(got, head_only=False):
    """(status, {field: value}, body): exactly one answer."""
    head, blank, body = got.partition(b"\r\n\r\n")
    lines = head.decode("ascii").split("\r\n")
    version, status, _ = lines[0].split(" ", 2)
    assert blank and version == "HTTP/1.1", got[:200]
    fields = {}
    for line in lines[1:]:
        name, value = re.fullmatch(r"([A-Za-z-]+): (.*)", line).groups()
        assert name.lower() not in fields, line
        fields[name.lower()] = value
    assert fields["connection"] == "close" and "set-cookie" not in fields
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", fields["date"]), fields
    assert head_only and not body or int(fields["content-length"]) == len(body), (fields, len(body))
    return int(status), fields, body


def ask(place, request, half_close=False):
    """Sends these bytes and takes the answer."""
    with connect(place) as sock:
        try:
            sock.sendall(request)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has heard enough
        return parse(everything(sock), request.startswith(b"HEAD "))


def get(place, path, host="localhost"):
    return ask(place, (GET % (path, host)).encode())
