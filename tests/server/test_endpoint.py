#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Endpoints: files and NBD exports as jobs see them; peers that die, stall and lie.

tests/server/endpoint-fixture does to one endpoint what it is told and asserts rule 9 itself.
"""
import os
import random
import re
import select
import socket
import struct
import subprocess
import sys
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "client"))
from fakenbd import FakeNbd, hang_up, io_error, stall  # noqa: E402
from harness import K, M, Folder, main, run, test  # noqa: E402

FIXTURE = os.path.join(os.environ.get("abs_top_builddir", os.getcwd()), "tests/server/endpoint-fixture")
DEADLINE_S = 60
FOREVER_MS = 3600 * 1000
ZERO, HOLE = 1, 2


class Endpoint:
    """The fixture; `folder` gets the files that data goes through."""

    def __init__(self, folder):
        self.folder, self.tags, self.answers, self.lines = folder, 0, {}, b""
        self.process = subprocess.Popen([FIXTURE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self):
        return self

    def __exit__(self, kind, *exc):
        if kind:
            self.process.kill()
        self.process.stdin.close()
        self.process.wait(DEADLINE_S)
        self.process.stdout.close()
        assert kind or self.process.returncode == 0, self.process.returncode

    def send(self, text):
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def line(self):
        while b"\n" not in self.lines:
            ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE_S)
            assert ready, "no answer"
            got = os.read(self.process.stdout.fileno(), 65536)
            assert got, "the fixture has ended"
            self.lines += got
        one, self.lines = self.lines.split(b"\n", 1)
        return one.decode()

    def opening(self, where, mode="r", connect_ms=0, stall_ms=0):
        self.send("open %s %d %d %s" % (mode, connect_ms, stall_ms, where))

    def opened(self):
        """(size, min, extents), or the error's text."""
        words = self.line().split(" ", 5)
        assert words[0] in ("opened", "refused"), words
        if words[1] == "0":
            return int(words[2]), int(words[3]), words[4] == "1"
        assert words[0] == "opened", words
        return words[5]

    def open(self, *args, **kw):
        self.opening(*args, **kw)
        return self.opened()

    def ask(self, op, off=0, length=0, last=""):
        self.tags += 1
        self.send("%s %d %d %d %s" % (op, self.tags, off, length, last))
        return str(self.tags)

    def answer(self, tag):
        """(rc, text)"""
        while tag not in self.answers:
            kind, which, rc, text = (self.line() + " ").split(" ", 3)
            assert kind in ("done", "refused"), (kind, which, rc, text)
            assert which not in self.answers
            self.answers[which] = int(rc), text.strip()
        return self.answers.pop(tag)

    def good(self, tag):
        rc, text = self.answer(tag)
        assert rc == 0, (rc, text)
        return text

    def bad(self, tag, *says):
        rc, text = self.answer(tag)
        assert rc < 0, text
        for word in says:
            assert word in text, (word, text)
        return rc

    def read(self, off, length):
        name = self.folder("read")
        self.good(self.ask("read", off, length, name))
        with open(name, "rb") as f:
            return f.read()

    def write(self, off, data):
        name = self.folder.write("write", data)
        self.good(self.ask("write", off, len(data), name))

    def zero(self, off, length):
        self.good(self.ask("zero", off, length))

    def flush(self):
        self.good(self.ask("flush"))

    def extents(self, off, length, most=1000):
        """All runs, asked for until there are no more."""
        out, end = [], off + length
        while off < end:
            for run_len, flags in re.findall(r"(\d+):(\d+)", self.good(
                    self.ask("extents", off, end - off, most))):
                off += int(run_len)
                if out and out[-1][1] == int(flags):
                    out[-1] = out[-1][0] + int(run_len), int(flags)
                else:
                    out.append((int(run_len), int(flags)))
            assert off <= end
        return out

    def close(self):
        self.send("close")
        while True:
            line = self.line()
            if line == "closed":
                return
            kind, which, rc, text = (line + " ").split(" ", 3)
            assert kind == "done", line
            self.answers[which] = int(rc), text.strip()


def pattern(length, seed=1):
    return random.Random(seed).randbytes(length)


