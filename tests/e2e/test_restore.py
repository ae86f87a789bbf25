#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The recipes of docs/recipes.md that bring an older state back: what is on the disk then, and that two
chains that go on, one of deltas and one of whole copies, are right afterwards."""
import os
import shutil

import backups
from harness import K, M, Stack, run
from incremental import BITMAP
from tap import main, rng, test

SIZE, BLOCK = 16 * M, 64 * K


class Restore:
    """One appliance keeps a full copy and deltas (checkpoints a0, a1, a2), another one whole copies
    (checkpoint b0 between a1 and a2).  states[i] is the disk at a-i."""

    def __init__(self, s):
        self.s, self.random = s, rng("restore")
        self.disk = s.start("vda", SIZE, granularity="64K")
        self.states = []
        for i in range(3):
            self.change()
            self.states.append(self.now())
            if i == 0:
                self.backup("a0", None, "pull", s.uri("vda"), s.path("a.img"))
            else:
                self.delta("a%d" % i, "a%d" % (i - 1))
            if i == 1:
                self.change()
                self.backup("b0", None, "pull", s.uri("vda"), s.path("b.img"))
        self.change()

    def change(self):
        with self.disk.connect() as c:
            for _ in range(10):
                off, n = self.random.randrange(0, SIZE - M), self.random.randrange(1, 200 * K)
                self.random.choice((lambda: c.write(off, self.random.randbytes(n)),
                                    lambda: c.zero(off, n), lambda: c.trim(off, n)))()

    def now(self):
        with self.disk.connect() as c:
            return b"".join(c.read(o, 8 * M) for o in range(0, SIZE, 8 * M))

    def backup(self, checkpoint, since, *args):
        disk = {"disk": "vda", "since": since} if since else "vda"
        with self.s.qmp() as q:
            ident, answer = backups.begin(q, [disk], checkpoint=checkpoint)
            self.s.varve(*args)
            backups.end(q, ident)
        return answer["vda"]["dirty-bytes"]

    def delta(self, checkpoint, since):
        return self.backup(checkpoint, since, "pull", self.s.uri("vda"), "--delta",
                           self.s.path("deltas"), "--context", BITMAP, "--verify")

    def restored(self, upto):
        """The disk at a-upto, from the full copy and the deltas up to it."""
        s = self.s
        os.mkdir(s.path("some"))
        for i in range(1, upto + 1):
            shutil.copy2(s.path("deltas/%06d.delta" % i), s.path("some"))
        for name in ("a.img", "a.img.varve"):
            run(["cp", "-p", "--sparse=always", s.path(name), s.path(name.replace("a.", "r.", 1))])
        s.varve("apply", s.path("some"), s.path("r.img"), "--verify")
        assert s.content(s.path("r.img")) == self.states[upto]
        return s.path("r.img")

    def chains_are_right(self):
        """Both chains go on, and both lead to the disk as it is."""
        s = self.s
        for i in range(2):
            self.change()
            state = self.now()
            self.delta("a%d" % (3 + i), "a%d" % (2 + i))
            self.backup("b%d" % (1 + i), "b%d" % i, "pull", s.uri("vda"), s.path("b.img"),
                        "--context", BITMAP)
            s.varve("apply", s.path("deltas"), s.path("a.img"))
            for name in ("a.img", "b.img"):
                at = backups.first_difference(s.content(s.path(name)), state)
                assert at is None, "%s differs at %d after %d backups" % (name, at, i + 1)


@test
def restore_into_a_running_disk_is_dirty_for_all_chains():
    """nbdcopy and qemu-img write zeroes where the copy has holes."""
    for tool in ("nbdcopy", "qemu-img"):
        with Stack() as s:
            r = Restore(s)
            image = r.restored(1)
            if tool == "nbdcopy":
                run(["nbdcopy", "--flush", image, r.disk.uri])
            else:
                run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, r.disk.uri])
            assert r.now() == r.states[1], tool
            r.chains_are_right()


@test
def restore_of_what_changed_only_is_dirty_for_all_chains():
    """Deltas put straight onto the running disk's export, by way of a copy: what differs is written."""
    with Stack() as s:
        r = Restore(s)
        image = r.restored(1)
        want, have = s.content(image), r.now()
        with r.disk.connect() as c:
            for off in range(0, SIZE, BLOCK):
                if want[off:off + BLOCK] != have[off:off + BLOCK]:
                    c.write(off, want[off:off + BLOCK])
        assert r.now() == r.states[1]
        r.chains_are_right()


@test
def restore_into_a_stopped_disk_is_all_dirty_once_it_is_adopted():
    """In the image's place and over it; before it is adopted no increment is begun."""
    for how in ("rename", "over"):
        with Stack() as s:
            r = Restore(s)
            image = r.restored(1)
            assert s.stop(r.disk.process) == 0
            if how == "rename":
                os.rename(image, r.disk.image)
            else:
                run(["cp", "--sparse=always", image, r.disk.image])
            refused = s.varve("backup", "begin", "--since", "a2", "vda", check=False)
            assert refused.returncode == 1 and "full backup" in refused.stderr, refused.stderr
            s.varve("disk", "adopt", "--distrust", "vda")
            r.disk = s.serve("vda", r.disk.image)
            s.wait_disk("vda", "live")
            assert r.now() == r.states[1]
            with s.qmp() as q:
                estimate = q.cmd("backup-estimate", disks=[{"disk": "vda", "since": "a2"}])["disks"]
                assert estimate[0]["dirty-bytes"] == SIZE, estimate
            r.chains_are_right()


@test
def restore_into_a_new_disk_begins_a_chain_of_its_own():
    """Deltas of the old disk are not continued by the new one's."""
    with Stack() as s:
        r = Restore(s)
        image = r.restored(2)
        new = s.serve("vdb", s.path("r.img"), granularity="64K")
        s.wait_disk("vdb", "live")
        with s.qmp() as q, new.connect() as c:
            ident, _ = backups.begin(q, ["vdb"], checkpoint="n0")
            s.varve("pull", s.uri("vdb"), s.path("n.img"))
            backups.end(q, ident)
            assert s.content(s.path("n.img")) == r.states[2]
            c.write(M, b"n" * BLOCK)
            ident, _ = backups.begin(q, [{"disk": "vdb", "since": "n0"}])
            context = "qemu:dirty-bitmap:backup-vdb"
            refused = s.varve("pull", s.uri("vdb"), "--delta", s.path("deltas"), "--context",
                              context, check=False)
            assert refused.returncode == 1 and "another folder" in refused.stderr, refused.stderr
            s.varve("pull", s.uri("vdb"), "--delta", s.path("new"), "--context", context)
            backups.end(q, ident)
            s.varve("apply", s.path("new"), s.path("n.img"))
        assert s.content(s.path("n.img")) == s.content(image)
        r.chains_are_right()


if __name__ == "__main__":
    main()
