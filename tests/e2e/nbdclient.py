# SPDX-License-Identifier: BSD-3-Clause
"""A small raw NBD client for the end-to-end tests.

It is written from the protocol document alone and shares nothing with the code under test.  One
object is one connection; it is used by one thread at a time.  Several requests may be in flight:
send() returns a cookie, recv() returns the next finished reply, call() does both for one request.
"""
import socket
import struct

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
OPT_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_MAGIC = 0x67446698
STRUCTURED_MAGIC = 0x668E33EF

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS = 1, 2, 3, 5
OPT_INFO, OPT_GO, OPT_STRUCTURED_REPLY = 6, 7, 8
OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT = 9, 10

REP_ACK, REP_SERVER, REP_INFO, REP_META_CONTEXT = 1, 2, 3, 4
REP_ERR = 1 << 31
REP_ERR_UNKNOWN = REP_ERR | 6

INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3

CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM = 0, 1, 2, 3, 4
CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS = 5, 6, 7
F_FUA, F_NO_HOLE, F_DF, F_REQ_ONE, F_FAST_ZERO = 1, 2, 4, 8, 16

# transmission flags
TF_HAS_FLAGS, TF_READ_ONLY, TF_SEND_FLUSH, TF_SEND_FUA = 1, 2, 4, 8
TF_ROTATIONAL, TF_SEND_TRIM, TF_SEND_WRITE_ZEROES, TF_SEND_DF = 16, 32, 64, 128
TF_CAN_MULTI_CONN, TF_SEND_RESIZE, TF_SEND_CACHE, TF_SEND_FAST_ZERO = 256, 512, 1024, 2048

CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS = 0, 1, 2, 5
CHUNK_ERROR, CHUNK_ERROR_OFFSET = 0x8001, 0x8002

EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 22, 28, 75, 95, 108

HOLE, ZERO = 1, 2  # bits of base:allocation


class OptError(Exception):
    """The server answered an option with an error."""

    def __init__(self, option, reply, text):
        super().__init__("option %d: error %#x: %s" % (option, reply, text))
        self.reply, self.text = reply, text


class NBDError(Exception):
    """The server answered a request with an error."""

    def __init__(self, errno, text=""):
        super().__init__("NBD error %d %s" % (errno, text))
        self.errno, self.text = errno, text


class Reply:
    """What came back for one request."""
    __slots__ = ("cookie", "cmd", "off", "len", "error", "text", "error_off", "buf",
                 "status", "chunks")

    def __init__(self, cookie, cmd, off, length, buf):
        self.cookie, self.cmd, self.off, self.len, self.buf = cookie, cmd, off, length, buf
        self.error, self.text, self.error_off = 0, "", None
        self.status = {}   # context name -> [(length, flags)]
        self.chunks = []   # (type, payload length), in order of arrival


