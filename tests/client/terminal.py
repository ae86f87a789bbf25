# SPDX-License-Identifier: BSD-3-Clause
"""A program on a terminal of its own: its keys, its size, what it drew, and what it left behind."""
import fcntl
import os
import re
import resource
import select
import signal
import struct
import subprocess
import termios
import time

ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


class Terminal:
    def __init__(self, command, rows=24, columns=80, term="xterm", **env):
        self.master, self.slave = os.openpty()
        self.resize(rows, columns)
        self.modes = termios.tcgetattr(self.slave)
        self.out = b""
        self.process = subprocess.Popen(
            command, stdin=self.slave, stdout=self.slave, stderr=self.slave, start_new_session=True,
            preexec_fn=self.own, env={**os.environ, "TERM": term, "LC_ALL": "C.UTF-8", "TZ": "UTC", **env})

    @staticmethod
    def own():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in signal.SIGHUP, signal.SIGINT, signal.SIGQUIT:  # as nohup's children, or a shell's & do
            signal.signal(number, signal.SIG_DFL)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.slave)
        os.close(self.master)

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys):
        os.write(self.master, keys)

    def read(self):
        """What is there; waits a moment for something."""
        if select.select([self.master], [], [], 0.05)[0]:
            self.out += os.read(self.master, 65536)

    def wait_for(self, condition, what):
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, "%s: %r" % (what, self.out[-2000:])
            self.read()

    def wait_text(self, text):
        """Until the picture that is shown holds the text."""
        self.wait_for(lambda: text in self.picture(), text)

    def end(self):
        """Its exit status, when all that it wrote was read."""
        self.wait_for(lambda: self.process.poll() is not None, "its end")
        while select.select([self.master], [], [], 0)[0]:
            self.out += os.read(self.master, 65536)
        return self.process.returncode

    def lines(self):
        """The rows of the last whole picture, without colours."""
        frames = [f for f in self.out.split(b"\x1b[H")[1:] if b"\x1b[J" in f]
        if not frames:
            return []
        text = re.sub(rb"\x1b\[[0-9;]*[mK]", b"", frames[-1].split(b"\x1b[J")[0])
        return re.split("\r+\n", text.decode())

    def picture(self):
        return "\n".join(self.lines())

    def assert_given_back(self):
        assert termios.tcgetattr(self.slave) == self.modes, "modes are others"
        assert self.out.count(ENTER) == self.out.count(LEAVE), self.out
        assert self.out.rstrip().endswith(LEAVE) or ENTER not in self.out, self.out[-200:]
        assert self.out.rfind(b"\x1b[?25h") >= self.out.rfind(b"\x1b[?25l"), "no cursor"
