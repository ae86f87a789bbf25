#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Bitmaps as QEMU has them: what they say after writes, merges, backups, restarts, and what is refused.
The numbers are those that QEMU's own tests of bitmaps have."""
import os
import re

import backups
import nbdclient
from bitmaps import (Disk, G64, PREFIX, SIZE, add, blocks_of, change, count, frozen, infos, merge,
                     refused)
from harness import K, M
from qmpclient import QMPError
from tap import main, test

# Groups of writes: ranges that QEMU's bitmap tests write.
G0 = ((0, G64), (1 * M, G64), (32 * M, G64), (64 * M - G64, G64))
G1 = ((0, G64), (1 * M - 32 * K, G64), (32 * M + 32 * K, G64), (64 * M - 128 * K, G64))
G2 = ((0x10000, G64), (0xe8000, G64), (0x2018000, G64), (0x3fe0000, 128 * K))


def write(c, group, byte=b"\xcd"):
    for off, n in group:
        c.write(off, byte * n)


@test
def groups_of_writes_count_as_in_qemu():
    """A and B record G0; one transaction freezes B and starts C; G1: A 7, B 4, C 6 blocks; the union
    of B and C is A, bit for bit."""
    with Disk() as (s, c, q):
        add(q, "A")
        add(q, "B")
        write(c, G0)
        assert count(q, "A") == count(q, "B") == 262144
        q.cmd("transaction", actions=[
            {"type": PREFIX + "disable", "data": {"node": "vda", "name": "B"}},
            {"type": PREFIX + "add", "data": {"node": "vda", "name": "C",
                                              "granularity": 65536}}])
        write(c, G1)
        got = infos(q)
        assert [got[n]["count"] for n in "ABC"] == [458752, 262144, 393216], got
        assert [got[n]["recording"] for n in "ABC"] == [True, False, True]
        assert all(b["granularity"] == 65536 and b["persistent"] and not b["busy"]
                   and not b["inconsistent"] for b in got.values())
        add(q, "D", disabled=True)
        merge(q, "D", ["B", "C"])
        assert count(q, "D") == 458752
        sets = frozen(s, q, "ABCD")
        assert sets["D"] == sets["A"] == sets["B"] | sets["C"], sets
        assert sets["B"] == {off // G64 for off, _ in G0}, sets["B"]


@test
def a_backup_moves_its_bitmap_by_its_mode():
    """Six blocks; during the backup others are written: success leaves those, failure both, never
    both; and the backup itself holds the six and the bytes of its instant."""
    for mode, success, after in (("on-success", True, 7), ("on-success", False, 10),
                                 ("never", True, 10), ("never", False, 10),
                                 ("always", True, 7), ("always", False, 10)):
        with Disk() as (s, c, q):
            add(q, "bitmap0")
            write(c, G1)
            assert count(q, "bitmap0") == 6 * G64
            before = s.content(s.path("vda.img"))
            ident, answer = backups.begin(q, [{"disk": "vda", "bitmap": "bitmap0",
                                               "bitmap-mode": mode}])
            assert answer["vda"]["dirty-bytes"] == 6 * G64
            assert infos(q)["bitmap0"]["busy"] and infos(q)["bitmap0"]["recording"]
            write(c, G2, b"\xab")
            dirty = blocks_of(s, "vda", "backup-vda", G64)
            assert dirty == {0, 15, 16, 512, 513, 1022}, dirty
            assert blocks_of(s, "vda@bitmap0", "bitmap0", G64) == dirty
            assert backups.first_difference(backups.pull(s.nbd, "vda"), before) is None
            running = q.cmd("query-backups")[0]["disks"][0]
            assert (running["bitmap"], running["bitmap-mode"]) == ("bitmap0", mode), running
            backups.end(q, ident, success)
            assert count(q, "bitmap0") == after * G64, (mode, success, count(q, "bitmap0"))
            assert not infos(q)["bitmap0"]["busy"]


@test
def incremental_backups_from_a_bitmap_add_up():
    """Full copy, then three incremental ones, one of them failed: the chain is the disk."""
    with Disk(granularity="4K") as (s, c, q):
        add(q, "chain", granularity=4096)
        ident, _ = backups.begin(q, [{"disk": "vda", "bitmap": "chain"}])
        copy = backups.pull(s.nbd, "vda")
        backups.end(q, ident)
        for i, success in enumerate((True, False, True)):
            for k in range(20):
                c.write((i * 37 + k * 11) * 4 * K % (SIZE - 64 * K), bytes([i * 20 + k]) * 5000)
            ident, answer = backups.begin(q, [{"disk": "vda", "bitmap": "chain"}])
            now = backups.pull(s.nbd, "vda")
            ranges = backups.dirty(s.nbd, "vda", answer["vda"]["context"])
            assert sum(n for _, n in ranges) == answer["vda"]["dirty-bytes"]
            if success:
                copy = backups.apply(copy, now, ranges)
            backups.end(q, ident, success)
        assert backups.first_difference(copy, s.content(s.path("vda.img"))) is None


@test
def granularity_is_what_readers_see():
    """Rounded up to the block size, and its counts and maps in that unit; merging a coarse bitmap
    into a fine one brings the coarse one's view of things, as in QEMU."""
    with Disk(granularity="4K") as (s, c, q):
        for name, asked, is_ in (("a", 512, 4096), ("b", None, 65536), ("c", 1 * M, 1 * M),
                                 ("d", 1 << 31, 1 << 31), ("e", 4096, 4096)):
            add(q, name, **({"granularity": asked} if asked else {}))
            assert infos(q)[name]["granularity"] == is_
        c.write(5 * M + 123, b"x")
        got = {n: b["count"] for n, b in infos(q).items()}
        assert got == {"a": 4096, "b": 65536, "c": M, "d": SIZE, "e": 4096}, got
        assert frozen(s, q, ["c"], M)["c"] == {5}
        change(q, "clear", "e")
        merge(q, "e", ["c"])
        assert count(q, "e") == M
        assert frozen(s, q, ["e"], 4096)["e"] == set(range(5 * 256, 6 * 256))
        merge(q, "c", ["a"])
        assert count(q, "c") == M
        c.write(20 * M, b"x")
        assert count(q, "e") == M + 4096    # it went on recording


@test
def bitmaps_of_disks_of_one_size_can_be_merged():
    """Their blocks may have other sizes; the last one is partial."""
    size = 8 * M + 5 * K
    with Disk(size, "4K") as (s, c, q):
        other = s.serve("vdb", s.image("vdb.img", size), granularity="64K")
        s.serve("vdc", s.image("vdc.img", size + 512), granularity="4K")
        s.wait_disk("vdb", "live")
        s.wait_disk("vdc", "live")
        for disk in ("vda", "vdb", "vdc"):
            add(q, "b", disk, granularity=4096)
        with other.connect() as c2:
            c.write(0, b"x")
            c.write(size - 1, b"x")
            c2.write(3 * M, b"y")
            add(q, "from-b", granularity=4096, disabled=True)
            merge(q, "from-b", ["b", {"node": "vdb", "name": "b"}])
            assert count(q, "from-b") == 4096 + 1 * K + 64 * K, count(q, "from-b")
            merge(q, "b", [{"node": "vda", "name": "b"}], "vdb")
            assert count(q, "b", "vdb") == 64 * K + 64 * K + 5 * K, count(q, "b", "vdb")
            refused(q, "different sizes.*%d.*%d.*merged" % (size, size + 512), PREFIX + "merge",
                    node="vda", target="b", bitmaps=[{"node": "vdc", "name": "b"}])
            s.kill(s.daemon)    # blocks that no epoch tells are durable
            s.start_daemon()
            s.wait_disk("vdb", "live")
            with s.qmp() as q2:
                assert count(q2, "from-b") == 4096 + 1 * K + 64 * K
                assert count(q2, "b", "vdb") == 64 * K + 64 * K + 5 * K
                merge(q2, "from-b", [])
                for disk, name in (("vda", "from-b"), ("vdb", "b")):
                    change(q2, "remove", name, disk)
            left = [f for d in ("vda", "vdb") for f in os.listdir(s.state + "/" + d)
                    if f.startswith("blocks-")]
            assert left == [], left
            c2.disc()


@test
def enable_disable_clear_copy_act_at_once():
    with Disk() as (s, c, q):
        add(q, "x")
        c.write(0, b"1")
        change(q, "disable", "x")
        change(q, "disable", "x")
        c.write(10 * G64, b"2")
        assert count(q, "x") == G64
        q.cmd(PREFIX + "copy", node="vda", name="x", target="stopped")
        change(q, "enable", "x")
        change(q, "enable", "x")
        q.cmd(PREFIX + "copy", node="vda", name="x", target="going")
        c.write(20 * G64, b"3")
        got = infos(q)
        assert {n: (b["count"] // G64, b["recording"]) for n, b in got.items()} == {
            "x": (2, True), "stopped": (1, False), "going": (2, True)}, got
        change(q, "clear", "x")
        change(q, "clear", "stopped")
        c.write(30 * G64, b"4")
        got = infos(q)
        assert {n: b["count"] // G64 for n, b in got.items()} == {
            "x": 1, "stopped": 0, "going": 3}, got
        merge(q, "x", [])
        merge(q, "x", ["x"])
        assert count(q, "x") == G64
        change(q, "remove", "going")
        assert set(infos(q)) == {"x", "stopped"}


@test
def names_are_any_utf8_and_percent_encoded_in_exports():
    names = ["b", "ä/ö", "a b", "x@y+z", "%41", "line\nbreak", "\U0001f4be", "n" * 1023,
             "\u00e9" * 511]
    with Disk() as (s, c, q):
        for i, name in enumerate(names):
            add(q, name)
            c.write(i * G64, b"x")
        sets = frozen(s, q, names)
        for i, name in enumerate(names):
            assert sets[name] == set(range(i, len(names))), (name, sets[name])
        for name in ("n" * 1024, "\u00e9" * 512):
            refused(q, "Bitmap name too long.*1024 bytes", PREFIX + "add", node="vda", name=name)
        refused(q, "Bitmap name cannot be empty", PREFIX + "add", node="vda", name="")


@test
def a_checkpoint_stands_before_a_bitmap_of_its_name():
    with Disk() as (s, c, q):
        q.cmd("checkpoint-create", name="same", disks=["vda"])
        c.write(0, b"x")
        add(q, "same")
        c.write(5 * G64, b"x")
        ident, _ = backups.begin(q, ["vda"])
        assert blocks_of(s, "vda@same", "same", G64) == {0, 5}
        backups.end(q, ident)


@test
def bitmaps_survive_daemon_and_plugin_and_transient_ones_do_not_survive_the_daemon():
    with Disk() as (s, c, q):
        add(q, "stays")
        add(q, "goes", persistent=False)
        assert not infos(q)["goes"]["persistent"]
        write(c, G1)
        ident, _ = backups.begin(q, [{"disk": "vda", "bitmap": "stays"}])
        other, _ = backups.begin(q, [{"disk": "vda", "bitmap": "goes", "export": "other"}])
        write(c, G2)
        c.disc()
        s.kill(s.disks["vda"].process)
        s.kill(s.daemon)
        s.serve("vda", s.path("vda.img"))
        s.start_daemon()
        s.wait_disk("vda", "live")
        with s.qmp() as q2:
            got = infos(q2)
            assert set(got) == {"stays"}, got
            assert got["stays"]["count"] == 10 * G64 and got["stays"]["busy"]
            assert blocks_of(s, "vda", "backup-vda", G64) == {0, 15, 16, 512, 513, 1022}
            assert blocks_of(s, "other", "backup-vda", G64) == {0, 15, 16, 512, 513, 1022}
            add(q2, "goes")
            change_count = count(q2, "goes")
            backups.end(q2, other, True)    # its bitmap is gone: another one is not touched
            assert count(q2, "goes") == change_count == 0
            backups.end(q2, ident, True)
            assert count(q2, "stays") == 7 * G64
            with s.disks["vda"].connect() as c2:
                c2.write(40 * G64, b"x")
                assert count(q2, "stays") == 8 * G64
                c2.disc()


@test
def a_bitmap_that_changed_meanwhile_is_no_base_after_a_restart():
    """What vda@NAME tells is what NAME held at the backup's instant.  Others are moved by the end of
    another backup, cleared and filled again, or made anew before the daemon restarts: their exports
    are gone, rather than tell less than before under the same name."""
    def offered(s, name):
        try:
            return blocks_of(s, "vda@" + name, name, G64)
        except nbdclient.OptError as e:
            assert e.reply == nbdclient.REP_ERR_UNKNOWN, e
            return None
    with Disk() as (s, c, q):
        for name in ("stays", "moved", "filled", "anew"):
            add(q, name)
        write(c, G0)
        for name in ("filled", "anew"):
            change(q, "disable", name)
        add(q, "little")
        c.write(5 * G64, b"x")
        change(q, "disable", "little")
        first, _ = backups.begin(q, [{"disk": "vda", "bitmap": "moved", "export": "first"}])
        ident, _ = backups.begin(q, [{"disk": "vda"}])
        old = {0, 16, 512, 1023}
        before = {"stays": old | {5}, "moved": old | {5}, "filled": old, "anew": old, "little": {5}}
        assert {n: offered(s, n) for n in before} == before
        backups.end(q, first)
        change(q, "clear", "filled")
        merge(q, "filled", ["little"])
        change(q, "remove", "anew")
        q.cmd(PREFIX + "copy", node="vda", name="little", target="anew")
        assert {n: offered(s, n) for n in ("stays", "little")} == {"stays": old | {5}, "little": {5}}
        s.kill(s.daemon)
        s.start_daemon()
        s.wait_disk("vda", "live")
        assert {n: offered(s, n) for n in before} == {
            "stays": old | {5}, "moved": None, "filled": None, "anew": None, "little": {5}}
        with s.qmp() as q2:
            backups.end(q2, ident)
            # Of the next backup they are bases again.
            assert frozen(s, q2, ("moved", "filled", "anew")) == {
                "moved": set(), "filled": {5}, "anew": {5}}


@test
def a_bitmap_that_a_backup_uses_is_busy():
    """For everybody, but for backups that never move it; and afterwards it is not."""
    with Disk() as (s, c, q):
        add(q, "b")
        add(q, "free")
        write(c, G1)
        one, _ = backups.begin(q, [{"disk": "vda", "bitmap": "b"}])
        busy = "'b' is currently in use by another operation and cannot be used.*'%s'" % one
        before = infos(q)
        for verb in ("remove", "clear", "enable", "disable"):
            refused(q, busy, PREFIX + verb, node="vda", name="b")
        refused(q, busy, PREFIX + "merge", node="vda", target="b", bitmaps=["free"])
        refused(q, busy, PREFIX + "merge", node="vda", target="free", bitmaps=["b"])
        refused(q, busy, PREFIX + "copy", node="vda", name="b", target="c")
        for mode in ("never", "always", "on-success"):
            refused(q, busy, "backup-begin",
                    disks=[{"disk": "vda", "export": "x", "bitmap": "b", "bitmap-mode": mode}])
        assert infos(q) == before
        backups.end(q, one, False)
        two = [backups.begin(q, [{"disk": "vda", "export": "e%d" % i, "bitmap": "b",
                                  "bitmap-mode": "never"}])[0] for i in range(2)]
        refused(q, "in use.*'%s'" % two[0], "backup-begin",
                disks=[{"disk": "vda", "export": "x", "bitmap": "b"}])
        refused(q, "in use", PREFIX + "clear", node="vda", name="b")
        for ident in two:
            assert infos(q)["b"]["busy"]
            backups.end(q, ident)
        change(q, "clear", "b")
        assert count(q, "b") == 0 and count(q, "free") == 6 * G64


@test
def what_was_released_counts_as_copied_in_mode_always():
    """And in no other mode, if the backup fails: 6 blocks, of which 15 and 512 are released, 16 in
    half; block 0 is released and then asked for in vain, so it is not believed to be copied."""
    for mode, restart, disabled, after in (
            ("always", False, False, {0, 16, 513, 1022} | {1, 14, 15, 513, 514, 1022, 1023}),
            ("always", True, False, {0, 16, 513, 1022} | {1, 14, 15, 513, 514, 1022, 1023}),
            ("always", False, True, {0, 16, 513, 1022}),
            ("on-success", False, True, {0, 15, 16, 512, 513, 1022}),
            ("never", False, True, {0, 15, 16, 512, 513, 1022})):
        with Disk(granularity="4K") as (s, c, q):
            add(q, "b")
            write(c, G1)
            if disabled:
                change(q, "disable", "b")
            ident, _ = backups.begin(q, [{"disk": "vda", "bitmap": "b", "bitmap-mode": mode}],
                                     release=True)
            with s.connect("vda") as r:
                r.trim(15 * G64, G64)
                r.trim(16 * G64, G64 // 2)
                r.trim(512 * G64, G64)
            write(c, G2)
            if restart:
                s.kill(s.daemon)
                s.start_daemon()
                s.wait_disk("vda", "live")
            with s.qmp() as q2, s.connect("vda") as r:
                r.trim(0, G64)
                try:
                    r.read(0, 4096)
                    raise AssertionError("what was released was read")
                except nbdclient.NBDError:
                    pass
                backups.end(q2, ident, False)
                assert frozen(s, q2, ["b"])["b"] == after, (mode, frozen(s, q2, ["b"]))
                change(q2, "clear", "b")
            assert not [f for f in os.listdir(s.state + "/vda") if f.startswith("blocks-")]


@test
def what_was_lost_is_not_copied_because_it_was_released():
    """Preimages of 5 and 9 are lost (a scratch of 256 KiB), and nobody asks for them before all is
    released: in mode always the bitmap keeps them when the backup fails."""
    with Disk(16 * M, "64K", scratch_max="256K", on_scratch_full="degrade") as (s, c, q):
        c.write(0, b"z" * M)    # preimages of holes take no space
        add(q, "b")
        c.write(0, b"x" * M)
        change(q, "disable", "b")
        ident, _ = backups.begin(q, [{"disk": "vda", "bitmap": "b", "bitmap-mode": "always"}],
                                 release=True)
        for i in (0, 1, 2, 3, 5, 9):
            c.write(i * G64, b"y" * G64)
        with s.connect("vda") as r:
            r.trim(0, 12 * G64)
        backups.end(q, ident, False)
        assert frozen(s, q, ["b"])["b"] == {5, 9, 12, 13, 14, 15}, frozen(s, q, ["b"])


@test
def a_missing_epoch_makes_inconsistent_by_name():
    """The bitmap that needs it, and no other; it can be removed, and only that."""
    with Disk() as (s, c, q):
        add(q, "old")
        first = q.cmd("query-disks")[0]["epoch"]
        c.write(0, b"x")
        add(q, "young")
        c.write(G64, b"x")
        q.cmd("checkpoint-create", name="c", disks=["vda"])
        assert infos(q)["old"]["recording"]
        os.unlink("%s/vda/epoch-%d-%d.map" % (s.state, first, first))
        got = infos(q)
        assert got["old"]["inconsistent"] and not got["young"]["inconsistent"], got
        assert got["old"]["count"] == 0 and "epoch" in got["old"]["reason"], got["old"]
        assert got["young"]["count"] == G64
        assert not got["old"]["recording"]    # as in QEMU: inconsistent implies that
        text = "'old' is inconsistent and cannot be used.*remove it.*epoch"
        for verb in ("clear", "enable", "disable"):
            refused(q, text, PREFIX + verb, node="vda", name="old")
        refused(q, text, PREFIX + "merge", node="vda", target="young", bitmaps=["old"])
        refused(q, text, PREFIX + "merge", node="vda", target="old", bitmaps=["young"])
        refused(q, text, PREFIX + "copy", node="vda", name="old", target="x")
        refused(q, text, "backup-begin", disks=[{"disk": "vda", "bitmap": "old"}])
        refused(q, text, "transaction", actions=[
            {"type": PREFIX + "clear", "data": {"node": "vda", "name": "young"}},
            {"type": PREFIX + "clear", "data": {"node": "vda", "name": "old"}}])
        assert count(q, "young") == G64
        change(q, "remove", "old")
        assert set(infos(q)) == {"young"}


@test
def a_damaged_epoch_concerns_all_that_begin_before_its_end_and_no_others():
    with Disk() as (s, c, q):
        epochs = {}
        for i in range(5):
            add(q, "b%d" % i)
            epochs[i] = q.cmd("query-disks")[0]["epoch"]
            c.write(i * G64, b"x")
        change(q, "disable", "b0")
        change(q, "enable", "b0")
        path = "%s/vda/epoch-%d-%d.map" % (s.state, epochs[2], epochs[2])
        with open(path, "r+b") as f:
            f.truncate(os.path.getsize(path) - 1)
        got = infos(q)
        assert [got["b%d" % i]["inconsistent"] for i in range(5)] == [True] * 3 + [False] * 2, got
        assert [got["b%d" % i]["count"] // G64 for i in range(5)] == [0, 0, 0, 2, 1], got


@test
def a_damaged_file_of_blocks_makes_inconsistent():
    with Disk(granularity="4K") as (s, c, q):
        add(q, "fine", granularity=4096, disabled=True)
        add(q, "coarse")
        c.write(0, b"x")
        merge(q, "fine", ["coarse"])
        assert count(q, "fine") == G64
        path = [f for f in os.listdir(s.state + "/vda") if f.startswith("blocks-")]
        assert len(path) == 1, path
        path = s.state + "/vda/" + path[0]
        with open(path, "r+b") as f:
            f.seek(100)
            byte = f.read(1)
            f.seek(100)
            f.write(bytes([byte[0] ^ 1]))
        assert infos(q)["fine"]["inconsistent"] and not infos(q)["coarse"]["inconsistent"]
        refused(q, "damaged", "backup-begin", disks=[{"disk": "vda", "bitmap": "fine"}])
        os.unlink(path)
        refused(q, "inconsistent.*missing", PREFIX + "clear", node="vda", name="fine")
        assert q.cmd("query-backups") == []


@test
def the_command_line_does_it_all():
    with Disk(granularity="4K") as (s, c, q):
        s.varve("bitmap", "add", "--granularity", "4K", "vda", "a/b")
        s.varve("bitmap", "add", "--disabled", "--transient", "vda", "t")
        c.write(0, b"x" * M)
        s.varve("bitmap", "copy", "vda", "a/b", "c")
        s.varve("bitmap", "disable", "vda", "c")
        s.varve("bitmap", "merge", "vda", "t", "c")
        lines = s.varve("bitmap", "list", "vda").stdout.splitlines()
        assert [line.split() for line in lines[1:]] == [
            ["vda", "a/b", "1M", "4K", "recording"],
            ["vda", "t", "1M", "64K", "disabled,", "transient"],
            ["vda", "c", "1M", "4K", "disabled"]], lines
        estimate = s.varve("backup", "estimate", "--bitmap", "a/b", "vda").stdout
        assert estimate.splitlines()[1].split()[2] == "1M", estimate
        s.varve("backup", "begin", "--id", "one", "--bitmap", "a/b", "--bitmap-mode", "never", "vda")
        copy = s.path("copy.img")
        for name in ("a/b", "c"):    # percent-encoded in the export's name, and again in the URI
            with open(copy, "wb") as f:
                f.truncate(SIZE)
            s.varve("pull", s.uri("vda"), copy, "--since", name)
            assert s.content(copy) == s.content(s.path("vda.img"))
        assert " a/b " in s.varve("backup", "list").stdout
        s.varve("backup", "end", "one")
        s.varve("bitmap", "clear", "vda", "a/b")
        s.varve("bitmap", "enable", "vda", "c")
        s.varve("bitmap", "remove", "vda", "t")
        got = infos(q)
        assert {n: (b["count"], b["recording"]) for n, b in got.items()} == {
            "a/b": (0, True), "c": (M, True)}, got
        r = s.varve("bitmap", "clear", "vda", "no", check=False)
        assert r.returncode == 1 and "Dirty bitmap 'no' not found" in r.stderr, r


@test
def wrong_arguments_change_nothing():
    """Each has its message; bitmaps, checkpoints and even the epoch's number stay as they were."""
    with Disk() as (s, c, q):
        add(q, "b")
        add(q, "c", disabled=True)
        write(c, G1)
        before = infos(q), q.cmd("query-disks")
        on = {"node": "vda"}
        named = dict(on, name="b")
        for verb, args, pattern in (
                ("add", {"name": "x"}, "'node' is missing"),
                ("add", on, "'name' is missing"),
                ("add", dict(on, name=1), "'name', expected: string"),
                ("add", dict(named, granularity=65536), "Bitmap already exists: b"),
                ("add", dict(on, name=""), "cannot be empty"),
                ("add", dict(on, name="x", granularity=0), "power of 2 and at least 512"),
                ("add", dict(on, name="x", granularity=256), "power of 2 and at least 512"),
                ("add", dict(on, name="x", granularity=65537), "power of 2"),
                ("add", dict(on, name="x", granularity=1 << 32), "power of 2"),
                ("add", dict(on, name="x", granularity=-512), "negative"),
                ("add", dict(on, name="x", granularity="64K"), "'granularity', expected: integer"),
                ("add", dict(on, name="x", disabled=1), "'disabled', expected: boolean"),
                ("add", dict(on, name="x", persistent="on"), "'persistent', expected: boolean"),
                ("add", dict(on, name="x", size=1), "'size' is unexpected"),
                ("merge", dict(on, bitmaps=[]), "'target' is missing"),
                ("merge", dict(on, target="b"), "'bitmaps' is missing"),
                ("merge", dict(on, target="b", bitmaps="c"), "'bitmaps', expected: array"),
                ("merge", dict(on, target="b", bitmaps=[1]), "'bitmaps', expected: array of names"),
                ("merge", dict(on, target="b", bitmaps=[{"node": "vda"}]), "'name' is missing"),
                ("merge", dict(on, target="b", bitmaps=[{"name": "c"}]), "'node' is missing"),
                ("merge", dict(on, target="b", bitmaps=["c", "no"]),
                 "Dirty bitmap 'no' not found.*'vda'"),
                ("merge", dict(on, target="no", bitmaps=["c"]), "Dirty bitmap 'no' not found"),
                ("copy", named, "'target' is missing"),
                ("copy", dict(named, target=""), "cannot be empty"),
                ("copy", dict(named, target="c"), "Bitmap already exists: c"),
                ("copy", dict(on, name="no", target="x"), "Dirty bitmap 'no' not found"),
        ) + tuple((verb, args, pattern) for verb in ("remove", "clear", "enable", "disable")
                  for args, pattern in (
                      ({"name": "b"}, "'node' is missing"), (on, "'name' is missing"),
                      (dict(on, name="no"), "Dirty bitmap 'no' not found: query-block.*'vda'"),
                      (dict(named, x=1), "'x' is unexpected"))):
            try:
                answer = q.execute(PREFIX + verb, args)
            except QMPError as e:
                assert e.cls == "GenericError" and re.search(pattern, e.desc), (verb, args, e)
                continue
            raise AssertionError("%s %r was accepted: %r" % (verb, args, answer))
        for verb in ("add", "remove", "clear", "enable", "disable"):
            refused(q, "no disk 'no'", PREFIX + verb, "DeviceNotFound", node="no", name="b")
        refused(q, "no disk 'no'", PREFIX + "copy", "DeviceNotFound", node="no", name="b",
                target="x")
        refused(q, "no disk 'no'", PREFIX + "merge", "DeviceNotFound", node="no", target="b",
                bitmaps=[])
        refused(q, "no disk 'no'", PREFIX + "merge", "DeviceNotFound", node="vda", target="b",
                bitmaps=[{"node": "no", "name": "b"}])
        for disk, pattern in (
                ({"bitmap": "no"}, "Dirty bitmap 'no' not found"),
                ({"bitmap": ""}, "not found"),
                ({"bitmap": "b", "since": "c"}, "exclude each other"),
                ({"bitmap": "b", "bitmap-mode": "bitmap"}, "does not accept value 'bitmap'"),
                ({"bitmap-mode": "always"}, "without a bitmap")):
            refused(q, pattern, "backup-begin", disks=[dict(disk, disk="vda")])
        refused(q, "'x' is unexpected", "query-block", x=1)
        assert (infos(q), q.cmd("query-disks")) == before


if __name__ == "__main__":
    main()
