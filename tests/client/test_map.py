#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""varve map: the picture, the JSON and the SVG, of nbdkit's, qemu-nbd's and odd servers' exports."""
import fcntl
import json
import os
import struct
import subprocess
import termios
import xml.etree.ElementTree

from fakenbd import FakeNbd
from harness import K, M, VARVE, Folder, good, main, misused, refused, run, test

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
        assert "# data 1M in 1 extent, + partly" in lines[17], lines


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


# What changed since the older one: 0..4M; since the newer one: 1M..2M and 3M..3.5M.
TWO = {
    "qemu:dirty-bitmap:old": [(4 * M, 1), (SIZE - 4 * M, 0)],
    "qemu:dirty-bitmap:new": [(M, 0), (M, 1), (M, 0), (512 * K, 1), (SIZE - 7 * M // 2, 0)],
    ALLOCATION: [(32 * M, 0), (32 * M, 3)],
}


@test
def two_bases_are_compared():
    with Folder() as d, fake(d, TWO):
        lines = good("map", d.uri(), "--since", "old", "--until", "new").splitlines()
        assert lines[0] == "      0 " + "o" * 16 + "#" * 16 + "o" * 16 + "#" * 8 + "o" * 8, lines[0]
        assert lines[1] == "     4M " + "." * 64 and lines[8] == "    32M " + "-" * 64, lines
        assert lines[16:] == ["since old, until new, 64K a cell", "# since new 1.5M in 2 extents, + partly",
                              "o until new 2.5M in 3 extents, : partly", ". clean 28M", "- hole  32M",
                              "  size  64M (67108864 bytes)"], lines
        told = json.loads(good("--json", "map", d.uri(), "--since", "old", "--until", "new"))
        assert [(e["offset"], e["type"], e["description"]) for e in told] == [
            (0, 1, "until"), (M, 3, "since"), (2 * M, 1, "until"), (3 * M, 3, "since"),
            (7 * M // 2, 1, "until"), (4 * M, 0, "clean")], told
        assert sum(e["length"] for e in told) == SIZE, told


@test
def a_comparison_wants_the_older_one_first_and_both():
    with Folder() as d, fake(d, TWO):
        refused("map", d.uri(), "--since", "new", "--until", "old", says=["'old'", "'new'", "older"])
        refused("map", d.uri(), "--since", "old", "--until", "none", says="none")
        misused("map", d.uri(), "--until", "new", says="--since")
        misused("map", d.uri(), "--since", "old", "--until", "old", says="older")


def drawn(path):
    """The texts of an SVG, and how many cells there are of each look."""
    root = xml.etree.ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("viewBox"), root.attrib
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    paths = list(root.iter("{http://www.w3.org/2000/svg}path"))
    return texts, {e.get("class"): e.get("d").count("M") for e in reversed(paths)}


@test
def svg_is_one_file_with_the_cells_title_legend_and_sizes():
    with Folder() as d, fake(d):
        d.write("disk.svg", b"what was there before")
        assert good("map", d.uri(), "--svg", d("disk.svg")) == ""
        texts, cells = drawn(d("disk.svg"))
        assert cells == {"m": 8, "mp": 1, "c": 120, "h": 8192 - 129}, cells
        assert d.uri() in texts and B0 + ", 64M (67108864 bytes), 8K a cell" in texts, texts
        assert texts[-3:] == ["dirty 68K in 2 extents (right: partly)", "clean 960K", "hole  62.9M"], texts
        content = d.read("disk.svg")
        assert b"prefers-color-scheme:dark" in content and b"href" not in content and b"url(" not in content
        assert json.loads(good("--json", "map", d.uri(), "--svg", d("j.svg"))) == \
            json.loads(good("--json", "map", d.uri()))
        assert d.read("j.svg") == content
    with Folder() as d, fake(d, TWO):
        good("map", d.uri(), "--since", "old", "--until", "new", "--svg", d("two.svg"))
        texts, cells = drawn(d("two.svg"))
        assert cells == {"m": 192, "mp": 1, "e": 320, "ep": 1, "c": 3584, "h": 4096}, cells
        assert "since new 1.5M in 2 extents (right: partly)" in texts, texts
    for size in (0, 1, 1 << 43):
        with Folder() as d, FakeNbd(d("sock"), b"", {ALLOCATION: []}, size=size, status=lambda c, o, n: [(n, 0)]):
            good("map", d.uri(), "--svg", d("s.svg"))
            drawn(d("s.svg"))


@test
def svg_says_any_name_as_it_is():
    for name, shown in (("a<b>&\"'</text>", "a<b>&\"'</text>"), ("\u00e9\u2588", "\u00e9\u2588"),
                        ("a\x1b[31m\x01", "a?[31m?"), ("\uffffx", "???x"), (b"\xff\xe9", "??")):
        name = name.encode() if isinstance(name, str) else name
        context = (B0.encode() + name).decode("utf-8", "surrogateescape")
        with Folder() as d, fake(d, {context: [(M, 1)]}, M):
            good("map", d.uri(), "--context", context, "--svg", d("s.svg"))
            texts, _ = drawn(d("s.svg"))
            assert any(t.startswith(B0 + shown + ", 1M") for t in texts), (name, texts)


@test
def svg_replaces_files_only_and_leaves_nothing_beside_them():
    with Folder() as d, fake(d):
        os.mkfifo(d("fifo"))
        os.symlink(d("fifo"), d("link"))
        for name in ("fifo", "link", "."):
            refused("map", d.uri(), "--svg", d(name), says="not a file")
        refused("map", d.uri(), "--svg", d("none/x.svg"), says="none/x.svg")
        with open(d("victim"), "w") as f:
            f.write("mine")
        os.symlink(d("victim"), d("x.svg.tmp"))  # somebody else's, in /tmp
        good("map", d.uri(), "--svg", d("x.svg"))
        assert sorted(os.listdir(d.path)) == ["fifo", "link", "sock", "victim", "x.svg"], os.listdir(d.path)
        with open(d("victim")) as f:
            assert f.read() == "mine"


main()
