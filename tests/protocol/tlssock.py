# SPDX-License-Identifier: BSD-3-Clause
"""A TLS client's socket that one thread may read while another writes (ssl.SSLSocket may not be
used so), and that tells an end with close_notify from one without."""
import ssl
import threading


class NoGoodbye(ConnectionResetError):
    """The peer closed its socket without having shut down TLS."""


class TlsSock:
    def __init__(self, sock, ctx, hostname="localhost"):
        """Shakes hands over the connected socket."""
        self.sock = sock
        self._lock = threading.Lock()     # guards the three below
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = ctx.wrap_bio(self._in, self._out, server_hostname=hostname)
        self._send_lock = threading.Lock()  # keeps records in order; taken before _lock
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
        self._flush()

    def _flush(self):
        with self._send_lock:
            with self._lock:
                records = self._out.read()
            if records:
                self.sock.sendall(records)

    def _fill(self):
        d = self.sock.recv(1 << 18)
        with self._lock:
            if d:
                self._in.write(d)
            else:
                self._in.write_eof()

    def recv(self, n):
        while True:
            try:
                with self._lock:
                    return self._tls.read(n)
            except ssl.SSLWantReadError:
                self._fill()
            except ssl.SSLEOFError:
                raise NoGoodbye("the server closed without shutting down TLS") from None

    def sendall(self, data):
        view = memoryview(data)
        with self._send_lock:
            while view:
                with self._lock:
                    n = self._tls.write(view[:1 << 18])
                    records = self._out.read()
                view = view[n:]
                self.sock.sendall(records)

    def shutdown(self, how):
        """The end of what we send, for TLS and for the socket."""
        try:
            with self._lock:
                self._tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        self._flush()
        self.sock.shutdown(how)

    def fileno(self):
        """Readable when records come; what was decrypted and not read yet is not seen by it."""
        return self.sock.fileno()

    def settimeout(self, t):
        self.sock.settimeout(t)

    def setsockopt(self, *args):
        self.sock.setsockopt(*args)

    def close(self):
        self.sock.close()
