#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Every test program below tests/ stands in TESTS: one that nobody runs proves nothing."""

import os
import re
import sys

import tree


def main():
    tap = tree.Tap()
    top = os.environ["top_srcdir"]
    run = set(os.environ["ALL_TESTS"].split())
    here = [p for p in tree.sources(top, (".py", ".sh", ".c"))
            if re.fullmatch(r"test[_-].*", os.path.basename(p))]
    forgotten = [p for p in here if p not in run and p.rsplit(".", 1)[0] not in run]
    tap.result(len(here) > 3, "finds the tests of this tree")
    tap.result(not forgotten, "every test program stands in TESTS", forgotten)
    return tap.done()


if __name__ == "__main__":
    sys.exit(main())
