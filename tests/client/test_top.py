#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""varve top: its pictures in a pipe, and on terminals that are resized, stopped, and given back whatever ends it."""
import json
import re
import signal
import sys
import termios

from fakevarved import Error, FakeDaemon, FakeVarved
from harness import K, M, VARVE, good, main, misused, refused, test
from terminal import ENTER, LEAVE, Terminal

DISKS = [
    {"name": "vda", "state": "live", "degraded": False, "size": 64 * M, "epoch": 4, "dirty-bytes": 448 * K,
     "scratch": {"used": 12 * M, "max": 4096 * M}, "checkpoints": ["a", "b"], "backups": ["b2"]},
    {"name": "vdb", "state": "inconsistent", "reason": "epoch 7 is missing: begin a full backup", "degraded": False,
     "size": M, "epoch": 9, "dirty-bytes": 0, "scratch": {"used": 0, "max": None}, "checkpoints": [], "backups": []},
    {"name": "vdc", "state": "live", "reason": "it is full", "degraded": True, "size": M, "epoch": 1,
     "dirty-bytes": 0, "scratch": {"used": 0, "max": None}, "checkpoints": [], "backups": []},
]
BACKUPS = [
    {"id": "b1", "state": "completed", "time": 1.5, "disks": [{"disk": "vda"}]},
    {"id": "b2", "state": "running", "time": 2.5, "disks": [
        {"disk": "vda", "since": "a", "dirty-bytes": 64 * M, "bytes-read": 29 * M, "clients": 2, "scratch-used": 12 * M}]},
    {"id": "b3", "state": "broken", "reason": "no room", "time": 3.5, "disks": [
        {"disk": "vdc", "dirty-bytes": M, "bytes-read": 2 * M, "clients": 0, "scratch-used": 0}]},
]
JOBS = [
    {"id": "j0", "type": "push", "status": "concluded", "disk": "vda", "time": 1, "current-progress": 1, "total-progress": 1},
    {"id": "j1", "type": "diff", "status": "running", "disk": "vda", "time": 2, "current-progress": M,
     "total-progress": 4 * M},
]
SERVER = {"clients": [{"peer": "unix: pid 7", "since": 5.0, "export": "vda", "bytes-read": 3 * M, "requests": 12,
                       "queue": 3, "errors": 1}]}
REPLIES = {"query-disks": DISKS, "query-backups": BACKUPS, "query-jobs": JOBS, "query-nbd-server": SERVER}


class Daemon(FakeDaemon):
    def __init__(self, replies=None, **kw):
        super().__init__(REPLIES if replies is None else replies, **kw)

    def top(self, *args):
        return [VARVE, "--control", self.control, "top", *(args or ("--interval", "1000s"))]


def rows(picture, first):
    """{first cell: {heading: cell}} of the table whose heading begins with `first`."""
    lines = picture.splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip().startswith(first + " "))
    table = []
    for line in lines[at:]:
        if not line or re.match("(disk|backup) [^ ]+: ", line):
            break
        table.append(re.split(" {2,}", line.strip()))
    assert all(len(r) == len(table[0]) for r in table), table
    return {r[0]: dict(zip(table[0], r)) for r in table[1:]}


# --- pictures in a pipe -----------------------------------------------------------------------------


