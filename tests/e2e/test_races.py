#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Races between guests, boundaries and readers, in forced orders.

hold.c, preloaded into nbdkit, holds the first thread that comes to a named point of its I/O until
it is let go.  No test sleeps to win: each waits for the thread to be held, and for what the others
do.
"""
import os
import select
import threading

import backups
from harness import K, M, wait_for
from held import Held as Holding
from nbdclient import CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES
from qmpclient import QMPError
from tap import main, test

SIZE, BLOCK = 16 * M, 64 * K
OLD = b"\x11" * SIZE
BITMAP = "qemu:dirty-bitmap:backup-vda"


class Held(Holding):
    """With the disk of these tests."""

    def __init__(self, **params):
        super().__init__(SIZE, OLD, granularity="64K", **params)


def view(s):
    return backups.pull(s.nbd, "vda", connections=1)


@test
def a_boundary_waits_for_writes_under_way_or_is_not_made():
    """
        writer   enters the epoch, sets the bit, is held before the image changes
        daemon   backup-begin: prepare, quiesce ... the writer does not end
        guest    another write waits, and goes on by the plugin's own deadline
        daemon   the boundary is refused: no backup, no checkpoint
        writer   is let go; the next boundary has its bytes and its bit, in one epoch
    """
    with Held(freeze_timeout="500ms") as s, s.qmp() as q:
        q.cmd("checkpoint-create", name="before", disks=["vda"])
        with s.disk.connect() as c, s.disk.connect() as other:
            for cmd, point, off in ((CMD_WRITE, "write.image.before", M),
                                    (CMD_WRITE_ZEROES, "punch.image.before", 2 * M),
                                    (CMD_TRIM, "punch.image.before", 3 * M)):
                s.hold(point)
                c.send(cmd, off, 512, data=b"\x22" * 512 if cmd == CMD_WRITE else None)
                s.wait_held(point)
                try:
                    backups.begin(q, ["vda"], checkpoint="c")
                    raise AssertionError("a boundary was made across a write under way")
                except QMPError as e:
                    assert "vda" in e.desc and "\n" not in e.desc, e
                other.call(CMD_WRITE if cmd != CMD_WRITE else CMD_TRIM, off + 4096, 512,
                           data=b"\x33" * 512 if cmd != CMD_WRITE else None)
                assert [k["name"] for k in q.cmd("query-checkpoints")] == ["before"]
                assert not [b for b in q.cmd("query-backups") if b["state"] == "running"]
                s.let_go(point)
                assert c.recv().error == 0
                os.unlink(os.path.join(s.points, point + ".hit"))
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "before"}])
            assert backups.dirty(s.nbd, "vda", BITMAP) == [(i * M, BLOCK) for i in (1, 2, 3)]
            image = view(s)
            assert image[M:M + 512] == b"\x22" * 512 and image == s.content(s.disk.image)
            backups.end(q, ident)


@test
def a_boundary_in_the_middle_of_a_write_comes_behind_it():
    """
        writer   enters the epoch, sets the bit, is held before the image changes
        daemon   backup-begin: quiesce waits
        writer   is let go, changes the image, leaves
        daemon   the boundary is made: the write is before it, whole, in image and bitmap
    """
    with Held(freeze_timeout="60s") as s, s.qmp() as q:
        q.cmd("checkpoint-create", name="before", disks=["vda"])
        for i in range(5):
            point = "write.image.before"
            s.hold(point)
            done = []
            with s.disk.connect() as c, s.disk.connect() as probe:
                c.send(CMD_WRITE, i * M, 512, data=b"\x22" * 512)
                s.wait_held(point)
                t = threading.Thread(target=lambda: done.append(
                    backups.begin(q, [{"disk": "vda", "since": "before"}])), daemon=True)
                t.start()
                # a write that waits shows that the disk is quiet: until then it goes through
                s.hold("write.image.after")
                probe.sock.settimeout(0.2)
                probe.send(CMD_WRITE, SIZE - 512, 512, data=b"\x11" * 512)
                s.let_go("write.image.after")
                s.let_go(point)
                assert c.recv().error == 0
                probe.sock.settimeout(60)
                assert probe.recv().error == 0
            t.join()
            ident, _ = done[0]
            assert view(s)[i * M:i * M + 512] == b"\x22" * 512, "the write is behind the boundary"
            assert (i * M, BLOCK) in backups.dirty(s.nbd, "vda", BITMAP)
            backups.end(q, ident)
            for name in os.listdir(s.points):
                os.unlink(os.path.join(s.points, name))


@test
def a_reader_that_meets_a_write_before_its_bytes_or_after_them_sees_the_past():
    """
        writer   keeps the block, sets the bit, is held before (then: after) it changes the image
        reader   reads the view: the old bytes
        writer   goes on
        reader   reads the view: the old bytes
    """
    with Held() as s, s.qmp() as q:
        ident, _ = backups.begin(q, ["vda"])
        with s.disk.connect() as c:
            for n, (cmd, point) in enumerate((
                    (CMD_WRITE, "write.image.before"), (CMD_WRITE, "write.image.after"),
                    (CMD_WRITE_ZEROES, "punch.image.before"),
                    (CMD_WRITE_ZEROES, "punch.image.after"), (CMD_TRIM, "punch.image.after"))):
                s.hold(point)
                c.send(cmd, n * M + 512, 1024, data=b"\x22" * 1024 if cmd == CMD_WRITE else None)
                s.wait_held(point)
                assert view(s) == OLD, "%s: the view shows the future while held" % point
                s.let_go(point)
                assert c.recv().error == 0
                assert view(s) == OLD, "%s: the view shows the future" % point
                os.unlink(os.path.join(s.points, point + ".hit"))
        backups.end(q, ident)


@test
def a_second_writer_of_a_block_waits_until_it_is_kept():
    """
        writer 1   is held while it reads (then: stores) what its block held
        writer 2   writes another sector of the block: it must not change the image yet
        writer 1   goes on; both end
        reader     the view has the old bytes of both sectors
    """
    with Held() as s, s.qmp() as q:
        ident, _ = backups.begin(q, ["vda"])
        with s.disk.connect() as one, s.disk.connect() as two:
            for n, point in enumerate(("read.image.before", "read.image.after",
                                       "write.scratch.before", "write.scratch.after")):
                s.hold(point)
                one.send(CMD_WRITE, n * M, 512, data=b"\x22" * 512)
                s.wait_held(point)
                s.hold("write.image.after")  # would be hit if writer 2 went ahead
                two.send(CMD_WRITE, n * M + 4096, 512, data=b"\x33" * 512)
                s.let_go(point)
                s.let_go("write.image.after")
                assert one.recv().error == 0 and two.recv().error == 0
                assert view(s) == OLD, "%s: the second writer was faster than the copy" % point
                image = s.content(s.disk.image)
                assert image[n * M:n * M + 512] == b"\x22" * 512
                assert image[n * M + 4096:n * M + 4608] == b"\x33" * 512
                for name in os.listdir(s.points):
                    os.unlink(os.path.join(s.points, name))
        backups.end(q, ident)


@test
def a_writer_that_keeps_a_block_delays_no_other_block():
    """
        writer 1   is held while it stores what its block held
        writer 2   writes and reads elsewhere, many times: it goes on
        daemon     a view, already open, goes on being read
    """
    with Held() as s, s.qmp() as q:
        ident, _ = backups.begin(q, ["vda"])
        with s.disk.connect() as one, s.disk.connect() as two:
            point = "write.scratch.before"
            s.hold(point)
            one.send(CMD_WRITE, 0, 512, data=b"\x22" * 512)
            s.wait_held(point)
            for i in range(1, 16):
                two.write(i * M, b"\x33" * 512)
                assert two.read(i * M, 512) == b"\x33" * 512
            assert view(s) == OLD
            assert not one_answered(one)
            s.let_go(point)
            assert one.recv().error == 0
            assert view(s) == OLD
        backups.end(q, ident)


def one_answered(c):
    """Whether an answer has come, without taking it."""
    return bool(select.select([c.sock], [], [], 0)[0])


@test
def kill_9_between_bit_and_bytes_loses_nothing():
    """
        writer   keeps the block, sets the bit, is held after (then: before) the image changed
        kernel   kill -9 of nbdkit
        nbdkit   serves the disk again
        reader   the view is the past; since the checkpoint the block is dirty
    """
    for n, point in enumerate(("write.image.after", "write.image.before", "write.scratch.after")):
        with Held() as s, s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"], checkpoint="c")
            c = s.disk.connect()
            s.hold(point)
            c.send(CMD_WRITE, n * M, 512, data=b"\x22" * 512)
            s.wait_held(point)
            s.kill(s.disk.process)
            c.close()
            for name in os.listdir(s.points):
                os.unlink(os.path.join(s.points, name))
            s.serve("vda", s.disk.image)
            s.wait_disk("vda", "live")
            assert view(s) == OLD, point
            with s.disk.connect() as c:
                changed = c.read(n * M, 512) != b"\x11" * 512
                c.write(n * M + 1024, b"\x44" * 512)
            assert view(s) == OLD, point
            backups.end(q, ident)
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "c"}])
            got = backups.dirty(s.nbd, "vda", BITMAP)
            assert got == [(n * M, BLOCK)], (point, changed, got)
            backups.end(q, ident)


if __name__ == "__main__":
    main()
