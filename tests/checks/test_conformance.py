#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""docs/nbd-conformance.md: every rule of the protocol names tests, and every test that it names
exists."""

import os
import re
import sys

import tree

PAGE = "docs/nbd-conformance.md"
NAME = re.compile(r"(?:(e2e|unit)\.)?([a-z0-9-]+)\.([a-z0-9_]+)")
PYTHON = re.compile(r"^@test(?:\(.*\))?\ndef (\w+)\(", re.MULTILINE)
CMOCKA = re.compile(r"^static void (\w+)\(void \*\*state\)$", re.MULTILINE)


def rows(page):
    """(section, rule, what varved does, proof) of each row of the tables."""
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in page.splitlines()
             if line.startswith("|")]
    return [c for c in cells if c[0] != "section" and not set(c[0]) <= set("-")]


def file_of(folder, topic):
    if folder == "unit":
        return f"tests/unit/test-{topic}.c"
    return f"tests/{folder or 'protocol'}/test_{topic}.py"


def tests_in(path, text):
    """Names of the tests in a file."""
    return set((CMOCKA if path.endswith(".c") else PYTHON).findall(text))


def faults(page, read):
    """What is wrong with the page; read(path) gives a file's text, or None."""
    found, known = [], {}
    for row in rows(page):
        if len(row) != 4:
            found.append(f"not four columns: {row}")
            continue
        names = re.findall(r"`([^`]+)`", row[3])
        if not names or re.sub(r"`[^`]+`|[, ]", "", row[3]):
            found.append(f"no list of tests: {row[0]}: {row[1]}")
        for name in names:
            m = NAME.fullmatch(name)
            if not m:
                found.append(f"no test's name: {name}")
                continue
            path = file_of(m.group(1), m.group(2))
            if path not in known:
                text = read(path)
                known[path] = tests_in(path, text) if text is not None else set()
            if m.group(3) not in known[path]:
                found.append(f"{path} has no test {m.group(3)}")
    return found


def main():
    tap = tree.Tap()
    top = os.environ["top_srcdir"]

    def read(path):
        return tree.read(top, path) if os.path.exists(os.path.join(top, path)) else None

    files = {"tests/protocol/test_a.py": "@test(generic=True)\ndef one(s):\n\ndef helper(s):\n",
             "tests/unit/test-b.c": "static void two(void **state)\n"}
    good = "| section | rule | varved | proved by |\n|---|---|---|---|\n| x | y | z | `a.one`, `unit.b.two` |\n"
    tap.result(not faults(good, files.get), "takes a right page")
    for what, page in (("a test that does not exist", good.replace("a.one", "a.three")),
                       ("a function that is no test", good.replace("a.one", "a.helper")),
                       ("a file that does not exist", good.replace("a.one", "e2e.a.one")),
                       ("a rule without a test", good.replace("`a.one`, `unit.b.two`", "")),
                       ("words instead of a test", good.replace("`a.one`", "somehow")),
                       ("a column too few", good.replace("| z ", ""))):
        tap.result(len(faults(page, files.get)) == 1, "sees " + what)

    page = tree.read(top, PAGE)
    tap.result(len(rows(page)) > 100, "finds the rules")
    found = faults(page, read)
    tap.result(not found, "every rule names tests, and all of them exist", found)
    return tap.done()


if __name__ == "__main__":
    sys.exit(main())
