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

Ratios are of writes a second; below 1 the log costs something.  Images, state and scratch lie in TMPDIR, which must
not be a tmpfs.  A cold run begins with a server that was just started after a clean stop: its log is empty.
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


class Cost(Stack):
    """Two disks, one of each durability."""

    def __init__(self, size):
        super().__init__()
        self.paths = {d: self.image(d + ".img", size) for d in ("host", "process")}

    def on(self, durability):
        """Served anew: no region is in the log."""
        return self.serve(durability, self.paths[durability], durability=durability)

    def off(self, durability):
        if self.stop(self.disks[durability].process) != 0:
            raise RuntimeError("nbdkit of %s did not stop in peace" % durability)


class Meter:
    """Runs of one case: writes a second, and how long a hundredth of them took at least."""

    def __init__(self):
        self.p99_ms = {"host": [], "process": []}

    def note(self, durability, job):
        w = job["write"]
        self.p99_ms[durability].append(w["clat_ns"]["percentile"]["99.000000"] / 1e6)
        return w["iops"]


def cold(args, what, size, *options):
    meter = Meter()
    with Cost(size) as s:
        def one(durability):
            disk = s.on(durability)
            got = meter.note(durability, fio(disk.uri, *options, **what))
            s.off(durability)
            return got

        one("host"), one("process")
        meter = Meter()
        return pairs(args, lambda: one("host"), lambda: one("process")), meter


def warm(args, what):
    meter = Meter()
    within = "--size=%d" % WARM
    with Cost(4 * WARM) as s:
        disks = {d: s.on(d) for d in s.paths}

        def one(durability):
            uri = disks[durability].uri
            fio(uri, within, **dict(what, rw="write", bs="1M"))  # all of them are in the log, and stay there
            return meter.note(durability, fio(uri, within, seconds=args.seconds, **what))

        one("host"), one("process")
        meter = Meter()
        return pairs(args, lambda: one("host"), lambda: one("process")), meter


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
        for d, values in meter.p99_ms.items():
            r["p99-ms-" + d] = statistics.median(values)
        print("%-16s ratio %.3f [%.3f .. %.3f]  %.0f against %.0f writes/s, p99 %.2f against %.2f ms  (%d pairs, "
              "%.0f s)" % (name, r["value"], r["low"], r["high"], r["ours"], r["theirs"], r["p99-ms-host"],
                           r["p99-ms-process"], args.rounds, time.monotonic() - began), flush=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"processors": os.cpu_count(), "load": load, "kernel": os.uname().release,
                       "file-system": fs, "time": time.time(), "rounds": args.rounds, "seconds": args.seconds,
                       "results": results}, f, indent=1)


if __name__ == "__main__":
    main()
