#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What query-disks says is what was asked of the plugin and done to the disk."""
import os
import socket
import time

import nbdclient
from harness import K, M, Stack, wait_for
from tap import main, test


@test
def query_disks_tells_how_the_disk_is_served():
    """durability, scratch-max and granularity as given to the plugin; defaults without."""
    with Stack() as s:
        s.start("vda", 16 * M, granularity="64K")
        info = s.disk_info("vda")
        assert info["state"] == "live" and info["durability"] == "host", info
        assert info["granularity"] == 64 * K and info["size"] == 16 * M, info
        assert info["scratch"] == {"used": 0, "max": None}, info
        s.serve("vdb", s.image("vdb", 8 * M), durability="process", **{"scratch-max": "5M"})
        s.wait_disk("vdb", "live")
        info = s.disk_info("vdb")
        assert info["durability"] == "process" and info["granularity"] == 4 * K, info
        assert info["scratch"] == {"used": 0, "max": 5 * M}, info


@test
def query_disks_counts_what_is_dirty_and_what_is_kept():
    """Bytes written since the last boundary in whole blocks; preimages kept while a backup runs."""
    with Stack() as s:
        disk = s.start("vda", 16 * M, b"\x5a" * (16 * M), granularity="64K")
        with disk.connect() as c:
            c.write(3 * 64 * K + 10, b"x" * 100)
            assert s.disk_info("vda")["dirty-bytes"] == 64 * K
            s.command("checkpoint-create", name="one", disks=["vda"])
            info = s.disk_info("vda")
            assert info["dirty-bytes"] == 0 and info["checkpoints"] == ["one"], info
            begun = s.command("backup-begin", disks=[{"disk": "vda"}])
            c.write(5 * 64 * K, b"y" * 512)
            info = s.disk_info("vda")
            assert info["scratch"]["used"] == 64 * K and info["backups"] == [begun["id"]], info
            s.command("backup-end", id=begun["id"])
            info = s.disk_info("vda")
            assert info["scratch"]["used"] == 0 and info["backups"] == [], info


def clients(s):
    with s.qmp() as q:
        server = q.cmd("query-nbd-server")
    return server, sorted(server["clients"], key=lambda c: c["peer"])


@test
def query_nbd_server_tells_who_is_there_and_what_each_did():
    """Peer, export, TLS, since when, requests, bytes, errors, queue; accepted and refused."""
    with Stack() as s:
        s.serve("vda", s.image("vda.img", 16 * M, b"\x5a" * (16 * M)))
        s.start_daemon("--listen", "unix:" + s.nbd, "--listen", "tcp:127.0.0.1:0",
                       "--max-connections", "3")
        s.wait_disk("vda", "live")
        s.command("backup-begin", id="b", disks=[{"disk": "vda"}])
        server, there = clients(s)
        assert there == [] and server["refused"] == 0 and server["max-connections"] == 3, server
        port = int(server["listeners"][1].rpartition(":")[2])
        before = time.time()
        with nbdclient.connect(s.nbd, "vda") as a, \
                nbdclient.connect(("127.0.0.1", port), "vda+delta") as b, socket.socket(
                    socket.AF_UNIX) as silent:
            silent.connect(s.nbd)
            assert silent.recv(8) == b"NBDMAGIC"
            for i in range(5):
                a.read(i * M, 64 * K)
            try:
                b.read(16 * M, 512)
                assert False, "a read beyond the end"
            except nbdclient.NBDError:
                pass
            with socket.socket(socket.AF_UNIX) as surplus:
                surplus.connect(s.nbd)
                surplus.recv(8)
            wait_for("counters", lambda: clients(s)[1][1]["bytes-read"] == 5 * 64 * K)
            server, (tcp, unix, other) = clients(s)
            if unix.get("export") is None:
                unix, other = other, unix
            assert tcp["peer"].startswith("127.0.0.1:") and tcp["export"] == "vda+delta", tcp
            assert tcp["errors"] == 1 and tcp["bytes-read"] == 0 and tcp["requests"] == 1, tcp
            assert unix["peer"].startswith("uid %d (pid %d" % (os.getuid(), os.getpid())), unix
            assert unix["export"] == "vda" and unix["requests"] == 5 and not unix["errors"], unix
            assert "export" not in other and other["requests"] == 0, other
            for c in (tcp, unix, other):
                assert c["tls"] is False and "identity" not in c and c["queue"] == 0, c
                assert before - 1 <= c["since"] <= time.time() + 1, c
            assert server["refused"] == 1 and server["accepted"] >= 3, server
            (disk,) = s.command("query-backups")[0]["disks"]
            assert disk["clients"] == 2 and disk["bytes-read"] == 5 * 64 * K, disk
            assert disk["requests"] == 6 and disk["errors"] == 1, disk
        wait_for("they are gone", lambda: not clients(s)[1])


if __name__ == "__main__":
    main()
