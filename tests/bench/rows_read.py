# SPDX-License-Identifier: BSD-3-Clause
"""What appliances get: full pulls, block status, and what the guest feels meanwhile."""
import os
import subprocess
import tempfile

from bench import Skipped, pairs, ratio
from peers import Bench, G, M, fio, scatter, timed, walk


def copy(uri):
    return timed(["nbdcopy", "--connections=4", uri, "null:"])


class full_pull:
    what = "full pull, nbdcopy with 4 connections"
    against = "nbdkit file plugin"
    bound = ">= 1.0"

    @staticmethod
    def run(args):
        with Bench() as s:
            image = s.shm("vda.img", 4 * G, True)
            s.varve_disk("vda", image)
            peer = s.file_plugin("peer", image)
            s.start_daemon()
            s.wait_disk("vda", "live")
            with s.qmp() as q:
                s.backup(q, "vda")
            copy(s.uri("vda")), copy(peer)
            return [("", ratio([(b, a) for a, b in pairs(args, lambda: copy(s.uri("vda")), lambda: copy(peer))]))]


class full_pull_tls:
    what = "full pull over TLS, nbdcopy with 4 connections"
    against = "nbdkit file plugin over TLS"
    bound = ">= 1.0"

    @staticmethod
    def run(args):
        with Bench() as s:
            folder = s.certificates()
            image = s.shm("vda.img", 2 * G, True)
            s.varve_disk("vda", image)
            port = s.file_plugin_tls(image, folder)
            s.start_daemon("--listen", "unix:" + s.nbd, "--listen", "tcp:127.0.0.1:0", "--tls", "on",
                           "--tls-certificates", folder)
            s.wait_disk("vda", "live")
            with s.qmp() as q:
                s.backup(q, "vda")
                mine = q.cmd("query-nbd-server")["listeners"][1].rpartition(":")[2]

            def pull(port, export):
                return copy("nbds://localhost:%s/%s?tls-certificates=%s" % (port, export, folder))

            pull(mine, "vda"), pull(port, "")
            return [("", ratio([(b, a) for a, b in pairs(args, lambda: pull(mine, "vda"),
                                                         lambda: pull(port, ""))]))]


class latency_beside_pull:
    what = "guest's p99 write latency while an appliance pulls"
    against = "qemu-storage-daemon, copy-before-write and snapshot-access"
    bound = "<= 0.5"

    @staticmethod
    def run(args):
        def p99(guest, view):
            """ms; the view is pulled over and over while the guest writes."""
            puller = subprocess.Popen(["sh", "-c", 'while :; do nbdcopy --connections=4 "$0" null: || exit; done', view],
                                      start_new_session=True, stderr=subprocess.DEVNULL)
            try:
                job = fio(guest, depth=1, seconds=max(args.seconds, 3))
            finally:
                os.killpg(puller.pid, 15)
                puller.wait()
            return job["write"]["clat_ns"]["percentile"]["99.000000"] / 1e6

        with Bench() as s:
            disk = s.varve_disk("vda", s.shm("vda.img", 2 * G, True))
            s.start_daemon()
            s.wait_disk("vda", "live")
            image = s.shm("q.img", 2 * G, True)

            def ours():
                with s.qmp() as q:
                    ident = s.backup(q, "vda")
                    got = p99(disk.uri, s.uri("vda"))
                    q.cmd("backup-end", id=ident)
                return got

            def theirs():
                q = s.qemu("cbw", image, s.shm("q.scratch", 2 * G))
                try:
                    return p99(q.uri, q.view)
                finally:
                    q.stop()

            ours(), theirs()
            return [("", ratio(pairs(args, ours, theirs)))]


class block_status:
    what = "block status of 8 TiB, 200000 scattered dirty blocks"
    against = "qemu-storage-daemon (32-bit client)"
    bound = "<= 1.0"

    @staticmethod
    def run(args):
        size, count = 8 << 40, 200000
        with Bench() as s:
            disk = s.varve_disk("vda", s.shm("vda.img", size))
            s.start_daemon()
            s.wait_disk("vda", "live")
            q = s.qemu("status", s.shm("q.img", size))
            with s.qmp() as c:
                c.cmd("checkpoint-create", name="c", disks=["vda"])
            with q.qmp() as c:
                c.cmd("block-dirty-bitmap-add", node="file", name="b", granularity=65536)
            scatter(disk.uri, count)
            scatter(q.uri, count)
            with q.qmp() as c:
                c.cmd("block-dirty-bitmap-disable", node="file", name="b")
                c.cmd("block-export-add", type="nbd", id="d", name="dirty", bitmaps=["b"], **{"node-name": "file"})
            with s.qmp() as c:
                c.cmd("backup-begin", id="b", disks=[{"disk": "vda", "since": "c"}])

            def ours(bits):
                return walk(s.nbd, "vda", "qemu:dirty-bitmap:backup-vda", bits)[0]

            def theirs():
                return walk(q.sock, "dirty", "qemu:dirty-bitmap:b", 32)[0]

            out = []
            for bits, bound in ((32, "<= 1.0"), (64, "<= 0.5")):
                ours(bits), theirs()
                got = ratio(pairs(args, lambda n=bits: ours(n), theirs))
                got["own_bound"] = bound
                out.append(("%d-bit client" % bits, got))
        return out


