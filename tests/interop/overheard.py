# SPDX-License-Identifier: BSD-3-Clause
"""What a client says to a server: a socket in between that hands on all bytes and keeps the client's
options and requests.  For servers without writes and without TLS."""
import contextlib
import os
import socket
import struct
import threading
from types import SimpleNamespace

import nbdclient

EXTENDED_REQUEST = 0x21E41C71


class Connection:
    """flags: the client's; options: [(number, payload)]; requests: [(command, flags, offset, length)]"""

    def __init__(self):
        self.flags, self.options, self.requests = None, [], []

    def contexts(self, option):
        """The queries of its LIST_META_CONTEXT or SET_META_CONTEXT options, one list each."""
        out = []
        for number, data in self.options:
            if number == option:
                at = 4 + struct.unpack(">I", data[:4])[0]
                count, = struct.unpack(">I", data[at:at + 4])
                at, queries = at + 4, []
                for _ in range(count):
                    n, = struct.unpack(">I", data[at:at + 4])
                    queries.append(data[at + 4:at + 4 + n].decode())
                    at += 4 + n
                out.append(queries)
        return out

    def wanted(self):
        """What its last GO asks to be told, [INFO_...]; None: no GO."""
        for number, data in reversed(self.options):
            if number == nbdclient.OPT_GO:
                at = 4 + struct.unpack(">I", data[:4])[0]
                return list(struct.unpack(">%dH" % struct.unpack(">H", data[at:at + 2]), data[at + 2:]))
        return None

    def of(self, command):
        return [(flags, off, n) for cmd, flags, off, n in self.requests if cmd == command]


class Overheard:
    """`with Overheard(h) as o`: o.path is the server's socket for the client, o.h what a Reach's uri()
    and qemu() take, o.connections what was said, complete when the client has ended."""

    def __init__(self, h):
        self.server, self.connections, self.threads = h.s.nbd, [], []
        self.path = os.path.join(h.s.socks, "overheard.sock")
        self.h = SimpleNamespace(s=SimpleNamespace(nbd=self.path), credentials=None)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(32)

    def __enter__(self):
        self._start(self._accept)
        return self

    def __exit__(self, *exc):
        self.listener.shutdown(socket.SHUT_RDWR)
        for t in self.threads:  # it grows until the first one has ended
            t.join(60)
        self.listener.close()
        os.unlink(self.path)

    def _start(self, function, *args):
        self.threads.append(threading.Thread(target=function, args=args, daemon=True))
        self.threads[-1].start()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.server)
            self.connections.append(Connection())
            self._start(hand_on, server, client, None)
            self._start(hand_on, client, server, understand(self.connections[-1]))


def hand_on(source, target, understood):
    """All bytes until the source ends; understood is a coroutine that gets them, too."""
    if understood:
        next(understood)
    try:
        while True:
            data = source.recv(1 << 18)
            if not data:
                break
            if understood:
                understood.send(data)
            target.sendall(data)
    except OSError:
        pass
    finally:
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def understand(c):
    """A coroutine that is sent the client's bytes."""
    buf = bytearray()

    def take(n):
        while len(buf) < n:
            buf.extend((yield))
        out = bytes(buf[:n])
        del buf[:n]
        return out

    c.flags, = struct.unpack(">I", (yield from take(4)))
    while True:
        head = yield from take(4)
        if head == b"IHAV":
            _, number, n = struct.unpack(">III", (yield from take(12)))
            c.options.append((number, (yield from take(n))))
        elif head == struct.pack(">I", nbdclient.REQUEST_MAGIC):
            flags, cmd, _, off, n = struct.unpack(">HHQQI", (yield from take(24)))
            c.requests.append((cmd, flags, off, n))
        else:
            assert head == struct.pack(">I", EXTENDED_REQUEST), head
            flags, cmd, _, off, n = struct.unpack(">HHQQQ", (yield from take(28)))
            c.requests.append((cmd, flags, off, n))
