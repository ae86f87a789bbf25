#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The oracle of test_point_in_time.py can tell: it takes a disk that stands still, and refuses one
that was copied while it was written, lacks a write, has one too many, or has a torn piece.

The code under test has no part in this: the disk is served by nbdkit's file plugin.
"""
import os
import time
from types import SimpleNamespace

from harness import M, Disk, Stack, can_connect, wait_for
from replay import Replay, Torn
from tap import main, rng, test
from writers import SECTOR, Content, Event, Guests

SIZE = 16 * M


class Plain:
    """Guests on a plain file, up to a moment at which they stand still."""

    def __init__(self, what, requests=300):
        self.s = Stack()
        self.random = rng(what)
        self.disk = Disk(self.s, "plain", self.s.image("plain.img", SIZE))
        p = self.s.spawn("nbdkit", ["nbdkit", "-f", "-U", self.disk.sock, "--exit-with-parent",
                                    "file", self.disk.image])
        wait_for("nbdkit", lambda: can_connect(self.disk.sock), p)
        self.guests = Guests(self.disk, SIZE, 4, self.random, largest=2 * M)
        wait_for("guests write", lambda: self.guests.progress() > requests or self.guests.errors)

    def still(self):
        self.guests.stop()
        called = time.monotonic_ns()
        return bytearray(self.s.content(self.disk.image)), called, time.monotonic_ns()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.guests.stop_now.set()
        self.s.__exit__(*exc)


def refused(plain, image, called, replied):
    try:
        Replay(plain.guests, bytes(SIZE)).check(image, called, replied)
    except Torn:
        return True
    return False


@test
def a_disk_that_stands_still_is_an_instant():
    with Plain("still") as p:
        image, called, replied = p.still()
        Replay(p.guests, bytes(SIZE)).check(image, called, replied)


@test
def a_disk_copied_while_it_is_written_is_none():
    """Copied in steps, guests being let on between them."""
    with Plain("smear") as p:
        called = time.monotonic_ns()
        image = bytearray()
        with open(p.disk.image, "rb") as f:
            while len(image) < SIZE:
                image += f.read(M)
                before = p.guests.progress()
                wait_for("guests go on", lambda: p.guests.progress() > before + 20)
        replied = time.monotonic_ns()
        p.guests.stop()
        assert refused(p, image, called, replied), "a smeared copy was taken for an instant"


@test
def one_lost_or_foreign_sector_is_seen():
    """Each change of one sector, to an older content, zeroes, or a bit of another: refused."""
    with Plain("sector") as p:
        image, called, replied = p.still()
        for _ in range(30):
            at = p.random.randrange(SIZE // SECTOR) * SECTOR
            bad = bytearray(image)
            kind = p.random.randrange(3)
            if kind == 0:
                bad[at:at + SECTOR] = bytes(SECTOR)
            elif kind == 1:
                other = p.random.randrange(SIZE // SECTOR) * SECTOR
                bad[at:at + SECTOR] = image[other:other + SECTOR]
            else:
                bad[at + p.random.randrange(SECTOR)] ^= 1 << p.random.randrange(8)
            assert bad == image or refused(p, bad, called, replied), "sector %d" % (at // SECTOR)


@test
def a_write_that_is_there_too_early_or_missing_is_seen():
    """The last request of a writer without the marker of another that was done before it was sent;
    and a cut before `called` or after `replied`."""
    with Plain("cut") as p:
        image, called, replied = p.still()
        log = p.guests.log
        assert refused(p, image, log[0].sent - 2, log[0].sent - 1), "an image from after the answer"
        done = max(e.mark_done for e in log)
        early = bytearray(SIZE)
        assert refused(p, early, done + 1, done + 2), "an empty image after the writes"
        # writer 0's work taken out of the image, everything else in it
        partial = Replay(p.guests, bytes(SIZE))
        partial._advance([0] + [10 ** 9] * 3)
        assert refused(p, partial.base, called, replied), "one writer's work is missing"


@test
def a_request_whose_marker_is_out_may_be_overwritten_later():
    """writer 0   write 0+2, done | (the image is taken) marker
    writer 1                                                       write 0+4: not in
    The image has writer 0's sectors; that writer 1's lies over them is no tear."""
    first, second = Event(0, 1, "write", 0, 2 * SECTOR), Event(1, 1, "write", 0, 4 * SECTOR)
    first.sent, first.done, first.mark_sent, first.mark_done = 1, 2, 5, 6
    second.sent, second.done, second.mark_sent, second.mark_done = 7, 8, 9, 10
    guests = SimpleNamespace(count=2, markers=SIZE // 2, content=Content(SIZE), log=[first, second])
    image = bytearray(SIZE)
    image[:2 * SECTOR] = guests.content.of(first)
    Replay(guests, bytes(SIZE)).check(image, 3, 4)
    image[SECTOR] ^= 1
    assert refused(SimpleNamespace(guests=guests), image, 3, 4), "a torn piece under another"


if __name__ == "__main__":
    main()
