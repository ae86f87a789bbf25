# SPDX-License-Identifier: BSD-3-Clause
"""What a guest's writes cost: tracked, preserved, and beside checkpoints."""
import os
import time

from bench import pairs, ratio, value
from peers import Bench, G, K, M, Noticing, Warm, fio, wait_for, write_iops

import prometheus  # of tests/e2e, which peers has found
import rawhttp


class tracked_random:
    what = "4K random writes at depth 32, tracked"
    against = "nbdkit file plugin"
    bound = ">= 0.97"

    @staticmethod
    def run(args):
        out = []
        with Bench() as s:
            peer = s.file_plugin("peer", s.shm("peer.img", 512 * M, True))
            for name in ("none", "many"):
                s.varve_disk(name, s.shm(name + ".img", 512 * M, True))
            s.start_daemon()
            for name in ("none", "many"):
                s.wait_disk(name, "live")
            with s.qmp() as q:
                for i in range(100):
                    q.cmd("checkpoint-create", name="c%d" % i, disks=["many"])
                for i in range(20):
                    q.cmd("block-dirty-bitmap-add", node="many", name="b%d" % i)
            for name, case in (("none", "nothing else"), ("many", "100 checkpoints, 20 bitmaps")):
                uri = s.disks[name].uri
                write_iops(uri, seconds=1), write_iops(peer, seconds=1)
                out.append((case, ratio(pairs(args, lambda u=uri: write_iops(u, seconds=args.seconds),
                                              lambda: write_iops(peer, seconds=args.seconds)))))
        return out


class tracked_sequential:
    what = "1M sequential writes, tracked"
    against = "nbdkit file plugin"
    bound = ">= 0.98"

    @staticmethod
    def run(args):
        def speed(uri):
            return fio(uri, rw="write", bs="1M", depth=4, seconds=args.seconds)["write"]["bw"]

        with Bench() as s:
            peer = s.file_plugin("peer", s.shm("peer.img", G, True))
            disk = s.varve_disk("vda", s.shm("vda.img", G, True))
            speed(disk.uri), speed(peer)
            return [("", ratio(pairs(args, lambda: speed(disk.uri), lambda: speed(peer))))]


SCATTERED = ("--number_ios=65536",)  # of 4 GiB: nearly each hits another 64K, QEMU's unit


class Preserving:
    """A disk of 4 GiB, each run of writes with backups that have just begun."""

    def __init__(self, s):
        self.s = s
        self.disk = s.varve_disk("vda", s.shm("vda.img", 4 * G, True))
        if not s.daemon:
            s.start_daemon()
        s.wait_disk("vda", "live")
        self.scratch_used = 0

    def iops(self, backups=1):
        with self.s.qmp() as q:
            idents = []
            for _ in range(backups):
                idents.append(self.s.backup(q, "vda", export="e%d" % self.s.count))
                fio(self.disk.uri, "--number_ios=64")  # so that no two begin at one boundary
            got = write_iops(self.disk.uri, *SCATTERED)
            self.scratch_used = self.scratch()
            for ident in idents:
                q.cmd("backup-end", id=ident)
        wait_for("the end of freeing", lambda: self.scratch() == 0)  # nobody else's time
        return got

    def scratch(self):
        return sum(os.stat(os.path.join(d, f)).st_blocks * 512
                   for d, _, names in os.walk(self.s.scratch) for f in names)


class preserving_random:
    what = "4K random writes, each block to be preserved"
    against = "the same untracked"
    bound = ">= 0.5"

    @staticmethod
    def run(args):
        with Bench() as s:
            peer = s.file_plugin("peer", s.shm("peer.img", 4 * G, True))
            p = Preserving(s)
            with Warm():
                p.iops(), write_iops(peer, *SCATTERED)
                return [("", ratio(pairs(args, p.iops, lambda: write_iops(peer, *SCATTERED))))]


class preserving_beside_qemu:
    what = "4K random writes, each block to be preserved"
    against = "qemu-storage-daemon, copy-before-write"
    bound = ">= 4"

    @staticmethod
    def run(args):
        with Bench() as s:
            image = s.shm("q.img", 4 * G, True)
            p = Preserving(s)

            def qemu():
                scratch = s.shm("q.scratch", 4 * G)
                q = s.qemu("cbw", image, scratch)
                try:
                    return write_iops(q.uri, *SCATTERED)
                finally:
                    q.stop()
                    os.unlink(scratch)  # each side leaves its memory to the next

            with Warm():
                p.iops(), qemu()
                return [("", ratio(pairs(args, p.iops, qemu)))]


