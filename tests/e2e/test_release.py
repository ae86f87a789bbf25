#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What appliances have done with (release: TRIM) and what nobody wants (preserve: dirty): it is an
error to read, takes no space, and nobody else notices."""
import errno
import os
import signal
import socket
import struct
import sys
import threading

import backups
import nbdclient
from harness import K, M, Stack, run, wait_for
from releases import (BLOCK, GRAIN, SIZE, assert_error, assert_released, cmd_refused, content,
                      disk_content, disk_of, on_disk, one, refused)
from tap import main, rng, test

DIRTY = "qemu:dirty-bitmap:"
LOST = "varve:lost"


@test
def what_is_released_is_an_error_and_takes_no_space():
    old = content(1)
    with Stack() as s:
        disk = s.start("vda", SIZE, old, **GRAIN)
        with s.qmp() as q, disk.connect() as guest:
            q.cmd("checkpoint-create", name="mon", disks=["vda"])
            guest.write(0, old[:BLOCK])
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "mon"}], release=True)
            with s.connect("vda", [LOST]) as c, s.connect("vda@mon", [LOST]) as other:
                for x in (c, other):
                    assert x.flags & nbdclient.TF_SEND_TRIM
                    assert not x.flags & nbdclient.TF_READ_ONLY
                    assert x.flags & nbdclient.TF_CAN_MULTI_CONN
                guest.write(0, b"new" * (8 * M // 3))
                before = on_disk(s)
                assert before >= 8 * M - BLOCK, before
                assert c.read(0, 4 * M) == old[:4 * M]
                c.trim(0, 4 * M)
                c.trim(10 * M, M)
                assert on_disk(s) <= before - 4 * M, (before, on_disk(s))
                for x in (c, other):
                    assert_released(x, 0, 4 * M)
                    assert_released(x, 10 * M, 11 * M)
                    assert [e for e in x.map(LOST) if e[2]] == [(0, 4 * M, 1), (10 * M, M, 1)]
                assert c.read(4 * M, 6 * M) == old[4 * M:10 * M]
                used = disk_of(q, ident)["scratch-used"]
                guest.write(0, b"more" * M)              # second writes, and
                guest.write(10 * M, b"more" * (M // 4))  # first ones: neither is kept
                assert disk_of(q, ident)["scratch-used"] == used == 8 * M - 4 * M, used
                assert on_disk(s) <= before - 4 * M
                other.trim(4 * M, BLOCK)
                assert_released(c, 4 * M, 4 * M + BLOCK)
                # rounded inwards: nothing whole in it
                c.trim(5 * M + 1, BLOCK)
                assert c.read(5 * M, 2 * BLOCK) == old[5 * M:5 * M + 2 * BLOCK]
                c.trim(5 * M, 0)
                refused(lambda: c.trim(SIZE - BLOCK, 2 * BLOCK), errno.EINVAL)
                refused(lambda: c.write(0, b"x" * 512), errno.EPERM)
                refused(lambda: c.zero(0, BLOCK), errno.EPERM)
                refused(lambda: c.zero(8 * M, BLOCK), errno.EPERM)
                assert c.read(5 * M, 5 * M) == old[5 * M:10 * M]
                assert c.read(11 * M, 5 * M) == old[11 * M:]
            d = disk_of(q, ident)
            assert d["bytes-released"] == 5 * M + BLOCK, d
            assert one(q, ident)["state"] == "running" and one(q, ident)["release"] is True
            backups.end(q, ident)
            assert disk_of(q, ident)["bytes-released"] == 5 * M + BLOCK
            assert on_disk(s) == 0
            assert s.disk_info("vda")["scratch"]["used"] == 0
            runtime = os.listdir(os.path.join(s.runtime, "vda"))
            assert not [f for f in runtime if f.endswith(".done")], runtime


@test
def one_trim_over_several_pieces_releases_all_of_it_and_no_more():
    """64 MiB is what the daemon releases at once; the ends lie within pieces and within blocks, and
    the disk ends within a block."""
    size = 300 * M + 5 * K
    with Stack() as s:
        disk = s.start("vda", size, **GRAIN)
        with s.qmp() as q, disk.connect() as guest:
            for off in (0, 63 * M, 64 * M - BLOCK, 64 * M, 127 * M, 128 * M, 299 * M, 300 * M):
                guest.write(off, b"old" * K)
            ident, _ = backups.begin(q, ["vda"], release=True)
            for off in (0, 63 * M, 64 * M - BLOCK, 64 * M, 127 * M, 128 * M, 299 * M, 300 * M):
                guest.write(off, b"new" * K)
            with s.connect("vda", [LOST]) as c:
                c.trim(63 * M - 512, 200 * M)
                assert [e for e in c.map(LOST) if e[2]] == [(63 * M, 200 * M - BLOCK, 1)]
                for off in (63 * M, 64 * M - BLOCK, 64 * M, 127 * M, 128 * M):
                    assert_error(c, off, 3 * K, errno.EIO, "was released")
                for off in (0, 299 * M, 300 * M):
                    assert c.read(off, 3 * K) == b"old" * K, off
                assert disk_of(q, ident)["bytes-released"] == 200 * M - BLOCK
                c.trim(0, size)
                assert disk_of(q, ident)["bytes-released"] == size
                assert disk_of(q, ident)["scratch-used"] == 0 and on_disk(s) == 0
                assert_error(c, size - 1, 1, errno.EIO, "was released")
            backups.end(q, ident)


@test
def exports_that_were_not_asked_to_take_no_trim():
    with Stack() as s:
        s.start("vda", SIZE, content(1), **GRAIN)
        with s.qmp() as q:
            q.cmd("checkpoint-create", name="mon", disks=["vda"])
            ident, _ = backups.begin(q, ["vda"])
            with s.connect("vda") as c, s.connect("vda+delta"):
                assert c.flags & nbdclient.TF_READ_ONLY and not c.flags & nbdclient.TF_SEND_TRIM
                refused(lambda: c.trim(0, BLOCK), errno.EPERM)
                assert c.read(0, BLOCK) == content(1)[:BLOCK]
            backups.end(q, ident)
            for args in ({"release": True}, {"preserve": "dirty"}):
                ident, _ = backups.begin(q, [{"disk": "vda", "since": "mon"}], **args)
                s.connect("vda").close()
                s.connect("vda@mon").close()
                for name in ("vda+delta", "vda@mon+delta"):
                    try:
                        s.connect(name).close()
                        raise AssertionError(name + " is offered")
                    except nbdclient.OptError:
                        pass
                backups.end(q, ident)


@test
def another_backup_of_the_disk_reads_on_what_one_released():
    first, second = content(1), content(90)
    with Stack() as s:
        disk = s.start("vda", SIZE, first, **GRAIN)
        with s.qmp() as q, disk.connect() as guest:
            a, _ = backups.begin(q, [{"disk": "vda", "export": "a"}], release=True)
            guest.write(0, second[:8 * M])
            b, _ = backups.begin(q, [{"disk": "vda", "export": "b"}], release=True)
            guest.write(0, b"3" * SIZE)
            with s.connect("a") as ca, s.connect("b") as cb:
                cb.trim(0, SIZE)
                assert_released(cb, 0, SIZE)
                assert ca.read(0, SIZE) == first
                guest.write(0, b"4" * SIZE)
                assert ca.read(0, SIZE) == first
                ca.trim(0, M)
                ca.trim(9 * M, M)
                assert ca.read(M, 8 * M) == first[M:9 * M]
                assert ca.read(10 * M, 6 * M) == first[10 * M:]
            backups.end(q, a)
            assert disk_of(q, b)["scratch-used"] == 0, disk_of(q, b)
            assert on_disk(s) == 0
            # one that needs all, opened now, gets all
            c, _ = backups.begin(q, [{"disk": "vda", "export": "c"}])
            guest.write(0, b"5" * SIZE)
            with s.connect("c") as cc:
                assert cc.read(0, SIZE) == b"4" * SIZE
            backups.end(q, c)
            backups.end(q, b)


@test
def what_was_released_stays_so_whoever_is_killed():
    old = content(1)
    with Stack() as s:
        disk = s.start("vda", SIZE, old, **GRAIN)
        with s.qmp() as q, disk.connect() as guest:
            ident, _ = backups.begin(q, ["vda"], release=True, ttl=0)
            guest.write(0, b"new" * M)
            with s.connect("vda") as c:
                c.trim(0, M)
                c.trim(8 * M, M)
        s.kill(disk.process)
        s.wait_disk("vda", "offline")
        with s.connect("vda") as c:  # nobody serves the disk
            assert_released(c, 0, M)
            assert_released(c, 8 * M, 9 * M)
            assert c.read(M, 7 * M) == old[M:8 * M]
            c.trim(M, M)
            assert_released(c, M, 2 * M)
        s.kill(s.daemon)
        s.start_daemon()
        with s.connect("vda") as c:  # nor the old daemon
            assert c.flags & nbdclient.TF_SEND_TRIM and not c.flags & nbdclient.TF_READ_ONLY
            assert_released(c, 0, 2 * M)
            assert c.read(2 * M, 6 * M) == old[2 * M:8 * M]
        disk = s.serve("vda", disk.image, **GRAIN)
        s.wait_disk("vda", "live")
        with s.qmp() as q, disk.connect() as guest, s.connect("vda") as c:
            used = disk_of(q, ident)["scratch-used"]
            guest.write(0, b"newer" * (9 * M // 5))
            assert_released(c, 0, 2 * M)
            assert_released(c, 8 * M, 9 * M)
            assert c.read(2 * M, 6 * M) == old[2 * M:8 * M]
            # 0..3M had been kept or released before; 3..8M is kept now, 8..9M not
            assert disk_of(q, ident)["scratch-used"] - used == 5 * M, disk_of(q, ident)
            assert disk_of(q, ident)["bytes-released"] == 3 * M
            s.kill(s.daemon)
            guest.write(9 * M, b"x" * M)
            s.start_daemon()
        with s.qmp() as q, s.connect("vda") as c:
            assert_released(c, 0, 2 * M)
            assert c.read(9 * M, 7 * M) == old[9 * M:]
            c.trim(2 * M, 14 * M)
            assert disk_of(q, ident)["bytes-released"] == SIZE
            assert on_disk(s) == 0
            backups.end(q, ident)


@test
def a_trim_waits_for_a_plugin_that_comes_back():
    old = content(1)
    with Stack() as s:
        disk = s.start("vda", SIZE, old, **GRAIN)
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"], release=True)
            with s.connect("vda") as c:
                for i in range(4):
                    s.kill(disk.process)
                    c.trim(i * M, M)  # whatever the daemon knows of it
                    disk = s.serve("vda", disk.image, **GRAIN)
                    c.trim((8 + i) * M, M)
                    assert_released(c, i * M, (i + 1) * M)
                    assert_released(c, (8 + i) * M, (9 + i) * M)
                    assert c.read(5 * M, 3 * M) == old[5 * M:8 * M]
            backups.end(q, ident)


@test
def with_preserve_dirty_only_what_is_dirty_is_kept():
    old = bytearray(content(1))
    with Stack() as s:
        disk = s.start("vda", SIZE, bytes(old), **GRAIN)
        with s.qmp() as q, disk.connect() as guest:
            q.cmd("checkpoint-create", name="mon", disks=["vda"])
            for off in (0, 3 * M + 5, 7 * M):
                guest.write(off, b"tuesday")
                old[off:off + 7] = b"tuesday"
            dirty = {0, 3 * M, 7 * M}
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "mon"}], preserve="dirty")
            with s.connect("vda", [DIRTY + "backup-vda", LOST]) as c:
                assert c.flags & nbdclient.TF_READ_ONLY
                assert c.read(0, SIZE) == old  # nothing was overwritten yet
                assert c.map(LOST) == [(0, SIZE, 0)]
                guest.write(0, b"wednesday" * (8 * M // 9 + 1))
                assert disk_of(q, ident)["scratch-used"] == 3 * BLOCK
                assert on_disk(s) == 3 * BLOCK
                assert {off for off, _, word in c.map(DIRTY + "backup-vda") if word} == dirty
                for off in range(0, 8 * M, BLOCK):
                    if off in dirty:
                        assert c.read(off, BLOCK) == old[off:off + BLOCK], off
                    else:
                        assert_error(c, off, BLOCK, errno.EIO, "was not to be kept")
                gone = [(off, off + n) for off, n, word in c.map(LOST) if word]
                assert not dirty & {off for a, b in gone for off in range(a, b, BLOCK)}, gone
                assert sum(b - a for a, b in gone) == 8 * M + BLOCK - 3 * BLOCK, gone
                assert c.read(9 * M, 7 * M) == old[9 * M:]
            assert one(q, ident)["state"] == "running" and one(q, ident)["preserve"] == "dirty"
            s.kill(disk.process)
            disk = s.serve("vda", disk.image, **GRAIN)
            s.wait_disk("vda", "live")
            s.kill(s.daemon)
            s.start_daemon()
        with s.qmp() as q, disk.connect() as guest, s.connect("vda") as c:
            guest.write(10 * M, b"x" * M)
            assert disk_of(q, ident)["scratch-used"] == 3 * BLOCK
            assert c.read(3 * M, BLOCK) == old[3 * M:3 * M + BLOCK]
            assert_error(c, 10 * M, BLOCK, errno.EIO, "was not to be kept")
            backups.end(q, ident)
            # without a base everything is dirty, and everything is kept
            ident, _ = backups.begin(q, ["vda"], preserve="dirty", release=True)
            now = disk_content(disk)
            guest.write(0, b"y" * SIZE)
            with s.connect("vda") as c2:
                assert c2.read(0, SIZE) == now
                c2.trim(0, BLOCK)
                assert_released(c2, 0, BLOCK)
            backups.end(q, ident)


@test
def an_offline_disk_can_be_released_and_narrowed():
    old = content(1)
    with Stack() as s:
        disk = s.start("vda", SIZE, old, **GRAIN)
        with s.qmp() as q:
            q.cmd("checkpoint-create", name="mon", disks=["vda"])
            with disk.connect() as guest:
                guest.write(M, old[M:2 * M])
            s.stop(disk.process)
            s.wait_disk("vda", "offline")
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "mon"}], release=True,
                                     preserve="dirty")
            with s.connect("vda") as c:
                assert c.read(0, SIZE) == old
                c.trim(0, M + BLOCK)
                assert_released(c, 0, M + BLOCK)
                disk = s.serve("vda", disk.image, **GRAIN)
                with disk.connect() as guest:
                    guest.write(0, b"z" * 4 * M)
                assert c.read(M + BLOCK, M - BLOCK) == old[M + BLOCK:2 * M]
                assert_error(c, 2 * M, BLOCK, errno.EIO, "was not to be kept")
                assert_released(c, 0, M + BLOCK)
                assert c.read(4 * M, 12 * M) == old[4 * M:]
            s.wait_disk("vda", "live")
            assert disk_of(q, ident)["scratch-used"] == M - BLOCK
            backups.end(q, ident)


@test
def a_plugin_that_starts_gets_the_disk_whatever_is_released_of_it_offline():
    """Clients release block after block of a disk that nobody serves, and go on while its plugin
    starts, which gives up when it does not get the lock within seconds."""
    with Stack() as s:
        disk = s.start("vda", SIZE, content(1), **GRAIN)
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"], release=True)
            s.stop(disk.process)
            s.wait_disk("vda", "offline")
            for _ in range(2):
                stop = threading.Event()

                def trim(first):
                    with s.connect("vda") as c:
                        while not stop.is_set():
                            for off in range(first, SIZE, 4 * BLOCK):
                                c.trim(off, BLOCK)

                threads = [threading.Thread(target=trim, args=(i * BLOCK,)) for i in range(4)]
                for t in threads:
                    t.start()
                try:
                    s.serve("vda", disk.image, **GRAIN)
                finally:
                    stop.set()
                    for t in threads:
                        t.join()
                s.wait_disk("vda", "live")
                s.stop(disk.process)
                s.wait_disk("vda", "offline")
            backups.end(q, ident)


@test
def an_appliance_that_releases_as_it_reads_gets_every_byte():
    """Writers overwrite all of the disk meanwhile, at random; whatever was read is as it was at the
    beginning, and in the end nothing is kept any more."""
    old = content(1)
    with Stack() as s:
        disk = s.start("vda", SIZE, old, **GRAIN)
        stop = threading.Event()

        def write(number):
            random = rng("writer %d" % number)
            with disk.connect() as guest:
                while not stop.is_set():
                    off = random.randrange(SIZE // 512) * 512
                    guest.write(off, os.urandom(min(random.randrange(1, 40) * 512, SIZE - off)))

        def read():
            got = bytearray(SIZE)
            try:
                with s.connect("vda") as c:
                    for off in range(0, SIZE, 4 * BLOCK):
                        got[off:off + 4 * BLOCK] = c.read(off, 4 * BLOCK)
                        c.trim(off, 4 * BLOCK)
                    assert got == old
                    assert_released(c, 0, SIZE)
            finally:
                stop.set()

        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"], release=True)
            backups.in_threads([lambda n=n: write(n) for n in range(3)] + [read])
            d = disk_of(q, ident)
            assert d["bytes-released"] == SIZE and d["scratch-used"] == 0, d
            assert on_disk(s) == 0
            backups.end(q, ident)


@test
def nbdcopy_libnbd_and_qemu_io_read_and_trim():
    old = content(1)
    with Stack() as s:
        disk = s.start("vda", SIZE, old, **GRAIN)
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"], release=True)
            with disk.connect() as guest:
                guest.write(0, b"new" * (8 * M // 3))
            copy = s.path("copy")
            run(["nbdcopy", s.uri("vda"), copy])
            assert s.content(copy) == old
            out = run([sys.executable, "-m", "nbd", "-u", s.uri("vda"), "-c",
                       "assert h.can_trim() and not h.is_read_only()\n"
                       "h.trim(%d, 0)\n" % M +
                       "try:\n    h.pread(512, 0)\n    print('read')\n"
                       "except nbd.Error as e:\n    print('error', e.errno)"])
            assert "error EIO" in out.stdout, out.stdout
            run(["qemu-io", "-f", "raw", "-c", "discard %d %d" % (M, M), s.uri("vda")])
            out = run(["qemu-io", "-r", "-f", "raw", "-c", "read %d 512" % M, s.uri("vda")],
                      check=False)
            assert "Input/output error" in out.stdout + out.stderr, (out.stdout, out.stderr)
            assert disk_of(q, ident)["bytes-released"] == 2 * M
            with s.connect("vda") as c:
                assert_released(c, 0, 2 * M)
                assert c.read(2 * M, 14 * M) == old[2 * M:]
            backups.end(q, ident)


@test
def the_command_line_begins_such_backups():
    with Stack() as s:
        s.start("vda", SIZE, content(1), **GRAIN)
        s.varve("checkpoint", "create", "mon", "vda")
        s.varve("backup", "begin", "--id", "b", "--release", "--preserve", "dirty", "--since", "mon",
                "vda")
        with s.qmp() as q:
            b = one(q, "b")
            assert b["release"] is True and b["preserve"] == "dirty", b
        with s.connect("vda") as c:
            c.trim(0, M)
        assert "1.0 MiB" in s.varve("backup", "list").stdout or \
            "1M" in s.varve("backup", "list").stdout, s.varve("backup", "list").stdout
        s.varve("backup", "end", "b")
        r = s.varve("backup", "begin", "--preserve", "some", "vda", check=False)
        assert r.returncode == 2 and "all or dirty" in r.stderr, (r.returncode, r.stderr)


@test
def a_stopped_plugin_fails_the_trim_and_harms_no_other_disk():
    old = content(1)
    with Stack() as s:
        disk = s.start("vda", SIZE, old, **GRAIN)
        s.start("vdb", SIZE, old, **GRAIN)
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda", "vdb"], release=True)
            with s.connect("vda") as c, s.connect("vdb") as other:
                disk.process.send_signal(signal.SIGSTOP)
                try:
                    wait_for("it has stopped", lambda: stopped(disk.process))
                    refused(lambda: c.trim(0, M), errno.EIO)
                    other.trim(0, M)
                    assert_released(other, 0, M)
                    assert c.read(0, SIZE) == old
                finally:
                    disk.process.send_signal(signal.SIGCONT)
                s.wait_disk("vda", "live")
                c.trim(0, M)
                assert_released(c, 0, M)
                assert c.read(M, SIZE - M) == old[M:]
            backups.end(q, ident)


def stopped(process):
    with open("/proc/%d/stat" % process.pid) as f:
        return f.read().rsplit(")", 1)[1].split()[0] == "T"


# --- something between the daemon and the plugin ----------------------------------------------

HELLO, RELEASE = 1, 11
NEWEST_OF_VERSION_1 = 8


class Between:
    """Stands in front of the plugin's link.  look(kind, message) returns what is passed on; None: the
    link is cut."""

    def __init__(self, s, name, look):
        self.path = os.path.join(s.runtime, name, "link.sock")
        self.real = self.path + ".new"
        self.look = look
        os.rename(self.path, self.real)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(self.path)
        self.listener.listen(8)
        self.kinds = []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.forward, args=(client,), daemon=True).start()

    def forward(self, client):
        real = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        real.connect(self.real)
        with client, real:
            while self.one(client, real):
                pass

    def one(self, client, real):
        data, fds, _, _ = socket.recv_fds(client, 8192, 3)
        if data:
            kind = struct.unpack_from("I", data, 4)[0]
            self.kinds.append(kind)
            data = self.look(kind, data)
        if data:
            socket.send_fds(real, [data], fds)
        for fd in fds:
            os.close(fd)
        if not data:
            return False
        data, fds, _, _ = socket.recv_fds(real, 8192, 3)
        if data:
            socket.send_fds(client, [data], fds)
        for fd in fds:
            os.close(fd)
        return bool(data)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        os.rename(self.real, self.path)


def as_version_1(kind, data):
    """What an older plugin does, which knows one version, and no request of a later one."""
    if kind > NEWEST_OF_VERSION_1:
        return None
    if kind == HELLO:
        lowest, highest = struct.unpack_from("QQ", data, 16)
        return data[:16] + struct.pack("QQ", 1, 1) + data[32:] if lowest <= 1 <= highest else None
    return data


@test
def an_older_plugin_gets_a_clear_refusal_and_all_else_goes_on():
    old = content(1)
    with Stack() as s:
        disk = s.serve("vda", s.image("vda.img", SIZE, old), **GRAIN)
        plugin = Between(s, "vda", as_version_1)
        try:
            s.start_daemon()
            s.wait_disk("vda", "live")
            with s.qmp() as q, disk.connect() as guest:
                for args in ({"release": True}, {"preserve": "dirty"}):
                    cmd_refused(q, "older varve", "backup-begin", disks=[{"disk": "vda"}], **args)
                assert q.cmd("query-backups") == []
                ident, _ = backups.begin(q, ["vda"], checkpoint="mon")
                guest.write(0, b"new" * M)
                with s.connect("vda") as c, s.connect("vda+delta"):
                    assert c.read(0, SIZE) == old
                backups.end(q, ident)
                s.wait_disk("vda", "live")
            assert {1, 3, 4, 5} <= set(plugin.kinds), plugin.kinds
            assert max(plugin.kinds) <= NEWEST_OF_VERSION_1, plugin.kinds
            s.stop(s.daemon)
        finally:
            plugin.close()


@test
def a_trim_whose_link_breaks_is_said_again():
    """The plugin is gone when it is asked, and there again when the daemon looks."""
    old = content(1)
    cut = []

    def break_first(kind, data):
        if kind == RELEASE and len(cut) < 3:
            cut.append(kind)
            return None
        return data

    with Stack() as s:
        disk = s.serve("vda", s.image("vda.img", SIZE, old), **GRAIN)
        plugin = Between(s, "vda", break_first)
        try:
            s.start_daemon()
            s.wait_disk("vda", "live")
            with s.qmp() as q, disk.connect() as guest:
                ident, _ = backups.begin(q, ["vda"], release=True)
                guest.write(0, b"new" * M)
                with s.connect("vda") as c:
                    c.trim(0, M)
                    assert len(cut) == 3
                    assert_released(c, 0, M)
                    assert c.read(M, SIZE - M) == old[M:]
                assert disk_of(q, ident)["bytes-released"] == M
                backups.end(q, ident)
            s.stop(s.daemon)
        finally:
            plugin.close()


if __name__ == "__main__":
    main()
