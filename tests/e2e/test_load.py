#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Many connections at once: busy ones, idle ones, and some that stall in each place where one can.

IDLE, BUSY, STALLED (in each place) and READS (of each busy connection) are chosen by the
environment; LONG=1 takes the numbers of issue 3.  tests/bench/load.py measures the same; here no
time is asserted.
"""
import os
import subprocess

import backups
import nbdclient
from crowd import STALLS, Crowd, MemoryWatch, Places, bound, certificates
from harness import BUILD, M, Stack, answers_nbd, wait_for
from tap import diag, main, number, rng, test

IDLE = number("IDLE", 300, 1000)
BUSY = number("BUSY", 30, 100)
STALLED = number("STALLED", 15, 50)
READS = number("READS", 100, 2000)
SIZE = 64 * M
NETWORK_THREADS = 2
PROGRAM = os.path.join(BUILD, "tests/bench/busy")


class Loaded:
    """Two disks, an open backup of them, and varved with TLS at a unix and a TCP socket."""

    def __init__(self, *options):
        self.s = Stack()
        self.options = options

    def __enter__(self):
        s = self.s.__enter__()
        try:
            self.references = {}
            for disk in ("vda", "vdb"):
                content = rng(disk).randbytes(SIZE)
                s.serve(disk, s.image(disk + ".img", SIZE, content))
                self.references[disk] = s.image(disk + ".reference", SIZE, content)
            self.content = s.content(self.references["vda"])
            tls = certificates(s.path("tls"))
            s.start_daemon("--listen", "unix:" + s.nbd, "--listen", "tcp:127.0.0.1:0", "--max-connections", "2000",
                           "--network-threads", str(NETWORK_THREADS), "--tls", "on", "--tls-certificates", tls,
                           *self.options)
            for disk in self.references:
                s.wait_disk(disk, "live")
            with s.qmp() as q:
                backups.begin(q, list(self.references))
                port = int(q.cmd("query-nbd-server")["listeners"][1].rpartition(":")[2])
            self.wheres = [s.nbd, str(port)]
            self.places = Places([s.nbd, ("127.0.0.1", port)], "vda", SIZE, os.path.join(tls, "ca-cert.pem"))
        except BaseException:
            s.close(show=True)
            raise
        return self

    def __exit__(self, *exc):
        return self.s.__exit__(*exc)

    def busy(self, connections, much):
        """Two processes, one for each disk and socket, with the same cookies; they read when this
        returns.  A byte of the other disk is a wrong byte."""
        all_ = []
        for where, (disk, reference) in zip(self.wheres, self.references.items()):
            p = subprocess.Popen([PROGRAM, where, disk, str(connections // 2), much, reference],
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            all_.append(p)
        for p in all_:
            if p.stdout.readline() != "ready\n":
                raise AssertionError("busy: " + p.communicate()[1])
        return all_

    def clients(self):
        return self.s.command("query-nbd-server")["clients"]


def finish(processes):
    """They read what they were told to, and every byte was right."""
    for p in processes:
        out, err = p.communicate(timeout=300)
        assert p.returncode == 0, "busy: " + err
        assert int(out.split()[0]) == BUSY // 2 * READS, out


def end(processes):
    for p in processes:
        p.kill()
        p.communicate()


@test
def busy_clients_get_their_bytes_beside_idle_and_stalled_ones():
    """And memory stays within the bound that the manual tells, checkpoints and backups succeed, and
    SIGTERM ends the daemon while all of them are there."""
    # Limits that nobody meets: all that stall are there until the end.
    with Loaded("--handshake-timeout", "600s", "--write-timeout", "600s") as t:
        s = t.s
        with MemoryWatch(s.daemon.pid) as memory, Crowd(t.places, IDLE, STALLED) as crowd:
            finish(t.busy(BUSY, "%dtimes" % READS))
            more = t.busy(BUSY, "600")
            try:
                with s.qmp() as q:
                    for i in range(3):
                        q.cmd("checkpoint-create", name="c%d" % i, disks=["vda"])
                    other, _ = backups.begin(q, [{"disk": "vda", "export": "other", "since": "c1"}])
                    assert backups.pull(s.nbd, "other", connections=2) == t.content
                    backups.end(q, other)
                wait_for("only the crowd and the busy are left",
                         lambda: len(t.clients()) == len(crowd) + 2 * (BUSY // 2), s.daemon)
                held = bound(len(crowd) + BUSY + 4, crowd.ntls, 2, NETWORK_THREADS)
                grown = memory.grown()
                diag("%d connections; memory grew by %d MiB, the bound is %d MiB"
                     % (len(t.clients()), grown // M, held // M))
                # A sanitizer keeps what was freed, and shadows the rest.
                assert os.environ.get("SANITIZER") or grown < held, "%d MiB" % (grown // M)
                assert s.stop(s.daemon) == 0
            finally:
                end(more)


@test
def those_that_stall_are_ended_by_their_limits():
    """In every place, the idle ones too if there is such a limit; who reads is not."""
    with Loaded("--handshake-timeout", "5s", "--idle-timeout", "5s", "--write-timeout", "5s") as t:
        s = t.s
        with nbdclient.connect(s.nbd, "vda") as good, Crowd(t.places, STALLED, STALLED) as crowd:
            reads = 0

            def only_the_good_one():
                nonlocal reads
                off = reads * 4096 % (SIZE - 4096)
                assert good.read(off, 4096) == t.content[off:off + 4096]
                reads += 1
                return len(t.clients()) == 1
            assert len(crowd) == STALLED * (len(STALLS) + 1)
            wait_for("all but the good client are ended", only_the_good_one, s.daemon)
        assert answers_nbd(s.nbd)


if __name__ == "__main__":
    main()
