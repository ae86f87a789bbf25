# SPDX-License-Identifier: BSD-3-Clause
"""What tests of released ranges and of scratch share: a disk whose blocks differ, errors by their text,
and what preimages take."""
import errno
import os

from harness import K, M
from nbdclient import NBDError
from qmpclient import QMPError

SIZE, BLOCK = 16 * M, 64 * K
GRAIN = {"granularity": "64K"}


def content(tag):
    """Every block another byte, none zero."""
    return b"".join(bytes([(i * 7 + tag) % 255 + 1]) * BLOCK for i in range(SIZE // BLOCK))


def one(q, ident):
    for b in q.cmd("query-backups"):
        if b["id"] == ident:
            return b
    raise AssertionError("no backup " + ident)


def disk_of(q, ident):
    return one(q, ident)["disks"][0]


def on_disk(s, name="vda"):
    """Bytes that the file system gives to the disk's preimages."""
    folder = os.path.join(s.state, name)
    return sum(os.stat(os.path.join(folder, f)).st_blocks * 512
               for f in os.listdir(folder) if f.endswith(".scratch"))


def assert_error(c, off, length, number, text):
    try:
        c.read(off, length)
    except NBDError as e:
        assert e.errno == number and text in e.text, (off, e.errno, e.text)
        return
    raise AssertionError("offset %d could be read" % off)


def assert_released(c, first, last):
    for off in range(first, last, BLOCK):
        assert_error(c, off, BLOCK, errno.EIO, "was released")


def refused(function, number):
    try:
        function()
    except NBDError as e:
        assert e.errno == number, e
        return
    raise AssertionError("was not refused")


def cmd_refused(q, text, name, **args):
    try:
        q.cmd(name, **args)
    except QMPError as e:
        assert text in e.desc, e.desc
        return
    raise AssertionError("%s was not refused" % name)


def disk_content(disk):
    with open(disk.image, "rb") as f:
        return f.read()
