#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A Linux guest that QEMU runs without KVM writes to two disks of ours, one with a file system, while
backups of both are made by nbdcopy.  What a backup may hold at its instant follows from what the guest
does in each step (guest-init.sh).

    guest      durable 1 … D ┐ … ┐ …          … goes on writing, discarding, trimming
    backup                   └ begin: k ≥ D   copies, while the guest's steps k + 2, … go on
"""
import contextlib
import hashlib
import os
import re
import signal

import history
from clients import client, main, need, run, spawn
from guest import QEMU, Machine
from harness import K, M, run as run_here, wait_for
from history import BIG, BLOCK, HERE, backups
from reach import TCP, UNIX

SIZE, SEED = 32 * M, "varve"
PAGE = os.path.join(HERE, "../../docs/varve-recipes.pod")
UNIT = os.path.join(HERE, "../../system/varve@.service.in")


def piece(text, n):
    """What `yes TEXT | head -c N` prints."""
    return (b"%s\n" % text.encode() * (n // (len(text) + 1) + 1))[:n]


def raw_step(image, n):
    """Step n of the guest on the raw disk; returns the ranges that it changes before it says n."""
    changed = [((64 + n * 37 % 256) * 16 * K, 16 * K)]
    image[changed[0][0]:sum(changed[0])] = piece("%s raw %d" % (SEED, n), 16 * K)
    if n % 4 == 0:
        changed.append((M + n * 53 % 256 * 16 * K, 16 * K))
        image[changed[1][0]:sum(changed[1])] = bytes(16 * K)
    return changed


def expect_raw(path, at_least):
    """The copy of the raw disk is the guest's step k, but for what step k + 1 may have changed, too."""
    with open(path, "rb") as f:
        got = bytearray(f.read())
    k = int(got[:512].decode().strip("\0") or "0")
    assert k >= at_least, "step %d is in the backup, step %d was durable before it" % (k, at_least)
    want = bytearray(SIZE)
    for n in range(1, k + 1):
        raw_step(want, n)
    if k:
        want[:512] = b"%-511d\n" % k
    under_way = raw_step(bytearray(SIZE), k + 1)
    for off, n in under_way:
        got[off:off + n] = want[off:off + n] = bytes(n)
    at = backups.first_difference(got, want)
    assert at is None, "the raw disk of step %d differs at %d" % (k, at)
    return k


def expect_files(h, path, k):
    """The copy is a file system that its journal makes whole, with the files of the last 30 steps."""
    check, out = h.s.path("check.img"), h.s.path("files")
    with open(path, "rb") as f, open(check, "wb") as to:
        to.write(f.read())
    first = run_here(["e2fsck", "-fp", check], check=False)
    assert first.returncode in (0, 1), first
    run_here(["e2fsck", "-fn", check])
    os.mkdir(out)
    run_here(["debugfs", "-R", "rdump / " + out, check])
    there = {int(name[1:]) for name in os.listdir(out) if re.fullmatch(r"f\d+", name)}
    must = set(range(max(1, k - 29), k + 1))
    assert must <= there, "step %d: files %s are missing" % (k, sorted(must - there))
    assert there <= must | {k - 30, k + 1}, "step %d: files %s are there" % (k, sorted(there - must))
    for n in must:
        with open("%s/f%d" % (out, n), "rb") as f:
            assert f.read() == piece("%s %d" % (SEED, n), n * 7919 % 200000 + 1), "file %d" % n
    run_here(["rm", "-rf", out, check])


def by_the_page(pattern, disk):
    """The words that varve-recipes(7) has for such a guest's disk, for this one."""
    with open(PAGE, encoding="utf-8") as f:
        words = re.search("^ " + pattern, f.read(), re.MULTILINE).group(1).split()
    return [w.replace("/run/varve-nbd/vda.sock", disk.sock).replace("/run/vda.vhost", vhost(disk))
            for w in words]


def vhost(disk):
    return disk.sock + ".vhost"


