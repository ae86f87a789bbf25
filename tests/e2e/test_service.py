#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What systemd/ promises, with systemd's own judges and its protocol: units that are right, the service
manager's watchdog, a daemon in its sandbox, and a daemon that may open no image."""
import contextlib
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile

import backups
import rawhttp
import smallfs
from harness import BUILD, M, PLUGIN, VARVED, Stack, run, wait_for
from tap import Skip, main, test

SYSTEM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../system")
SIZE = 4 * M
OLD, NEW = b"\x11" * SIZE, b"\x22" * SIZE
DAEMON, IMAGES = 65001, 65002  # as a user and as a group: varve, varve-disk


def unit(name):
    """A unit's text: as it was made, or as it is in the source."""
    made = os.path.join(BUILD, "system", name)
    with open(made if os.path.exists(made) else os.path.join(SYSTEM, name), encoding="utf-8") as f:
        return f.read()


def settings(name, key):
    return re.findall(r"^%s=(.*)$" % key, unit(name), re.MULTILINE)


# --- the units --------------------------------------------------------------------------------------


class Units:
    """The units in a folder of their own, with programs that are there."""

    def __init__(self, change=lambda name, text: text):
        self.dir = tempfile.mkdtemp(prefix="units.")
        for name in ("varved.service", "varved.socket", "varve@.service", "varve@.socket",
                     "varve-metrics.socket", "varve-web.socket"):
            text = re.sub(r"^ExecStart=\S*varved", "ExecStart=" + VARVED, unit(name), flags=re.MULTILINE)
            text = re.sub(r"^ExecStart=\S*nbdkit", "ExecStart=" + shutil.which("nbdkit"), text,
                          flags=re.MULTILINE)
            with open(os.path.join(self.dir, name), "w", encoding="utf-8") as f:
                f.write(change(name, text))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        shutil.rmtree(self.dir)

    def complaints(self):
        r = run(["systemd-analyze", "verify", "--man=no"] + [os.path.join(self.dir, n) for n in (
            "varved.service", "varved.socket", "varve@vda.service", "varve@vda.socket",
            "varve-metrics.socket", "varve-web.socket")],
                check=False, env={"SYSTEMD_UNIT_PATH": self.dir + ":"})
        return "".join(line for line in r.stderr.splitlines(True) if self.dir in line or "varve" in line)

    def exposure(self, name):
        r = run(["systemd-analyze", "security", "--offline=true", "--no-pager",
                 os.path.join(self.dir, name)], check=False)
        return float(re.search(r"exposure level for \S+ (\d+\.\d+)", r.stdout).group(1))


@test
def systemd_finds_nothing_wrong_with_the_units():
    with Units() as u:
        assert u.complaints() == "", u.complaints()
    with Units(lambda name, text: text.replace("KillMode", "KilMode")) as u:
        assert "KilMode" in u.complaints()


@test
def the_units_are_sandboxed():
    """By systemd's own count, from 10 (open) to 0."""
    with Units() as u:
        assert u.exposure("varved.service") <= 2.0
        assert u.exposure("varve@.service") <= 2.0
    with Units(lambda name, text: text.replace("SystemCallFilter=", "#")) as u:
        assert u.exposure("varved.service") > 2.0


@test
def the_runtime_directory_outlives_the_units():
    """Live maps are in it: tmpfiles.d makes it, once a boot, and no unit takes it away."""
    for name in ("varved.service", "varve@.service"):
        assert not settings(name, "RuntimeDirectory"), name
    with tempfile.TemporaryDirectory(prefix="root.") as root:
        for d in ("etc", "run"):
            os.mkdir(os.path.join(root, d))
        run(["systemd-sysusers", "--root=" + root, os.path.abspath(SYSTEM + "/sysusers.conf")])
        if os.geteuid() == 0:
            run(["systemd-tmpfiles", "--root=" + root, "--create",
                 os.path.abspath(SYSTEM + "/tmpfiles.conf")])
        with open(root + "/etc/group", encoding="utf-8") as f:
            groups = {line.split(":")[0]: line.strip().split(":") for line in f}
        with open(root + "/etc/passwd", encoding="utf-8") as f:
            user = next(line.split(":") for line in f if line.startswith("varve:"))
        assert user[3] == groups["varve"][2] != groups["varve-disk"][2]
        assert "varve" not in groups["varve-disk"][3]
        if os.geteuid() == 0:
            st = os.stat(root + "/run/varve")
            assert st.st_uid == int(user[2]) and stat.S_IMODE(st.st_mode) == 0o755
    assert settings("varved.service", "Group") == ["varve"]
    assert settings("varve@.service", "Group") == ["varve-disk"]
    assert settings("varved.service", "User") == settings("varve@.service", "User") == ["varve"]