def model(e, size, block, rounds=60):
    """Writes, zeroes and reads at random; what is read is what an array says."""
    seed = random.SystemRandom().randrange(1 << 32)
    print("# seed %d" % seed)
    rng, array = random.Random(seed), bytearray(size)
    units = size // block
    for _ in range(rounds):
        at = rng.randrange(units)
        n = rng.randrange(1, min(units - at, 3 * M // block) + 1)
        off, length = at * block, n * block
        what = rng.random()
        if what < 0.4:
            data = rng.randbytes(length)
            e.write(off, data)
            array[off:off + length] = data
        elif what < 0.6:
            e.zero(off, length)
            array[off:off + length] = bytes(length)
        elif e.read(off, length) != array[off:off + length]:
            raise AssertionError("%d bytes at %d differ" % (length, off))
    e.flush()
    for off in range(0, size, M):
        assert e.read(off, min(M, size - off)) == array[off:off + M], off
    at = 0
    for length, flags in e.extents(0, size):
        assert not flags & ZERO or not any(array[at:at + length]), (at, length)
        at += length
    assert at == size
    return bytes(array)


# --- files ------------------------------------------------------------------------------------

@test
def a_file_holds_what_was_written_and_flushed():
    with Folder() as f, Endpoint(f) as e:
        f.write("t", bytes(8 * M + 100))
        assert e.open(f("t"), "w") == (8 * M + 100, 1, True)
        array = model(e, 8 * M, 1)
        e.write(8 * M + 1, b"x" * 99)
        e.close()
        assert f.read("t") == array + b"\0" + b"x" * 99


@test
def a_files_holes_are_zeroes_and_its_zeroes_become_holes():
    with Folder() as f, Endpoint(f) as e:
        with open(f("t"), "wb") as t:
            t.truncate(8 << 40)
            for off in (0, 5 << 40):
                t.seek(off)
                t.write(b"x" * 64 * K)
        e.open(f("t"), "w")
        x = HOLE | ZERO
        assert e.extents(0, 8 << 40) == \
            [(64 * K, 0), ((5 << 40) - 64 * K, x), (64 * K, 0), ((3 << 40) - 64 * K, x)]
        assert e.extents(0, 8 << 40, most=1) == e.extents(0, 8 << 40)
        e.zero(0, 8 << 40)
        assert e.extents(0, 8 << 40) == [(8 << 40, x)]
        e.close()


@test
def what_is_no_file_is_refused_by_name_and_at_once():
    with Folder() as f, Endpoint(f) as e:
        os.mkfifo(f("fifo"))
        for name, says in (("none", "No such file"), ("fifo", "neither a regular file"),
                           (".", "neither a regular file")):
            text = e.open(f(name))
            assert says in text and f(name) in text, text
            e.close()
        e.open("nbd:nonsense")
        e.close()


@test
def a_file_that_got_shorter_says_where():
    with Folder() as f, Endpoint(f) as e:
        f.write("t", bytes(M))
        e.open(f("t"))
        os.truncate(f("t"), 1000)
        e.bad(e.ask("read", 0, 4096, f("r")), "it ends at 1000", f("t"))
        e.bad(e.ask("write", 0, 4096, f.write("w", bytes(4096))), "for reading only")
        for op, off, length in (("read", M, 1), ("read", M - 1, 2), ("read", 0, 0),
                                ("read", 1 << 63, 1 << 63), ("extents", 0, M + 1)):
            e.bad(e.ask(op, off, length, f("r") if op == "read" else "5"), "do not fit")
        e.close()


# --- NBD --------------------------------------------------------------------------------------

@test
def an_export_of_nbdkit_holds_what_was_written():
    with Folder() as f, Endpoint(f) as e:
        for args in (["memory", "9M"], ["--filter=nozero", "memory", "9M"]):
            server = f.start(["nbdkit", "-f", "-U", f("sock"), *args], f("sock"))
            size, block, extents = e.open(f.uri(), "w")
            assert (size, block, extents) == (9 * M, 1, True)
            model(e, size, 512)
            e.close()
            f.stop(server)


@test
def a_peer_with_small_requests_gets_small_requests():
    """blocksize-policy ends the connection, or says EINVAL, where its limits are not kept."""
    with Folder() as f, Endpoint(f) as e:
        f.start(["nbdkit", "-f", "-U", f("sock"), "--filter=blocksize-policy", "memory", "9M",
                 "blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=65536",
                 "blocksize-error-policy=error"], f("sock"))
        assert e.open(f.uri(), "w")[:2] == (9 * M, 4096)
        e.bad(e.ask("read", 512, 4096, f("r")), "in units of 4096")
        model(e, 9 * M, 4096, 20)
        e.close()


@test
def an_export_of_qemu_nbd_holds_what_was_written():
    with Folder() as f, Endpoint(f) as e:
        run("qemu-img", "create", "-q", "-f", "qcow2", f("q"), "9M")
        f.start(["qemu-nbd", "-t", "-f", "qcow2", "-k", f("sock"), f("q")], f("sock"))
        assert e.open(f.uri(), "w")[0] == 9 * M
        array = model(e, 9 * M, 64 * K)
        e.close()
        run("qemu-img", "convert", "-O", "raw", "nbd+unix:///?socket=" + f("sock"), f("raw"))
        assert f.read("raw") == array


@test
def a_name_is_looked_up_and_tls_is_spoken():
    with Folder() as f, Endpoint(f) as e:
        run("psktool", "-u", "alice", "-p", f("keys"))
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        content = pattern(5 * M)
        f.write("t", content)
        server = subprocess.Popen(["nbdkit", "-f", "-r", "-P", f("pid"), "-i", "127.0.0.1", "-p", str(port),
                                   "--tls=require", "--tls-psk=" + f("keys"), "file", f("t")])
        f.processes.append(server)
        while not os.path.exists(f("pid")):
            select.select([], [], [], 0.02)
        assert e.open("nbds://alice@localhost:%d/?tls-psk-file=%s" % (port, f("keys")))[0] == 5 * M
        tags = [e.ask("read", i * M, M, f("r%d" % i)) for i in range(5)]
        for tag in tags:
            e.good(tag)
        assert b"".join(f.read("r%d" % i) for i in range(5)) == content
        e.close()
        text = e.open("nbd://localhost:%d/" % port)
        assert "nbd://localhost:%d/" % port in text, text
        e.close()


@test
def many_requests_are_under_way_and_each_ends_once():
    with Folder() as f, Endpoint(f) as e:
        content = pattern(8 * M)
        f.nbdkit("file", f.write("t", content))
        e.open(f.uri())
        tags = [e.ask("read", i * 128 * K, 128 * K, f("r%d" % i)) for i in range(64)]
        for i, tag in enumerate(tags):
            e.good(tag)
            assert f.read("r%d" % i) == content[i * 128 * K:(i + 1) * 128 * K]
        e.close()


@test
def a_hole_is_zero_only_with_the_zero_flag():
    """Edge 16: qemu-nbd of a block device says HOLE of what reads as anything."""
    flags = {0: 0, 1: HOLE, 2: ZERO, 3: HOLE | ZERO}
    with Folder() as f, Endpoint(f) as e, \
            FakeNbd(f("sock"), bytes(M), {"base:allocation": [(256 * K, i) for i in range(4)]}):
        assert e.open(f.uri()) == (M, 1, True)
        assert e.extents(0, M) == [(256 * K, flags[i]) for i in range(4)]
        e.close()


@test
def a_peer_without_extents_has_data_everywhere():
    with Folder() as f, Endpoint(f) as e, FakeNbd(f("sock"), bytes(M)):
        assert e.open(f.uri()) == (M, 1, False)
        assert e.extents(0, M) == [(M, 0)]
        e.close()


@test
def what_cannot_be_written_or_flushed_is_no_target():
    with Folder() as f, Endpoint(f) as e:
        server = f.nbdkit("memory", "1M")
        assert "for reading only" in e.open(f.uri(), "w")
        e.close()
        f.stop(server)
        # The eval plugin flushes only if it is told how.
        f.start(["nbdkit", "-f", "-U", f("sock"), "eval", "get_size=echo 1M", "pread=exit 1",
                 "pwrite=exit 1", "can_write=exit 0"], f("sock"))
        assert "cannot flush" in e.open(f.uri(), "w")
        e.close()


@test
def a_full_peer_fails_that_request_and_no_other():
    with Folder() as f, Endpoint(f) as e:
        f.start(["nbdkit", "-f", "-U", f("sock"), "--filter=error", "memory", "1M", "error-pwrite=ENOSPC",
                 "error-pwrite-rate=1"], f("sock"))
        e.open(f.uri(), "w")
        f.write("w", b"x" * 4096)
        e.bad(e.ask("write", 8192, 4096, f("w")), f.uri(), "writing 4096 bytes at 8192", "No space left")
        assert e.read(0, 4096) == bytes(4096)
        e.close()


@test
def a_read_that_failed_says_where():
    with Folder() as f, Endpoint(f) as e, \
            FakeNbd(f("sock"), bytes(M), after_reads=1, then=io_error):
        e.open(f.uri())
        e.read(0, 4096)
        e.bad(e.ask("read", 8192, 4096, f("r")), f.uri(), "reading 4096 bytes at 8192", "Input/output")
        e.close()


@test
def a_peer_that_dies_fails_all_that_waits_and_all_that_comes():
    with Folder() as f, Endpoint(f) as e, \
            FakeNbd(f("sock"), bytes(M), after_reads=1, then=hang_up):
        e.open(f.uri())
        tags = [e.ask("read", i * 4096, 4096, f("r%d" % i)) for i in range(9)]
        ends = [e.answer(tag) for tag in tags]
        assert any(rc < 0 for rc, _ in ends) and all(f.uri() in text for rc, text in ends if rc), ends
        e.bad(e.ask("read", 0, 4096, f("r")), f.uri())
        e.close()


@test
def a_peer_that_says_nothing_is_given_up_in_the_middle():
    """It answers once and then never; nothing else can end the requests."""
    with Folder() as f, Endpoint(f) as e, \
            FakeNbd(f("sock"), bytes(M), after_reads=1, then=stall) as peer:
        e.open(f.uri(), stall_ms=500)
        e.read(0, 4096)
        tags = [e.ask("read", i * 4096, 4096, f("r%d" % i)) for i in range(3)]
        for tag in tags:
            e.bad(tag, f.uri(), "has not answered", "500 ms")
        assert peer.stalled.is_set()
        e.close()


@test
def a_peer_that_drips_is_given_up_too():
    """Bytes that never become an answer are no answer: each comes well within the deadline."""
    ended = threading.Event()

    def drip(_server, connection, cookie):
        for byte in struct.pack(">IHHQI", 0x668e33ef, 1, 1, cookie, 8 + 4096) + bytes(4096):
            try:
                connection.sendall(bytes([byte]))
            except OSError:
                break
            if ended.wait(0.05):
                break
        return True

    with Folder() as f, Endpoint(f) as e, FakeNbd(f("sock"), bytes(M), after_reads=0, then=drip):
        e.open(f.uri(), stall_ms=500)
        e.bad(e.ask("read", 0, 4096, f("r")), "has not answered")
        ended.set()
        e.close()


@test
def a_peer_that_never_shakes_hands_is_given_up():
    with Folder() as f, Endpoint(f) as e, FakeNbd(f("sock"), bytes(M), greet=0):
        text = e.open(f.uri(), connect_ms=300)
        assert f.uri() in text and "did not shake hands within 300 ms" in text, text
        e.bad(e.ask("read", 0, 4096, f("r")), "did not shake hands")
        e.close()


@test
def closing_ends_what_waits_as_canceled():
    with Folder() as f, Endpoint(f) as e, \
            FakeNbd(f("sock"), bytes(M), after_reads=0, then=stall) as peer:
        e.open(f.uri(), stall_ms=FOREVER_MS)
        tags = [e.ask("read", i * 4096, 4096, f("r%d" % i)) for i in range(3)]
        assert peer.stalled.wait(DEADLINE_S)
        e.close()
        for tag in tags:
            e.bad(tag, "closed before it was done")


@test
def closing_ends_an_opening():
    with Folder() as f, Endpoint(f) as e, FakeNbd(f("sock"), bytes(M), greet=0):
        e.opening(f.uri(), connect_ms=FOREVER_MS)
        e.send("close")
        text = e.opened()
        assert "closed before it was done" in text, text
        assert e.line() == "closed"
        e.opening(f.write("t", b"x"))
        e.send("close")
        e.opened()                      # whatever was first
        assert e.line() == "closed"


# --- liars ------------------------------------------------------------------------------------

@test
def a_read_that_is_answered_in_part_has_failed():
    """The last chunk comes too early: what the buffer held before is no data (N4)."""
    def short(_server, connection, cookie):
        FakeNbd.chunk(connection, 1, 1, cookie, struct.pack(">Q", 0) + b"x" * 512)
        return False

    with Folder() as f, Endpoint(f) as e, FakeNbd(f("sock"), bytes(M), after_reads=0, then=short):
        e.open(f.uri())
        e.bad(e.ask("read", 0, 4096, f("r")), "reading 4096 bytes at 0")
        assert not os.path.exists(f("r"))
        e.close()


@test
def a_status_that_makes_no_sense_has_failed():
    lies = {
        "no runs": lambda off, length: [],
        "a run of nothing": lambda off, length: [(0, 3), (length, 0)],
    }
    for what, lie in lies.items():
        with Folder() as f, Endpoint(f) as e, \
                FakeNbd(f("sock"), bytes(M), {"base:allocation": [(M, 0)]},
                        status=lambda _c, off, length, lie=lie: lie(off, length)):
            e.open(f.uri())
            rc = e.bad(e.ask("extents", 0, M, "9"), f.uri())
            assert rc < 0, what
            e.close()


@test
def runs_beyond_what_was_asked_are_cut():
    with Folder() as f, Endpoint(f) as e, \
            FakeNbd(f("sock"), bytes(M), {"base:allocation": [(M, 0)]},
                    status=lambda _c, off, length: [(1 << 31, 3)]):
        e.open(f.uri())
        assert e.extents(0, 4096) == [(4096, HOLE | ZERO)]
        e.close()


@test
def a_size_that_no_disk_has_is_refused():
    with Folder() as f, Endpoint(f) as e, FakeNbd(f("sock"), bytes(M), size=1 << 63):
        assert f.uri() in e.open(f.uri())
        e.close()


main()
