#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Meta contexts of a backup's exports: which there are, what varve:changes and varve:lost tell."""
import errno

import backups
import nbdclient
from harness import K, M, Stack
from nbdclient import CMD_BLOCK_STATUS, CMD_READ, NBDError
from tap import main, test

SIZE, BLOCK = 16 * M, 64 * K
DIRTY = "qemu:dirty-bitmap:"
CHANGES = "varve:changes:"
LOST = "varve:lost"
ALLOC = "base:allocation"


def listed(stack, export, queries=()):
    with nbdclient.NBD(stack.nbd) as c:
        c.client_flags()
        c.structured_reply()
        return c.list_meta(export, queries)


def image():
    """Data in the first half, a hole in the second."""
    return b"\x11" * (SIZE // 2)


def changed(c):
    """Dirty with data; dirty and zero, trimmed; dirty and zero where a hole was; an old hole with
    data.  The trims are whole 64 KiB units."""
    c.write(M, b"d" * BLOCK)
    c.trim(2 * M, 4 * BLOCK)
    c.zero(SIZE // 2 + M, 2 * BLOCK)
    c.write(SIZE // 2 + 4 * M, b"e" * 100)


# offset, length, word of varve:changes after changed()
CHANGED = [(M, BLOCK, 1), (2 * M, 4 * BLOCK, 3), (SIZE // 2 + M, 2 * BLOCK, 3),
           (SIZE // 2 + 4 * M, BLOCK, 1)]


@test
def each_export_lists_its_contexts_and_only_them():
    """The main export and NAME@BASE have four contexts, one of them a qemu:dirty-bitmap:, deltas
    have base:allocation alone; wildcards list what begins with them."""
    with Stack() as s:
        s.start("vda", SIZE, image(), granularity="64K")
        with s.qmp() as q:
            q.cmd("checkpoint-create", name="mon", disks=["vda"])
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "mon"}])
            for export, name in (("vda", "backup-vda"), ("vda@mon", "mon")):
                every = [ALLOC, DIRTY + name, CHANGES + name, LOST]
                assert listed(s, export) == every, listed(s, export)
                assert listed(s, export, ["varve:"]) == every[2:], listed(s, export, ["varve:"])
                assert listed(s, export, [CHANGES]) == every[2:3]
                assert listed(s, export, [LOST]) == [LOST]
                assert listed(s, export, [DIRTY]) == every[1:2], "clients.md 5"
                assert listed(s, export, ["qemu:"]) == every[1:2]
            for export in ("vda+delta", "vda@mon+delta"):
                assert listed(s, export) == [ALLOC], listed(s, export)
                assert listed(s, export, ["varve:"]) == []
            backups.end(q, ident)


@test
def changes_tell_dirty_with_data_from_dirty_and_zero():
    """Same blocks as the dirty bitmap; bit 1 where trimmed, and only where zeroes are read."""
    with Stack() as s:
        disk = s.start("vda", SIZE, image(), granularity="64K")
        with s.qmp() as q:
            q.cmd("checkpoint-create", name="mon", disks=["vda"])
            with disk.connect() as c:
                changed(c)
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "mon"}])
            for export, name in (("vda", "backup-vda"), ("vda@mon", "mon")):
                got = backups.extents(s.nbd, export, CHANGES + name)
                assert [e for e in got if e[2]] == CHANGED, got
                assert backups.dirty(s.nbd, export, DIRTY + name) == [e[:2] for e in CHANGED]
            now = backups.pull(s.nbd, "vda")
            for off, n, word in CHANGED:
                assert word != 3 or now[off:off + n] == bytes(n)
            backups.end(q, ident)


@test
def changes_of_a_full_backup_are_everything():
    """A full backup: every block dirty, zero exactly where holes are."""
    with Stack() as s:
        s.start("vda", SIZE, image(), granularity="64K")
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"])
            got = backups.extents(s.nbd, "vda", CHANGES + "backup-vda")
            assert got == [(0, SIZE // 2, 1), (SIZE // 2, SIZE // 2, 3)], got
            backups.end(q, ident)


@test
def all_four_contexts_of_one_reply_end_together():
    """clients.md 1 and 2: one query over the disk, one reply, every context to the end."""
    with Stack() as s:
        disk = s.start("vda", SIZE, image(), granularity="64K")
        with s.qmp() as q:
            q.cmd("checkpoint-create", name="mon", disks=["vda"])
            with disk.connect() as c:
                changed(c)
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "mon"}])
            every = [ALLOC, DIRTY + "backup-vda", CHANGES + "backup-vda", LOST]
            with s.connect("vda", every) as c:
                for off, n in ((0, SIZE), (M - 1, 3), (M + 100, SIZE // 2)):
                    got = c.status(off, n)
                    assert sorted(got) == sorted(every)
                    for name in every:
                        assert sum(e[0] for e in got[name]) == n, (off, n, name, got[name])
            backups.end(q, ident)


@test
def changes_do_not_move_after_the_boundary():
    """What the guest writes and trims while the backup runs does not show."""
    with Stack() as s:
        disk = s.start("vda", SIZE, image(), granularity="64K")
        with s.qmp() as q, disk.connect() as guest:
            q.cmd("checkpoint-create", name="mon", disks=["vda"])
            changed(guest)
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "mon"}])
            guest.trim(M, BLOCK)
            guest.write(2 * M, b"n" * BLOCK)
            guest.write(5 * M, b"n" * BLOCK)
            got = backups.extents(s.nbd, "vda", CHANGES + "backup-vda")
            assert [e for e in got if e[2]] == CHANGED, got
            backups.end(q, ident)


