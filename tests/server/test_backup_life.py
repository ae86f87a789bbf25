#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""How backups end, and how the daemon bears disks whose plugin, image or runtime folder goes."""
import errno
import os
import re
import shutil
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
import backups  # noqa: E402
from failing import Failing  # noqa: E402
from harness import K, M, Stack, wait_for  # noqa: E402
from nbdclient import NBDError  # noqa: E402
from qmpclient import QMPError  # noqa: E402
from tap import main, test  # noqa: E402

SIZE, BLOCK = 16 * M, 64 * K
GRAIN = {"granularity": "64K"}


def refused(qmp, pattern, command, **args):
    try:
        answer = qmp.cmd(command, **args)
    except QMPError as e:
        assert re.search(pattern, e.desc), e.desc
        return
    raise AssertionError("%s %r was accepted: %r" % (command, args, answer))


def state(qmp, ident):
    return next(b for b in qmp.cmd("query-backups") if b["id"] == ident)


def checkpoints(qmp, disk):
    return {c["name"]: c["disks"][0] for c in qmp.cmd("query-checkpoints", disk=disk)}


def unreadable(s, export, off):
    with s.connect(export) as c:
        try:
            c.read(off, BLOCK)
        except NBDError:
            return True
    return False


def exports(s):
    with s.qmp() as q:
        return {d["export"] for b in q.cmd("query-backups") if b["state"] in ("running", "degraded")
                for d in b["disks"]}


@test
def an_end_is_said_once_and_may_be_repeated():
    with Stack() as s:
        s.start("vda", SIZE, **GRAIN)
        with s.qmp() as q:
            q.cmd("backup-begin", id="a", disks=[{"disk": "vda"}], checkpoint="ca")
            refused(q, "still runs", "checkpoint-delete", name="ca")
            refused(q, "still runs", "backup-begin",
                    disks=[{"disk": "vda", "since": "ca", "export": "x"}])
            refused(q, "exists already", "backup-begin", disks=[{"disk": "vda"}])
            refused(q, "choose another id", "backup-begin", id="a",
                    disks=[{"disk": "vda", "export": "x"}])
            refused(q, "already", "backup-begin", checkpoint="ca",
                    disks=[{"disk": "vda", "export": "x"}])
            for _ in range(3):
                assert q.cmd("backup-end", id="a") == {}
            refused(q, "ended before, as completed", "backup-end", id="a", success=False)
            assert set(checkpoints(q, "vda")) == {"ca"}
            q.cmd("backup-begin", id="b", disks=[{"disk": "vda", "since": "ca"}], checkpoint="cb")
            for _ in range(2):
                assert q.cmd("backup-end", id="b", success=False) == {}
            refused(q, "ended before, as failed", "backup-end", id="b")
            assert set(checkpoints(q, "vda")) == {"ca"}
            assert [b["state"] for b in q.cmd("query-backups")] == ["completed", "failed"]


@test
def a_backup_that_nobody_reads_ends_by_its_ttl():
    with Stack() as s:
        s.start("vda", SIZE, **GRAIN)
        with s.qmp() as q:
            q.cmd("backup-begin", id="short", ttl=1, disks=[{"disk": "vda"}], checkpoint="c")
            q.cmd("backup-begin", id="read", ttl=1, disks=[{"disk": "vda", "export": "r"}])
            q.cmd("backup-begin", id="never", ttl=0, disks=[{"disk": "vda", "export": "n"}])
            with s.connect("r") as c:
                wait_for("the ttl", lambda: state(q, "short")["state"] == "failed")
                assert "ttl" in state(q, "short")["reason"]
                assert checkpoints(q, "vda") == {}
                assert state(q, "read")["state"] == "running"
                assert state(q, "read")["disks"][0]["clients"] == 1
                c.read(0, BLOCK)
            wait_for("its ttl, too", lambda: state(q, "read")["state"] == "failed")
            assert state(q, "never")["state"] == "running"


