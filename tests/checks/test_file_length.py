#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A file past 600 lines says why in its first 10 lines (a line with the word "long"), or is split."""

import os
import sys
import tempfile

import tree

MAX = 600
SUFFIXES = (".c", ".h", ".py", ".sh")


def too_long(top):
    found = []
    for path in tree.sources(top, SUFFIXES):
        lines = tree.read(top, path).split("\n")
        head = " ".join(lines[:10]).lower()
        if len(lines) - 1 > MAX and " long" not in head:
            found.append(f"{path}: {len(lines) - 1} lines, and its first ten do not say why it is long")
    return found


def main():
    tap = tree.Tap()
    with tempfile.TemporaryDirectory() as top:
        os.makedirs(os.path.join(top, "lib"))
        for name, head, lines in (("a", "/* x */\n", MAX + 1), ("b", "/* x */\n", MAX),
                                  ("c", "/* As long as the table it holds. */\n", MAX + 1)):
            with open(os.path.join(top, "lib", name + ".c"), "w", encoding="utf-8") as f:
                f.write(head + "\n" * (lines - 1))
        found = too_long(top)
        tap.result(len(found) == 1 and found[0].startswith("lib/a.c: 601 lines"),
                   "sees the one file that is too long", found)
    found = too_long(os.environ["top_srcdir"])
    tap.result(not found, "no file of this tree is long without a reason", found)
    return tap.done()


if __name__ == "__main__":
    sys.exit(main())
