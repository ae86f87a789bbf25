#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""varve diff and varve job, as people use them: on a terminal, on a pipe, interrupted, left alone."""
import json
import os
import shutil
import signal
import subprocess

import bitmaps
from bitmaps import SIZE, Disk
from harness import M, VARVE, WAIT, wait_for
from jobs import Held, OnTerminal, concluded, job
from tap import main, test


def full(s, c):
    c.write(0, os.urandom(SIZE))
    c.flush()
    path = s.path("copy.img")
    shutil.copyfile(s.path("vda.img"), path)
    return path


@test
def on_a_terminal_there_is_a_bar_and_on_a_pipe_there_is_none():
    with Disk() as (s, c, q):
        older = full(s, c)
        t = OnTerminal(s, "diff", "--id", "t", "--speed", "1", "vda", "b", older)
        t.draw_until(b"vda [")
        t.draw_until(b"1%")
        s.varve("job", "speed", "t", "0")
        status, out = t.end()
        assert status == 0 and out == "bitmap b of vda has what differs from %s\n" % older, (status, out)
        r = s.varve("diff", "vda", "b2", older)
        assert r.stderr == "" and "bitmap b2" in r.stdout, r
        assert bitmaps.count(q, "b") == bitmaps.count(q, "b2") == 0


@test
def an_interrupt_cancels_and_waits_for_that():
    with Disk() as (s, c, q):
        older = full(s, c)
        with Held(s, older) as peer:
            peer.hold()
            t = OnTerminal(s, "diff", "--id", "t", "vda", "b", peer.uri)
            t.draw_until(b"vda [")
            t.process.send_signal(signal.SIGINT)
            status, out = t.end()
            assert status == 1 and out == "" and b"job 't' was cancelled" in t.drawn, (status, t.drawn)
            assert job(q, "t")["cancelled"] and bitmaps.infos(q) == {}


@test
def a_terminal_that_goes_does_not_cancel():
    """The terminal hangs up; and a client that is killed."""
    with Disk() as (s, c, q):
        older = full(s, c)
        with Held(s, older) as peer:
            for name, signum in (("hup", signal.SIGHUP), ("kill", signal.SIGKILL)):
                peer.hold()
                t = OnTerminal(s, "diff", "--id", name, "vda", name, peer.uri, session=True)
                t.draw_until(b"vda [")
                t.process.send_signal(signum)
                assert t.end()[0] == -signum
                assert job(q, name)["status"] == "running"
                peer.let_go()
                assert "error" not in concluded(q, name)
                assert bitmaps.count(q, name) == 0


@test
def a_daemon_that_goes_leaves_word_of_the_job():
    with Disk() as (s, c, q):
        older = full(s, c)
        with Held(s, older) as peer:
            peer.hold()
            p = subprocess.Popen([VARVE, "--control", s.control, "diff", "--id", "t", "vda", "b", peer.uri],
                                 stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            wait_for("the job has begun", lambda: job(q, "t"))
            assert s.stop(s.daemon) == 0
            _, err = p.communicate(timeout=WAIT)
            assert p.returncode == 1 and "job 't' goes on" in err and "varve job list" in err, err
            s.start_daemon()
            peer.let_go()
            with s.qmp() as q2:
                assert "error" not in concluded(q2, "t")


@test
def jobs_are_listed_slowed_and_forgotten():
    with Disk() as (s, c, q):
        older = full(s, c)
        r = s.varve("diff", "--no-wait", "--speed", "1M", "vda", "b", os.path.relpath(older))
        assert r.stdout == "job      job-1\n", r
        table = s.varve("job", "list").stdout
        assert "job-1" in table and "running" in table and "vda" in table and "64M" in table, table
        s.varve("job", "speed", "job-1", "1")
        s.varve("job", "cancel", "job-1")
        concluded(q, "job-1")
        assert "cancelled" in s.varve("job", "list").stdout
        listed = json.loads(s.varve("--json", "job", "list").stdout)
        assert listed[0]["id"] == "job-1" and listed[0]["cancelled"], listed
        s.varve("job", "dismiss", "job-1")
        assert s.varve("job", "list").stdout == "no jobs\n"
        done = json.loads(s.varve("--json", "diff", "vda", "b", older).stdout)
        assert done["status"] == "concluded" and done["total-progress"] == SIZE, done


@test
def what_is_wrong_is_said_in_one_line():
    with Disk() as (s, c, q):
        older = full(s, c)
        for args, status, words in (
                (("diff", "vda", "b", "/no/such"), 1, "cannot look at reference /no/such: No such file"),
                (("diff", "vda", "b", "nope.img"), 1, os.getcwd() + "/nope.img: No such file"),
                (("diff", "no", "b", older), 1, "There is no disk 'no'"),
                (("diff", "--on-error", "x", "vda", "b", older), 2, "report or dirty"),
                (("diff", "--speed", "x", "vda", "b", older), 2, "--speed x"),
                (("diff", "vda", "b"), 2, "diff"),
                (("diff", "vda", "b", s.image("small.img", M)), 1, "resize"),
                (("job", "cancel", "no"), 1, "Job not found"),
                (("job", "dismiss", "no"), 1, "Job not found"),
                (("job", "speed", "no", "1M"), 1, "Job not found"),
                (("job", "speed", "no", "x"), 2, "not a number of bytes")):
            r = s.varve(*args, check=False)
            assert r.returncode == status and words in r.stderr, (args, r)
            assert status == 2 or r.stderr.count("\n") == 1, r
        r = s.varve("diff", "--resize", "vda", "b", s.path("small.img"))
        assert bitmaps.count(q, "b") == SIZE


if __name__ == "__main__":
    main()
