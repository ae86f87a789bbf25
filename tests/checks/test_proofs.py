#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""docs/proofs.md: each line of edges.md has a row, and every test that a row names exists; a row that
names none says what is open.  The tests that further tables name exist, too."""

import os
import re
import sys

import test_conformance
import tree

PAGE = "docs/proofs.md"
LINES = 26
NAME = re.compile(r"(e2e|unit|sim|server|client|plugin|protocol|interop)\.([a-z0-9_-]+)\.([a-z0-9_]+)")


def rows(page):
    """The first table's."""
    page = page.split("\n## ")[0]
    return [c for c in test_conformance.rows(page) if c[0] != "line"]


def file_of(folder, topic):
    if folder in ("unit", "sim"):
        return f"tests/{folder}/test-{topic}.c"
    return f"tests/{folder}/test_{topic}.py"


def missing(names, read):
    found = []
    for name in names:
        m = NAME.fullmatch(name)
        text = read(file_of(m.group(1), m.group(2))) if m else None
        if text is None:
            found.append(f"no such file of tests: {name}")
        elif m.group(3) not in test_conformance.tests_in(file_of(m.group(1), m.group(2)), text):
            found.append(f"no such test: {name}")
    return found


def faults(page, read, lines=LINES):
    """What is wrong with the page; read(path) gives a file's text, or None."""
    found, numbers = [], []
    for row in rows(page):
        if len(row) != 4:
            found.append(f"not four columns: {row}")
            continue
        numbers.append(row[0])
        names = re.findall(r"`([^`]+)`", row[2])
        if re.sub(r"`[^`]+`|[, ]", "", row[2]):
            found.append(f"no list of tests: line {row[0]}")
        if not names and row[3] in ("", "–"):
            found.append(f"neither a test nor what is open: line {row[0]}")
        found += missing(names, read)
    further = re.findall(r"`([^`]+)`", "".join(page.split("\n## ")[1:]))
    found += missing([name for name in further if NAME.fullmatch(name)], read)
    if numbers != [str(n) for n in range(1, lines + 1)]:
        found.append(f"not the lines 1 to {lines}: {numbers}")
    return found


def main():
    tap = tree.Tap()
    top = os.environ["top_srcdir"]

    def read(path):
        return tree.read(top, path) if os.path.exists(os.path.join(top, path)) else None

    files = {"tests/e2e/test_a_b.py": "@test\ndef one():\n\ndef helper():\n",
             "tests/sim/test-b.c": "static void two(void **state)\n"}
    good = "| line | x | proved by | open |\n|---|---|---|---|\n" \
           "| 1 | x | `e2e.a_b.one`, `sim.b.two` | – |\n| 2 | y | | all |\n"
    tap.result(not faults(good, files.get, 2), "takes a right page")
    for what, page in (("a test that does not exist", good.replace("b.one", "b.three")),
                       ("a function that is no test", good.replace("b.one", "b.helper")),
                       ("a file that does not exist", good.replace("sim.b", "unit.b")),
                       ("a line without test or confession", good.replace("| all", "| –")),
                       ("words instead of a test", good.replace("`sim.b.two`", "somehow")),
                       ("a line that is missing", good.replace("| 2 | y | | all |\n", "")),
                       ("a test of another table that does not exist", good + "\n## x\n| y | `e2e.a_b.no` | – |\n"),
                       ("a column too few", good.replace("| x | `", "| `"))):
        tap.result(faults(page, files.get, 2), "sees " + what)

    found = faults(tree.read(top, PAGE), read)
    tap.result(not found, "each line of edges.md has its proofs, and all of them exist", found)
    return tap.done()


if __name__ == "__main__":
    sys.exit(main())