@test
def a_time_to_live_outlives_the_daemon_and_a_client_that_returns_goes_on():
    """A client keeps a backup beyond its ttl; the daemon is killed under it; then nobody comes to
    one, which ends as its ttl says and gives everything back, and the other goes on."""
    with Stack() as s:
        disk = s.start("vda", SIZE, **GRAIN)
        with disk.connect() as guest:
            guest.write(0, b"A" * M)
            with s.qmp() as q:
                q.cmd("checkpoint-create", name="base", disks=["vda"])
                guest.write(4 * M, b"A" * BLOCK)
                q.cmd("backup-begin", id="short", ttl=1, checkpoint="k",
                      disks=[{"disk": "vda", "since": "base", "export": "s"}])
                q.cmd("backup-begin", id="long", ttl=3600,
                      disks=[{"disk": "vda", "since": "base"}])
                guest.write(0, b"B" * M)
                with s.connect("s") as held, s.connect("vda") as other:
                    # One that is begun later with the same ttl ends while the held one stays.
                    q.cmd("backup-begin", id="watch", ttl=1, disks=[{"disk": "vda", "export": "w"}])
                    wait_for("a ttl", lambda: state(q, "watch")["state"] == "failed")
                    assert state(q, "short")["state"] == "running"
                    assert held.read(0, BLOCK) == other.read(0, BLOCK) == b"A" * BLOCK
                    s.kill(s.daemon)
            s.start_daemon()
            with s.qmp() as q:
                with s.connect("vda") as again:
                    assert again.read(0, BLOCK) == b"A" * BLOCK
                    wait_for("its ttl", lambda: state(q, "short")["state"] == "failed")
                    assert "ttl" in state(q, "short")["reason"]
                    assert set(checkpoints(q, "vda")) == {"base"}, "its checkpoint is left"
                    assert state(q, "long")["state"] == "running"
                    assert again.read(M - BLOCK, BLOCK) == b"A" * BLOCK
                with s.connect("vda") as third:
                    assert third.read(4 * M, BLOCK) == b"A" * BLOCK
                assert backups.dirty(s.nbd, "vda", "qemu:dirty-bitmap:backup-vda") == \
                    [(4 * M, BLOCK)]
                q.cmd("backup-end", id="long")
                assert s.disk_info("vda")["scratch"]["used"] == 0
                assert checkpoints(q, "vda")["base"]["dirty-bytes"] == M + BLOCK


@test
def what_a_degraded_backup_could_not_deliver_comes_with_the_next():
    """The client loses the neighbours of a lost block, too, when it reads them in one request; the
    next incremental backup brings all of the request."""
    with Stack() as s:
        disk = s.start("vda", SIZE, scratch_max="64K", **GRAIN)
        with disk.connect() as guest, s.qmp() as q:
            guest.write(0, b"A" * 4 * M)
            q.cmd("backup-begin", id="d", disks=[{"disk": "vda"}], checkpoint="k")
            guest.write(0, b"B" * BLOCK)           # kept: all that fits
            guest.write(2 * M, b"B" * BLOCK)       # lost
            with s.connect("vda") as c:
                assert c.read(0, BLOCK) == b"A" * BLOCK
                try:
                    c.read(2 * M - BLOCK, 3 * BLOCK)
                    raise AssertionError("a lost block was read")
                except NBDError:
                    pass
                assert c.read(2 * M + BLOCK, BLOCK) == b"A" * BLOCK
            wait_for("degraded", lambda: state(q, "d")["state"] == "degraded")
            assert state(q, "d")["lost-bytes"] == BLOCK
            q.cmd("backup-end", id="d")
            # two blocks written, and the two neighbours of the one that was lost
            assert checkpoints(q, "vda")["k"]["dirty-bytes"] == 4 * BLOCK, checkpoints(q, "vda")
            s.kill(s.daemon)
            s.start_daemon()
        with s.qmp() as q:
            q.cmd("backup-begin", id="next", disks=[{"disk": "vda", "since": "k"}])
            assert backups.dirty(s.nbd, "vda", "qemu:dirty-bitmap:backup-vda") == \
                [(0, BLOCK), (2 * M - BLOCK, 3 * BLOCK)]
            q.cmd("backup-end", id="next")


@test
def a_broken_backup_ends_only_as_failed():
    with Stack() as s:
        disk = s.start("vda", SIZE, scratch_max="64K", on_scratch_full="break", **GRAIN)
        with disk.connect() as guest, s.qmp() as q:
            guest.write(0, b"A" * 4 * M)
            q.cmd("backup-begin", id="b", disks=[{"disk": "vda"}], checkpoint="k")
            guest.write(0, b"B" * M)
            wait_for("broken", lambda: state(q, "b")["state"] == "broken")
            assert unreadable(s, "vda", 0)
            refused(q, "broken", "backup-end", id="b")
            q.cmd("backup-end", id="b", success=False)
            assert checkpoints(q, "vda") == {}
            q.cmd("backup-begin", id="again", disks=[{"disk": "vda"}])
            assert not unreadable(s, "vda", 2 * M)


