#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Jobs, whatever their work is: seen, slowed, cancelled, dismissed, and taken up again by the next
daemon.  The work here is a diff with a peer that can be held."""
import os
import re
import shutil

import bitmaps
from bitmaps import G64, SIZE, Disk, refused
from harness import M, Stack, wait_for
from jobs import Held, concluded, diff, diffed, job
from tap import main, test


def full(c):
    c.write(0, os.urandom(SIZE))
    c.flush()


def copy_of(s, name="copy.img"):
    path = s.path(name)
    shutil.copyfile(s.path("vda.img"), path)
    return path


def statuses(q, ident):
    """What JOB_STATUS_CHANGE has said of the job up to its end, and the events about its end."""
    def concluded_said():
        q.cmd("query-version")
        return ("JOB_STATUS_CHANGE", {"id": ident, "status": "concluded"}) in [
            (e["event"], e["data"]) for e in q.events]
    wait_for("the end is said", concluded_said)
    said = [e["data"]["status"] for e in q.events
            if e["event"] == "JOB_STATUS_CHANGE" and e["data"]["id"] == ident]
    ends = [e for e in q.events
            if e["event"].startswith("BLOCK_JOB_") and e["data"]["device"] == ident]
    return said, ends


def wait_in_the_middle(q, ident):
    """Some of it is done, not all."""
    def some():
        j = job(q, ident)
        assert j["status"] == "running", j
        return 0 < j["current-progress"] < j["total-progress"]
    wait_for("job %s has begun its work" % ident, some)


@test
def a_job_says_where_it_is_and_how_it_ended():
    """One that completes, one that is cancelled, one that fails: states and events as QEMU's."""
    with Disk() as (s, c, q):
        full(c)
        older = copy_of(s)
        ident = diff(q, "b", older, job_id="mine", speed=1 * M)
        assert ident == "mine"
        wait_in_the_middle(q, ident)
        j = job(q, ident)
        assert j["speed"] == 1 * M and j["total-progress"] == SIZE and "error" not in j, j
        q.cmd("block-job-set-speed", device=ident, speed=0)
        j = concluded(q, ident)
        assert j["current-progress"] == SIZE and "error" not in j, j
        said, ends = statuses(q, ident)
        assert said == ["created", "running", "waiting", "pending", "concluded"], said
        assert [e["event"] for e in ends] == ["BLOCK_JOB_COMPLETED"], ends
        assert ends[0]["data"] == {"type": "diff", "device": "mine", "disk": "vda", "len": SIZE,
                                   "offset": SIZE, "speed": 0}, ends

        ident = diff(q, "c", older, speed=1)
        assert ident == "job-1"
        q.cmd("job-cancel", id=ident)
        j = concluded(q, ident)
        assert j["cancelled"] and "error" not in j, j
        said, ends = statuses(q, ident)
        assert said == ["created", "running", "aborting", "concluded"], said
        assert [e["event"] for e in ends] == ["BLOCK_JOB_CANCELLED"], ends

        ident = diff(q, "c", "nbd+unix:///?socket=" + s.path("nobody"))
        j = concluded(q, ident)
        assert "nobody" in j["error"], j
        said, ends = statuses(q, ident)
        assert said == ["created", "running", "aborting", "concluded"], said
        assert ends[0]["event"] == "BLOCK_JOB_COMPLETED" and ends[0]["data"]["error"] == j["error"]
        assert set(bitmaps.infos(q)) == {"b"}


@test
def what_cannot_be_asked_of_a_job_is_refused():
    with Disk() as (s, c, q):
        full(c)
        older = copy_of(s)
        diff(q, "b", older, job_id="slow", speed=1)
        refused(q, "'slow' already in use", "block-dirty-bitmap-diff", node="vda", name="other",
                reference=older, job_id="slow")
        refused(q, "in state 'running' cannot accept command verb 'dismiss'", "job-dismiss", id="slow")
        for command in ("job-cancel", "job-dismiss", "job-pause", "job-resume"):
            refused(q, "Job not found: there is no 'none'", command, id="none")
        refused(q, "'slow' is not paused", "job-resume", id="slow")
        q.cmd("job-pause", id="slow")
        refused(q, "'slow' is paused already", "job-pause", id="slow")
        refused(q, "in state 'paused' cannot accept command verb 'dismiss'", "job-dismiss", id="slow")
        refused(q, "Job not found", "block-job-set-speed", device="none", speed=1)
        q.cmd("job-cancel", id="slow")
        concluded(q, "slow")
        for command in ("job-cancel", "job-pause", "job-resume"):
            refused(q, "'slow' in state 'concluded'", command, id="slow")
        refused(q, "'slow' already in use.*job-dismiss", "block-dirty-bitmap-diff", node="vda",
                name="b", reference=older, job_id="slow")
        q.cmd("job-dismiss", id="slow")
        assert job(q, "slow") is None
        diffed(q, "b", older, job_id="slow")


