#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The control socket of varved, without any disk: QMP as QEMU's users know it, bad input, slow and
hostile clients, two daemons, the end.  Every daemon that is started here is ended here, by its pid."""
import json
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

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from qmpclient import QMP, QMPError  # noqa: E402
from tap import main, test  # noqa: E402


def find_varved():
    for d in (os.environ.get("VARVE_BUILD"), os.environ.get("abs_top_builddir"),
              os.environ.get("top_builddir"), os.getcwd()):
        if d and os.path.exists(os.path.join(d, "server/varved")):
            return os.path.join(os.path.abspath(d), "server/varved")
    raise SystemExit("no varved found: set VARVE_BUILD to the build directory")


VARVED = find_varved()
WAIT = 30  # seconds; only a hang meets it
# Freed memory that the sanitizer keeps would count as the daemon's.
ASAN_OPTIONS = (os.environ.get("ASAN_OPTIONS", "") + ":quarantine_size_mb=8").lstrip(":")


class Daemon:
    def __init__(self, *options, root=None, ready=True, env=None):
        self.own_root = root is None
        self.root = root or tempfile.mkdtemp(prefix="vctl", dir="/dev/shm")
        self.state, self.run = self.root + "/state", self.root + "/run"
        for d in (self.state, self.run):
            os.makedirs(d, exist_ok=True)
        self.log = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen(
            [VARVED, "--state-dir", self.state, "--runtime-dir", self.run, *options],
            stderr=self.log, stdin=subprocess.DEVNULL,
            env=dict(os.environ, ASAN_OPTIONS=ASAN_OPTIONS, **(env or {})))
        if ready:
            self.wait_for(lambda: os.path.exists(self.control) and " ready" in self.messages())

    @property
    def control(self):
        return self.run + "/control.sock"

    def wait_for(self, what):
        end = time.monotonic() + WAIT
        while not what():
            assert self.process.poll() is None, "varved has ended: " + self.messages()
            assert time.monotonic() < end, "varved is not ready: " + self.messages()
            time.sleep(0.01)

    def messages(self):
        # pread: the daemon writes at the same file offset
        return os.pread(self.log.fileno(), 1 << 20, 0).decode()

    def connect(self, negotiate=True):
        return QMP(self.control, timeout=WAIT, negotiate=negotiate)

    def memory(self):
        """Resident bytes."""
        with open("/proc/%d/statm" % self.process.pid) as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        try:
            if self.process.poll() is None:
                self.process.terminate()
                self.process.wait(WAIT)
            if kind is None:
                assert self.process.returncode == 0, self.messages()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            if self.own_root:
                shutil.rmtree(self.root)


def refused(qmp, cls, pattern, command, **args):
    try:
        answer = qmp.cmd(command, **args)
    except QMPError as e:
        assert e.cls == cls, e
        assert re.search(pattern, e.desc), e.desc
        assert "\n" not in e.desc
        return
    raise AssertionError("%s %r was accepted: %r" % (command, args, answer))


def ask(qmp, text):
    qmp.send_raw(text.encode())
    return qmp.message()


def fails_to_start(daemon, pattern):
    with daemon as d:
        assert d.process.wait(WAIT) != 0
        lines = d.messages().splitlines()
        assert lines and re.search(pattern, lines[-1]), lines
        assert lines[-1].startswith("varved: ")
        d.process.returncode = 0  # as it should be


# --- the wire ------------------------------------------------------------------------------------


@test
def greeting_tells_the_version_and_negotiation_comes_first():
    with Daemon() as d:
        q = d.connect(negotiate=False)
        assert set(q.greeting["QMP"]["version"]["varve"]) == {"major", "minor", "micro"}
        assert q.greeting["QMP"]["capabilities"] == []
        refused(q, "CommandNotFound", "qmp_capabilities", "query-disks")
        refused(q, "CommandNotFound", "qmp_capabilities", "quit")
        q.cmd("qmp_capabilities")
        refused(q, "CommandNotFound", "already complete", "qmp_capabilities")
        assert q.cmd("query-disks") == []
        assert q.cmd("query-version") == q.greeting["QMP"]["version"]


@test
def every_listed_command_exists_and_no_other():
    with Daemon() as d, d.connect() as q:
        names = [c["name"] for c in q.cmd("query-commands")]
        assert {"backup-begin", "query-disks", "quit"} <= set(names)
        for name in names:
            if name not in ("quit", "qmp_capabilities"):
                refused(q, "GenericError", "Parameter 'nonsense' is unexpected", name, nonsense=1)
        refused(q, "CommandNotFound", "make-coffee", "make-coffee")


@test
def the_id_comes_back_whatever_it_is():
    with Daemon() as d, d.connect() as q:
        for ident in (7, "x", None, {"a": [1, 2]}, 1.5):
            m = ask(q, json.dumps({"execute": "query-disks", "id": ident}) + "\n")
            assert m == {"return": [], "id": ident}, m
        assert "id" not in ask(q, '{"execute":"query-disks"}')


@test
def pipelined_commands_are_answered_in_order():
    with Daemon() as d, d.connect() as q:
        commands = ["query-disks", "query-version", "nonsense", "query-backups", "query-commands"]
        n = 2000
        q.send_raw("".join(json.dumps({"execute": commands[i % 5], "id": i})
                           for i in range(n)).encode())
        for i in range(n):
            m = q.message()
            assert m["id"] == i, (i, m)
            assert ("error" in m) == (i % 5 == 2)


@test
def answers_come_after_the_client_has_closed_its_side():
    with Daemon() as d, d.connect() as q:
        q.send_raw(b'{"execute":"query-disks"}{"execute":"query-backups"}')
        q.sock.shutdown(socket.SHUT_WR)
        assert q.message() == {"return": []}
        assert q.message() == {"return": []}
        try:
            q.message()
            raise AssertionError("the connection stays open")
        except EOFError:
            pass


# --- bad input -----------------------------------------------------------------------------------


@test
def malformed_requests_get_one_line_each_and_nothing_happens():
    with Daemon() as d, d.connect() as q:
        for text in ('{"execute":', '{"execute" "x"}\n', "[1]\n", "7\n", '"quit"\n',
                     '{"execute":"query-disks"}}\n'):
            if text == '{"execute":':
                continue
            m = ask(q, text)
            while "error" not in m:
                m = q.message()
            assert m["error"]["class"] == "GenericError" and m["error"]["desc"], m
        for text, pattern in (
                ('{"arguments":{}}', "execute"),
                ('{"execute":7}', "string"),
                ('{"execute":"query-disks","arguments":[]}', "object"),
                ('{"execute":"query-disks","now":true}', "'now' is unexpected")):
            m = ask(q, text)
            assert re.search(pattern, m["error"]["desc"]), m
        assert q.cmd("query-disks") == []


@test
def arguments_are_checked_before_anything_is_done():
    with Daemon() as d, d.connect() as q:
        for pattern, command, args in (
                ("'name' is missing", "checkpoint-create", {"disks": ["vda"]}),
                ("'disks' is missing", "checkpoint-create", {"name": "c"}),
                ("'disks'.*array", "checkpoint-create", {"name": "c", "disks": "vda"}),
                ("'disks' must not be empty", "checkpoint-create", {"name": "c", "disks": []}),
                ("'disks'.*strings", "checkpoint-create", {"name": "c", "disks": [1]}),
                ("name", "checkpoint-create", {"name": "a/b", "disks": ["vda"]}),
                ("name", "checkpoint-create", {"name": "../b", "disks": ["vda"]}),
                ("name", "checkpoint-create", {"name": "x" * 65, "disks": ["vda"]}),
                ("'name'.*string", "checkpoint-create", {"name": 1, "disks": ["vda"]}),
                ("'freeze' is not available", "checkpoint-create",
                 {"name": "c", "disks": ["vda"], "freeze": True}),
                ("no checkpoint 'c'", "checkpoint-delete", {"name": "c"}),
                ("'ttl'", "backup-begin", {"ttl": -1, "disks": [{"disk": "vda"}]}),
                ("'ttl'.*integer", "backup-begin", {"ttl": "1", "disks": [{"disk": "vda"}]}),
                ("'disks'.*objects", "backup-begin", {"disks": ["vda"]}),
                ("'disk' is missing", "backup-begin", {"disks": [{}]}),
                ("'colour' is unexpected", "backup-begin",
                 {"disks": [{"disk": "vda", "colour": 1}]}),
                ("exclude each other", "backup-begin",
                 {"disks": [{"disk": "vda", "bitmap": "b", "since": "c"}]}),
                ("without a bitmap", "backup-begin",
                 {"disks": [{"disk": "vda", "bitmap-mode": "never"}]}),
                ("does not accept", "backup-begin",
                 {"disks": [{"disk": "vda", "bitmap-mode": "sometimes"}]}),
                ("'speed'", "backup-begin", {"speed": -1, "disks": [{"disk": "vda"}]}),
                ("'speed'", "backup-begin", {"speed": "1M", "disks": [{"disk": "vda"}]}),
                ("'adaptive'", "backup-begin", {"adaptive": 1, "disks": [{"disk": "vda"}]}),
                ("'release'.*boolean", "backup-begin",
                 {"release": "yes", "disks": [{"disk": "vda"}]}),
                ("'preserve' does not accept", "backup-begin",
                 {"preserve": "some", "disks": [{"disk": "vda"}]}),
                ("export", "backup-begin", {"disks": [{"disk": "vda", "export": "a/b"}]}),
                ("'id' is missing", "backup-end", {}),
                ("no backup 'b'", "backup-end", {"id": "b"}),
                ("'success'.*boolean", "backup-end", {"id": "b", "success": 1})):
            try:
                answer = q.execute(command, args)
            except QMPError as e:
                assert e.cls == "GenericError", (e, args)
                assert re.search(pattern, e.desc), (e.desc, pattern)
                continue
            raise AssertionError("%s %r was accepted: %r" % (command, args, answer))
        for command, args in (("query-disks", {"disk": "no"}), ("query-checkpoints", {"disk": "no"}),
                              ("checkpoint-create", {"name": "c", "disks": ["no"]}),
                              ("checkpoint-delete", {"name": "c", "disks": ["no"]}),
                              ("backup-begin", {"disks": [{"disk": "no"}]})):
            refused(q, "DeviceNotFound", "no disk 'no'", command, **args)
        assert q.cmd("query-checkpoints") == [] and q.cmd("query-backups") == []


def send_garbage(d, chunk, total):
    """Until the server closes; what it sent."""
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(WAIT)
    s.connect(d.control)
    sent, answer, peak = 0, b"", 0
    try:
        while sent < total:
            s.sendall(chunk)
            sent += len(chunk)
            peak = max(peak, d.memory())
    except (BrokenPipeError, ConnectionResetError):
        pass
    try:
        while True:
            data = s.recv(1 << 16)
            if not data:
                break
            answer += data
    except ConnectionResetError:
        pass
    s.close()
    return answer, peak


@test
def a_hundred_megabytes_of_garbage_cost_nothing():
    """The connection is closed, memory stays bounded, and others are served."""
    with Daemon() as d, d.connect() as q:
        before = d.memory()
        for chunk in (b"\0" * 65536, b"{" * 65536, os.urandom(65536), b"x\n" * 32768,
                      b'{"a":"' + b"a" * 65536, b"[[1]," * 13000, b'"\n' * 32768):
            answer, peak = send_garbage(d, chunk, 100 << 20)
            assert peak - before < 64 << 20, (chunk[:8], before, peak)
            assert len(answer) < 1 << 20
            assert q.cmd("query-disks") == []


@test
def a_client_that_never_reads_delays_nobody():
    with Daemon() as d, d.connect() as q:
        deaf = d.connect()
        deaf.sock.setblocking(False)
        before, sent = d.memory(), 0
        request = json.dumps({"execute": "query-commands"}).encode() * 100
        end = time.monotonic() + 2
        while time.monotonic() < end:
            try:
                sent += deaf.sock.send(request)
            except BlockingIOError:
                q.cmd("query-disks")
        assert d.memory() - before < 64 << 20
        assert q.cmd("query-backups") == []


@test
def the_sixty_fifth_connection_is_told_so():
    with Daemon() as d:
        many = [d.connect() for _ in range(64)]
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(WAIT)
        s.connect(d.control)
        m = json.loads(s.makefile().readline())
        assert "connections" in m["error"]["desc"], m
        assert s.recv(1) == b""
        many.pop().close()
        end = time.monotonic() + WAIT
        while True:
            try:
                d.connect().close()
                break
            except AssertionError:
                assert time.monotonic() < end
        for q in many:
            assert q.cmd("query-disks") == []
            q.close()


# --- start and end -------------------------------------------------------------------------------


@test
def the_socket_is_ours_alone():
    with Daemon() as d:
        assert stat.S_IMODE(os.stat(d.control).st_mode) == 0o600


@test
def a_second_daemon_names_the_first():
    with Daemon() as d:
        fails_to_start(Daemon(root=d.root, ready=False), "process %d" % d.process.pid)
        other = tempfile.mkdtemp(prefix="vctl", dir="/dev/shm")
        try:
            os.mkdir(other + "/run")
            os.symlink(d.state, other + "/state")
            fails_to_start(Daemon(root=other, ready=False), "another varved")
        finally:
            shutil.rmtree(other)
        with d.connect() as q:
            assert q.cmd("query-disks") == []


@test
def signals_and_quit_end_it_soon_whatever_clients_do():
    for how in (signal.SIGTERM, signal.SIGINT, "quit"):
        with Daemon() as d:
            idle, half = d.connect(), d.connect()
            half.send_raw(b'{"execute":')
            deaf = d.connect()
            deaf.sock.setblocking(False)
            try:
                while True:
                    deaf.sock.send(json.dumps({"execute": "query-commands"}).encode() * 100)
            except BlockingIOError:
                pass
            start = time.monotonic()
            if how == "quit":
                assert idle.cmd("quit") == {}
            else:
                d.process.send_signal(how)
            assert d.process.wait(WAIT) == 0, d.messages()
            assert time.monotonic() - start < 10, "it took long"
            assert sorted(os.listdir(d.run)) == ["varved.lock"], os.listdir(d.run)


@test
def a_killed_daemon_leaves_nothing_in_the_way():
    with Daemon() as d:
        d.process.kill()
        d.process.wait()
        with Daemon(root=d.root) as again, again.connect() as q:
            assert q.cmd("query-disks") == []
        d.process.returncode = 0


@test
def bad_directories_and_options_are_named():
    root = tempfile.mkdtemp(prefix="vctl", dir="/dev/shm")
    try:
        for options, pattern in (
                (["--state-dir", root + "/no/such"], "state directory"),
                (["--runtime-dir", root + "/no/such"], "runtime directory"),
                (["--state-dir", "/dev/null"], "state directory"),
                (["--tls", "require"], "tls"),
                (["--access", root + "/no/such"], "no/such"),
                (["--threads", "0"], "threads"),
                (["--idle-timeout", "soon"], "idle-timeout"),
                (["--max-request", "1T"], "max-request"),
                (["--nonsense"], "nonsense"),
                (["--listen"], "listen"),
                (["word"], "word"),
                (["--listen", "pigeon:7"], "pigeon")):
            fails_to_start(Daemon(*options, root=root, ready=False), pattern)
    finally:
        shutil.rmtree(root)


@test
def a_state_directory_of_another_format_is_left_alone():
    root = tempfile.mkdtemp(prefix="vctl", dir="/dev/shm")
    try:
        with Daemon(root=root):
            pass
        path = root + "/state/catalogue-1"
        with open(path, "r+b") as f:
            head = f.readline()
            f.seek(0)
            f.write(re.sub(rb"^varve-slot \d ", b"varve-slot 9 ", head))
        before = open(path, "rb").read()
        fails_to_start(Daemon(root=root, ready=False), "format 9")
        assert open(path, "rb").read() == before
        for n in (0, 1):
            with open("%s/state/catalogue-%d" % (root, n), "r+b") as f:
                f.seek(0)
                f.write(b"garbage")
        fails_to_start(Daemon(root=root, ready=False), "damaged")
    finally:
        shutil.rmtree(root)


@test
def a_damaged_disk_is_shown_and_cannot_be_used():
    with Daemon() as d, d.connect() as q:
        os.mkdir(d.state + "/vdx")
        with open(d.state + "/vdx/disk.json", "w") as f:
            f.write("{")
        disks = q.cmd("query-disks")
        assert [x["name"] for x in disks] == ["vdx"] and disks[0]["state"] == "inconsistent"
        assert disks[0]["reason"]
        refused(q, "GenericError", "vdx", "checkpoint-create", name="c", disks=["vdx"])
        shutil.rmtree(d.state + "/vdx")
        assert q.cmd("query-disks") == []


@test
def the_service_manager_is_told():
    root = tempfile.mkdtemp(prefix="vctl", dir="/dev/shm")
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.settimeout(WAIT)
    s.bind(root + "/notify")
    try:
        with Daemon(root=root, env={"NOTIFY_SOCKET": root + "/notify"}) as d:
            assert s.recv(100) == b"READY=1"
            d.process.terminate()
            assert s.recv(100) == b"STOPPING=1"
            d.process.wait(WAIT)  # a second SIGTERM at its very end would be its end
    finally:
        s.close()
        shutil.rmtree(root)


@test
def listeners_are_told_with_their_real_addresses():
    with Daemon("--listen", "tcp:127.0.0.1:0", "--listen", "unix:/dev/shm/vctl-%d.sock"
                % os.getpid()) as d, d.connect() as q:
        listeners = q.cmd("query-nbd-server")["listeners"]
        assert re.fullmatch(r"tcp:127\.0\.0\.1:[1-9][0-9]*", listeners[0]), listeners
        assert listeners[1].startswith("unix:")
        port = int(listeners[0].rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as s:
            assert s.recv(8) == b"NBDMAGIC"


if __name__ == "__main__":
    main()
