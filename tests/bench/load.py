#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What idle and stalled NBD clients cost those that read, the guest's checkpoints, and memory.

    tests/bench/load.py [--build DIR] [--json FILE]

Busy clients (tests/bench/busy: a page-cached view, 64 KiB at random places) read for some seconds,
in turns alone and beside a crowd of idle and stalled ones; their medians are compared.  In each turn
checkpoints are made while a guest writes and the busy ones read.  At the end SIGTERM is sent while all
are connected.  The machine should have nothing else to do; what is compared was measured in turns.
"""
import argparse
import json
import os
import random
import statistics
import struct
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "e2e"))


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--build", default=os.environ.get("VARVE_BUILD") or os.getcwd())
    p.add_argument("--json", help="a file for the numbers")
    p.add_argument("--idle", type=int, default=1000)
    p.add_argument("--busy", type=int, default=100)
    p.add_argument("--stalled", type=int, default=50, help="in each place")
    p.add_argument("--seconds", type=int, default=4, help="of each turn")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--checkpoints", type=int, default=5, help="in each turn")
    p.add_argument("--network-threads", type=int, default=2)
    p.add_argument("--size", type=int, default=256, help="of the disk, MiB")
    return p.parse_args()


ARGS = arguments()
os.environ["VARVE_BUILD"] = os.path.abspath(ARGS.build)

import backups  # noqa: E402
from crowd import STALLS, Crowd, MemoryWatch, Places, bound, certificates  # noqa: E402
from harness import BUILD, M, Stack  # noqa: E402

PROGRAM = os.path.join(BUILD, "tests/bench/busy")
FREEZE_NS_LAST = 112   # lib/control.h, struct varve_ctl_head


class Guest:
    """Writes 4 KiB at random places, some hundred times in a second."""

    def __init__(self, disk, size):
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(disk, size), daemon=True)
        self.thread.start()

    def _run(self, disk, size):
        with disk.connect() as c:
            while not self.stop.wait(0.003):
                c.write(random.randrange(size // 4096) * 4096, b"g" * 4096)

    def end(self):
        self.stop.set()
        self.thread.join()


class Bench:
    def __init__(self, s):
        self.s, self.size = s, ARGS.size * M
        self.count = 0
        self.disk = s.serve("vda", s.image("vda.img", self.size, os.urandom(self.size)))
        self.tls = certificates(s.path("tls"))
        self.start()
        with s.qmp() as q:
            backups.begin(q, ["vda"])

    def start(self):
        """Limits are those that nobody meets."""
        s = self.s
        s.start_daemon("--listen", "unix:" + s.nbd, "--listen", "tcp:127.0.0.1:0", "--max-connections", "4000",
                       "--network-threads", str(ARGS.network_threads), "--handshake-timeout", "3600s",
                       "--write-timeout", "3600s", "--tls", "on", "--tls-certificates", self.tls)
        s.wait_disk("vda", "live")
        with s.qmp() as q:
            self.port = int(q.cmd("query-nbd-server")["listeners"][1].rpartition(":")[2])

    def crowd(self):
        places = Places([self.s.nbd, ("127.0.0.1", self.port)], "vda", self.size,
                        os.path.join(self.tls, "ca-cert.pem"))
        return Crowd(places, ARGS.idle, ARGS.stalled)

    def busy(self, seconds):
        p = subprocess.Popen([PROGRAM, self.s.nbd, "vda", str(ARGS.busy), str(seconds)], text=True,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if p.stdout.readline() != "ready\n":
            raise RuntimeError(p.communicate()[1])
        return p

    def cpu_us(self):
        """Processor time that the daemon has used."""
        with open("/proc/%d/stat" % self.s.daemon.pid) as f:
            v = f.read().rpartition(")")[2].split()
        return (int(v[11]) + int(v[12])) * 1e6 / os.sysconf("SC_CLK_TCK")

    def throughput(self):
        """(MiB/s, the slowest read in ms, the daemon's processor time for a read in us)"""
        before = self.cpu_us()
        p = self.busy(ARGS.seconds)
        out, err = p.communicate()
        if p.returncode:
            raise RuntimeError("busy: " + err)
        reads, nbytes, ns, longest_ns = map(int, out.split())
        return nbytes / M / (ns / 1e9), longest_ns / 1e6, (self.cpu_us() - before) / reads

    def checkpoints(self):
        """[(ms of the command, ms of the freeze)], beside busy clients and a guest that writes."""
        out = []
        p = self.busy(3600)
        guest = Guest(self.disk, self.size)
        try:
            with self.s.qmp() as q, open(os.path.join(self.s.runtime, "vda", "control"), "rb") as f:
                for _ in range(ARGS.checkpoints):
                    self.count += 1
                    began = time.monotonic()
                    q.cmd("checkpoint-create", name="c%d" % self.count, disks=["vda"])
                    took = time.monotonic() - began
                    ns, = struct.unpack("Q", os.pread(f.fileno(), 8, FREEZE_NS_LAST))
                    out.append((took * 1e3, ns / 1e6))
        finally:
            guest.end()
            p.kill()
            p.communicate()
        return out

    def turn(self):
        speed, longest, cpu = self.throughput()
        return {"mib_s": speed, "longest_ms": longest, "cpu_us": cpu, "checkpoints": self.checkpoints()}

    def sigterm(self):
        """Seconds from SIGTERM to the end, while all are connected; the daemon is started again."""
        p = self.busy(3600)
        began = time.monotonic()
        if self.s.stop(self.s.daemon) != 0:
            raise RuntimeError("the daemon failed")
        took = time.monotonic() - began
        p.kill()
        p.communicate()
        self.start()
        return took


def medians(turns):
    commands = [c for t in turns for c, _ in t["checkpoints"]]
    freezes = [f for t in turns for _, f in t["checkpoints"]]
    return {"MiB/s": statistics.median(t["mib_s"] for t in turns),
            "slowest read, ms": statistics.median(t["longest_ms"] for t in turns),
            "daemon's CPU, us a read": statistics.median(t["cpu_us"] for t in turns),
            "checkpoint, ms": statistics.median(commands), "checkpoint, longest, ms": max(commands),
            "freeze, ms": statistics.median(freezes), "freeze, longest, ms": max(freezes)}


def report(result):
    print("%-24s %12s %12s %8s" % ("median of %d turns" % ARGS.rounds, "alone", "beside", "ratio"))
    for key, alone in result["alone"].items():
        beside = result["beside"][key]
        print("%-24s %12.3f %12.3f %8.3f" % (key, alone, beside, beside / alone if alone else 0))
    print("ratios of throughput in each round: "
          + " ".join("%.3f" % r for r in result["throughput_ratios"]))
    print("connections in the crowd: %d" % result["crowd"])
    print("memory (RssAnon) grew by %.1f MiB, the bound is %.1f MiB"
          % (result["memory_grown"] / M, result["memory_bound"] / M))
    print("SIGTERM to exit: " + ", ".join("%.2f s" % t for t in result["sigterm_s"]))


def main():
    alone, beside = [], []
    with Stack() as s:
        b = Bench(s)
        b.throughput()  # warms up
        with MemoryWatch(s.daemon.pid) as memory:
            for i in range(ARGS.rounds):
                # The order changes too, so that no one of them always comes first.
                if i % 2 == 0:
                    alone.append(b.turn())
                with b.crowd() as crowd:
                    ncrowd, ntls = len(crowd), crowd.ntls
                    beside.append(b.turn())
                if i % 2:
                    alone.append(b.turn())
            grown = memory.grown()
        ends = []
        for _ in range(3):
            with b.crowd():
                ends.append(b.sigterm())
    result = {"alone": medians(alone), "beside": medians(beside), "crowd": ncrowd, "places": STALLS,
              "throughput_ratios": [y["mib_s"] / x["mib_s"] for x, y in zip(alone, beside)],
              "memory_grown": grown, "memory_bound": bound(ncrowd + ARGS.busy + 2, ntls, 1, ARGS.network_threads),
              "sigterm_s": ends, "turns": {"alone": alone, "beside": beside}, "arguments": vars(ARGS)}
    report(result)
    if ARGS.json:
        with open(ARGS.json, "w") as f:
            json.dump(result, f, indent=1)


if __name__ == "__main__":
    main()
