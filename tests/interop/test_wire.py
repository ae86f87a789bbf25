#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What clients.md says that real clients put on the wire, overheard between them and us."""
from clients import client, main, run, version
from harness import G, K, M
from history import ALLOC, BIG, SIZE, bitmap
from imageio_jobs import imageio_copies
from nbdclient import CMD_BLOCK_STATUS, CMD_READ, F_REQ_ONE, INFO_BLOCK_SIZE
from nbdclient import OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY
from overheard import Overheard
from qemu_map import dirty_by_qemu, image
from reach import UNIX
from vnb_jobs import backup, vnb

OPT_EXTENDED_HEADERS = 11
CONTEXT = bitmap("backup-vda")


def newer(package, number):
    """Is the package of that version, or a later one?"""
    return tuple(int(n) for n in version(package).split("-")[0].split(".")[:2]) >= number


def numbers(c):
    return [number for number, _ in c.options]


def expect_libnbd(c):
    """libnbd asks for extended headers first, as of 1.18; GO with block sizes."""
    assert (numbers(c)[0] == OPT_EXTENDED_HEADERS) == newer("libnbd-bin", (1, 18)), c.options
    assert OPT_STRUCTURED_REPLY in numbers(c) or newer("libnbd-bin", (1, 18)), c.options
    assert INFO_BLOCK_SIZE in c.wanted(), c.options


@client("libnbd-bin", "overheard: nbdinfo --map asks for one context over the whole disk", [UNIX])
def nbdinfo_asks_once(h, r):
    with Overheard(h) as o:
        run(h, ["nbdinfo", "--map=" + CONTEXT, "--json", r.uri(o.h, "vda")])
    c = o.connections[-1]
    expect_libnbd(c)
    for asked in c.contexts(OPT_SET_META_CONTEXT):  # 1.22: before INFO, and once more before GO
        assert asked == [CONTEXT], c.options
    assert c.of(CMD_BLOCK_STATUS) == [(0, 0, SIZE)] and not c.of(CMD_READ), c.requests


@client("libnbd-bin", "overheard: nbdcopy asks for 128 MiB, reads 256 KiB, over several connections",
        [UNIX])
def nbdcopy_reads_pieces(h, r):
    with Overheard(h) as o:
        run(h, ["nbdcopy", "--threads=4", r.uri(o.h, "big"), h.s.path("copy.img")])
    h.expect_copy("big", h.s.path("copy.img"))
    readers = [c for c in o.connections if c.of(CMD_READ)]
    assert len(o.connections) > 1, "CAN_MULTI_CONN is not taken up"
    for c in readers:
        expect_libnbd(c)
        assert c.contexts(OPT_SET_META_CONTEXT) == [[ALLOC]], c.options
        assert {n for _, _, n in c.of(CMD_READ)} <= {n * 64 * K for n in range(1, 5)}, c.requests
    asked = [n for c in o.connections for _, _, n in c.of(CMD_BLOCK_STATUS)]
    assert max(asked) == 128 * M, asked


@client("qemu-utils", "overheard: qemu-img map asks for one context, one extent at a time", [UNIX])
def qemu_asks_for_one_extent(h, r):
    with Overheard(h) as o:
        dirty_by_qemu(h, r, "vda", CONTEXT, at=o.h)
    c = o.connections[-1]
    assert c.contexts(OPT_SET_META_CONTEXT) == [[CONTEXT]], c.options
    assert INFO_BLOCK_SIZE in c.wanted(), c.options
    flags = {flags for flags, _, _ in c.of(CMD_BLOCK_STATUS)}
    assert flags == {F_REQ_ONE}, c.requests


@client("qemu-utils", "overheard: qemu-img convert reads 2 MiB at most", [UNIX])
def qemu_reads_pieces(h, r):
    target = h.s.path("copy.img")
    with Overheard(h) as o:
        objects, opts = image(o.h, r, "vda")
        run(h, ["qemu-img", "convert", *objects, "-O", "raw", *opts, target])
    h.expect_copy("vda", target)
    assert max(n for c in o.connections for _, _, n in c.of(CMD_READ)) == 2 * M


@client("virtnbdbackup", "overheard: the bitmap (2.x: and the allocation), the whole disk, one connection",
        [UNIX])
def virtnbdbackup_asks_for_the_whole_disk(h, r):
    target = h.yesterdays_copy()
    with Overheard(h) as o:
        job = backup(h, r, "vda", "inc")
        job["socket"] = o.path
        vnb(h, [job], {target: [0]})
    h.expect_copy("vda", target)
    c, = [c for c in o.connections if c.requests]
    asked = c.contexts(OPT_SET_META_CONTEXT)[-1]
    assert CONTEXT in asked and (ALLOC in asked) == newer("virtnbdbackup", (2, 0)), asked
    assert INFO_BLOCK_SIZE in c.wanted(), c.options
    assert {(flags, n) for flags, _, n in c.of(CMD_BLOCK_STATUS)} == {(0, SIZE)}, c.requests
    assert max(n for _, _, n in c.of(CMD_READ)) <= 32 * M


@client("virtnbdbackup", "overheard: of more than 4 GiB the most that 32 bits can say", [UNIX])
def virtnbdbackup_asks_for_most(h, r):
    target = h.s.image("restored.img", BIG)
    with Overheard(h) as o:
        job = backup(h, r, "big", "inc")
        job["socket"] = o.path
        vnb(h, [job], {target: [0]})
    asked = [n for c in o.connections for _, _, n in c.of(CMD_BLOCK_STATUS)]
    assert max(asked) == 4 * G - 1, asked


@client("ovirt-imageio", "overheard: LIST with QEMU's wildcard, GO without information requests, 4 MiB",
        [UNIX])
def imageio_says_what_it_wants(h, r):
    """Five connections for four workers; FIXED_NEWSTYLE without NO_ZEROES."""
    target = h.yesterdays_copy()
    with Overheard(h) as o:
        imageio_copies(h, r, "vda", target, True, at=o.h)
    h.expect_copy("vda", target)
    assert len(o.connections) == 5, len(o.connections)
    for c in o.connections:
        assert c.flags == 1 and c.wanted() == [], (c.flags, c.options)
        assert c.contexts(OPT_LIST_META_CONTEXT) == [["qemu:dirty-bitmap:"]], c.options
        assert c.contexts(OPT_SET_META_CONTEXT) == [[ALLOC, "qemu:allocation-depth", CONTEXT]], c.options
        assert all(n <= 4 * M for _, _, n in c.of(CMD_READ)), c.requests


@client("ovirt-imageio", "overheard: extents are asked for in steps of 2 GiB", [UNIX])
def imageio_asks_in_steps(h, r):
    target = h.s.image("copy.img", BIG)
    with Overheard(h) as o:
        imageio_copies(h, r, "big", target, False, at=o.h)
    h.expect_copy("big", target)
    asked = [n for c in o.connections for _, _, n in c.of(CMD_BLOCK_STATUS)]
    assert max(asked) == 2 * G, asked


if __name__ == "__main__":
    main()