class guest_pages:
    what = "guest's pages that a full pull pushes out"
    against = "qemu-storage-daemon"
    bound = "< 1.0"

    @staticmethod
    def run(args):
        """A cgroup smaller than the disk holds servers and guest: how much of the guest's working set is
        still cached after a pull, by mincore."""
        del args
        group = tempfile.mkdtemp(prefix="varve-bench-", dir=_memory_cgroup())
        try:
            return [("", _guest_pages(group))]
        finally:
            os.rmdir(group)


def _memory_cgroup():
    for base, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        try:
            probe = tempfile.mkdtemp(prefix="varve-probe-", dir=base)
        except OSError:
            continue
        there = os.path.exists(os.path.join(probe, limit)) and os.access(os.path.join(probe, limit), os.W_OK)
        os.rmdir(probe)
        if there:
            return base
    raise Skipped("no memory cgroup can be made here")


def _limit(group, nbytes):
    for name in ("memory.limit_in_bytes", "memory.max"):
        path = os.path.join(group, name)
        if os.path.exists(path):
            with open(path, "w") as f:
                f.write(str(nbytes))


def _enter(group, pid):
    with open(os.path.join(group, "cgroup.procs"), "w") as f:
        f.write(str(pid))


def _leave(group):
    """Whoever is in it goes to its parent: a group with processes cannot be removed."""
    with open(os.path.join(group, "cgroup.procs")) as f:
        pids = f.read().split()
    for pid in pids:
        try:
            _enter(os.path.dirname(group), pid)
        except OSError:
            pass


def _guest_pages(group):
    size, working = G, 128 * M
    lost = {}
    for who in ("ours", "theirs"):
        with Bench() as s:
            _limit(group, 512 * M)
            image = s.path("disk.img")  # on a real disk: tmpfs is no cache
            with open(image, "wb") as f:
                for _ in range(size // M):
                    f.write(os.urandom(M))
                f.flush()
                os.fsync(f.fileno())
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if who == "ours":
                disk = s.serve("vda", image)
                s.start_daemon()
                s.wait_disk("vda", "live")
                processes, guest, view = [disk.process, s.daemon], disk.uri, s.uri("vda")
                with s.qmp() as q:
                    s.backup(q, "vda")
            else:
                scratch = s.path("q.scratch")
                with open(scratch, "wb") as f:
                    f.truncate(size)
                q = s.qemu("pages", image, scratch)
                processes, guest, view = [q.process], q.uri, q.view
            try:
                for p in processes:
                    _enter(group, p.pid)
                for _ in range(3):  # the guest's working set is read until it is warm
                    fio(guest, "--size=%d" % working, rw="read", bs="256k", depth=4)
                before = _cached_range(image, working)
                copy(view)
                after = _cached_range(image, working)
                lost[who] = max(before - after, 1) / max(before, 1)
            finally:
                _leave(group)
    return {"value": lost["ours"] / lost["theirs"], "low": lost["ours"], "high": lost["theirs"],
            "ours": lost["ours"], "theirs": lost["theirs"]}


def _cached_range(path, nbytes):
    """Bytes of the first nbytes that are in the page cache, by mincore."""
    import ctypes
    import mmap
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "rb") as f, mmap.mmap(f.fileno(), nbytes, prot=mmap.PROT_READ | mmap.PROT_WRITE,
                                          flags=mmap.MAP_PRIVATE) as m:
        pages = nbytes // mmap.PAGESIZE
        vec = (ctypes.c_ubyte * pages)()
        anchor = ctypes.c_char.from_buffer(m)
        rc = libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(nbytes), vec)
        del anchor
        if rc:
            raise OSError(ctypes.get_errno(), "mincore")
        return sum(v & 1 for v in vec) * mmap.PAGESIZE


ROWS = [full_pull, full_pull_tls, latency_beside_pull, block_status, guest_pages]
