# SPDX-License-Identifier: BSD-3-Clause
"""The whole stack for a test: nbdkit processes with the plugin, varved, clients, and the clean-up.

A Stack owns a state directory on a real disk, a runtime directory on tmpfs, and every process it
starts.  When it closes, all of them are ended by pid, and what they should have removed is checked:
a process, a socket or a lock that stays behind fails the test.

Environment: top_builddir / abs_top_builddir (automake), VARVE_BUILD, TMPDIR.
"""
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time

import nbdclient
from qmpclient import QMP
from tap import Skip, diag

HERE = os.path.dirname(os.path.abspath(__file__))
WAIT = float(os.environ.get("VARVE_WAIT", "60"))  # generous: only a hang meets it
K, M, G = 1024, 1024 * 1024, 1024 * 1024 * 1024


def find_build():
    for d in (os.environ.get("VARVE_BUILD"), os.environ.get("abs_top_builddir"),
              os.environ.get("top_builddir"), os.getcwd(), os.path.join(HERE, "..", "..")):
        if d and os.path.exists(os.path.join(d, "plugin/.libs/nbdkit-varve-plugin.so")):
            return os.path.abspath(d)
    raise SystemExit("no build found: set VARVE_BUILD to the build directory")


def find_program(name, folder):
    inside = os.path.join(BUILD, folder, name)
    return inside if os.path.exists(inside) else os.path.join(BUILD, name)


BUILD = find_build()
PLUGIN = os.path.join(BUILD, "plugin/.libs/nbdkit-varve-plugin.so")
VARVED = find_program("varved", "server")
VARVE = find_program("varve", "client")


def sanitizer_preload():
    """A sanitized plugin in a plain nbdkit needs the sanitizer's library loaded first.  In make
    check tests/harness/nbdkit does that; here it is for tests that are run by hand."""
    if os.environ.get("VARVE_PRELOAD"):
        return ""
    out = subprocess.run(["ldd", PLUGIN], capture_output=True, text=True).stdout
    return " ".join(m.group(1) for m in re.finditer(r"=> (\S*lib[at]san\S*)", out))


PRELOAD = sanitizer_preload()


