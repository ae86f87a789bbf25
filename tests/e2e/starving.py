# SPDX-License-Identifier: BSD-3-Clause
"""A stack whose nbdkit and varved can be told which of what they ask memory for is refused: starve.c,
preloaded into both."""
import contextlib
import os
import struct

import preloaded
from tap import Skip

NEVER = (1 << 32) - 1


class Orders(preloaded.Orders):
    @contextlib.contextmanager
    def starving(self, nth=NEVER, many=1):
        """Within it the nth request for memory is refused, and so are those behind it, `many` in all."""
        self.map[0:16] = struct.pack("=IIII", 0, many, 0, 0)
        self.map[16:17] = b"\0"
        self.map[0:4] = struct.pack("=I", nth)
        try:
            yield self
        finally:
            self.map[0:4] = bytes(4)

    def calls(self):
        """Requests since starving() began."""
        return struct.unpack("=I", self.map[8:12])[0]

    def hits(self):
        """Those that were refused."""
        return struct.unpack("=I", self.map[12:16])[0]

    def where(self):
        """Whose the first of them was."""
        return self.map[16:272].split(b"\0")[0].decode(errors="replace")


class Starving(preloaded.Preloaded):
    NAME, ORDERS = "starve", Orders

    def __init__(self):
        if os.environ.get("SANITIZER"):
            raise Skip("a sanitizer has its own malloc")
        super().__init__()
