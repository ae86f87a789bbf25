# SPDX-License-Identifier: BSD-3-Clause
"""What an appliance has after each of its backups: a whole image, made of the first full backup and of
what every later one called dirty; and what guests are known to have written, to compare that with."""
import time

import backups


def blocks(off, length, block):
    return range(off // block, (off + length - 1) // block + 1)


class Ledger:
    """Requests of guests that have come and gone: (offset, length, sent, done), None: not known to
    have been done.  Times are of CLOCK_MONOTONIC."""

    def __init__(self, block):
        self.block, self.entries = block, []

    def add(self, off, length, sent, done):
        self.entries.append((off, length, sent, done))

    def take(self, guests):
        """The whole log of guests that have ended."""
        for e in guests.log:
            if e.sent:
                self.add(e.off, e.len, e.sent, e.done)
            if e.mark_sent:
                self.add(guests.markers + e.writer * 512, 512, e.mark_sent, e.mark_done)

    def since(self, called, replied, until=None):
        """Blocks that were surely, and that were maybe, written after an instant between the two (and
        before another one, `until`)."""
        sure, maybe = set(), set()
        end_called, end_replied = until or (1 << 63, 1 << 63)
        for off, length, sent, done in self.entries:
            if (done is None or done > called) and sent < end_replied:
                maybe.update(blocks(off, length, self.block))
            if done is not None and sent > replied and done < end_called:
                sure.update(blocks(off, length, self.block))
        return sure, maybe

    def forget(self, before):
        self.entries = [e for e in self.entries if e[3] is None or e[3] > before]


class Backup:
    """One that was begun between two instants; its bytes once they have been read."""

    def __init__(self, ident, since, export):
        self.id, self.since, self.export, self.checkpoint = ident, since, export, "k-" + ident
        self.called, self.replied = time.monotonic_ns(), None
        self.image = self.dirty = None

    def begin(self, q):
        disk = {"disk": "vda", "export": self.export}
        if self.since:
            disk["since"] = self.since
        backups.begin(q, [disk], id=self.id, checkpoint=self.checkpoint)
        self.replied = time.monotonic_ns()
        return self

    def pull(self, where, connections=2):
        image = backups.pull(where, self.export, connections)
        if self.image is None:
            self.dirty = backups.dirty(where, self.export, backups.DIRTY + "backup-vda")
            self.image = image
        at = backups.first_difference(image, self.image)
        assert at is None, "open backup %s changed at %d" % (self.id, at)


class Chain:
    """The appliance's side.  `last` is its last successful backup, or None."""

    def __init__(self, stack, block):
        self.s, self.block, self.count, self.last = stack, block, 0, None
        self.image = None        # what the appliance has: built, never copied from a view as a whole
        self.ledger = Ledger(block)

    def new(self, full=False):
        self.count += 1
        ident = "b%d" % self.count
        return Backup(ident, None if full or not self.last else self.last.checkpoint, ident)

    def succeeded(self, b, base):
        """What it has with a backup that has been read and has ended well."""
        self.image = backups.apply(base, b.image, b.dirty) if b.since else bytearray(b.image)
        self.last = b

    def complete(self, q, content, exact=True, what=""):
        """One more backup of a disk that nobody writes to; what the appliance has then is the image.
        exact: nothing is dirty that nobody wrote.  Returns (dirty bytes, bytes that differ)."""
        b = self.new().begin(q)
        b.pull(self.s.nbd)
        at = backups.first_difference(b.image, content)
        assert at is None, "%s: %s differs from the image at %d" % (what, b.id, at)
        got = {n for off, length in b.dirty for n in blocks(off, length, self.block)}
        healed = backups.apply(self.image, content, b.dirty) if b.since else content
        at = backups.first_difference(healed, content)
        assert at is None, "%s: block %d (at %d) differs, but is clean since %s" % (
            what, at // self.block, at, b.since)
        if b.since:
            sure, maybe = self.ledger.since(self.last.called, self.last.replied)
            assert sure <= got, "%s: written, but clean since %s: %s" % (
                what, b.since, sorted(sure - got)[:5])
            if exact:
                assert got <= maybe, "%s: dirty since %s, but not written: %s" % (
                    what, b.since, sorted(got - maybe)[:5])
        old = self.image if self.image is not None else bytes(len(content))
        differ = sum(self.block for off in range(0, len(content), self.block)
                     if old[off:off + self.block] != content[off:off + self.block])
        backups.end(q, b.id)
        gone = self.last
        self.succeeded(b, self.image)
        if gone:
            q.cmd("checkpoint-delete", name=gone.checkpoint)
        return sum(n for _, n in b.dirty), differ
