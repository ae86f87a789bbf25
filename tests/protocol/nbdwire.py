# SPDX-License-Identifier: BSD-3-Clause
"""A raw NBD client that believes nothing.  (A long file: one reader of the wire, one page of rules.)

It sends exactly the bytes it is told to, and judges every byte that comes back by doc/proto.md of
the NBD project (quoted as "proto.md").  Whatever that page forbids a server raises Violation; a
server that stays silent raises Silence after the deadline; one that closes raises Closed.  Nothing
here knows what the server under test promises beyond the protocol: that is the tests' business.
"""
import os
import socket
import struct
import threading
import time

from tlssock import NoGoodbye, TlsSock

DEADLINE = float(os.environ.get("NBD_TEST_DEADLINE", "20"))

# --- values (proto.md, "Values") -----------------------------------------------------------------

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
REP_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_MAGIC = 0x67446698
STRUCTURED_MAGIC = 0x668E33EF
EXT_REQUEST_MAGIC = 0x21E41C71
EXT_REPLY_MAGIC = 0x6E8A278C

FLAG_FIXED_NEWSTYLE = 1 << 0
FLAG_NO_ZEROES = 1 << 1
C_FIXED_NEWSTYLE = 1 << 0
C_NO_ZEROES = 1 << 1

HAS_FLAGS = 1 << 0
READ_ONLY = 1 << 1
SEND_FLUSH = 1 << 2
SEND_FUA = 1 << 3
ROTATIONAL = 1 << 4
SEND_TRIM = 1 << 5
SEND_WRITE_ZEROES = 1 << 6
SEND_DF = 1 << 7
CAN_MULTI_CONN = 1 << 8
SEND_RESIZE = 1 << 9
SEND_CACHE = 1 << 10
SEND_FAST_ZERO = 1 << 11
BLOCK_STATUS_PAYLOAD = 1 << 12

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_PEEK_EXPORT, OPT_STARTTLS = 1, 2, 3, 4, 5
OPT_INFO, OPT_GO, OPT_STRUCTURED, OPT_LIST_META, OPT_SET_META, OPT_EXTENDED = 6, 7, 8, 9, 10, 11

REP_ACK, REP_SERVER, REP_INFO, REP_META = 1, 2, 3, 4
ERR = 1 << 31
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_PLATFORM = ERR + 1, ERR + 2, ERR + 3, ERR + 4
ERR_TLS_REQD, ERR_UNKNOWN, ERR_SHUTDOWN = ERR + 5, ERR + 6, ERR + 7
ERR_BLOCK_SIZE_REQD, ERR_TOO_BIG, ERR_EXT_HEADER_REQD = ERR + 8, ERR + 9, ERR + 10
REP_NAMES = {
    REP_ACK: "ACK", REP_SERVER: "SERVER", REP_INFO: "INFO", REP_META: "META_CONTEXT",
    ERR_UNSUP: "ERR_UNSUP", ERR_POLICY: "ERR_POLICY", ERR_INVALID: "ERR_INVALID",
    ERR_PLATFORM: "ERR_PLATFORM", ERR_TLS_REQD: "ERR_TLS_REQD", ERR_UNKNOWN: "ERR_UNKNOWN",
    ERR_SHUTDOWN: "ERR_SHUTDOWN", ERR_BLOCK_SIZE_REQD: "ERR_BLOCK_SIZE_REQD",
    ERR_TOO_BIG: "ERR_TOO_BIG", ERR_EXT_HEADER_REQD: "ERR_EXT_HEADER_REQD",
}

INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3

CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_CACHE = 0, 1, 2, 3, 4, 5
CMD_WRITE_ZEROES, CMD_BLOCK_STATUS, CMD_RESIZE = 6, 7, 8
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = 1, 2, 4, 8, 16, 32

