# SPDX-License-Identifier: BSD-3-Clause
"""The situation that most tests of clients start from: an incremental backup that is running."""
import backups
from harness import K, M, Stack

SIZE, BLOCK = 64 * M, 64 * K
BITMAP = "qemu:dirty-bitmap:backup-vda"
ALLOC = "base:allocation"


class Incremental:
    """A disk with data, holes, and a running incremental backup whose dirty ranges hold data,
    zeroed and trimmed blocks.  `write` may do more before the backup begins.  `live` is the disk's
    content (the first 64 MiB of it) at the boundary."""

    def __init__(self, size=SIZE, granularity="64K", write=None, full=False):
        self.s = Stack()
        try:
            self.disk = self.s.start("vda", size, granularity=granularity)
            with self.disk.connect() as c:
                for off in range(0, min(size, SIZE) // 2, 16 * M):
                    c.write(off, b"\x5a" * (8 * M))
                self.q = self.s.qmp()
                self.q.cmd("checkpoint-create", name="base", disks=["vda"])
                c.write(0, b"new data")
                c.write(5 * BLOCK, b"n" * BLOCK)
                c.trim(BLOCK * 10, BLOCK)
                c.zero(BLOCK * 20, BLOCK)
                c.zero(size - 2 * BLOCK, BLOCK)    # where a hole was
                c.trim(size - BLOCK, BLOCK)
                if write:
                    write(c)
                self.live = b"".join(c.read(o, min(16 * M, size - o))
                                     for o in range(0, min(size, SIZE), 16 * M))
            disk = {"disk": "vda"} if full else {"disk": "vda", "since": "base"}
            self.id, self.answer = backups.begin(self.q, [disk])
        except BaseException:
            self.s.close(show=True)
            raise

    def __enter__(self):
        return self

    def __exit__(self, kind, value, tb):
        try:
            if kind is None:
                backups.end(self.q, self.id)
            self.q.close()
        finally:
            self.s.__exit__(kind, value, tb)

    def connect(self, contexts=(), export="vda"):
        return self.s.connect(export, contexts)
