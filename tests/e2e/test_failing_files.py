#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""State directories that are full or fail, and each file in turn that cannot be read or written: the guest
goes on, both programs live, no byte is wrong, somebody is told, and it heals."""
import errno
import itertools
import os

import backups
import smallfs
from failing import Failing
from harness import M, Stack, wait_for
from nbdclient import NBDError
from qmpclient import QMPError
from releases import BLOCK, GRAIN, SIZE, content, disk_content
from tap import diag, main, test


def log_of(process):
    with open(process.log, errors="replace") as f:
        return f.read()


def wait_degraded(s, degraded):
    def there():
        d = s.disk_info("vda")
        return d["degraded"] == degraded and d
    return wait_for("degraded: %s" % degraded, there)


def last_change(q):
    q.cmd("query-version")  # takes in what was sent
    return [e["data"] for e in q.events if e["event"] == "DISK_STATE_CHANGED"][-1]


def heals(s, q, disk, since, base):
    """An incremental brings the base to what the disk is."""
    ident, answer = backups.begin(q, [{"disk": "vda", "since": since}])
    got = backups.apply(base, backups.pull(s.nbd, "vda"),
                        backups.dirty(s.nbd, "vda", answer["vda"]["context"]))
    assert backups.first_difference(bytes(got), disk_content(disk)) is None
    backups.end(q, ident)


def first_backup(s, q):
    ident, _ = backups.begin(q, ["vda"], checkpoint="c1")
    full = backups.pull(s.nbd, "vda")
    backups.end(q, ident)
    return full


# --- the state directory ------------------------------------------------------------------------------

@test
def a_full_state_directory_is_told_and_that_it_is_not_any_more():
    with Stack() as s, smallfs.tmpfs(s.state, 8 * M):
        disk = s.start("vda", SIZE, content(1), **GRAIN)
        with s.qmp() as q, disk.connect() as guest:
            full = first_backup(s, q)
            filler = smallfs.fill(s.state)
            guest.write(0, b"a" * BLOCK)
            d = wait_degraded(s, True)
            assert d["state"] == "live" and "no room" in d["reason"] and s.state in d["reason"], d
            e = last_change(q)
            assert e["degraded"] and e["reason"] == d["reason"], e
            assert "live, degraded" in s.varve("status").stdout
            assert "there is no room" in log_of(disk.process)
            os.unlink(filler)
            d = wait_degraded(s, False)
            assert "reason" not in d, d
            assert not last_change(q)["degraded"]
            wait_for("said", lambda: "works again" in log_of(disk.process))
            heals(s, q, disk, "c1", full)


@test
def a_state_directory_that_fails_is_told_the_guest_goes_on_and_it_heals():
    with Failing() as s:
        disk = s.start("vda", SIZE, content(1), **GRAIN)
        with s.qmp() as q, disk.connect() as guest:
            full = first_backup(s, q)
            names = iter(("c2", "c3"))
            clean = itertools.cycle(range(SIZE // BLOCK))
            for where, text in (("intent.log", "its intent log cannot be written"),
                                ("epoch-", "maps of its epochs cannot be written")):
                with s.orders["nbdkit"].failing(where, errno.EIO, "open", "write", "sync"):
                    def seen():
                        guest.write(next(clean) * BLOCK, os.urandom(BLOCK))
                        d = s.disk_info("vda")
                        return d["degraded"] and d
                    d = wait_for(where, seen)
                    assert text in d["reason"], (where, d)
                    assert last_change(q)["degraded"], where
                wait_degraded(s, False)
                assert not last_change(q)["degraded"], where
                q.cmd("checkpoint-create", name=next(names), disks=["vda"])  # clean blocks again
            heals(s, q, disk, "c1", full)


# --- each file ----------------------------------------------------------------------------------------

FILES = ("vda/disk.json", "vda/image-witness", "vda/epoch-", ".map", "vda/intent.log", "catalogue", ".scratch",
         "vda/control", ".live", ".lost", "vda/beat", "link.sock", "vda.img")
CALLS = (("open",), ("read",), ("write", "sync"), ("space", "name"))


guests = []  # errors that a guest got


def life(s, q, disk, byte):
    """What people do, any of which may be refused but for the guest's; what a view says is right or an
    error.  Nothing runs in the end."""
    def tried(name, args):
        try:
            return q.execute(name, args)
        except QMPError as e:
            assert e.desc, name
            refusals.append("%s: %s" % (name, e.desc))
            return None

    refusals = []
    old = disk_content(disk)
    got = tried("backup-begin", {"disks": [{"disk": "vda"}]})
    with disk.connect() as guest:
        for off in (0, 5 * M, 11 * M):
            try:
                guest.write(off, byte * BLOCK)
                assert guest.read(off, BLOCK) == byte * BLOCK
                guest.flush()
            except NBDError as e:
                guests.append(e)
    if got:
        with s.connect("vda") as c:
            for off in range(0, SIZE, M):
                try:
                    assert c.read(off, BLOCK) == old[off:off + BLOCK], off
                except NBDError as e:
                    assert e.errno == errno.EIO, e
    tried("checkpoint-create", {"name": "c-" + byte.hex(), "disks": ["vda"]})
    tried("checkpoint-delete", {"name": "c-" + byte.hex()})
    tried("query-disks", {})
    if got:
        tried("backup-end", {"id": got["id"], "success": False})
    return refusals


@test
def each_file_fails_in_turn_and_nothing_else_does():
    with Failing() as s:
        disk = s.start("vda", SIZE, content(1), **GRAIN)
        n = 0
        with s.qmp() as q:
            full = first_backup(s, q)
        for program in ("nbdkit", "varved"):
            for where in FILES:
                for classes in CALLS:
                    n += 1
                    what = "%s, %s, %s" % (program, where, "+".join(classes))
                    del guests[:]
                    with s.qmp() as q:
                        with s.orders[program].failing(where, errno.EIO, *classes) as orders:
                            refusals = life(s, q, disk, bytes([n]))
                            hits = orders.hits()
                        diag("%s: %d failed calls%s" % (what, hits, "".join(
                            "\n    " + r for r in refusals)))
                        # Only the image's own errors are the guest's.
                        assert not guests or (program == "nbdkit" and where == "vda.img"), (what, guests)
                        assert not refusals or hits, what
                        assert disk.process.poll() is None and s.daemon.poll() is None, what
                        for b in q.cmd("query-backups"):
                            if b["state"] not in ("completed", "failed"):
                                backups.end(q, b["id"], success=False)
                        wait_for("all is well after " + what, lambda: s.disk_info("vda")["state"] == "live")
                        heals(s, q, disk, "c1", full)


if __name__ == "__main__":
    main()
