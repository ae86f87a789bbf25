#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Programs that people use against a backup, where more is promised than that they work: what they
can do (tests/interop runs them all, over plain sockets and TLS)."""
import json
import os

import backups
import nbdclient
from harness import K, M, Stack, can_connect, run, wait_for
from incremental import BITMAP, BLOCK, SIZE, Incremental
from tap import main, rng, test


@test
def nbdinfo_runs_beside_an_open_connection():
    """virtnbdbackup does that: --json, --list, --map, --size, --can while a client is connected."""
    with Incremental() as b, b.connect() as held:
        info = json.loads(run(["nbdinfo", "--json", b.s.uri("vda")]).stdout)
        export, = info["exports"]
        assert info["structured"] is True and info["protocol"] == "newstyle-fixed"
        assert export["export-size"] == SIZE and export["is_read_only"] is True
        assert export["can_multi_conn"] is True
        assert set(export["contexts"]) >= {"base:allocation", BITMAP}, export
        assert export["block_size_minimum"] == 1
        assert export["block_size_maximum"] == 32 * M
        listed = json.loads(run(["nbdinfo", "--list", "--json", b.s.uri("")]).stdout)
        assert [e["export-name"] for e in listed["exports"]] == ["vda"], listed
        assert run(["nbdinfo", "--size", b.s.uri("vda")]).stdout.strip() == str(SIZE)
        run(["nbdinfo", "--can", "multi-conn", b.s.uri("vda")])
        run(["nbdinfo", "--is", "read-only", b.s.uri("vda")])
        got = json.loads(run(["nbdinfo", "--map=" + BITMAP, "--json", b.s.uri("vda")]).stdout)
        assert [(e["offset"], e["length"]) for e in got if e["type"] == 1] == \
            backups.dirty(b.s.nbd, "vda", BITMAP)
        run(["nbdinfo", "--map", b.s.uri("vda")])
        run(["nbdinfo", "--map", "--totals", b.s.uri("vda")])
        assert held.read(0, 8) == b"new data"


def delta(s, export, target):
    """The documented command: today's changes onto yesterday's full copy."""
    sock = os.path.join(s.socks, "target.sock")
    p = s.spawn("nbdkit-file",
                ["nbdkit", "-f", "-U", sock, "--exit-with-parent", "file", target])
    try:
        wait_for("nbdkit file", lambda: can_connect(sock), p)
        run(["nbdcopy", "--destination-is-zero", "-S", "0", s.uri(export),
             "nbd+unix:///?socket=" + sock])
    finally:
        s.stop(p)
        if os.path.exists(sock):
            os.unlink(sock)


@test
def nbdcopy_from_delta_makes_todays_of_yesterdays_full_copy():
    """Also where the guest zeroed or trimmed; clean ranges of the target are not written."""
    random = rng("delta")
    with Stack() as s:
        disk = s.start("vda", SIZE, granularity="64K")
        with s.qmp() as q, disk.connect() as c:
            c.write(0, b"\x33" * 24 * M)
            ident, _ = backups.begin(q, ["vda"], checkpoint="monday")
            target = s.path("full.img")
            run(["nbdcopy", s.uri("vda"), target])
            backups.end(q, ident)
            for _ in range(40):
                off, n = random.randrange(0, SIZE - M), random.randrange(1, M)
                random.choice((lambda: c.write(off, b"w" * n), lambda: c.zero(off, n),
                               lambda: c.trim(off, n)))()
            c.zero(4 * M, 3 * M)
            c.trim(12 * M, 3 * M)
            live = b"".join(c.read(o, 16 * M) for o in range(0, SIZE, 16 * M))
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "monday"}], checkpoint="tuesday")
            # what is clean is marked in the target first: it must not be touched.  nbdcopy moves
            # whole requests of 256 KiB, clean bytes in them too, which are true.
            yesterday = bytearray(s.content(target))
            clean = [(o, n) for o, n, f in backups.extents(s.nbd, "vda", BITMAP) if not f]
            chunks = [o for o in range(0, SIZE, 256 * K)
                      if any(start <= o and o + 256 * K <= start + n for start, n in clean)]
            assert chunks, "nothing is clean"
            for export in ("vda+delta", "vda@monday+delta"):
                mine = s.path("copy.img")
                marked = bytearray(yesterday)
                for o in chunks:
                    marked[o:o + 4] = b"KEEP"
                with open(mine, "wb") as f:
                    f.write(marked)
                delta(s, export, mine)
                got = bytearray(s.content(mine))
                for o in chunks:
                    assert got[o:o + 4] == b"KEEP", "%s: clean %d was written" % (export, o)
                    got[o:o + 4] = yesterday[o:o + 4]
                at = backups.first_difference(got, live)
                assert at is None, "%s: differs at %d" % (export, at)
            # and with nothing marked, as a user runs it
            delta(s, "vda+delta", target)
            assert s.content(target) == live
            with s.connect("vda+delta") as d:  # its reads of clean ranges are true
                for o, n in clean:
                    assert d.read(o, min(n, 4096)) == live[o:o + min(n, 4096)]
            with nbdclient.NBD(s.nbd) as d:
                assert d.client_flags().list_exports() == ["vda"], "+delta stands in LIST"
                d.option(nbdclient.OPT_ABORT)
            backups.end(q, ident)


@test
def varve_pull_and_nbdcopy_agree():
    """varve's own client makes the same full and incremental copies."""
    with Stack() as s:
        disk = s.start("vda", SIZE, granularity="64K")
        with s.qmp() as q, disk.connect() as c:
            c.write(3 * M, b"monday" * 1000)
            ident, _ = backups.begin(q, ["vda"], checkpoint="monday")
            mine = s.path("mine.img")
            s.varve("pull", s.uri("vda"), mine)
            assert s.content(mine) == backups.pull(s.nbd, "vda")
            backups.end(q, ident)
            c.trim(3 * M, BLOCK)
            c.zero(9 * M, BLOCK)
            c.write(50 * M + 5, b"tuesday")
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "monday"}])
            s.varve("pull", s.uri("vda"), mine, "--context", BITMAP)
            assert s.content(mine) == backups.pull(s.nbd, "vda")
            backups.end(q, ident)


if __name__ == "__main__":
    main()
