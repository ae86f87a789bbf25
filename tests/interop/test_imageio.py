#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""ovirt-imageio's NBD client, where its source is."""
import os

from clients import client, main
from history import BIG, BLOCK
from imageio_jobs import imageio_copies
from reach import TCP, UNIX


@client("ovirt-imageio", "full copies by its NBD backend, 4 workers", [UNIX, TCP])
def imageio_makes_full_copies(h, r):
    """Onto files that hold something else: what is zero in the backup is written, too."""
    for export in ("vda-full", "vda"):
        model = h.model(export)[0]
        target = h.s.image("copy.img", model.size, b"\xee" * model.size)
        zero, size = imageio_copies(h, r, export, target, False)
        assert size == model.size and zero == sum(n for _, n, f in model.allocation() if f)
        h.expect_copy(export, target)


@client("ovirt-imageio", "an incremental copy by its NBD backend onto yesterday's", [UNIX, TCP])
def imageio_makes_todays_of_yesterdays(h, r):
    """Also of a disk of more than 4 GiB."""
    small, big = h.yesterdays_copy(), h.s.image("big.copy", BIG)
    with open(big, "r+b") as f:
        for b, data in h.monday["big"].blocks.items():
            os.pwrite(f.fileno(), data, b * BLOCK)
    for export, target in (("vda", small), ("big", big)):
        dirty, size = imageio_copies(h, r, export, target, True)
        assert [dirty, size] == [sum(n for _, n in h.tuesday[export].changed()), h.tuesday[export].size]
        h.expect_copy(export, target)


if __name__ == "__main__":
    main()
