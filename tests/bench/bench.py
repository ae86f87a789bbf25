#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measures varve beside its peers on this machine, in turns, and prints medians, ratios and spread.

    make bench        or        tests/bench/bench.py [--build DIR] [--rounds N] [--seconds N] [--json FILE]
                                                     [--plots DIR] [--list] [ROW...]

Each row is a name of --list, or a part of one.  Nothing else should run meanwhile.  Numbers of two
sides are compared in pairs whose order changes, so that what slows both down cancels out.
It exits with 0 whatever it measured: no bound is asserted, the table says which were met.
"""
import argparse
import json
import os
import platform
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


def arguments():
    p = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    p.add_argument("--build", default=os.environ.get("VARVE_BUILD") or os.getcwd(), help="the build directory")
    p.add_argument("--rounds", type=int, default=5, help="pairs of a comparison (default 5)")
    p.add_argument("--seconds", type=int, default=2, help="of each timed run (default 2)")
    p.add_argument("--json", help="a file for the numbers")
    p.add_argument("--plots", help="a folder for a page with plots")
    p.add_argument("--list", action="store_true", help="names the rows and ends")
    p.add_argument("rows", nargs="*")
    return p.parse_args()


class Skipped(Exception):
    pass


def pairs(args, ours, theirs):
    """[(ours(), theirs())], in turns."""
    out = []
    for i in range(args.rounds):
        if i % 2 == 0:
            a = ours()
            b = theirs()
        else:
            b = theirs()
            a = ours()
        out.append((a, b))
    return out


def ratio(got):
    """What a row returns about pairs: the median of their ratios, and between what they lie."""
    each = [a / b for a, b in got]
    return {"value": statistics.median(each), "low": min(each), "high": max(each),
            "ours": statistics.median(a for a, _ in got), "theirs": statistics.median(b for _, b in got),
            "pairs": got}


def value(values, take=statistics.median):
    return {"value": take(values), "low": min(values), "high": max(values), "values": list(values)}


def verdict(bound, got):
    if not bound:  # told beside the row, so that one can judge it
        return ""
    op, limit = bound.split()[:2]
    met = got >= float(limit) if op == ">=" else got <= float(limit) if op == "<=" else got < float(limit)
    return "met" if met else "NOT MET"


def measure(row, args):
    began = time.monotonic()
    try:
        results = row.run(args)
    except Skipped as e:
        results = [("", {"skipped": str(e)})]
    out = []
    for case, r in results:
        bound = r.pop("own_bound", row.bound)
        r.update(row=row.__name__, what=row.what, case=case, against=row.against, bound=bound)
        r.setdefault("unit", getattr(row, "unit", "x"))
        title = row.what + (": " + case if case else "")
        if "skipped" in r:
            print("%-62s not measured: %s" % (title, r["skipped"]))
        else:
            r["verdict"] = verdict(bound, r["value"])
            detail = "%.4g against %.4g" % (r["ours"], r["theirs"]) if "ours" in r else ""
            print("%-62s %8.3f %-4s [%.3f .. %.3f]  %s %s  %s" %
                  (title, r["value"], r["unit"], r["low"], r["high"], bound, r["verdict"], detail))
        sys.stdout.flush()
        out.append(r)
    print("    (%s, against %s; %.0f s)" % (row.__name__, row.against, time.monotonic() - began), flush=True)
    return out


def all_rows():
    import rows_pull
    import rows_read
    import rows_scale
    import rows_write
    return rows_write.ROWS + rows_read.ROWS + rows_pull.ROWS + rows_scale.ROWS


def main():
    args = arguments()
    os.environ["VARVE_BUILD"] = os.path.abspath(args.build)
    rows = [r for r in all_rows() if not args.rows or any(w in r.__name__ for w in args.rows)]
    if args.list:
        for r in rows:
            print("%-24s %s, against %s: %s" % (r.__name__, r.what, r.against, r.bound))
        return
    load = os.getloadavg()[0]
    print("%d processors, load %.1f, Linux %s" % (os.cpu_count(), load, platform.release()), flush=True)
    results = []
    for row in rows:
        results += measure(row, args)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"processors": os.cpu_count(), "load": load, "kernel": platform.release(),
                       "time": time.time(), "rounds": args.rounds, "results": results}, f, indent=1)
    if args.plots:
        import plots
        plots.page(args.plots, results)


if __name__ == "__main__":
    sys.modules["bench"] = sys.modules["__main__"]
    main()
