#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Transactions: all or nothing, at one boundary, whatever the order of the actions.

BATCHES (default 1; LONG=1: 417, which is 10,008 boundaries) of all 24 orders of [disable, add,
clear, merge] while guests write at full speed (a slow machine wants DEADLINE=7200 for that).
"""
import itertools
import re
import threading
import time

import backups
import nbdclient
from bitmaps import Disk, G64, PREFIX, add, blocks_of, count, frozen, infos, refused
from harness import K, M, Stack
from qmpclient import QMPError
from tap import diag, main, number, rng, test

BATCHES = number("BATCHES", 1, 417)
BLOCK = 4 * K


def bitmap(verb, name, node="vda", **more):
    key = "target" if verb == "merge" else "name"
    return {"type": PREFIX + verb, "data": dict({"node": node, key: name}, **more)}


def state(q):
    disks = q.cmd("query-disks")
    return (infos(q), disks, q.cmd("query-checkpoints"), q.cmd("query-backups"))


@test
def a_transaction_that_fails_leaves_no_trace():
    """Neither does one that is aborted: bitmaps, checkpoints, backups, and files are as before."""
    with Disk() as (s, c, q):
        add(q, "a")
        add(q, "b", disabled=True)
        q.cmd("checkpoint-create", name="c0", disks=["vda"])
        c.write(0, b"x" * 3 * G64)
        before = state(q)
        good = [bitmap("clear", "a"), bitmap("add", "n"), bitmap("merge", "b", bitmaps=["a"]),
                bitmap("disable", "a"), bitmap("enable", "b"), bitmap("remove", "b"),
                bitmap("copy", "a", target="copied"),
                {"type": "checkpoint-create", "data": {"name": "c1", "disks": ["vda"]}},
                {"type": "checkpoint-delete", "data": {"name": "c0"}},
                {"type": "backup-begin", "data": {"disks": [{"disk": "vda"}], "id": "bk"}}]
        bad = [({"type": "abort", "data": {}}, "Transaction aborted using Abort action"),
               (bitmap("clear", "no"), "Dirty bitmap 'no' not found"),
               (bitmap("add", "a"), "already exists: a"),
               (bitmap("merge", "a", bitmaps=["no"]), "'no' not found"),
               ({"type": "checkpoint-delete", "data": {"name": "no"}}, "no checkpoint 'no'"),
               ({"type": "checkpoint-create", "data": {"name": "c1", "disks": ["vda"]}},
                "has a checkpoint 'c1' already"),
               ({"type": "backup-begin", "data": {"disks": [{"disk": "vda", "since": "no"}]}},
                "no checkpoint 'no'|exists already"),
               ({"type": "backup-begin", "data": {"disks": [{"disk": "vda", "export": "e"}]}},
                "two backups in one transaction")]
        for action, pattern in bad:
            refused(q, pattern, "transaction", actions=good + [action])
            assert state(q) == before, action
        for one in good:
            for actions in ([one, bad[0][0]], [bad[0][0], one]):
                refused(q, "aborted", "transaction", actions=actions)
                assert state(q) == before, one
        q.cmd("transaction", actions=[])
        assert state(q) == before


@test
def wrong_arguments_are_refused():
    with Disk() as (s, c, q):
        add(q, "a")
        before = state(q)
        for args, pattern in (
                ({}, "'actions' is missing"),
                ({"actions": {}}, "'actions', expected: array"),
                ({"actions": [1]}, "'actions', expected: array of objects"),
                ({"actions": [{}]}, "'type' is missing"),
                ({"actions": [{"type": 1}]}, "'type', expected: string"),
                ({"actions": [{"type": "abort"}]}, "'data' is missing"),
                ({"actions": [{"type": "abort", "data": []}]}, "'data', expected: object"),
                ({"actions": [{"type": "abort", "data": {"x": 1}}]}, "'x' is unexpected"),
                ({"actions": [{"type": "abort", "data": {}, "x": 1}]}, "'x' is unexpected"),
                ({"actions": [{"type": "blockdev-snapshot", "data": {}}]},
                 "'type' does not accept value 'blockdev-snapshot'"),
                ({"actions": [bitmap("clear", "a", x=1)]}, "'x' is unexpected"),
                ({"actions": [], "properties": 1}, "'properties', expected: object"),
                ({"actions": [], "properties": {"completion-mode": "grouped"}}, "not supported"),
                ({"actions": [], "properties": {"completion-mode": "x"}}, "does not accept"),
                ({"actions": [], "x": 1}, "'x' is unexpected")):
            try:
                q.execute("transaction", args)
            except QMPError as e:
                assert e.cls == "GenericError" and re.search(pattern, e.desc), (args, e)
            else:
                raise AssertionError("%r was accepted" % args)
        refused(q, "no disk 'no'", "transaction", "DeviceNotFound",
                actions=[bitmap("clear", "a", "no")])
        q.execute("transaction", {"actions": [bitmap("disable", "a")],
                                  "properties": {"completion-mode": "individual"}})
        assert state(q)[1:] != before[1:] and not infos(q)["a"]["recording"]


@test
def later_actions_see_earlier_ones():
    with Disk() as (s, c, q):
        add(q, "old")
        c.write(0, b"x" * 2 * G64)
        answer = q.cmd("transaction", actions=[
            bitmap("add", "a"), bitmap("disable", "a"), bitmap("merge", "a", bitmaps=["old"]),
            bitmap("copy", "a", target="b"), bitmap("clear", "a"), bitmap("remove", "old"),
            bitmap("add", "old"),
            {"type": "checkpoint-create", "data": {"name": "now", "disks": ["vda"]}},
            {"type": "backup-begin",
             "data": {"id": "bk", "disks": [{"disk": "vda", "since": "now"}]}}])
        results = answer["results"]
        assert len(results) == 9 and results[0] == {}, results
        assert results[7]["disks"][0]["epoch"] == results[8]["disks"][0]["epoch"], results
        assert results[8]["disks"][0]["dirty-bytes"] == 0
        got = {n: (b["count"] // G64, b["recording"]) for n, b in infos(q).items()}
        assert got == {"a": (0, False), "b": (2, False), "old": (0, True)}, got
        assert blocks_of(s, "vda@b", "b", G64) == {0, 1}
        refused(q, "in use", "transaction", actions=[
            {"type": "backup-begin",
             "data": {"id": "b2", "disks": [{"disk": "vda", "export": "e", "bitmap": "b"}]}},
            bitmap("clear", "b")])
        q.cmd("backup-end", id="bk")
        answer = q.cmd("transaction", actions=[
            bitmap("enable", "b"),
            {"type": "backup-begin",
             "data": {"id": "b2", "disks": [{"disk": "vda", "export": "e", "bitmap": "b"}]}}])
        assert answer["results"][1]["disks"][0]["dirty-bytes"] == 2 * G64
        q.cmd("backup-end", id="b2")
        assert count(q, "b") == 0 and infos(q)["b"]["recording"]
        assert q.cmd("transaction", actions=[bitmap("clear", "b")]) == {}


@test
def all_disks_have_one_boundary():
    """A guest counts on A, then on B, at full speed: at each transaction's boundary, told by what
    bitmaps and a backup begun in it say, B is never ahead of A."""
    with Stack() as s:
        a, b = s.start("a", 16 * M, granularity="4K"), s.start("b", 16 * M, granularity="4K")
        stop, error = [], []

        def guest():
            try:
                with a.connect() as ca, b.connect() as cb:
                    for i in itertools.count():
                        if stop:
                            return
                        off = i * BLOCK % (16 * M)
                        ca.write(off, b"%08d" % (i + 1))
                        cb.write(off, b"%08d" % (i + 1))
            except BaseException as e:
                error.append(e)

        thread = threading.Thread(target=guest, daemon=True)
        thread.start()
        try:
            with s.qmp() as q:
                for i in range(12):
                    q.cmd("transaction", actions=[
                        bitmap("add", "m%d" % i, d, granularity=BLOCK, disabled=False)
                        for d in "ab"] + [
                        {"type": "backup-begin", "data": {"id": "k%d" % i, "disks": [
                            {"disk": "b"}, {"disk": "a"}]}}])
                    counts = {}
                    for d in "ab":
                        data = backups.pull(s.nbd, d)
                        counts[d] = max(int(data[o:o + 8].strip(b"\0") or b"0")
                                        for o in range(0, 16 * M, BLOCK))
                    assert 0 <= counts["a"] - counts["b"] <= 1, counts
                    q.cmd("backup-end", id="k%d" % i)
        finally:
            stop.append(True)
            thread.join()
        assert not error, error


class Writers:
    """Each block of the disk is written at most once, in a random order, by several connections that
    keep requests in flight; when each was sent and answered is noted."""

    def __init__(self, disk, random, threads=3, depth=16):
        order = list(range(disk_blocks(disk)))
        random.shuffle(order)
        self.sent, self.done = {}, {}
        self.stop, self.errors = False, []
        self.threads = [threading.Thread(target=self._run, args=(disk, order[i::threads], depth),
                                         daemon=True) for i in range(threads)]
        for t in self.threads:
            t.start()

    def _run(self, disk, order, depth):
        try:
            with disk.connect() as c:
                flying = {}
                for blk in order:
                    if self.stop:
                        break
                    self.sent[blk] = time.monotonic_ns()
                    flying[c.send(nbdclient.CMD_WRITE, blk * BLOCK, BLOCK, 0, b"w" * BLOCK)] = blk
                    if len(flying) >= depth:
                        self._answer(c, flying)
                while flying:
                    self._answer(c, flying)
        except BaseException as e:
            self.errors.append(e)

    def _answer(self, c, flying):
        r = c.recv()
        assert not r.error, r.error
        self.done[flying.pop(r.cookie)] = time.monotonic_ns()

    def end(self):
        self.stop = True
        for t in self.threads:
            t.join()
        assert not self.errors, self.errors


def disk_blocks(disk):
    with disk.connect() as c:
        return c.size // BLOCK


def one_batch(s, disk, q, random, batch):
    """All orders, once; then what every bitmap holds is compared with what was written when."""
    for name in ("set-0", "cleared"):
        add(q, name, granularity=BLOCK)
    add(q, "all", granularity=BLOCK, disabled=True)
    w = Writers(disk, random)
    when = []    # before and after each transaction
    orders = list(itertools.permutations(("disable", "add", "clear", "merge")))
    random.shuffle(orders)
    for i, order in enumerate(orders):
        old = "set-%d" % i
        made = {"disable": bitmap("disable", old),
                "add": bitmap("add", "set-%d" % (i + 1), granularity=BLOCK),
                "clear": bitmap("clear", "cleared"),
                "merge": bitmap("merge", "all", bitmaps=[old])}
        goal = min(len(w.done) + 20, disk_blocks(disk))
        while len(w.done) < goal and not w.errors and not w.stop:
            time.sleep(0.001)    # only so that there is something to lose
        before = time.monotonic_ns()
        q.cmd("transaction", actions=[made[verb] for verb in order])
        when.append((before, time.monotonic_ns()))
    w.end()
    names = ["set-%d" % i for i in range(len(orders) + 1)]
    sets = frozen(s, q, [n for n in names + ["all", "cleared"] if count(q, n)], BLOCK)
    where = {}
    for i, name in enumerate(names):
        for blk in sets.get(name, ()):
            assert blk not in where, "block %d is in two sets" % blk
            where[blk] = i
    lost = sorted(set(w.done) - set(where))
    assert not lost, "%d of %d writes are in no set: %s" % (len(lost), len(w.done), lost[:5])
    for blk, i in where.items():
        assert i == len(when) or w.sent[blk] < when[i][1], \
            "block %d was written after the boundary of set %d" % (blk, i)
        assert i == 0 or w.done[blk] > when[i - 1][0], \
            "block %d was written before set %d began" % (blk, i)
    assert sets.get("all", set()) == {b for b, i in where.items() if i < len(when)}
    assert sets.get("cleared", set()) == {b for b, i in where.items() if i == len(when)}
    for name in names + ["all", "cleared"]:
        q.cmd(PREFIX + "remove", node="vda", name=name)
    return len(w.done), sum(1 for i in set(where.values()) if i < len(when))


@test
def no_write_is_lost_whatever_the_order():
    """Under full-speed writers, for every order of [disable, add, clear, merge]: each written block is
    in exactly one of the frozen sets and the live one, and in none whose boundary came before it."""
    with Disk(256 * M, "4K") as (s, c, q):
        random, writes, used = rng("orders"), 0, 0
        for batch in range(BATCHES):
            n, sets = one_batch(s, s.disks["vda"], q, random, batch)
            writes, used = writes + n, used + sets
        diag("%d boundaries, %d writes, %d of the sets not empty" % (24 * BATCHES, writes, used))
        assert used > 12 * BATCHES


if __name__ == "__main__":
    main()
