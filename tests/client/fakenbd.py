# SPDX-License-Identifier: BSD-3-Clause
"""An NBD server that misbehaves as told: fixed newstyle, structured replies, meta contexts.

    with FakeNbd(path, content, contexts={NAME: [(length, flags)...]}) as server: ...

status(context, off, length) may replace the honest extents; after_reads=N: `then` is called in the
place of the N-th READ's answer, and says what becomes of the connection.  greet=N: connections
after the N-th are accepted and left without a word.
"""
import os
import socket
import struct
import threading

ACK, SERVER, INFO, META = 1, 2, 3, 4
ERR_UNSUP, ERR_UNKNOWN = (1 << 31) + 1, (1 << 31) + 6


class FakeNbd:
    def __init__(self, path, content, contexts=(), status=None, after_reads=None, then=None,
                 size=None, send_contexts=None, greet=1 << 30, description=None):
        self.path, self.content, self.contexts = path, content, dict(contexts)
        self.status = status or self.honest
        self.after_reads, self.then = after_reads, then
        self.size = len(content) if size is None else size
        self.send_contexts = send_contexts
        self.greet = greet
        self.description = description
        self.reads = 0
        self.stalled = threading.Event()
        self.closing = False
        self.connections = []
        self.lock = threading.Lock()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(16)
        self.threads = [threading.Thread(target=self.accept)]

    def __enter__(self):
        self.threads[0].start()
        return self

    def __exit__(self, *exc):
        self.closing = True
        self.listener.shutdown(socket.SHUT_RDWR)
        with self.lock:
            for c in self.connections:
                try:
                    c.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        for t in self.threads:
            t.join(20)
        self.listener.close()
        os.unlink(self.path)

    def accept(self):
        while not self.closing:
            try:
                c, _ = self.listener.accept()
            except OSError:
                return
            with self.lock:
                self.connections.append(c)
            t = threading.Thread(target=self.serve, args=(c,))
            self.threads.append(t)
            t.start()

    def serve(self, c):
        try:
            if len(self.connections) > self.greet:
                c.recv(1)
            else:
                self.handshake(c)
        except (OSError, EOFError):
            pass
        finally:
            c.close()

    @staticmethod
    def get(c, n):
        got = b""
        while len(got) < n:
            piece = c.recv(n - len(got))
            if not piece:
                raise EOFError
            got += piece
        return got

    def handshake(self, c):
        c.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        self.get(c, 4)
        chosen = []
        while True:
            _, option, length = struct.unpack(">8sII", self.get(c, 16))
            data = self.get(c, length)

            def answer(kind, payload=b""):
                c.sendall(struct.pack(">QIII", 0x3e889045565a9, option, kind, len(payload)) +
                          payload)

            if option == 2:  # ABORT
                answer(ACK)
                return
            if option == 8:  # STRUCTURED_REPLY
                answer(ACK)
            elif option in (9, 10):  # LIST_, SET_META_CONTEXT
                queries = self.queries(data)
                names = [n for n in self.contexts if not queries and option == 9 or any(
                    n == q or option == 9 and q.endswith(":") and n.startswith(q)
                    for q in queries)]
                for i, name in enumerate(names):
                    answer(META, struct.pack(">I", i + 1) + name.encode("utf-8", "surrogateescape"))
                answer(ACK)
                if option == 10:
                    chosen = names
            elif option == 7:  # GO
                answer(INFO, struct.pack(">HQH", 0, self.size, 0x103))  # read-only, multi-conn
                if self.description:
                    answer(INFO, struct.pack(">H", 2) + self.description.encode())
                answer(ACK)
                self.transmit(c, chosen)
                return
            else:
                answer(ERR_UNSUP)

    @staticmethod
    def queries(data):
        at = 4 + struct.unpack_from(">I", data)[0]
        count, = struct.unpack_from(">I", data, at)
        at += 4
        found = []
        for _ in range(count):
            n, = struct.unpack_from(">I", data, at)
            found.append(data[at + 4:at + 4 + n].decode("utf-8", "surrogateescape"))
            at += 4 + n
        return found

    def honest(self, context, off, length):
        out, at, end = [], 0, off + length
        for n, flags in self.contexts[context]:
            lo, hi = max(at, off), min(at + n, end)
            if lo < hi:
                out.append((hi - lo, flags))
            at += n
        return out

    def transmit(self, c, chosen):
        while True:
            _, _, kind, cookie, off, length = struct.unpack(">IHHQQI", self.get(c, 28))
            if kind == 2:
                return
            if kind == 7:
                names = self.send_contexts if self.send_contexts is not None else chosen
                for i, name in enumerate(names):
                    extents = self.status(name, off, length)
                    payload = struct.pack(">I", chosen.index(name) + 1) + b"".join(
                        struct.pack(">II", *e) for e in extents)
                    self.chunk(c, 0, 5, cookie, payload)
                self.chunk(c, 1, 0, cookie, b"")
            elif kind == 0:
                with self.lock:
                    self.reads += 1
                    reads = self.reads
                if self.after_reads is not None and reads > self.after_reads:
                    self.stalled.set()
                    if not self.then(self, c, cookie):
                        continue
                    return
                self.chunk(c, 1, 1, cookie,
                           struct.pack(">Q", off) + self.content[off:off + length])

    @staticmethod
    def chunk(c, flags, kind, cookie, payload):
        c.sendall(struct.pack(">IHHQI", 0x668e33ef, flags, kind, cookie, len(payload)) + payload)


def hang_up(server, connection, cookie):
    """Ends the connection."""
    return True


def stall(server, connection, cookie):
    """Never answers."""
    return False


def io_error(server, connection, cookie):
    FakeNbd.chunk(connection, 1, (1 << 15) + 1, cookie, struct.pack(">IH", 5, 0))
    return False