@test
def a_bitmap_that_a_job_fills_is_busy_and_stays_as_it_was_if_that_comes_to_nothing():
    """Cancelled, and with a peer that dies in the middle; a new one never was."""
    with Disk() as (s, c, q):
        bitmaps.add(q, "there")
        c.write(3 * G64, b"x")
        full(c)
        q.cmd("block-dirty-bitmap-clear", node="vda", name="there")
        older = copy_of(s)
        c.write(5 * G64, b"y")
        for how in ("cancel", "die"):
            with Held(s, older) as peer:
                peer.hold()
                for name in ("there", "new"):
                    diff(q, name, peer.uri, job_id="%s-%s" % (how, name))
                assert set(bitmaps.infos(q)) == {"there"} and bitmaps.infos(q)["there"]["busy"]
                for verb in ("remove", "clear", "disable"):
                    refused(q, "job '%s-there' fills it" % how, bitmaps.PREFIX + verb, node="vda",
                            name="there")
                refused(q, "job '%s-new' fills it" % how, bitmaps.PREFIX + "add", node="vda", name="new")
                refused(q, "job '%s-there' fills it" % how, bitmaps.PREFIX + "diff", node="vda",
                        name="there", reference=older)
                refused(q, "job '%s-there' fills it" % how, "backup-begin",
                        disks=[{"disk": "vda", "bitmap": "there"}])
                if how == "cancel":
                    for name in ("there", "new"):
                        q.cmd("job-cancel", id="cancel-" + name)
                else:
                    peer.kill()
                for name in ("there", "new"):
                    j = concluded(q, "%s-%s" % (how, name))
                    assert ("error" in j) == (how == "die"), j
                    assert how == "cancel" or peer.sock in j["error"], j
            assert set(bitmaps.infos(q)) == {"there"} and not bitmaps.infos(q)["there"]["busy"]
            assert bitmaps.frozen(s, q, ["there"])["there"] == {5}


@test
def a_peer_that_stalls_holds_up_nobody_else():
    """While it answers nothing guests write, commands are answered, another job goes on; then it
    answers, and the job completes."""
    with Disk() as (s, c, q):
        full(c)
        older = copy_of(s)
        with Held(s, older) as peer:
            peer.hold()
            ident = diff(q, "b", peer.uri)
            c.write(7 * G64, b"while it stalls")
            q.cmd("checkpoint-create", name="c", disks=["vda"])
            diffed(q, "other", older)
            assert job(q, ident)["status"] == "running"
            peer.let_go()
            assert "error" not in concluded(q, ident)
        assert bitmaps.frozen(s, q, ["b"])["b"] == {7}


def rests(q, ident, older):
    """Others come to their end, and it does not get on."""
    before = job(q, ident)
    assert before["status"] == "paused" and "rate" not in before, before
    for _ in range(2):
        diffed(q, "other", older)
    assert job(q, ident) == before, (job(q, ident), before)


@test
def a_paused_job_rests_until_it_is_resumed_and_over_a_restart():
    """Not for want of speed: it has that again while it rests.  Nor does it end when all was compared."""
    with Disk() as (s, c, q0):
        full(c)
        older = copy_of(s)
        c.write(0, b"differs")
        ident = diff(q0, "b", older, speed=1)
        wait_in_the_middle(q0, ident)
        s.varve("job", "pause", ident)
        q0.cmd("block-job-set-speed", device=ident, speed=0)
        rests(q0, ident, older)
        said = [e["data"]["status"] for e in q0.events if e["data"].get("id") == ident]
        assert said == ["created", "running", "paused"], said
        killed(s)
        with s.qmp() as q:
            rests(q, ident, older)
            s.varve("job", "resume", ident)
            assert "error" not in concluded(q, ident)
            assert statuses(q, ident)[0] == ["running", "waiting", "pending", "concluded"]
            assert bitmaps.frozen(s, q, ["b"])["b"] == {0}
            with Held(s, older) as peer:
                peer.hold()
                ident = diff(q, "held", peer.uri)
                q.cmd("job-pause", id=ident)
                peer.let_go()
                rests(q, ident, older)
                q.cmd("job-cancel", id=ident)
                assert concluded(q, ident)["cancelled"]


def killed(s):
    s.kill(s.daemon)
    os.unlink(s.control)
    os.unlink(s.nbd)
    s.start_daemon()


