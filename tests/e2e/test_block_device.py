#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""An image that is a block device, as LVM volumes and mapped RBD devices are: a loop device here."""
import contextlib
import os
import shutil
import subprocess

import backups
from harness import K, M, Stack
from qmpclient import QMPError
from tap import Skip, main, rng, test

SIZE, BLOCK = 16 * M, 64 * K


@contextlib.contextmanager
def device(s, content):
    """A loop device that holds the content."""
    if os.geteuid() != 0:
        raise Skip("needs root, to make a loop device")
    if not shutil.which("losetup"):
        raise Skip("no loop device: losetup is not installed")
    below = s.image("below.img", SIZE, content)
    r = subprocess.run(["losetup", "--find", "--show", below], capture_output=True, text=True)
    if r.returncode != 0:
        raise Skip("no loop device: " + r.stderr.strip())
    path = r.stdout.strip()
    try:
        yield path
    finally:
        for disk in s.disks.values():
            if disk.process.poll() is None:
                s.stop(disk.process)
        subprocess.run(["losetup", "--detach", path], check=True)


class Chain:
    """A copy that backups bring from instant to instant."""

    def __init__(self, s, q):
        self.s, self.q, self.n, self.copy = s, q, 0, None

    def backup(self):
        """What was dirty; the copy is the view afterwards."""
        disk = {"disk": "vda", "since": "c%d" % self.n} if self.n else "vda"
        self.n += 1
        ident, answer = backups.begin(self.q, [disk], checkpoint="c%d" % self.n)
        whole = backups.pull(self.s.nbd, "vda")
        dirty = backups.dirty(self.s.nbd, "vda", answer["vda"]["context"])
        self.copy = whole if self.copy is None else backups.apply(self.copy, whole, dirty)
        backups.end(self.q, ident)
        assert backups.first_difference(self.copy, whole) is None, "the chain is not the view"
        return dirty


@test
def a_block_device_is_backed_up_like_a_file():
    """Full and incremental, with writes, zeroes and trims, while it is served and after a stop, a
    start, a kill and a start; only what was written is dirty, and the copy is the device."""
    random = rng("device")
    with Stack() as s, device(s, random.randbytes(SIZE)) as path:
        disk = s.serve("vda", path, granularity="64K")
        s.start_daemon()
        s.wait_disk("vda", "live")
        with s.qmp() as q:
            chain = Chain(s, q)
            chain.backup()
            for end in (lambda: None, lambda: s.stop(disk.process), lambda: s.kill(disk.process)):
                with disk.connect() as c:
                    c.write(M, random.randbytes(BLOCK))
                    c.zero(3 * M, 2 * BLOCK)
                    c.trim(5 * M, BLOCK)
                    c.flush()
                end()
                if disk.process.poll() is not None:
                    s.wait_disk("vda", "offline")
                    s.serve("vda", path, granularity="64K")
                    s.wait_disk("vda", "live")
                assert chain.backup() == [(M, BLOCK), (3 * M, 2 * BLOCK), (5 * M, BLOCK)]
            with open(path, "rb") as f:
                assert backups.first_difference(chain.copy, f.read()) is None, "it is not the device"


@test
def who_writes_to_a_device_that_nobody_serves_is_found_out():
    """By what the kernel counts of a device: it has neither an inode's time nor another way to tell."""
    with Stack() as s, device(s, bytes(SIZE)) as path:
        disk = s.serve("vda", path)
        s.start_daemon()
        s.wait_disk("vda", "live")
        with s.qmp() as q:
            chain = Chain(s, q)
            chain.backup()
            s.stop(disk.process)
            s.wait_disk("vda", "offline")
            with open(path, "r+b") as f:
                f.write(b"foreign")
                f.flush()
                os.fsync(f.fileno())
            s.serve("vda", path)
            s.wait_disk("vda", "inconsistent")
            try:
                chain.backup()
            except QMPError as why:
                assert "full backup" in why.desc, why.desc
            else:
                raise AssertionError("an increment was not refused")


if __name__ == "__main__":
    main()