class four_backups:
    what = "4K random writes, four backups of different instants"
    against = "with one"
    bound = ">= 0.95"

    @staticmethod
    def run(args):
        with Bench() as s:
            p = Preserving(s)
            with Warm():
                p.iops(4), p.iops(1)
                return [("", ratio(pairs(args, lambda: p.iops(4), lambda: p.iops(1))))]


class scratch_bytes:
    what = "scratch for each byte of 4K random writes"
    against = "bytes written by the guest"
    bound = "<= 1.1"

    @staticmethod
    def run(args):
        with Bench() as s:
            p = Preserving(s)
            p.iops()
            return [("", value([p.scratch_used / (65536 * 4 * K)]))]


def held_back(metrics):
    """ms, the bound of the histogram's bucket in which the 99th percentile lies."""
    name = "varve_freeze_pause_seconds"
    bounds = sorted(float(k.split('"')[1]) for k in metrics if k.startswith(name + "_bucket"))
    counts = {float(k.split('"')[1]): v for k, v in metrics.items() if k.startswith(name + "_bucket")}
    return min(b for b in bounds if counts[b] >= 0.99 * metrics[name + "_count"]) * 1e3


class pause:
    what = "longest write around a checkpoint, 16 TiB sparse, p99"
    against = "qemu-storage-daemon's transaction"
    bound = "<= 0.2"
    COUNT = 100  # of each turn: 1000 in ten rounds
    WINDOW = 0.05  # s: the same for all, and for the machine alone between them

    @staticmethod
    def run(args):
        size = 16 << 40
        with Bench() as s:
            disk, metrics = s.varve_disk("vda", s.shm("vda.img", size)), s.sock("metrics")
            s.start_daemon("--metrics", "unix:" + metrics)
            s.wait_disk("vda", "live")
            qemu = s.qemu("pause", s.shm("q.img", size))
            longest, nothing = ([], []), ([], [])
            with s.qmp() as ours, qemu.qmp() as theirs:
                def checkpoint(count):
                    ours.cmd("checkpoint-create", name="c%d" % count, disks=["vda"])
                    if count >= 8:
                        ours.cmd("checkpoint-delete", name="c%d" % (count - 8))

                def transaction(count):
                    actions = [{"type": "block-dirty-bitmap-add",
                                "data": {"node": "file", "name": "b%d" % count, "granularity": 65536}}]
                    if count:
                        actions.append({"type": "block-dirty-bitmap-disable",
                                        "data": {"node": "file", "name": "b%d" % (count - 1)}})
                    theirs.cmd("transaction", actions=actions)
                    if count >= 8:
                        theirs.cmd("block-dirty-bitmap-remove", node="file", name="b%d" % (count - 8))

                def around(guest, act):
                    """The slowest write of WINDOW seconds that begin with act()."""
                    guest.window()
                    ends = time.monotonic() + pause.WINDOW
                    act()
                    time.sleep(max(ends - time.monotonic(), 0))
                    return guest.window()

                for turn in range(args.rounds):
                    for sock, export, act, into, idle in (
                            (disk.sock, "", checkpoint, longest[0], nothing[0]),
                            (qemu.sock, "disk", transaction, longest[1], nothing[1])):
                        with Noticing(sock, export, G) as guest:
                            for i in range(pause.COUNT):
                                idle.append(around(guest, lambda: None))
                                into.append(around(guest, lambda: act(turn * pause.COUNT + i)))
            held = prometheus.samples(rawhttp.get(metrics, "/metrics")[2].decode())
        p99, idle = ([sorted(v)[len(v) * 99 // 100] for v in of] for of in (longest, nothing))
        own = value([p99[0]])
        own.update(own_bound="<= 1", unit="ms", all=longest[0])
        return [("", {"value": p99[0] / p99[1], "low": p99[0] / p99[1], "high": p99[0] / p99[1],
                      "ours": p99[0], "theirs": p99[1]}), ("in ms", own),
                ("in ms, no longer held back by varve than", dict(value([held_back(held)]), own_bound="<= 1", unit="ms")),
                ("in ms, with no checkpoint", dict(value([idle[0]]), own_bound="", unit="ms", all=nothing[0])),
                ("in ms, QEMU with no transaction", dict(value([idle[1]]), own_bound="", unit="ms"))]

ROWS = [tracked_random, tracked_sequential, preserving_random, preserving_beside_qemu, four_backups,
        scratch_bytes, pause]
