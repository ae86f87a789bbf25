#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What query-disks says is what was asked of the plugin and done to the disk."""
from harness import K, M, Stack
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


if __name__ == "__main__":
    main()
