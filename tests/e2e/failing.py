# SPDX-License-Identifier: BSD-3-Clause
"""A stack whose nbdkit and varved can be told which calls on which files fail: fail.c, preloaded into
both."""
import contextlib
import os
import struct

import preloaded
from tap import Skip

CLASSES = {"open": 1, "read": 2, "write": 4, "sync": 8, "space": 16, "name": 32}


class Orders(preloaded.Orders):
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


class Failing(preloaded.Preloaded):
    NAME, ORDERS = "fail", Orders

    def __init__(self):
        if os.environ.get("SANITIZER") == "thread":
            raise Skip("ThreadSanitizer opens files before fail.so can")
        super().__init__()
