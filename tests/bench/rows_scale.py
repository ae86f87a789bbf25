# SPDX-License-Identifier: BSD-3-Clause
"""What large disks and many of them cost: no peer is asked, the bounds are absolute."""
import os
import subprocess
import time

from bench import value
from peers import Bench, G, K, M, fio, scatter

T = 1 << 40


class pulled_bytes:
    what = "bytes to pull after scattered 4K writes, 512 GiB"
    against = "bytes written (QEMU's default: 16)"
    bound = "<= 1.05"
    COUNT = 20000

    @staticmethod
    def run(args):
        del args
        with Bench() as s:
            disk = s.varve_disk("vda", s.shm("vda.img", 512 * G))
            s.start_daemon()
            s.wait_disk("vda", "live")
            with s.qmp() as q:
                q.cmd("checkpoint-create", name="c", disks=["vda"])
                scatter(disk.uri, pulled_bytes.COUNT)
                dirty = q.cmd("backup-begin", disks=[{"disk": "vda", "since": "c"}])["disks"][0]["dirty-bytes"]
        return [("", value([dirty / (pulled_bytes.COUNT * 4 * K)]))]


class union:
    what = "what changed since 100 checkpoints ago, 16 TiB"
    against = "-"
    bound = "<= 100"
    unit = "ms"

    @staticmethod
    def run(args):
        with Bench() as s:
            disk = s.varve_disk("vda", s.shm("vda.img", 16 * T))
            s.start_daemon()
            s.wait_disk("vda", "live")
            took, guest = [], []
            with s.qmp() as q:
                for i in range(100):
                    q.cmd("checkpoint-create", name="c%d" % i, disks=["vda"])
                    scatter(disk.uri, 1000)
                for _ in range(args.rounds):
                    began = time.monotonic()
                    q.cmd("backup-estimate", disks=[{"disk": "vda", "since": "c0"}])
                    took.append((time.monotonic() - began) * 1e3)
                    began = time.monotonic()
                    ident = s.backup(q, "vda", since="c0")
                    guest.append((time.monotonic() - began) * 1e3)
                    q.cmd("backup-end", id=ident, success=False)
        begun = dict(value(guest), own_bound="")  # a boundary, and two unions, one for what is free now
        return [("backup-estimate", value(took)), ("backup-begin", begun)]


class daemon_memory:
    what = "daemon's memory, 10 disks of 1 TiB, 10 clients pulling"
    against = "-"
    bound = "<= 96"
    unit = "MiB"

    @staticmethod
    def run(args):
        names = ["vd" + c for c in "abcdefghij"]
        with Bench() as s:
            for name in names:
                image = s.shm(name + ".img", T)
                with open(image, "r+b") as f:
                    for off in range(0, T, T // 256):
                        os.pwrite(f.fileno(), b"x" * M, off)
                s.varve_disk(name, image)
            s.start_daemon()
            for name in names:
                s.wait_disk(name, "live")
            with s.qmp() as q:
                for name in names:
                    q.cmd("checkpoint-create", name="c-" + name, disks=[name])
                    scatter(s.disks[name].uri, 2000)
                q.cmd("backup-begin", id="b", disks=[{"disk": n, "since": "c-" + n} for n in names])
            pullers = [subprocess.Popen(["nbdcopy", "--connections=4", s.uri(n), "null:"]) for n in names]
            highest = []
            while any([p.poll() is None for p in pullers]) and len(highest) < 50 * args.seconds:
                highest.append(resident(s.daemon.pid))
                time.sleep(0.1)
            for p in pullers:
                p.terminate()
                p.wait()
        return [("", value(highest, max))]


def resident(pid):
    """MiB that are its own: what it maps of shared files is not."""
    with open("/proc/%d/status" % pid) as f:
        return sum(int(line.split()[1]) for line in f if line.startswith("RssAnon:")) / 1024


class start:
    what = "start of the plugin, 16 TiB"
    against = "-"
    bound = "<= 100"
    unit = "ms"

    @staticmethod
    def run(args):
        clean, crashed = [], []
        with Bench() as s:
            image = s.shm("vda.img", 16 * T)

            def begin():
                began = time.monotonic()
                disk = s.varve_disk("vda", image)
                return disk, (time.monotonic() - began) * 1e3

            disk, _ = begin()
            for _ in range(args.rounds):
                fio(disk.uri, "--number_ios=2000")
                s.stop(disk.process)
                disk, took = begin()
                clean.append(took)
                fio(disk.uri, "--number_ios=2000")
                s.kill(disk.process)
                disk, took = begin()
                crashed.append(took)
        after = value(crashed)
        after["own_bound"] = "<= 1000"
        return [("after a clean stop", value(clean)), ("after kill -9", after)]


ROWS = [pulled_bytes, union, daemon_memory, start]
