# SPDX-License-Identifier: BSD-3-Clause
"""A stack whose nbdkit and varved can be killed at their n-th call that changes a file: die.c,
preloaded into both."""
import signal
import struct

import preloaded
from harness import WAIT


class Orders(preloaded.Orders):
    def arm(self, nth, after=False):
        self.nth = nth
        self.map[0:12] = struct.pack("=III", 0, after, 0)
        self.map[0:4] = struct.pack("=I", nth)

    def disarm(self):
        """True: the order was carried out, the program is dead or dying."""
        self.map[0:4] = bytes(4)
        return self.calls() >= self.nth

    def calls(self):
        """How many there were from arm() to disarm()."""
        return struct.unpack("=I", self.map[8:12])[0]


class Dying(preloaded.Preloaded):
    NAME, ORDERS = "die", Orders

    def dead(self, process):
        """It has ended: by the SIGKILL that it was told, and by nothing else."""
        if process.poll() is None:
            return False
        if process.returncode != -signal.SIGKILL:
            raise AssertionError("%s ended with %s" % (process.what, process.returncode))
        self.killed.add(process.pid)
        return True

    def start_dying(self, program, nth, after, start):
        """Starts a program by start(), which is killed at its nth call if it comes so far while it
        starts; true if it lives."""
        self.orders[program].arm(nth, after)
        try:
            start()
        except RuntimeError:  # wait_for() saw it end
            self.orders[program].disarm()
            if not self.dead(self.started[-1]):
                raise
            return False
        return not self.disarm(program, self.started[-1])

    def disarm(self, program, process):
        """Takes an order back; true if it was carried out: then the process has gone."""
        if self.orders[program].disarm():
            process.wait(WAIT)
        return self.dead(process)
