#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The freeze hook: whatever fails, hangs or dies, what was frozen is thawed.

Each hook is a script that writes a line for each run into a journal, and waits at gates that are
FIFOs: a gate that nobody opens is a hook that hangs."""
import json
import os
import re
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from harness import K, M, Stack, processes_naming, wait_for  # noqa: E402
from qmpclient import QMPError  # noqa: E402
from tap import main, test  # noqa: E402

SIZE, BLOCK = 16 * M, 64 * K
GRAIN = {"granularity": "64K"}


class Hooked(Stack):
    """A stack whose daemon has a hook.  freeze, thaw: what the shell does in that run."""

    def __init__(self, freeze="", thaw="", timeout="60s"):
        super().__init__()
        self.journal = self.path("journal")
        self.gate = self.path("gate")
        self.hook = self.path("hook")
        self.record = os.path.join(self.state, "thaw-owed.json")
        self.timeout = timeout
        open(self.journal, "w").close()
        os.mkfifo(self.gate)
        self.script(freeze, thaw)

    def script(self, freeze="", thaw=""):
        with open(self.hook + ".new", "w") as f:
            f.write("#!/bin/sh\nD=%s\necho \"$1 $VARVE_BACKUP $VARVE_DISKS\" >>$D/journal\n"
                    "case $1 in\nfreeze) :; %s ;;\nthaw) :; %s ;;\nesac\n"
                    "echo \"$1 done\" >>$D/journal\n" % (self.dir, freeze or ":", thaw or ":"))
        os.chmod(self.hook + ".new", 0o755)
        os.rename(self.hook + ".new", self.hook)

    def start_daemon(self, *extra):
        return super().start_daemon("--freeze-hook", self.hook, "--freeze-hook-timeout",
                                    self.timeout, *extra)

    def runs(self):
        with open(self.journal) as f:
            return f.read().splitlines()

    def keepers(self):
        return [p for p in processes_naming(self.state) if p in processes_naming("--freeze-keeper")]

    def hooks(self):
        return processes_naming(self.hook + "\0freeze") + processes_naming(self.hook + "\0thaw")

    def thawed(self):
        """The keeper has done its duty, and is gone."""
        wait_for("the thaw", lambda: self.runs()[-1:] == ["thaw done"])
        wait_for("the record goes", lambda: not os.path.exists(self.record))
        wait_for("the keeper ends", lambda: not self.keepers())

    def log(self):
        text = ""
        for name in sorted(os.listdir(self.logs)):
            if name.endswith("varved.log"):
                with open(os.path.join(self.logs, name), errors="replace") as f:
                    text += f.read()
        return text


# The process stands still when this is over, with all its threads.
STOP = ("kill -STOP %(pid)d; while [ -n \"$(grep -L 'State:.T' /proc/%(pid)d/task/*/status)\" ]; do"
        " sleep 0.01; done")
HANG = 'read -r line <"$D/gate"'
BOTH = ["freeze b vda", "freeze done", "thaw b vda", "thaw done"]


def refused(qmp, pattern, **args):
    epoch = [d["epoch"] for d in qmp.cmd("query-disks")]
    args.setdefault("id", "b")
    args.setdefault("freeze", True)
    try:
        answer = qmp.cmd("backup-begin", disks=[{"disk": "vda"}], **args)
    except QMPError as e:
        assert re.search(pattern, e.desc), e.desc
        assert args["id"] not in [b["id"] for b in qmp.cmd("query-backups")]
        assert [d["backups"] for d in qmp.cmd("query-disks")] == [[]] * len(epoch)
        return
    raise AssertionError("it was accepted: %r" % answer)


def works(s, qmp, ident="after"):
    s.script()
    at = len(s.runs())
    qmp.cmd("backup-begin", id=ident, freeze=True, disks=[{"disk": "vda"}])
    assert [r.split()[0] for r in s.runs()[at:]] == ["freeze", "freeze", "thaw", "thaw"]
    qmp.cmd("backup-end", id=ident)


def ended(pid):
    """It is gone, or a zombie that nobody asks after."""
    try:
        with open("/proc/%s/stat" % pid) as f:
            return f.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@test
def the_instant_lies_between_freeze_and_thaw():
    """And the guest's writes are not held while the hook runs: it waits for one of them."""
    with Hooked() as s:
        disk = s.start("vda", SIZE, **GRAIN)
        s.serve("vdb", s.image("vdb", SIZE), **GRAIN)
        s.wait_disk("vdb", "live")
        s.script(freeze=HANG, thaw=HANG)
        with disk.connect() as guest, s.qmp() as q:
            q.send_raw(json.dumps({"execute": "backup-begin", "arguments": {
                "id": "b", "freeze": True, "checkpoint": "c",
                "disks": [{"disk": "vda"}, {"disk": "vdb"}]}}).encode() + b"\n")
            wait_for("the freeze", lambda: s.runs() == ["freeze b vda vdb"])
            guest.write(0, b"before" * 100)
            with open(s.gate, "w") as f:
                f.write("go\n")
            wait_for("the thaw", lambda: s.runs()[-1] == "thaw b vda vdb")
            guest.write(M, b"behind" * 100)
            with open(s.gate, "w") as f:
                f.write("go\n")
            answer = q.message()
            while "event" in answer:
                answer = q.message()
            assert "thaw-error" not in answer["return"], answer
            s.thawed()
            with s.connect("vda") as c:
                assert c.read(0, 600) == b"before" * 100
                assert c.read(M, 600) == b"\0" * 600
            q.cmd("backup-end", id="b")
            q.cmd("backup-begin", id="plain", disks=[{"disk": "vda"}])
            assert len(s.runs()) == 4, "the hook ran without having been asked for"
            q.cmd("backup-end", id="plain")


