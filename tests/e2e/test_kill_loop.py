#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 under load, again and again: of nbdkit, of the daemon, of both, and of their starts.

Guests write at full speed while checkpoints, backups and transactions of bitmaps go on; then one of
the programs dies, at its n-th call that changes a file (die.c) or when guests have come so far.
After each restart

  * each command that was under way has happened or has not, what was refused has not;
  * the chain is completed by an incremental backup, and is the image, byte for byte;
  * what it called dirty is what guests wrote, neither less nor more; so are the bitmaps;
  * open backups are the disk at their instant, which only the guests' logs tell (replay.py).

KILLS (default 20; LONG=1: 500) of nbdkit and daemon, those in starts not counted.  The seed is printed.
"""
from dying import Dying
from harness import K
from killing import Loop
from tap import diag, main, number, rng, test

KILLS = number("KILLS", 20, 500)


def kills(block, count, name):
    with Dying() as s:
        loop = Loop(s, rng(name), block)
        for i in range(count):
            try:
                loop.once(i)
            except BaseException:
                diag(loop.what)
                loop.guests.stop_now.set()
                raise
        diag("%d kills, %d more in starts; %d open backups were the disk at their instant" % (
            count, loop.starts_killed, loop.instants))


@test
def killed_at_random_moments_nothing_is_lost_with_small_blocks():
    """Blocks of 4 KiB; two thirds of the kills."""
    kills(4 * K, KILLS - KILLS // 3, "kills-4K")


@test
def killed_at_random_moments_nothing_is_lost_with_large_blocks():
    """Blocks of 64 KiB, in which many requests meet; a third of the kills."""
    kills(64 * K, KILLS // 3, "kills-64K")


if __name__ == "__main__":
    main()
