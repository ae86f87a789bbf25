#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""varve pull that was cut short and is run again: it goes on where it was if that is safe, else it begins
again.  tests/e2e/test_pull_resumes.py has it killed at each step, and the power lost."""
import json
import os
import random
import signal
import subprocess
import time

from fakenbd import FakeNbd, hang_up, stall
from harness import K, M, VARVE, Folder, allocated, good, main, no_marker, refused, test

B0 = "qemu:dirty-bitmap:b0"
ALLOCATION = "base:allocation"
SIZE = 24 * M


def view(number, base=None):
    """What varved says of an export of that view."""
    return "disk vda at the start of its epoch 9, view %016x%s [0123456789abcdef]" % (
        number, ", changes since " + base if base else "")


def wait_copied(d, copied):
    """Until the marker says that so much is durable."""
    deadline = time.monotonic() + 60
    while json.loads(d.read("out.img.partial"))["copied"] < copied:
        assert time.monotonic() < deadline, d.read("out.img.partial")
        time.sleep(0.02)


def cut_short(d, content, marks, description, pieces, *args, copied=None):
    """Kills a pull when `pieces` of 256K were answered over one connection, and the marker says that what is
    before `copied` (what they come to) is durable."""
    copied = copied or pieces * 256 * K
    with FakeNbd(d("sock"), content, marks, after_reads=pieces, then=stall, greet=1,
                 description=description) as server:
        p = subprocess.Popen([VARVE, "pull", d.uri(), d("out.img"), *args], stdout=subprocess.DEVNULL)
        try:
            assert server.stalled.wait(60), "never got so far"
            wait_copied(d, copied)
        finally:
            p.send_signal(signal.SIGKILL)
            p.wait()
    assert json.loads(d.read("out.img.partial"))["copied"] == copied


def finish(d, content, marks, description, *args, copied, uri=None):
    """The same command again: it goes on behind `copied`, and the file is the content."""
    with FakeNbd(d("sock"), content, marks, description=description):
        told = json.loads(good("--json", "pull", uri or d.uri(), d("out.img"), *args))
    assert told["from"] == copied, told
    got = d.read("out.img")
    assert len(got) == len(content) and got == content, next(
        (i for i, (a, b) in enumerate(zip(got, content)) if a != b), None)
    no_marker(d)
    return told


ALL_DATA = {ALLOCATION: [(SIZE, 0)], B0: [(SIZE, 1)]}


@test
def killed_full_pull_goes_on_where_it_was():
    """With more kills than one on the way; nothing that was durable is read again."""
    content = random.Random(21).randbytes(SIZE)
    for stops in ((1,), (40,), (95,), (7, 30)):
        with Folder() as d:
            copied = 0
            for pieces in stops:
                copied += pieces * 256 * K
                cut_short(d, content, ALL_DATA, view(1), pieces, copied=copied)
            told = finish(d, content, ALL_DATA, view(1), copied=copied)
            assert told["data-bytes"] == SIZE - copied, told


@test
def holes_behind_what_was_kept_are_holes():
    """A pull that died wrote beyond what its marker says, and nobody knows how much of that is there."""
    data = random.Random(22).randbytes
    content = data(4 * M) + bytes(4 * M) + data(2 * M) + bytes(SIZE - 10 * M - 8 * K) + data(8 * K)
    marks = {ALLOCATION: [(6 * M, 0), (2 * M, 3), (2 * M + 64 * K, 0), (SIZE - 10 * M - 72 * K, 3),
                          (8 * K, 0)]}
    with Folder() as d:
        cut_short(d, content, marks, view(1), 8)
        with open(d("out.img"), "r+b") as f:
            for off in (2 * M, 6 * M, 20 * M):
                f.seek(off)
                f.write(b"\xaa" * M)
        finish(d, content, marks, view(1), copied=2 * M)
        assert allocated(d("out.img")) < 8 * M


@test
def killed_full_pull_is_not_continued_from_another_view():
    """There and back again: what is kept is of the view that the marker names, never of two."""
    one, two = (random.Random(seed).randbytes(SIZE) for seed in (23, 24))
    with Folder() as d:
        cut_short(d, one, ALL_DATA, view(1), 60)
        cut_short(d, two, ALL_DATA, view(2), 20)
        finish(d, one, ALL_DATA, view(1), copied=0)
    for other in (None, view(1).replace("view ", ""), view(2), view(1).replace("disk ", "dusk ")):
        with Folder() as d:
            cut_short(d, one, ALL_DATA, view(1), 60)
            finish(d, two, ALL_DATA, other, copied=0)
    with Folder() as d:  # a server that does not say: nothing is ever kept
        with FakeNbd(d("sock"), one, ALL_DATA, after_reads=40, then=hang_up, greet=1):
            refused("pull", d.uri(), d("out.img"), says="partial")
        assert json.loads(d.read("out.img.partial"))["copied"] == 0
        assert os.stat(d("out.img")).st_size == SIZE
        finish(d, two, ALL_DATA, None, copied=0)


@test
def killed_pull_is_not_continued_from_another_export_of_the_same_view():
    """vda+delta tells that of vda which is clean to be holes."""
    content = random.Random(25).randbytes(SIZE)
    with Folder() as d:
        with FakeNbd(d("sock"), content, {ALLOCATION: [(16 * M, 3), (SIZE - 16 * M, 0)]}, after_reads=2,
                     then=hang_up, description=view(1)):
            refused("pull", d.uri("vda+delta"), d("out.img"), says="partial")
        assert json.loads(d.read("out.img.partial"))["copied"] >= 16 * M
        finish(d, content, ALL_DATA, view(1), copied=0, uri=d.uri("vda"))


@test
def killed_incremental_goes_on_where_it_was():
    content = random.Random(26).randbytes(SIZE)
    marks = {ALLOCATION: [(SIZE, 0)], B0: [(4 * M, 1), (4 * M, 0), (SIZE - 8 * M, 1)]}
    before = b"\x11" * (4 * M) + content[4 * M:8 * M] + b"\x22" * (SIZE - 8 * M)
    for pieces, copied in ((5, 5 * 256 * K), (30, 8 * M + 14 * 256 * K)):
        with Folder() as d:
            d.write("out.img", before)
            cut_short(d, content, marks, view(1, "epoch 3"), pieces, "--context", B0, copied=copied)
            told = finish(d, content, marks, view(1, "epoch 3"), "--context", B0, "--verify",
                          copied=copied)
            assert told["data-bytes"] == SIZE - 4 * M - pieces * 256 * K, told


@test
def killed_incremental_is_done_again_from_another_view_or_base():
    """Since the same base, two has changed beside what one has, and below what was copied of one."""
    one = random.Random(27).randbytes(SIZE)
    before = bytes(M) + one[M:]
    two = one[:2 * M] + b"\x77" * M + one[3 * M:]
    first = {ALLOCATION: [(SIZE, 0)], B0: [(M, 1), (7 * M, 0), (SIZE - 8 * M, 1)]}
    second = {ALLOCATION: [(SIZE, 0)], B0: [(M, 1), (M, 0), (M, 1), (5 * M, 0), (SIZE - 8 * M, 1)]}
    with Folder() as d:
        d.write("out.img", before)
        cut_short(d, one, first, view(1, "epoch 3"), 10, "--context", B0, copied=8 * M + 6 * 256 * K)
        finish(d, two, second, view(2, "epoch 3"), "--context", B0, copied=0)


@test
def killed_incremental_of_a_later_instant_is_not_finished_from_an_earlier_one():
    """What was written between the two is in the file, and the earlier one does not call it dirty."""
    later = random.Random(33).randbytes(SIZE)
    earlier = b"\x55" * (4 * M) + later[4 * M:]
    marks = {ALLOCATION: [(SIZE, 0)], B0: [(4 * M, 0), (SIZE - 4 * M, 1)]}
    with Folder() as d:
        d.write("out.img", b"\x55" * (4 * M) + bytes(SIZE - 4 * M))
        with FakeNbd(d("sock"), later, ALL_DATA, after_reads=30, then=hang_up, description=view(2, "epoch 3")):
            refused("pull", d.uri(), d("out.img"), "--context", B0, says="partial")
        half = d.read("out.img")
        with FakeNbd(d("sock"), earlier, marks, description=view(1, "epoch 3").replace("epoch 9", "epoch 8")):
            refused("pull", d.uri(), d("out.img"), "--context", B0, says=["partial", "later instant", "epoch 9"])
        assert d.read("out.img") == half
        finish(d, later, ALL_DATA, view(3, "epoch 3").replace("epoch 9", "epoch 10"), "--context", B0, copied=0)


@test
def another_file_in_its_place_is_copied_from_its_start():
    """Whoever puts yesterday's backup there once more, by a new file or into the old one, and runs the
    same again; what is behind its end afterwards is nothing."""
    content = random.Random(28).randbytes(SIZE)
    yesterday = random.Random(29).randbytes(SIZE)

    def write(d):
        with open(d("out.img"), "r+b") as f:
            f.truncate(0)
            f.write(yesterday)

    def replace(d):
        d.write("new", yesterday)
        os.rename(d("new"), d("out.img"))

    def longer(d):
        with open(d("out.img"), "ab") as f:
            f.write(b"x")

    def remove(d):
        os.unlink(d("out.img"))

    for args, ways in (((), (write, replace, remove, longer)), (("--context", B0), (write, replace))):
        for way in ways:
            with Folder() as d:
                if args:
                    d.write("out.img", yesterday)
                with FakeNbd(d("sock"), content, ALL_DATA, after_reads=40, then=hang_up, greet=1,
                             description=view(1)):
                    refused("pull", d.uri(), d("out.img"), *args, says="partial")
                assert json.loads(d.read("out.img.partial"))["copied"] == 10 * M
                way(d)
                finish(d, content, ALL_DATA, view(1), *args, copied=0)


@test
def half_a_backup_without_its_marker_is_no_backup():
    """Its size tells."""
    content = random.Random(30).randbytes(SIZE)
    with Folder() as d:
        cut_short(d, content, ALL_DATA, view(1), 40)
        os.unlink(d("out.img.partial"))
        with FakeNbd(d("sock"), content, ALL_DATA, description=view(1)):
            refused("pull", d.uri(), d("out.img"), "--context", B0, says=[str(SIZE), "full copy"])


@test
def what_the_marker_says_is_not_believed_blindly():
    content = random.Random(31).randbytes(SIZE)
    for name, value in (("copied", SIZE + 1), ("copied", -1), ("copied", "10M"), ("token", ""),
                        ("token", "0" * 32), ("token", 5), ("view", None), ("view", "")):
        with Folder() as d:
            with FakeNbd(d("sock"), content, ALL_DATA, after_reads=40, then=hang_up, greet=1,
                         description=view(1)):
                refused("pull", d.uri(), d("out.img"), says="partial")
            marker = json.loads(d.read("out.img.partial"))
            marker[name] = value
            d.write("out.img.partial", json.dumps(marker).encode())
            finish(d, content, ALL_DATA, view(1), copied=0)


@test
def what_verifying_found_wrong_is_pulled_again():
    """A server that lies about zeroes once, and is believed by the marker until it is compared."""
    content = b"\x42" * SIZE
    with Folder() as d:
        with FakeNbd(d("sock"), content, {ALLOCATION: [(SIZE, 3)]}, description=view(1)):
            refused("pull", d.uri(), d("out.img"), "--verify", says="differs from the export at byte ")
        finish(d, content, ALL_DATA, view(1), copied=0)


@test
def pull_that_lost_its_server_while_verifying_verifies_only():
    content = random.Random(32).randbytes(SIZE)
    with Folder() as d:
        with FakeNbd(d("sock"), content, ALL_DATA, after_reads=SIZE // (256 * K) + 10, then=hang_up,
                     description=view(1)):
            refused("pull", d.uri(), d("out.img"), "--verify", says="partial")
        told = finish(d, content, ALL_DATA, view(1), "--verify", copied=SIZE)
        assert told["data-bytes"] == 0 and told["verified"], told


main()
