# SPDX-License-Identifier: BSD-3-Clause
"""What the measurements run: varve's disks, and its peers on the same machine.

Images and scratch are on tmpfs, so that what is compared is the cost in processor time.
"""
import json
import mmap
import os
import random
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "e2e"))

from crowd import certificates  # noqa: E402
from harness import BUILD, G, K, M, Stack, can_connect, run, wait_for  # noqa: E402
from qmpclient import QMP  # noqa: E402

PAUSE = os.path.join(BUILD, "tests/bench/pause")
WALK = os.path.join(BUILD, "tests/bench/walk")


class Bench(Stack):
    """A Stack with peers beside it, and images on tmpfs."""

    def __init__(self):
        super().__init__()
        self.state = os.path.join(self.short, "state")  # a sync of the log is the disk's time, not ours
        self.images = os.path.join(self.short, "images")
        self.scratch = os.path.join(self.short, "scratch")
        os.mkdir(self.images)
        os.mkdir(self.scratch)
        self.count = 0

    def spawn(self, name, cmd, env=None, **popen):
        """Each in a session of its own, as systemd starts it: the kernel gives sessions equal shares of a
        processor (sched_autogroup), and in one of our own a server would take its guest's."""
        return super().spawn(name, cmd, env, start_new_session=True, **popen)

    def shm(self, name, size, full=False):
        """An image on tmpfs: sparse, or full of data that is not zero."""
        path = os.path.join(self.images, name)
        with open(path, "wb") as f:
            f.truncate(size)
            if full:
                piece = random.randbytes(M)
                for off in range(0, size, M):
                    os.pwrite(f.fileno(), piece, off)
        return path

    def varve_disk(self, name, path, **params):
        return self.serve(name, path, scratch_dir=self.scratch, **params)

    def sock(self, name):
        return os.path.join(self.socks, name + ".sock")

    def file_plugin(self, name, path):
        """nbdkit's own file plugin on an image; where a client finds it."""
        sock = self.sock(name)
        p = self.spawn(name, ["nbdkit", "-f", "-U", sock, "--exit-with-parent", "file", path])
        wait_for("nbdkit's file plugin", lambda: can_connect(sock), p)
        return "nbd+unix:///?socket=" + sock

    def qemu(self, name, path, scratch=None):
        """qemu-storage-daemon on an image, copying before it writes when there is a scratch."""
        q = Qemu(self, name)
        q.start(path, scratch)
        return q

    def file_plugin_tls(self, path, folder):
        """The same over TLS; its TCP port."""
        for port in range(20000 + random.randrange(20000), 65000):
            p = self.spawn("nbdkit-tls", ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "--tls=require",
                                          "--tls-certificates=" + folder, "--exit-with-parent", "file", path])
            try:
                wait_for("nbdkit over TLS", lambda: tcp_answers(port), p)
                return port
            except RuntimeError:
                self.started.remove(p)  # somebody else has the port
        raise RuntimeError("no TCP port is free")

    def certificates(self):
        return certificates(self.path("tls"))

    def backup(self, q, name, **disk):
        self.count += 1
        ident = "b%d" % self.count
        q.cmd("backup-begin", id=ident, disks=[dict(disk, disk=name)])
        return ident