def wait_for(what, condition, process=None, seconds=WAIT):
    """Waits until condition() is true (its value is returned); a deadline, never a race."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if process is not None and process.poll() is not None:
            raise RuntimeError("%s: process ended with %s" % (what, process.returncode))
        if time.monotonic() > end:
            raise TimeoutError("%s: did not happen in %d s" % (what, seconds))
        time.sleep(0.01)


def can_connect(path):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    s.settimeout(5)
    try:
        s.connect(path)
        return True
    except OSError:
        return False
    finally:
        s.close()


def answers_nbd(path):
    """As can_connect, but leaves as a client should, so that the server has nothing to say."""
    try:
        with nbdclient.NBD(path, 5) as c:
            c.client_flags().option(nbdclient.OPT_ABORT)
        return True
    except (OSError, EOFError):
        return False


def run(cmd, check=True, timeout=300, env=None):
    """Runs a command to its end; on a failure that is not expected says what it printed."""
    r = subprocess.run([str(c) for c in cmd], capture_output=True, text=True, timeout=timeout,
                       stdin=subprocess.DEVNULL, env=dict(os.environ, **(env or {})))
    if check and r.returncode != 0:
        raise RuntimeError("%s: exit status %d\n%s%s" % (cmd, r.returncode, r.stdout, r.stderr))
    return r


def processes_naming(text):
    """Pids of all processes whose command line holds the text."""
    out = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/cmdline" % pid, "rb") as f:
                if text.encode() in f.read() and int(pid) != os.getpid():
                    out.append(int(pid))
        except OSError:
            pass
    return out


# What a server writes by its own clock: heartbeats, cooled regions, flushed bits of the live epoch.
BY_CLOCK = ("image-witness", "intent.log", "beat", "control")


def newest_epoch(names):
    """Of the epoch files among names, that of the live epoch."""
    found = [(int(m.group(1)), n) for n in names for m in [re.fullmatch(r"epoch-\d+-(\d+)\.map", n)] if m]
    return max(found)[1] if found else None


def tree(root):
    """Every path below root: type, size, and content of small files that no server's clock changes;
    for "nothing changed"."""
    out = {}
    for d, dirs, files in os.walk(root):
        by_clock = BY_CLOCK + (newest_epoch(files),)
        for name in dirs + files:
            p = os.path.join(d, name)
            st = os.lstat(p)
            key = [stat.S_IFMT(st.st_mode), st.st_mode & 0o7777]
            if stat.S_ISREG(st.st_mode):
                key.append(st.st_size)
                if st.st_size <= 4 * M and name not in by_clock:
                    with open(p, "rb") as f:
                        key.append(hash(f.read()))
            out[os.path.relpath(p, root)] = key
    return out


class Disk:
    """One image and the nbdkit process that serves it."""

    def __init__(self, stack, name, image):
        self.stack, self.name, self.image = stack, name, image
        self.sock = os.path.join(stack.socks, name + ".sock")
        self.process = None

    def connect(self, timeout=WAIT, contexts=()):
        return nbdclient.connect(self.sock, "", contexts, timeout)

    @property
    def uri(self):
        return "nbd+unix:///?socket=" + self.sock


class Stack:
    def __init__(self):
        base = os.environ.get("VARVE_TEST_DIR") or os.environ.get("TMPDIR") or BUILD
        shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.dir = tempfile.mkdtemp(prefix="varve-e2e-", dir=base)
        self.short = tempfile.mkdtemp(prefix="vv-", dir=shm)
        self.state = os.path.join(self.dir, "state")
        self.runtime = os.path.join(self.short, "run")
        self.socks = os.path.join(self.short, "socks")
        self.logs = os.path.join(self.dir, "logs")
        for d in (self.state, self.runtime, self.socks, self.logs):
            os.mkdir(d)
        self.control = os.path.join(self.runtime, "control.sock")
        self.nbd = os.path.join(self.runtime, "nbd.sock")
        self.disks = {}
        self.daemon = None
        self.started = []        # every process, whatever became of it
        self.killed = set()      # pids that got SIGKILL: nothing is expected of them
        self.fresh_logs = 0

    # -- files ---------------------------------------------------------------------------------

    def path(self, name):
        return os.path.join(self.dir, name)

    def image(self, name, size, content=None):
        """A raw image: sparse, or holding content."""
        p = self.path(name)
        with open(p, "wb") as f:
            if content is not None:
                f.write(content)
            f.truncate(size)
        return p

    def content(self, image):
        with open(image, "rb") as f:
            return f.read()

    # -- processes -----------------------------------------------------------------------------

    def spawn(self, name, cmd, env=None, **popen):
        self.fresh_logs += 1
        log = os.path.join(self.logs, "%02d-%s.log" % (self.fresh_logs, name))
        with open(log, "wb") as out:
            p = subprocess.Popen([str(c) for c in cmd], stdin=subprocess.DEVNULL, stdout=out,
                                 stderr=out, env=dict(os.environ, **(env or {})), **popen)
        p.log = log
        p.what = name
        self.started.append(p)
        return p

    def nbdkit_command(self, disk, *extra, **params):
        cmd = ["nbdkit", "-f", "-U", disk.sock, "--exit-with-parent"]
        cmd += [a for a in extra if a.startswith("-")]
        cmd += [PLUGIN, "file=" + disk.image, "name=" + disk.name]
        params.setdefault("state_dir", self.state)
        params.setdefault("runtime_dir", self.runtime)
        cmd += ["%s=%s" % (k.replace("_", "-"), v) for k, v in params.items() if v is not None]
        return cmd

    def nbdkit_env(self):
        return {"LD_PRELOAD": PRELOAD} if PRELOAD else {}

    def serve(self, name, image, *extra, **params):
        """Starts nbdkit with the plugin on an image; ready when it returns."""
        disk = self.disks.get(name) or Disk(self, name, image)
        disk.image = image
        if os.path.exists(disk.sock):
            os.unlink(disk.sock)
        disk.process = self.spawn("nbdkit-" + name, self.nbdkit_command(disk, *extra, **params),
                                  self.nbdkit_env())
        self.disks[name] = disk
        wait_for("nbdkit of %s listens" % name, lambda: answers_nbd(disk.sock), disk.process)
        return disk

    def start_daemon(self, *extra):
        """Starts varved; when it returns, both sockets answer."""
        cmd = ["setpriv", "--pdeathsig", "TERM", VARVED, "--state-dir", self.state,
               "--runtime-dir", self.runtime] + list(extra)
        self.daemon = self.spawn("varved", cmd)
        wait_for("varved's control socket", lambda: can_connect(self.control), self.daemon)
        wait_for("varved's NBD socket", lambda: can_connect(self.nbd), self.daemon)
        return self.daemon

    def start(self, name="vda", size=64 * M, content=None, **params):
        """The usual: a disk, nbdkit, varved that sees the disk live."""
        disk = self.serve(name, self.image(name + ".img", size, content), **params)
        if self.daemon is None:
            self.start_daemon()
        self.wait_disk(name, "live")
        return disk

    def kill(self, process):
        """kill -9, as the kernel's or an operator's."""
        self.killed.add(process.pid)
        process.kill()
        process.wait(WAIT)

    def stop(self, process):
        """SIGTERM, and the end of it within the deadline; returns the exit status."""
        process.terminate()
        return process.wait(WAIT)

    # -- the daemon ----------------------------------------------------------------------------

    def qmp(self):
        return QMP(self.control, WAIT)

    def command(self, name, /, **args):
        with self.qmp() as q:
            return q.cmd(name, **args)

    def disk_info(self, name):
        for d in self.command("query-disks"):
            if d["name"] == name:
                return d
        return None

    def wait_disk(self, name, state):
        def there():
            d = self.disk_info(name)
            return d is not None and d["state"] == state
        wait_for("disk %s is %s" % (name, state), there, self.daemon)

    def uri(self, export):
        return "nbd+unix:///%s?socket=%s" % (export.replace("+", "%2B").replace("@", "%40"),
                                             self.nbd)

    def connect(self, export, contexts=(), timeout=WAIT):
        return nbdclient.connect(self.nbd, export, contexts, timeout)

    def varve(self, *args, check=True):
        return run([VARVE, "--control", self.control, *args], check=check)

    # -- the end -------------------------------------------------------------------------------

    def close(self, show=False):
        """Ends everything and returns what should not be there.  Nothing interrupts it, each wait
        in it has a deadline."""
        signal.alarm(0)
        came = []
        before = {s: signal.signal(s, lambda signum, frame: came.append(signum))
                  for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
        try:
            return self._close(show)
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            if came:
                sys.exit(128 + came[0])

    def _close(self, show):
        wrong = []
        order = [p for p in self.started if p.poll() is None]
        for p in reversed(order):  # the daemon, too, may go before or after nbdkit
            p.terminate()
        for p in order:
            try:
                p.wait(WAIT)
            except subprocess.TimeoutExpired:
                wrong.append("%s (pid %d) did not end on SIGTERM" % (p.what, p.pid))
                p.kill()
                p.wait()
        for p in self.started:
            if p.pid not in self.killed and p.returncode not in (0, -signal.SIGTERM):
                wrong.append("%s (pid %d) ended with %s" % (p.what, p.pid, p.returncode))
            with open(p.log, errors="replace") as f:
                text = f.read()
            if re.search(r"Sanitizer|runtime error:|ASSERT|assertion", text, re.IGNORECASE):
                wrong.append("%s (pid %d) complains: see its log" % (p.what, p.pid))
        wrong += self.leftovers()
        if wrong or show:
            self.show_logs()
        shutil.rmtree(self.dir, ignore_errors=True)
        shutil.rmtree(self.short, ignore_errors=True)
        return wrong

    def leftovers(self):
        """Processes, sockets and temporary files that nobody took away."""
        wrong = ["process %d is left" % p for p in
                 processes_naming(self.dir) + processes_naming(self.short)]
        unclean = {os.path.join(self.runtime, d.name, "link.sock") for d in self.disks.values()
                   if d.process is not None and d.process.pid in self.killed}
        for root in (self.runtime, self.dir):  # nbdkit leaves the socket of -U, by its manual
            for d, _, files in os.walk(root):
                for name in files:
                    p = os.path.join(d, name)
                    if stat.S_ISSOCK(os.lstat(p).st_mode) and p not in unclean:
                        wrong.append("socket %s is left" % p)
                    if re.search(r"(\.tmp|\.new|~)$", name):
                        wrong.append("temporary file %s is left" % p)
        return wrong

    def show_logs(self):
        for name in sorted(os.listdir(self.logs)):
            with open(os.path.join(self.logs, name), errors="replace") as f:
                lines = f.read().splitlines()
            for line in lines[-40:]:
                diag("%s: %s" % (name, line))

    def __enter__(self):
        return self

    def __exit__(self, kind, value, tb):
        wrong = self.close(show=kind is not None and kind is not Skip)
        if wrong and kind is None:
            raise AssertionError("left behind or wrong at the end:\n  " + "\n  ".join(wrong))
        if wrong:
            diag("at the end: " + "; ".join(wrong))
        return False
