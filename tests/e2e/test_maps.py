#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Maps of changes since other bases: computed when a client asks, dropped, computed again."""
import json
import os

import backups
import nbdclient
from harness import K, M, Stack
from tap import main, rng, test

SIZE = 32 * M
BASES = 12


def history(s, disk, random):
    """Checkpoints c0, c1, ...; the blocks written since each, until now."""
    since = {}
    with disk.connect() as c:
        for i in range(BASES):
            s.command("checkpoint-create", name="c%d" % i, disks=["vda"])
            since["c%d" % i] = set()
            for _ in range(5):
                block = random.randrange(SIZE // (64 * K))
                c.write(block * 64 * K + random.randrange(60 * K), os.urandom(100))
                for blocks in since.values():
                    blocks.add(block)
    return since


def blocks_of(s, base):
    context = "qemu:dirty-bitmap:" + base
    got, off = set(), 0
    with nbdclient.connect(s.nbd, "vda@" + base, [context]) as c:
        for n, flags in c.status(0, c.size)[context]:
            if flags:
                got.update(range(off // (64 * K), (off + n) // (64 * K)))
            off += n
    return got


def maps(s):
    with s.qmp() as q:
        return q.cmd("query-nbd-server")["maps"]


def begin(s, random, memory):
    disk = s.serve("vda", s.image("vda.img", SIZE), granularity="64K")
    s.start_daemon("--map-memory", memory)
    s.wait_disk("vda", "live")
    since = history(s, disk, random)
    s.command("backup-begin", id="b", disks=[{"disk": "vda"}])
    return since


@test
def maps_that_were_dropped_are_computed_again_and_are_the_same():
    """Room for three maps of 64 bytes; twelve bases, asked for in any order."""
    random = rng("maps")
    with Stack() as s:
        since = begin(s, random, "192")
        assert maps(s)["computed"] == 0 and maps(s)["max"] == 192, maps(s)
        for _ in range(40):
            base = random.choice(sorted(since))
            assert blocks_of(s, base) == since[base], base
            assert maps(s)["used"] <= 192, maps(s)
        assert maps(s)["dropped"] >= BASES - 3 and maps(s)["computed"] > BASES, maps(s)
        s.command("backup-end", id="b")
        assert maps(s)["used"] == 0, maps(s)


@test
def maps_stay_while_there_is_room():
    random = rng("maps")
    with Stack() as s:
        since = begin(s, random, "1M")
        for _ in range(2):
            for base in since:
                assert blocks_of(s, base) == since[base], base
        assert maps(s)["computed"] == BASES and maps(s)["dropped"] == 0, maps(s)


@test
def a_base_that_was_deleted_meanwhile_gives_its_map_or_an_error():
    """With no room at all: every query computes, also after checkpoints have gone and their epochs
    were merged.  What is told then is never less than what changed."""
    random = rng("maps")
    with Stack() as s:
        since = begin(s, random, "0")
        for base in sorted(since):
            assert blocks_of(s, base) == since[base], base
        gone = random.sample(sorted(since), 6)
        for base in gone:
            s.command("checkpoint-delete", name=base, disks=["vda"])
        for base in sorted(since):
            try:
                got = blocks_of(s, base)
            except (nbdclient.NBDError, nbdclient.OptError) as why:
                assert base in gone and str(why), (base, why)
                continue
            assert got >= since[base] if base in gone else got == since[base], base
        assert maps(s)["used"] == 0, maps(s)


@test
def two_checkpoints_are_compared_as_of_the_backup():
    """varve map --since --until: what changed before, between, since, and after the backup began."""
    with Stack() as s:
        disk = s.start("vda", SIZE, granularity="64K")
        with s.qmp() as q, disk.connect() as c:
            c.write(0, b"before both")
            q.cmd("checkpoint-create", name="monday", disks=["vda"])
            c.write(M, b"x" * M)
            q.cmd("checkpoint-create", name="tuesday", disks=["vda"])
            c.write(3 * M // 2, b"x" * M)
            ident, _ = backups.begin(q, ["vda"])
            c.write(9 * M, b"after it began")
            told = [json.loads(s.varve("--json", "map", what, "--since", "monday", "--until", "tuesday").stdout)
                    for what in ("vda", s.uri("vda"))]
            assert told[0] == told[1], told
            assert [(e["offset"], e["length"], e["description"]) for e in told[0]] == [
                (0, M, "clean"), (M, M // 2, "until"), (3 * M // 2, M, "since"),
                (5 * M // 2, SIZE - 5 * M // 2, "clean")], told
            r = s.varve("map", "vda", "--since", "tuesday", "--until", "monday", check=False)
            assert r.returncode == 1 and "older" in r.stderr, r.stderr
            backups.end(q, ident)


if __name__ == "__main__":
    main()
