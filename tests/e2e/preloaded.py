# SPDX-License-Identifier: BSD-3-Clause
"""A stack with a library preloaded into nbdkit and varved, which takes orders from the test: the base of
dying.py (die.c) and failing.py (fail.c)."""
import mmap
import os

from harness import BUILD, PRELOAD, Stack
from tap import Skip


def library(name):
    """Where NAME.so is."""
    path = os.path.join(BUILD, "tests/e2e/.libs/%s.so" % name)
    if not os.path.exists(path):
        raise Skip("%s.so is not built (make check builds it)" % name)
    return path


class Orders:
    """What the library in one program is told; the file is mapped by both."""

    def __init__(self, path):
        self.path = path
        with open(path, "w+b") as f:
            f.truncate(4096)
            self.map = mmap.mmap(f.fileno(), 4096)


class Preloaded(Stack):
    """NAME.so finds its orders, which are of class ORDERS, in the file of the variable NAME_FILE."""
    NAME, ORDERS = None, Orders

    def __init__(self):
        self.library = library(self.NAME)
        super().__init__()
        self.orders = {program: self.ORDERS(os.path.join(self.short, self.NAME + "-" + program))
                       for program in ("nbdkit", "varved")}

    def spawn(self, name, cmd, env=None, **popen):
        env = dict(env or {})
        for program, orders in self.orders.items():
            if name.startswith(program):
                before = env.get("LD_PRELOAD") or os.environ.get("VARVE_PRELOAD") or PRELOAD
                env["LD_PRELOAD"] = (before + " " + self.library).strip()
                if program == "nbdkit" and os.environ.get("VARVE_PRELOAD"):
                    env["VARVE_PRELOAD"] = env["LD_PRELOAD"]  # see tests/harness/nbdkit
                env[self.NAME.upper() + "_FILE"] = orders.path
        return super().spawn(name, cmd, env, **popen)
