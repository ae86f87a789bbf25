#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Writes to the image by somebody else: found, told by name, and repaired; and no false alarms."""
import os
import shutil

import backups
from foreign import foreign_write
from harness import K, M, Stack, run, wait_for
from nbdclient import NBDError
from qmpclient import QMPError
from tap import main, test

SIZE, BLOCK = 16 * M, 64 * K


def refused(q, word, name, /, **args):
    try:
        q.cmd(name, **args)
    except QMPError as e:
        assert word in e.desc, e.desc
        return e.desc
    raise AssertionError("%s was not refused" % name)


def begin_disk(s):
    """Served, with a full copy as of checkpoint c, a bitmap that records and one that was closed."""
    disk = s.start("vda", SIZE, b"\x11" * SIZE, granularity="64K")
    with s.qmp() as q, disk.connect() as c:
        for name in ("rec", "closed"):
            q.cmd("block-dirty-bitmap-add", node="vda", name=name)
        c.write(0, b"a" * BLOCK)
        q.cmd("block-dirty-bitmap-disable", node="vda", name="closed")
        ident, _ = backups.begin(q, ["vda"], checkpoint="c")
        copy = bytearray(backups.pull(s.nbd, "vda"))
        backups.end(q, ident)
        c.write(M, b"b" * BLOCK)
    return disk, copy


def incremental(s, q, copy, disk, since):
    """The chain, completed; the copy must be the image then."""
    ident, answer = backups.begin(q, [{"disk": "vda", "since": since}])
    whole = backups.pull(s.nbd, "vda")
    dirty = backups.dirty(s.nbd, "vda", answer["vda"]["context"])
    for off, length in dirty:
        copy[off:off + length] = whole[off:off + length]
    backups.end(q, ident)
    assert bytes(copy) == s.content(disk.image), "the chain is not the image"
    return dirty


def check_inconsistent(s, q):
    info = s.disk_info("vda")
    assert info["state"] == "inconsistent" and "disk-adopt" in info["reason"], info
    assert "somebody else" in info["changed"]["why"] or "another file" in info["changed"]["why"], info
    for word in ("vda", "full backup"):
        refused(q, word, "backup-begin", disks=[{"disk": "vda", "since": "c"}])
    for name in ("rec", "closed"):
        refused(q, "inconsistent", "backup-begin", disks=[{"disk": "vda", "bitmap": name}])
    node = [n for n in q.cmd("query-block")][0]
    bitmaps = node.get("dirty-bitmaps") or node["inserted"]["dirty-bitmaps"]
    assert all(b["inconsistent"] for b in bitmaps), bitmaps
    checkpoint = q.cmd("query-checkpoints")[0]["disks"][0]
    assert not checkpoint["usable"] and info["changed"]["why"] in checkpoint["reason"], checkpoint


@test
def after_a_stop_a_kill_and_a_crash_it_is_found_and_a_full_backup_repairs_it():
    """stop, kill -9 of nbdkit, and one with the runtime folder gone: somebody writes, the disk is served
    again (the guest has it), nothing from before can be used; from a new checkpoint on the chain is
    right, and what is inconsistent can be removed."""
    for how in ("stop", "kill", "crash"):
        with Stack() as s:
            disk, _ = begin_disk(s)
            if how == "stop":
                assert s.stop(disk.process) == 0
            else:
                s.kill(disk.process)
            if how == "crash":
                s.stop(s.daemon)
                shutil.rmtree(os.path.join(s.runtime, "vda"))
                s.start_daemon()
            foreign_write(disk.image)
            if how == "crash":  # later than a heartbeat can be
                ns = os.stat(disk.image).st_mtime_ns + 60_000_000_000
                os.utime(disk.image, ns=(ns, ns))
            disk = s.serve("vda", disk.image)
            s.wait_disk("vda", "inconsistent")
            with s.qmp() as q, disk.connect() as c:
                check_inconsistent(s, q)
                c.write(2 * M, b"n" * BLOCK)
                ident, _ = backups.begin(q, ["vda"], checkpoint="new")
                copy = bytearray(backups.pull(s.nbd, "vda"))
                backups.end(q, ident)
                assert s.disk_info("vda")["state"] == "live"
                c.write(3 * M, b"o" * BLOCK)
                assert incremental(s, q, copy, disk, "new") == [(3 * M, BLOCK)]
                refused(q, "vda", "backup-begin", disks=[{"disk": "vda", "since": "c"}])
                for name in ("rec", "closed"):
                    q.cmd("block-dirty-bitmap-remove", node="vda", name=name)
                q.cmd("checkpoint-delete", name="c")


