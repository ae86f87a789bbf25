#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What the daemon keeps of disks and backups while the world around it changes."""
import os
import signal
import time

import backups
from harness import K, M, Stack, wait_for
from nbdclient import NBDError
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
def a_checkpoint_is_free_when_its_backup_has_succeeded():
    """The id of a backup that is long forgotten is used again: what the first one left is not the
    second one's."""
    with Stack() as s:
        s.start("vda", SIZE, OLD)
        with s.qmp() as q:
            backups.end(q, backups.begin(q, ["vda"], id="nightly", checkpoint="c")[0])
            for _ in range(102):  # a hundred are remembered beside the disk's newest
                backups.end(q, backups.begin(q, ["vda"])[0])
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "c"}], id="nightly")
            assert q.cmd("query-checkpoints")[0]["disks"][0]["usable"]
            q.cmd("checkpoint-delete", name="c")
            backups.end(q, ident)


@test
def what_a_base_could_not_deliver_is_brought_after_a_restart_too():
    """
        backup 1   loses a block; ends with success: checkpoint c knows it
        backup 2   since c: brings the block
        operator   deletes c: refused, or else backup 2 still brings the block
        daemon     is killed and started
        backup 2   still brings the block
    """
    with Stack() as s:
        disk = s.start("vda", 16 * M, OLD, granularity="64K", scratch_max="64K")
        with disk.connect() as guest, s.qmp() as q:
            one, _ = backups.begin(q, ["vda"], checkpoint="c")
            guest.write(0, NEW[:64 * K])
            guest.write(M, NEW[:64 * K])
            with s.connect("vda") as c:
                try:
                    c.read(M - 64 * K, 128 * K)
                    raise AssertionError("a lost block was read")
                except NBDError:
                    pass
            backups.end(q, one)
            two, _ = backups.begin(q, [{"disk": "vda", "since": "c"}])
            want = backups.dirty(s.nbd, "vda", BITMAP)
            assert (M - 64 * K, 128 * K) in want, want
            try:
                q.cmd("checkpoint-delete", name="c")
            except QMPError as e:
                assert two in e.desc and "\n" not in e.desc, e
            s.kill(s.daemon)
            s.start_daemon()
        s.wait_disk("vda", "live")
        assert backups.dirty(s.nbd, "vda", BITMAP) == want
        with s.qmp() as q:
            backups.end(q, two)
            if [c for c in q.cmd("query-checkpoints")]:
                q.cmd("checkpoint-delete", name="c")


@test
def an_image_put_in_the_place_of_another_is_the_one_that_is_backed_up():
    """mv new.img vda.img while nobody serves the disk: backups from then on hold the new bytes,
    offline and served; one that was open is broken and says why."""
    for serve in (False, True):
        with Stack() as s:
            disk = s.start("vda", SIZE, OLD)
            q = s.qmp()
            backups.end(q, backups.begin(q, ["vda"])[0])
            kept, _ = backups.begin(q, [{"disk": "vda", "export": "kept"}], checkpoint="k")
            assert pull(s, "kept") == OLD
            assert s.stop(disk.process) == 0
            s.wait_disk("vda", "offline")
            backups.end(q, backups.begin(q, ["vda"])[0])
            assert pull(s, "kept") == OLD
            os.replace(s.image("new.img", SIZE, NEW), disk.image)
            if serve:
                s.serve("vda", disk.image)
                s.wait_disk("vda", "inconsistent")  # and what is known of the other is no use
            ident, _ = backups.begin(q, ["vda"])
            got = pull(s)
            assert got == NEW, "%s: the backup holds the image that was removed" % serve
            backups.end(q, ident)
            broken = next(b for b in q.cmd("query-backups") if b["id"] == kept)
            assert broken["state"] == "broken" and ("replaced" in broken["reason"] or
                                                      "another file" in broken["reason"]), broken
            try:
                pull(s, "kept")
                raise AssertionError("a view was read whose image is gone")
            except NBDError:
                pass
            backups.end(q, kept, False)
            assert not q.cmd("query-checkpoints")
            q.__exit__(None, None, None)


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
