#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What the daemon keeps of disks and backups while the world around it changes."""
import os
import signal
import time

import backups
from harness import K, M, Stack, wait_for
from qmpclient import QMPError
from tap import main, test

SIZE = 4 * M
OLD, NEW = b"\x11" * SIZE, b"\x22" * SIZE
BITMAP = "qemu:dirty-bitmap:backup-vda"


def pull(s, export="vda"):
    return backups.pull(s.nbd, export, connections=1)


@test
def the_backup_that_began_first_and_ends_last_is_remembered():
    """A backup that outlives a hundred others ends like any, and the same end again succeeds."""
    with Stack() as s:
        s.start("vda", SIZE, OLD)
        with s.qmp() as q:
            first, _ = backups.begin(q, [{"disk": "vda", "export": "first"}], checkpoint="c")
            for _ in range(101):
                backups.end(q, backups.begin(q, ["vda"])[0])
            assert pull(s, "first") == OLD
            backups.end(q, first)
            backups.end(q, first)
            assert first in [b["id"] for b in q.cmd("query-backups")]
            backups.end(q, backups.begin(q, [{"disk": "vda", "since": "c"}])[0])


@test
def an_image_put_in_the_place_of_another_is_the_one_that_is_backed_up():
    """mv new.img vda.img while nobody serves the disk: backups from then on hold the new bytes,
    offline and served, and an open one keeps its own."""
    for serve in (False, True):
        with Stack() as s:
            disk = s.start("vda", SIZE, OLD)
            q = s.qmp()
            backups.end(q, backups.begin(q, ["vda"])[0])
            assert s.stop(disk.process) == 0
            s.wait_disk("vda", "offline")
            backups.end(q, backups.begin(q, ["vda"])[0])
            os.replace(s.image("new.img", SIZE, NEW), disk.image)
            if serve:
                s.serve("vda", disk.image)
                s.wait_disk("vda", "live")
            ident, _ = backups.begin(q, ["vda"])
            got = pull(s)
            assert got == NEW, "%s: the backup holds the image that was removed" % serve
            backups.end(q, ident)


@test
def a_disk_whose_folder_was_away_for_a_while_goes_on():
    """The state folder is moved away and back under a running plugin: the same disk, its backup and
    checkpoints are there, and its next boundary is made."""
    with Stack() as s:
        disk = s.start("vda", SIZE, OLD)
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"], checkpoint="c")
            for _ in range(10):  # more often than a plugin has places for links
                os.rename(os.path.join(s.state, "vda"), s.path("away"))
                assert not q.cmd("query-disks")
                os.rename(s.path("away"), os.path.join(s.state, "vda"))
                s.wait_disk("vda", "live")
            with disk.connect() as c:
                c.write(0, NEW[:4096])
            assert pull(s) == OLD
            backups.end(q, ident)
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "c"}])
            assert pull(s) == s.content(disk.image)
            assert backups.dirty(s.nbd, "vda", BITMAP) == [(0, 4096)]
            backups.end(q, ident)
            assert len(q.cmd("query-disks")) == 1


@test
def a_stopped_plugin_holds_the_end_of_a_backup_up_for_a_moment_only():
    """kill -STOP of nbdkit, backup-end: it is committed, answered, and other commands go on; what
    the view kept is freed when the plugin goes on."""
    with Stack() as s:
        disk = s.start("vda", SIZE, OLD)
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"])
            os.kill(disk.process.pid, signal.SIGSTOP)
            try:
                start = time.monotonic()
                backups.end(q, ident)
                assert time.monotonic() - start < 15, "the end waited for a stopped plugin"
            finally:
                os.kill(disk.process.pid, signal.SIGCONT)
            s.wait_disk("vda", "live")
            backups.end(q, backups.begin(q, ["vda"])[0])
            wait_for("the scratch of ended backups is freed", lambda: not [
                f for f in os.listdir(os.path.join(s.state, "vda")) if f.endswith(".scratch")])


if __name__ == "__main__":
    main()