@test
def a_picture_has_disks_backups_jobs_and_clients():
    with Daemon() as d:
        told = good(*d.top("--count", "1")[1:])
    assert told.endswith("\n\n") and "\x1b" not in told
    assert told.split("\n")[0].endswith("  3 disks, 2 backups, 1 job, 1 client"), told
    disks = rows(told, "DISK")
    assert disks["vda"] == {"DISK": "vda", "STATE": "live", "SIZE": "64M", "DIRTY": "448K", "RATE": "-",
                            "CHECKPOINTS": "2", "SCRATCH": "12M of 4G"}, disks
    assert disks["vdb"]["STATE"] == "inconsistent" and disks["vdc"]["STATE"] == "live, degraded", disks
    assert "\ndisk vdb: epoch 7 is missing: begin a full backup\ndisk vdc: it is full\n" in told, told
    backups = rows(told, "BACKUP")
    assert sorted(backups) == ["b2", "b3"], backups
    assert backups["b2"] == {
        "BACKUP": "b2", "STATE": "running", "DISK": "vda", "SINCE": "a", "DONE": "[####......] 45%", "READ": "29M",
        "OF": "64M", "RATE": "-", "LEFT": "-", "CLIENTS": "2", "SCRATCH": "12M"}, backups
    assert backups["b3"]["DONE"] == "[##########] 100%" and backups["b3"]["SINCE"] == "(full)", backups
    assert "\nbackup b3: no room\n" in told, told
    assert rows(told, "JOB") == {"j1": {
        "JOB": "j1", "STATE": "running", "DISK": "vda", "TYPE": "diff", "DONE": "[##........] 25%", "READ": "1M",
        "OF": "4M", "RATE": "-", "LEFT": "-"}}, told
    assert rows(told, "CLIENT") == {"unix: pid 7": {
        "CLIENT": "unix: pid 7", "IDENTITY": "-", "EXPORT": "vda", "READ": "3M", "RATE": "-", "REQUESTS": "12",
        "QUEUE": "3", "ERRORS": "1"}}, told


@test
def what_there_is_not_takes_no_room():
    with Daemon({name: [] for name in REPLIES}) as d:
        told = good(*d.top("--count", "1")[1:])
    assert told.split("\n")[0].endswith("  0 disks, 0 backups, 0 jobs, 0 clients"), told
    assert "no disks" in told and "BACKUP" not in told and "JOB" not in told and "CLIENT" not in told, told


@test
def rates_are_what_changed_between_two_pictures_of_the_same_thing():
    """A disk's are of one epoch: behind a boundary its count begins anew."""
    looks = []

    def disks(arguments):
        looks.append(1)
        n = len(looks)
        return [dict(DISKS[0], **{"dirty-bytes": n * M}), dict(DISKS[1], **{"dirty-bytes": n * M, "epoch": n})]

    def backups(arguments):
        return [dict(BACKUPS[1], disks=[dict(BACKUPS[1]["disks"][0], **{"bytes-read": len(looks) * M})])]

    with Daemon(dict(REPLIES, **{"query-disks": disks, "query-backups": backups})) as d:
        pictures = good(*d.top("--count", "2", "--interval", "100ms")[1:]).split("\n\n20")
    assert len(pictures) == 2 and "/s" not in pictures[0], pictures
    told = rows(pictures[1], "DISK")
    assert told["vda"]["RATE"].endswith("/s") and told["vdb"]["RATE"] == "-", pictures[1]
    backup = rows(pictures[1], "BACKUP")["b2"]
    assert backup["RATE"].endswith("/s") and re.fullmatch(r"\d+:\d\d:\d\d", backup["LEFT"]), backup
    assert rows(pictures[1], "JOB")["j1"]["RATE"] == "0/s" and rows(pictures[1], "JOB")["j1"]["LEFT"] == "-"


@test
def json_is_one_line_a_picture():
    with Daemon() as d:
        lines = good("--json", *d.top("--count", "2", "--interval", "100ms")[1:]).splitlines()
    assert len(lines) == 2
    for line in lines:
        told = json.loads(line)
        assert told.pop("time") > 0
        assert told == {"disks": DISKS, "backups": BACKUPS, "jobs": JOBS, "server": SERVER}, told


