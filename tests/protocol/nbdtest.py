# SPDX-License-Identifier: BSD-3-Clause
"""What every file of these tests shares: the server under test, the known exports, TAP.

A file collects functions with @test and ends with main().  Tests get the server as their argument.
One fixture process serves a file's tests; it is looked at after each test (alive, serving a good
client), and ended in the end, which is a test of its own: it must exit 0, so that a sanitizer's
last word counts.

  NBD_FIXTURE  the fixture program (default: tests/nbd-fixture in the build directory)
  NBD_TARGET   URI of any NBD server: nbd://host:port/name, nbd+unix:///name?socket=PATH.
               Then only tests that know nothing of the content are run (@test(generic=True)).
  NBD_TEST_DEADLINE  seconds that anything may take (default 20)
  NBD_TEST_TLS  if set, fixtures offer TLS, and every client that says hello() changes to it.  Then
                tests that are about its absence are not run (@test(plain=True)).
"""
import atexit
import ctypes
import errno
import functools
import os
import re
import resource
import selectors
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.parse

from nbdwire import *  # noqa: F401,F403  (tests take both from here)
from nbdwire import Conn, DEADLINE, Silence, Violation, must, rep_name  # noqa: F401

K, M, G, T = 1 << 10, 1 << 20, 1 << 30, 1 << 40
PATTERN_KEY = 0x5A5A5A5A5A5A5A5A
UNIT = 64 * K
PIDFD_GETFD = 438  # the system call's number, everywhere


class Skip(Exception):
    pass


# --- what the fixture's exports hold -------------------------------------------------------------

def parse_size(s):
    m = re.fullmatch(r"(\d+)([KMGT]?)", s)
    return int(m.group(1)) * {"": 1, "K": K, "M": M, "G": G, "T": T}[m.group(2)]


@functools.lru_cache(maxsize=512)
def _pattern_block(i):
    words = [w ^ PATTERN_KEY for w in range(i * 256 * K, (i + 1) * 256 * K, 8)]
    return struct.pack(">%dQ" % len(words), *words)


def pattern(off, length):
    first, last = off // (256 * K), -(-(off + length) // (256 * K))
    start = off - first * 256 * K
    return b"".join(map(_pattern_block, range(first, last)))[start:start + length]


def merge(extents):
    """Neighbours of equal flags become one."""
    out = []
    for n, f in extents:
        if out and out[-1][1] == f:
            out[-1] = (out[-1][0] + n, f)
        else:
            out.append((n, f))
    return out


