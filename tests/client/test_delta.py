#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""varve pull --delta and varve apply, against servers that answer as told."""
import json
import os
import random
import shutil
import signal
import subprocess

from fakenbd import FakeNbd, hang_up, io_error, stall
from harness import (K, M, VARVE, Folder, allocated, good, main, misused, refused, run, same, test)

B0 = "qemu:dirty-bitmap:b0"
ALLOCATION = "base:allocation"
SIZE = 8 * M + 512
HEAD, EXTENT = 4096, 56


def said(epoch, since=None, uuid="0123456789abcdef", disk="vda"):
    """What varved says of an export."""
    changes = ", changes since the start of epoch %d" % since if since is not None else ""
    return "disk %s at the start of its epoch %d%s [%s]" % (disk, epoch, changes, uuid)


class History:
    """A disk's states, and what was dirty between them: data, zeroes told as such, zeroes found."""

    def __init__(self, seed, count=3):
        print("# seed %d" % seed)
        self.r = random.Random(seed)
        self.states = [self.r.randbytes(SIZE)]
        self.marks = [None]
        for _ in range(count):
            self.change()

    def change(self):
        disk = bytearray(self.states[-1])
        allocation, dirty, at = [], [], 0
        while at < SIZE:
            n = min(SIZE - at, self.r.choice((512, 4 * K, 64 * K, 300 * K, M)))
            kind = self.r.randrange(4)
            if kind == 1:
                disk[at:at + n] = self.r.randbytes(n)
            elif kind > 1:
                disk[at:at + n] = bytes(n)
            dirty.append((n, int(kind > 0)))
            allocation.append((n, 2 if kind == 2 else 0))
            at += n
        self.states.append(bytes(disk))
        self.marks.append({ALLOCATION: allocation, B0: dirty})

    def serve(self, d, i, since=None, named=True, **kw):
        """State i with what changed since state i - 1."""
        text = said(10 * i, 10 * ((i - 1) if since is None else since)) if named else None
        return FakeNbd(d("sock"), self.states[i], self.marks[i], description=text, **kw)

    def full(self, d, name="full.img", named=True):
        with FakeNbd(d("sock"), self.states[0], {ALLOCATION: [(SIZE, 0)]},
                     description=said(0) if named else None):
            good("pull", d.uri(), d(name))
        return d(name)

    def deltas(self, d, named=True, upto=None):
        for i in range(1, (upto or len(self.states) - 1) + 1):
            with self.serve(d, i, named=named):
                good("pull", d.uri(), "--delta", d("deltas"), "--context", B0, "--verify")


def nothing_unfinished(d):
    for top, _, files in os.walk(d.path):
        left = [f for f in files if "partial" in f or f.endswith(".tmp")]
        assert not left, (top, left)


@test
def full_copy_and_deltas_are_todays_disk():
    with Folder() as d:
        h = History(1)
        h.full(d)
        h.deltas(d)
        assert sorted(os.listdir(d("deltas"))) == ["%06d.delta" % i for i in (1, 2, 3)]
        told = json.loads(good("--json", "apply", d("deltas"), d("full.img"), "--verify"))
        assert d.read("full.img") == h.states[-1]
        assert told["deltas"] == 3 and told["verified"] is True and told["data-bytes"] > 0, told
        nothing_unfinished(d)


@test
def each_delta_alone_leads_to_its_instant():
    with Folder() as d:
        h = History(2)
        h.full(d)
        for i in (1, 2, 3):
            h.deltas(d, upto=1) if i == 1 else None
            if i > 1:
                with h.serve(d, i):
                    good("pull", d.uri(), "--delta", d("deltas"), "--context", B0)
            assert good("apply", d("deltas"), d("full.img")).startswith("applied 1 delta ")
            assert d.read("full.img") == h.states[i], i
            assert "has all deltas" in good("apply", d("deltas"), d("full.img"))
            assert d.read("full.img") == h.states[i], i


@test
def only_what_is_dirty_is_stored():
    with Folder() as d:
        content = bytes(M) + random.Random(3).randbytes(SIZE - M)
        marks = {ALLOCATION: [(SIZE, 0)], B0: [(M, 1), (64 * K, 1), (SIZE - M - 64 * K, 0)]}
        with FakeNbd(d("sock"), content, marks, description=said(2, 1)):
            told = json.loads(good("--json", "pull", d.uri(), "--delta", d("deltas"), "--context",
                                   B0))
        assert told["dirty-bytes"] == M + 64 * K and told["delta"] == d("deltas/000001.delta"), told
        # The zeroes are one extent of the index.
        assert os.path.getsize(told["delta"]) <= HEAD + 64 * K + 3 * EXTENT


