# SPDX-License-Identifier: BSD-3-Clause
"""Crowds of NBD connections that are idle, or stall in each place where one can; and what the
daemon that serves them may cost.  Every connection is made and driven to its place by one thread,
and is left alone from then on: it costs nobody any processor time.  Used by tests/bench, too."""
import os
import socket
import ssl
import struct
import subprocess
import threading
import time

import nbdclient
from nbdclient import CMD_BLOCK_STATUS, CMD_READ, CMD_WRITE, IHAVEOPT, OPT_GO, OPT_STARTTLS, REQUEST_MAGIC

K, M = 1024, 1024 * 1024

# varved.pod, MEMORY
POOL, PIECE, MAX_REQUEST = 64 * M, 260 * K, 32 * M
CONNECTION, TLS_CONNECTION = 16 * K, 80 * K


def certificates(folder):
    """What --tls-certificates wants, of a server that is its own authority."""
    os.mkdir(folder)
    key, cert, template = (os.path.join(folder, n) for n in ("server-key.pem", "server-cert.pem", "t"))
    with open(template, "w") as f:
        f.write('cn = "localhost"\ndns_name = "localhost"\nca\ncert_signing_key\nsigning_key\ntls_www_server\n')
    for cmd in (["--generate-privkey", "--key-type=ecdsa", "--outfile", key],
                ["--generate-self-signed", "--load-privkey", key, "--template", template, "--outfile", cert]):
        subprocess.run(["certtool"] + cmd, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60)
    os.link(cert, os.path.join(folder, "ca-cert.pem"))
    return folder


# --- TLS ----------------------------------------------------------------------------------------

class TlsSocket:
    """A socket as nbdclient uses it, over TLS; what it would send can be had as bytes instead."""

    def __init__(self, sock, authority):
        self.sock = sock
        ctx = ssl.create_default_context(cafile=authority)
        self.inp, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = ctx.wrap_bio(self.inp, self.out, server_hostname="localhost")

    def first_flight(self):
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        return self.out.read()

    def records(self, data):
        self.tls.write(data)
        return self.out.read()

    def _until_done(self, function):
        while True:
            try:
                got = function()
                break
            except ssl.SSLWantReadError:
                self.sock.sendall(self.out.read())
                data = self.sock.recv(1 << 16)
                if not data:
                    raise EOFError("the server closed the connection")
                self.inp.write(data)
        self.sock.sendall(self.out.read())
        return got

    def handshake(self):
        self._until_done(self.tls.do_handshake)

    def sendall(self, data):
        self.sock.sendall(self.records(data))

    def recv_into(self, view):
        return self._until_done(lambda: self.tls.read(len(view), view))

    def close(self):
        self.sock.close()


# --- the places ---------------------------------------------------------------------------------

class Places:
    """Makes connections; where: the addresses in turn, authority: of the server's certificate."""

    def __init__(self, where, export, size, authority):
        self.where, self.export, self.size, self.authority = where, export, size, authority
        self.made = 0

    def greeted(self):
        self.made += 1
        return nbdclient.NBD(self.where[self.made % len(self.where)])

    def opened(self):
        c = self.greeted().client_flags()
        return self._opened(c)

    def _opened(self, c):
        c.structured_reply()
        c.set_meta(self.export, ["base:allocation"])
        return c.go(self.export)

    def before_tls(self):
        c = self.greeted().client_flags()
        c.option(OPT_STARTTLS)
        c.sock = TlsSocket(c.sock, self.authority)
        return c

    def opened_tls(self):
        c = self.before_tls()
        c.sock.handshake()
        return self._opened(c)

    def reads(self):
        """Much more than any socket holds."""
        length = min(16 * M, self.size // 2)
        return b"".join(
            struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_READ if i % 4 else CMD_BLOCK_STATUS, i,
                        i * 4096 % (self.size - length), length) for i in range(40))

    # where they stall

    def mid_flags(self):
        c = self.greeted()
        c.sock.sendall(b"\0\0")
        return c

    def mid_option(self):
        c = self.greeted().client_flags()
        c.sock.sendall(struct.pack(">QII", IHAVEOPT, OPT_GO, 100)[:9])
        return c

    def mid_option_data(self):
        c = self.greeted().client_flags()
        c.sock.sendall(struct.pack(">QIII", IHAVEOPT, OPT_GO, 100, 90) + b"x" * 45)
        return c

    def mid_header(self):
        c = self.opened()
        c.sock.sendall(struct.pack(">IHHQ", REQUEST_MAGIC, 0, CMD_READ, 7))
        return c

    def mid_payload(self):
        c = self.opened()
        c.sock.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_WRITE, 7, 0, 4096) + b"x" * 2048)
        return c

    def mid_tls(self):
        c = self.before_tls()
        hello = c.sock.first_flight()
        c.sock.sock.sendall(hello[:len(hello) // 2])
        return c

    def mid_tls_record(self):
        c = self.opened_tls()
        record = c.sock.records(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_READ, 7, 0, 512))
        c.sock.sock.sendall(record[:len(record) // 2])
        return c

    def not_reading(self):
        c = self.opened()
        c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        c.sock.sendall(self.reads())
        return c

    def not_reading_tls(self):
        c = self.opened_tls()
        c.sock.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        c.sock.sock.sendall(c.sock.records(self.reads()))
        return c


STALLS = ("mid_flags", "mid_option", "mid_option_data", "mid_header", "mid_payload", "mid_tls",
          "mid_tls_record", "not_reading", "not_reading_tls")


class Crowd:
    """`idle` connections that ask for nothing, and `stalled` in each of STALLS."""

    def __init__(self, places, idle, stalled):
        self.conns = []
        self.ntls = stalled * sum("tls" in p for p in STALLS)
        try:
            for _ in range(idle):
                self.conns.append(places.opened())
            for place in STALLS:
                for _ in range(stalled):
                    self.conns.append(getattr(places, place)())
        except BaseException:
            self.close()
            raise

    def __len__(self):
        return len(self.conns)

    def close(self):
        for c in self.conns:
            c.close()
        self.conns = []

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


# --- memory -------------------------------------------------------------------------------------

def bound(conns, tls_conns, disks, network_threads):
    """What varved.pod says that so many connections may cost."""
    return (POOL + conns * (PIECE + CONNECTION) + tls_conns * TLS_CONNECTION
            + disks * MAX_REQUEST * network_threads)


def anonymous(pid):
    with open("/proc/%d/status" % pid) as f:
        for line in f:
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * K
    raise RuntimeError("no RssAnon in /proc/%d/status" % pid)


class MemoryWatch:
    """Looks at a process' anonymous memory until it is left; `peak` is the most it saw."""

    def __init__(self, pid):
        self.pid, self.before = pid, anonymous(pid)
        self.peak = self.before
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _look(self):
        self.peak = max(self.peak, anonymous(self.pid))

    def _run(self):
        while not self.stop.wait(0.05):
            self._look()

    def grown(self):
        """Bytes, until now; nobody looks any more, so the process may end."""
        self.close()
        self._look()
        return self.peak - self.before

    def close(self):
        self.stop.set()
        self.thread.join()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.close()


def timed(function):
    began = time.monotonic()
    function()
    return time.monotonic() - began