@test
def answers_that_lack_anything_are_drawn():
    odd = {"name": "o\x1b[31m\nx", "reason": "r\x1b]0;x\x07\ny", "scratch": 7, "checkpoints": "c", "dirty-bytes": -1}
    for replies in ({}, {"query-disks": [odd, 7, None]}, {"query-disks": "x", "query-backups": {"a": 1}},
                    {"query-backups": [{"state": "running", "disks": [{}, 3]}, 4], "query-jobs": [{}, "x"],
                     "query-nbd-server": {"clients": [{}, 5]}}):
        with Daemon(replies) as d:
            told = good(*d.top("--count", "1")[1:])
            assert "\x1b" not in told and "\x07" not in told, told
            if replies.get("query-disks") == [odd, 7, None]:
                assert "o?[31m?x" in told and "r?]0;x??y" in told, told


@test
def what_the_daemon_refuses_to_tell_is_not_told_as_nothing():
    desc = "no memory for \x1ban answer"
    with Daemon({**REPLIES, "query-disks": Error(desc), "query-jobs": Error("later")}) as d:
        told = good(*d.top("--count", "2", "--interval", "100ms")[1:])
        assert told.count("\ndisks: the daemon refused: no memory for ?an answer\n") == 2, told
        assert told.count("\njobs: the daemon refused: later\n") == 2 and "no disks" not in told, told
        assert set(rows(told, "BACKUP")) == {"b2", "b3"}
        look = json.loads(good("--json", *d.top("--count", "1")[1:]))
        assert look["disks"] == {"error": {"class": "GenericError", "desc": desc}} and look["backups"] == BACKUPS


@test
def what_is_asked_for_wrongly_is_refused():
    with Daemon() as d:
        for args, says in ((("--interval", "0"), "100 ms"), (("--interval", "99ms"), "100 ms"),
                           (("--interval", "x"), "x"), (("--count", "0"), "at least 1"), (("--count", "-1"), "-1"),
                           (("--count", "x"), "x"), (("--count", "2K"), "2K"), (("more",), "more")):
            misused("--control", d.control, "top", *args, says=says)
    refused("--control", "/nowhere", "top", says="/nowhere")


# --- terminals --------------------------------------------------------------------------------------


@test
def a_terminal_is_drawn_on_in_place_and_given_back_at_q():
    with Daemon() as d, Terminal(d.top(), NO_COLOR="") as t:
        t.wait_text("j1")
        assert ENTER in t.out and b"\x1b[32mlive\x1b[0m" in t.out and b"\x1b[33mlive, degraded" in t.out, t.out
        assert not termios.tcgetattr(t.slave)[3] & (termios.ECHO | termios.ICANON)
        t.type(b"q")
        assert t.end() == 0
        t.assert_given_back()
        assert b"\n" not in t.out[t.out.rindex(LEAVE):]


@test
def no_colours_are_drawn_where_none_are_wanted():
    with Daemon() as d, Terminal(d.top(), NO_COLOR="1") as t:
        t.wait_text("j1")
        assert b"\x1b[3" not in t.out, t.out
        t.type(b"Q")
        assert t.end() == 0


@test
def whatever_signal_ends_it_the_terminal_is_given_back():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGABRT, signal.SIGPIPE):
        with Daemon() as d, Terminal(d.top()) as t:
            t.wait_text("j1")
            if number == signal.SIGINT:
                t.type(b"\x03")
            else:
                t.process.send_signal(number)
            assert t.end() == (0 if number == signal.SIGINT else -number), number
            t.assert_given_back()


@test
def a_daemon_that_does_not_answer_keeps_nobody():
    """Neither q nor another size waits for it."""
    slow = {"query-disks": DISKS, "query-backups": BACKUPS, "query-jobs": None}
    asked = lambda d: len([c for c, _ in d.daemon.seen if c == "query-jobs"])
    for keys in (b"q", b"\x03"):
        with Daemon(slow) as d, Terminal(d.top()) as t:
            t.wait_for(lambda: ENTER in t.out and asked(d) == 1, "a question")
            t.type(keys)
            assert t.end() == 0
            t.assert_given_back()


