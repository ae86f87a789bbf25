# SPDX-License-Identifier: BSD-3-Clause
"""What the checks of the tree share: which files are ours, and TAP."""

import os

FOLDERS = ("include", "lib", "plugin", "server", "client", "tests")


def sources(top, suffixes=(".c", ".h")):
    """Paths relative to top, sorted."""
    found = []
    for folder in FOLDERS:
        for base, _, files in os.walk(os.path.join(top, folder)):
            found += [os.path.relpath(os.path.join(base, f), top)
                      for f in files if f.endswith(suffixes)]
    return sorted(found)


def read(top, path):
    with open(os.path.join(top, path), encoding="utf-8") as f:
        return f.read()


class Tap:
    def __init__(self):
        self.count = 0
        self.failed = 0

    def result(self, ok, name, details=()):
        self.count += 1
        self.failed += not ok
        print(f"{'ok' if ok else 'not ok'} {self.count} - {name}")
        for line in details:
            print(f"# {line}")

    def done(self):
        print(f"1..{self.count}")
        return 1 if self.failed else 0
