#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The demo's writer, and the judge of its backups.  Knows nothing of varve.

The writer overwrites parts of one file inside the disk's file system ("the ledger"), in place, as a
database would, through NBD.  Write number n is a pure function of n: where, how long, what.  The next
one is sent only when the one before was answered, on another connection each time.  So the disk at
any instant is: the disk at the start, with writes 1..k replayed, for exactly one k.

(A write never crosses a multiple of 1 MiB of the disk: longer ones may be seen half done.)

The judge replays them onto its own copy of the start and compares every byte of the backup.

    ledger.py extents IMAGE PATH            blocks of the file, as JSON (debugfs reads them)
    ledger.py write URI EXTENTS PROGRESS    until SIGTERM
    ledger.py progress PROGRESS             "answered sent"
    ledger.py judge START REST BACKUP EXTENTS LOWEST HIGHEST
        START: what the ledger held before write 1;  REST: everything that is not the ledger
        the k of BACKUP must lie within LOWEST..HIGHEST
    ledger.py changed BEFORE AFTER URI      writes the 4K blocks in which AFTER differs through NBD
"""

import json
import mmap
import os
import re
import signal
import struct
import subprocess
import sys
import time

SECTOR = 512
MAGIC = 0x766172766501  # in the upper half of a sector's tag
LONGEST = 64  # sectors in one write
ATOM = 1 << 20
CONNECTIONS = 3
PER_SECOND = 1500


class Write:
    """Write number n of a ledger."""

    def __init__(self, n, ledger):
        x = (n * 0x9E3779B97F4A7C15 + 0x7F4A7C15) & 0xFFFFFFFFFFFFFFFF
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        x ^= x >> 31
        self.n = n
        self.count = 1 + x % LONGEST
        self.first = (x >> 8) % (ledger.nsectors - self.count)
        self.off, self.count = ledger.clip(self.first, self.count)
        self.kind = {0: "zero", 1: "trim"}.get((x >> 44) % 50, "data")

    def sector(self, i):
        """Content of sector i of the ledger after this write."""
        return struct.pack("<QQ", self.n, MAGIC << 16 | i & 0xFFFF) * (SECTOR // 16)

    def data(self):
        if self.kind != "data":
            return bytes(self.count * SECTOR)
        return b"".join(self.sector(i) for i in range(self.first, self.first + self.count))


class Ledger:
    """Maps sectors of the ledger to the disk: extents of (disk offset, length) in bytes."""

    def __init__(self, path):
        with open(path, encoding="ascii") as f:
            self.extents = json.load(f)
        self.nsectors = sum(length for _, length in self.extents) // SECTOR

    def clip(self, first, count):
        """Disk offset of sector `first`, and how many sectors from there one write may have."""
        for off, length in self.extents:
            n = length // SECTOR
            if first < n:
                off += first * SECTOR
                return off, min(count, n - first, (ATOM - off % ATOM) // SECTOR)
            first -= n
        raise IndexError(first)

    def read(self, path):
        with open(path, "rb") as f:
            parts = [os.pread(f.fileno(), length, off) for off, length in self.extents]
        return bytearray(b"".join(parts))


def cmd_extents(image, path):
    out = subprocess.run(["debugfs", "-R", f"dump_extents {path}", image], check=True, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    stats = subprocess.run(["debugfs", "-R", "stats -h", image], check=True, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    block = int(re.search(r"Block size:\s*(\d+)", stats).group(1))
    extents = []
    for line in out.splitlines():
        # Leaves only:  depth/ n  entry/ of   logical - logical   physical - physical   length
        m = re.match(r"\s*(\d+)/\s*(\d+)\s+\d+/\s*\d+\s+\d+ -\s+\d+\s+(\d+) -\s+(\d+)\s+(\d+)", line)
        if m and m.group(1) == m.group(2):
            extents.append([int(m.group(3)) * block, int(m.group(5)) * block])
    print(json.dumps(extents))


def open_progress(path):
    f = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(f, 4096)
    return mmap.mmap(f, 4096)


def cmd_write(uri, extents, progress):
    import nbd

    ledger = Ledger(extents)
    told = open_progress(progress)
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    handles = [nbd.NBD() for _ in range(CONNECTIONS)]
    for h in handles:
        h.connect_uri(uri)
    start, n = time.monotonic(), 0
    while not ended:
        n += 1
        w, h = Write(n, ledger), handles[n % CONNECTIONS]
        # Sent before answered, each a single aligned store.
        struct.pack_into("<Q", told, 8, n)
        if w.kind == "data":
            h.pwrite(w.data(), w.off)
        elif w.kind == "zero":
            h.zero(w.count * SECTOR, w.off)
        else:
            h.trim(w.count * SECTOR, w.off)
        struct.pack_into("<Q", told, 0, n)
        ahead = start + n / PER_SECOND - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
    for h in handles:
        h.flush()
        h.shutdown()


def cmd_progress(progress):
    print("%d %d" % struct.unpack_from("<QQ", open_progress(progress), 0))


def newest_write(state):
    """The highest number in any sector of the ledger."""
    newest = 0
    for at in range(0, len(state), SECTOR):
        n, tag = struct.unpack_from("<QQ", state, at)
        if tag == MAGIC << 16 | at // SECTOR & 0xFFFF and n > newest:
            newest = n
    return newest


def apply(state, write):
    at = write.first * SECTOR
    state[at:at + write.count * SECTOR] = write.data()


def rest_differs(ledger, rest, backup):
    """(bytes compared, offset of a difference or None) outside of the ledger."""
    size = os.path.getsize(rest)
    if os.path.getsize(backup) != size:
        return 0, min(size, os.path.getsize(backup))
    cuts = sorted(ledger.extents) + [[size, 0]]
    compared = at = 0
    with open(rest, "rb") as a, open(backup, "rb") as b:
        for off, length in cuts:
            while at < off:
                n = min(off - at, 1 << 20)
                x, y = os.pread(a.fileno(), n, at), os.pread(b.fileno(), n, at)
                if x != y:
                    return compared, at + next(i for i in range(n) if x[i] != y[i])
                compared += n
                at += n
            at = off + length
    return compared, None


def cmd_judge(start, rest, backup, extents, lowest, highest):
    ledger = Ledger(extents)
    lowest, highest = int(lowest), int(highest)
    state, got = ledger.read(start), ledger.read(backup)
    k = newest_write(got)
    for n in range(1, k + 1):
        apply(state, Write(n, ledger))
    # Zeroes carry no number: they may follow the newest write that does.
    while state != got:
        after = Write(k + 1, ledger)
        if after.kind == "data" or k >= highest:
            at = next(i for i in range(len(got)) if state[i] != got[i])
            sys.exit(f"NOT EQUAL: after {k} writes the ledger differs at its byte {at}")
        apply(state, after)
        k += 1
    compared, differs = rest_differs(ledger, rest, backup)
    if differs is not None:
        sys.exit(f"NOT EQUAL: differs at byte {differs} of the disk")
    if not lowest <= k <= highest:
        sys.exit(f"NOT THE INSTANT: the disk after {k} writes, but writes {lowest} to {highest} "
                 f"were under way")
    print(f"equal: the disk after write {k}, all {compared + len(got)} bytes of it; "
          f"the instant lay between writes {lowest} and {highest}")


def cmd_changed(before, after, uri):
    import nbd

    h = nbd.NBD()
    h.connect_uri(uri)
    written = 0
    with open(before, "rb") as a, open(after, "rb") as b:
        at = 0
        while True:
            x, y = a.read(1 << 20), b.read(1 << 20)
            if not y:
                break
            if x != y:
                for i in range(0, len(y), 4096):
                    if x[i:i + 4096] != y[i:i + 4096]:
                        h.pwrite(y[i:i + 4096], at + i)
                        written += len(y[i:i + 4096])
            at += len(y)
    h.flush()
    h.shutdown()
    print(f"wrote {written} bytes")


def main():
    commands = {"extents": cmd_extents, "write": cmd_write, "progress": cmd_progress,
                "judge": cmd_judge, "changed": cmd_changed}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    main()