@test
def nothing_dirty_is_an_empty_delta():
    with Folder() as d:
        h = History(4, 0)
        h.full(d)
        marks = {ALLOCATION: [(SIZE, 0)], B0: [(SIZE, 0)]}
        with FakeNbd(d("sock"), h.states[0], marks, description=said(10, 0)):
            good("pull", d.uri(), "--delta", d("deltas"), "--context", B0, "--verify")
        assert os.path.getsize(d("deltas/000001.delta")) == HEAD
    with Folder() as d:
        h = History(5, 0)
        h.full(d)
        with FakeNbd(d("sock"), h.states[0], marks, description=said(5, 0).replace("epoch 0", "epoch 9")):
            good("pull", d.uri(), "--delta", d("deltas"), "--context", B0)
        refused("apply", d("deltas"), d("full.img"), says=["belong together", "epoch 9"])


@test
def zeroes_of_a_delta_become_holes():
    with Folder() as d:
        content = random.Random(6).randbytes(SIZE)
        marks = {ALLOCATION: [(SIZE, 3)], B0: [(8 * M, 1), (512, 0)]}
        with FakeNbd(d("sock"), content, {ALLOCATION: [(SIZE, 0)]}, description=said(1)):
            good("pull", d.uri(), d("full.img"))
        with FakeNbd(d("sock"), bytes(8 * M) + content[8 * M:], marks, description=said(2, 1)):
            good("pull", d.uri(), "--delta", d("deltas"), "--context", B0, "--verify")
        good("apply", d("deltas"), d("full.img"), "--verify")
        assert d.read("full.img") == bytes(8 * M) + content[8 * M:]
        assert allocated(d("full.img")) <= 64 * K


@test
def delta_that_does_not_follow_the_last_one_is_refused():
    with Folder() as d:
        h = History(7)
        h.deltas(d, upto=1)
        before = os.listdir(d("deltas"))
        with h.serve(d, 3):
            refused("pull", d.uri(), "--delta", d("deltas"), "--context", B0,
                    says=["epoch 10", "epoch 20", "another folder"])
        with FakeNbd(d("sock"), h.states[2], h.marks[2], description=said(20, 10, "f" * 16)):
            refused("pull", d.uri(), "--delta", d("deltas"), "--context", B0, says="another folder")
        with FakeNbd(d("sock"), h.states[2][:-512], {ALLOCATION: [(SIZE - 512, 0)],
                                                    B0: [(SIZE - 512, 1)]}):
            refused("pull", d.uri(), "--delta", d("deltas"), "--context", B0,
                    says=["another folder", str(SIZE), str(SIZE - 512)])
        assert os.listdir(d("deltas")) == before
        nothing_unfinished(d)


@test
def pull_whose_success_was_not_heard_of_is_not_done_twice():
    with Folder() as d:
        h = History(8)
        h.deltas(d, upto=2)
        with h.serve(d, 2):
            assert "already" in good("pull", d.uri(), "--delta", d("deltas"), "--context", B0)
        assert len(os.listdir(d("deltas"))) == 2


@test
def killed_pull_leaves_no_delta_and_the_same_command_makes_it():
    with Folder() as d:
        h = History(9)
        h.full(d)
        h.deltas(d, upto=1)
        with h.serve(d, 2, after_reads=3, then=stall) as server:
            p = subprocess.Popen([VARVE, "pull", d.uri(), "--delta", d("deltas"), "--context", B0])
            try:
                assert server.stalled.wait(60)
                refused("pull", d.uri(), "--delta", d("deltas"), "--context", B0,
                        says="another varve pull")
            finally:
                p.send_signal(signal.SIGKILL)
                p.wait()
        assert sorted(os.listdir(d("deltas"))) == ["000001.delta", "000002.delta.tmp"]
        good("apply", d("deltas"), d("full.img"))
        assert d.read("full.img") == h.states[1]
        with h.serve(d, 2):
            good("pull", d.uri(), "--delta", d("deltas"), "--context", B0)
        good("apply", d("deltas"), d("full.img"))
        assert d.read("full.img") == h.states[2]
        nothing_unfinished(d)


@test
def failed_pull_leaves_nothing():
    with Folder() as d:
        h = History(10)
        for then in (hang_up, io_error):
            with h.serve(d, 1, after_reads=2, then=then):
                refused("pull", d.uri(), "--delta", d("deltas"), "--context", B0)
            assert os.listdir(d("deltas")) == []


