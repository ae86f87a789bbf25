# SPDX-License-Identifier: BSD-3-Clause
"""Somebody else who writes to an image."""
import os


def foreign_write(image, data=b"foreign", off=5 << 20):
    """What a mount or fsck on the host does: a plain write, and its time goes on."""
    was = os.stat(image).st_mtime_ns
    while os.stat(image).st_mtime_ns <= was + 50_000_000:
        with open(image, "r+b") as f:
            f.seek(off)
            f.write(data)
