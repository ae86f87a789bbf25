# SPDX-License-Identifier: BSD-3-Clause
"""Two disks with a known history, and what every client must find in them.

    monday     data and holes; a checkpoint, and a full backup      exports vda-full, big-full
               (written, zeroed and trimmed, also across blocks)
    tuesday    an incremental backup since monday                   exports vda, big
               (the guest goes on writing)

Both backups run at once, so all exports can be read in any order and as often as a test likes.  The
second disk is sparse and larger than 4 GiB, as disks are, and lengths of 32 bits are not.

The truth comes from what was written here: content, dirty blocks, and which blocks hold data.
Nothing of it is asked of the programs under test.
"""
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "e2e"), os.path.join(HERE, "..", "protocol")]

import backups  # noqa: E402
from harness import G, K, M, Stack  # noqa: E402
from nbdclient import HOLE, ZERO  # noqa: E402
from tap import rng  # noqa: E402

SIZE, BIG, BLOCK = 64 * M, 5 * G, 64 * K
EXPORTS = ("vda", "vda-full", "big", "big-full")
ALLOC = "base:allocation"
USER, KEY = "appliance", "5a" * 32


def bitmap(name):
    return "qemu:dirty-bitmap:" + name


class Model:
    """A disk's content: only blocks that hold data are kept."""

    def __init__(self, size, blocks=(), dirty=()):
        self.size, self.blocks, self.dirty = size, dict(blocks), set(dirty)

    def copy(self):
        return Model(self.size, self.blocks, self.dirty)

    def write(self, off, data):
        for b in range(off // BLOCK, (off + len(data) - 1) // BLOCK + 1):
            lo, hi = max(off, b * BLOCK), min(off + len(data), (b + 1) * BLOCK)
            block = bytearray(self.blocks.get(b, bytes(BLOCK)))
            block[lo - b * BLOCK:hi - b * BLOCK] = data[lo - off:hi - off]
            self.blocks[b] = bytes(block)
            self.dirty.add(b)

    def clear(self, off, n):
        for b in range(off // BLOCK, (off + n - 1) // BLOCK + 1):
            lo, hi = max(off, b * BLOCK), min(off + n, (b + 1) * BLOCK)
            self.dirty.add(b)
            if hi - lo == BLOCK:
                self.blocks.pop(b, None)
            elif b in self.blocks:
                block = bytearray(self.blocks[b])
                block[lo - b * BLOCK:hi - b * BLOCK] = bytes(hi - lo)
                self.blocks[b] = bytes(block)

    def block(self, b):
        return self.blocks.get(b, bytes(BLOCK))

    def content(self):
        return b"".join(map(self.block, range(self.size // BLOCK)))

    def difference(self, path):
        """The offset where a copy differs, or None.  Holes of the copy are not read."""
        if os.path.getsize(path) != self.size:
            return min(os.path.getsize(path), self.size)
        with open(path, "rb", buffering=0) as f:
            for b, data in sorted(self.blocks.items()):
                if os.pread(f.fileno(), BLOCK, b * BLOCK) != data:
                    return b * BLOCK
            off = 0
            while True:
                try:
                    off = os.lseek(f.fileno(), off, os.SEEK_DATA)
                except OSError:  # ENXIO: only a hole is left
                    return None
                b = off // BLOCK
                if b not in self.blocks and any(os.pread(f.fileno(), BLOCK, b * BLOCK)):
                    return b * BLOCK
                off = (b + 1) * BLOCK

    def _extents(self, flags_of):
        out = []
        for b in range(self.size // BLOCK):
            flags = flags_of(b)
            if out and out[-1][2] == flags:
                out[-1][1] += BLOCK
            else:
                out.append([b * BLOCK, BLOCK, flags])
        return [tuple(e) for e in out]

    def allocation(self, full=False):
        """base:allocation, [(offset, length, flags)]: a hole only where nothing is dirty."""
        return self._extents(lambda b: 0 if b in self.blocks else
                             ZERO if full or b in self.dirty else HOLE | ZERO)

    def bitmap(self, full=False):
        return self._extents(lambda b: int(full or b in self.dirty))

    def changes(self):
        """varve:changes: bit 0 dirty, bit 1 dirty and zeroes."""
        return self._extents(lambda b: 0 if b not in self.dirty else 1 if b in self.blocks else 3)

    def changed(self):
        return [(off, n) for off, n, flags in self.bitmap() if flags]


class Guest:
    """Writes to a disk through nbdkit, and to its model."""

    def __init__(self, connection, model):
        self.c, self.model = connection, model

    def write(self, off, data):
        self.c.write(off, data)
        self.model.write(off, data)

    def zero(self, off, n):
        self.c.zero(off, n)
        self.model.clear(off, n)

    def trim(self, off, n):
        self.c.trim(off, n)
        self.model.clear(off, n)


def before_monday(vda, big, random):
    for off, n in ((0, 2 * M), (8 * M, 8 * M), (20 * M + 12345, 5000), (33 * M, BLOCK),
                   (33 * M + 2 * BLOCK, BLOCK), (SIZE - BLOCK, BLOCK)):
        vda.write(off, random.randbytes(n))
    for off, n in ((0, M), (4 * G - M, 2 * M), (BIG - 2 * BLOCK, 2 * BLOCK)):
        big.write(off, random.randbytes(n))


def before_tuesday(vda, big, random):
    vda.write(M + 100, random.randbytes(512))           # one sector more or less, inside old data
    vda.write(30 * M, random.randbytes(M))              # where a hole was
    vda.write(40 * M - 7, random.randbytes(14))         # across two blocks that were holes
    vda.trim(9 * M, M)
    vda.zero(12 * M, M)
    vda.zero(10 * M + 1000, 70000)                      # across blocks; their rest stays
    vda.zero(50 * M, M)                                 # where a hole was
    vda.trim(52 * M, BLOCK)
    vda.trim(SIZE - BLOCK, BLOCK)                       # the last block
    big.trim(0, BLOCK)
    big.write(4 * G - 32 * K, random.randbytes(BLOCK))  # across 4 GiB
    big.zero(4 * G + 512 * M, M)
    big.write(BIG - 100, random.randbytes(100))


def after_tuesday(vda, big, random):
    """What no backup may show."""
    vda.write(0, random.randbytes(256 * K))
    vda.zero(8 * M, M)
    vda.write(30 * M, random.randbytes(M))
    vda.trim(33 * M, BLOCK)
    big.write(4 * G - M, random.randbytes(M))


class History:
    """Everything runs when it was made.  `monday` and `tuesday`: {disk: Model}."""

    def __init__(self, credentials=None):
        random = rng("history")
        self.credentials = credentials
        self.s = Stack()
        try:
            self._start(random)
        except BaseException:
            self.s.close(show=True)
            raise

    def _start(self, random):
        s = self.s
        disks = [s.serve(name, s.image(name + ".img", size), granularity="64K")
                 for name, size in (("vda", SIZE), ("big", BIG))]
        s.start_daemon("--listen", "unix:" + s.nbd, "--listen", "tcp:127.0.0.1:0", *self._tls())
        for d in disks:
            s.wait_disk(d.name, "live")
        with open(s.daemon.log) as f:
            self.port = int(f.read().split("listens at tcp:127.0.0.1:")[1].split()[0])
        self.q = s.qmp()
        with disks[0].connect() as c0, disks[1].connect() as c1:
            guests = Guest(c0, Model(SIZE)), Guest(c1, Model(BIG))
            before_monday(*guests, random)
            self.q.cmd("checkpoint-create", name="monday", disks=["vda", "big"])
            full, _ = backups.begin(self.q, [{"disk": "vda", "export": "vda-full"},
                                             {"disk": "big", "export": "big-full"}])
            self.monday = {g: m.model.copy() for g, m in zip(("vda", "big"), guests)}
            for g in guests:
                g.model.dirty = set()
            before_tuesday(*guests, random)
            live = b"".join(c0.read(off, 16 * M) for off in range(0, SIZE, 16 * M))
            assert live == guests[0].model.content(), "the model of vda is wrong"
            since, _ = backups.begin(self.q, [{"disk": d, "since": "monday"}
                                              for d in ("vda", "big")])
            self.tuesday = {g: m.model.copy() for g, m in zip(("vda", "big"), guests)}
            after_tuesday(*guests, random)
        self.running = full, since

    def _tls(self):
        if not self.credentials:
            return []
        return ["--tls", "require", "--tls-verify-peer", "--tls-certificates",
                self.credentials.server, "--tls-psk", self.credentials.psk]

    def model(self, export):
        """(what an export shows, whether all of it counts as dirty)"""
        name, _, kind = export.partition("-")
        return (self.monday if kind == "full" else self.tuesday)[name], kind == "full"

    def expect_copy(self, export, path):
        """A copy that a client made is the export's; it is removed."""
        at = self.model(export)[0].difference(path)
        assert at is None, "%s: the copy differs at %d" % (export, at)
        os.unlink(path)

    def yesterdays_copy(self):
        """Monday's full backup of vda, in a file."""
        return self.s.image("full.img", SIZE, self.monday["vda"].content())

    def drop(self, name):
        """A disk that a test has added: its server ends, and what was known of it is forgotten."""
        disk = self.s.disks[name]
        if disk.process.poll() is None:
            self.s.stop(disk.process)
        self.s.wait_disk(name, "offline")
        self.q.cmd("disk-forget", disk=name)
        os.unlink(disk.image)

    def close(self, show=False):
        try:
            if not show:
                for ident in self.running:
                    backups.end(self.q, ident)
            self.q.close()
        finally:
            wrong = self.s.close(show)
        return wrong
