# SPDX-License-Identifier: BSD-3-Clause
"""Jobs of the daemon: begin one, wait for what becomes of it; and copies of a disk behind NBD servers
that can be held."""
import os
import pty
import socket
import subprocess

from harness import VARVE, WAIT, can_connect, wait_for


def job(q, ident):
    found = [j for j in q.cmd("query-jobs") if j["id"] == ident]
    return found[0] if found else None


def concluded(q, ident):
    """The job once it has ended."""
    def ended():
        j = job(q, ident)
        return j if j["status"] == "concluded" else None
    return wait_for("job %s has ended" % ident, ended)


def diff(q, name, reference, node="vda", **more):
    """Begins a diff; returns the job's id."""
    return q.cmd("block-dirty-bitmap-diff", node=node, name=name, reference=reference, **more)["id"]


def diffed(q, name, reference, node="vda", **more):
    """A diff that has come to its end well; returns the job."""
    j = concluded(q, diff(q, name, reference, node, **more))
    assert "error" not in j and "cancelled" not in j, j
    assert j["current-progress"] == j["total-progress"], j
    return j


class Peer:
    """An NBD server of somebody else's, on a socket in the stack's folder."""

    def __init__(self, stack, *command):
        stack.peers = getattr(stack, "peers", 0) + 1
        self.sock = os.path.join(stack.socks, "peer%d" % stack.peers)
        self.uri = "nbd+unix:///?socket=" + self.sock
        self.stack = stack
        self.process = stack.spawn("peer", [a.replace("@SOCK@", self.sock) for a in command])
        wait_for("the peer listens", lambda: can_connect(self.sock), self.process)

    def kill(self):
        self.stack.kill(self.process)
        os.unlink(self.sock)

    def stop(self):
        self.process.terminate()
        self.process.wait(WAIT)
        if os.path.exists(self.sock):  # nbdkit leaves it, by its manual
            os.unlink(self.sock)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.stop()


def nbdkit(stack, *args):
    return Peer(stack, "nbdkit", "-f", "-U", "@SOCK@", "--exit-with-parent", *args)


class Held(Peer):
    """A copy behind a server that answers nothing while it is held."""

    def __init__(self, stack, path):
        self.control = os.path.join(stack.socks, "pause%d" % (getattr(stack, "peers", 0) + 1))
        super().__init__(stack, "nbdkit", "-f", "-U", "@SOCK@", "--exit-with-parent", "--filter=pause",
                         "file", path, "pause-control=" + self.control)

    def _say(self, letter):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(60)
            s.connect(self.control)
            s.sendall(letter)
            assert s.recv(1) == letter.upper()

    def hold(self):
        self._say(b"p")

    def let_go(self):
        self._say(b"r")

    def __exit__(self, *exc):
        """Killed: one that ends by itself lets go of the filter while the filter's thread may still run in it."""
        if self.process.poll() is None:
            self.kill()
        if os.path.exists(self.control):
            os.unlink(self.control)


def qcow2(stack, raw, name="copy.qcow2"):
    """The raw image as qcow2, behind qemu-nbd."""
    path = stack.path(name)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, path], check=True)
    return Peer(stack, "qemu-nbd", "-k", "@SOCK@", "-r", "-t", "-f", "qcow2", path)


def sparse_copy(source, target):
    """Data where the source has data, a hole elsewhere."""
    with open(source, "rb") as a, open(target, "wb") as b:
        size = os.fstat(a.fileno()).st_size
        b.truncate(size)
        at = 0
        while at < size:
            try:
                at = os.lseek(a.fileno(), at, os.SEEK_DATA)
            except OSError:  # nothing but a hole is left
                break
            end = os.lseek(a.fileno(), at, os.SEEK_HOLE)
            while at < end:
                data = os.pread(a.fileno(), min(end - at, 1 << 20), at)
                os.pwrite(b.fileno(), data, at)
                at += len(data)


class OnTerminal:
    """varve with a terminal for its standard error; what it draws is kept."""

    def __init__(self, s, *args, session=False):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen([VARVE, "--control", s.control, *args], stdin=slave,
                                        stdout=subprocess.PIPE, stderr=slave, start_new_session=session)
        os.close(slave)
        self.drawn = b""

    def draw_until(self, text):
        while text not in self.drawn:
            self.drawn += os.read(self.master, 4096)

    def end(self):
        try:
            while True:
                more = os.read(self.master, 4096)
                if not more:
                    break
                self.drawn += more
        except OSError:  # nobody has the other end
            pass
        out = self.process.stdout.read().decode()
        os.close(self.master)
        self.process.stdout.close()
        return self.process.wait(WAIT), out
