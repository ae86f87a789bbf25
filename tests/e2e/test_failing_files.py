#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""State directories that are full or fail: the guest goes on, it is told while it lasts, and it heals."""
import errno
import itertools
import os

import backups
import smallfs
from failing import Failing
from harness import M, Stack, wait_for
from releases import BLOCK, GRAIN, SIZE, content, disk_content
from tap import main, test


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
            names = iter(("c2", "c3", "c4"))
            clean = itertools.cycle(range(SIZE // BLOCK))
            for where, text in (("intent.log", "its intent log cannot be written"),
                                ("epoch-", "maps of its epochs cannot be written"),
                                ("image-witness", "image-witness cannot be written")):
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


if __name__ == "__main__":
    main()
