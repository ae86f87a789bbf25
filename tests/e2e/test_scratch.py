#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""scratch-max holds, its threshold is told, and what gives way is never the guest."""
import errno

import backups
from harness import M, Stack, wait_for
from nbdclient import NBDError
from releases import (BLOCK, GRAIN, SIZE, assert_error, cmd_refused, content, disk_content, on_disk,
                      one)
from tap import main, test


def threshold_events(q):
    return [e["data"] for e in q.events if e["event"] == "SCRATCH_THRESHOLD"]


@test
def scratch_max_holds_and_its_threshold_is_told_once_per_crossing():
    old = content(1)
    with Stack() as s:
        disk = s.start("vda", SIZE, old, scratch_max="4M", on_scratch_full="degrade", **GRAIN)
        with s.qmp() as q, disk.connect() as guest:
            assert s.disk_info("vda")["scratch"] == {"used": 0, "max": 4 * M}
            ident, _ = backups.begin(q, ["vda"], release=True)
            guest.write(0, b"a" * 3 * M)
            assert s.disk_info("vda")["scratch"] == {"used": 3 * M, "max": 4 * M}

            def told(n):
                q.cmd("query-version")  # takes in what was sent
                own = [e for e in threshold_events(q) if e["limit"] == "scratch-max"]
                assert len(own) <= n, own
                return own[n - 1:] if len(own) == n else []

            assert not told(0)
            guest.write(3 * M, b"a" * (M // 2))
            e = wait_for("the event", lambda: told(1))[0]
            assert e["disk"] == "vda" and e["max"] == 4 * M and e["used"] == 3 * M + M // 2, e
            wait_two_ticks(s, q)
            assert told(1)
            with s.connect("vda") as c:
                c.trim(0, 2 * M)
                assert s.disk_info("vda")["scratch"]["used"] == M + M // 2
                wait_two_ticks(s, q)
                guest.write(4 * M, b"a" * 12 * M)  # every write succeeds
                wait_for("the second event", lambda: told(2))
                assert on_disk(s) <= 4 * M and s.disk_info("vda")["scratch"]["used"] == 4 * M
                wait_for("degraded", lambda: one(q, ident)["state"] == "degraded")
                lost = one(q, ident)["lost-bytes"]
                assert lost == 12 * M - (4 * M - M - M // 2), lost
                bad = 0
                for off in range(2 * M, SIZE, BLOCK):
                    try:
                        assert c.read(off, BLOCK) == old[off:off + BLOCK], off
                    except NBDError as x:
                        assert x.errno == errno.EIO and "could not be kept" in x.text, x
                        bad += BLOCK
                assert bad == lost
            assert disk_content(disk)[4 * M:] == b"a" * 12 * M
            backups.end(q, ident)
            wait_two_ticks(s, q)
            assert not told(3)


def wait_two_ticks(s, q):
    """The daemon has looked after its disks twice: backups with a ttl of 1 s end then."""
    for i in range(2):
        ident, _ = backups.begin(q, [{"disk": "vda", "export": "tick%d" % i}], ttl=1)
        wait_for("a tick", lambda: one(q, ident)["state"] == "failed")


@test
def a_backup_breaks_where_that_is_wanted_and_the_guest_sees_nothing():
    old = content(1)
    with Stack() as s:
        disk = s.start("vda", SIZE, old, scratch_max="4M", on_scratch_full="break", **GRAIN)
        with s.qmp() as q, disk.connect() as guest:
            ident, _ = backups.begin(q, ["vda"], release=True)
            with s.connect("vda") as c:
                c.trim(0, 8 * M)
                guest.write(0, b"a" * 8 * M)  # nobody needs it
                guest.write(8 * M, b"a" * 4 * M)
                assert one(q, ident)["state"] == "running"
                assert c.read(8 * M, 8 * M) == old[8 * M:]
                guest.write(12 * M, b"a" * BLOCK)
                wait_for("broken", lambda: one(q, ident)["state"] == "broken")
                assert_error(c, 8 * M, BLOCK, errno.EIO, "")
            guest.write(0, b"b" * SIZE)
            cmd_refused(q, "broken", "backup-end", id=ident)
            backups.end(q, ident, success=False)
            assert on_disk(s) == 0
            ident, _ = backups.begin(q, ["vda"])
            with s.connect("vda") as c:
                assert c.read(0, SIZE) == b"b" * SIZE
            backups.end(q, ident)


if __name__ == "__main__":
    main()
