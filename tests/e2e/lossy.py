# SPDX-License-Identifier: BSD-3-Clause
"""A stack on a machine that can lose its power: image and state directory lie on lossfs, which then
forgets what was not synced, and the runtime directory is gone, as after every boot."""
import os
import shutil
import subprocess
import tempfile

from dying import Dying
from harness import BUILD, WAIT, wait_for
from tap import Skip

LOSSFS = os.path.join(BUILD, "tests/e2e/lossfs")


class LossFs:
    """A mounted lossfs, which forgets when it is told."""

    def __init__(self):
        if not os.path.exists(LOSSFS):
            raise Skip("FUSE: lossfs is not built (libfuse3-dev)")
        if not os.access("/dev/fuse", os.W_OK) or not shutil.which("fusermount3"):
            raise Skip("FUSE cannot be used here")
        self.mount = tempfile.mkdtemp(prefix="loss-")
        self.fs = subprocess.Popen([LOSSFS, "-f", self.mount], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            wait_for("lossfs is mounted", lambda: os.path.ismount(self.mount), self.fs)
        except BaseException as e:
            self.unmount()
            if isinstance(e, RuntimeError):
                raise Skip("FUSE cannot be used here: lossfs ended") from e
            raise

    def path(self, name):
        return os.path.join(self.mount, name)

    def tell(self, what):
        with open(self.path(".lossfs"), "wb", buffering=0) as f:
            f.write(what.encode())

    def unmount(self):
        self.fs.terminate()
        self.fs.communicate(timeout=WAIT)
        os.rmdir(self.mount)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.unmount()


class Lossy(Dying):
    def __init__(self):
        super().__init__()
        self.losses = 0
        try:
            self.fs = LossFs()
        except BaseException:
            super().close()
            raise
        os.rmdir(self.state)
        self.state = self.path("state")
        os.mkdir(self.state)

    def path(self, name):
        return self.fs.path(name)

    def image(self, name, size, content=None):
        image = super().image(name, size, content)
        self.fs.tell("sync")
        return image

    def power_loss(self, seed):
        """Everything that runs dies, then what is not durable is lost by the seed."""
        for p in self.started:
            if p.poll() is None:
                self.kill(p)
        shutil.rmtree(self.runtime)
        self.fs.tell("lose %d" % seed)
        os.mkdir(self.runtime)
        self.losses += 1

    def close(self, show=False):
        try:
            return super().close(show)
        finally:
            self.fs.unmount()