@test
def a_daemon_that_goes_away_is_tried_again():
    with Daemon() as d, Terminal(d.top("--interval", "100ms"), columns=300) as t:
        t.wait_text("j1")
        d.daemon.__exit__()
        t.wait_text("trying again")
        d.daemon = FakeVarved(d.control, dict(REPLIES, **{"query-jobs": [dict(JOBS[1], id="j2")]}))
        d.daemon.__enter__()
        t.wait_text("j2")
        t.type(b"q")
        assert t.end() == 0
        t.assert_given_back()


@test
def a_window_of_any_size_is_filled_and_not_overrun():
    wide = dict(DISKS[0], name="\u6f22\u5b57" * 40, state="live")
    with Daemon(dict(REPLIES, **{"query-disks": [wide] + DISKS})) as d, Terminal(d.top(), rows=40, columns=200) as t:
        t.wait_text("unix: pid 7")
        for rows_, columns in ((40, 60), (5, 300), (1, 1), (2, 7), (60, 40)):
            seen = len(t.out)
            t.resize(rows_, columns)
            t.wait_for(lambda: b"\x1b[J" in t.out[seen:], "another picture")
            lines = t.lines()
            assert len(lines) <= rows_, (rows_, lines)
            for line in lines:
                took = sum(2 if c in "\u6f22\u5b57" else 1 for c in line)
                assert took < max(columns, 2), (columns, line)
        assert t.lines()[-1].startswith("unix: pid 7"), t.lines()
        assert [line for line in t.lines() if "\u6f22" in line][0] == ("\u6f22\u5b57" * 10)[:19]
        t.type(b"q")
        assert t.end() == 0


@test
def a_key_asks_at_once_and_a_standard_input_that_is_none_harms_nothing():
    with Daemon() as d, Terminal(d.top()) as t:
        t.wait_text("j1")
        asked = len(d.daemon.seen)
        t.type(b" ")
        t.wait_for(lambda: len(d.daemon.seen) == asked + 4, "questions")
        t.type(b"q")
        assert t.end() == 0
    with Daemon() as d, Terminal(["sh", "-c", '"$@" </dev/null', "sh", *d.top("--interval", "100ms", "--count", "2")]) as t:
        assert t.end() == 0
        t.assert_given_back()
        assert "j1" in t.picture()


@test
def a_dumb_terminal_gets_plain_pictures():
    for term in ("dumb", ""):
        with Daemon() as d, Terminal(d.top("--count", "2", "--interval", "100ms"), term=term) as t:
            assert t.end() == 0
            t.assert_given_back()
            assert b"\x1b" not in t.out and t.out.count(b"\nDISK  STATE") == 2, t.out


# Stands in for the shell: has the program in the foreground, tells when it stops, and has it go on.
SHELL = """
import os, signal, sys, termios
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
modes = termios.tcgetattr(0)
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
_, status = os.waitpid(pid, os.WUNTRACED)
assert os.WIFSTOPPED(status), status
assert termios.tcgetattr(0) == modes
os.tcsetpgrp(0, os.getpgrp())
print("STOPPED", flush=True)
sys.stdin.readline()
os.tcsetpgrp(0, pid)
os.kill(pid, signal.SIGCONT)
_, status = os.waitpid(pid, 0)
assert status == 0, status
"""


@test
def while_it_is_stopped_the_terminal_is_the_shells():
    with Daemon() as d, Terminal([sys.executable, "-c", SHELL, *d.top()]) as t:
        t.wait_text("j1")
        t.type(b"\x1a")
        t.wait_for(lambda: b"STOPPED" in t.out, "the stop")
        assert t.out.count(ENTER) == t.out.count(LEAVE) == 1, t.out
        assert t.out.index(LEAVE) < t.out.index(b"STOPPED")
        t.type(b"\n")
        seen = t.out.index(b"STOPPED")
        t.wait_for(lambda: b"j1" in t.out[seen:] and b"\x1b[J" in t.out[seen:], "a picture")
        assert ENTER in t.out[seen:]
        t.type(b"q")
        assert t.end() == 0
        t.assert_given_back()


main()
