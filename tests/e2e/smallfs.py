# SPDX-License-Identifier: BSD-3-Clause
"""File systems of a test's own: small ones, and one whose device runs full behind its back.

They are mounted in a mount namespace of this process, which ends with it; what it starts later sees
them, too.  Only root may: others skip the test."""
import contextlib
import ctypes
import os
import subprocess

from harness import M
from tap import Skip

CLONE_NEWNS = 0x20000
entered = False


def enter():
    """From here on mounts are this process's own."""
    global entered
    if entered:
        return
    if os.geteuid() != 0:
        raise Skip("needs root, to mount a file system")
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        raise Skip("no mount namespace: " + os.strerror(ctypes.get_errno()))
    if run("mount", "--make-rprivate", "/").returncode != 0:
        raise Skip("may not mount")
    entered = True


def run(*cmd):
    return subprocess.run(cmd, capture_output=True, text=True)


@contextlib.contextmanager
def tmpfs(path, size):
    """An empty file system of so many bytes at path, which is made.  At its end who has it open keeps
    it."""
    enter()
    os.makedirs(path, exist_ok=True)
    r = run("mount", "-t", "tmpfs", "-o", "size=%d,mode=700" % size, "varve-test", path)
    if r.returncode != 0:
        raise Skip("may not mount: " + r.stderr.strip())
    try:
        yield path
    finally:
        run("umount", "-l", path)


@contextlib.contextmanager
def thin(path, size, room):
    """An ext4 of `size` bytes at path, on a device that has room for `room` bytes of it only, and
    says so no sooner than when it is written to."""
    with tmpfs(path + ".below", room) as below:
        image = os.path.join(below, "image")
        with open(image, "wb") as f:
            f.truncate(size)
        r = run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", "-O", "^has_journal",
                image)
        if r.returncode != 0:
            raise Skip("no mkfs.ext4: " + r.stderr.strip())
        os.makedirs(path, exist_ok=True)
        r = run("mount", "-o", "loop,errors=continue", image, path)
        if r.returncode != 0:
            raise Skip("no loop device: " + r.stderr.strip())
        try:
            yield path
        finally:
            run("umount", "-l", path)


def fill(path, leave=0):
    """Takes all room of the file system but `leave` bytes; the file that does it."""
    name = os.path.join(path, "filler")
    st = os.statvfs(path)
    with open(name, "wb") as f:
        left = st.f_bavail * st.f_frsize - leave
        try:
            while left > 0:
                left -= f.write(b"\xff" * min(left, M))
                f.flush()
        except OSError:
            pass
    return name
