#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""An upgrade, as a package manager does it: files are replaced under what runs, the daemon is started anew, the
disks' servers when their operator likes.  Guests go on, and so does the chain of backups."""
import os
import re
import shutil
import socket
import subprocess
import sys
import threading

import backups
import nbdclient
from harness import BUILD, K, M, PLUGIN, VARVED, Stack, run, wait_for
from tap import Skip, main, rng, test

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")
SIZE, WINDOW, BLOCK = 32 * M, 8 * M, 64 * K


def unit_file(name):
    made = os.path.join(BUILD, "system", name)
    with open(made if os.path.exists(made) else os.path.join(TOP, "system", name), encoding="utf-8") as f:
        return f.read()


class Guest(threading.Thread):
    """Writes without end, to a part of the disk of its own between two backups.  A connection that breaks is made anew, and what was not answered is written
    again, as hypervisors do."""

    def __init__(self, disk, content):
        super().__init__(daemon=True)
        self.disk, self.content, self.random = disk, bytearray(content), rng("guest")
        self.turn = threading.Lock()  # held for each write: who has it sees the disk at rest
        self.done = self.reconnects = self.window = 0
        self.ends, self.error = False, None

    def write(self, off, data):
        while True:
            try:
                self.connection.write(off, data)
                return
            except (OSError, EOFError):  # an error that the server answers is none of these
                self.connection.close()
                self.connection = self.disk.connect()
                self.reconnects += 1

    def run(self):
        try:
            self.connection = self.disk.connect()
            while not self.ends:
                data = os.urandom(self.random.randrange(1, BLOCK))
                with self.turn:
                    off = self.window + self.random.randrange(WINDOW - BLOCK)
                    self.write(off, data)
                    self.content[off:off + len(data)] = data
                self.done += 1
            self.connection.close()
        except BaseException as e:  # told by alive()
            self.error = e

    def alive(self):
        if self.error:
            raise self.error
        return True

    def writes_on(self):
        """Another twenty requests have been answered."""
        goal = self.done + 20
        wait_for("the guest writes", lambda: self.alive() and self.done >= goal)

    def end(self):
        self.ends = True
        self.join(60)
        assert not self.is_alive() and self.alive()


class Installed:
    """A program's or a plugin's file, as a package installs it."""

    def __init__(self, s, source):
        self.source = source
        self.path = os.path.join(s.path("installed"), os.path.basename(source))
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        shutil.copy2(source, self.path)

    def upgrade(self):
        """dpkg's way: a new file gets the name, the old one lives as long as it is in use."""
        shutil.copy2(self.source, self.path + ".dpkg-new")
        os.rename(self.path + ".dpkg-new", self.path)

    def used_by(self, process):
        """"new", "old" or None: which of the files the process has mapped."""
        with open("/proc/%d/maps" % process.pid, encoding="utf-8") as f:
            lines = [line.rstrip() for line in f if self.path in line]
        inode = str(os.stat(self.path).st_ino)
        if not lines:
            return None
        return "new" if all(line.split()[4] == inode for line in lines) else "old"


# Has a listening socket in the place where the service manager's are, and becomes nbdkit.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Unit:
    """varve@vda: its socket outlives its servers."""

    def __init__(self, s, plugin, image):
        self.s, self.plugin = s, plugin
        self.disk = s.disks["vda"] = type("Socket", (), {
            "name": "vda", "image": image, "sock": os.path.join(s.socks, "vda.sock"), "process": None})()
        self.disk.connect = lambda: nbdclient.connect(self.disk.sock, "", (), 60)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.disk.sock)
        self.listener.listen(16)
        self.start()

    def start(self):
        command = ["nbdkit", "-f", "--exit-with-parent", self.plugin.path, "file=" + self.disk.image, "name=vda",
                   "state-dir=" + self.s.state, "runtime-dir=" + self.s.runtime, "granularity=64K"]
        self.disk.process = self.s.spawn(
            "nbdkit", [sys.executable, "-c", ACTIVATE, str(self.listener.fileno()), *command],
            self.s.nbdkit_env(), pass_fds=[self.listener.fileno()])
        wait_for("nbdkit has the plugin", lambda: self.plugin.used_by(self.disk.process), self.disk.process)

    def restart(self):
        """As systemd does it, by RestartKillSignal=: a guest's request that SIGTERM meets is answered with an
        error."""
        assert "\nRestartKillSignal=SIGKILL\n" in unit_file("varve@.service")
        self.s.kill(self.disk.process)
        self.start()

    def close(self):
        self.s.stop(self.disk.process)
        self.listener.close()
        os.unlink(self.disk.sock)


