#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""varve map: the picture and the JSON, of nbdkit's, qemu-nbd's and odd servers' exports."""
import fcntl
import json
import os
import struct
import subprocess
import termios

from fakenbd import FakeNbd
from harness import K, M, VARVE, Folder, good, main, refused, run, test

B0 = "qemu:dirty-bitmap:b0"
ALLOCATION = "base:allocation"
SIZE = 64 * M
MARKS = {
    ALLOCATION: [(M, 0), (SIZE - M, 3)],
    B0: [(64 * K, 1), (M - 64 * K, 0), (4 * K, 1), (SIZE - M - 4 * K, 0)],
}


def fake(d, contexts=None, size=SIZE):
    return FakeNbd(d("sock"), b"", MARKS if contexts is None else contexts, size=size)


@test
def picture_of_a_64M_disk_has_64K_cells():
    with Folder() as d, fake(d):
        lines = good("map", d.uri()).splitlines()
        assert len(lines) == 16 + 5, lines
        assert lines[0] == "      0 #" + "." * 15 + "+" + "-" * 47, lines[0]
        assert lines[1] == "     4M " + "-" * 64, lines[1]
        assert lines[16] == B0 + ", 64K a cell", lines
        assert lines[17].startswith("# dirty 68K in 2 extents"), lines
        assert lines[18] == ". clean 960K" and lines[19] == "- hole  62.9M", lines


@test
def without_a_dirty_bitmap_the_allocation_is_drawn():
    with Folder() as d, fake(d, {ALLOCATION: MARKS[ALLOCATION]}):
        lines = good("map", d.uri()).splitlines()
        assert lines[0] == "      0 " + "#" * 16 + "-" * 48, lines
        assert "# data 1M in 1 extents" in lines[17], lines


@test
def named_context_is_drawn_and_a_missing_one_refused():
    with Folder() as d, fake(d):
        assert ALLOCATION in good("map", d.uri(), "--context", ALLOCATION)
        refused("map", d.uri(), "--context", "qemu:dirty-bitmap:b1", says=["b1", "offers", B0])
        refused("map", d.uri(), "--context", "qemu:allocation-depth", says="--json")


@test
def json_is_nbdinfos():
    with Folder() as d:
        run("qemu-img", "create", "-q", "-f", "qcow2", d("q.qcow2"), "64M")
        run("qemu-img", "bitmap", "--add", "-g", "65536", d("q.qcow2"), "b0")
        run("qemu-io", "-f", "qcow2", "-c", "write 1M 200k", "-c", "write -z 5M 1M", d("q.qcow2"))
        d.qemu_nbd("q.qcow2", "b0")
        for context in (B0, ALLOCATION):
            ours = good("--json", "map", d.uri(), "--context", context)
            theirs = run("nbdinfo", "--json", "--map=" + context, d.uri()).out
            assert json.loads(ours) == json.loads(theirs), (ours, theirs)
        assert json.loads(good("--json", "map", d.uri())) == \
            json.loads(run("nbdinfo", "--json", "--map=" + B0, d.uri()).out)


@test
def json_of_a_context_nobody_knows_has_no_description():
    with Folder() as d, fake(d, {"x:y": [(SIZE, 7)]}):
        told = json.loads(good("--json", "map", d.uri(), "--context", "x:y"))
        assert told == [{"offset": 0, "length": SIZE, "type": 7}], told


@test
def empty_and_tiny_disks_are_drawn():
    for size in (0, 1, 513):
        with Folder() as d, fake(d, {ALLOCATION: [(size, 0)]}, size):
            told = good("map", d.uri(), "--context", ALLOCATION)
            assert "(%d bytes)" % size in told, told
            told = json.loads(good("--json", "map", d.uri(), "--context", ALLOCATION))
            assert [e["length"] for e in told] == ([size] if size else []), told


@test
def huge_disks_are_drawn():
    size = (1 << 63) - 512
    status = lambda ctx, off, n: [(n, 1 if off == 0 else 0)]
    with Folder() as d:
        with FakeNbd(d("sock"), b"", {B0: []}, size=1 << 43, status=status):
            assert "8T" in good("map", d.uri())
        with FakeNbd(d("sock"), b"", {B0: []}, size=size, status=lambda c, o, n: []):
            refused("map", d.uri(), says="block status")


def on_terminal(d, columns, **env):
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    p = subprocess.Popen([VARVE, "map", d.uri()], stdout=slave,
                         env={**os.environ, "TERM": "xterm", **env})
    os.close(slave)
    told = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:
            break
        if not piece:
            break
        told += piece
    os.close(master)
    assert p.wait(60) == 0
    return told.decode().replace("\r\n", "\n").splitlines()


@test
def terminal_gets_its_width_and_colours_and_utf8():
    with Folder() as d, fake(d):
        lines = on_terminal(d, 140, LC_ALL="C.UTF-8", NO_COLOR="")
        assert "\x1b[31m\u2588" in lines[0], lines[0]
        plain = on_terminal(d, 140, LC_ALL="C.UTF-8", NO_COLOR="1")
        assert all("\x1b" not in x for x in plain) and "\u2588" in plain[0], plain[0]
        assert len(plain[0]) == 139, plain[0]
        ascii_ = on_terminal(d, 140, LC_ALL="C", NO_COLOR="1")
        assert all(x.isascii() for x in ascii_), ascii_
        narrow = on_terminal(d, 20, LC_ALL="C", NO_COLOR="1")
        rows = [i for i, x in enumerate(narrow) if x.startswith(B0)][0]
        assert 8 <= rows <= 16 and all(len(x) < 20 for x in narrow[:rows]), narrow


main()
