#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What a comparison or an appliance reads does not stay in the page cache, and what a guest has there is not pushed
out."""
import ctypes
import errno
import mmap
import os
import shutil
import subprocess

from harness import K, M, Stack
from jobs import diffed
from tap import Skip, main, rng, test

SIZE = 32 * M

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def cached(path):
    """The file's pages that are in memory, seen through a mapping that is never touched."""
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        at = libc.mmap(None, size, 0, mmap.MAP_SHARED, f.fileno(), 0)
        assert at and at != ctypes.c_void_p(-1).value, ctypes.get_errno()
        there = (ctypes.c_ubyte * ((size + mmap.PAGESIZE - 1) // mmap.PAGESIZE))()
        assert libc.mincore(at, size, there) == 0, ctypes.get_errno()
        libc.munmap(at, size)
    return {i for i, v in enumerate(there) if v & 1}


def have_cached(path, pages):
    """Nothing else of the file is in memory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if len(cached(path)) * mmap.PAGESIZE == SIZE:
            raise Skip("pages of this file system are memory")
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for page in pages:
            os.pread(fd, 1, page * mmap.PAGESIZE)
    finally:
        os.close(fd)
    return cached(path)


@test
def a_comparison_leaves_the_page_cache_as_it_was():
    """Of the disk and of the copy: single pages, a run, the first and the last one; with the disk served and
    with nobody serving it."""
    random, last = rng("pages"), SIZE // mmap.PAGESIZE - 1
    with Stack() as s:
        disk = s.start("vda", SIZE, granularity="64K")
        image, copy = disk.image, s.path("copy.img")
        with disk.connect() as c:
            c.write(0, random.randbytes(SIZE))
            c.flush()
            shutil.copyfile(image, copy)
            c.write(100 * K, b"differs")
            c.flush()
        for served in (True, False):
            if not served:
                s.stop(disk.process)
                s.wait_disk("vda", "offline")
            pages = [set(random.sample(range(last), 40)) | {0, last} | set(range(1000, 1300)) for _ in range(2)]
            before = [have_cached(image, pages[0]), have_cached(copy, pages[1])]
            assert pages[0] <= before[0] and pages[1] <= before[1] and len(before[0]) < last // 2
            with s.qmp() as q:
                diffed(q, "b%d" % served, copy)
            for name, was in (image, before[0]), (copy, before[1]):
                now = cached(name)
                assert now == was, "%s: %d pages more, %d fewer" % (name, len(now - was), len(was - now))


def needs_dontcache(path):
    """Else what is read at once, where memory has it, makes an older kernel read the rest ahead."""
    with open(path, "rb") as f:
        try:
            os.preadv(f.fileno(), [bytearray(1)], 0, 0x80)
        except OSError as e:
            if e.errno != errno.EOPNOTSUPP:
                raise
            raise Skip("no RWF_DONTCACHE (Linux 6.14, ext4, xfs, btrfs)") from e


@test
def a_pull_leaves_the_page_cache_as_it_was():
    """A full one: what was not cached is not afterwards, what was is.  Where two read one folio at once the
    kernel may keep it."""
    random, last = rng("pull"), SIZE // mmap.PAGESIZE - 1
    with Stack() as s:
        disk = s.start("vda", SIZE, granularity="64K")
        with disk.connect() as c:
            c.write(0, random.randbytes(SIZE))
            c.flush()
        needs_dontcache(disk.image)
        pages = set(random.sample(range(last), 40)) | {0, last} | set(range(1000, 1300))
        with s.qmp() as q:
            q.cmd("backup-begin", id="b", disks=[{"disk": "vda"}])
            before = have_cached(disk.image, pages)
            assert pages <= before and len(before) < last // 2
            subprocess.run(["nbdcopy", s.uri("vda"), s.path("pulled.img")], check=True)
            now = cached(disk.image)
            assert before <= now and len(now - before) <= last // 50, "%d pages more, %d fewer" % (
                len(now - before), len(before - now))
        assert open(s.path("pulled.img"), "rb").read() == open(disk.image, "rb").read()


if __name__ == "__main__":
    main()
