#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A small NBD server that takes the fixture's command line, is right by default, and breaks one rule
when FAKE_BREAK names it.  It exists to see the tests fail: see test_mutants.py.

One thread a connection, requests are answered in order.  Not for anything else."""
import os
import signal
import socket
import struct
import sys
import threading
import time

sys.dont_write_bytecode = True
from nbdwire import *  # noqa: E402,F401,F403  (the values)

BREAK = os.environ.get("FAKE_BREAK", "")
USED = set()
BA = "base:allocation"


def broken(name):
    USED.add(name)
    return BREAK == name


class Gone(Exception):
    pass


K, M = 1 << 10, 1 << 20
KEY = 0x5A5A5A5A5A5A5A5A


class Exp:
    def __init__(self, spec):
        self.name, size, *opts = spec.split(":", 2)
        unit = {"K": 10, "M": 20, "G": 30, "T": 40}.get(size[-1])
        self.size = int(size[:-1]) << unit if unit else int(size)
        self.data_end, self.listed, self.ranges, self.gate = self.size, True, {}, None
        self.contexts = {BA: self.alloc}
        self.withdrawn, self.socks = False, set()
        for o in opts[0].split(",") if opts else []:
            k, _, v = o.partition("=")
            if k == "zero":
                self.data_end = 0
            elif k == "half":
                self.data_end = self.size // 2
            elif k == "unlisted":
                self.listed = False
            elif k in ("dirty", "allfine"):
                u = 65536 if k == "dirty" else 4096
                self.contexts["qemu:dirty-bitmap:" + v] = lambda o, n, u=u: self.dirty(o, n, u)
            elif k in ("errors", "statuserrors"):
                a, b = v.split("+")
                self.ranges[k] = (int(a), int(a) + int(b))
            elif k == "slow":
                self.gate = v

    def hit(self, kind, off, n):
        a, b = self.ranges.get(kind, (0, 0))
        return off < b and a < off + n

    def data(self, off, n):
        k = max(0, min(n, self.data_end - off))
        first, last = off // 8, -(-(off + k) // 8)
        w = struct.pack(">%dQ" % (last - first), *[(i * 8) ^ KEY for i in range(first, last)])
        return w[off - first * 8:off - first * 8 + k] + bytes(n - k)

    def alloc(self, off, n):
        k = max(0, min(n, self.data_end - off))
        if k:
            yield k, 0
        if n - k:
            yield n - k, 3

    def dirty(self, off, n, unit):
        end = off + n
        while off < end:
            nxt = min(end, (off // unit + 1) * unit)
            yield nxt - off, (off // unit & 1) * (3 if broken("dirty-word-3") else 1)
            off = nxt


class Client:
    def __init__(self, sock, exports):
        self.s, self.exports = sock, exports
        self.structured, self.ctx, self.ctx_export = False, {}, None
        self.exp = None

    def recv(self, n):
        out = b""
        while len(out) < n:
            d = self.s.recv(min(1 << 20, n - len(out)))
            if not d:
                raise Gone
            out += d
        return out

    def skip(self, n):
        while n:
            n -= len(self.recv(min(n, 1 << 20)))

    def send(self, b):
        self.s.sendall(b)

    def rep(self, opt, t, data=b""):
        if broken("wrong-option-in-reply"):
            opt ^= 1
        self.send(struct.pack(">QIII", REP_MAGIC, opt, t, len(data)) + data)

    def find(self, name):
        if name == b"":
            listed = [e for e in self.exports if e.listed and not e.withdrawn]
            return listed[0] if len(listed) == 1 else None
        for e in self.exports:
            same = e.name.encode() == name
            if broken("name-up-to-nul"):
                same = e.name.encode() == name.split(b"\0")[0]
            if broken("name-without-case"):
                same = e.name.encode().lower() == name.lower()
            if same and not e.withdrawn:
                return e
        return None

    def run(self):
        hf = 3 | (4 if broken("handshake-flag-4") else 0)
        self.send(struct.pack(">QQH", NBDMAGIC, IHAVEOPT, hf))
        flags, = struct.unpack(">I", self.recv(4))
        if flags & ~3 and not broken("client-flags-unchecked"):
            return
        self.no_zeroes = flags & 2
        while True:
            magic, opt, n = struct.unpack(">QII", self.recv(16))
            if magic != IHAVEOPT:
                return
            if n > 65536:
                if opt == OPT_EXPORT_NAME:
                    return
                if broken("long-option-believed"):
                    self.hoard = bytearray(min(n, 200 * M))
                    self.hoard[::4096] = b"x" * len(self.hoard[::4096])
                self.skip(n)
                if opt == OPT_SET_META:
                    self.ctx, self.ctx_export = {}, None
                self.rep(opt, ERR_TOO_BIG)
                continue
            if broken("unknown-option-data-not-skipped") and opt == 77:
                n = 0
            if self.option(opt, self.recv(n)):
                return self.transmission()

    def tflags(self):
        f = HAS_FLAGS | READ_ONLY | SEND_FLUSH | CAN_MULTI_CONN | SEND_CACHE
        if self.structured or broken("df-flag-always"):
            f |= SEND_DF
        if broken("trim-exposed"):
            f |= SEND_TRIM
        if broken("no-multi-conn"):
            f &= ~CAN_MULTI_CONN
        if broken("no-has-flags"):
            f &= ~HAS_FLAGS
        return f

    def enter(self, e, name):
        self.exp = e
        e.socks.add(self.s)
        if self.ctx_export != name and not broken("contexts-of-any-export"):
            self.ctx = {}

    def option(self, opt, d):
        if opt == OPT_EXPORT_NAME:
            e = self.find(d)
            if not e:
                if broken("export-name-error-reply"):
                    self.rep(opt, ERR_UNKNOWN)
                raise Gone
            self.enter(e, d)
            pad = bytes(0 if self.no_zeroes and not broken("always-pads") else
                        0 if broken("never-pads") else 124)
            self.send(struct.pack(">QH", e.size, self.tflags()) + pad)
            return True
        if opt == OPT_ABORT:
            if not broken("abort-not-acked"):
                self.rep(opt, REP_ACK)
            raise Gone
        if opt == OPT_LIST:
            if d and not broken("list-with-data-acked"):
                self.rep(opt, ERR_INVALID)
                return
            for e in sorted(self.exports, key=lambda e: e.name):
                if (e.listed or broken("unlisted-listed")) and not e.withdrawn:
                    n = e.name.encode()
                    self.rep(opt, REP_SERVER, struct.pack(">I", len(n)) + n)
            self.rep(opt, REP_ACK)
        elif opt in (OPT_INFO, OPT_GO):
            return self.info(opt, d)
        elif opt == OPT_STRUCTURED:
            if d:
                self.rep(opt, ERR_INVALID)
            else:
                self.structured = True
                self.rep(opt, REP_ACK)
        elif opt in (OPT_LIST_META, OPT_SET_META):
            self.meta(opt, d)
        elif opt == OPT_STARTTLS and broken("starttls-acked"):
            self.rep(opt, REP_ACK)
        elif broken("tls-reqd-without-tls"):
            self.rep(opt, ERR_TLS_REQD)
        else:
            self.rep(opt, ERR_UNSUP, b"\xff" if broken("error-text-not-utf8") else b"")

    def info(self, opt, d):
        try:
            n, = struct.unpack_from(">I", d)
            name = d[4:4 + n]
            cnt, = struct.unpack_from(">H", d, 4 + n)
            infos = struct.unpack_from(">%dH" % cnt, d, 6 + n)
            if len(d) != 6 + n + 2 * cnt and not broken("info-trailing-data"):
                raise struct.error
        except struct.error:
            self.rep(opt, ERR_INVALID)
            return
        e = self.find(name)
        if not e:
            self.rep(opt, ERR_UNKNOWN)
            return
        size = struct.pack(">HQH", INFO_EXPORT, e.size, self.tflags())
        if broken("info-export-short"):
            size = size[:-1]
        if not broken("no-info-export"):
            self.rep(opt, REP_INFO, size)
        if broken("info-twice"):
            self.rep(opt, REP_INFO, size)
        if INFO_NAME in infos:
            self.rep(opt, REP_INFO, struct.pack(">H", INFO_NAME) + e.name.encode())
        if INFO_BLOCK_SIZE in infos:
            bmin = 512 if broken("minimum-block-512") else 3 if broken("minimum-block-3") else 1
            if not broken("info-and-go-differ") or opt == OPT_INFO:
                self.rep(opt, REP_INFO, struct.pack(">HIII", INFO_BLOCK_SIZE, bmin, 4096, 32 * M))
        self.rep(opt, REP_ACK)
        if opt == OPT_GO:
            self.enter(e, name)
            if broken("go-pads"):
                self.send(bytes(124))
            return True

    def meta(self, opt, d):
        old = (self.ctx, self.ctx_export)
        if opt == OPT_SET_META:
            self.ctx, self.ctx_export = {}, None
        if not self.structured and not broken("meta-without-structured"):
            self.rep(opt, ERR_INVALID)
            return
        try:
            n, = struct.unpack_from(">I", d)
            name, p = d[4:4 + n], 4 + n
            cnt, = struct.unpack_from(">I", d, p)
            p += 4
            queries = []
            if cnt > 65536:
                raise struct.error
            for _ in range(cnt):
                k, = struct.unpack_from(">I", d, p)
                if p + 4 + k > len(d) and not broken("query-beyond-data"):
                    raise struct.error
                queries.append(d[p + 4:p + 4 + k].decode("latin-1"))
                p += 4 + k
            if p != len(d) and not broken("query-beyond-data"):
                raise struct.error
        except struct.error:
            if broken("failed-set-keeps-contexts"):
                self.ctx, self.ctx_export = old
            self.rep(opt, ERR_INVALID)
            return
        e = self.find(name)
        if not e:
            if broken("failed-set-keeps-contexts"):
                self.ctx, self.ctx_export = old
            self.rep(opt, ERR_UNKNOWN)
            return
        hits = []
        for c in e.contexts:
            for q in queries:
                wild = opt == OPT_LIST_META or broken("set-takes-wildcards")
                if c == q or (wild and q in ("base:", "qemu:", "qemu:dirty-bitmap:") and c.startswith(q)):
                    if c not in hits or broken("repeats-count"):
                        hits.append(c)
        if opt == OPT_LIST_META and not queries:
            hits = list(e.contexts)
        if broken("set-answers-extra") and opt == OPT_SET_META and hits:
            hits = list(e.contexts)
        if broken("unknown-namespace-invalid") and any(not q.startswith(("base:", "qemu:")) for q in queries):
            self.rep(opt, ERR_INVALID)
            return
        if broken("no-base-allocation"):
            hits = [h for h in hits if h != BA]
        for i, c in enumerate(hits):
            i = 0 if opt == OPT_LIST_META or broken("equal-context-ids") else i + 7
            self.rep(opt, REP_META, struct.pack(">I", i) + c.encode())
        if opt == OPT_SET_META:
            if broken("set-adds"):
                self.ctx = dict(old[0])
            self.ctx.update({i + 7: c for i, c in enumerate(hits)})
            self.ctx_export = name
        elif broken("list-selects"):
            self.ctx, self.ctx_export = {i + 7: c for i, c in enumerate(hits)}, name
        self.rep(opt, REP_ACK)

    # --- transmission ---

    def chunk(self, cookie, t, data=b"", done=True):
        self.send(struct.pack(">IHHQI", STRUCTURED_MAGIC, int(bool(done)), t, cookie, len(data)) + data)

    def fail(self, cmd, cookie, err, msg=b"no"):
        if broken("error-value-of-linux") and err == EPERM:
            err = 30
        if self.structured and not broken("simple-error-to-read"):
            if broken("error-without-message-length"):
                self.chunk(cookie, T_ERROR, struct.pack(">IH", err, 0) + msg)
            else:
                self.chunk(cookie, T_ERROR, struct.pack(">IH", err, len(msg)) + msg)
        else:
            self.send(struct.pack(">IIQ", SIMPLE_MAGIC, err, cookie))

    def ok(self, cookie):
        if self.structured:
            self.chunk(cookie, T_NONE)
            if broken("two-replies"):
                self.chunk(cookie, T_NONE)
        else:
            self.send(struct.pack(">IIQ", SIMPLE_MAGIC, 0, cookie))

    def transmission(self):
        while True:
            magic, flags, cmd, cookie, off, n = struct.unpack(">IHHQQI", self.recv(28))
            if magic != REQUEST_MAGIC and not broken("request-magic-unchecked"):
                return
            if broken("cookie-of-32-bits"):
                cookie &= 0xFFFFFFFF
            if cmd == CMD_WRITE:
                if n > 32 * M:
                    return
                if not broken("write-payload-not-drained"):
                    self.skip(n)
            if cmd == CMD_DISC:
                if broken("disc-is-answered"):
                    self.ok(cookie)
                if broken("disc-is-ignored"):
                    continue
                return
            self.request(cmd, flags, cookie, off, n)

    def request(self, cmd, flags, cookie, off, n):
        e = self.exp
        known = {CMD_READ: DF if self.structured else 0, CMD_BLOCK_STATUS: REQ_ONE}
        if cmd in (CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES):
            self.fail(cmd, cookie, EIO if broken("write-eio") else EPERM)
        elif flags & ~known.get(cmd, 0) and not broken("flags-unchecked"):
            self.fail(cmd, cookie, EINVAL)
        elif cmd == CMD_FLUSH:
            self.ok(cookie)
        elif cmd not in (CMD_READ, CMD_CACHE, CMD_BLOCK_STATUS):
            if broken("unknown-command-closes"):
                raise Gone
            self.fail(cmd, cookie, EINVAL)
        elif (off + n & (1 << 64) - 1 if broken("offset-overflow") else off + n) > e.size:
            self.fail(cmd, cookie, EIO if broken("beyond-end-eio") else EINVAL)
        elif cmd == CMD_CACHE:
            self.ok(cookie)
        elif cmd == CMD_BLOCK_STATUS:
            self.status(flags, cookie, off, n)
        else:
            self.read(flags, cookie, off, n)

    def read(self, flags, cookie, off, n):
        e = self.exp
        while e.gate and os.path.exists(e.gate):
            time.sleep(0.005)
        if n == 0:
            return self.ok(cookie)
        if n > 32 * M:
            return self.fail(CMD_READ, cookie, EINVAL)
        if e.hit("errors", off, n):
            if broken("payload-after-simple-error") and not self.structured:
                self.fail(CMD_READ, cookie, EIO)
                return self.send(bytes(n))
            return self.fail(CMD_READ, cookie, EIO, b"lost")
        if broken("short-read-at-64k-border") and off % 65536 == 65535:
            off += 1
        if not self.structured:
            return self.send(struct.pack(">IIQ", SIMPLE_MAGIC, 0, cookie) + e.data(off, n))
        if broken("simple-read-in-structured-mode"):
            return self.send(struct.pack(">IIQ", SIMPLE_MAGIC, 0, cookie) + e.data(off, n))
        parts = [(o, k, f) for o, k, f in self.split(e, off, n)]
        if flags & DF and not broken("df-ignored") or broken("holes-travel"):
            parts = [(off, n, 0)]
        if broken("chunks-overlap") and parts[0][1] > 1:
            parts.append((off, 1, 0))
        if broken("read-cut-short"):
            parts = parts[:1]
        if broken("chunk-beyond-request"):
            o, k, f = parts[-1]
            parts[-1] = (o, min(k + 1, e.size - o), f)
        for i, (o, k, f) in enumerate(parts):
            last = i == len(parts) - 1
            if broken("no-done"):
                last = False
            if f:
                self.chunk(cookie, T_HOLE, struct.pack(">QI", o, k), last)
            else:
                self.chunk(cookie, T_DATA, struct.pack(">Q", o) + e.data(o, k), last)
        if broken("chunk-after-done"):
            self.chunk(cookie, T_NONE)

    def split(self, e, off, n):
        for k, f in e.alloc(off, n):
            yield off, k, f
            off += k

    def status(self, flags, cookie, off, n):
        e = self.exp
        if not self.ctx or n == 0:
            return self.fail(CMD_BLOCK_STATUS, cookie, EINVAL)
        maps = {}
        for i, c in self.ctx.items():
            out, have, cap = [], 0, (1 << 20) - 1 if not broken("extents-unlimited") else 1 << 30
            for k, f in e.contexts[c](off, n):
                out.append((k, f))
                have += k
                if len(out) == cap or (flags & REQ_ONE and not broken("req-one-ignored")):
                    break
            maps[i] = (out, have)
        if not broken("contexts-end-apart"):
            end = min(h for _, h in maps.values())
            for i, (out, have) in maps.items():
                while have > end:
                    k, f = out.pop()
                    have -= k
                    if have < end:
                        out.append((end - have, f))
                        have = end
                maps[i] = (out, have)
        bad = e.hit("statuserrors", off, n)
        items = list(maps.items())
        if broken("one-context-missing"):
            items = items[:1]
        for j, (i, (out, _)) in enumerate(items):
            last = j == len(items) - 1
            if bad:
                self.fail(CMD_BLOCK_STATUS, cookie, EIO, b"lost")
                if not broken("chunk-after-status-error"):
                    return
                continue
            if broken("extents-not-merged") and out[0][0] > 1 and not flags & REQ_ONE:
                out[:1] = [(1, out[0][1]), (out[0][0] - 1, out[0][1])]
            if broken("last-extent-beyond-request"):
                out[-1] = (out[-1][0] + 512, out[-1][1])
            if broken("status-done-on-first"):
                last = j == 0
            body = struct.pack(">I", 99 if broken("wrong-context-id") else i)
            self.chunk(cookie, T_STATUS, body + b"".join(struct.pack(">II", *x) for x in out), last)


def serve(sock, exports):
    c = Client(sock, exports)
    try:
        c.run()
    except (Gone, OSError):
        pass
    finally:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        if c.exp:
            c.exp.socks.discard(sock)
        sock.close()


def accept(ls, exports):
    while True:
        s, _ = ls.accept()
        threading.Thread(target=serve, args=(s, exports), daemon=True).start()


def main():
    args, exports, wheres = sys.argv[1:], [], []
    if "--help" in args:
        print("statuserrors=OFF+LEN")
        return
    while args:
        a = args.pop(0)
        if a == "--listen":
            wheres.append(args.pop(0))
        elif a == "--export":
            exports.append(Exp(args.pop(0)))
        else:
            sys.exit(2)
    paths = []

    def end(*_):
        for p in paths:
            os.unlink(p)
        os._exit(0)

    def withdraw(*_):
        exports[0].withdrawn = True
        if not broken("withdrawn-clients-stay"):
            for s in list(exports[0].socks):
                s.shutdown(socket.SHUT_RDWR)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGUSR1, withdraw)
    for w in wheres:
        kind, _, rest = w.partition(":")
        if kind == "unix":
            ls = socket.socket(socket.AF_UNIX)
            ls.bind(rest)
            paths.append(rest)
        else:
            ls = socket.create_server((rest.rpartition(":")[0], int(rest.rpartition(":")[2])))
            w = "tcp:127.0.0.1:%d" % ls.getsockname()[1]
        ls.listen(1024)
        print("ready " + w, flush=True)
        threading.Thread(target=accept, args=(ls, exports), daemon=True).start()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
