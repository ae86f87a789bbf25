#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What surviving a power loss costs a guest's writes: durability=host (the intent log, the default) against
durability=process, on a real disk, in pairs whose order changes.

    tests/bench/durability_cost.py [--rounds N] [--seconds N] [--json FILE] [CASE...]
                                                    (needs fio, and a build: VARVE_BUILD, or run it there)

cold-random      4K writes at depth 32 all over 64 GiB: nearly each meets a region that is not in the log
cold-sequential  64K writes at depth 4 from the beginning: each sixteenth begins a region
warm-random      4K writes at depth 32 within 256 MiB that are in the log
warm-sequential  64K writes at depth 4 within 256 MiB that are in the log

Ratios are of writes a second; below 1 the log costs something.  For cold runs images, state and scratch lie in TMPDIR,
which must not be a tmpfs; each begins with a server that was just started after a clean stop: its log is empty.
A warm write waits for no sync, whatever the disk: all lies on tmpfs, one image is served in turns (two files in memory
differ by 10 % by where their pages are), and the processor's time of the server for one write is told beside the ratio.
Nothing is asserted.  Nothing else should run meanwhile.
"""
import argparse
import json
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from bench import pairs, ratio  # noqa: E402
from harness import G, M, Stack, run  # noqa: E402
from peers import fio  # noqa: E402

RANDOM = dict(rw="randwrite", bs="4k", depth=32)
SEQUENTIAL = dict(rw="write", bs="64k", depth=4)
WARM = 256 * M


class Served:
    """A disk while it is served: no region is in the log when that begins."""

    def __init__(self, stack, name, path, durability):
        self.stack = stack
        self.disk = stack.serve(name, path, durability=durability)
        self.uri = self.disk.uri

    def processor_us(self):
        with open("/proc/%d/stat" % self.disk.process.pid) as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) * 1e6 / os.sysconf("SC_CLK_TCK")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.stack.stop(self.disk.process) != 0:
            raise RuntimeError("nbdkit of %s did not stop in peace" % self.disk.name)


class Meter:
    """Runs of one case: writes a second, how long a hundredth of them took at least, the processor's time of one."""

    def __init__(self):
        self.p99_ms = {"host": [], "process": []}
        self.cpu_us = {"host": [], "process": []}

    def run(self, durability, served, *options, **what):
        began = served.processor_us()
        w = fio(served.uri, *options, **what)["write"]
        self.cpu_us[durability].append((served.processor_us() - began) / w["total_ios"])
        self.p99_ms[durability].append(w["clat_ns"]["percentile"]["99.000000"] / 1e6)
        return w["iops"]


def in_turns(args, one):
    """one(meter, durability) runs; the first of each is for nothing."""
    first, meter = Meter(), Meter()
    one(first, "host"), one(first, "process")
    return pairs(args, lambda: one(meter, "host"), lambda: one(meter, "process")), meter


def cold(args, what, size, *options):
    with Stack() as s:
        paths = {d: s.image(d + ".img", size) for d in ("host", "process")}

        def one(meter, durability):
            with Served(s, durability, paths[durability], durability) as served:
                return meter.run(durability, served, *options, **what)
        return in_turns(args, one)


def warm(args, what):
    within = "--size=%d" % WARM
    with Stack() as s:
        path = os.path.join(s.short, "warm.img")
        with open(path, "wb") as f:
            f.truncate(4 * WARM)

        def one(meter, durability):
            with Served(s, "warm", path, durability) as served:
                fio(served.uri, within, **dict(what, rw="write", bs="1M"))  # all is in the log, and stays there
                return meter.run(durability, served, within, seconds=args.seconds, **what)
        return in_turns(args, one)


CASES = {
    "cold-random": lambda a: cold(a, RANDOM, 64 * G, "--number_ios=2000"),
    "cold-sequential": lambda a: cold(a, SEQUENTIAL, 4 * G, "--size=%d" % WARM),
    "warm-random": lambda a: warm(a, RANDOM),
    "warm-sequential": lambda a: warm(a, SEQUENTIAL),
}


def file_system(path):
    return run(["findmnt", "-n", "-o", "FSTYPE,SOURCE", "-T", path]).stdout.strip()


def main():
    p = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    p.add_argument("--rounds", type=int, default=7, help="pairs of a case (default 7)")
    p.add_argument("--seconds", type=int, default=2, help="of each warm run (default 2)")
    p.add_argument("--json", help="a file for the numbers")
    p.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    args = p.parse_args()
    unknown = [c for c in args.cases if c not in CASES]
    if unknown:
        p.error("there is no case %s" % unknown[0])
    where = os.environ.get("TMPDIR", "/tmp")
    fs = file_system(where)
    if fs.startswith("tmpfs"):
        p.error("%s is a tmpfs: set TMPDIR to a folder on a disk" % where)
    load = os.getloadavg()[0]
    print("%d processors, load %.1f, Linux %s, %s" % (os.cpu_count(), load, os.uname().release, fs), flush=True)
    results = {}
    for name in args.cases or CASES:
        began = time.monotonic()
        got, meter = CASES[name](args)
        r = results[name] = ratio(got)
        for d in ("host", "process"):
            r["p99-ms-" + d] = statistics.median(meter.p99_ms[d])
            r["processor-us-" + d] = statistics.median(meter.cpu_us[d])
        print("%-16s ratio %.3f [%.3f .. %.3f]  %.0f against %.0f writes/s, p99 %.2f against %.2f ms, processor %.2f "
              "against %.2f us/write  (%d pairs, %.0f s)" %
              (name, r["value"], r["low"], r["high"], r["ours"], r["theirs"], r["p99-ms-host"], r["p99-ms-process"],
               r["processor-us-host"], r["processor-us-process"], args.rounds, time.monotonic() - began), flush=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"processors": os.cpu_count(), "load": load, "kernel": os.uname().release,
                       "file-system": fs, "time": time.time(), "rounds": args.rounds, "seconds": args.seconds,
                       "results": results}, f, indent=1)


if __name__ == "__main__":
    main()
