#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Memory that runs out in varved and in the plugin, at any request for some (starve.c): the guest goes on,
both programs live or say why they do not, no answer is half of one, and the chain is completed byte for byte.

POINTS (default 40; LONG=1: all) is how many requests of each scenario are refused, one by one, and then
several in a row.  The seed is printed; VARVE_POINT=N takes the Nth one only.
"""
import contextlib
import itertools
import json
import os

import backups
import nbdclient
import prometheus
import rawhttp
from bitmaps import PREFIX
from harness import K, M, wait_for
from qmpclient import QMPError
from starving import NEVER, Starving
from tap import diag, main, number, rng, test

SIZE, BLOCK = 2 * M, 4 * K
POINTS = number("POINTS", 40, 1 << 30)
LOST = (EOFError, OSError, nbdclient.NBDError, nbdclient.OptError)


def log_of(process):
    with open(process.log, errors="replace") as f:
        return f.read()


class Life:
    """A disk, an appliance with a copy of it as of checkpoint `base`, and what is done to both while
    memory runs out."""

    def __init__(self, s, random):
        self.s, self.random, self.count = s, random, 0
        self.data = bytearray(random.randbytes(SIZE))
        self.image = s.image("vda.img", SIZE, bytes(self.data))
        self.serve()
        s.start_daemon()
        s.wait_disk("vda", "live")
        with s.qmp() as q:
            q.cmd(PREFIX + "add", node="vda", name="bits", granularity=BLOCK)
            q.cmd("block-dirty-bitmap-add", node="vda", name="other", granularity=BLOCK)
            backups.begin(q, ["vda"], id="first", checkpoint="first")
            self.copy, self.base = bytearray(backups.pull(s.nbd, "vda", 1)), "first"
            backups.end(q, "first")

    def serve(self):
        self.disk = self.s.serve("vda", self.image, granularity="4K")

    # -- the guest ------------------------------------------------------------------------------------

    def write(self, guest, count=3):
        """It never fails, whatever tracking has no memory for."""
        for _ in range(count):
            off, n = self.random.randrange(SIZE), self.random.choice((1, 700, 9000))
            n = min(n, SIZE - off)
            if self.random.random() < 0.2:
                data = bytes(n)
                guest.zero(off, n)
            else:
                data = self.random.randbytes(n)
                guest.write(off, data)
            self.data[off:off + n] = data
        guest.flush()

    # -- the appliance --------------------------------------------------------------------------------

    def nothing_begun(self):
        self.count += 1
        self.id, self.pulled, self.ended = "b%d" % self.count, None, None
        self.begun = False

    def begin(self, q):
        self.instant = bytes(self.data)
        self.begun = None  # not known
        try:
            backups.begin(q, [{"disk": "vda", "since": self.base, "export": self.id}], id=self.id,
                          checkpoint="k%d" % self.count)
            self.begun = True
        except QMPError:
            self.begun = False

    def pull(self):
        """What is read is right, or an error is told."""
        if self.begun is False:
            return
        try:
            image = backups.pull(self.s.nbd, self.id, 1)
            dirty = backups.dirty(self.s.nbd, self.id, backups.DIRTY + "backup-vda")
        except LOST:
            return
        assert backups.first_difference(bytes(image), self.instant) is None, "a view is no instant"
        self.pulled = image, dirty

    def end(self, q):
        if self.begun:
            self.ended = self.pulled is not None
            try:
                backups.end(q, self.id, self.ended)
            except QMPError:
                self.ended = None

    def ask(self, q):
        """An answer is whole, or an error."""
        def names(command, key, of=lambda o: o):
            try:
                return [o[key] for o in of(q.cmd(command))]
            except QMPError:
                return None
        got = names("query-checkpoints", "name")
        assert got is None or self.base in got, got
        got = names("query-backups", "id")
        assert got is None or not self.begun or self.id in got, (self.id, got)
        got = names("query-disks", "name")
        assert got is None or got == ["vda"], got
        got = names("query-named-block-nodes", "name", lambda nodes: nodes[0]["dirty-bitmaps"])
        assert got is None or got[:2] == ["bits", "other"], got
        got = names("query-commands", "name")
        assert got is None or "backup-begin" in got and len(got) > 30, got

    def change(self, q):
        """Other commands, which may be refused."""
        name = "c%d" % self.count
        for command, args in (
                ("checkpoint-create", {"name": name, "disks": ["vda"]}),
                ("transaction", {"actions": [
                    {"type": PREFIX + "clear", "data": {"node": "vda", "name": "bits"}},
                    {"type": PREFIX + "merge", "data": {"node": "vda", "target": "other",
                                                         "bitmaps": ["bits"]}}]}),
                ("checkpoint-delete", {"name": name})):
            with contextlib.suppress(QMPError):
                q.execute(command, args)

    # -- afterwards -----------------------------------------------------------------------------------

    def settle(self):
        """With memory again: what became of the backup, and one more completes the chain."""
        s = self.s
        with s.qmp() as q:
            state = {b["id"]: b["state"] for b in q.cmd("query-backups")}.get(self.id)
            assert state is not None or not self.begun, "a backup that was begun is not there"
            assert state is None or self.begun is not False, "one that was refused is there"
            if state == "running":
                if not self.pulled:
                    self.pull()
                assert self.pulled, "it cannot be read with memory"
                backups.end(q, self.id, self.pulled is not None)
                state = "completed"
            assert self.ended is None or state == ("completed" if self.ended else "failed"), state
            if state == "completed":
                self.copy = backups.apply(self.copy, *self.pulled)
                self.base = "k%d" % self.count
            self.count += 1
            base = "k%d" % self.count
            _, answer = backups.begin(q, [{"disk": "vda", "since": self.base}], id=base, checkpoint=base)
            now = backups.pull(s.nbd, "vda", 1)
            assert backups.first_difference(bytes(now), bytes(self.data)) is None
            self.copy = backups.apply(self.copy, now, backups.dirty(s.nbd, "vda",
                                                                   answer["vda"]["context"]))
            at = backups.first_difference(bytes(self.copy), bytes(self.data))
            assert at is None, "block %d differs, but is clean" % (at // BLOCK)
            backups.end(q, base)
            self.base = base
            for c in q.cmd("query-checkpoints"):
                if c["name"] != base:
                    q.cmd("checkpoint-delete", name=c["name"])
            for node in q.cmd("query-named-block-nodes"):
                assert not any(b["inconsistent"] for b in node["dirty-bitmaps"]), node


class Points:
    """Numbers of the requests to be refused, some of all that there are.  These become more as the
    catalogue remembers more."""

    def __init__(self, random):
        self.random, self.total = random, 0

    def seen(self, calls):
        self.total = max(self.total, calls)

    def __iter__(self):
        assert self.total > 0, "it asks for no memory"
        diag("%d of %d requests" % (min(POINTS, self.total), self.total))
        if os.environ.get("VARVE_POINT"):
            yield int(os.environ["VARVE_POINT"])
        elif POINTS < self.total:
            for part in sorted(self.random.random() for _ in range(POINTS)):
                yield 1 + int(part * self.total)
        else:
            n = 1
            while n <= self.total:
                yield n
                n += 1


def starve_once(life, program, scenario, nth, many):
    """Requests that were made, and refused."""
    with life.s.orders[program].starving(nth, many) as orders:
        try:
            scenario(life)
            at = None
        except Exception as e:
            at = e
    what = "request %d (%d in a row), of %s" % (nth, many, orders.where())
    process = life.disk.process if program == "nbdkit" else life.s.daemon
    assert process.poll() is None, "%s has died at %s" % (program, what)
    if at is not None:
        raise AssertionError(what) from at
    try:
        life.settle()
    except Exception as e:
        raise AssertionError(what) from e
    return orders.calls(), orders.hits()


def starve(program, scenario):
    with Starving() as s:
        life, hits = Life(s, rng(scenario.__name__)), 0
        points = Points(life.random)
        points.seen(starve_once(life, program, scenario, NEVER, 1)[0])
        for nth in points:
            for many in (1, 30):
                calls, refused = starve_once(life, program, scenario, nth, many)
                points.seen(calls)
                hits += refused
        assert hits > 0


def backup(life):
    """All on one control connection, or on the next where that was closed without an answer."""
    def with_q(step):
        try:
            q = life.s.qmp()
        except (EOFError, OSError, QMPError):
            return
        with q, contextlib.suppress(EOFError, OSError):
            step(q)
    with life.disk.connect() as guest:
        life.nothing_begun()
        with_q(life.begin)
        life.write(guest)
        with_q(life.ask)
        life.pull()
        with_q(life.change)
        life.write(guest)
        with_q(life.end)
        guest.disc()


@test
def varved_without_memory_refuses_or_does_it_and_goes_on():
    starve("varved", backup)


@test
def a_plugin_without_memory_serves_its_guest_and_tracks():
    starve("nbdkit", backup)


def start(program, begin, process):
    """Starts it again and again, each time another request is refused; a backup is open all the time."""
    with Starving() as s:
        life, tried = Life(s, rng("start-" + program)), 0
        old = bytes(life.data)
        with s.qmp() as q:
            backups.begin(q, [{"disk": "vda", "export": "open"}], id="open", ttl=0)

        def stop():
            s.stop(process(life))
            if program == "nbdkit":
                s.wait_disk("vda", "offline")

        def again():
            s.wait_disk("vda", "live")
            with life.disk.connect() as guest:
                life.write(guest)
            wait_for("the open backup is served", open_is_there)
            assert backups.first_difference(bytes(backups.pull(s.nbd, "open", 1)), old) is None

        def open_is_there():
            with s.qmp() as q:
                state = {b["id"]: b["state"] for b in q.cmd("query-backups")}["open"]
                assert state == "running", state
                return any(e["id"] == "open" for e in q.cmd("query-block-exports"))
        stop()
        with s.orders[program].starving() as orders:
            begin(life)
        again()
        points = Points(life.random)
        points.seen(orders.calls())
        for nth in points:
            stop()
            what = None
            with s.orders[program].starving(nth) as orders:
                try:
                    begin(life)
                except RuntimeError:
                    what = s.started[-1]
            tried += orders.hits()
            if what is not None:
                assert what.returncode > 0, "killed by a signal at %d, of %s" % (nth, orders.where())
                assert "memory" in log_of(what), "%d, of %s: %s" % (nth, orders.where(), log_of(what))
                s.killed.add(what.pid)
                begin(life)
            try:
                again()
            except Exception as e:
                raise AssertionError("request %d, of %s" % (nth, orders.where())) from e
        assert tried > 0
        life.nothing_begun()
        life.settle()


@test
def varved_that_starts_without_memory_says_so_or_comes_with_all_it_had():
    start("varved", lambda life: life.s.start_daemon(), lambda life: life.s.daemon)


@test
def a_plugin_that_starts_without_memory_says_so_or_serves():
    start("nbdkit", Life.serve, lambda life: life.disk.process)


# --- pages ----------------------------------------------------------------------------------------------


def shape(value):
    """What stands in a JSON value, without how much of it."""
    if isinstance(value, dict):
        return {k: shape(v) for k, v in value.items()}
    return [shape(v) for v in value] if isinstance(value, list) else isinstance(value, (int, float)) or value


def shape_of_page(path, body):
    if path.startswith("/api"):
        return shape(json.loads(body))
    got = prometheus.samples(body.decode())
    return list(got), [v for k, v in got.items() if "last_success" in k or "inconsistent" in k]


def page(where, path):
    """Its shape; None: it was refused, or the connection was closed, or it tells of what there was no memory for."""
    with rawhttp.connect(where) as c:
        try:
            c.sendall((rawhttp.GET % (path, "x")).encode())
        except BrokenPipeError:
            pass
        got = rawhttp.everything(c)
    if not got:
        return None
    status, _, body = rawhttp.parse(got)
    assert status in (200, 500, 503), (status, body)
    return shape_of_page(path, body) if status == 200 and b"memory" not in body else None


@test
def a_page_without_memory_is_whole_or_none():
    random, refused = rng("pages"), 0
    with Starving() as s:
        m, w = (os.path.join(s.socks, n) for n in "mw")
        s.start_daemon("--metrics", "unix:" + m, "--web", "unix:" + w)
        s.start("vda", M)
        s.start("vdb", M)
        with s.qmp() as q:
            q.cmd("block-dirty-bitmap-add", node="vda", name="bits")
            backups.end(q, backups.begin(q, ["vda", "vdb"], checkpoint="c")[0])
            backups.begin(q, ["vda"])
        for where, path in [(m, "/metrics")] + [(w, "/api/" + p) for p in (
                "disks", "checkpoints?disk=vda", "backups", "block", "nbd-server", "version",
                "changes?disk=vda&since=c")]:
            whole, points = page(where, path), Points(random)
            for nth in itertools.chain((NEVER,), points):
                for many in (1, 30):
                    with s.orders["varved"].starving(nth, many) as orders:
                        got = page(where, path)
                    what = "%s, request %d (%d in a row), of %s" % (path, nth, many, orders.where())
                    assert got == whole or got is None and orders.hits(), (what, got)
                    points.seen(orders.calls())
                    refused += got is None
            assert page(where, path) == whole
    assert refused > 0


if __name__ == "__main__":
    main()
