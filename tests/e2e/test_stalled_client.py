#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A client that asks for data and never reads it delays nobody: not the guest, not other clients,
not a checkpoint, not a backup's end, not shutdown; and it costs bounded memory."""
import socket
import struct

import backups
import nbdclient
from harness import M, Stack, wait_for
from nbdclient import CMD_BLOCK_STATUS, CMD_READ, REQUEST_MAGIC
from tap import diag, main, rng, test
from writers import Guests

SIZE = 64 * M


def stalled(where, export, requests=200, length=16 * M):
    """A connection that has asked for much more than any socket holds, and reads nothing."""
    c = nbdclient.connect(where, export, ["base:allocation"])
    c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    c.sock.setblocking(False)
    out = b"".join(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_READ if i % 4 else CMD_BLOCK_STATUS,
                               i, i * 4096 % (SIZE - length), length) for i in range(requests))
    try:
        c.sock.send(out)
    except BlockingIOError:
        pass
    return c


def half_asked(where):
    """One that stops in the middle of an option, and one in the middle of a request."""
    a = nbdclient.NBD(where)
    a.sock.sendall(struct.pack(">IQI", 3, nbdclient.IHAVEOPT, 7)[:9])
    b = nbdclient.connect(where, "vda")
    b.sock.sendall(struct.pack(">IHH", REQUEST_MAGIC, 0, CMD_READ))
    return [a, b]


def rss(pid):
    with open("/proc/%d/status" % pid) as f:
        for line in f:
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
    return 0


@test
def stalled_clients_delay_neither_guests_nor_clients_nor_checkpoints():
    """Twenty of them, beside guests at full speed, pulls, checkpoints, and more backups."""
    random = rng("stalled")
    with Stack() as s:
        disk = s.start("vda", SIZE, b"\x11" * SIZE)
        with s.qmp() as q, Guests(disk, SIZE, 2, random) as guests:
            ident, _ = backups.begin(q, ["vda"], checkpoint="c")
            first = backups.pull(s.nbd, "vda")
            bad = [stalled(s.nbd, "vda") for _ in range(20)] + half_asked(s.nbd)
            for i in range(5):
                before = guests.progress()
                wait_for("guests go on", lambda: guests.progress() > before + 50 or guests.errors)
                assert backups.pull(s.nbd, "vda") == first
                q.cmd("checkpoint-create", name="k%d" % i, disks=["vda"])
                other, _ = backups.begin(q, [{"disk": "vda", "export": "other",
                                              "since": "k%d" % i}])
                backups.pull(s.nbd, "other", connections=2)
                backups.end(q, other)
            used = rss(s.daemon.pid)
            diag("the daemon uses %d MiB beside 20 stalled clients" % (used // M))
            assert used < 1200 * M, "%d MiB" % (used // M)
            backups.end(q, ident)  # clients are disconnected, these too
            assert [b for b in q.cmd("query-backups") if b["state"] == "running"] == []
            guests.stop()
            for c in bad:
                c.close()


@test
def stalled_clients_delay_no_shutdown():
    """SIGTERM with stalled clients connected: the daemon ends cleanly, and its sockets are gone."""
    with Stack() as s:
        s.start("vda", SIZE, b"\x11" * SIZE)
        with s.qmp() as q:
            backups.begin(q, ["vda"])
        bad = [stalled(s.nbd, "vda") for _ in range(10)] + half_asked(s.nbd)
        silent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)  # and one at the control socket
        silent.connect(s.control)
        assert s.stop(s.daemon) == 0
        for c in bad:
            c.close()
        silent.close()


@test
def an_ended_backup_disconnects_its_clients():
    """backup-end closes connections to its exports; they see the end of the stream, not silence."""
    with Stack() as s:
        s.start("vda", SIZE)
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"])
            held = [s.connect("vda") for _ in range(3)]
            asked = stalled(s.nbd, "vda")
            backups.end(q, ident)
            for c in held:
                try:
                    c.read(0, 512)
                    raise AssertionError("a backup that has ended was read")
                except (EOFError, OSError, nbdclient.NBDError):
                    pass
                c.close()
            asked.sock.settimeout(60)
            try:
                while asked.sock.recv(1 << 20):
                    pass
            except ConnectionError:
                pass
            asked.close()


if __name__ == "__main__":
    main()