class Export:
    """The model of one fixture export: NAME:SIZE[:opts]."""

    def __init__(self, spec):
        self.spec = spec
        self.name, size, *opts = spec.split(":", 2)
        self.size = parse_size(size)
        self.opts = {}
        for o in re.split("[,:]", opts[0]) if opts else []:
            k, _, v = o.partition("=")
            self.opts[k] = v
        self.listed = "unlisted" not in self.opts
        self.data_end = (0 if "zero" in self.opts else
                         self.size // 2 if "half" in self.opts else self.size)
        self.dirty_context = None
        for k in ("dirty", "allfine"):
            if k in self.opts:
                self.dirty_context = "qemu:dirty-bitmap:" + self.opts[k]

    def content(self, off, length):
        if "striped" in self.opts:
            out, step = [], 256 * K
            while length:
                n = min(length, step - off % step)
                out.append(bytes(n) if off // step % 2 else pattern(off, n))
                off, length = off + n, length - n
            return b"".join(out)
        n = max(0, min(length, self.data_end - off))
        return pattern(off, n) + bytes(length - n)

    def _walk(self, off, length, flag_at, unit):
        out, end = [], off + length
        while off < end:
            nxt = min(end, (off // unit + 1) * unit)
            out.append((nxt - off, flag_at(off)))
            off = nxt
        return merge(out)

    def dirty(self, off, length):
        unit = 4 * K if "allfine" in self.opts else UNIT
        return self._walk(off, length, lambda o: (o // unit) & 1, unit)

    def allocation(self, off, length):
        n = max(0, min(length, self.data_end - off))
        return [e for e in ((n, 0), (length - n, 3)) if e[0]]


STANDARD = [
    "vda:64M:half,dirty=backup-vda",
    "pat:4M:pattern",
    "odd:1000003:pattern,dirty=d",
    "zero:64M:zero",
    "big:3G:half,dirty=backup-big",
    "fine:8M:pattern,allfine=fine",
    "bad:1M:pattern,errors=65536+4096",
    "hidden:1M:pattern,unlisted",
    "huge:8T:zero",
]


# --- the server under test -----------------------------------------------------------------------

_tmp = None


def tmpdir():
    global _tmp
    if _tmp is None:
        base = os.environ.get("TMPDIR", "/tmp")
        _tmp = tempfile.mkdtemp(prefix="varve-nbd-", dir=base if len(base) < 40 else "/tmp")
        atexit.register(shutil.rmtree, _tmp, ignore_errors=True)
    return _tmp


def fixture_path():
    p = os.environ.get("NBD_FIXTURE")
    if p:
        return p
    here = os.path.dirname(os.path.abspath(__file__))
    tops = [os.environ.get("top_builddir"), os.environ.get("builddir"), ".",
            os.path.join(here, "..", "..")]
    for top in tops:
        for sub in ("tests/nbd-fixture", "nbd-fixture", "tests/server/nbd-fixture"):
            p = os.path.join(top, sub) if top else ""
            if p and os.access(p, os.X_OK) and os.path.isfile(p):
                return os.path.abspath(p)
    return None


def fixture_command():
    p = fixture_path()
    if p is None:
        raise Skip("no fixture: build tests/nbd-fixture or set NBD_FIXTURE")
    return [sys.executable, p] if p.endswith(".py") else [p]


_help = None


def fixture_has(option):
    """Whether the fixture's --help names the option."""
    global _help
    if _help is None:
        env = dict(os.environ)
        env["ASAN_OPTIONS"] = env.get("ASAN_OPTIONS", "") + ":detect_leaks=0"
        r = subprocess.run(fixture_command() + ["--help"], stdout=subprocess.PIPE, env=env,
                           stderr=subprocess.STDOUT, timeout=DEADLINE)
        must(r.returncode == 0, "--help ended with %s", r.returncode)
        _help = r.stdout.decode()
    return re.search(re.escape(option) + r"\b", _help) is not None


def needs(*options):
    for o in options:
        if not fixture_has(o):
            raise Skip("the fixture has no %s" % o)


def _child_setup(nofile):
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # dies with its parent
    if nofile:
        resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))


def parse_where(where):
    kind, _, rest = where.partition(":")
    if kind == "unix":
        return ("unix", rest)
    host, _, port = rest.rpartition(":")
    return ("tcp", host.strip("[]"), int(port))


OVER_TLS = bool(os.environ.get("NBD_TEST_TLS"))


def tls_of(args):
    """(the fixture's arguments for TLS, the clients' ssl.SSLContext)"""
    if not OVER_TLS or "--tls" in args:
        return [], None
    import tlslib
    return ["--tls", "on", "--tls-certificates", tlslib.ca().dir], tlslib.context()


_live = []
_count = 0


class Server:
    """Something that speaks NBD: a fixture of ours, or the target of NBD_TARGET."""
    fixture = False
    tls = None  # what its clients use

    def connect(self, tcp=False, **kw):
        return Conn(self.tcp if tcp else self.where, tls=self.tls, **kw)

    def hello(self, tcp=False, **kw):
        return self.connect(tcp, **kw).hello()

    def open(self, name=None, contexts=None, structured=True, infos=(), tcp=False, extended=False,
             **kw):
        """A connection in the transmission phase."""
        name = self.name if name is None else name
        c = self.hello(tcp, **kw)
        if extended:
            c.negotiate_extended()
        elif structured:
            c.negotiate_structured()
        if contexts is not None:
            got, t = c.set_meta(name, contexts)
            must(t == REP_ACK, "SET_META_CONTEXT got %s", rep_name(t))
            must(sorted(got.values()) == sorted(contexts), "asked contexts %s, got %s", contexts,
                 sorted(got.values()))
        c.go(name, infos)
        return c

    def check_serves(self):
        """A good client is served."""
        with self.open() as c:
            n = min(4096, c.size)
            if n:
                d = c.read(c.size - n, n)
                must(not d.errors, "a good client's read failed")
            c.disc()


class Target(Server):
    def __init__(self, uri):
        u = urllib.parse.urlparse(uri)
        self.name = urllib.parse.unquote(u.path.lstrip("/"))
        if u.scheme == "nbd+unix":
            self.where = ("unix", urllib.parse.parse_qs(u.query)["socket"][0])
        elif u.scheme == "nbd":
            self.where = ("tcp", u.hostname, u.port or 10809)
        else:
            raise SystemExit("NBD_TARGET: only nbd:// and nbd+unix://")
        self.tcp = self.where


def _fixture_env():
    """Tests judge the fixture's memory: what AddressSanitizer keeps of what was freed (256 MiB if not
    said) must not be more than that of some clients."""
    given = os.environ.get("ASAN_OPTIONS")
    return dict(os.environ, ASAN_OPTIONS=":".join(filter(None, [given, "quarantine_size_mb=16"])))


class Fixture(Server):
    fixture = True

    def __init__(self, exports=None, args=(), listen=None, name=None, dir=None, nofile=None):
        global _count
        _count += 1
        self.exports = {e.name: e for e in map(Export, STANDARD if exports is None else exports)}
        self.name = name or next(iter(self.exports), "")
        self.dir = dir or tempfile.mkdtemp(prefix="%d-" % _count, dir=tmpdir())
        self.sock = os.path.join(self.dir, "s")
        self.errlog = os.path.join(self.dir, "stderr%d" % _count)
        listen = listen or ["unix:" + self.sock, "tcp:127.0.0.1:0"]
        tls_args, self.tls = tls_of(args)
        cmd = fixture_command()
        for w in listen:
            cmd += ["--listen", w]
        for e in self.exports.values():
            cmd += ["--export", e.spec]
        with open(self.errlog, "wb") as log:
            self.proc = subprocess.Popen(cmd + list(args) + tls_args, stdout=subprocess.PIPE, stderr=log,
                                         stdin=subprocess.DEVNULL, env=_fixture_env(),
                                         preexec_fn=lambda: _child_setup(nofile))
        _live.append(self)
        self.out = b""
        self.ready = []
        try:
            for _ in listen:
                line = self._line()
                must(line.startswith("ready "), "the fixture said %r", line)
                self.ready.append(line[6:].strip())
        except BaseException:
            self.kill()
            raise
        wheres = [parse_where(w) for w in self.ready]
        self.where = wheres[0]
        self.tcp = next((w for w in wheres if w[0] == "tcp"), None)

    def __enter__(self):
        return self

    def __exit__(self, etype, e, tb):
        if etype is None:
            self.stop()
        else:
            self.kill()

    def _line(self):
        end = time.monotonic() + DEADLINE
        sel = selectors.DefaultSelector()
        sel.register(self.proc.stdout, selectors.EVENT_READ)
        with sel:
            while b"\n" not in self.out:
                left = end - time.monotonic()
                if left <= 0:
                    raise Silence("the fixture was not ready in %g s" % DEADLINE)
                if not sel.select(left):
                    continue
                d = os.read(self.proc.stdout.fileno(), 4096)
                if not d:
                    raise AssertionError("the fixture ended: %s" % self.last_words())
                self.out += d
        line, _, self.out = self.out.partition(b"\n")
        return line.decode()

    def last_words(self, n=1500):
        with open(self.errlog, "rb") as f:
            return f.read()[-n:].decode(errors="replace")

    @property
    def alive(self):
        return self.proc.poll() is None

    def rss(self):
        """Resident bytes now."""
        with open("/proc/%d/status" % self.proc.pid) as f:
            return int(re.search(r"VmRSS:\s+(\d+) kB", f.read()).group(1)) * K

    def open_fds(self):
        """But /dev/null: libuv keeps one in reserve for each loop that ever had a socket."""
        folder = "/proc/%d/fd" % self.proc.pid
        n = 0
        for fd in os.listdir(folder):
            try:
                n += os.readlink(os.path.join(folder, fd)) != os.devnull
            except FileNotFoundError:
                pass
        return n

    def tcp_options(self, option):
        """Values of the option of each TCP connection that it has."""
        values, pidfd = [], os.pidfd_open(self.proc.pid)
        for fd in map(int, os.listdir("/proc/%d/fd" % self.proc.pid)):
            copy = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, pidfd, fd, 0)
            if copy < 0:
                if ctypes.get_errno() == errno.EPERM:
                    raise Skip("pidfd_getfd is forbidden here")
                continue  # it was closed meanwhile
            if not stat.S_ISSOCK(os.fstat(copy).st_mode):
                os.close(copy)
                continue
            with socket.socket(fileno=copy) as sock:
                accepts = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if sock.family == socket.AF_INET and not accepts:
                    values.append(sock.getsockopt(socket.IPPROTO_TCP, option))
        os.close(pidfd)
        return values

    def cpu(self):
        """Seconds of processor time used."""
        with open("/proc/%d/stat" % self.proc.pid) as f:
            v = f.read().rpartition(")")[2].split()
        return (int(v[11]) + int(v[12])) / os.sysconf("SC_CLK_TCK")

    def terminate(self):
        self.proc.send_signal(signal.SIGTERM)

    def wait_exit(self, deadline=None):
        try:
            return self.proc.wait(DEADLINE if deadline is None else deadline)
        except subprocess.TimeoutExpired:
            raise Silence("the fixture did not end after SIGTERM") from None
        finally:
            if self.proc.poll() is not None and self in _live:
                _live.remove(self)
                self.proc.stdout.close()

    def stop(self):
        if self.alive:
            self.terminate()
        code = self.wait_exit()
        must(code == 0, "the fixture ended with status %s: %s", code, self.last_words())

    def kill(self):
        if self.proc.poll() is None:
            self.proc.kill()
        self.proc.wait()
        if self in _live:
            _live.remove(self)
            self.proc.stdout.close()


def _kill_all():
    for s in list(_live):
        s.kill()


atexit.register(_kill_all)
for _sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(_sig, lambda n, f: sys.exit(128 + n))


def eventually(cond, what):
    """Waits for a state that only polling can see."""
    end = time.monotonic() + DEADLINE
    while not cond():
        if time.monotonic() > end:
            raise Silence("in %g s never: %s" % (DEADLINE, what))
        time.sleep(0.01)


# --- tests and TAP -------------------------------------------------------------------------------

_tests = []


def test(f=None, generic=False, house=False, plain=False, todo=None):
    """generic: holds for any server, and is run against NBD_TARGET too.  house: more than the
    protocol demands; a promise of ours.  plain: not of TLS.  todo: not kept yet, and why; its failure
    is no failure."""
    def mark(fn):
        fn.generic, fn.house, fn.plain, fn.todo = generic, house, plain, todo
        assert fn.__doc__, "%s: name the section" % fn.__name__
        assert fn.__name__ not in [t.__name__ for t in _tests], "two tests %s" % fn.__name__
        _tests.append(fn)
        return fn
    return mark(f) if f else mark


def one_line(e):
    text = str(e) or type(e).__name__
    if not isinstance(e, AssertionError):
        text = "%s: %s" % (type(e).__name__, text)
    return re.sub(r"\s+", " ", text)[:600].replace("#", "")


def where_raised(e):
    here = os.path.basename(sys.argv[0])
    lines = [f.lineno for f in traceback.extract_tb(e.__traceback__)
             if os.path.basename(f.filename) == here]
    return " (%s:%d)" % (here, lines[-1]) if lines else ""


def main():
    only = sys.argv[1:]
    target = os.environ.get("NBD_TARGET")
    server = Target(target) if target else None
    n = failed = 0

    def say(ok, name, why=""):
        nonlocal n, failed
        n += 1
        failed += not ok and not why.startswith(" # TODO ")
        print("%s %d - %s%s" % ("ok" if ok else "not ok", n, name, why), flush=True)

    chosen = [t for t in _tests if not only or any(o in t.__name__ for o in only)]
    chosen = [t for t in chosen if not (OVER_TLS and t.plain)]
    slow = []
    for t in chosen:
        if target and not t.generic:
            say(True, t.__name__, " # SKIP needs the fixture")
            continue
        began = time.monotonic()
        try:
            if server is None:
                server = Fixture()
            t(server)
            if server.fixture:
                must(server.alive, "the server died: %s", server.last_words())
            server.check_serves()
            say(True, t.__name__, " # TODO %s" % t.todo if t.todo else "")
        except Skip as e:
            say(True, t.__name__, " # SKIP %s" % e)
        except Exception as e:  # whatever went wrong is this test's failure
            why = one_line(e) + where_raised(e)
            say(False, t.__name__, " # %s%s" % ("TODO %s: " % t.todo if t.todo else "", why))
            if os.environ.get("NBD_TEST_TRACE"):
                traceback.print_exc()
            if server is not None and server.fixture:
                if server.proc.poll() is not None:
                    for line in server.last_words(6000).splitlines():
                        print("# " + line)
                server.kill()  # the next test gets a fresh one
                server = None
        took = time.monotonic() - began
        if took > 2:
            slow.append("%s %.1f s" % (t.__name__, took))
    if server is not None and server.fixture:
        name = "server_ends_cleanly_after_" + os.path.basename(sys.argv[0])[:-3]
        try:
            server.stop()
            say(True, name)
        except Exception as e:
            say(False, name, " # " + one_line(e))
            server.kill()
    for s in slow:
        print("# slow: " + s)
    print("1..%d" % n, flush=True)
    sys.exit(1 if failed else 0)