class Chain:
    """Copies of both disks that nbdcopy brings from backup to backup."""

    def __init__(self, h, r, names):
        self.h, self.r, self.names, self.n = h, r, names, 0
        self.copies = {n: h.s.path(n + ".copy") for n in names}

    def backup(self, guest):
        """One backup; the guest goes on writing between its begin and the first byte that is read."""
        h, since, name = self.h, "guest-%d" % (self.n - 1), "guest-%d" % self.n
        durable = guest.durable() if guest else None
        ident, _ = backups.begin(h.q, [{"disk": d, "since": since} if self.n else d
                                       for d in self.names], checkpoint=name)
        try:
            if guest:
                guest.wait_steps(5)
            for disk, copy in self.copies.items():
                self.pull(disk, copy)
        except BaseException:
            backups.end(h.q, ident, False)
            raise
        backups.end(h.q, ident)
        self.n += 1
        if guest:
            files, raw = self.copies.values()
            expect_files(h, files, expect_raw(raw, durable))

    def pull(self, disk, copy):
        """Full, or what changed, put over the copy; the view as a whole is the same."""
        h, r = self.h, self.r
        if not self.n:
            run(h, ["nbdcopy", r.uri(h, disk), copy])
            return
        run(h, ["nbdcopy", "--destination-is-zero", "-S", "0", r.uri(h, disk + "+delta"),
                "--", "[", "nbdkit", "file", copy, "]"])
        whole = h.s.path("whole.copy")
        run(h, ["nbdcopy", r.uri(h, disk), whole])
        with open(copy, "rb") as a, open(whole, "rb") as b:
            at = backups.first_difference(a.read(), b.read())
        assert at is None, "%s: the chain of %d differs from the view at %d" % (disk, self.n, at)
        os.unlink(whole)

    def expect_images(self):
        for disk, copy in self.copies.items():
            with open(copy, "rb") as a, open(self.h.s.disks[disk].image, "rb") as b:
                at = backups.first_difference(a.read(), b.read())
            assert at is None, "%s: the chain differs from the image at %d" % (disk, at)

    def close(self):
        for disk, copy in self.copies.items():
            self.h.drop(disk)
            if os.path.exists(copy):
                os.unlink(copy)


def disks(h, *names):
    """Two disks, the first one with an empty file system."""
    out = []
    for name in names:
        image = h.s.image(name + ".img", SIZE)
        if not out:
            run_here(["mke2fs", "-q", "-t", "ext4", image])
        out.append(h.s.serve(name, image))
        h.s.wait_disk(name, "live")
    return out


def full_and_increments(h, r, names, machine, restarts=(False, False)):
    """Backups while the guest writes, and one when it is off."""
    chain = Chain(h, r, names)
    try:
        with machine() as guest:
            guest.wait("has started", lambda: "ready" in guest.lines)
            guest.wait_steps(10)
            chain.backup(guest)
            for again in restarts:
                if again:
                    restart(h, names)
                guest.wait_steps(10)
                chain.backup(guest)
            guest.stop()
            guest.ended()
        chain.backup(None)
        chain.expect_images()
    finally:
        chain.close()


def restart(h, names):
    """The disks' servers are started anew, by the signal that varve@.service has for that; meanwhile the
    guest's requests wait (reconnect-delay)."""
    with open(UNIT, encoding="utf-8") as f:
        said = re.search("^RestartKillSignal=(.*)$", f.read(), re.MULTILINE)
    for name in names:
        disk = h.s.disks[name]
        h.s.killed.add(disk.process.pid)
        disk.process.send_signal(signal.Signals[said.group(1) if said else "SIGTERM"])
        disk.process.wait(60)
        h.s.serve(name, disk.image)
        h.s.wait_disk(name, "live")


@client("qemu-system-x86", "a Linux guest on two disks; full and incremental backups by nbdcopy while it"
        " writes, discards and trims, and the disks' servers are started anew", [UNIX])
def backups_of_a_running_guest_are_instants_of_it(h, r):
    need(QEMU, "nbdkit")
    served = disks(h, "files", "raw")
    full_and_increments(h, r, ("files", "raw"), lambda: Machine(
        h, [word for d in served for word in by_the_page(r"QEMU +(-drive \S+)$", d)],
        ["role=writer", "seed=" + SEED, "files=vda", "raw=vdb"]), (False, True, False))