class NBD:
    """One connection to `where`: a path of a unix socket or (host, port)."""

    def __init__(self, where, timeout=60):
        if isinstance(where, tuple):
            self.sock = socket.create_connection(where, timeout)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(timeout)
            self.sock.connect(where)
        self.size = self.flags = None
        self.blocksize = None       # (minimum, preferred, maximum) if the server told
        self.structured = False
        self.contexts = {}          # id -> name
        self.pending = {}           # cookie -> Reply
        self.next_cookie = 1
        magic, opt, flags = struct.unpack(">QQH", self._exactly(18))
        if magic != NBDMAGIC or opt != IHAVEOPT:
            raise OptError(0, 0, "not a newstyle server")
        self.handshake_flags = flags
        self.no_zeroes = bool(flags & 2)

    # -- bytes ---------------------------------------------------------------------------------

    def _into(self, view):
        while view:
            n = self.sock.recv_into(view)
            if n == 0:
                raise EOFError("the server closed the connection")
            view = view[n:]

    def _exactly(self, n):
        buf = bytearray(n)
        self._into(memoryview(buf))
        return bytes(buf)

    # -- options -------------------------------------------------------------------------------

    def client_flags(self, flags=None):
        """Must come first; by default FIXED_NEWSTYLE and NO_ZEROES as offered."""
        if flags is None:
            flags = self.handshake_flags & 3
        self.no_zeroes = bool(flags & 2)
        self.sock.sendall(struct.pack(">I", flags))
        return self

    def option(self, opt, data=b""):
        """Sends one option; returns its replies [(type, payload)] up to ACK.  Raises OptError."""
        self.sock.sendall(struct.pack(">QII", IHAVEOPT, opt, len(data)) + data)
        out = []
        while True:
            magic, o, rep, n = struct.unpack(">QIII", self._exactly(20))
            assert magic == OPT_REPLY_MAGIC and o == opt, (hex(magic), o, opt)
            payload = self._exactly(n)
            if rep & REP_ERR:
                raise OptError(opt, rep, payload.decode(errors="replace"))
            if rep == REP_ACK:
                return out
            out.append((rep, payload))

    def structured_reply(self):
        self.option(OPT_STRUCTURED_REPLY)
        self.structured = True

    def list_exports(self):
        names = []
        for rep, p in self.option(OPT_LIST):
            assert rep == REP_SERVER
            n, = struct.unpack(">I", p[:4])
            names.append(p[4:4 + n].decode())
        return names

    def _meta(self, opt, export, queries):
        e = export.encode()
        data = struct.pack(">I", len(e)) + e + struct.pack(">I", len(queries))
        for q in queries:
            data += struct.pack(">I", len(q.encode())) + q.encode()
        out = []
        for rep, p in self.option(opt, data):
            assert rep == REP_META_CONTEXT
            out.append((struct.unpack(">I", p[:4])[0], p[4:].decode()))
        return out

    def list_meta(self, export, queries=()):
        return [name for _, name in self._meta(OPT_LIST_META_CONTEXT, export, queries)]

    def set_meta(self, export, queries):
        got = self._meta(OPT_SET_META_CONTEXT, export, queries)
        self.contexts = dict(got)
        return [name for _, name in got]

    def info(self, export, want=(INFO_BLOCK_SIZE,), opt=OPT_INFO):
        e = export.encode()
        data = struct.pack(">I", len(e)) + e + struct.pack(">H", len(want))
        data += b"".join(struct.pack(">H", w) for w in want)
        for rep, p in self.option(opt, data):
            if rep != REP_INFO:
                continue
            kind, = struct.unpack(">H", p[:2])
            if kind == INFO_EXPORT:
                self.size, self.flags = struct.unpack(">QH", p[2:12])
            elif kind == INFO_BLOCK_SIZE:
                self.blocksize = struct.unpack(">III", p[2:14])

    def go(self, export, want=(INFO_BLOCK_SIZE,)):
        self.info(export, want, OPT_GO)
        return self

    def export_name(self, export):
        e = export.encode()
        self.sock.sendall(struct.pack(">QII", IHAVEOPT, OPT_EXPORT_NAME, len(e)) + e)
        self.size, self.flags = struct.unpack(">QH", self._exactly(10))
        if not self.no_zeroes:
            assert self._exactly(124) == b"\0" * 124
        return self

    # -- transmission --------------------------------------------------------------------------

    def send(self, cmd, off=0, length=0, flags=0, data=None, into=None):
        """Sends one request and returns its cookie.  `into`: a memoryview for the data read."""
        cookie = self.next_cookie
        self.next_cookie += 1
        if cmd == CMD_READ and into is None:
            into = memoryview(bytearray(length))
        self.pending[cookie] = Reply(cookie, cmd, off, length, into)
        head = struct.pack(">IHHQQI", REQUEST_MAGIC, flags, cmd, cookie, off, length)
        if data is not None and len(data) <= 65536:
            self.sock.sendall(head + data)
        else:
            self.sock.sendall(head)
            if data is not None:
                self.sock.sendall(data)
        return cookie

    def recv(self):
        """Returns the next reply that is complete; its error stands in it."""
        while True:
            magic, = struct.unpack(">I", self._exactly(4))
            if magic == SIMPLE_MAGIC:
                err, cookie = struct.unpack(">IQ", self._exactly(12))
                r = self.pending.pop(cookie)
                assert not (self.structured and r.cmd == CMD_READ), "simple reply to a read"
                r.error = err
                if r.cmd == CMD_READ and err == 0:
                    self._into(r.buf)
                return r
            assert magic == STRUCTURED_MAGIC, "bad magic %#x in a reply" % magic
            assert self.structured, "structured reply that was not negotiated"
            flags, kind, cookie, n = struct.unpack(">HHQI", self._exactly(16))
            r = self.pending[cookie]
            r.chunks.append((kind, n))
            self._chunk(r, kind, n)
            if flags & 1:
                del self.pending[cookie]
                return r

    def _chunk(self, r, kind, n):
        if kind == CHUNK_NONE:
            assert n == 0
        elif kind == CHUNK_DATA:
            off, = struct.unpack(">Q", self._exactly(8))
            n -= 8
            assert r.off <= off and off + n <= r.off + r.len, "data outside of the request"
            self._into(r.buf[off - r.off:off - r.off + n])
        elif kind == CHUNK_HOLE:
            off, length = struct.unpack(">QI", self._exactly(12))
            assert r.off <= off and off + length <= r.off + r.len, "hole outside of the request"
            r.buf[off - r.off:off - r.off + length] = bytes(length)
        elif kind == CHUNK_STATUS:
            words = struct.unpack(">%dI" % (n // 4), self._exactly(n))
            name = self.contexts[words[0]]
            assert name not in r.status, "two chunks of one context"
            r.status[name] = list(zip(words[1::2], words[2::2]))
        else:
            assert kind & 0x8000, "unknown chunk %#x" % kind
            payload = self._exactly(n)
            err, tlen = struct.unpack(">IH", payload[:6])
            r.error = r.error or err
            r.text = payload[6:6 + tlen].decode(errors="replace")
            if kind == CHUNK_ERROR_OFFSET:
                r.error_off, = struct.unpack(">Q", payload[6 + tlen:])

    def call(self, cmd, off=0, length=0, flags=0, data=None, into=None):
        """One request at a time; raises NBDError."""
        cookie = self.send(cmd, off, length, flags, data, into)
        r = self.recv()
        assert r.cookie == cookie
        if r.error:
            raise NBDError(r.error, r.text)
        return r

    def read(self, off, length, flags=0):
        return bytes(self.call(CMD_READ, off, length, flags).buf)

    def write(self, off, data, flags=0):
        self.call(CMD_WRITE, off, len(data), flags, data)

    def zero(self, off, length, flags=0):
        self.call(CMD_WRITE_ZEROES, off, length, flags)

    def trim(self, off, length, flags=0):
        self.call(CMD_TRIM, off, length, flags)

    def flush(self):
        self.call(CMD_FLUSH)

    def status(self, off, length, flags=0):
        """One BLOCK_STATUS request: {context: [(length, flags)]}."""
        return self.call(CMD_BLOCK_STATUS, off, length, flags).status

    def map(self, context, step=None):
        """All extents of a context: [(offset, length, flags)], equal neighbours joined."""
        out, off = [], 0
        while off < self.size:
            want = min(step or self.size, self.size - off, 0xFFFFF000)
            got = self.status(off, want)[context]
            assert got, "empty reply to BLOCK_STATUS"
            for length, flags in got:
                length = min(length, self.size - off)
                assert length > 0, "extent of length 0"
                if out and out[-1][2] == flags:
                    out[-1] = (out[-1][0], out[-1][1] + length, flags)
                else:
                    out.append((off, length, flags))
                off += length
        return out

    def disc(self):
        if self.size is not None:  # in the transmission phase
            try:
                self.sock.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_DISC, 0, 0, 0))
            except OSError:
                pass
        self.close()

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.disc()


def connect(where, export="", contexts=(), timeout=60):
    """The usual client: structured replies, the contexts, GO with block sizes."""
    c = NBD(where, timeout)
    try:
        c.client_flags()
        c.structured_reply()
        if contexts:
            got = c.set_meta(export, contexts)
            assert sorted(got) == sorted(set(contexts)), "asked %s, got %s" % (contexts, got)
        c.go(export)
    except BaseException:
        c.close()
        raise
    return c