@test
def unfinished_apply_is_finished_with_all_of_its_deltas_only():
    """Without the last one, what it has written already would stay."""
    with Folder() as d:
        h = History(12)
        h.full(d)
        h.deltas(d)
        whole = bytearray(d.read("deltas/000003.delta"))
        bent = whole[:]
        bent[int.from_bytes(whole[64:72], "little") - 1] ^= 1
        d.write("deltas/000003.delta", bent)
        refused("apply", d("deltas"), d("full.img"), says=["its data does not match", "partial"])
        half = d.read("full.img")
        assert half not in h.states
        marker = json.loads(d.read("full.img.partial"))
        assert marker["kind"] == "apply" and marker["deltas"] == d("deltas"), marker
        with FakeNbd(d("sock"), h.states[0], h.marks[1]):
            for args in ((), ("--context", B0)):
                refused("pull", d.uri(), d("full.img"), *args,
                        says=["partial", "unfinished varve apply"])
        os.unlink(d("deltas/000003.delta"))
        refused("apply", d("deltas"), d("full.img"), says=["partial", "lacks one"])
        refused("apply", d("deltas"), d("full.img"), "--trust", says=["partial", "lacks one"])
        assert d.read("full.img") == half
        d.write("deltas/000003.delta", whole)
        good("apply", d("deltas"), d("full.img"))
        assert d.read("full.img") == h.states[-1]
        nothing_unfinished(d)


@test
def apply_refuses_what_the_deltas_do_not_build_upon():
    with Folder() as d:
        h = History(13)
        h.full(d)
        h.deltas(d)
        shutil.copy2(d("full.img"), d("copied.img"))
        for name, why in (("copied.img", "there is no "), ("full.img", "somebody wrote to")):
            if name == "full.img":
                with open(d(name), "r+b") as f:
                    f.write(b"X")
                os.utime(d(name), (1, 1))
            before = d.read(name)
            refused("apply", d("deltas"), d(name), says=[why, "--trust", "epoch 0"])
            assert d.read(name) == before
        good("apply", d("deltas"), d("copied.img"), "--trust")
        assert d.read("copied.img") == h.states[-1]
        with FakeNbd(d("sock"), h.states[2], {ALLOCATION: [(SIZE, 0)]},
                     description=said(20, uuid="f" * 16)):
            good("pull", d.uri(), d("other.img"))
        refused("apply", d("deltas"), d("other.img"), "--trust", says="belong together")
        d.write("short.img", b"x" * (SIZE - 512))
        refused("apply", d("deltas"), d("short.img"), "--trust",
                says=[str(SIZE), str(SIZE - 512), "belong together"])
        refused("apply", d("deltas"), d("none.img"), says="none.img")
        os.mkdir(d("empty"))
        refused("apply", d("empty"), d("full.img"), says="no deltas")
        nothing_unfinished(d)


@test
def copied_with_its_stamp_a_backup_is_known():
    with Folder() as d:
        h = History(14)
        h.full(d)
        h.deltas(d)
        for name in ("full.img", "full.img.varve"):
            shutil.copy2(d(name), d(name.replace("full", "copy")))
        good("apply", d("deltas"), d("copy.img"))
        assert d.read("copy.img") == h.states[-1] and d.read("full.img") == h.states[0]


@test
def incremental_pull_onto_a_file_says_what_it_is_then():
    """Two of three changes were pulled onto the file itself: the third alone is applied."""
    with Folder() as d:
        h = History(15)
        h.full(d)
        h.deltas(d)
        for i in (1, 2):
            with h.serve(d, i):
                good("pull", d.uri(), d("full.img"), "--context", B0)
        assert good("apply", d("deltas"), d("full.img")).startswith("applied 1 delta ")
        assert d.read("full.img") == h.states[-1]
        # A server that does not say takes the name away.
        with h.serve(d, 2, named=False):
            good("pull", d.uri(), d("full.img"), "--context", B0)
        assert not os.path.exists(d("full.img.varve"))


@test
def deltas_of_a_server_that_names_no_instants_are_applied_in_order():
    with Folder() as d:
        h = History(16)
        h.full(d, named=False)
        h.deltas(d, named=False, upto=2)
        refused("apply", d("deltas"), d("full.img"), says=["there is no", "--trust", B0])
        good("apply", d("deltas"), d("full.img"), "--trust")
        assert d.read("full.img") == h.states[2]
        with h.serve(d, 3, named=False):
            good("pull", d.uri(), "--delta", d("deltas"), "--context", B0)
        assert good("apply", d("deltas"), d("full.img")).startswith("applied 1 delta ")
        assert d.read("full.img") == h.states[3]