REPLY_DONE = 1
T_NONE, T_DATA, T_HOLE, T_STATUS, T_STATUS_EXT = 0, 1, 2, 5, 6
T_ERROR, T_ERROR_OFFSET = 0x8001, 0x8002

EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 75, 95, 108
ERRNOS = {EPERM: "EPERM", EIO: "EIO", ENOMEM: "ENOMEM", EINVAL: "EINVAL", ENOSPC: "ENOSPC",
          EOVERFLOW: "EOVERFLOW", ENOTSUP: "ENOTSUP", ESHUTDOWN: "ESHUTDOWN"}

MAX_STRING = 4096
MAX_DESCRIPTORS = 1 << 20


class Violation(AssertionError):
    """The server sent what proto.md forbids."""


class Closed(AssertionError):
    """The server closed the connection where an answer was due."""


class Silence(AssertionError):
    """Nothing happened before the deadline."""


def rep_name(t):
    return REP_NAMES.get(t, "%#x" % t)


def must(cond, what, *args):
    if not cond:
        raise Violation(what % args if args else what)


def check_string(data, what):
    must(len(data) <= MAX_STRING, "%s is %d bytes long, more than 4096", what, len(data))
    must(b"\0" not in data, "%s holds a NUL: %r", what, data[:80])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Violation("%s is not UTF-8: %r" % (what, data[:80])) from None


class OptReply:
    def __init__(self, rtype, data):
        self.type, self.data = rtype, data

    @property
    def is_error(self):
        return bool(self.type & ERR)

    def __repr__(self):
        return "%s(%r)" % (rep_name(self.type), self.data[:60])


class Info:
    """What INFO or GO told."""

    def __init__(self):
        self.final = None          # the reply type that ended it
        self.size = self.flags = None
        self.items = {}            # information type -> payload

    @property
    def ok(self):
        return self.final == REP_ACK

    @property
    def block_size(self):
        d = self.items.get(INFO_BLOCK_SIZE)
        return None if d is None else struct.unpack(">III", d)


class Pending:
    """A request under way: what is allowed to come back for it."""

    def __init__(self, cmd, off, length, flags):
        self.cmd, self.off, self.len, self.flags = cmd, off, length, flags
        self.content = []          # (start, end) in order of arrival
        self.parts = []            # (start, bytes) of data chunks; holes are bytes of zeroes
        self.holes = []            # (start, end)
        self.errors = []           # (errno, message, offset or None)
        self.status = {}           # context id -> [(length, flags)]
        self.wanted = None         # block status: context ids asked for; None: all
        self.chunks = 0
        self.wire = 0              # bytes of the reply, headers included
        self.simple = False
        self.done = False

    @property
    def error(self):
        return self.errors[0][0] if self.errors else 0

    @property
    def message(self):
        return self.errors[0][1] if self.errors else ""

    @property
    def data(self):
        """The bytes read; only after success."""
        assert not self.errors, "read failed with %s" % ERRNOS.get(self.error, self.error)
        return b"".join(p for _, p in sorted(self.parts, key=lambda q: q[0]))


