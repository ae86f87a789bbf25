# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of the command line share: running varve, servers to pull from, TAP.

Each test_*.py runs alone: `./test_x.py [WORD...]`, only tests whose name holds a WORD.
VARVE names the program (default: client/varve below $abs_top_builddir or the current folder).
"""
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

VARVE = os.environ.get("VARVE") or os.path.join(os.environ.get("abs_top_builddir", os.getcwd()),
                                                "client/varve")
DEADLINE_S = 120
M = 1 << 20
K = 1 << 10

tests = []


class Skip(Exception):
    """The test cannot run here; the text says why.  tests/SKIPS lists what may be skipped."""


def test(function):
    tests.append(function)
    return function


def main():
    words = sys.argv[1:]
    chosen = [t for t in tests if not words or any(w in t.__name__ for w in words)]
    failed = 0
    print("1..%d" % len(chosen), flush=True)
    for number, function in enumerate(chosen, 1):
        signal.alarm(DEADLINE_S)
        try:
            function()
            print("ok %d - %s" % (number, function.__name__), flush=True)
        except Skip as why:
            print("ok %d - %s # SKIP %s" % (number, function.__name__, why), flush=True)
        except Exception:  # pylint: disable=broad-except
            failed += 1
            print("not ok %d - %s" % (number, function.__name__))
            print("# promise: " + " ".join((function.__doc__ or "").split()))
            for line in traceback.format_exc().splitlines():
                print("# " + line)
            sys.stdout.flush()
        finally:
            signal.alarm(0)
    sys.exit(1 if failed else 0)


def on_alarm(signum, frame):
    raise TimeoutError("the test took longer than %d s" % DEADLINE_S)


signal.signal(signal.SIGALRM, on_alarm)


class Folder:
    """A temporary folder; ends the processes that were started in it, then removes it."""

    def __init__(self):
        self.path = tempfile.mkdtemp(prefix="c.")
        self.processes = []

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for process in self.processes:
            stop(process)
        shutil.rmtree(self.path)

    def __call__(self, name):
        return os.path.join(self.path, name)

    def start(self, command, sock):
        """Starts a server in the foreground and waits until its socket takes connections."""
        log = open(self("log"), "wb")
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        self.processes.append(process)
        deadline = time.monotonic() + 30
        while not can_connect(sock):
            assert process.poll() is None, "%s: %s" % (command, self.read("log"))
            assert time.monotonic() < deadline, "%s does not listen" % command[0]
            time.sleep(0.02)
        return process

    def stop(self, process, sock="sock"):
        stop(process)
        if os.path.exists(self(sock)):
            os.unlink(self(sock))

    def read(self, name):
        with open(self(name), "rb") as f:
            return f.read()

    def write(self, name, content):
        with open(self(name), "wb") as f:
            f.write(content)
        return self(name)

    def uri(self, export="", sock="sock"):
        return "nbd+unix:///%s?socket=%s" % (export, self(sock))

    def nbdkit(self, *args, sock="sock"):
        return self.start(["nbdkit", "-f", "-r", "-U", self(sock), *args], self(sock))

    def qemu_nbd(self, image, bitmap=None, sock="sock"):
        options = ["-B", bitmap] if bitmap else []
        return self.start(["qemu-nbd", "-r", "-t", "-f", "qcow2", "-k", self(sock), *options,
                           self(image)], self(sock))

    def qemu_storage_daemon(self, image, bitmap=None, sock="sock"):
        """The same, as qemu-storage-daemon does it: several clients, and export ""."""
        bitmaps = ",bitmaps.0=" + bitmap if bitmap else ""
        return self.start(["qemu-storage-daemon", "--blockdev", "qcow2,node-name=q,read-only=on,"
                           "file.driver=file,file.filename=" + self(image), "--nbd-server",
                           "addr.type=unix,addr.path=" + self(sock), "--export",
                           "nbd,id=e,node-name=q,name=,writable=off" + bitmaps], self(sock))


def stop(process):
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def can_connect(path):
    with socket.socket(socket.AF_UNIX) as s:
        try:
            s.connect(path)
            return True
        except OSError:
            return False


class Result:
    def __init__(self, command, done):
        self.command = command
        self.status = done.returncode
        self.out = done.stdout.decode()
        self.err = done.stderr.decode()

    def __str__(self):
        return "%s\nstatus %d\nstdout:\n%s\nstderr:\n%s" % (self.command, self.status, self.out,
                                                         self.err)


def run(*command, check=True):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=DEADLINE_S, check=False)
    result = Result(command, done)
    assert not check or result.status == 0, str(result)
    return result


def varve(*args, stdin=b"", env=None):
    """Runs varve; its status is the caller's business, but a failure says one line and why."""
    done = subprocess.run([VARVE, *args], input=stdin, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=DEADLINE_S, check=False,
                          env={**os.environ, **(env or {})})
    result = Result(("varve",) + args, done)
    assert result.status in (0, 1, 2), str(result)
    if result.status == 0:
        assert result.err == "", str(result)
    else:
        assert result.err.count("\n") == 1 and result.err.startswith("varve: "), str(result)
    return result


def good(*args, **kw):
    result = varve(*args, **kw)
    assert result.status == 0, str(result)
    return result.out


def refused(*args, says=(), **kw):
    """Status 1, nothing on stdout; the line on stderr holds each of `says`."""
    result = varve(*args, **kw)
    assert result.status == 1, str(result)
    for text in [says] if isinstance(says, str) else says:
        assert text in result.err, "'%s' is missing in %s" % (text, result)
    return result


def misused(*args, says=""):
    result = varve(*args)
    assert result.status == 2 and result.out == "" and says in result.err, str(result)
    return result


def same(a, b):
    with open(a, "rb") as f, open(b, "rb") as g:
        off = 0
        while True:
            x, y = f.read(M), g.read(M)
            if x != y:
                at = next((i for i, (p, q) in enumerate(zip(x, y)) if p != q), min(len(x), len(y)))
                raise AssertionError("%s and %s differ at byte %d" % (a, b, off + at))
            if not x:
                return True
            off += len(x)


def allocated(path):
    return os.stat(path).st_blocks * 512


def no_marker(d):
    """Nothing in the folder says that it is unfinished."""
    left = [f for f in os.listdir(d.path) if "partial" in f]
    assert not left, left
