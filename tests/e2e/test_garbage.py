#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Garbage on the sockets: daemon and plugin survive it, forget nothing, and go on serving others.

GARBAGE_MB (default 100) is how much goes into each socket.
"""
import array
import json
import os
import socket
import struct

import backups
import nbdclient
from harness import M, Stack, wait_for
from qmpclient import QMP, QMPError
from tap import main, number, rng, test

SIZE = 16 * M
GARBAGE = number("GARBAGE_MB", 100) * M


def pour(sock, chunks):
    """Sends everything, however the peer takes it; True when all of it went out."""
    sock.settimeout(120)
    try:
        for chunk in chunks:
            sock.sendall(chunk)
        return True
    except (BrokenPipeError, ConnectionResetError):
        return False
    finally:
        sock.close()


def noise(random, total, step=M):
    block = random.randbytes(step)
    for _ in range(total // step):
        yield block


def unix(path, kind=socket.SOCK_STREAM):
    s = socket.socket(socket.AF_UNIX, kind)
    s.connect(path)  # waits while the backlog is full
    s.settimeout(60)
    return s


def peak(pid):
    with open("/proc/%d/status" % pid) as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM"))


class Unmoved:
    """The daemon answers as before, is the same process, and did not keep the garbage in memory."""

    def __init__(self, s):
        self.s = s
        with s.qmp() as q:
            q.cmd("checkpoint-create", name="c", disks=["vda"])
            self.id, _ = backups.begin(q, ["vda"])
        self.image = backups.pull(s.nbd, "vda")
        self.before, self.peak = self.seen(), peak(s.daemon.pid)

    def seen(self):
        with self.s.qmp() as q:
            return json.dumps([q.cmd("query-checkpoints"),
                               [(b["id"], b["state"]) for b in q.cmd("query-backups")]])

    def check(self):
        assert self.s.daemon.poll() is None, "the daemon has ended"
        assert self.seen() == self.before
        assert backups.pull(self.s.nbd, "vda") == self.image
        grown = peak(self.s.daemon.pid) - self.peak
        # AddressSanitizer keeps what was freed for a while, up to 256 MiB.
        bound = (384 if os.environ.get("SANITIZER") else 64) * M
        assert grown < bound, "the daemon's memory grew by %d MiB" % (grown // M)


@test
def garbage_on_the_control_socket():
    """Random bytes; one endless string; endless nesting; endless spaces."""
    random = rng("garbage-control")
    with Stack() as s:
        s.start("vda", SIZE, b"\x77" * SIZE)
        unmoved = Unmoved(s)
        for chunks in (noise(random, GARBAGE),
                       [b'{"execute": "'] + [b"x" * M] * (GARBAGE // M),
                       [b"[" * M] * (GARBAGE // M), [b'{"a":' * (M // 5)] * (GARBAGE // M),
                       [b" \n" * (M // 2)] * (GARBAGE // M)):
            pour(unix(s.control), chunks)
            unmoved.check()


@test
def garbage_on_the_nbd_socket():
    """In place of the client flags, of an option, of an option's data, and of a request."""
    random = rng("garbage-nbd")
    with Stack() as s:
        s.start("vda", SIZE, b"\x77" * SIZE)
        unmoved = Unmoved(s)
        heads = (b"", struct.pack(">I", 3),
                 struct.pack(">IQII", 3, nbdclient.IHAVEOPT, nbdclient.OPT_GO, 0xFFFFFFFF),
                 struct.pack(">IQII", 3, nbdclient.IHAVEOPT, 12345, 0x7FFFFFFF))
        for head in heads:
            pour(unix(s.nbd), [head, *noise(random, GARBAGE // len(heads))])
            unmoved.check()
        c = s.connect("vda")
        pour(c.sock, noise(random, GARBAGE))
        unmoved.check()
        # a write of 2 GiB that announces its data
        c = s.connect("vda")
        head = struct.pack(">IHHQQI", nbdclient.REQUEST_MAGIC, 0, nbdclient.CMD_WRITE, 1, 0, 2**31)
        pour(c.sock, [head, *noise(random, GARBAGE)])
        unmoved.check()


@test
def malformed_json_gets_an_error_and_the_connection_lives():
    with Stack() as s:
        s.start("vda", SIZE)
        before = s.command("query-checkpoints")
        for bad in (b"{]\n", b"nonsense\n", b'{"execute": 7}\n', b'{"execute": "query-disks",}\n',
                    b'{"exec": "query-disks"}\n', b"[]\n", b'"x"\n', b"7\n", b"{}\n",
                    b'{"execute": "query-disks", "arguments": []}\n',
                    b'{"execute": "query-disks", "x": 1}\n', b"\xff\xfe\x00\n", b'{"a": "\xff"}\n',
                    b'{"execute": "checkpoint-create", "arguments": {"name": "a\\u0000b", '
                    b'"disks": ["vda"]}}\n',
                    b'{"execute": "checkpoint-create", "arguments": {"name": "c", "name": "d", '
                    b'"disks": ["vda"]}}\n'):
            with s.qmp() as q:
                q.send_raw(bad)
                answer = q.message()
                assert "error" in answer, (bad, answer)
                assert answer["error"]["class"] == "GenericError", (bad, answer)
                assert "\n" not in answer["error"]["desc"] and answer["error"]["desc"], bad
                assert q.cmd("query-checkpoints") == before, bad


@test
def commands_before_capabilities_are_refused():
    with Stack() as s:
        s.start("vda", SIZE)
        q = QMP(s.control, negotiate=False)
        try:
            q.cmd("checkpoint-create", name="c", disks=["vda"])
            raise AssertionError("a command before qmp_capabilities was executed")
        except QMPError as e:
            assert e.cls in ("CommandNotFound", "GenericError"), e
        q.cmd("qmp_capabilities")
        assert q.cmd("query-checkpoints") == []
        q.close()


def send_fds(sock, data, fds):
    return sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


@test
def a_link_peer_that_is_not_varved():
    """It connects to the plugin and sends garbage, half messages, fds, or nothing: the guest does
    not notice, the plugin loses no fd, and varved's link works."""
    random = rng("garbage-link")
    with Stack() as s:
        disk = s.start("vda", SIZE)
        link = os.path.join(s.runtime, "vda", "link.sock")
        fds = "/proc/%d/fd" % disk.process.pid
        with disk.connect() as c:
            c.write(0, b"x")
            at_start = len(os.listdir(fds))
            idle = [unix(link, socket.SOCK_SEQPACKET) for _ in range(20)]
            for i in range(300):
                try:
                    p = unix(link, socket.SOCK_SEQPACKET)
                    magic = struct.pack("<I", 0x4B4C5656)
                    kind = struct.pack("<IIi", random.randrange(12), i, 0)
                    body = random.choice((
                        random.randbytes(random.randrange(1, 5000)),
                        magic + kind + random.randbytes(random.randrange(100)),
                        magic + kind + bytes(64 + 16) + struct.pack("<I", 0),
                        magic + kind + bytes(64 + 16) + struct.pack("<I", 0xFFFFFFFF),
                        magic + kind + bytes(64 + 16) + struct.pack("<I", 50) + b"y" * 10))
                    if random.random() < 0.3:
                        null = os.open("/dev/null", os.O_RDONLY)
                        send_fds(p, body, [null] * random.randrange(1, 20))
                        os.close(null)
                    else:
                        p.send(body)
                    c.write(random.randrange(SIZE - 512), b"guest")
                    p.close()
                except (BrokenPipeError, ConnectionError, socket.timeout):
                    p.close()
            for p in idle:
                p.close()
            assert disk.process.poll() is None
            wait_for("the plugin closes what has gone",
                     lambda: len(os.listdir(fds)) <= at_start + 2)
            s.wait_disk("vda", "live")
            with s.qmp() as q:
                q.cmd("checkpoint-create", name="after", disks=["vda"])
                c.write(5 * M, b"tracked")
                ident, answer = backups.begin(q, [{"disk": "vda", "since": "after"}])
                got = backups.dirty(s.nbd, "vda", answer["vda"]["context"])
                assert len(got) == 1 and got[0][0] == 5 * M, got
                backups.end(q, ident)


@test
def a_peer_that_quiesces_and_stays_does_not_hold_the_guest():
    """A peer that speaks the link's protocol asks for a freeze and never ends it: the guest's
    writes go on by the plugin's own deadline."""
    with Stack() as s:
        disk = s.serve("vda", s.image("vda.img", SIZE), freeze_timeout="300ms")
        link = os.path.join(s.runtime, "vda", "link.sock")

        def message(kind, seq, *args):
            words = list(args) + [0] * (8 - len(args))
            return struct.pack("<IIIi8Q16sI", 0x4B4C5656, kind, seq, 0, *words, bytes(16), 0)
        p = unix(link, socket.SOCK_SEQPACKET)
        for seq, (kind, arg) in enumerate(((1, (1, 1)), (3, (1,)), (4, ()))):
            p.send(message(kind, seq, *arg))
            answer = p.recv(8192)
            magic, got, _, status = struct.unpack("<IIIi", answer[:16])
            assert (magic, got, status) == (0x4B4C5656, kind, 0), (kind, status, answer[-100:])
        with disk.connect() as c:  # writers wait now, and let themselves go on
            c.write(0, b"goes on")
            p.send(message(5, 9, 0))
            answer = p.recv(8192)
            assert struct.unpack("<i", answer[12:16])[0] < 0, "a swap after the deadline"
            c.write(M, b"and on")
        p.close()


@test
def a_plugin_that_is_none_does_not_hurt_the_daemon():
    """A socket where a link should be, behind which somebody sends garbage or nothing."""
    random = rng("fake-plugin")
    with Stack() as s:
        other = s.start("good", SIZE)
        assert s.stop(s.serve("vda", s.image("vda.img", SIZE)).process) == 0
        path = os.path.join(s.runtime, "vda", "link.sock")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.path.exists(path):
            os.unlink(path)
        listener.bind(path)
        listener.listen(16)
        listener.settimeout(0.2)
        held = []
        with s.qmp() as q, other.connect() as c:
            for i in range(20):
                try:
                    p, _ = listener.accept()
                    if i % 3:
                        p.send(random.randbytes(random.randrange(1, 4000)))
                        null = os.open("/dev/null", os.O_RDONLY)
                        send_fds(p, random.randbytes(200), [null] * 10)
                        os.close(null)
                    held.append(p)
                except (socket.timeout, BrokenPipeError, ConnectionError):
                    pass
                name = "c%d" % i
                q.cmd("checkpoint-create", name=name, disks=["good"])
                c.write(i * 4096, b"x")
                state = {d["name"]: d["state"] for d in q.cmd("query-disks")}
                assert state["good"] == "live" and state["vda"] != "live", state
        for p in held:
            p.close()
        listener.close()
        os.unlink(path)


if __name__ == "__main__":
    main()
