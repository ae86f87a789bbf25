#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""disk-export and disk-import: a disk goes to another daemon and state directory, its chain goes on, exact;
an image that does not match is refused, or all of it counts as written."""
import os
import shutil

import backups
from dying import Dying
from harness import K, M, Stack, run, tree
from qmpclient import QMPError
from tap import LONG, diag, main, rng, test

SIZE, BLOCK = 16 * M, 64 * K


class Source:
    """A disk with checkpoint c0, whose full copy is `copy`, c1, a bitmap and one that was closed; then
    stopped.  `dirty`: blocks written since each base."""

    def __init__(self, s):
        self.s, random = s, rng("move")
        disk = s.start("vda", SIZE, b"\x11" * SIZE, granularity="64K")
        self.image = disk.image
        self.dirty = {"c0": set(), "c1": set(), "rec": set()}
        with s.qmp() as q, disk.connect() as c:
            def write(bases):
                for _ in range(5):
                    i = random.randrange(SIZE // BLOCK)
                    c.write(i * BLOCK, random.randbytes(BLOCK))
                    for base in bases:
                        self.dirty[base].add(i)

            write([])
            ident, _ = backups.begin(q, ["vda"], checkpoint="c0")
            self.copy = bytearray(backups.pull(s.nbd, "vda"))
            backups.end(q, ident)
            write(["c0"])
            q.cmd("checkpoint-create", name="c1", disks=["vda"])
            write(["c0", "c1"])
            q.cmd("block-dirty-bitmap-add", node="vda", name="rec")
            q.cmd("block-dirty-bitmap-add", node="vda", name="gone", persistent=False)
            write(["c0", "c1", "rec"])
        assert s.stop(disk.process) == 0
        s.wait_disk("vda", "offline")
        self.content = s.content(disk.image)

    def export(self, name="export", *options, check=True):
        return self.s.varve("disk", "export", *options, "vda", self.s.path(name), check=check)

    def moved_to(self, to):
        """The image, by the move of storage."""
        return shutil.copy(self.image, to.path("moved.img"))

    def chain_goes_on(self, to, name="vda", exact=True):
        """Served at the destination: what is dirty since each base is exactly what was written, then and
        now; and the full copy becomes the image."""
        image = to.disks[name].image if name in to.disks else self.at
        disk = to.serve(name, image)
        to.wait_disk(name, "live")
        with to.qmp() as q, disk.connect() as c:
            c.write(3 * BLOCK, b"new" * 100)
            for base in self.dirty:
                self.dirty[base].add(3)
            bases = [{"since": "c0"}, {"since": "c1"}, {"bitmap": "rec", "bitmap-mode": "never"}]
            for base in bases if exact else bases[:1]:
                ident, answer = backups.begin(q, [dict(base, disk=name)])
                whole = backups.pull(to.nbd, name)
                ranges = backups.dirty(to.nbd, name, answer[name]["context"])
                backups.end(q, ident)
                got = {b for off, n in ranges for b in range(off // BLOCK, (off + n) // BLOCK)}
                want = self.dirty[base.get("since") or base["bitmap"]]
                assert got == (want if exact else set(range(SIZE // BLOCK))), (base, got, want)
                if base.get("since") == "c0":
                    assert bytes(backups.apply(self.copy, whole, ranges)) == to.content(image)
        to.stop(disk.process)


def destination(s):
    s.start_daemon()
    return s


def take(to, source, *options, image=None, name="export", check=True):
    source.at = image or source.moved_to(to)
    return to.varve("disk", "import", *options, source.s.path(name), source.at, check=check)


def refused(r, *words):
    assert r.returncode == 1, (r.stdout, r.stderr)
    for word in words:
        assert word in r.stderr, (word, r.stderr)


@test
def a_moved_disk_with_a_digest_goes_on_exactly():
    with Stack() as s, Stack() as to:
        source = Source(s)
        source.export("export", "--digest")
        take(destination(to), source)
        with to.qmp() as q:
            assert [c["name"] for c in q.cmd("query-checkpoints")] == ["c0", "c1"]
        source.chain_goes_on(to)


@test
def holes_and_zeroes_are_the_same_to_the_digest():
    with Stack() as s, Stack() as to:
        source = Source(s)
        run(["truncate", "-s", "0", source.image])  # what a guest would have trimmed
        run(["truncate", "-s", str(SIZE), source.image])
        s.varve("disk", "adopt", "--trust", "vda")
        source.export("export", "--digest")
        image = to.path("full.img")
        with open(image, "wb") as f:
            f.write(bytes(SIZE))
        take(destination(to), source, image=image)
        with open(image, "r+b") as f:
            f.seek(SIZE - 1)
            f.write(b"x")


@test
def another_image_is_refused_and_with_distrust_all_of_it_is_dirty():
    with Stack() as s, Stack() as to:
        source = Source(s)
        source.export("export", "--digest")
        source.export("plain")
        destination(to)
        image = source.moved_to(to)
        with open(image, "r+b") as f:
            f.seek(5 * BLOCK + 77)
            f.write(b"X")
        before = tree(to.state)
        refused(take(to, source, image=image, check=False), "does not hold", "diff")
        refused(take(to, source, name="plain", check=False), "nothing proves", "digest", "diff")
        with open(to.path("short.img"), "wb") as f:
            f.truncate(SIZE - 512)
        refused(take(to, source, "--trust", image=to.path("short.img"), check=False), "bytes")
        refused(take(to, source, image=to.path("none.img"), check=False), "none.img")
        assert tree(to.state) == before and not to.command("query-disks")
        take(to, source, "--distrust", image=image)
        source.chain_goes_on(to, exact=False)


@test
def an_image_that_both_see_proves_itself_until_somebody_writes():
    """Shared store: only the state moves.  An export from before the last write is refused."""
    with Stack() as s, Stack() as to:
        source = Source(s)
        source.export("old")
        disk = s.serve("vda", source.image)
        with disk.connect() as c:
            c.write(9 * BLOCK, b"later")
        for base in source.dirty:
            source.dirty[base].add(9)
        assert s.stop(disk.process) == 0
        s.wait_disk("vda", "offline")
        refused(source.export("old", "--digest", check=False), "exists already")
        with s.qmp() as q:
            try:
                q.cmd("disk-export", disk="vda", directory=s.path("old"), digest="0" * 64)
                raise AssertionError("a digest was noted in an old export")
            except QMPError as e:
                assert "used since" in e.desc, e.desc
        source.export("new")
        destination(to)
        refused(take(to, source, image=source.image, name="old", check=False), "nothing proves")
        take(to, source, image=source.image, name="new")
        s.varve("disk", "forget", "vda")
        source.chain_goes_on(to)
        # And back, under another name.
        to.varve("disk", "export", "vda", to.path("back"))
        to.varve("disk", "forget", "vda")
        s.varve("disk", "import", "--name", "vdb", to.path("back"), source.image)
        source.chain_goes_on(s, "vdb")


@test
def what_is_in_use_or_there_already_is_refused():
    with Stack() as s, Stack() as to:
        source = Source(s)
        disk = s.serve("vda", source.image)
        s.wait_disk("vda", "live")
        refused(source.export(check=False), "is served by process")
        assert s.stop(disk.process) == 0
        s.wait_disk("vda", "offline")
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"])
            refused(source.export(check=False), "running backup")
            backups.end(q, ident)
        source.export()
        refused(source.export(check=False), "exists already")
        assert not os.path.exists(s.path("export.tmp"))
        refused(s.varve("disk", "import", "--trust", s.path("export"), source.image, check=False),
                "is the one in")
        destination(to)
        os.mkdir(os.path.join(to.state, "vda"))
        refused(take(to, source, "--trust", check=False), "another name")
        refused(to.varve("disk", "import", "--trust", to.dir, source.at, check=False),
                "no folder that disk-export made")


@test
def damage_is_found_and_nothing_is_imported():
    with Stack() as s, Stack() as to:
        source = Source(s)
        source.export()
        destination(to)
        before = tree(to.state)
        for name in sorted(os.listdir(s.path("export"))):
            path = s.path("export/" + name)
            whole = s.content(path)
            for bent in (whole[:-1], whole[:len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) +
                         whole[len(whole) // 2 + 1:], b"", None):
                os.unlink(path)
                if bent is not None:
                    with open(path, "wb") as f:
                        f.write(bent)
                if name == "export.json" and bent == whole[:-1]:
                    bent = whole  # a newline less
                elif bent != whole:
                    refused(take(to, source, "--trust", check=False), "export")
                with open(path, "wb") as f:
                    f.write(whole)
        assert tree(to.state) == before and not to.command("query-disks")
        take(to, source, "--trust")
        source.chain_goes_on(to)


def steps():
    nth = 1
    while True:
        for after in (False, True):
            yield nth, after
        nth += 1 if LONG else 1 + nth // 4


@test
def export_killed_at_any_step_is_there_or_is_not():
    with Dying() as s, Stack() as to:
        source = Source(s)
        destination(to)
        for nth, after in steps():
            s.orders["varved"].arm(nth, after)
            source.export(check=False)
            died = s.disarm("varved", s.daemon)
            if died:
                s.start_daemon()
            if os.path.exists(s.path("export")):
                take(to, source, "--trust")
                to.varve("disk", "forget", "vda")
                shutil.rmtree(s.path("export"))
            else:
                shutil.rmtree(s.path("export.tmp"), ignore_errors=True)
            if not died:
                break
        diag("%d calls" % s.orders["varved"].calls())
        source.export("export", "--digest")
        take(to, source)
        source.chain_goes_on(to)


@test
def import_killed_at_any_step_is_the_disk_or_none():
    """And what is left of it is no obstacle to doing it again."""
    for trust in ("--trust", "--distrust"):
        with Stack() as s, Dying() as to:
            source = Source(s)
            source.export()
            to.start_daemon()
            for nth, after in steps():
                to.orders["varved"].arm(nth, after)
                take(to, source, trust, check=False)
                died = to.disarm("varved", to.daemon)
                if died:
                    to.start_daemon()
                disks = to.command("query-disks")
                if not disks:
                    assert died and [n for n in os.listdir(to.state) if "importing" in n] == []
                    continue
                names = [c["name"] for c in to.command("query-checkpoints")]
                assert names == ["c0", "c1"], names
                with to.qmp() as q:
                    try:
                        estimate = q.cmd("backup-estimate", disks=[{"disk": "vda", "since": "c0"}])
                        dirty = estimate["disks"][0]["dirty-bytes"]
                        want = SIZE if trust == "--distrust" else len(source.dirty["c0"]) * BLOCK
                        assert dirty == want, (nth, after, dirty)
                    except QMPError as e:  # placed, and not adopted yet
                        assert died and trust == "--distrust" and "full backup" in e.desc, e.desc
                        to.varve("disk", "adopt", "--distrust", "vda")
                if not died:
                    break
                to.varve("disk", "forget", "vda")
            diag("%d calls" % to.orders["varved"].calls())
            source.chain_goes_on(to, exact=trust == "--trust")


if __name__ == "__main__":
    main()