def start_daemon(s, program):
    s.daemon = s.spawn("varved", ["setpriv", "--pdeathsig", "TERM", program.path, "--state-dir", s.state,
                                  "--runtime-dir", s.runtime])
    wait_for("varved answers", lambda: os.path.exists(s.control) and s.disk_info("vda"), s.daemon)
    s.wait_disk("vda", "live")


def begin(s, guest, **args):
    """A backup, and the disk as it was when it began: the guest is held for that moment."""
    with s.qmp() as q, guest.turn:
        ident, answer = backups.begin(q, [{"disk": "vda", **args.pop("of", {})}], **args)
        guest.window += WINDOW
        return ident, answer["vda"], bytes(guest.content)


def changed(s, answer, window):
    """The extents of an incremental backup: what the guest wrote since its base, and no block more."""
    ranges = backups.dirty(s.nbd, "vda", answer["context"])
    assert 0 < sum(n for _, n in ranges) == answer["dirty-bytes"], (ranges, answer)
    assert all(window <= off and off + n <= window + WINDOW for off, n in ranges), (window, ranges)
    return ranges


def upgrade_the_daemon(s, guest, varved):
    """The connections of guests are none of its business."""
    before = guest.reconnects
    varved.upgrade()
    assert varved.used_by(s.daemon) == "old"
    s.stop(s.daemon)
    guest.writes_on()
    start_daemon(s, varved)
    assert varved.used_by(s.daemon) == "new"
    guest.writes_on()
    assert guest.reconnects == before


def upgrade_the_plugin(s, guest, unit, daemon_too):
    """The old one serves on under its deleted name until its unit is started anew, with which the guest
    reconnects: to a socket that never went away."""
    before = guest.reconnects
    unit.plugin.upgrade()
    guest.writes_on()
    if daemon_too:
        upgrade_the_daemon(s, guest, daemon_too)
    assert unit.plugin.used_by(unit.disk.process) == "old" and guest.reconnects == before
    unit.restart()
    assert unit.plugin.used_by(unit.disk.process) == "new"
    guest.writes_on()
    assert guest.reconnects == before + 1
    s.wait_disk("vda", "live")