@test
def a_transaction_freezes_once():
    with Hooked() as s:
        s.start("vda", SIZE, **GRAIN)
        s.serve("vdb", s.image("vdb", SIZE), **GRAIN)
        s.wait_disk("vdb", "live")
        with s.qmp() as q:
            def begin(ident, disk):
                return {"type": "backup-begin", "data": {"id": ident, "freeze": True,
                                                         "disks": [{"disk": disk}]}}
            q.cmd("transaction", actions=[
                {"type": "checkpoint-create", "data": {"name": "c", "disks": ["vda"]}},
                begin("b", "vda"), begin("c", "vdb")])
            assert s.runs() == ["freeze b vda vdb", "freeze done", "thaw b vda vdb", "thaw done"]
            s.script(freeze="exit 1")
            try:
                q.cmd("transaction", actions=[begin("d", "vda")])
                raise AssertionError("begun")
            except QMPError as e:
                assert "hook refuses" in e.desc or "Export" in e.desc, e
            try:
                q.cmd("transaction", actions=[begin("e", "vda"), {"type": "abort", "data": {}}])
                raise AssertionError("begun")
            except QMPError:
                pass
            assert len(s.runs()) == 4, "a refused transaction ran the hook"


@test
def a_hook_that_fails_refuses_the_backup_and_is_thawed():
    with Hooked("exit 3") as s:
        s.start("vda", SIZE, **GRAIN)
        with s.qmp() as q:
            refused(q, "hook refuses.*exit status 3")
            assert s.runs() == ["freeze b vda", "thaw b vda", "thaw done"]
            s.thawed()
            s.script(freeze="kill -9 $$")
            refused(q, "signal 9")
            s.thawed()
            works(s, q)


@test
def a_hook_that_hangs_is_killed_with_its_children_and_thawed():
    with Hooked('sleep 1000 & echo $! >"$D/child"; ' + HANG, timeout="300ms") as s:
        s.start("vda", SIZE, **GRAIN)
        with s.qmp() as q:
            refused(q, "did not end within 300 ms")
            assert s.runs() == ["freeze b vda", "thaw b vda", "thaw done"]
            s.thawed()
            with open(s.path("child")) as f:
                child = f.read().strip()
            wait_for("its child dies", lambda: ended(child))
            assert not s.hooks()


@test
def a_hook_that_cannot_run_refuses_the_backup():
    with Hooked() as s:
        s.start("vda", SIZE, **GRAIN)
        with s.qmp() as q:
            os.chmod(s.hook, 0o644)
            refused(q, "hook cannot be run: Permission denied")
            os.unlink(s.record)  # nothing could be thawed either, and it says so
            assert "THE THAW FAILED" in s.log()
            works(s, q)
    with Stack() as s:
        s.start("vda", SIZE, **GRAIN)
        with s.qmp() as q:
            refused(q, "no freeze hook: start varved with --freeze-hook")
            refused(q, "expected: boolean", freeze="yes")


