#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A job whose peer has answered for a while and then says nothing more: given up after a minute, which here
is one of a clock that is set forward."""
import os
import struct

import bitmaps
from bitmaps import SIZE
from harness import M, wait_for
from jobs import Held, concluded, diff, job
from preloaded import Orders, Preloaded
from tap import main, test

HALF_S = 31  # somewhat more than half of the deadline, which is counted in two parts


class Clock(Preloaded):
    NAME, ORDERS = "clock", Orders
    seconds = 0

    def forward(self, seconds):
        self.seconds += seconds
        self.orders["varved"].map[0:8] = struct.pack("=Q", self.seconds)


def stalled(s, q, begin):
    """Begins a job onto a peer, holds that in the middle, and lets time pass; the job's error."""
    with Held(s, s.path("copy.img")) as peer:
        ident = begin(peer.uri)
        wait_for("it is in the middle", lambda: 0 < job(q, ident)["current-progress"] < SIZE)
        peer.hold()
        q.cmd("block-job-set-speed", device=ident, speed=0)
        assert job(q, ident)["status"] == "running"

        def given_up():
            s.forward(HALF_S)
            return job(q, ident)["status"] == "concluded"
        wait_for("it is given up", given_up)
        error = concluded(q, ident)["error"]
        assert peer.uri in error and "has not answered any of " in error and "60000 ms" in error, error


@test
def a_peer_that_answers_no_more_fails_diff_and_push_after_a_minute():
    """And everything is as if they had not been begun; guests and commands never waited."""
    with Clock() as s:
        disk = s.start("vda", SIZE, os.urandom(SIZE), granularity="64K")
        s.image("copy.img", SIZE, s.content(disk.image))
        with s.qmp() as q, disk.connect() as c:
            stalled(s, q, lambda uri: diff(q, "b", uri, speed=M))
            assert bitmaps.infos(q) == {}
            c.write(0, b"between the two")
            stalled(s, q, lambda uri: q.cmd("backup-push", disk="vda", target=uri, speed=M, checkpoint="c")["id"])
            assert q.cmd("query-checkpoints") == []
            assert [b["state"] for b in q.cmd("query-backups")] == ["failed"]
            c.write(M, b"and after")
            c.flush()


if __name__ == "__main__":
    main()
