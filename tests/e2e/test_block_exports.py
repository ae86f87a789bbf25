#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Extra exports of running backups: block-export-add, block-export-del, query-block-exports."""
import os

import backups
import nbdclient
from bitmaps import add, change, refused
from dying import Dying
from harness import K, M, Stack, wait_for
from releases import BLOCK, GRAIN, SIZE, content, disk_content, disk_of
from tap import main, test


def export(q, ident, name, node="vda", **more):
    q.cmd("block-export-add", type="nbd", id=ident, node_name=node, name=name, **more)


def extras(q):
    """{id: what is said of it} of those that block-export-add made."""
    return {e["id"]: e for e in q.cmd("query-block-exports") if e["extra"]}


def dirty_blocks(s, name, bitmap):
    return {b for off, n in backups.dirty(s.nbd, name, backups.DIRTY + bitmap)
            for b in range(off // BLOCK, (off + n - 1) // BLOCK + 1)}


def write(guest, blocks, byte):
    for b in blocks:
        guest.write(b * BLOCK + 512, byte * (4 * K))


def full_backup(s, q, checkpoint):
    """What an appliance has after it."""
    ident, _ = backups.begin(q, ["vda"], checkpoint=checkpoint)
    image = backups.pull(s.nbd, "vda")
    backups.end(q, ident)
    return image


class Two:
    """Copies as of two instants, mon and tue, each with a checkpoint; a bitmap that records since mon;
    and a running backup since tue whose instant is `now`."""
    AFTER_MON, AFTER_TUE = {3, 4, 77}, {4, 100, 255}

    def __init__(self, stack=Stack):
        self.s = stack()
        try:
            self.disk = self.s.start("vda", SIZE, content(1), **GRAIN)
            self.q = self.s.qmp()
            self.guest = self.disk.connect()
            self.mon = full_backup(self.s, self.q, "mon")
            add(self.q, "bits", granularity=BLOCK)
            write(self.guest, self.AFTER_MON, b"m")
            self.tue = full_backup(self.s, self.q, "tue")
            write(self.guest, self.AFTER_TUE, b"t")
            self.now = disk_content(self.disk)
            self.id, _ = backups.begin(self.q, [{"disk": "vda", "since": "tue"}])
        except BaseException:
            self.s.close(show=True)
            raise

    def expect(self, name, bitmap, copy, blocks):
        """The export's dirty blocks are these, and make the copy the disk at the backup's instant."""
        assert dirty_blocks(self.s, name, bitmap) == blocks, (name, dirty_blocks(self.s, name, bitmap))
        got = backups.apply(copy, backups.pull(self.s.nbd, name),
                            backups.dirty(self.s.nbd, name, backups.DIRTY + bitmap))
        assert backups.first_difference(bytes(got), self.now) is None, name

    def restart_daemon(self):
        self.q.close()
        self.s.kill(self.s.daemon)
        self.s.start_daemon()
        self.s.wait_disk("vda", "live")
        self.q = self.s.qmp()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, tb):
        self.q.close()
        if kind is None:
            self.guest.disc()
        return self.s.__exit__(kind, value, tb)


@test
def two_incrementals_to_different_bases_are_pulled_from_one_instant():
    """Byte for byte, while the guest goes on; also after kill -9 of the daemon and of nbdkit, and an end
    and start of the daemon in peace."""
    with Two() as t:
        export(t.q, "a", "vda-a", bitmaps=["mon"])
        export(t.q, "b", "vda-b", bitmaps=[{"node": "vda", "name": "bits"}])
        export(t.q, "own", "vda-own")
        write(t.guest, range(0, 256, 5), b"later")

        def all_true():
            since_mon = t.AFTER_MON | t.AFTER_TUE
            t.expect("vda", "backup-vda", t.tue, t.AFTER_TUE)
            t.expect("vda-own", "backup-vda", t.tue, t.AFTER_TUE)
            t.expect("vda-a", "mon", t.mon, since_mon)
            t.expect("vda-b", "bits", t.mon, since_mon)
            assert {i: (e["name"], e["node-name"], e["context"], e["backup"])
                    for i, e in extras(t.q).items()} == {
                "a": ("vda-a", "vda", "qemu:dirty-bitmap:mon", t.id),
                "b": ("vda-b", "vda", "qemu:dirty-bitmap:bits", t.id),
                "own": ("vda-own", "vda", "qemu:dirty-bitmap:backup-vda", t.id)}
        all_true()
        t.restart_daemon()
        all_true()
        t.s.kill(t.disk.process)
        t.s.serve("vda", t.disk.image, **GRAIN)
        t.s.wait_disk("vda", "live")
        t.guest = t.disk.connect()
        all_true()
        t.q.close()
        assert t.s.stop(t.s.daemon) == 0
        t.s.start_daemon()
        t.s.wait_disk("vda", "live")
        t.q = t.s.qmp()
        all_true()
        backups.end(t.q, t.id)
        assert t.q.cmd("query-block-exports") == []


@test
def an_extra_export_outlives_what_it_is_based_on():
    """Checkpoint and bitmap go, and the epochs with them that nobody else needs; also while the daemon is
    started anew."""
    with Two() as t:
        export(t.q, "a", "vda-a", bitmaps=["mon"])
        export(t.q, "b", "vda-b", bitmaps=["bits"])
        t.q.cmd("checkpoint-create", name="x", disks=["vda"])
        t.q.cmd("checkpoint-delete", name="mon")
        change(t.q, "remove", "bits")
        write(t.guest, {7}, b"later")
        t.q.cmd("checkpoint-create", name="y", disks=["vda"])
        t.q.cmd("checkpoint-delete", name="x")
        for _ in range(2):
            for name, bitmap in (("vda-a", "mon"), ("vda-b", "bits")):
                t.expect(name, bitmap, t.mon, t.AFTER_MON | t.AFTER_TUE)
            t.restart_daemon()
        before = len(os.listdir(os.path.join(t.s.state, "vda")))
        for ident in ("a", "b"):
            t.q.cmd("block-export-del", id=ident)
        assert len(os.listdir(os.path.join(t.s.state, "vda"))) < before, "nothing was freed"
        backups.end(t.q, t.id)


@test
def what_cannot_be_proved_to_be_the_base_is_refused():
    with Two() as t:
        full = [("late", "'late' was made, cleared or moved after the backup's instant"),
                ("bits", "'bits' was made, cleared or moved after the backup's instant"),
                ("empty", "'empty' was empty at the backup's instant")]
        backups.end(t.q, t.id)
        add(t.q, "empty", disabled=True)
        t.id, _ = backups.begin(t.q, [{"disk": "vda", "since": "tue"}], checkpoint="own")
        add(t.q, "late")
        change(t.q, "clear", "bits")
        t.q.cmd("checkpoint-create", name="after", disks=["vda"])
        for base, why in full + [("after", "'after' is not older than the backup of export 'vda'"),
                                 ("own", "'own' belongs to backup '%s', which still runs" % t.id)]:
            refused(t.q, why, "block-export-add", type="nbd", id="a", node_name="vda", name="vda-a",
                    bitmaps=[base])
        assert extras(t.q) == {}
        export(t.q, "a", "vda-a", bitmaps=["mon"])
        t.expect("vda-a", "mon", t.mon, t.AFTER_MON | t.AFTER_TUE)
        backups.end(t.q, t.id)


@test
def a_bitmap_that_the_backup_itself_moves_is_a_base_as_it_was():
    with Two() as t:
        backups.end(t.q, t.id, False)
        t.id, _ = backups.begin(t.q, [{"disk": "vda", "bitmap": "bits"}], checkpoint="wed")
        export(t.q, "a", "vda-a", bitmaps=["bits"])
        t.expect("vda-a", "bits", t.mon, t.AFTER_MON | t.AFTER_TUE)
        second, _ = backups.begin(t.q, [{"disk": "vda", "since": "mon", "export": "two"}])
        backups.end(t.q, t.id)
        # The other backup's bitmap has moved meanwhile: what it held at its instant is not known.
        refused(t.q, "'bits' was made, cleared or moved", "block-export-add", type="nbd", id="a",
                node_name="two", name="vda-a", bitmaps=["bits"])
        backups.end(t.q, second)


@test
def one_in_use_is_deleted_only_by_force_and_others_stay():
    with Two() as t:
        export(t.q, "a", "vda-a", bitmaps=["mon"])
        with t.s.connect("vda-a") as c, t.s.connect("vda") as other:
            c.read(0, M)
            wait_for("its client is seen", lambda: extras(t.q)["a"]["clients"] == 1)
            read = disk_of(t.q, t.id)["bytes-read"]
            for more in ({}, {"mode": "safe"}):
                refused(t.q, "export 'a' still in use: 1 clients.*\"hard\"", "block-export-del", id="a",
                        **more)
            assert c.read(M, BLOCK) == t.now[M:M + BLOCK]
            t.q.cmd("block-export-del", id="a", mode="hard")
            assert extras(t.q) == {}
            try:
                c.read(0, BLOCK)
                raise AssertionError("its client can go on")
            except (EOFError, OSError, nbdclient.NBDError):
                pass
            try:
                with t.s.connect("vda-a"):
                    raise AssertionError("it can be had still")
            except nbdclient.OptError:
                pass
            assert other.read(0, BLOCK) == t.now[:BLOCK]
            assert disk_of(t.q, t.id)["bytes-read"] >= read + BLOCK, "what was read is forgotten"
        assert [e["data"] for e in t.q.events if e["event"] == "BLOCK_EXPORT_DELETED"][-1:] == [
            {"id": "a"}]
        refused(t.q, "Export 'a' is not found", "block-export-del", id="a", mode="hard")
        export(t.q, "a", "vda-a")
        del t.q.events[:]
        backups.end(t.q, t.id)
        assert sorted(e["data"]["id"] for e in t.q.events if e["event"] == "BLOCK_EXPORT_DELETED") == [
            "a", "vda"]


@test
def names_and_ids_are_one_thing_each_over_all_backups():
    with Two() as t:
        export(t.q, "a", "vda-a")
        for ident, name, why in (("a", "new", "id 'a' is already in use"),
                                 ("vda", "new", "id 'vda' is already in use"),
                                 ("new", "vda", "Export 'vda' exists already"),
                                 ("new", "vda-a", "Export 'vda-a' exists already")):
            refused(t.q, why, "block-export-add", type="nbd", id=ident, node_name="vda", name=name)
        for name, why in (("vda-a", "Export 'vda-a' exists already"), ("a", "id 'a' is already in use, by "
                                                                       "the extra export 'vda-a'")):
            refused(t.q, why, "backup-begin", disks=[{"disk": "vda", "export": name}])
        second, _ = backups.begin(t.q, [{"disk": "vda", "export": "two"}])
        export(t.q, "b", "vda-b", node="two")
        export(t.q, "c", "vda-c", node="vda")  # the export of that name
        assert {i: e["backup"] for i, e in extras(t.q).items()} == {"a": t.id, "b": second, "c": t.id}
        backups.end(t.q, t.id)
        assert set(extras(t.q)) == {"b"}
        export(t.q, "a", "vda-a")  # the disk has one backup, whose export is called otherwise
        export(t.q, "named", "vda", description="for the other appliance")
        third, _ = backups.begin(t.q, [{"disk": "vda", "export": "three"}])
        t.q.cmd("block-export-del", id="named")
        refused(t.q, "Disk 'vda' has more than one running backup.*'two' or 'three'", "block-export-add",
                type="nbd", id="d", node_name="vda", name="d")
        for i in range(62):
            export(t.q, "m%d" % i, "m%d" % i, node="two")
        refused(t.q, "Export 'two' has 64 extra exports", "block-export-add", type="nbd", id="d",
                node_name="two", name="d")
        for ident in (second, third):
            backups.end(t.q, ident)


@test
def a_description_is_told_in_place_of_ours():
    with Two() as t:
        export(t.q, "a", "vda-a", description="für die zweite")
        with nbdclient.NBD(t.s.nbd) as c:
            c.client_flags()
            told = c.option(nbdclient.OPT_LIST)
        assert any("für die zweite".encode() in payload for _, payload in told), told
        backups.end(t.q, t.id)


@test
def killed_at_any_step_of_a_command_it_is_there_or_it_is_not():
    with Two(Dying) as t:
        s = t.s

        def dies(run, there_after):
            """Runs it to the death at each step; what was answered holds."""
            for nth in range(1, 200):
                for after in (False, True):
                    s.orders["varved"].arm(nth, after)
                    replied = False
                    try:
                        with s.qmp() as q:
                            run(q)
                        replied = True
                    except (EOFError, OSError):
                        pass
                    if not s.disarm("varved", s.daemon):
                        assert replied
                        return
                    s.start_daemon()
                    s.wait_disk("vda", "live")
                    with s.qmp() as q:
                        there = "a" in extras(q)
                        assert there == there_after or not replied
                        if there:
                            t.expect("vda-a", "mon", t.mon, t.AFTER_MON | t.AFTER_TUE)
                        if there and there_after:
                            q.cmd("block-export-del", id="a")
                        elif not there and not there_after:
                            export(q, "a", "vda-a", bitmaps=["mon"])
            raise AssertionError("it has too many steps")
        t.q.close()
        dies(lambda q: export(q, "a", "vda-a", bitmaps=["mon"]), True)
        dies(lambda q: q.cmd("block-export-del", id="a"), False)
        t.q = s.qmp()
        backups.end(t.q, t.id)


if __name__ == "__main__":
    main()
