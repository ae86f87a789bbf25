# SPDX-License-Identifier: BSD-3-Clause
"""A stack whose nbdkit and varved can be told which calls on which files fail: fail.c, preloaded into
both."""
import contextlib
import mmap
import os
import struct

from harness import BUILD, PRELOAD, Stack
from tap import Skip

FAIL = os.path.join(BUILD, "tests/e2e/.libs/fail.so")
CLASSES = {"open": 1, "read": 2, "write": 4, "sync": 8, "space": 16, "name": 32}


class Orders:
    """What one program's fail.so is told; the file is mapped by both."""

    def __init__(self, path):
        self.path = path
        with open(path, "w+b") as f:
            f.truncate(4096)
            self.map = mmap.mmap(f.fileno(), 4096)

    @contextlib.contextmanager
    def failing(self, where, error, *classes):
        """Within it calls on paths that hold `where` get the error."""
        bits = sum(CLASSES[c] for c in classes)
        self.map[4:12] = struct.pack("=II", bits, 0)
        self.map[12:12 + len(where) + 1] = where.encode() + b"\0"
        self.map[0:4] = struct.pack("=I", error)
        try:
            yield self
        finally:
            self.map[0:4] = bytes(4)

    def hits(self):
        """Calls that failed since failing() began."""
        return struct.unpack("=I", self.map[8:12])[0]


class Failing(Stack):
    def __init__(self):
        if not os.path.exists(FAIL):
            raise Skip("fail.so is not built (make check builds it)")
        super().__init__()
        self.orders = {"nbdkit": Orders(os.path.join(self.short, "fail-nbdkit")),
                       "varved": Orders(os.path.join(self.short, "fail-varved"))}

    def spawn(self, name, cmd, env=None, **popen):
        env = dict(env or {})
        for program, orders in self.orders.items():
            if name.startswith(program):
                before = env.get("LD_PRELOAD") or os.environ.get("VARVE_PRELOAD") or PRELOAD
                env["LD_PRELOAD"] = (before + " " + FAIL).strip()
                if program == "nbdkit" and os.environ.get("VARVE_PRELOAD"):
                    env["VARVE_PRELOAD"] = env["LD_PRELOAD"]  # see tests/harness/nbdkit
                env["FAIL_FILE"] = orders.path
        return super().spawn(name, cmd, env, **popen)
