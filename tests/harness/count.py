#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Adds up the .trs files of one or more build directories.

    count.py [--skips FILE] [--passed N] [--failed N] [--last-line] LABEL=BUILDDIR...

Prints what failed, with the end of its log, and what was skipped.  A skip must stand, with its
reason, in the list FILE; one that does not counts as a failure.  --passed and --failed are results
from elsewhere to be added.  The last line is "N passed, N failed, N skipped".
"""

import argparse
import fnmatch
import os
import sys

LOG_TAIL = 60


def read_skips(path):
    """Lines `TEST | RESULT | reason`; TEST and RESULT are shell patterns."""
    listed = []
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            parts = [p.strip() for p in line.split("|")]
            if len(parts) != 3 or not all(parts):
                sys.exit(f"{path}:{number}: not of the form TEST | RESULT | reason")
            listed.append(parts)
    return listed


def is_listed(listed, test, result):
    return any(fnmatch.fnmatch(test, t) and fnmatch.fnmatch(result, r) for t, r, _ in listed)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--skips")
    ap.add_argument("--passed", type=int, default=0)
    ap.add_argument("--failed", type=int, default=0)
    ap.add_argument("builds", nargs="*")
    args = ap.parse_args()
    listed = read_skips(args.skips) if args.skips else []
    passed, failed, skipped = args.passed, args.failed, 0

    for build in args.builds:
        label, _, folder = build.rpartition("=")
        head = label or "tests"
        sums = {"PASS": 0, "FAIL": 0, "SKIP": 0}
        for base, _, files in os.walk(folder):
            for name in sorted(files):
                if not name.endswith(".trs"):
                    continue
                path = os.path.join(base, name)
                test = os.path.relpath(path[:-4], folder)
                broken = []
                with open(path, encoding="utf-8") as f:
                    for line in f:
                        if not line.startswith(":test-result: "):
                            continue
                        kind, _, result = line[14:].strip().partition(" ")
                        if kind in ("PASS", "XFAIL"):
                            sums["PASS"] += 1
                        elif kind == "SKIP" and is_listed(listed, test, result):
                            sums["SKIP"] += 1
                            print(f"{head}: skipped: {test}: {result}")
                        else:
                            sums["FAIL"] += 1
                            if kind == "SKIP":
                                result = f"skipped, but not listed in {args.skips}: {result}"
                            broken.append(result)
                if broken:
                    print(f"\n{head}: FAILED: {test}")
                    for result in broken:
                        print(f"    {result}")
                    try:
                        with open(path[:-4] + ".log", encoding="utf-8", errors="replace") as f:
                            tail = f.read().splitlines()[-LOG_TAIL:]
                        print("\n".join("    | " + line for line in tail))
                    except OSError:
                        pass
        if label:
            print(f"{label}: {sums['PASS']} passed, {sums['FAIL']} failed, "
                  f"{sums['SKIP']} skipped.")
        passed, failed, skipped = (passed + sums["PASS"], failed + sums["FAIL"],
                                   skipped + sums["SKIP"])

    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
