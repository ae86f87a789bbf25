#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Plugin and daemon of neighbouring releases work together; files of newer ones are refused by name, with
the version found and the one known, and are left as they are.

An older plugin under this daemon: test_release.py."""
import errno
import os
import socket
import struct
import subprocess
import threading

import backups
from harness import M, Stack, tree, wait_for
from tap import main, test

SIZE = 4 * M
HELLO = 1
MAGIC = 0x4B4C5656
HEAD = "IIIi8Q16sI"
VERSION = 2  # of the link


def say_hello(s, lowest, highest, more=(0,) * 6):
    """As a daemon that speaks these versions: (status, version, text)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as p:
        p.settimeout(30)
        p.connect(os.path.join(s.runtime, "vda", "link.sock"))
        p.send(struct.pack(HEAD, MAGIC, HELLO, 7, 0, lowest, highest, *more, b"", 0))
        data, fds, _, _ = socket.recv_fds(p, 8192, 3)
        for fd in fds:
            os.close(fd)
        size = struct.calcsize(HEAD)
        head = struct.unpack(HEAD, data[:size])
        assert head[1] == HELLO and head[2] == 7, head
        return head[3], head[4], data[size:].decode()


@test
def a_plugin_speaks_with_daemons_of_the_release_before_and_after():
    with Stack() as s:
        s.serve("vda", s.image("vda.img", SIZE))
        assert say_hello(s, 1, VERSION - 1)[:2] == (0, VERSION - 1)
        assert say_hello(s, 1, VERSION)[:2] == (0, VERSION)
        assert say_hello(s, 1, VERSION + 1)[:2] == (0, VERSION)
        assert say_hello(s, VERSION, VERSION + 7)[:2] == (0, VERSION)
        # What a later one may say beside is not looked at.
        assert say_hello(s, 1, VERSION + 1, (1, 2, 3, 4, 5, 6))[:2] == (0, VERSION)


@test
def a_plugin_refuses_a_daemon_it_has_nothing_in_common_with_and_says_what_each_speaks():
    with Stack() as s:
        s.serve("vda", s.image("vda.img", SIZE))
        status, _, text = say_hello(s, VERSION + 1, VERSION + 2)
        assert status == -errno.EPROTONOSUPPORT, status
        assert "versions 1 to %d" % VERSION in text, text
        assert "%d to %d" % (VERSION + 1, VERSION + 2) in text, text
        s.start_daemon()
        s.wait_disk("vda", "live")


class FakePlugin:
    """Listens where a plugin would, and answers each HELLO by `answer`."""

    def __init__(self, s, name, answer):
        self.path = os.path.join(s.runtime, name, "link.sock")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(self.path)
        self.listener.listen(4)
        self.answer = answer
        self.heads = []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                c, _ = self.listener.accept()
            except OSError:
                return
            with c:
                head = struct.unpack(HEAD, c.recv(8192)[:struct.calcsize(HEAD)])
                self.heads.append(head)
                c.send(self.answer(head))
                c.recv(8192)  # its end

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        os.unlink(self.path)


@test
def a_daemon_tells_of_a_plugin_it_has_nothing_in_common_with():
    """One that refuses, as this one would; and one that answers with what was not offered."""
    def refuses(head):
        text = b"this plugin speaks versions 3 to 4 of the link, the daemon %d to %d" % head[4:6]
        return struct.pack(HEAD, MAGIC, HELLO, head[2], -errno.EPROTONOSUPPORT, *(0,) * 8, b"",
                           len(text)) + text

    def insists(head):
        return struct.pack(HEAD, MAGIC, HELLO, head[2], 0, VERSION + 1, *(0,) * 7, b"", 0)

    for answer, text in ((refuses, "speaks versions 3 to 4"),
                         (insists, "speaks version %d of the link" % (VERSION + 1))):
        with Stack() as s:
            disk = s.serve("vda", s.image("vda.img", SIZE))
            s.stop(disk.process)
            p = FakePlugin(s, "vda", answer)
            try:
                s.start_daemon()
                wait_for("it is told", lambda: text in (s.disk_info("vda") or {}).get("reason", ""))
                assert all(h[4:6] == (1, VERSION) for h in p.heads), p.heads
                s.stop(s.daemon)
            finally:
                p.close()


# --- files -------------------------------------------------------------------------------------------

def patch(path, off, data):
    with open(path, "r+b") as f:
        f.seek(off)
        f.write(data)


def refused_by_the_plugin(s, disk, path, *texts):
    before = tree(s.state)
    r = subprocess.run(s.nbdkit_command(disk, "--run=true"), capture_output=True, text=True,
                       env=dict(os.environ, **s.nbdkit_env()), timeout=120)
    assert r.returncode != 0
    for text in (os.path.basename(path),) + texts:
        assert text in r.stderr, (text, r.stderr)
    assert "version" in r.stderr, r.stderr
    after = tree(s.state)
    assert {k for k in before if before[k] != after.get(k)} <= {"vda/lock"}, (before, after)


@test
def state_of_a_newer_varve_is_refused_by_name_and_left_alone():
    with Stack() as s:
        disk = s.serve("vda", s.image("vda.img", SIZE))
        with disk.connect() as guest:
            guest.write(0, b"a" * M)
        s.stop(disk.process)
        folder = os.path.join(s.state, "vda")

        identity = os.path.join(folder, "disk.json")
        with open(identity) as f:
            text = f.read()
        with open(identity, "w") as f:
            f.write(text.replace('"format": 1', '"format": 2'))
        refused_by_the_plugin(s, disk, identity, "format 2", "format 1")
        s.start_daemon()
        assert "format 2" in s.disk_info("vda")["reason"]
        s.stop(s.daemon)
        with open(identity, "w") as f:
            f.write(text)

        control = os.path.join(s.runtime, "vda", "control")
        patch(control, 8, struct.pack("I", 3))
        refused_by_the_plugin(s, disk, os.path.dirname(control), "layout 3", "known is 2")
        os.unlink(control)

        epoch = [os.path.join(folder, n) for n in os.listdir(folder) if n.startswith("epoch-")][0]
        with open(epoch, "rb") as f:
            f.seek(8)
            known = struct.unpack("I", f.read(4))[0]
        patch(epoch, 8, struct.pack("I", known + 1))
        refused_by_the_plugin(s, disk, epoch, "format %d" % (known + 1), "to %d" % known)
        patch(epoch, 8, struct.pack("I", known))
        s.serve("vda", disk.image)
        s.start_daemon()
        s.wait_disk("vda", "live")
        with s.qmp() as q:
            backups.end(q, backups.begin(q, ["vda"])[0])


if __name__ == "__main__":
    main()