@contextlib.contextmanager
def vhost_machine(h, served):
    """The guest, and one qemu-storage-daemon for each of its disks."""
    arguments = ["-object", "memory-backend-memfd,id=memory,size=256M,share=on",
                 "-machine", "memory-backend=memory"]
    daemons = []
    try:
        for disk in served:
            words = by_the_page(r"vhost +(qemu-storage-daemon .*\n.*)$", disk)
            daemons.append(spawn(h, words))
            wait_for("qemu-storage-daemon listens", lambda: os.path.exists(vhost(disk)), daemons[-1])
            arguments += ["-chardev", "socket,id=%s,path=%s" % (disk.name, vhost(disk)),
                          "-device", "vhost-user-blk-pci,chardev=" + disk.name]
        with Machine(h, arguments, ["role=writer", "seed=" + SEED, "files=vda", "raw=vdb"]) as guest:
            yield guest
    finally:
        for p in daemons:
            h.s.stop(p)


@client("qemu-system-common", "qemu-storage-daemon serves two disks to a guest by vhost-user-blk; full and"
        " incremental backups meanwhile, and the disks' servers are started anew", [UNIX])
def backups_of_a_vhost_users_disk_are_instants_of_it(h, r):
    need(QEMU, "nbdkit", "qemu-storage-daemon")
    served = disks(h, "vhostfiles", "vhostraw")
    full_and_increments(h, r, ("vhostfiles", "vhostraw"), lambda: vhost_machine(h, served), (False, True))


def network(*forwards):
    return ["-netdev", ",".join(["user", "id=net", *forwards]),
            "-device", "virtio-net-pci,netdev=net,romfile="]


@client("nbd-client", "Linux's nbd driver on two disks that are written, discarded and trimmed through"
        " it; full and incremental backups meanwhile", [UNIX])
def backups_of_a_kernels_nbd_disk_are_instants_of_it(h, r):
    """In a guest, whose ports lead to the disks' sockets."""
    need(QEMU, "nbdkit")
    served = disks(h, "nbdfiles", "nbdraw")
    arguments, forwards, words = [], [], []
    for i, disk in enumerate(served):
        arguments += ["-chardev", "socket,id=disk%d,path=%s" % (i, disk.sock)]
        forwards.append("guestfwd=tcp:10.0.2.100:%d-chardev:disk%d" % (10809 + i, i))
        words.append("nbd%d:10.0.2.100:%d:1:" % (i, 10809 + i))
    full_and_increments(h, r, ("nbdfiles", "nbdraw"), lambda: Machine(
        h, arguments + network(*forwards),
        ["role=writer", "seed=" + SEED, "files=nbd0", "raw=nbd1", "nbd=" + ",".join(words)],
        ["nbd-client"]))


@client("nbd-client", "Linux's nbd driver reads a full and an incremental backup; 4 connections", [TCP])
def a_kernels_nbd_device_is_the_backup(h, r):
    """In a guest; of the larger disk what is around 4 GiB and its end."""
    exports = ("vda-full", "vda", "big")
    words = ["nbd%d:10.0.2.2:%d:4:%s" % (i, h.port, e) for i, e in enumerate(exports)]
    parts = [(0, 0, history.SIZE // M), (1, 0, history.SIZE // M), (2, 4 * K - 1, 2),
             (2, BIG // M - 1, 1)]
    what = ["nbd%d:%d:%d" % p for p in parts]
    with Machine(h, network(), ["role=reader", "what=" + ",".join(what), "nbd=" + ",".join(words)],
                 ["nbd-client"]) as guest:
        guest.ended()
        read = dict(line.split()[1:] for line in guest.lines if line.startswith("read "))
    for (i, mib, count), name in zip(parts, what):
        model = h.model(exports[i])[0]
        want = b"".join(model.block(b) for b in range(mib * M // BLOCK, (mib + count) * M // BLOCK))
        assert read[name] == hashlib.sha256(want).hexdigest(), "%s of %s" % (name, exports[i])


if __name__ == "__main__":
    main()