class Qemu:
    def __init__(self, bench, name):
        self.bench, self.name = bench, name
        self.sock = bench.sock("q-" + name)
        self.control = bench.sock("qmp-" + name)
        self.process = None
        self.uri = "nbd+unix:///disk?socket=" + self.sock
        self.view = "nbd+unix:///snap?socket=" + self.sock

    def start(self, path, scratch):
        node = "cbw" if scratch else "file"
        cmd = ["qemu-storage-daemon",
               "--chardev", "socket,path=%s,server=on,wait=off,id=c" % self.control, "--monitor", "chardev=c",
               "--blockdev", "driver=file,filename=%s,node-name=file,discard=unmap" % path]
        if scratch:
            cmd += ["--blockdev", "driver=file,filename=%s,node-name=scratch,discard=unmap" % scratch,
                    "--blockdev", "driver=copy-before-write,node-name=cbw,file=file,target=scratch",
                    "--blockdev", "driver=snapshot-access,node-name=snap,file=cbw"]
        cmd += ["--nbd-server", "addr.type=unix,addr.path=%s,max-connections=0" % self.sock,
                "--export", "type=nbd,id=e,node-name=%s,name=disk,writable=on" % node]
        if scratch:
            cmd += ["--export", "type=nbd,id=s,node-name=snap,name=snap,writable=off"]
        self.process = self.bench.spawn("qemu-" + self.name, ["setpriv", "--pdeathsig", "TERM"] + cmd)
        wait_for("qemu-storage-daemon", lambda: can_connect(self.sock), self.process)

    def qmp(self):
        return QMP(self.control)

    def stop(self):
        self.bench.stop(self.process)


def tcp_answers(port):
    import socket
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
        return True
    except OSError:
        return False


class Warm:
    """Free memory that the machine need not fetch.  A virtual machine may give free memory back to its host
    (free page reporting), which then takes 3 us for each new page, more than all else that is measured here.
    It gives whole blocks of pages; so of some memory every other page is kept, and those between are free.
    For whoever makes new pages, on both sides."""

    def __init__(self, nbytes=1 * G):
        self.pages = mmap.mmap(-1, 2 * nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.pages.madvise(mmap.MADV_NOHUGEPAGE)
        for off in range(0, 2 * nbytes, mmap.PAGESIZE):
            self.pages[off] = 1
        for off in range(0, 2 * nbytes, 2 * mmap.PAGESIZE):
            self.pages.madvise(mmap.MADV_DONTNEED, off, mmap.PAGESIZE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pages.close()


# --- what is done to them -------------------------------------------------------------------------

def fio(uri, *options, rw="randwrite", bs="4k", depth=32, seconds=None):
    """One fio job over NBD; its JSON."""
    cmd = ["setsid", "--wait", "fio", "--name=w", "--ioengine=nbd", "--uri=" + uri, "--rw=" + rw, "--bs=" + bs,
           "--iodepth=%d" % depth, "--output-format=json", "--randrepeat=0"]
    if seconds:
        cmd += ["--time_based", "--runtime=%d" % seconds]
    out = run(cmd + list(options)).stdout
    return json.loads(out[out.index("{"):])["jobs"][0]


def write_iops(uri, *options, **what):
    return fio(uri, *options, **what)["write"]["iops"]


def timed(cmd):
    """Seconds that a command took; its output is not ours."""
    began = time.monotonic()
    subprocess.run(cmd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, timeout=600)
    return time.monotonic() - began


def walk(sock, export, context, bits):
    """Seconds, extents and dirty bytes of a whole block status."""
    r = run([WALK, sock, export, context, str(bits)])
    extents, nbytes, _, ns = map(int, r.stdout.split())
    return int(ns) / 1e9, extents, nbytes


class Noticing:
    """tests/bench/pause: a guest that says how long its slowest write of a window took."""

    def __init__(self, sock, export, limit):
        self.p = subprocess.Popen([PAUSE, sock, export, str(limit)], text=True, stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE)
        if self.p.stdout.readline() != "ready\n":
            raise RuntimeError("pause did not begin")

    def window(self):
        """Milliseconds of the slowest write since the last call."""
        self.p.stdin.write("\n")
        self.p.stdin.flush()
        longest, _ = map(int, self.p.stdout.readline().split())
        return longest / 1e6

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.p.stdin.close()
        self.p.wait(60)
        self.p.stdout.close()


def scatter(uri, count):
    """4 KiB writes at random places of a disk."""
    fio(uri, "--number_ios=%d" % count, "--norandommap=1")


__all__ = ["Bench", "Qemu", "Noticing", "Warm", "fio", "write_iops", "timed", "wait_for", "walk", "scatter", "G", "K", "M", "run", "QMP"]