# --- signs of life ----------------------------------------------------------------------------------


class Manager:
    """The socket of a service manager."""

    def __init__(self, stack):
        self.path = os.path.join(stack.short, "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(60)
        self.socket.bind(self.path)

    def start(self, stack, *env):
        cmd = ["env", "NOTIFY_SOCKET=" + self.path, *env, "setpriv", "--pdeathsig", "TERM", VARVED,
               "--state-dir", stack.state, "--runtime-dir", stack.runtime]
        stack.daemon = stack.spawn("varved", cmd)
        return stack.daemon

    def hears(self):
        return self.socket.recv(100).decode()

    def close(self):
        self.socket.close()
        os.unlink(self.path)


@test
def the_watchdog_hears_that_the_daemon_lives():
    """Again and again while the loop turns, until it ends; and not while the loop stands still."""
    with Stack() as s:
        manager = Manager(s)
        # env and setpriv become varved: the pid is that of what was started.
        daemon = manager.start(s, "WATCHDOG_USEC=200000")
        said = [manager.hears() for _ in range(4)]
        assert said.count("READY=1") == 1 and said.count("WATCHDOG=1") == 3, said
        daemon.send_signal(signal.SIGSTOP)  # what it said before is read first
        os.waitid(os.P_PID, daemon.pid, os.WSTOPPED | os.WNOWAIT)
        manager.socket.settimeout(1)  # five times what the manager would wait
        try:
            while True:
                manager.hears()
        except TimeoutError:
            pass
        manager.socket.settimeout(60)
        daemon.send_signal(signal.SIGCONT)
        assert manager.hears() == "WATCHDOG=1"
        daemon.terminate()
        while manager.hears() != "STOPPING=1":
            pass
        assert daemon.wait(60) == 0
        manager.close()


@test
def a_watchdog_that_waits_for_another_process_hears_nothing():
    """The variables of another process, and nonsense, are no watchdog."""
    for env in (["WATCHDOG_USEC=2000", "WATCHDOG_PID=1"], ["WATCHDOG_USEC=-1"], ["WATCHDOG_USEC=x"],
                ["WATCHDOG_USEC="], ["WATCHDOG_USEC=0"]):
        with Stack() as s:
            manager = Manager(s)
            daemon = manager.start(s, *env)
            assert manager.hears() == "READY=1"
            daemon.terminate()
            assert manager.hears() == "STOPPING=1", env
            assert daemon.wait(60) == 0
            manager.close()


# --- the journal ------------------------------------------------------------------------------------


def fields(entry):
    return dict(line.split("=", 1) for line in entry.decode().splitlines())


@test
def the_journal_is_told_which_disk_and_which_backup():
    """A daemon whose standard error systemd connected to the journal, and one whose variable is of another."""
    with Stack() as s, smallfs.tmpfs("/run", M):
        os.makedirs("/run/systemd/journal")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
            journal.bind("/run/systemd/journal/socket")
            journal.settimeout(60)
            s.serve("vda", s.image("vda.img", SIZE, OLD))
            for is_it in (True, False):
                stream = "$(stat -L -c %d:%i /dev/stderr)" if is_it else "1:1"
                s.daemon = s.spawn("varved", [
                    "sh", "-c", "JOURNAL_STREAM=%s exec \"$@\"" % stream, "sh", VARVED, "--state-dir", s.state,
                    "--runtime-dir", s.runtime])
                wait_for("varved sees the disk", lambda: os.path.exists(s.control) and s.disk_info("vda"), s.daemon)
                with s.qmp() as q:
                    backups.end(q, backups.begin(q, ["vda"], checkpoint="c%d" % is_it)[0])
                assert s.stop(s.daemon) == 0
                with open(s.daemon.log, encoding="utf-8") as f:
                    assert ("varved: Backup" in f.read()) != is_it
            entries = []
            journal.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    entries.append(fields(journal.recv(65536)))
        assert all(e["SYSLOG_IDENTIFIER"] == "varved" and e["PRIORITY"] == "6" for e in entries), entries
        live = [e for e in entries if e["MESSAGE"] == "Disk 'vda' is live"]
        assert len(live) == 1 and live[0]["VARVE_DISK"] == "vda", entries
        begun = [e for e in entries if e["MESSAGE"].startswith("Backup") and "begins" in e["MESSAGE"]]
        assert len(begun) == 1 and begun[0]["VARVE_CHECKPOINT"] == "c1" and begun[0]["VARVE_BACKUP"], entries
    assert settings("varve@.service", "LogExtraFields") == ["VARVE_DISK=%i"]


# --- the sandbox ------------------------------------------------------------------------------------


def system_calls(name):
    """The names that the unit's SystemCallFilter= lets through: groups are taken apart by systemd."""
    def members(group):
        out = run(["systemd-analyze", "syscall-filter", group]).stdout
        words = [w for line in out.splitlines()[1:] for w in line.split() if not line.strip().startswith("#")]
        return set().union(*(members(w) if w.startswith("@") else {w} for w in words))
    allowed = set()
    for value in settings(name, "SystemCallFilter"):
        names = set().union(*(members(g) for g in value.lstrip("~").split()))
        allowed = allowed - names if value.startswith("~") else allowed | names
    assert len(allowed) > 100, allowed
    return allowed


# Runs a program that is killed at the first system call that is not in the list.  execve is how it
# comes to life.
CONFINE = """
import ctypes, os, sys
allowed, argv = sys.argv[1].split(","), sys.argv[2:]
lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
lib.seccomp_init.restype = ctypes.c_void_p
KILL, ALLOW = 0x80000000, 0x7fff0000
ctx = ctypes.c_void_p(lib.seccomp_init(ctypes.c_uint32(KILL)))
for name in allowed:
    number = lib.seccomp_syscall_resolve_name(name.encode())
    if number != -1 and lib.seccomp_rule_add(ctx, ctypes.c_uint32(ALLOW), number, 0):
        sys.exit("cannot allow " + name)
if lib.seccomp_load(ctx):  # and no new privileges
    sys.exit("cannot load the filter")
os.execv(argv[0], argv)
"""


def confined(name, *without):
    allowed = system_calls(name) - set(without)
    return [sys.executable, "-c", CONFINE, ",".join(sorted(allowed))]


def needs_no_sanitizer():
    if os.environ.get("SANITIZER"):
        raise Skip("a sanitizer's system calls are others")


def life(s, image):
    """What daemon and plugin do in their lives: a backup, one of what changed, bitmaps, an end."""
    with s.qmp() as q:
        ident, _ = backups.begin(q, ["vda"], checkpoint="c")
        with s.disks["vda"].connect() as guest:
            guest.write(0, NEW[:M])
            guest.flush()
        assert backups.pull(s.nbd, "vda", connections=2) == OLD
        backups.end(q, ident)
        q.cmd("block-dirty-bitmap-add", node="vda", name="b")
        q.cmd("checkpoint-export", disk="vda", name="c", file=s.path("c.file"))
        ident, _ = backups.begin(q, [{"disk": "vda", "since": "c"}])
        assert backups.pull(s.nbd, "vda", connections=1) == NEW[:M] + OLD[M:]
        backups.end(q, ident)
    assert s.content(image) == NEW[:M] + OLD[M:]


@test
def daemon_and_plugin_live_within_their_system_calls():
    """Killed at the first one that the units do not allow: they do not come to that."""
    needs_no_sanitizer()
    with Stack() as s:
        image = s.image("vda.img", SIZE, OLD)
        nbdkit = s.nbdkit_command
        s.nbdkit_command = lambda *a, **kw: confined("varve@.service") + [shutil.which("nbdkit")] + nbdkit(
            *a, **kw)[1:]
        s.serve("vda", image)
        s.daemon = s.spawn("varved", confined("varved.service") + [
            VARVED, "--state-dir", s.state, "--runtime-dir", s.runtime, "--listen", "tcp:localhost:0",
            "--listen", "unix:" + s.nbd, "--metrics", "unix:%s/m" % s.socks, "--web", "tcp:localhost:0"])
        wait_for("varved sees the disk", lambda: os.path.exists(s.nbd) and s.disk_info("vda"), s.daemon)
        s.wait_disk("vda", "live")
        life(s, image)
        page = rawhttp.listener(s.daemon, "web page")
        for place, path in ((s.socks + "/m", "/metrics"), (page, "/"), (page, "/api/changes?disk=vda")):
            assert rawhttp.get(place, path)[0] == 200, path
        assert s.stop(s.daemon) == 0
        assert s.stop(s.disks["vda"].process) == 0


@test
def what_the_filter_leaves_out_is_found():
    """The test above can fail: without listen(2) the daemon dies of SIGSYS."""
    needs_no_sanitizer()
    with Stack() as s:
        p = s.spawn("varved", confined("varved.service", "listen") + [
            VARVED, "--state-dir", s.state, "--runtime-dir", s.runtime])
        s.killed.add(p.pid)
        assert p.wait(60) == -signal.SIGSYS, p.returncode
        if os.path.exists(s.nbd):
            os.unlink(s.nbd)


# --- users ------------------------------------------------------------------------------------------


def as_user(group, *command):
    return ["setpriv", "--reuid", str(DAEMON), "--regid", str(group), "--clear-groups",
            "--no-new-privs", "--bounding-set=-all", *command]


@test
def a_daemon_that_may_open_no_image_backs_up_live_disks():
    """The users of the units: one for both, the images' group for nbdkit alone.  The daemon can then
    neither open an image nor look into the process that has it open."""
    if os.geteuid() != 0:
        raise Skip("needs root, to play other users")
    if subprocess.run(as_user(DAEMON, "test", "-r", PLUGIN), check=False).returncode != 0:
        raise Skip("the build is where other users may not read")
    with Stack() as s:
        image = s.image("vda.img", SIZE, OLD)
        if not os.stat(os.path.dirname(s.dir)).st_mode & stat.S_IXOTH:
            os.chmod(os.path.dirname(s.dir), 0o711)  # the test driver's, for us alone
        os.chown(image, 0, IMAGES)
        os.chmod(image, 0o660)
        for d in (s.dir, s.short):
            os.chmod(d, 0o755)
        for d in (s.state, s.runtime, s.socks):
            os.chown(d, DAEMON, DAEMON)
        nbdkit = s.nbdkit_command
        s.nbdkit_command = lambda *a, **kw: as_user(IMAGES, *nbdkit(*a, **kw))
        s.serve("vda", image)
        s.daemon = s.spawn("varved", as_user(DAEMON, VARVED, "--state-dir", s.state,
                                             "--runtime-dir", s.runtime))
        wait_for("varved sees the disk", lambda: os.path.exists(s.control) and s.disk_info("vda"), s.daemon)
        s.wait_disk("vda", "live")
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"], checkpoint="c")
            with s.disks["vda"].connect() as guest:
                guest.write(0, NEW[:M])
            assert backups.pull(s.nbd, "vda", connections=1) == OLD
            backups.end(q, ident)
            assert s.disk_info("vda")["dirty-bytes"] == M
        server = s.disks["vda"].process.pid
        for path in (image, "/proc/%d/mem" % server, "/proc/%d/fd/0" % server):
            for mode in ("<", ">>"):
                r = subprocess.run(as_user(DAEMON, "sh", "-c", "exec 3%s%s" % (mode, path)),
                                   capture_output=True, check=False)
                assert r.returncode != 0 and b"ermission denied" in r.stderr, (path, mode, r)
        r = subprocess.run(as_user(IMAGES, "sh", "-c", "exec 3<" + image), check=False)
        assert r.returncode == 0, "nobody may open the image: the test proves nothing"


if __name__ == "__main__":
    main()