@test
def a_stopped_plugin_fails_the_command_and_harms_no_other_disk():
    with Stack() as s:
        s.start("vda", SIZE, **GRAIN)
        vdb = s.start("vdb", SIZE, **GRAIN)
        with s.qmp() as q:
            q.cmd("checkpoint-create", name="one", disks=["vda", "vdb"])
            vdb.process.send_signal(signal.SIGSTOP)
            try:
                wait_for("it has stopped", lambda: open("/proc/%d/stat" % vdb.process.pid).read()
                         .rsplit(")", 1)[1].split()[0] == "T")
                refused(q, "vdb.*(stopped|answer|use)", "checkpoint-create", name="two",
                        disks=["vda", "vdb"])
                refused(q, "vdb", "backup-begin", disks=[{"disk": "vda"}, {"disk": "vdb"}])
                assert q.cmd("checkpoint-create", name="alone", disks=["vda"])["name"] == "alone"
                assert q.cmd("query-backups") == []
            finally:
                vdb.process.send_signal(signal.SIGCONT)
            s.wait_disk("vdb", "live")
            assert set(checkpoints(q, "vdb")) == {"one"}
            q.cmd("checkpoint-create", name="two", disks=["vda", "vdb"])
            info = s.disk_info("vda")
            assert info["backups"] == [] and info["scratch"]["used"] == 0


@test
def an_offline_disk_is_backed_up_and_may_be_served_meanwhile():
    with Stack() as s:
        disk = s.start("vda", SIZE, **GRAIN)
        with disk.connect() as guest:
            guest.write(M, b"A" * BLOCK)
        s.stop(disk.process)
        s.wait_disk("vda", "offline")
        with s.qmp() as q:
            q.cmd("checkpoint-create", name="c", disks=["vda"])
            q.cmd("backup-begin", id="b", disks=[{"disk": "vda", "since": "c"}], checkpoint="d")
            with s.connect("vda") as c:
                assert c.read(M, BLOCK) == b"A" * BLOCK
                disk = s.serve("vda", disk.image)
                with disk.connect() as guest:
                    guest.write(M, b"B" * BLOCK)
                    assert c.read(M, BLOCK) == b"A" * BLOCK
                    s.wait_disk("vda", "live")
                    guest.write(2 * M, b"B" * BLOCK)
                    assert c.read(2 * M, BLOCK) == b"\0" * BLOCK
            q.cmd("backup-end", id="b")
            assert checkpoints(q, "vda")["c"]["dirty-bytes"] == 2 * BLOCK
            assert checkpoints(q, "vda")["d"]["dirty-bytes"] == 2 * BLOCK


@test
def a_runtime_folder_that_goes_breaks_the_backup_and_nothing_is_believed():
    with Stack() as s:
        disk = s.start("vda", SIZE, **GRAIN)
        with s.qmp() as q:
            q.cmd("checkpoint-create", name="c", disks=["vda"])
            q.cmd("backup-begin", id="b", disks=[{"disk": "vda"}])
            with disk.connect() as guest:
                guest.write(M + 5, b"x")
            s.kill(disk.process)
            shutil.rmtree(os.path.join(s.runtime, "vda"))
            wait_for("broken", lambda: state(q, "b")["state"] == "broken")
            assert unreadable(s, "vda", 0)
            q.cmd("backup-end", id="b", success=False)
            q.cmd("checkpoint-create", name="d", disks=["vda"])
            # the region of the intent log that was written to
            assert checkpoints(q, "vda")["c"]["dirty-bytes"] == M
            assert checkpoints(q, "vda")["d"]["dirty-bytes"] == 0


@test
def what_could_not_go_on_never_succeeds_and_fails_as_soon_as_that_can_be_noted():
    """The machine was started anew, so the views are gone, and nothing can be written to the
    catalogue (to its slot that is next): the backup cannot be noted as failed.  Success is
    refused all the same; once the catalogue can be written it has failed by itself, its checkpoint
    is gone and the bitmap has what it had."""
    with Failing() as s:
        disk = s.start("vda", SIZE, **GRAIN)
        with disk.connect() as guest, s.qmp() as q:
            q.cmd("block-dirty-bitmap-add", node="vda", name="b")
            guest.write(0, b"A" * BLOCK)
            q.cmd("backup-begin", id="x", checkpoint="c", disks=[{"disk": "vda", "bitmap": "b"}])
            guest.write(M, b"B" * BLOCK)
        s.stop(disk.process)
        s.stop(s.daemon)
        shutil.rmtree(os.path.join(s.runtime, "vda"))
        slots = [os.path.join(s.state, name) for name in ("catalogue-0", "catalogue-1")]
        following = min(slots, key=lambda p: os.stat(p).st_mtime_ns)
        with s.orders["varved"].failing(following, errno.EIO, "write"):
            s.start_daemon()
            with s.qmp() as q:
                for _ in range(2):
                    refused(q, "'x' could not go on when the daemon was started: end it with success "
                            "false", "backup-end", id="x")
                    assert state(q, "x")["state"] == "running", state(q, "x")
                refused(q, "catalogue", "backup-end", id="x", success=False)
                refused(q, "in use.*end backup 'x'", "block-dirty-bitmap-clear", node="vda", name="b")
        with s.qmp() as q:
            wait_for("it has failed", lambda: state(q, "x")["state"] == "failed", s.daemon)
            refused(q, "'x' has ended before, as failed: Disk 'vda': what it kept did not survive",
                    "backup-end", id="x")
            q.cmd("backup-end", id="x", success=False)
            assert checkpoints(q, "vda") == {}
            b = q.cmd("query-block")[0]["dirty-bitmaps"][0]
            assert (b["count"], b["busy"]) == (2 * BLOCK, False), b