@test
def the_chain_goes_on_over_an_upgrade_under_a_guest_that_writes_with_a_backup_open():
    content = os.urandom(SIZE)
    with Stack() as s:
        varved, plugin = Installed(s, VARVED), Installed(s, PLUGIN)
        unit = Unit(s, plugin, s.image("vda.img", SIZE, content))
        start_daemon(s, varved)
        guest = Guest(unit.disk, content)
        guest.start()
        guest.writes_on()

        ident, _, then = begin(s, guest, checkpoint="first")
        half = backups.pull(s.nbd, "vda")[:SIZE // 2]
        upgrade_the_plugin(s, guest, unit, varved)
        full = backups.pull(s.nbd, "vda")
        assert backups.first_difference(full, then) is None and full[:SIZE // 2] == half
        s.command("backup-end", id=ident)

        ident, answer, then = begin(s, guest, of={"since": "first"}, checkpoint="second")
        guest.writes_on()
        upgrade_the_daemon(s, guest, varved)
        upgrade_the_plugin(s, guest, unit, None)
        second = backups.apply(full, backups.pull(s.nbd, "vda"), changed(s, answer, WINDOW))
        assert backups.first_difference(second, then) is None
        s.command("backup-end", id=ident)

        guest.end()
        ident, answer, then = begin(s, guest, of={"since": "second"})
        third = backups.apply(second, backups.pull(s.nbd, "vda"), changed(s, answer, 2 * WINDOW))
        assert backups.first_difference(third, then) is None
        s.command("backup-end", id=ident)
        s.stop(s.daemon)
        unit.close()
        assert backups.first_difference(s.content(unit.disk.image), then) is None


# --- what packages do -------------------------------------------------------------------------------


class Scripts:
    """Runs maintainers' scripts where the programs that they call only write down how they were called."""

    TOOLS = ("deb-systemd-invoke", "deb-systemd-helper", "systemctl", "systemd-tmpfiles", "systemd-sysusers", "getent",
             "groupadd", "useradd")

    def __init__(self, s):
        self.bin, self.log, self.system = s.path("bin"), s.path("calls"), s.path("system")
        os.mkdir(self.bin)
        os.mkdir(self.system)
        for name in self.TOOLS:
            path = os.path.join(self.bin, name)
            with open(path, "w", encoding="utf-8") as f:
                f.write('#!/bin/sh\necho "${0##*/} $*" >>%s\n' % self.log)
            os.chmod(path, 0o755)

    def calls(self, script, *args):
        """Those of one script; a system that systemd has booted."""
        open(self.log, "w", encoding="utf-8").close()
        run(["sh", "-ec", script.replace("/run/systemd/system", self.system), "script", *args],
            env={"PATH": self.bin + ":" + os.environ["PATH"], "DPKG_ROOT": ""})
        with open(self.log, encoding="utf-8") as f:
            return f.read().splitlines()


def assert_disks_are_left_alone(calls, restart):
    assert calls.count(restart) == 1, calls
    touched = [c for c in calls if re.search(r"\b(re)?(stop|start|kill|disable)\b|restart", c) and c != restart]
    assert touched == [], touched


@test
def the_debian_packages_restart_the_daemon_and_never_a_disk_or_a_socket():
    if not shutil.which("dh_installsystemd"):
        raise Skip("debhelper is not installed")
    with Stack() as s:
        tree = s.path("tree")
        os.mkdir(tree)
        run(["cp", "-r", "--no-preserve=mode", os.path.join(TOP, "debian"), tree])
        units = os.path.join(tree, "debian/tmp/usr/lib/systemd/system")
        os.makedirs(units)
        for folder in (os.path.join(TOP, "system"), os.path.join(BUILD, "system")):
            for name in os.listdir(folder):
                if re.search(r"\.(service|socket)$", name):
                    shutil.copy(os.path.join(folder, name), units)
        r = subprocess.run(["make", "-f", "debian/rules", "override_dh_installsystemd"], cwd=tree, capture_output=True,
                           text=True, check=False, env={k: v for k, v in os.environ.items()
                                                        if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")})
        assert r.returncode == 0, r.stderr
        scripts, calls = Scripts(s), []
        packages = re.findall("^Package: (.*)$", open(os.path.join(tree, "debian/control"), encoding="utf-8").read(),
                              re.MULTILINE)

        def script(name, *args):
            for package in packages:
                for path in (package + "." + name, package + "." + name + ".debhelper",
                             ".debhelper/generated/%s/%s.service" % (package, name)):
                    path = os.path.join(tree, "debian", path)
                    if os.path.exists(path):
                        with open(path, encoding="utf-8") as f:
                            calls.extend(scripts.calls(f.read(), *args))
        # In dpkg's order: the old package's prerm and the new one's preinst, then the files, then the others.
        for name, args in (("prerm", ("upgrade", "0.2")), ("preinst", ("upgrade", "0.1", "0.2")),
                           ("postrm", ("upgrade", "0.2")), ("postinst", ("configure", "0.1"))):
            script(name, *args)
        assert_disks_are_left_alone(calls, "deb-systemd-invoke restart varved.service")
        calls.clear()
        script("prerm", "remove")  # sockets first: they would start the daemon again
        assert calls == ["deb-systemd-invoke stop varved.socket varve-metrics.socket varve-web.socket",
                         "deb-systemd-invoke stop varved.service"], calls


@test
def the_rpms_restart_the_daemon_and_never_a_disk_or_a_socket():
    with Stack() as s, open(os.path.join(TOP, "system/varve.spec.in"), encoding="utf-8") as f:
        sections = re.split(r"^(?=%\w)", f.read(), flags=re.MULTILINE)
        scripts, calls = Scripts(s), []
        # In rpm's order; the number is how many versions there are afterwards.
        for name, left in (("pre", "2"), ("post", "2"), ("preun", "1"), ("postun", "1")):
            for section in sections:
                head, _, body = section.partition("\n")
                if head.split()[0] == "%" + name:
                    calls += scripts.calls(body, left)
        assert_disks_are_left_alone(calls, "systemctl try-restart varved.service")


@test
def needrestart_leaves_disks_to_their_operator():
    """Beside its own rules, as they stand in its configuration."""
    said = run(["perl", "-e", """
        our %nrconf = (override_rc => {qr(^dbus) => 0});
        open(my $f, "<", $ARGV[0]) or die; local $/; eval <$f>; die $@ if $@;
        for my $unit ("varve\\@vda.service", "varved.service", "dbus.service") {
            print "$unit ", (grep { $unit =~ /$_/ and !$nrconf{override_rc}{$_} } keys %{$nrconf{override_rc}}), "\n"
        }""", os.path.join(TOP, "system/needrestart.conf")]).stdout.splitlines()
    left = [line.split()[0] for line in said if len(line.split()) > 1]
    assert left == ["varve@vda.service", "dbus.service"], said


@test
def no_unit_takes_a_disk_with_it_when_the_daemon_ends():
    for name, other in (("varve@.service", "varved"), ("varve@.socket", "varved"), ("varved.service", "varve@"),
                        ("varved.socket", "varve@")):
        lines = [line for line in unit_file(name).splitlines() if other in line]
        assert not [line for line in lines if not line.startswith(("#", "After=", "Before="))], (name, lines)


if __name__ == "__main__":
    main()