class Conn:
    def __init__(self, where, deadline=DEADLINE, rcvbuf=None, tls=None):
        """where: ("unix", path) or ("tcp", host, port).  tls: hello() goes on under TLS with this
        ssl.SSLContext, where the client flags allow it."""
        self.deadline = deadline
        self.tls = tls
        if where[0] == "unix":
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            target = where[1]
        else:
            fam = socket.AF_INET6 if ":" in where[1] else socket.AF_INET
            self.sock = socket.socket(fam, socket.SOCK_STREAM)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            target = (where[1], where[2])
        if rcvbuf:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        self.sock.settimeout(deadline)
        end = time.monotonic() + deadline
        while True:
            try:
                self.sock.connect(target)
                break
            except BlockingIOError:  # a unix listener's queue is full for the moment
                if time.monotonic() > end:
                    self.sock.close()
                    raise Silence("the server accepts nobody") from None
                time.sleep(0.002)
            except BaseException:
                self.sock.close()
                raise
        self.buf = bytearray()
        self.hflags = None
        self.cflags = 0
        self.structured = False    # negotiated: chunks, in either form
        self.extended = False      # negotiated: extended headers
        self.contexts = {}         # id -> name
        self.context_export = None
        self.size = self.tflags = None
        self.block_size = None
        self.export = None
        self.pending = {}
        self.finished = set()      # cookies answered whole
        self.last_cookie = 0x1122334455660000

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        self.sock.close()

    def reset(self):
        """Closes so that the peer sees a reset, not an orderly end."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # --- bytes ---

    def send(self, data):
        self.sock.settimeout(self.deadline)
        try:
            self.sock.sendall(data)
        except socket.timeout:
            raise Silence("the server took nothing for %g s" % self.deadline) from None
        except (BrokenPipeError, ConnectionResetError):
            raise Closed("the server closed while we sent") from None

    def post(self, data):
        """Sends from a thread of its own, so that replies can be read meanwhile: a server may stop
        taking requests until its replies are taken."""
        def run():
            try:
                self.sock.settimeout(self.deadline)
                self.sock.sendall(data)
            except OSError:
                pass  # whoever waits for the replies will tell
        t = threading.Thread(target=run, daemon=True)
        t.start()
        return t

    def _fill(self, n, what):
        end = time.monotonic() + self.deadline
        while len(self.buf) < n:
            left = end - time.monotonic()
            if left <= 0:
                raise Silence("no answer in %g s while waiting for %s" % (self.deadline, what))
            self.sock.settimeout(left)
            try:
                got = self.sock.recv(max(65536, min(n - len(self.buf), 1 << 20)))
            except socket.timeout:
                continue
            except ConnectionResetError:
                got = b""
            if not got:
                raise Closed("closed by the server while waiting for %s (%d of %d bytes came)"
                             % (what, len(self.buf), n))
            self.buf += got
            end = time.monotonic() + self.deadline

    def recv(self, n, what="data"):
        self._fill(n, what)
        out = bytes(self.buf[:n])
        del self.buf[:n]
        return out

    def expect_close(self, allow=None):
        """Waits until the server closes; bytes before that are a violation (allow: how many may
        come, None: none)."""
        end = time.monotonic() + self.deadline
        got = len(self.buf)
        seen = bytes(self.buf[:64])
        while True:
            must(got <= (allow or 0), "%d bytes came where the server had to close: %r", got, seen)
            left = end - time.monotonic()
            if left <= 0:
                raise Silence("the server did not close in %g s" % self.deadline)
            self.sock.settimeout(left)
            try:
                d = self.sock.recv(1 << 20)
            except socket.timeout:
                continue
            except NoGoodbye as e:
                raise Violation(str(e)) from None
            except ConnectionResetError:
                return
            if not d:
                return
            got += len(d)
            seen = (seen + d)[:64]

    def drain(self):
        """Reads and forgets until the server closes; the deadline counts from the last byte."""
        while True:
            self.sock.settimeout(self.deadline)
            try:
                if not self.sock.recv(1 << 20):
                    return
            except socket.timeout:
                raise Silence("the server neither sent nor closed in %g s" % self.deadline) from None
            except ConnectionResetError:
                return

    def half_close(self):
        self.sock.shutdown(socket.SHUT_WR)

    # --- handshake ---

    def greeting(self):
        magic, opt, self.hflags = struct.unpack(">QQH", self.recv(18, "the greeting"))
        must(magic == NBDMAGIC, "greeting opens with %#x, not NBDMAGIC", magic)
        must(opt == IHAVEOPT, "greeting's second magic is %#x, not IHAVEOPT", opt)
        must(not self.hflags & ~(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES),
             "unknown handshake flags %#x", self.hflags)
        return self.hflags

    def hello(self, flags=C_FIXED_NEWSTYLE | C_NO_ZEROES):
        self.greeting()
        self.cflags = flags
        self.send(struct.pack(">I", flags))
        if self.tls and flags & C_FIXED_NEWSTYLE:
            self.starttls()
        return self

    def starttls(self):
        t = self.final(OPT_STARTTLS)
        must(t == REP_ACK, "STARTTLS got %s", rep_name(t))
        must(not self.buf, "bytes in plain behind the ACK: %r", bytes(self.buf[:40]))
        self.sock.settimeout(self.deadline)
        self.sock = TlsSock(self.sock, self.tls)

    def send_opt(self, opt, data=b"", magic=IHAVEOPT, length=None):
        self.send(struct.pack(">QII", magic, opt, len(data) if length is None else length) + data)

    def opt_reply(self, opt):
        magic, ropt, rtype, rlen = struct.unpack(">QIII", self.recv(20, "a reply to option %d" % opt))
        must(magic == REP_MAGIC, "option reply opens with %#x", magic)
        must(ropt == opt, "reply is for option %d, option %d was sent", ropt, opt)
        must(rlen <= 64 * 1024, "reply of %d bytes to option %d", rlen, opt)
        r = OptReply(rtype, self.recv(rlen, "data of an option reply"))
        if r.is_error:
            must(rtype in REP_NAMES, "undefined error reply %#x", rtype)
            check_string(r.data, "error text of %s" % rep_name(rtype))
            return r
        if rtype == REP_ACK:
            must(rlen == 0, "ACK with %d bytes of data", rlen)
        elif rtype == REP_SERVER:
            must(opt == OPT_LIST, "SERVER in reply to option %d", opt)
            must(rlen >= 4, "SERVER of %d bytes", rlen)
            nlen = struct.unpack(">I", r.data[:4])[0]
            must(nlen <= rlen - 4, "SERVER: name of %d bytes in a reply of %d", nlen, rlen)
            r.name = check_string(r.data[4:4 + nlen], "export name")
            r.description = check_string(r.data[4 + nlen:], "export description")
        elif rtype == REP_META:
            must(opt in (OPT_LIST_META, OPT_SET_META), "META_CONTEXT in reply to option %d", opt)
            must(rlen >= 4, "META_CONTEXT of %d bytes", rlen)
            r.id = struct.unpack(">I", r.data[:4])[0]
            r.name = check_string(r.data[4:], "context name")
            must(":" in r.name.lstrip(":"), "context name %r has no namespace", r.name)
        elif rtype == REP_INFO:
            must(opt in (OPT_INFO, OPT_GO), "INFO in reply to option %d", opt)
            must(rlen >= 2, "INFO of %d bytes", rlen)
            r.info = struct.unpack(">H", r.data[:2])[0]
            want = {INFO_EXPORT: 12, INFO_BLOCK_SIZE: 14}.get(r.info)
            must(want is None or rlen == want, "INFO %d is %d bytes, must be %s", r.info, rlen, want)
            if r.info in (INFO_NAME, INFO_DESCRIPTION):
                check_string(r.data[2:], "INFO string")
        else:
            raise Violation("undefined reply type %#x" % rtype)
        return r

    def option(self, opt, data=b"", length=None):
        """Sends an option and returns all its replies, the final one last."""
        self.send_opt(opt, data, length=length)
        return self.option_replies(opt)

    def option_replies(self, opt):
        replies = []
        while True:
            r = self.opt_reply(opt)
            replies.append(r)
            if r.is_error or r.type == REP_ACK:
                break
        if r.type == REP_ACK and opt == OPT_STRUCTURED:
            self.structured = True
        if r.type == REP_ACK and opt == OPT_EXTENDED:
            self.structured = self.extended = True
        return replies

    def final(self, opt, data=b"", length=None):
        """The type of the final reply, which must be the only one."""
        rs = self.option(opt, data, length)
        must(len(rs) == 1, "%d replies to option %d where one is due: %s", len(rs), opt, rs)
        return rs[0].type

    def negotiate_structured(self):
        t = self.final(OPT_STRUCTURED)
        must(t == REP_ACK, "STRUCTURED_REPLY got %s", rep_name(t))

    def negotiate_extended(self):
        t = self.final(OPT_EXTENDED)
        must(t == REP_ACK, "EXTENDED_HEADERS got %s", rep_name(t))

    @staticmethod
    def info_data(name, infos=()):
        if isinstance(name, str):
            name = name.encode()
        return (struct.pack(">I", len(name)) + name + struct.pack(">H", len(infos))
                + b"".join(struct.pack(">H", i) for i in infos))

    def info(self, name, infos=(), opt=OPT_INFO):
        self.send_opt(opt, self.info_data(name, infos))
        return self.info_replies(name, opt)

    def info_replies(self, name, opt=OPT_INFO):
        out = Info()
        for r in self.option_replies(opt):
            if r.type == REP_INFO:
                must(r.info not in out.items, "INFO %d came twice", r.info)
                out.items[r.info] = r.data[2:]
            else:
                out.final = r.type
        if INFO_EXPORT in out.items:
            out.size, out.flags = struct.unpack(">QH", out.items[INFO_EXPORT])
            self.check_tflags(out.flags)
        if out.block_size:
            bmin, bpref, bmax = out.block_size
            must(0 < bmin <= 65536 and bmin & (bmin - 1) == 0, "minimum block size %d", bmin)
            must(bpref & (bpref - 1) == 0 and bpref >= max(512, bmin), "preferred block %d", bpref)
            must(bmax >= bpref, "maximum payload %d below the preferred block %d", bmax, bpref)
        if out.ok:
            must(INFO_EXPORT in out.items, "ACK without INFO_EXPORT")
            if opt == OPT_GO:
                self._enter(name, out.size, out.flags)
                self.block_size = out.block_size
        elif out.final == ERR_UNKNOWN:
            must(not out.items, "INFO replies for an unknown export")
        return out

    def check_tflags(self, f):
        must(f & HAS_FLAGS, "transmission flags %#x without HAS_FLAGS", f)
        must(bool(f & SEND_DF) <= self.structured, "SEND_DF without structured replies")
        must(not f & SEND_FAST_ZERO or f & SEND_WRITE_ZEROES, "FAST_ZERO without WRITE_ZEROES")
        must(not f & SEND_RESIZE, "flags of an extension: %#x", f)
        must(self.extended or not f & BLOCK_STATUS_PAYLOAD,
             "BLOCK_STATUS_PAYLOAD without extended headers")
        must(not f & 0xE000, "undefined transmission flags %#x", f)

    def _enter(self, name, size, flags):
        self.export, self.size, self.tflags = name, size, flags
        if self.context_export != name:
            self.contexts = {}

    def go(self, name, infos=()):
        i = self.info(name, infos, OPT_GO)
        must(i.ok, "GO %r got %s", name, rep_name(i.final))
        return i

    def export_name(self, name):
        self.send_opt(OPT_EXPORT_NAME, name.encode() if isinstance(name, str) else name)
        size, flags = struct.unpack(">QH", self.recv(10, "the reply to EXPORT_NAME"))
        self.check_tflags(flags)
        if not (self.cflags & C_NO_ZEROES and self.hflags & FLAG_NO_ZEROES):
            pad = self.recv(124, "the 124 zeroes after EXPORT_NAME")
            must(pad == bytes(124), "the 124 bytes after EXPORT_NAME are not zeroes")
        self._enter(name, size, flags)

    @staticmethod
    def meta_data(name, queries):
        if isinstance(name, str):
            name = name.encode()
        qs = [q.encode() if isinstance(q, str) else q for q in queries]
        return (struct.pack(">I", len(name)) + name + struct.pack(">I", len(qs))
                + b"".join(struct.pack(">I", len(q)) + q for q in qs))

    def list_meta(self, name, queries=()):
        """(names, final reply type)"""
        rs = self.option(OPT_LIST_META, self.meta_data(name, queries))
        names = [r.name for r in rs[:-1]]
        if rs[-1].type == REP_ACK:
            must(len(set(names)) == len(names), "a context was listed twice: %s", names)
        return names, rs[-1].type

    def set_meta(self, name, queries):
        """({id: name}, final reply type)"""
        rs = self.option(OPT_SET_META, self.meta_data(name, queries))
        ids = [r.id for r in rs[:-1]]
        names = [r.name for r in rs[:-1]]
        self.contexts, self.context_export = {}, None
        if rs[-1].type == REP_ACK:
            must(len(set(ids)) == len(ids), "context ids are not unique: %s", ids)
            must(len(set(names)) == len(names), "a context was selected twice: %s", names)
            self.contexts, self.context_export = dict(zip(ids, names)), name
        return dict(zip(ids, names)), rs[-1].type

    def context_id(self, name):
        return next(i for i, n in self.contexts.items() if n == name)

    # --- transmission: requests ---

    def pack(self, cmd, off=0, length=0, flags=0, cookie=None, magic=None, wire_len=None):
        """The bytes of a request; registers it as pending.  Returns (bytes, cookie).  wire_len: what
        the header says, where a payload tells the effect length."""
        if cookie is None:
            self.last_cookie += 1
            cookie = self.last_cookie
        assert cookie not in self.pending
        if cmd != CMD_DISC:
            self.pending[cookie] = Pending(cmd, off, length, flags)
            self.finished.discard(cookie)
        if magic is None:
            magic = EXT_REQUEST_MAGIC if self.extended else REQUEST_MAGIC
        return struct.pack(">IHHQQQ" if self.extended else ">IHHQQI", magic, flags, cmd, cookie, off,
                           length if wire_len is None else wire_len), cookie

    def cmd(self, cmd, off=0, length=0, flags=0, payload=b"", cookie=None, wire_len=None):
        b, cookie = self.pack(cmd, off, length, flags, cookie, wire_len=wire_len)
        self.send(b + payload)
        return cookie

    # --- transmission: replies ---

    def message(self):
        """Reads one message; returns (cookie, Pending), whether or not it is finished."""
        magic = struct.unpack(">I", self.recv(4, "a reply"))[0]
        if self.extended:
            must(magic == EXT_REPLY_MAGIC, "extended client got a reply that opens with %#x", magic)
            return self._chunk()
        if magic == SIMPLE_MAGIC:
            return self._simple()
        must(magic == STRUCTURED_MAGIC, "reply opens with %#x", magic)
        must(self.structured, "structured reply though none was negotiated")
        return self._chunk()

    def _who(self, cookie):
        must(cookie in self.pending, "%s for cookie %#x",
             "a message after the final one" if cookie in self.finished else "a reply nobody asked",
             cookie)
        return self.pending[cookie]

    def _finish(self, cookie):
        p = self.pending.pop(cookie)
        self.finished.add(cookie)
        p.done = True
        return p

    def _check_errno(self, e):
        must(e in ERRNOS, "error value %d is not one of the protocol's", e)

    def _simple(self):
        err, cookie = struct.unpack(">IQ", self.recv(12, "a simple reply"))
        p = self._who(cookie)
        p.simple = True
        p.wire += 16
        must(not (self.structured and p.cmd == CMD_READ), "simple reply to READ in structured mode")
        must(not p.chunks, "simple reply after structured chunks")
        if err:
            self._check_errno(err)
            p.errors.append((err, "", None))
        elif p.cmd == CMD_READ:
            p.parts.append((p.off, self.recv(p.len, "the data of a simple reply")))
            p.wire += p.len
        must(err or p.cmd != CMD_BLOCK_STATUS, "BLOCK_STATUS succeeded with a simple reply")
        self._finish(cookie)
        return cookie, p

    def _content(self, p, start, n):
        end = start + n
        must(p.cmd == CMD_READ, "a content chunk for command %d", p.cmd)
        must(p.off <= start and end <= p.off + p.len,
             "chunk [%d, %d) leaves the request [%d, %d)", start, end, p.off, p.off + p.len)
        for s, e in p.content:
            must(end <= s or e <= start, "chunk [%d, %d) overlaps [%d, %d)", start, end, s, e)
        for _, _, o in p.errors:
            must(o is None or not start <= o < end, "content chunk after the error at its offset %s", o)
        must(not (p.flags & DF and p.content), "a second content chunk though DF was set")
        p.content.append((start, end))

    def _chunk(self):
        if self.extended:
            flags, ctype, cookie, off, length = struct.unpack(
                ">HHQQQ", self.recv(28, "an extended chunk header"))
        else:
            flags, ctype, cookie, length = struct.unpack(">HHQI", self.recv(16, "a chunk header"))
            off = None
        p = self._who(cookie)
        must(not self.extended or off == p.off, "a chunk header's offset is not the request's")
        p.chunks += 1
        p.wire += (32 if self.extended else 20) + length
        done = flags & REPLY_DONE
        must(not flags & ~REPLY_DONE, "undefined reply flags %#x", flags)
        bmax = self.block_size[2] if self.block_size else 1 << 32
        if ctype == T_NONE:
            must(length == 0, "NONE chunk with %d bytes", length)
            must(done, "NONE chunk without DONE")
        elif ctype == T_DATA:
            must(length >= 9, "OFFSET_DATA of length %d", length)
            must(length - 8 <= bmax, "OFFSET_DATA beyond the advertised maximum payload")
            start = struct.unpack(">Q", self.recv(8, "a chunk's offset"))[0]
            self._content(p, start, length - 8)
            p.parts.append((start, self.recv(length - 8, "a chunk's data")))
        elif ctype == T_HOLE:
            must(length == 12, "OFFSET_HOLE of length %d", length)
            start, n = struct.unpack(">QI", self.recv(12, "a hole chunk"))
            must(n > 0, "hole of 0 bytes")
            self._content(p, start, n)
            p.parts.append((start, bytes(n)))
            p.holes.append((start, start + n))
        elif ctype == (T_STATUS_EXT if self.extended else T_STATUS):
            self._status(p, length)
        elif ctype in (T_ERROR, T_ERROR_OFFSET):
            self._error(p, ctype, length)
        else:
            raise Violation("undefined chunk type %#x" % ctype)
        if done:
            self._check_whole(p)
            self._finish(cookie)
        return cookie, p

    def _status(self, p, length):
        must(p.cmd == CMD_BLOCK_STATUS, "BLOCK_STATUS chunk for command %d", p.cmd)
        head, each = (8, 16) if self.extended else (4, 8)
        count, rest = divmod(length - head, each)
        must(count >= 1 and rest == 0, "BLOCK_STATUS chunk of length %d", length)
        must(count <= MAX_DESCRIPTORS, "%d extents in a chunk", count)
        must(not self.block_size or count * each <= self.block_size[2],
             "%d bytes of extents, more than the advertised maximum payload", count * each)
        body = self.recv(length, "a status chunk")
        ctx = struct.unpack(">I", body[:4])[0]
        must(not self.extended or struct.unpack(">I", body[4:8])[0] == count,
             "the descriptor count is not %d", count)
        must(ctx in self.contexts, "status for context id %d that was not negotiated", ctx)
        must(ctx not in p.status, "two status chunks for context %s", self.contexts[ctx])
        must(p.wanted is None or ctx in p.wanted, "status for context id %d, not asked for", ctx)
        ext = list(struct.iter_unpack(">QQ" if self.extended else ">II", body[head:]))
        must(all(f < 1 << 32 for _, f in ext), "status beyond 32 bits")
        must(all(n for n, _ in ext), "an extent of length 0")
        total = sum(n for n, _ in ext)
        must(total - ext[-1][0] < p.len, "extents go on after the request's end")
        if p.flags & REQ_ONE:
            must(len(ext) == 1, "%d extents though REQ_ONE was set", len(ext))
            must(total <= p.len, "REQ_ONE: extent of %d for a request of %d", total, p.len)
        must(self.size is None or p.off + total <= self.size, "extents beyond the export")
        p.status[ctx] = ext

    def _error(self, p, ctype, length):
        fixed = 6 if ctype == T_ERROR else 14
        must(length >= fixed, "error chunk of length %d", length)
        body = self.recv(length, "an error chunk")
        err, mlen = struct.unpack(">IH", body[:6])
        must(err != 0, "error chunk with error 0")
        self._check_errno(err)
        must(mlen == length - fixed, "error message of %d bytes in a chunk of %d", mlen, length)
        msg = check_string(body[6:6 + mlen], "error message")
        off = None
        if ctype == T_ERROR_OFFSET:
            off = struct.unpack(">Q", body[6 + mlen:])[0]
            must(p.off <= off < p.off + p.len, "error offset %d outside the request", off)
            must(p.cmd not in (CMD_FLUSH, CMD_DISC), "ERROR_OFFSET for command %d", p.cmd)
            must(all(o is not None for _, _, o in p.errors), "error offset after a generic error")
            must(off not in [o for _, _, o in p.errors], "error offset %d repeated", off)
        else:
            must(not p.errors, "a second error chunk of the generic type")
        p.errors.append((err, msg, off))

    def _check_whole(self, p):
        if p.errors:
            return
        if p.cmd == CMD_READ:
            got = sum(e - s for s, e in p.content)
            must(got == p.len, "success though only %d of %d bytes were described", got, p.len)
        elif p.cmd == CMD_BLOCK_STATUS:
            want = set(self.contexts) if p.wanted is None else set(p.wanted)
            must(set(p.status) == want, "success with contexts %s of %s", sorted(p.status),
                 sorted(want))

    def wait(self, cookie):
        """Reads messages until the reply to cookie is whole.  Others that come are kept."""
        p = self.pending.get(cookie)
        assert p is not None, "no such request"
        while not p.done:
            self.message()
        return p

    def wait_any(self):
        """The next request whose reply is whole: (cookie, Pending)."""
        while True:
            cookie, p = self.message()
            if p.done:
                return cookie, p

    # --- transmission: shorthands ---

    def do(self, cmd, off=0, length=0, flags=0, payload=b""):
        return self.wait(self.cmd(cmd, off, length, flags, payload))

    def read(self, off, length, flags=0):
        return self.do(CMD_READ, off, length, flags)

    def status(self, off, length, flags=0):
        return self.do(CMD_BLOCK_STATUS, off, length, flags)

    def filtered(self, off, length, ids, flags=0):
        """BLOCK_STATUS with a payload: an effect length and the contexts wanted."""
        payload = struct.pack(">Q", length) + b"".join(struct.pack(">I", i) for i in ids)
        b, cookie = self.pack(CMD_BLOCK_STATUS, off, length, flags | PAYLOAD_LEN,
                              wire_len=len(payload))
        self.pending[cookie].wanted = list(ids)
        self.send(b + payload)
        return self.wait(cookie)

    def disc(self):
        """Soft disconnect: the server has to close, and to say nothing more."""
        must(not self.pending, "test bug: requests are pending")
        self.send(self.pack(CMD_DISC, cookie=0)[0])
        self.expect_close()
        self.close()

    def abort(self):
        """Ends the haggling: ABORT must be acknowledged."""
        t = self.final(OPT_ABORT)
        must(t == REP_ACK, "ABORT got %s", rep_name(t))
        self.close()
