#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""backup-push: the daemon copies a point in time to a file or an NBD export.

What is right is what the image held when the push began: no guest writes while it begins, and they
write while it runs, which is slow by its speed or a peer that is held."""
import json
import os
import random
import re
import signal
import threading

import backups
import nbdclient
import smallfs
from bitmaps import Disk, G64, SIZE, add, frozen, refused
from harness import K, M, run, wait_for
from jobs import Held, OnTerminal, Peer, concluded, job, nbdkit
from tap import SEED, main, test

SLOW = 16 * M  # bytes per second: long enough for writers, short enough for us


class Writers:
    """A thread that writes all over the disk until it is told to stop; through its own connection."""

    def __init__(self, s, size=SIZE, seed=SEED):
        self.rng, self.size, self.stop = random.Random(seed), size, threading.Event()
        self.written, self.error = 0, None
        self.c = s.disks["vda"].connect()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        try:
            while not self.stop.is_set():
                off = self.rng.randrange(self.size // 4096 - 64) * 4096
                if self.rng.random() < 0.2:
                    self.c.zero(off, self.rng.randrange(1, 64) * 4096)
                else:
                    self.c.write(off, self.rng.randbytes(self.rng.randrange(1, 16) * 4096))
                self.written += 1
        except Exception as e:  # told by the test
            self.error = e

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.stop.set()
        self.thread.join()
        self.c.disc()
        assert self.error is None, self.error


def wait_in_the_middle(q, ident):
    def some():
        j = job(q, ident)
        assert j["status"] == "running", j
        return 0 < j["current-progress"] < j["total-progress"]
    wait_for("job %s has begun its work" % ident, some)


def push(q, target, **more):
    """Begins it; the job's id."""
    return q.execute("backup-push", dict({"disk": "vda", "target": target}, **{
        k.replace("_", "-"): v for k, v in more.items()}))["id"]


def pushed(q, target, **more):
    j = concluded(q, push(q, target, **more))
    assert "error" not in j and "cancelled" not in j, j
    assert j["current-progress"] == j["total-progress"], j
    return j


def failed(q, ident, *says):
    j = concluded(q, ident)
    for text in says:
        assert text in j.get("error", ""), (text, j)
    assert "error" in j, j


def state(q, ident):
    """Of the backup behind a job."""
    return [b for b in q.cmd("query-backups") if b["id"] == ident][0]["state"]


