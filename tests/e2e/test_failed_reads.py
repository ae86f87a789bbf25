#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What a backup could not deliver is dirty in all that the next one may begin from."""
import backups
import nbdclient
from bitmaps import Disk, G64, add, change, frozen, PREFIX
from harness import M
from tap import main, test


def refused(c, off, length):
    """A read that touches a lost block."""
    try:
        c.read(off, length)
    except nbdclient.NBDError:
        return
    raise AssertionError("a lost block was read")


@test
def failed_reads_are_dirty_in_the_moved_bitmap():
    """Preimages are lost (a scratch of 256 KiB): the whole of a read that failed is dirty in the
    bitmap after success, also in one that does not record; and nothing is after mode never."""
    for mode, disabled, after in (("on-success", False, {0, 1, 2, 3, 4, 5, 9}),
                                  ("on-success", True, {4, 5, 9}), ("never", True, {8}),
                                  ("always", True, {4, 5, 9})):
        with Disk(16 * M, "64K", scratch_max="256K", on_scratch_full="degrade") as (s, c, q):
            c.write(0, b"z" * M)    # preimages of holes take no space
            add(q, "b")
            c.write(8 * G64, b"x")
            if disabled:
                change(q, "disable", "b")
            ident, _ = backups.begin(q, [{"disk": "vda", "bitmap": "b", "bitmap-mode": mode}])
            for i in (0, 1, 2, 3, 5, 9):
                c.write(i * G64, b"y" * G64)
            with s.connect("vda") as r:
                for off, n in ((4 * G64, 2 * G64), (9 * G64 + 100, 1)):
                    refused(r, off, n)
            backups.end(q, ident)
            assert frozen(s, q, ["b"])["b"] == after, (mode, frozen(s, q, ["b"]))


@test
def failed_reads_are_dirty_in_bitmaps_that_begin_with_the_backup():
    """A full backup and the bitmap for the next one, in one transaction: block 4 is the neighbour of
    a lost one in a read that failed, and was not written.  One that is older has its bytes elsewhere."""
    with Disk(16 * M, "64K", scratch_max="256K", on_scratch_full="degrade") as (s, c, q):
        c.write(0, b"z" * M)
        add(q, "older")
        q.cmd("transaction", actions=[
            {"type": PREFIX + "add", "data": {"node": "vda", "name": "new"}},
            {"type": "backup-begin", "data": {"id": "full", "disks": [{"disk": "vda"}]}}])
        q.cmd(PREFIX + "copy", node="vda", name="new", target="twin")
        add(q, "later")
        for i in (0, 1, 2, 3, 5, 9):
            c.write(i * G64, b"y" * G64)
        with s.connect("vda") as r:
            refused(r, 4 * G64, 2 * G64)
        backups.end(q, "full")
        written = {0, 1, 2, 3, 5, 9}
        assert frozen(s, q, ("older", "new", "twin", "later")) == {
            "older": written, "new": written | {4}, "twin": written | {4}, "later": written}


@test
def failed_reads_are_dirty_since_checkpoints_of_the_backups_transaction():
    """The checkpoint is an action of its own beside the backup, not the backup's argument.  Another
    backup that has begun from it meanwhile knows nothing of errors yet: what comes after that does."""
    with Disk(16 * M, "64K", scratch_max="256K", on_scratch_full="degrade") as (s, c, q):
        c.write(0, b"z" * M)
        q.cmd("checkpoint-create", name="older", disks=["vda"])
        q.cmd("transaction", actions=[
            {"type": "backup-begin", "data": {"id": "full", "disks": [{"disk": "vda"}]}},
            {"type": "checkpoint-create", "data": {"name": "new", "disks": ["vda"]}}])
        for i in (0, 1, 2, 3, 5, 9):
            c.write(i * G64, b"y" * G64)
        backups.begin(q, [{"disk": "vda", "since": "new", "export": "second"}], id="second",
                      checkpoint="next")
        with s.connect("vda") as r:
            refused(r, 4 * G64, 2 * G64)
        backups.end(q, "full")
        backups.end(q, "second")
        written = {0, 1, 2, 3, 5, 9}
        assert frozen(s, q, ("older", "new", "next")) == {
            "older": written, "new": written | {4}, "next": {4, 5}}


@test
def failed_reads_are_dirty_later_when_the_base_was_deleted_meanwhile():
    """As above, but the checkpoint goes when the other backup has ended, before the first one has."""
    with Disk(16 * M, "64K", scratch_max="256K", on_scratch_full="degrade") as (s, c, q):
        c.write(0, b"z" * M)
        q.cmd("transaction", actions=[
            {"type": "backup-begin", "data": {"id": "full", "disks": [{"disk": "vda"}]}},
            {"type": "checkpoint-create", "data": {"name": "new", "disks": ["vda"]}}])
        for i in (0, 1, 2, 3, 5):
            c.write(i * G64, b"y" * G64)
        backups.begin(q, [{"disk": "vda", "since": "new", "export": "second"}], id="second",
                      checkpoint="next")
        backups.end(q, "second")
        q.cmd("checkpoint-delete", name="new")
        with s.connect("vda") as r:
            refused(r, 4 * G64, 2 * G64)
        backups.end(q, "full")
        assert frozen(s, q, ("next",)) == {"next": {4, 5}}


if __name__ == "__main__":
    main()
