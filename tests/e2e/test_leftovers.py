#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Nothing is left behind: no process, socket, fd, scratch or map of what has ended.

Every other test checks processes and sockets too, when its Stack closes.
"""
import os
import socket
import subprocess

import backups
import nbdclient
from harness import M, Stack, processes_naming, wait_for
from tap import main, number, rng, test

SIZE = 32 * M
ROUNDS = number("ROUNDS", 30, 300)


def fds(process):
    """But /dev/null: libuv keeps one in reserve for each loop that ever had a socket."""
    folder = "/proc/%d/fd" % process.pid
    n = 0
    for fd in os.listdir(folder):
        try:
            n += os.readlink(os.path.join(folder, fd)) != os.devnull
        except FileNotFoundError:
            pass
    return n


def files(root):
    return sorted(os.path.relpath(os.path.join(d, f), root)
                  for d, _, names in os.walk(root) for f in names)


@test
def the_harness_sees_what_is_left():
    """A socket, a temporary file and a process that somebody forgot are each found."""
    s = Stack()
    forgotten = os.path.join(s.runtime, "forgotten.sock")
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(forgotten)
    sock.close()
    open(os.path.join(s.state, "x.tmp"), "w").close()
    p = subprocess.Popen(["sh", "-c", "sleep 600 & wait # " + s.dir])
    wait_for("the process shows", lambda: processes_naming(s.dir))
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(p.pid)], capture_output=True,
                              text=True).stdout.split()
    wrong = "\n".join(s.leftovers())
    s.close()
    for pid in [p.pid] + [int(c) for c in children]:
        os.kill(pid, 15)
    p.wait()
    for what in (forgotten, "x.tmp", "process %d" % p.pid):
        assert what in wrong, (what, wrong)


@test
def ended_backups_leave_no_scratch_and_deleted_checkpoints_no_maps():
    """After many rounds of checkpoint, backup, writes, end and delete, state and runtime directory
    hold the same files as after the first round, and daemon and plugin the same number of fds."""
    random = rng("leftovers")
    with Stack() as s:
        disk = s.start("vda", SIZE, granularity="64K")
        counts, kept = [], []
        with s.qmp() as q, disk.connect() as c:
            for i in range(ROUNDS):
                ident, _ = backups.begin(q, ["vda"], checkpoint="c%d" % i)
                for _ in range(5):
                    c.write(random.randrange(SIZE - M), b"x" * random.randrange(1, M))
                s.varve("status")
                backups.pull(s.nbd, "vda", connections=2)
                backups.end(q, ident, success=bool(i % 3))
                if i % 3:
                    q.cmd("checkpoint-delete", name="c%d" % i)

                def no_scratch():
                    return not [f for f in files(s.state) if f.endswith(".scratch")]
                wait_for("scratch is freed", no_scratch)
                wait_for("connections are closed", lambda: i < 3 or fds(s.daemon) <= counts[2][0])
                counts.append((fds(s.daemon), fds(disk.process)))
                kept.append((len(files(s.state)), len(files(s.runtime))))
        assert max(c[1] for c in counts[3:]) <= max(c[1] for c in counts[:3]) + 1, counts
        assert max(k[0] for k in kept) <= kept[0][0] + 2, kept
        assert max(k[1] for k in kept) <= kept[0][1] + 4, kept
        assert s.stop(disk.process) == 0
        assert s.stop(s.daemon) == 0
        sockets = [f for f in files(s.runtime) if f.endswith(".sock")]
        assert sockets == [], sockets


@test
def clients_that_vanish_leave_no_fd():
    """Connections that are dropped at every stage of the handshake and of requests."""
    with Stack() as s:
        s.start("vda", SIZE)
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"])
            before = fds(s.daemon)
            for i in range(60):
                c = nbdclient.NBD(s.nbd)
                if i % 4 > 0:
                    c.client_flags()
                if i % 4 > 1:
                    c.structured_reply()
                    c.go("vda")
                if i % 4 > 2:
                    c.send(nbdclient.CMD_READ, 0, 16 * M)
                c.close()
                d = s.qmp()
                d.send_raw(b'{"execute": ')
                d.close()
            wait_for("all are closed", lambda: fds(s.daemon) <= before)
            backups.end(q, ident)


if __name__ == "__main__":
    main()