@test
def as_many_backups_as_a_disk_can_have_and_one_more():
    """The last one is refused before anything is done for it: not even a boundary is made."""
    with Stack() as s:
        s.start("vda", SIZE, **GRAIN)
        with s.qmp() as q:
            for i in range(64):
                q.cmd("backup-begin", id="b%d" % i, disks=[{"disk": "vda", "export": "e%d" % i}])
            epoch = s.disk_info("vda")["epoch"]
            refused(q, "Disk 'vda' has 64 running backups.*end one", "backup-begin",
                    disks=[{"disk": "vda"}])
            q.cmd("backup-end", id="b7")
            answer = q.cmd("backup-begin", id="x", disks=[{"disk": "vda"}])
            assert answer["disks"][0]["epoch"] == epoch + 1, (answer, epoch)
            for i in range(64):
                q.cmd("backup-end", id="b%d" % i)
            q.cmd("backup-end", id="x")


@test
def an_image_that_is_missing_is_named():
    with Stack() as s:
        disk = s.start("vda", SIZE, **GRAIN)
        s.stop(disk.process)
        os.rename(disk.image, disk.image + ".away")
        s.wait_disk("vda", "missing")
        with s.qmp() as q:
            assert disk.image in s.disk_info("vda")["reason"]
            refused(q, re.escape(disk.image), "backup-begin", disks=[{"disk": "vda"}])
            refused(q, re.escape(disk.image), "checkpoint-create", name="c", disks=["vda"])
            os.rename(disk.image + ".away", disk.image)
            s.wait_disk("vda", "offline")
            q.cmd("checkpoint-create", name="c", disks=["vda"])


@test
def a_lost_epoch_is_found_before_anything_is_begun():
    with Stack() as s:
        disk = s.start("vda", SIZE, **GRAIN)
        with disk.connect() as guest, s.qmp() as q:
            for name in ("a", "b", "c"):
                guest.write(0, b"A" * BLOCK)
                q.cmd("checkpoint-create", name=name, disks=["vda"])
            epochs = {n: d["epoch"] for n, d in checkpoints(q, "vda").items()}
            os.unlink(os.path.join(s.state, "vda", "epoch-%d-%d.map" % (epochs["b"], epochs["b"])))
            listed = checkpoints(q, "vda")
            assert [listed[n]["usable"] for n in ("a", "b", "c")] == [False, False, True]
            assert str(epochs["b"]) in listed["a"]["reason"]
            refused(q, "full backup", "backup-begin", disks=[{"disk": "vda", "since": "a"}])
            assert s.disk_info("vda")["epoch"] == epochs["c"], "a boundary was made for nothing"
            assert s.disk_info("vda")["state"] == "live"
            q.cmd("backup-begin", id="x", disks=[{"disk": "vda", "since": "c"}])
            q.cmd("backup-end", id="x")


@test
def a_deleted_checkpoint_gives_its_changes_to_the_one_before():
    with Stack() as s:
        disk = s.start("vda", SIZE, **GRAIN)
        with disk.connect() as guest, s.qmp() as q:
            for i in range(6):
                q.cmd("checkpoint-create", name="c%d" % i, disks=["vda"])
                guest.write(i * M, b"A" * BLOCK)
            for name, left in (("c3", 6), ("c1", 6), ("c5", 6), ("c0", 5)):
                q.cmd("checkpoint-delete", name=name)
                first = min(checkpoints(q, "vda"))
                wanted = 6 * BLOCK if first == "c0" else (6 - int(first[1:])) * BLOCK
                assert checkpoints(q, "vda")[first]["dirty-bytes"] == wanted, (name, left)
            assert set(checkpoints(q, "vda")) == {"c2", "c4"}
            files = [f for f in os.listdir(os.path.join(s.state, "vda")) if f.endswith(".map")]
            assert len(files) == 3, files  # c2 to c4, c4 to c5's boundary and on, live
            q.cmd("checkpoint-delete", name="c2", disks=["vda"])
            q.cmd("checkpoint-delete", name="c4")
            files = [f for f in os.listdir(os.path.join(s.state, "vda")) if f.endswith(".map")]
            assert len(files) == 1, files


if __name__ == "__main__":
    main()