@test
def the_next_daemon_takes_up_what_one_that_was_killed_has_begun():
    """With a server between, from the beginning; a new and an existing bitmap; the epochs since the
    first beginning are in it, also those whose only name was the job; a cancelled one stays
    cancelled."""
    with Disk() as (s, c, q0):
        bitmaps.add(q0, "there")
        full(c)
        older = copy_of(s)
        with Held(s, older) as peer:
            peer.hold()
            for name in ("there", "new", "gone"):
                diff(q0, name, peer.uri, job_id=name)
            c.write(5 * G64, b"before")
            q0.cmd("checkpoint-create", name="c", disks=["vda"])
            q0.cmd("checkpoint-delete", name="c")
            q0.cmd("job-cancel", id="gone")
            killed(s)
            c.write(6 * G64, b"after")
            with s.qmp() as q:
                assert concluded(q, "gone")["cancelled"]
                assert [job(q, n)["status"] for n in ("there", "new")] == ["running"] * 2
                peer.let_go()
                for name in ("there", "new"):
                    assert "error" not in concluded(q, name)
                assert bitmaps.frozen(s, q, ["new"])["new"] == {5, 6}
                assert bitmaps.frozen(s, q, ["there"])["there"] == set(range(SIZE // G64))
                assert "gone" not in bitmaps.infos(q)
        killed(s)
        with s.qmp() as q:  # ended ones are there, and stay ended
            assert "error" not in job(q, "new") and job(q, "new")["status"] == "concluded"
            assert job(q, "gone")["cancelled"] and diff(q, "x", older) == "job-1"
            concluded(q, "job-1")


@test
def a_transient_bitmap_stays_over_a_restart_as_long_as_a_job_fills_it():
    """With what it had before, and transient still; one that no job fills goes."""
    with Disk() as (s, c, q0):
        for name in ("there", "idle"):
            bitmaps.add(q0, name, persistent=False)
        c.write(3 * G64, b"before")
        c.flush()
        older = copy_of(s)
        with Held(s, older) as peer:
            peer.hold()
            diff(q0, "there", peer.uri, job_id="j")
            killed(s)
            c.write(5 * G64, b"after")
            peer.let_go()
            with s.qmp() as q:
                assert "error" not in concluded(q, "j")
                assert bitmaps.frozen(s, q, ["there"])["there"] == {3, 5}
                assert not bitmaps.infos(q)["there"]["persistent"] and "idle" not in bitmaps.infos(q)
        killed(s)
        with s.qmp() as q:
            assert bitmaps.infos(q) == {}


def saved(s):
    """Where the only job would go on, by the catalogue."""
    found = [0]
    for i in (0, 1):
        with open(os.path.join(s.state, "catalogue-%d" % i), errors="replace") as f:
            found += [int(n) for n in re.findall(r'"current":(\d+)', f.read())]
    return max(found)


@test
def a_comparison_with_a_file_goes_on_where_it_was():
    """What was compared before is saved now and then, and is not compared again; unless the file is
    another one: then all of it is."""
    for same in (True, False):
        with Disk() as (s, c, q0):
            full(c)
            older = copy_of(s)
            os.utime(older, ns=(10 ** 18, 10 ** 18))  # long ago, as a backup is
            c.write(0, b"differs at the beginning")
            ident = diff(q0, "b", older, speed=8 * M)
            wait_for("something is saved", lambda: saved(s) >= 2 * M)
            q0.cmd("block-job-set-speed", device=ident, speed=1)
            if not same:
                os.utime(older, ns=(10 ** 18 + 1, 10 ** 18 + 1))
            killed(s)
            with s.qmp() as q:
                # If it begins again it waits behind the first piece; until it has looked at the file
                # it tells what was saved.
                wait_for("it is where it should be", lambda: (job(q, ident)["current-progress"] >= 2 * M) == same)
                q.cmd("block-job-set-speed", device=ident, speed=0)
                assert "error" not in concluded(q, ident)
                assert bitmaps.frozen(s, q, ["b"])["b"] == {0}
            left = [n for n in os.listdir(os.path.join(s.state, "vda")) if n.startswith("blocks-")]
            assert len(left) == 1, left  # the bitmap's: what was saved is gone


@test
def a_daemon_that_ends_in_peace_leaves_jobs_to_the_next_one():
    with Disk() as (s, c, q0):
        full(c)
        older = copy_of(s)
        with Held(s, older) as peer:
            peer.hold()
            ident = diff(q0, "b", peer.uri)
            assert s.stop(s.daemon) == 0
            s.start_daemon()
            peer.let_go()
            with s.qmp() as q:
                assert "error" not in concluded(q, ident)
                assert bitmaps.count(q, "b") == 0


@test
def a_job_without_its_disk_fails_and_says_so():
    """The disk is forgotten while no daemon runs."""
    with Stack() as s:
        disk = s.start("vda", 4 * M, os.urandom(4 * M))
        with s.qmp() as q:
            ident = diff(q, "b", copy_of(s), speed=1)
            s.stop(disk.process)
            s.wait_disk("vda", "offline")
            refused(q, "job '%s'" % ident, "disk-forget", disk="vda")
        s.stop(s.daemon)
        shutil.rmtree(os.path.join(s.state, "vda"))
        s.start_daemon()
        with s.qmp() as q2:
            assert "Disk 'vda' is gone" in concluded(q2, ident)["error"]


if __name__ == "__main__":
    main()