@test
def a_daemon_that_is_killed_while_frozen_leaves_a_keeper_that_thaws():
    """killed while HOOK freeze runs; and between: frozen, the boundary stands still because the
    plugin is stopped."""
    with Hooked(HANG) as s:
        disk = s.start("vda", SIZE, **GRAIN)
        for frozen in (False, True):
            open(s.journal, "w").close()
            s.script(freeze=STOP % {"pid": disk.process.pid} if frozen else HANG)
            with s.qmp() as q:
                q.send_raw(json.dumps({"execute": "backup-begin", "arguments": {
                    "id": "b", "freeze": True, "disks": [{"disk": "vda"}]}}).encode() + b"\n")
                wait_for("the freeze", lambda: s.runs()[-1:] == (
                    ["freeze done"] if frozen else ["freeze b vda"]))
                assert os.path.exists(s.record)
                s.kill(s.daemon)
            disk.process.send_signal(signal.SIGCONT)
            s.thawed()
            assert s.runs()[-2:] == ["thaw b vda", "thaw done"]
            s.start_daemon()
            s.wait_disk("vda", "live")
            with s.qmp() as q:
                assert q.cmd("query-backups") == []
        with s.qmp() as q:
            works(s, q)


@test
def a_keeper_that_is_killed_too_leaves_the_thaw_to_the_next_daemon():
    with Hooked(HANG) as s:
        s.start("vda", SIZE, **GRAIN)
        with s.qmp() as q:
            q.send_raw(json.dumps({"execute": "backup-begin", "arguments": {
                "id": "b", "freeze": True, "disks": [{"disk": "vda"}]}}).encode() + b"\n")
            wait_for("the freeze", lambda: s.runs() == ["freeze b vda"])
            keeper, = s.keepers()
            os.kill(keeper, signal.SIGKILL)
            s.kill(s.daemon)
        for pid in s.hooks():
            os.kill(pid, signal.SIGKILL)
        assert os.path.exists(s.record) and s.runs() == ["freeze b vda"]
        s.start_daemon()
        s.thawed()
        assert s.runs() == ["freeze b vda", "thaw b vda", "thaw done"]
        assert "a thaw is owed" in s.log()


@test
def a_keeper_that_dies_refuses_the_backup():
    with Hooked(HANG) as s:
        s.start("vda", SIZE, **GRAIN)
        with s.qmp() as q:
            q.send_raw(json.dumps({"execute": "backup-begin", "arguments": {
                "id": "b", "freeze": True, "disks": [{"disk": "vda"}]}}).encode() + b"\n")
            wait_for("the freeze", lambda: s.runs() == ["freeze b vda"])
            keeper, = s.keepers()
            os.kill(keeper, signal.SIGKILL)
            answer = q.message()
            while "event" in answer:
                answer = q.message()
            assert "keeper has died" in answer["error"]["desc"], answer
            for pid in s.hooks():
                os.kill(pid, signal.SIGKILL)
            # The next one thaws first what is owed, and then goes its way.
            s.script()
            q.cmd("backup-begin", id="next", freeze=True, disks=[{"disk": "vda"}])
            assert s.runs()[1:] == ["thaw b vda", "thaw done"] + [r.replace(" b ", " next ") for r in BOTH]
            s.thawed()


