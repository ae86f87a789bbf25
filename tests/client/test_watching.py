#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What one watches with: events, metrics, colours on a terminal."""
import json
import os
import pty
import re
import subprocess
import sys

from fakevarved import Error, FakeDaemon
from harness import K, M, VARVE, good, main, refused, test
from terminal import Terminal

DISKS = [
    {"name": "vda", "state": "live", "size": 64 * M, "dirty-bytes": 448 * K, "intent-regions": 2,
     "scratch": {"used": 1536, "max": 4096}, "checkpoints": [], "bitmaps": [], "backups": ["b2"]},
    {"name": "vdb", "state": "inconsistent", "size": M, "dirty-bytes": 0, "intent-regions": 0,
     "scratch": {"used": 0, "max": None}, "checkpoints": [], "bitmaps": [], "backups": []},
]
METRICS = {"text": "# HELP a_b \u00e4\n# TYPE a_b gauge\na_b{c=\"d\"} 1\n"}
REPLIES = {"query-disks": DISKS, "query-backups": [], "query-nbd-server": {"clients": []}, "query-metrics": METRICS}
EVENT = {"event": "BACKUP_BROKEN", "data": {"id": "b\x1b4", "reason": "no room", "n": [1], "disks": ["vda", "v\x1bb"],
                                             "lost-bytes": 3 * M, "speed": "", "degraded": False},
         "timestamp": {"seconds": 1700000000, "microseconds": 0}}


class Daemon(FakeDaemon):
    def __init__(self, replies=None, **kw):
        super().__init__(REPLIES if replies is None else replies, **kw)


@test
def metrics_are_the_daemons_to_the_letter():
    with Daemon() as d:
        assert good("--control", d.control, "metrics") == METRICS["text"]
        assert json.loads(good("--control", d.control, "--json", "metrics")) == METRICS
    refused("--control", "/nowhere", "metrics", says="/nowhere")


@test
def events_are_told_as_they_come():
    with Daemon({}, after=json.dumps(EVENT).encode() + b"\r\n") as d:
        for json_too in (False, True):
            p = subprocess.Popen([VARVE, "--control", d.control, "watch"] + ["--json"] * json_too,
                                 stdout=subprocess.PIPE, text=True, env={**os.environ, "TZ": "UTC"})
            line = p.stdout.readline()
            p.terminate()
            p.wait(60)
            p.stdout.close()
            if json_too:
                assert json.loads(line) == EVENT, line
            else:
                assert line == "2023-11-14 22:13:20 BACKUP_BROKEN        id=b?4 reason=no room n=[1] disks=vda,v?b lost-bytes=3M\n", line
    refused("--control", "/nowhere", "watch", says="/nowhere")


@test
def what_is_bad_news_is_red_on_a_terminal():
    with Daemon({}, after=json.dumps(EVENT).encode() + b"\r\n") as d:
        for no_color in ("", "1"):
            with Terminal([VARVE, "--control", d.control, "watch"], NO_COLOR=no_color) as t:
                t.wait_for(lambda: b"lost-bytes=3M" in t.out, "the event")
                assert (b"\x1b[31mBACKUP_BROKEN\x1b[0m " in t.out) == (not no_color), t.out
                assert b"\x1b[31mb" not in t.out


def on_a_terminal(control, *args, **env):
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", **env)
        os.execv(VARVE, ["varve", "--control", control, *args])
    out = b""
    try:
        while chunk := os.read(fd, 65536):
            out += chunk
    except OSError:  # its end of the terminal is closed
        pass
    os.close(fd)
    os.waitpid(pid, 0)
    return out.decode()


@test
def states_are_in_colour_on_a_terminal_alone():
    with Daemon() as d:
        seen = on_a_terminal(d.control, "status", NO_COLOR="")
        assert "\x1b[32mlive\x1b[0m" in seen and "\x1b[31minconsistent\x1b[0m" in seen, seen
        plain = good("--control", d.control, "status")
        assert "\x1b" not in plain
        assert re.sub("\x1b\\[[0-9]*m", "", seen).replace("\r", "") == plain
        assert "\x1b" not in on_a_terminal(d.control, "status", NO_COLOR="1")


# CSI as one character, the end of a line, and letters that have such bytes in them.
EVIL = "e\u009b31m\x1b[31m\n\x7f\u2588\u011b"
MILD = "e?31m?[31m??\u2588\u011b"


@test
def no_name_drives_the_terminal():
    evil = [{**DISKS[0], "name": EVIL, "reason": EVIL, "image": EVIL, "bitmaps": [EVIL], "checkpoints": [EVIL],
             "backups": []}]
    begun = {"id": "b", "disks": [{"disk": "vda", "export": "x", "context": EVIL, "dirty-bytes": 0}], "thaw-error": EVIL}
    event = {**EVENT, "event": EVIL * 3, "data": {EVIL: EVIL, "n": [EVIL]}}
    with Daemon({**REPLIES, "query-disks": evil, "backup-begin": begun, "backup-end": Error(EVIL)},
                after=json.dumps(event).encode() + b"\r\n") as d:
        for command, times in ((["status"], 4), (["status", "x"], 5), (["backup", "begin", "vda"], 2),
                               (["backup", "end", "b"], 1)):
            r = subprocess.run([VARVE, "--control", d.control, *command], capture_output=True, text=True, check=False,
                               timeout=60, env={**os.environ, "LC_ALL": "C.UTF-8"})
            said = r.stdout + r.stderr
            assert said.count(MILD) == times, said
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", said), said
        p = subprocess.Popen([VARVE, "--control", d.control, "watch"], stdout=subprocess.PIPE, text=True)
        line = p.stdout.readline()
        p.terminate()
        p.wait(60)
        p.stdout.close()
        assert line.endswith(" %s %s=%s n=%s\n" % (MILD * 3, MILD, MILD, MILD)), line


@test
def progress_that_is_told_as_more_than_all_stays_in_its_bar():
    job = {"id": "j", "type": "push", "status": "running", "disk": "vda", "time": 1.5,
           "current-progress": 1000 * M, "total-progress": M}
    asked = []

    def jobs(_):
        asked.append(1)
        return [dict(job, status="concluded")] if len(asked) > 3 else [job]
    with Daemon({"query-jobs": jobs, "backup-push": {"id": "j"}}) as d:
        with Terminal([VARVE, "--control", d.control, "push", "vda", "/x"], columns=200) as t:
            assert t.end() == 0, t.out
            assert b"[" + b"#" * 30 + b"] 100%" in t.out, t.out


if __name__ == "__main__":
    sys.exit(main())