def read_blocks(c, size, step=BLOCK):
    """{offset: bytes or NBDError} of every block, over one connection."""
    out = {}
    for off in range(0, size, step):
        try:
            out[off] = c.read(off, step)
        except NBDError as e:
            out[off] = e
    return out


@test
def lost_names_the_unreadable_blocks_and_grows():
    """A scratch of 256 KiB that degrades: exactly the blocks of varve:lost read EIO with a message
    that says so, all others are as at the boundary, on the same connection; what is lost later
    shows in the next query of that connection."""
    content = b"".join(bytes([i % 251 + 1]) * BLOCK for i in range(SIZE // BLOCK))
    with Stack() as s:
        disk = s.start("vda", SIZE, content, granularity="64K", scratch_max="256K",
                       on_scratch_full="degrade")
        with s.qmp() as q, disk.connect() as guest:
            q.cmd("checkpoint-create", name="mon", disks=["vda"])
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "mon"}])
            with s.connect("vda", [LOST]) as c, s.connect("vda@mon", [LOST]) as other:
                assert c.map(LOST) == [(0, SIZE, 0)], "nothing is lost yet"
                for i in range(8):
                    guest.write(i * M, b"new" * 1000)
                lost = [e for e in c.map(LOST) if e[2]]
                assert other.map(LOST) == c.map(LOST)
                assert len(lost) == 4, lost
                assert all(n == BLOCK and off % M == 0 for off, n, _ in lost), lost
                unreadable = {off for off, _, _ in lost}
                for off, got in read_blocks(c, SIZE).items():
                    if off in unreadable:
                        assert isinstance(got, NBDError), "a lost block was read"
                        assert got.errno == errno.EIO and got.text, (got.errno, got.text)
                    else:
                        assert got == content[off:off + BLOCK], off
                # reads that touch no lost byte of a larger range are right, too
                assert c.read(12 * M, 4 * M) == content[12 * M:]
                guest.write(9 * M + 5, b"later")
                more = [e for e in c.map(LOST) if e[2]]
                assert more == sorted(lost + [(9 * M, BLOCK, 1)]), more
                try:
                    c.read(9 * M, BLOCK)
                    raise AssertionError("a lost block was read")
                except NBDError as e:
                    assert e.errno == errno.EIO and e.text
                assert c.read(10 * M, BLOCK) == content[10 * M:10 * M + BLOCK]
            state = [b["state"] for b in q.cmd("query-backups") if b["id"] == ident]
            assert state == ["degraded"], state
            backups.end(q, ident, success=False)


@test
def read_across_a_lost_block_fails_alone():
    """64 reads in flight, some of which touch lost blocks: those fail, the others are right.  Of one
    that fails the client learns the first byte that is lost, and has what is in front of it."""
    content = b"".join(bytes([i % 251 + 1]) * BLOCK for i in range(SIZE // BLOCK))
    with Stack() as s:
        disk = s.start("vda", SIZE, content, granularity="64K", scratch_max="64K",
                       on_scratch_full="degrade")
        with s.qmp() as q, disk.connect() as guest:
            ident, _ = backups.begin(q, ["vda"])
            for i in range(4):
                guest.write(i * 2 * M + BLOCK, b"new")
            with s.connect("vda", [LOST]) as c:
                lost = {off for off, _, word in c.map(LOST) if word}
                assert len(lost) == 3, lost
                wanted = {c.send(CMD_READ, off, 256 * K): off for off in range(0, SIZE, 256 * K)}
                while wanted:
                    r = c.recv()
                    off = wanted.pop(r.cookie)
                    gone = lost & set(range(off, off + 256 * K, BLOCK))
                    if gone:
                        assert r.error == errno.EIO, (off, r.error)
                        assert r.error_off == min(gone), (off, r.error_off)
                        assert r.buf[:min(gone) - off] == content[off:min(gone)], off
                    else:
                        assert not r.error and r.buf == content[off:off + 256 * K], off
            backups.end(q, ident, success=False)


@test
def client_of_a_broken_backup_is_told_so_and_a_bad_request_is_another_thing():
    """EIO with a text that names the reason, for reads and allocation, again and again on the same
    connection; what the client asked wrongly stays EINVAL with a text of its own."""
    content = bytes(range(1, 256)) * (SIZE // 255) + b"x" * (SIZE % 255)
    with Stack() as s:
        disk = s.start("vda", SIZE, content, granularity="64K", scratch_max="64K",
                       on_scratch_full="break")
        with s.qmp() as q, disk.connect() as guest:
            ident, _ = backups.begin(q, ["vda"])
            with s.connect("vda", [ALLOC]) as c:
                assert c.read(0, BLOCK) == content[:BLOCK]
                for i in range(4):
                    guest.write(i * M, b"new")
                for _ in range(3):
                    for cmd, off in ((CMD_READ, 0), (CMD_READ, 8 * M), (CMD_BLOCK_STATUS, 0)):
                        try:
                            c.call(cmd, off, BLOCK)
                            raise AssertionError("a broken backup answered")
                        except NBDError as e:
                            assert e.errno == errno.EIO and "broken" in e.text, e
                    for cmd in (CMD_READ, CMD_BLOCK_STATUS):
                        try:
                            c.call(cmd, SIZE - 1, 2)
                            raise AssertionError("beyond the end")
                        except NBDError as e:
                            assert e.errno == errno.EINVAL and "beyond the end" in e.text, e
            backups.end(q, ident, success=False)


if __name__ == "__main__":
    main()