@test
def an_open_view_breaks_and_gives_no_wrong_byte():
    """Nobody serves the disk, a backup is open: from the write on no read gives a byte of it, and the
    backup is broken with the reason."""
    with Stack() as s:
        disk, _ = begin_disk(s)
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"])
            assert s.stop(disk.process) == 0
            s.wait_disk("vda", "offline")
            with s.connect("vda") as c:
                assert c.read(5 * M, 4096) == b"\x11" * 4096
                foreign_write(disk.image)
                try:
                    assert c.read(5 * M, 4096) == b"\x11" * 4096, "a wrong byte"
                except NBDError:
                    pass
            wait_for("the backup breaks", lambda: [b for b in q.cmd("query-backups") if b["id"] == ident
                                                   and b["state"] == "broken"])
            reason = [b for b in q.cmd("query-backups") if b["id"] == ident][0]["reason"]
            assert "somebody else wrote" in reason, reason
            s.wait_disk("vda", "inconsistent")
            backups.end(q, ident, False)
            check_inconsistent(s, q)


@test
def adopting_makes_all_usable_again():
    """With trust nothing is dirty but what our guest wrote; without, everything is: both chains are
    completed and, where the word was true, right."""
    for trust in (True, False):
        for live in (True, False):
            with Stack() as s:
                disk, copy = begin_disk(s)
                assert s.stop(disk.process) == 0
                with s.qmp() as q:
                    if trust:  # only the time is another
                        ns = os.stat(disk.image).st_mtime_ns + 60_000_000_000
                        os.utime(disk.image, ns=(ns, ns))
                    else:
                        foreign_write(disk.image)
                    if live:
                        disk = s.serve("vda", disk.image)
                        s.wait_disk("vda", "inconsistent")
                    s.varve("disk", "adopt", "--trust" if trust else "--distrust", "vda")
                    if not live:
                        disk = s.serve("vda", disk.image)
                    s.wait_disk("vda", "live")
                    with disk.connect() as c:
                        c.write(7 * M, b"z" * BLOCK)
                    dirty = incremental(s, q, copy, disk, "c")
                    assert dirty == ([(M, BLOCK), (7 * M, BLOCK)] if trust else [(0, SIZE)]), dirty
                    assert not [b for b in q.cmd("query-checkpoints") if not b["disks"][0]["usable"]]


@test
def a_disk_whose_image_moved_is_adopted():
    """Refused where it was not, with a message; its checkpoints go on."""
    with Stack() as s:
        disk, copy = begin_disk(s)
        moved = s.path("moved.img")
        with s.qmp() as q:
            refused(q, "served", "disk-adopt", disk="vda", image=moved, trust=True)
            assert s.stop(disk.process) == 0
            os.rename(disk.image, moved)
            refused(q, "absolute", "disk-adopt", disk="vda", image="moved.img", trust=True)
            refused(q, disk.image, "disk-adopt", disk="vda", image=disk.image + "x", trust=True)
            s.varve("disk", "adopt", "--trust", "--image", moved, "vda")
            assert s.disk_info("vda")["image"] == moved
            disk = s.serve("vda", moved)
            s.wait_disk("vda", "live")
            assert incremental(s, q, copy, disk, "c") == [(M, BLOCK)]


@test
def a_forgotten_disk_is_new_when_it_is_served_again():
    with Stack() as s:
        disk, _ = begin_disk(s)
        with s.qmp() as q:
            refused(q, "served", "disk-forget", disk="vda")
            assert s.stop(disk.process) == 0
            s.wait_disk("vda", "offline")
            content = s.content(disk.image)
            s.varve("disk", "forget", "vda")
            assert not q.cmd("query-disks") and not q.cmd("query-checkpoints")
            assert not [n for n in os.listdir(s.state) if "vda" in n], os.listdir(s.state)
            assert not os.path.exists(os.path.join(s.runtime, "vda"))
            assert s.content(disk.image) == content
            s.serve("vda", disk.image)
            s.wait_disk("vda", "live")
            assert not q.cmd("query-disks")[0]["checkpoints"]


@test
def what_changes_no_byte_raises_no_alarm():
    """Stops, kills, modes and owners, reads, offline checkpoints: the chain goes on."""
    with Stack() as s:
        disk, copy = begin_disk(s)
        with s.qmp() as q:
            for i in range(4):
                with disk.connect() as c:
                    c.write(i * M, b"%d" % i * BLOCK)
                if i % 2:
                    s.kill(disk.process)
                else:
                    assert s.stop(disk.process) == 0
                    s.wait_disk("vda", "offline")
                    q.cmd("checkpoint-create", name="off%d" % i, disks=["vda"])
                os.chmod(disk.image, 0o640)
                os.chown(disk.image, os.getuid(), os.getgid())
                run(["sync", disk.image])
                with open(disk.image, "r+b") as f:
                    f.read(BLOCK)
                disk = s.serve("vda", disk.image)
                s.wait_disk("vda", "live")
                incremental(s, q, copy, disk, "c")


if __name__ == "__main__":
    main()