def same(path, content):
    with open(path, "rb") as f:
        got = f.read()
    assert len(got) == len(content), (len(got), len(content))
    if got != content:
        at = next(i for i in range(len(got)) if got[i] != content[i])
        raise AssertionError("%s differs at byte %d, block %d" % (path, at, at // G64))


def instant(s, c):
    c.flush()
    return s.content(s.path("vda.img"))


def fill(c, seed=SEED):
    """Data, holes and zeroes."""
    rng = random.Random(seed)
    for i in range(0, SIZE, 4 * M):
        c.write(i, rng.randbytes(M))
        c.write(i + M + 8 * K, rng.randbytes(12 * K))
        c.write(i + 3 * M, bytes(256 * K))
    c.flush()


def marker(path):
    with open(path + ".partial") as f:
        return json.load(f)


def is_whole(path):
    return not os.path.exists(path + ".partial")


# --- to files ---------------------------------------------------------------------------------

@test
def a_full_push_is_the_disk_at_its_instant_while_writers_go_on():
    with Disk() as (s, c, q):
        fill(c)
        target, content = s.path("full.img"), instant(s, c)
        ident = push(q, target, speed=SLOW, checkpoint="a")
        with Writers(s) as w:
            wait_in_the_middle(q, ident)
            assert marker(target)["kind"] == "full" and marker(target)["disk"] == "vda"
            wait_for("writes under way", lambda: w.written > 100)
            j = concluded(q, ident)
            assert "error" not in j, j
        same(target, content)
        assert is_whole(target)
        # Holes and zeroes take no space: 16 times 1 MiB and a bit.
        assert os.stat(target).st_blocks * 512 < 20 * M, os.stat(target).st_blocks * 512
        assert [p["name"] for p in q.cmd("query-checkpoints")] == ["a"]
        # The checkpoint is a base.
        content = instant(s, c)
        pushed(q, target, since="a")
        same(target, content)


@test
def increments_make_todays_of_yesterdays_while_writers_go_on():
    """Ten pushes in a row, each since the one before."""
    with Disk() as (s, c, q):
        fill(c)
        target = s.path("chain.img")
        pushed(q, target, checkpoint="p0")
        for i in range(1, 11):
            with Writers(s, seed=SEED + i) as w:
                wait_for("some writes", lambda: w.written > 50)
            content = instant(s, c)
            ident = push(q, target, since="p%d" % (i - 1), checkpoint="p%d" % i, speed=4 * SLOW)
            with Writers(s, seed=SEED + 100 + i) as w:
                wait_for("some writes", lambda: w.written > 20)
                j = concluded(q, ident)
                assert "error" not in j, j
            same(target, content)
            assert is_whole(target)


@test
def an_increment_writes_what_is_dirty_and_punches_what_became_zero():
    with Disk() as (s, c, q):
        c.write(0, b"x" * 4 * M)
        target = s.path("t.img")
        pushed(q, target, checkpoint="a")
        c.write(G64, b"y" * 100)
        c.zero(2 * M, M)
        c.flush()
        with open(target, "r+b") as f:      # a scribble where nothing is dirty stays
            f.seek(10 * G64)
            f.write(b"scribble")
        before = os.stat(target).st_blocks
        ident = push(q, target, since="a")
        j = concluded(q, ident)
        assert j["total-progress"] == M + G64, j
        content = bytearray(instant(s, c))
        content[10 * G64:10 * G64 + 8] = b"scribble"
        same(target, content)
        assert before - os.stat(target).st_blocks == M // 512


@test
def zeroes_within_data_are_kept_as_holes_on_a_target_that_had_data():
    """Written zeroes are no hole of the image; the old data under them must go, too."""
    with Disk() as (s, c, q):
        c.write(0, b"x" * 4 * M)
        target = s.path("t.img")
        pushed(q, target, checkpoint="a")
        c.write(0, b"y" * 100 * K + bytes(400 * K) + b"z" * 100)
        content = instant(s, c)
        pushed(q, target, since="a")
        same(target, content)


@test
def a_push_onto_what_it_should_not_change_is_refused_and_changes_nothing():
    with Disk() as (s, c, q):
        c.write(0, b"x" * M)
        add(q, "b")
        q.cmd("checkpoint-create", name="cp", disks=["vda"])
        there, short = s.path("there"), s.path("short")
        for path, size in ((there, SIZE), (short, SIZE - 1)):
            with open(path, "wb") as f:
                f.truncate(size)
        os.symlink("nowhere", s.path("dangling"))
        for pattern, args in (
                ("exists: name another", {"target": there}),
                ("is not there", {"target": s.path("none"), "since": "cp"}),
                ("has 67108863 bytes and disk 'vda' 67108864", {"target": short, "bitmap": "b"}),
                ("absolute path", {"target": "there"}),
                ("Is a directory", {"target": s.dir, "overwrite": True}),
                ("No such file", {"target": s.path("no/t")}),
                ("leads nowhere", {"target": s.path("dangling")}),
                ("in use|is the image of disk 'vda'", {"target": s.path("vda.img"), "overwrite": True}),
                ("no checkpoint 'other'", {"target": there, "since": "other"}),
                ("exclude each other", {"target": there, "since": "cp", "bitmap": "b"}),
                ("without a bitmap", {"target": s.path("none"), "bitmap-mode": "never"}),
        ):
            refused(q, pattern, "backup-push", disk="vda", **args)
        refused(q, "", "backup-push", cls="DeviceNotFound", disk="nobody", target=there)
        assert q.cmd("query-jobs") == [] and q.cmd("query-backups") == []
        assert not [f for f in os.listdir(s.dir) if "partial" in f]
        pushed(q, there, overwrite=True)
        same(there, instant(s, c))


@test
def an_unfinished_copy_is_finished_by_the_same_push_and_by_no_other():
    with Disk() as (s, c, q):
        fill(c)
        target = s.path("t.img")
        ident = push(q, target, speed=1)
        wait_for("it is marked", lambda: not is_whole(target))
        q.cmd("job-cancel", id=ident)
        assert concluded(q, ident)["cancelled"]
        assert not is_whole(target)
        q.cmd("checkpoint-create", name="a", disks=["vda"])
        refused(q, "unfinished full copy", "backup-push", disk="vda", target=target, since="a")
        pushed(q, target, checkpoint="b")
        same(target, instant(s, c))
        assert is_whole(target)
        # An increment that was cut short: not from another base, but from the same one, later.
        c.write(0, b"1" * M)
        ident = push(q, target, since="b", speed=1)
        wait_for("it is marked", lambda: not is_whole(target))
        q.cmd("job-cancel", id=ident)
        concluded(q, ident)
        assert marker(target)["kind"] == "incremental"
        refused(q, "unfinished incremental copy", "backup-push", disk="vda", target=target, since="a")
        refused(q, "unfinished incremental copy", "backup-push", disk="vda", target=target)
        c.write(8 * M, b"2" * M)
        content = instant(s, c)
        pushed(q, target, since="b")
        same(target, content)
        assert is_whole(target)


# --- bases ------------------------------------------------------------------------------------

@test
def a_bitmap_moves_by_its_mode_and_only_after_success():
    for mode, good, after in (("on-success", True, {3}), ("on-success", False, {0, 1, 3, 8}),
                              ("never", True, {0, 1, 3, 8}), ("never", False, {0, 1, 3, 8}),
                              ("always", True, {3}), ("always", False, {0, 1, 3, 8})):
        with Disk() as (s, c, q):
            c.write(0, b"x" * 2 * M)
            target = s.path("t.img")
            pushed(q, target)
            add(q, "b")
            c.write(0, b"y" * 2 * G64)
            c.write(8 * G64, b"y")
            content = instant(s, c)
            ident = push(q, target, bitmap="b", bitmap_mode=mode, speed=1)
            wait_for("it has begun", lambda: not is_whole(target))
            refused(q, "in use|busy", "block-dirty-bitmap-clear", node="vda", name="b")
            c.write(3 * G64, b"z")
            if good:
                q.cmd("block-job-set-speed", device=ident, speed=0)
                concluded(q, ident)
                same(target, content)
            else:
                q.cmd("job-cancel", id=ident)
                concluded(q, ident)
            assert frozen(s, q, ["b"])["b"] == after, (mode, good, frozen(s, q, ["b"]))


@test
def a_push_that_fails_gives_everything_back():
    """The checkpoint goes, preimages are freed, the backup has failed and says why."""
    with Disk() as (s, c, q):
        fill(c)
        with nbdkit(s, "--filter=error", "memory", str(SIZE), "error-pwrite=ENOSPC",
                    "error-pwrite-rate=1") as peer:
            ident = push(q, peer.uri, checkpoint="a")
            failed(q, ident, peer.uri, "writing", "No space left on device")
        assert q.cmd("query-checkpoints") == []
        b, = q.cmd("query-backups")
        assert b["state"] == "failed" and "No space left" in b["reason"], b
        c.write(0, b"x" * M)
        wait_for("nothing is kept", lambda: s.disk_info("vda")["scratch"]["used"] == 0)


@test
def a_full_file_system_fails_the_push_and_the_marker_stays():
    """And with room again the same push makes a whole copy of what is there."""
    smallfs.enter()     # before the daemon begins: it is to see what is mounted
    with Disk() as (s, c, q):
        fill(c)
        with smallfs.tmpfs(s.path("small"), 4 * M) as small:
            target = os.path.join(small, "t.img")
            failed(q, push(q, target, checkpoint="a"), target, "No space left on device")
            assert marker(target)["kind"] == "full" and q.cmd("query-checkpoints") == []
            smallfs.run("mount", "-o", "remount,size=100M", small)
            pushed(q, target, checkpoint="a")
            same(target, instant(s, c))
            assert is_whole(target)


@test
def the_backup_of_a_push_ends_with_it_and_is_nobody_elses():
    with Disk() as (s, c, q):
        c.write(0, b"x" * M)
        target = s.path("t.img")
        answer = q.cmd("backup-push", disk="vda", target=target, speed=1)
        refused(q, "is what job '%s' copies" % answer["id"], "backup-end", id=answer["backup"])
        # It has no export, takes nobody's name, and is one of several.
        ident, _ = backups.begin(q, ["vda"])
        second = push(q, s.path("t2.img"))
        concluded(q, second)
        backups.end(q, ident)
        q.cmd("block-job-set-speed", device=answer["id"], speed=0)
        concluded(q, answer["id"])
        assert state(q, answer["backup"]) == "completed"
        same(target, instant(s, c))


@test
def what_could_not_be_kept_fails_the_push():
    with Disk(16 * M, "64K", scratch_max="256K", on_scratch_full="degrade") as (s, c, q):
        c.write(0, b"z" * M)
        ident = push(q, s.path("t.img"), speed=1)
        wait_for("it has begun", lambda: not is_whole(s.path("t.img")))
        for i in range(10):
            c.write(i * G64, b"y" * G64)
        q.cmd("block-job-set-speed", device=ident, speed=0)
        failed(q, ident, "vda")
        assert not is_whole(s.path("t.img"))


def content_of(peer):
    """Of an export, by one connection: not all servers take several."""
    with nbdclient.connect(peer.sock) as c:
        return b"".join(c.read(off, G64) for off in range(0, c.size, G64))


# --- to NBD -----------------------------------------------------------------------------------

def qcow2_target(s):
    path = s.path("target.qcow2")
    run(["qemu-img", "create", "-q", "-f", "qcow2", path, SIZE])
    return Peer(s, "qemu-nbd", "-k", "@SOCK@", "-t", "-f", "qcow2", path)


@test
def an_export_of_anybodys_becomes_the_disk():
    """The last one takes nothing smaller than 16 of the disk's blocks."""
    with Disk(granularity="4K") as (s, c, q):
        fill(c)
        s.image("file.img", SIZE, b"old" * M)
        for i, peer in enumerate((nbdkit(s, "file", s.path("file.img")), nbdkit(s, "memory", str(SIZE)),
                     nbdkit(s, "--filter=nozero", "memory", str(SIZE)), qcow2_target(s),
                     nbdkit(s, "--filter=blocksize-policy", "memory", str(SIZE),
                            "blocksize-minimum=65536", "blocksize-preferred=65536",
                            "blocksize-maximum=65536", "blocksize-error-policy=error"))):
            with peer:
                name = "cp%d" % i
                content = instant(s, c)
                ident = push(q, peer.uri, checkpoint=name)
                with Writers(s):
                    assert "error" not in concluded(q, ident)
                assert content_of(peer) == content, peer
                content = instant(s, c)
                ident = push(q, peer.uri, since=name)
                with Writers(s):
                    assert "error" not in concluded(q, ident)
                assert content_of(peer) == content, peer


@test
def a_target_that_will_not_do_is_told_by_name():
    with Disk() as (s, c, q):
        with nbdkit(s, "memory", str(SIZE - M)) as peer:
            failed(q, push(q, peer.uri), peer.uri, "as large as the disk")
        with nbdkit(s, "-r", "memory", str(SIZE)) as peer:
            failed(q, push(q, peer.uri), peer.uri, "for reading only")
        failed(q, push(q, "nbd+unix:///?socket=" + s.path("nobody")), "nobody")
        assert all(b["state"] == "failed" for b in q.cmd("query-backups"))


@test
def a_target_that_dies_fails_the_push():
    with Disk() as (s, c, q):
        fill(c)
        with nbdkit(s, "memory", str(SIZE)) as peer:
            ident = push(q, peer.uri, speed=SLOW)
            wait_in_the_middle(q, ident)
            peer.kill()
            failed(q, ident, peer.uri)
        assert state(q, q.cmd("query-backups")[0]["id"]) == "failed"


@test
def a_target_that_is_held_holds_nobody_else():
    """The peer answers nothing: guests write, commands are answered, and the job can be cancelled."""
    with Disk() as (s, c, q):
        fill(c)
        s.image("held.img", SIZE)
        with Held(s, s.path("held.img")) as peer:
            ident = push(q, peer.uri, speed=SLOW)
            wait_in_the_middle(q, ident)
            peer.hold()
            c.write(0, b"x" * M)
            c.flush()
            backups.end(q, backups.begin(q, ["vda"])[0])
            assert job(q, ident)["status"] == "running"
            q.cmd("job-cancel", id=ident)
            assert concluded(q, ident)["cancelled"]


@test
def a_target_that_is_slower_than_the_writers_gets_the_instant():
    with Disk() as (s, c, q):
        c.write(0, random.Random(SEED).randbytes(16 * M))
        s.image("slow.img", SIZE)
        with nbdkit(s, "--filter=delay", "file", s.path("slow.img"), "delay-write=50ms") as peer:
            content = instant(s, c)
            ident = push(q, peer.uri)
            with Writers(s) as writers:
                wait_in_the_middle(q, ident)
                before = writers.written
                assert "error" not in concluded(q, ident)
                assert writers.written > before
            assert content_of(peer) == content


@test
def a_paused_push_rests_until_it_is_resumed():
    """Others come to their end meanwhile, and it has all the speed that it wants."""
    with Disk() as (s, c, q):
        fill(c)
        content = instant(s, c)
        ident = push(q, s.path("t.img"), speed=1)
        wait_in_the_middle(q, ident)
        q.cmd("job-pause", id=ident)
        q.cmd("block-job-set-speed", device=ident, speed=0)
        before = job(q, ident)
        c.write(0, b"later" * K)
        for i in range(8):
            pushed(q, s.path("other%d.img" % i))
        assert job(q, ident) == before and before["status"] == "paused", before
        q.cmd("job-resume", id=ident)
        assert "error" not in concluded(q, ident)
        same(s.path("t.img"), content)


# --- on the command line ----------------------------------------------------------------------

@test
def varve_push_waits_for_the_end_and_says_it():
    with Disk() as (s, c, q):
        fill(c)
        here = os.getcwd()
        os.chdir(s.dir)     # a path that the daemon would not find by itself
        try:
            r = s.varve("push", "--checkpoint", "a", "vda", "t.img")
            assert re.fullmatch(r"t\.img: .* pushed\n", r.stdout) and r.stderr == "", r
            c.write(0, b"x" * M)
            r = s.varve("--json", "push", "--since", "a", "vda", "t.img")
            assert json.loads(r.stdout)["current-progress"] == M, r
            same("t.img", instant(s, c))
            r = s.varve("push", "vda", "t.img", check=False)
            assert r.returncode == 1 and "t.img exists" in r.stderr, r
            s.varve("push", "--overwrite", "--speed", "500M", "vda", "t.img")
            r = s.varve("push", "--no-wait", "--id", "j", "vda", "t2.img")
            assert r.stdout == "job j\n", r
            concluded(q, "j")
            same("t2.img", instant(s, c))
        finally:
            os.chdir(here)


@test
def an_interrupted_varve_push_cancels_and_leaves_the_marker():
    with Disk() as (s, c, q):
        fill(c)
        t = OnTerminal(s, "push", "--id", "t", "--speed", "1", "vda", s.path("t.img"))
        t.draw_until(b"pushing [")
        wait_for("it is marked", lambda: not is_whole(s.path("t.img")))
        t.process.send_signal(signal.SIGINT)
        status, out = t.end()
        assert status == 1 and out == "" and b"job 't' was cancelled" in t.drawn, (status, t.drawn)
        assert not is_whole(s.path("t.img")) and job(q, "t")["cancelled"]


# --- deaths -----------------------------------------------------------------------------------

@test
def a_push_goes_on_with_the_next_daemon():
    for target_of in (lambda s: s.path("t.img"), None):
        with Disk() as (s, c, q):
            fill(c)
            content = instant(s, c)
            peer = None if target_of else nbdkit(s, "memory", str(SIZE))
            target = target_of(s) if target_of else peer.uri
            ident = push(q, target, speed=SLOW, checkpoint="a")
            wait_in_the_middle(q, ident)
            c.write(0, b"later" * M)
            q.close()
            s.kill(s.daemon)
            s.start_daemon()
            with s.qmp() as q2:
                q2.cmd("block-job-set-speed", device=ident, speed=0)
                j = concluded(q2, ident)
                assert "error" not in j, j
                assert [p["name"] for p in q2.cmd("query-checkpoints")] == ["a"]
            if peer:
                with peer:
                    assert content_of(peer) == content
            else:
                same(target, content)
                assert is_whole(target)


@test
def a_push_goes_on_when_the_disks_server_comes_back():
    with Disk() as (s, c, q):
        fill(c)
        target, content = s.path("t.img"), instant(s, c)
        ident = push(q, target, speed=SLOW)
        wait_in_the_middle(q, ident)
        c.write(0, b"later" * M)
        s.kill(s.disks["vda"].process)
        s.serve("vda", s.path("vda.img"), granularity="64K")
        s.wait_disk("vda", "live")
        q.cmd("block-job-set-speed", device=ident, speed=0)
        j = concluded(q, ident)
        assert "error" not in j, j
        same(target, content)
        c.close()
        c.__init__(s.disks["vda"].sock)
        c.client_flags().export_name("")


@test
def a_push_that_was_cancelled_before_the_daemon_died_stays_cancelled():
    with Disk() as (s, c, q):
        fill(c)
        add(q, "b")
        c.write(0, b"x")
        s.image("held.img", SIZE)
        with Held(s, s.path("held.img")) as peer:
            ident = push(q, peer.uri, bitmap="b", speed=1)
            wait_for("it runs", lambda: job(q, ident)["status"] == "running")
            q.cmd("job-cancel", id=ident)
            q.close()
            s.kill(s.daemon)
            s.start_daemon()
            with s.qmp() as q2:
                assert concluded(q2, ident)["cancelled"]
                assert frozen(s, q2, ["b"])["b"] == {0}


main()