@test
def a_thaw_that_fails_is_tried_again_and_said_loudly():
    with Hooked(thaw="exit 7") as s:
        s.start("vda", SIZE, **GRAIN)
        with s.qmp() as q:
            answer = q.cmd("backup-begin", id="b", freeze=True, disks=[{"disk": "vda"}])
            assert "exit status 7" in answer["thaw-error"], answer
            assert s.runs().count("thaw b vda") == 3
            assert "THE THAW FAILED" in s.log() and os.path.exists(s.record)
            q.cmd("query-version")
            wait_for("its event", lambda: q.cmd("query-version") and
                     [e for e in q.events if e["event"] == "THAW_FAILED"])
            q.cmd("backup-end", id="b")
            # the next one must not freeze what may be frozen
            refused(q, "still owes a thaw.*exit status 7.*" + re.escape(s.record), id="c")
            assert not [r for r in s.runs() if r.startswith("freeze c")]
            r = s.varve("backup", "begin", "--freeze", "vda", check=False)
            assert r.returncode == 1 and "owes a thaw" in r.stderr
            # a daemon that starts tries, too
            s.script()
            s.stop(s.daemon)
            s.start_daemon()
            s.thawed()
        s.script(thaw="exit 7")
        r = s.varve("backup", "begin", "--freeze", "--id", "d", "vda")
        assert "THE THAW FAILED" in r.stderr and "backup   d" in r.stdout
        s.script()
        with s.qmp() as q:
            q.cmd("backup-end", id="d")
            q.cmd("backup-begin", id="e", freeze=True, disks=[{"disk": "vda"}])
            assert s.runs()[-6:] == ["thaw d vda", "thaw done", "freeze e vda", "freeze done",
                                     "thaw e vda", "thaw done"], s.runs()


@test
def a_thaw_that_came_before_the_instant_refuses_the_backup():
    """Frozen for longer than the deadline: the plugin is stopped, and goes on when all has thawed."""
    with Hooked(timeout="2s") as s:
        disk = s.start("vda", SIZE, **GRAIN, freeze_timeout="60s")
        s.script(freeze=STOP % {"pid": disk.process.pid},
                 thaw="kill -CONT %d" % disk.process.pid)
        with s.qmp() as q:
            refused(q, "everything was thawed before")
            s.thawed()
            assert s.disk_info("vda")["scratch"]["used"] == 0
            works(s, q)


@test
def sigterm_while_a_hook_hangs_ends_the_daemon_and_thaws():
    with Hooked(HANG) as s:
        s.start("vda", SIZE, **GRAIN)
        with s.qmp() as q:
            q.send_raw(json.dumps({"execute": "backup-begin", "arguments": {
                "id": "b", "freeze": True, "disks": [{"disk": "vda"}]}}).encode() + b"\n")
            wait_for("the freeze", lambda: s.runs() == ["freeze b vda"])
            assert s.stop(s.daemon) == 0
        s.thawed()
        assert s.runs() == ["freeze b vda", "thaw b vda", "thaw done"]
        assert "not all ended in time" not in s.log()


@test
def signals_of_a_service_manager_do_not_end_a_thaw():
    """systemd sends SIGTERM to all processes of a service, unless it is told not to."""
    with Hooked(thaw=HANG) as s:
        s.start("vda", SIZE, **GRAIN)
        with s.qmp() as q:
            q.send_raw(json.dumps({"execute": "backup-begin", "arguments": {
                "id": "b", "freeze": True, "disks": [{"disk": "vda"}]}}).encode() + b"\n")
            wait_for("the thaw", lambda: s.runs()[-1:] == ["thaw b vda"])
            for pid in s.keepers() + s.hooks():
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                    os.kill(pid, number)
            assert s.stop(s.daemon) == 0
        with open(s.gate, "w") as f:
            f.write("go\n")
        s.thawed()
        assert s.runs() == BOTH


@test
def a_record_that_cannot_be_read_is_named_and_kept():
    with Hooked() as s:
        s.start("vda", SIZE, **GRAIN)
        s.stop(s.daemon)
        for text in ("", "{", "[]", '{"format": 2}', "x" * 100000,
                     json.dumps({"format": 1, "hook": "rm", "timeout-ms": 1, "backup": "b",
                                 "disks": []}),
                     json.dumps({"format": 1, "hook": s.hook, "timeout-ms": -1, "backup": "b",
                                 "disks": []})):
            with open(s.record, "w") as f:
                f.write(text)
            s.start_daemon()
            wait_for("its keeper gives up", lambda: not s.keepers())
            with s.qmp() as q:
                refused(q, "owes a thaw.*" + re.escape(s.record))
            s.stop(s.daemon)
            with open(s.record) as f:
                assert f.read() == text
        assert s.runs() == []
        os.unlink(s.record)
        wait_for("no keepers", lambda: not s.keepers())
        s.start_daemon()
        with s.qmp() as q:
            works(s, q)


if __name__ == "__main__":
    main()
