# SPDX-License-Identifier: BSD-3-Clause
"""A stack whose guest's I/O can be held at named points: hold.c, preloaded into nbdkit."""
import os

from harness import BUILD, Stack, wait_for
from tap import Skip

HOLD = os.path.join(BUILD, "tests/e2e/.libs/hold.so")


class Held(Stack):
    """A stack whose nbdkit stops at the points that exist as files, with one disk, vda."""

    def __init__(self, size, content, **params):
        if not os.path.exists(HOLD):
            raise Skip("hold.so is not built (make check builds it)")
        super().__init__()
        self.points = os.path.join(self.short, "points")
        os.mkdir(self.points)
        try:
            self.disk = self.start("vda", size, content, **params)
        except BaseException:
            self.close(show=True)
            raise

    def nbdkit_env(self):
        env = super().nbdkit_env()
        preload = env.get("LD_PRELOAD") or os.environ.get("VARVE_PRELOAD") or ""
        env["LD_PRELOAD"] = (preload + " " + HOLD).strip()
        if os.environ.get("VARVE_PRELOAD"):  # tests/harness/nbdkit sets LD_PRELOAD from this
            env["VARVE_PRELOAD"] = env["LD_PRELOAD"]
        env["HOLD_DIR"], env["HOLD_IMAGE"] = self.points, self.path("vda.img")
        return env

    def hold(self, point):
        open(os.path.join(self.points, point), "w").close()

    def wait_held(self, point):
        wait_for("a thread is held at " + point,
                 lambda: os.path.exists(os.path.join(self.points, point + ".hit")))

    def let_go(self, point):
        os.unlink(os.path.join(self.points, point))

    def close(self, show=False):
        for point in os.listdir(self.points):
            os.unlink(os.path.join(self.points, point))
        return super().close(show)
