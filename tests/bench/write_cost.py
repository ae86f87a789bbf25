#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What a guest's write costs with 100 checkpoints and 20 bitmaps, against none: 4K random writes at depth
32 (fio's nbd engine), in turns; prints the median ratio of the pairs, and of the plugin's CPU time.

    tests/bench/write_cost.py [ROUNDS [SECONDS]]        (needs a build: see tests/e2e/harness.py)
"""
import glob
import json
import os
import statistics
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from harness import M, Stack  # noqa: E402

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 9
SECONDS = int(sys.argv[2]) if len(sys.argv) > 2 else 3


def cpu_ns(disk):
    """CPU time of the processes that serve the disk (nbdkit may be behind a wrapper)."""
    total = 0
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as f:
                words = f.read().split(b"\0")
        except OSError:
            continue  # it has ended
        if disk.sock.encode() not in words or b"nbdkit" not in words[0]:
            continue
        with open(os.path.join(os.path.dirname(path), "stat")) as f:
            v = f.read().rpartition(")")[2].split()  # with the threads that have ended
        total += (int(v[11]) + int(v[12])) * 1000000000 // os.sysconf("SC_CLK_TCK")
    return total


def fio(disk):
    before = cpu_ns(disk)
    out = subprocess.run(
        ["fio", "--name=w", "--ioengine=nbd", "--uri=nbd+unix:///?socket=" + disk.sock, "--rw=randwrite",
         "--bs=4k", "--iodepth=32", "--time_based", "--runtime=%d" % SECONDS, "--output-format=json"],
        check=True, capture_output=True, text=True).stdout
    job = json.loads(out[out.index("{"):])["jobs"][0]["write"]
    return job["iops"], (cpu_ns(disk) - before) / job["total_ios"]


def main():
    with Stack() as s:
        shm = os.path.join(s.short, "images")
        os.mkdir(shm)
        disks = {}
        for name in ("none", "many"):
            image = os.path.join(shm, name + ".img")
            with open(image, "wb") as f:
                f.truncate(512 * M)
            disks[name] = s.serve(name, image)
        s.start_daemon()
        for name in disks:
            s.wait_disk(name, "live")
        fio(disks["none"])
        for i in range(100):
            s.command("checkpoint-create", name="c%d" % i, disks=["many"])
        for i in range(20):
            s.command("block-dirty-bitmap-add", node="many", name="b%d" % i)
        fio(disks["many"])
        iops, cpu = [], []
        for i in range(ROUNDS):
            got = {}
            for name in (("none", "many"), ("many", "none"))[i % 2]:
                got[name] = fio(disks[name])
            iops.append(got["many"][0] / got["none"][0])
            cpu.append(got["many"][1] / got["none"][1])
            print("%6.0f against %6.0f writes/s, ratio %.3f; CPU of nbdkit %.0f against %.0f ns a write, "
                  "ratio %.3f" % (got["many"][0], got["none"][0], iops[-1], got["many"][1],
                                  got["none"][1], cpu[-1]), flush=True)
        print("medians of %d pairs: writes/s %.3f, CPU a write %.3f" %
              (ROUNDS, statistics.median(iops), statistics.median(cpu)))


if __name__ == "__main__":
    main()
