# SPDX-License-Identifier: BSD-3-Clause
"""Guests that write self-describing sectors at full speed and keep a log of what they did.

Each writer is a thread with a connection of its own and one request under way at a time, so its log
is totally ordered.  Ranges of requests that are under way at the same time do not overlap (their
blocks often do), so the order of any two requests on one sector is the order of the log.

    sector:  "varve-e2e" w s n ...   writer, sequence number and sector number, repeated
    marker:  one sector a writer, all side by side in one block, rewritten after every request with
             its sequence number: it says for zeroes and trims what a sector's own content cannot
"""
import math
import random
import struct
import threading
import time

import nbdclient

SECTOR = 512
PIECE = 1 << 20   # a request is atomic at a boundary in pieces of at most this, at multiples of it


class Event:
    """One request in the log; times are CLOCK_MONOTONIC in ns, None while it has not happened."""
    __slots__ = ("writer", "seq", "kind", "off", "len", "sent", "done", "mark_sent", "mark_done")

    def __init__(self, writer, seq, kind, off, length):
        self.writer, self.seq, self.kind, self.off, self.len = writer, seq, kind, off, length
        self.sent = self.done = self.mark_sent = self.mark_done = None

    def __str__(self):
        return "writer %d seq %d: %s %d+%d" % (self.writer, self.seq, self.kind, self.off,
                                               self.len)


class Content:
    """What sectors hold, as a function of (writer, seq, sector): nothing is stored."""

    def __init__(self, size, magic=b"varve-e2"):
        n = size // SECTOR
        self.size, self.magic = size, magic
        # the bytes of all sector numbers, to be laid into a request with one strided store each
        self.lanes = [bytes((s >> shift) & 255 for s in range(n)) for shift in (0, 8, 16)]

    def data(self, writer, seq, off, length, magic=None):
        first, n = off // SECTOR, length // SECTOR
        unit = (magic or self.magic) + struct.pack("<IQI", writer, seq, 0) + b"...sect="  # 32 bytes
        buf = bytearray((unit * (SECTOR // 32)) * n)
        for i, lane in enumerate(self.lanes):
            numbers = lane[first:first + n]
            for at in (20, 20 + 256, 20 + 480):
                buf[at + i::SECTOR] = numbers
        return buf

    def of(self, event, off=None, length=None):
        """The content that an event gives (a part of) its range."""
        off = event.off if off is None else off
        length = event.len if length is None else length
        if event.kind != "write":
            return bytes(length)
        return self.data(event.writer, event.seq, off, length)


def describe(sector):
    """What a sector says of itself."""
    if not any(sector):
        return "zeroes"
    magic, writer, seq = bytes(sector[:8]), *struct.unpack("<IQ", sector[8:20])
    number = int.from_bytes(sector[20:23], "little")
    if magic not in (b"varve-e2", b"varve-mk"):
        return "foreign bytes %s..." % bytes(sector[:24]).hex()
    return "%s: writer %d seq %d sector %d" % (magic.decode(), writer, seq, number)


class Guests:
    """Starts writers on a disk; the log is theirs."""

    def __init__(self, disk, size, count, rng, largest=4 << 20, content=None):
        self.content = content or Content(size)
        self.size, self.count, self.largest = size, count, largest
        self.markers = size // 2 // PIECE * PIECE + 8 * SECTOR  # offset of the first marker
        self.log = []
        self.lock = threading.Lock()
        self.busy = [None] * count
        self.seqs = [0] * count
        self.stop_now = threading.Event()
        self.errors = []
        self.moved = 0
        self.threads = []
        for w in range(count):
            own = random.Random(rng.random())
            t = threading.Thread(target=self._guarded, args=(w, disk, own), daemon=True)
            self.threads.append(t)
            t.start()

    def _guarded(self, w, disk, own):
        try:
            with disk.connect() as c:
                while not self.stop_now.is_set():
                    self._step(w, c, own)
        except BaseException as e:  # reported by check()
            self.errors.append("writer %d: %r" % (w, e))

    def _claim(self, w, own):
        """A random range that no other writer has under way, entered in the log."""
        while True:
            top = math.log2(self.largest // SECTOR)
            length = min(int(2 ** own.uniform(0, top + 0.1)) * SECTOR, self.largest)
            off = own.randrange(0, (self.size - length) // SECTOR + 1) * SECTOR
            kind = own.choices(("write", "zero", "trim"), (16, 2, 2))[0]
            taken = [(self.markers, self.markers + self.count * SECTOR)]
            with self.lock:
                taken += [b for b in self.busy if b]
                if any(off < stop and start < off + length for start, stop in taken):
                    continue
                self.busy[w] = (off, off + length)
                self.seqs[w] += 1
                event = Event(w, self.seqs[w], kind, off, length)
                self.log.append(event)
                return event

    def _step(self, w, c, own):
        e = self._claim(w, own)
        data = self.content.of(e) if e.kind == "write" else None
        marker = self.content.data(w, e.seq, self.markers + w * SECTOR, SECTOR, b"varve-mk")
        e.sent = time.monotonic_ns()
        if e.kind == "write":
            c.write(e.off, data, nbdclient.F_FUA if own.random() < 0.02 else 0)
        elif e.kind == "zero":
            c.zero(e.off, e.len, nbdclient.F_NO_HOLE if own.random() < 0.5 else 0)
        else:
            c.trim(e.off, e.len)
        e.done = time.monotonic_ns()
        e.mark_sent = time.monotonic_ns()
        c.write(self.markers + w * SECTOR, marker)
        e.mark_done = time.monotonic_ns()
        self.moved += e.len
        with self.lock:
            self.busy[w] = None

    def check(self):
        """No guest request has failed."""
        if self.errors:
            raise AssertionError("guest I/O failed: " + "; ".join(self.errors))

    def progress(self):
        """How many requests the log has: it grows while guests go on."""
        with self.lock:
            return len(self.log)

    def stop(self):
        self.stop_now.set()
        for t in self.threads:
            t.join()
        self.check()

    def abandon(self):
        """The server has died: what was under way has failed, and nobody knows what came of it."""
        self.stop_now.set()
        for t in self.threads:
            t.join()

    def __enter__(self):
        return self

    def __exit__(self, kind, *rest):
        self.stop_now.set()
        for t in self.threads:
            t.join(60)
        if kind is None:
            self.check()