@test
def missing_or_foreign_delta_is_found_out():
    with Folder() as d:
        h = History(17)
        h.full(d)
        h.deltas(d)
        os.rename(d("deltas/000002.delta"), d("aside"))
        before = d.read("full.img")
        for args in (("apply", d("deltas"), d("full.img")), ("apply", d("deltas"), d("full.img"), "--trust")):
            refused(*args, says=["000003.delta", "000001.delta", "missing"])
        with h.serve(d, 3):
            refused("pull", d.uri(), "--delta", d("deltas"), "--context", B0, says="missing")
        shutil.copy(d("deltas/000001.delta"), d("deltas/000002.delta"))
        refused("apply", d("deltas"), d("full.img"), says=["000002.delta", "000001.delta"])
        assert d.read("full.img") == before


@test
def damaged_delta_is_not_written_anywhere():
    """Head and index are looked at before FILE is touched; bent data are not written, and a good copy
    of the delta finishes it."""
    with Folder() as d:
        h = History(18, 2)
        h.full(d)
        h.deltas(d)
        whole = d.read("deltas/000002.delta")
        index = int.from_bytes(whole[64:72], "little")
        for at, why in ((20, "head"), (index + 3, ""), (index + 30, ""), (len(whole) - 1, "")):
            bent = bytearray(whole)
            bent[at] ^= 4
            d.write("deltas/000002.delta", bent)
            refused("apply", d("deltas"), d("full.img"), says=["000002.delta is damaged", why])
            assert d.read("full.img") == h.states[0]
        for cut in (0, 8, 100, HEAD, index, len(whole) - 1):
            d.write("deltas/000002.delta", whole[:cut])
            refused("apply", d("deltas"), d("full.img"), says="000002.delta")
            assert d.read("full.img") == h.states[0]
        bent = bytearray(whole)
        bent[index - 1] ^= 1
        d.write("deltas/000002.delta", bent)
        refused("apply", d("deltas"), d("full.img"), says=["its data does not match", "partial"])
        d.write("deltas/000002.delta", whole)
        good("apply", d("deltas"), d("full.img"))
        assert d.read("full.img") == h.states[2]


@test
def verify_of_a_delta_reads_both_sides_again():
    """A server that answers something else the second time, and one that calls data zeroes."""
    content = b"\x42" * M
    with Folder() as d, FakeNbd(d("sock"), content, {ALLOCATION: [(M, 3)], B0: [(M, 1)]}):
        refused("pull", d.uri(), "--delta", d("deltas"), "--context", B0, "--verify",
                says="differs from the export")
        assert os.listdir(d("deltas")) == []
    with Folder() as d:
        status = {}

        def less_first(context, off, length):
            status[context] = status.get(context, 0) + 1
            if context == B0 and status[context] == 1:
                return [(M // 2, 1), (M // 2, 0)]
            return [(M, context == B0)]
        with FakeNbd(d("sock"), content, {ALLOCATION: [(M, 0)], B0: [(M, 1)]}, status=less_first):
            refused("pull", d.uri(), "--delta", d("deltas"), "--context", B0, "--verify",
                    says="which is dirty")
        assert os.listdir(d("deltas")) == []


@test
def deltas_of_a_qcow2_image_with_a_bitmap():
    with Folder() as d:
        def io(*commands):
            run("qemu-io", "-f", "qcow2", *[a for c in commands for a in ("-c", c)], d("q.qcow2"))

        run("qemu-img", "create", "-q", "-f", "qcow2", d("q.qcow2"), "16M")
        io("write -P 1 0 8M")
        server = d.qemu_nbd("q.qcow2")
        good("pull", d.uri(), d("full.img"))
        d.stop(server)
        run("qemu-img", "bitmap", "--add", "-g", "65536", d("q.qcow2"), "b0")
        for i, change in enumerate((("write -P 7 1M 200k", "write -z 2M 1M"), ("discard 0 1M",))):
            io(*change)
            run("qemu-img", "convert", "-O", "raw", d("q.qcow2"), d("today.img"))
            server = d.qemu_nbd("q.qcow2", "b0")
            good("pull", d.uri(), "--delta", d("deltas"), "--context", B0, "--verify")
            d.stop(server)
            run("qemu-img", "bitmap", "--clear", d("q.qcow2"), "b0")
            good("apply", d("deltas"), d("full.img"), *([] if i else ["--trust"]))
            assert same(d("full.img"), d("today.img")), i


@test
def bad_command_lines_are_usage():
    misused("pull", "nbd://x", "f", "--delta", "d", "--context", B0, says="no FILE")
    misused("pull", "nbd://x", "--delta", "d", says="--context or --since")
    misused("apply", "d", says="DIR FILE")
    misused("apply", "d", "f", "g", says="one word too many")


main()
