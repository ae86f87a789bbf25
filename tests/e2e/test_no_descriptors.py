#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Programs that have no file descriptors left: varved with more clients than fit, and nbdkit, under a
limit that is lowered while they run.  What is open goes on, what needs a file is refused and says why,
nothing spins, and all of it works again when descriptors are free."""
import contextlib
import os
import resource
import socket
import threading
import time

import backups
import nbdclient
import rawhttp
from harness import M, VARVED, Stack, run, wait_for
from qmpclient import QMPError
from releases import BLOCK, GRAIN, SIZE, content, disk_content
from tap import main, test

CAUSE = "Too many open files"


def limit_with(pid, spare):
    """The RLIMIT_NOFILE that leaves the process so many descriptors that it has not got yet."""
    used = {int(fd) for fd in os.listdir("/proc/%d/fd" % pid)}
    limit = 0
    while limit in used or spare > 0:
        spare -= limit not in used
        limit += 1
    return limit


@contextlib.contextmanager
def short_of_files(process, spare=0):
    soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit_with(process.pid, spare), hard))
    try:
        yield
    finally:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (soft, hard))


def refused(q, name, args):
    try:
        q.execute(name, args)
    except QMPError as e:
        assert CAUSE in e.desc and "\n" not in e.desc, (name, e.desc)
        return
    raise AssertionError("%s was not refused" % name)


def known(q):
    """What the daemon has, but for what guests and clocks change."""
    return ([c["name"] for c in q.cmd("query-checkpoints")],
            [(b["id"], b["state"]) for b in q.cmd("query-backups")])


def heals(s, q, disk, since, base):
    ident, answer = backups.begin(q, [{"disk": "vda", "since": since}])
    got = backups.apply(base, backups.pull(s.nbd, "vda"), backups.dirty(s.nbd, "vda", answer["vda"]["context"]))
    assert backups.first_difference(bytes(got), disk_content(disk)) is None
    backups.end(q, ident)


def first_backup(s, q):
    ident, _ = backups.begin(q, ["vda"], checkpoint="c1")
    full = backups.pull(s.nbd, "vda")
    backups.end(q, ident)
    return full


def cpu_ticks(pid):
    with open("/proc/%d/stat" % pid) as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def assert_does_not_spin(process):
    """One thread that spins takes each tick there is; what waits takes next to none."""
    began, before = time.monotonic(), cpu_ticks(process.pid)
    time.sleep(2)
    ticks = cpu_ticks(process.pid) - before
    assert ticks < (time.monotonic() - began) * os.sysconf("SC_CLK_TCK") / 4, ticks


def knock(path):
    c = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    c.settimeout(60)
    c.connect(path)
    return c


def nothing_waits(path):
    """Whether a new client is greeted."""
    with contextlib.closing(knock(path)) as c:
        return c.recv(1)


def log_of(process):
    with open(process.log, errors="replace") as f:
        return f.read()


@test
def a_daemon_without_descriptors_goes_on_with_what_is_open_and_says_why_it_does_nothing_new():
    with Stack() as s:
        disk = s.start("vda", SIZE, content(1), **GRAIN)
        with s.qmp() as q, disk.connect() as guest:
            full = first_backup(s, q)
            old = disk_content(disk)
            ident, _ = backups.begin(q, [{"disk": "vda", "export": "open"}])
            with s.connect("open") as view, contextlib.ExitStack() as crowd:
                before = known(q)
                with short_of_files(s.daemon):
                    for _ in range(40):
                        crowd.callback(knock(s.nbd).close)
                        crowd.callback(knock(s.control).close)
                    assert_does_not_spin(s.daemon)
                    for off in range(0, SIZE, M):
                        guest.write(off, b"n" * BLOCK)
                        assert view.read(off, BLOCK) == old[off:off + BLOCK], off
                    refused(q, "checkpoint-create", {"name": "c2", "disks": ["vda"]})
                    refused(q, "backup-begin", {"disks": [{"disk": "vda", "export": "new"}]})
                    assert known(q) == before, (known(q), before)
                    assert q.cmd("query-disks")[0]["state"] == "live"
                    assert_does_not_spin(s.daemon)
                crowd.close()
                assert "NBD clients wait at" in log_of(s.daemon)
                assert len(log_of(s.daemon)) < M, "it logs without end"
                said = [line for line in log_of(s.daemon).split("\n") if "cannot read " + s.state in line]
                assert len(said) == 1, said
                assert view.read(0, BLOCK) == old[:BLOCK]
            wait_for("it says that it is over", lambda: s.state + " can be read again" in log_of(s.daemon))
            with s.connect("open") as view:
                assert view.read(M, BLOCK) == old[M:M + BLOCK]
            backups.end(q, ident)
            q.cmd("checkpoint-create", name="c2", disks=["vda"])
            heals(s, q, disk, "c1", full)


@test
def a_bitmap_that_nobody_can_look_at_is_not_told_as_inconsistent():
    """Who asks would drop it, and begin a full backup; and an alert rings."""
    with Stack() as s:
        metrics = os.path.join(s.socks, "m")
        s.start_daemon("--metrics", "unix:" + metrics)
        s.start("vda", M)
        with s.qmp() as q:
            q.cmd("block-dirty-bitmap-add", node="vda", name="bits")
            q.cmd("checkpoint-create", name="c", disks=["vda"])
            with short_of_files(s.daemon):
                for name in ("query-block", "query-named-block-nodes", "query-metrics"):
                    refused(q, name, {})
            with short_of_files(s.daemon, 1):  # which the connection takes
                assert rawhttp.get(metrics, "/metrics")[0] == 500
            assert not q.cmd("query-block")[0]["dirty-bitmaps"][0]["inconsistent"]
            assert rawhttp.get(metrics, "/metrics")[0] == 200


@test
def when_clients_that_did_not_fit_leave_all_works_under_the_same_limit():
    with Stack() as s:
        disk = s.start("vda", SIZE, content(1), **GRAIN)
        with s.qmp() as q, disk.connect() as guest:
            full = first_backup(s, q)
            with short_of_files(s.daemon, 24):
                with contextlib.ExitStack() as crowd:
                    for _ in range(60):
                        crowd.callback(knock(s.nbd).close)
                        crowd.callback(knock(s.control).close)
                    wait_for("they do not fit", lambda: "NBD clients wait at" in log_of(s.daemon))
                    guest.write(0, b"n" * BLOCK)
                    refused(q, "checkpoint-create", {"name": "c2", "disks": ["vda"]})
                wait_for("they have left", lambda: nothing_waits(s.nbd))
                with s.qmp() as another:
                    another.cmd("checkpoint-create", name="c2", disks=["vda"])
                heals(s, q, disk, "c1", full)


@test
def clients_that_come_and_go_at_a_full_daemon_do_not_make_it_spin():
    """
        control socket   NBD clients, commands
        a client comes, there is no descriptor for it
                         try to get one, again and again: take any that is given back
        ... and the daemon goes on, whoever was quicker
    Who is quicker is not forced: a daemon that does it wrong may pass, a right one always does.
    """
    with Stack() as s, contextlib.ExitStack() as crowd:
        s.start("vda", SIZE, content(1), **GRAIN)
        q = crowd.enter_context(s.qmp())
        with short_of_files(s.daemon):
            for _ in range(100):
                crowd.callback(knock(s.nbd).close)
            over = threading.Event()

            def commands():
                while not over.is_set():
                    refused(q, "checkpoint-create", {"name": "c1", "disks": ["vda"]})

            def knocks():
                for _ in range(3000):
                    with contextlib.suppress(BlockingIOError):  # as many wait as may
                        knock(s.control).close()
                over.set()
            backups.in_threads([commands, knocks])
            assert_does_not_spin(s.daemon)
            assert len(log_of(s.daemon)) < M, "it logs without end"

        def session():
            with contextlib.suppress(BlockingIOError):  # as many wait as may
                return s.qmp()
        with wait_for("who waited has been seen", session) as another:
            another.cmd("checkpoint-create", name="c1", disks=["vda"])


@test
def a_plugin_without_descriptors_serves_and_tracks_and_refuses_checkpoints():
    with Stack() as s:
        disk = s.start("vda", SIZE, content(1), **GRAIN)
        with s.qmp() as q, disk.connect() as guest:
            full = first_backup(s, q)
            old = disk_content(disk)
            ident, _ = backups.begin(q, [{"disk": "vda", "export": "open"}])
            before = known(q)
            with short_of_files(disk.process):
                for off in range(0, SIZE, M):
                    guest.write(off, b"n" * BLOCK)
                    refused(q, "checkpoint-create", {"name": "c2", "disks": ["vda"]})
                    refused(q, "backup-begin", {"disks": [{"disk": "vda", "export": "new"}]})
                guest.flush()
                assert known(q) == before, (known(q), before)
                assert q.cmd("query-disks")[0]["state"] == "live"
            guest.write(M + BLOCK, b"m" * BLOCK)
            q.cmd("checkpoint-create", name="c2", disks=["vda"])
            guest.write(2 * M + BLOCK, b"o" * BLOCK)
            assert backups.first_difference(backups.pull(s.nbd, "open"), old) is None
            backups.end(q, ident)
            heals(s, q, disk, "c1", full)


@test
def a_plugin_that_starts_with_too_few_descriptors_says_so_and_takes_nothing_for_lost():
    """After a kill: maps and scratch of an open backup are there to be adopted."""
    with Stack() as s:
        disk = s.start("vda", SIZE, content(1), **GRAIN)
        with s.qmp() as q:
            full = first_backup(s, q)
            old = disk_content(disk)
            ident, _ = backups.begin(q, [{"disk": "vda", "export": "open"}])
            with disk.connect() as guest:
                guest.write(0, b"n" * BLOCK)
            s.kill(disk.process)
            s.wait_disk("vda", "offline")
            few, said = 8, 0
            os.unlink(disk.sock)
            while True:
                r = run(["prlimit", "--nofile=%d" % few] + s.nbdkit_command(disk, **GRAIN)
                        + ["--run", "exit 0"], check=False, env=s.nbdkit_env())
                if r.returncode == 0:
                    break
                # Before the plugin comes, the loader or a shell around nbdkit is short in its own words.
                assert CAUSE in r.stderr or "varve: " not in r.stderr, (few, r.stderr)
                said += CAUSE in r.stderr and "varve" in r.stderr
                few += 1
                assert few < 100, r.stderr
            assert said, "the plugin itself was never short"
            s.serve("vda", disk.image, **GRAIN)
            s.wait_disk("vda", "live")
            assert backups.first_difference(backups.pull(s.nbd, "open"), old) is None
            backups.end(q, ident)
            heals(s, q, disk, "c1", full)


@test
def a_daemon_that_starts_with_too_few_descriptors_says_so_and_takes_nothing_for_lost():
    """With any number it ends with a message, or serves; open backups wait where it has too few for them,
    and come back when it has enough."""
    with Stack() as s:
        disk = s.start("vda", SIZE, content(1), **GRAIN)
        with s.qmp() as q:
            full = first_backup(s, q)
            old = disk_content(disk)
            for name in "abcdef":
                backups.begin(q, [{"disk": "vda", "export": name}], id=name)
                with disk.connect() as guest:
                    guest.write(0, name.encode() * BLOCK)
        assert s.stop(s.daemon) == 0

        def ended_or_ready(p):
            return p.poll() is not None or "ready; control socket" in log_of(p)
        few, said, served = 8, 0, 0
        while served < 12:
            p = s.daemon = s.spawn("varved", ["prlimit", "--nofile=%d" % few, VARVED, "--state-dir", s.state,
                                              "--runtime-dir", s.runtime])
            wait_for("it ends or serves", lambda: ended_or_ready(p))
            if p.poll() is not None:
                assert served == 0, "with more it does less"
                # Before varved comes, the loader is short in its own words.
                assert p.returncode > 0, (few, p.returncode)
                assert CAUSE in log_of(p) or "varved: " not in log_of(p), (few, log_of(p))
                said += CAUSE in log_of(p)
                s.killed.add(p.pid)
            else:
                served += 1
                with s.qmp() as q:
                    assert {i: st for i, st in known(q)[1] if i in "abcdef"} == dict.fromkeys(
                        "abcdef", "running"), (few, known(q), log_of(p))
                assert s.stop(p) == 0
            few += 1
        assert said, "varved itself was never short"
        s.start_daemon()
        s.wait_disk("vda", "live")
        with s.qmp() as q:
            assert backups.first_difference(backups.pull(s.nbd, "a"), old) is None
            for name in "abcdef":
                backups.end(q, name)
            heals(s, q, disk, "c1", full)


if __name__ == "__main__":
    main()
