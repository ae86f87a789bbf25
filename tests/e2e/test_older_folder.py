#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A disk's folder that came back from an older copy while the catalogue did not: nobody has written to
the image since, so only names of epochs tell."""
import os
import shutil

import backups
from harness import K, M, Stack, wait_for
from qmpclient import QMPError
from tap import main, test

SIZE, BLOCK = 16 * M, 64 * K


def refused(q, word, name, /, **args):
    try:
        q.cmd(name, **args)
    except QMPError as e:
        assert word in e.desc, e.desc
        return
    raise AssertionError("%s was not refused" % name)


def stop_all(s):
    s.stop(s.daemon)
    s.stop(s.disks["vda"].process)


def reboot(s):
    shutil.rmtree(s.runtime)
    os.mkdir(s.runtime)


def serve(s):
    return s.serve("vda", s.disks["vda"].image, granularity="64K")


def put_back(s, copy):
    """The folder as it is in that copy of the state directory; the catalogue stays."""
    shutil.rmtree(os.path.join(s.state, "vda"))
    shutil.copytree(os.path.join(copy, "vda"), os.path.join(s.state, "vda"))


def touch(image, ns):
    os.utime(image, ns=(ns, ns))


def begin_disk(s, later, doubted=False):
    """Checkpoint a; a copy of the state directory; and so many checkpoints more, without a write.
    doubted: in a later era, and the image's time is then what it was."""
    disk = s.start("vda", SIZE, b"\x11" * SIZE, granularity="64K")
    with s.qmp() as q, disk.connect() as c:
        q.cmd("block-dirty-bitmap-add", node="vda", name="rec")
        c.write(0, b"a" * BLOCK)
        q.cmd("checkpoint-create", name="a", disks=["vda"])
    copy = s.path("copy")
    stop_all(s)
    shutil.copytree(s.state, copy)
    was = os.stat(disk.image).st_mtime_ns
    if doubted:
        touch(disk.image, was + 5 * 10**9)
    serve(s)
    s.start_daemon()
    s.wait_disk("vda", "inconsistent" if doubted else "live")
    with s.qmp() as q:
        for i in range(later):
            q.cmd("checkpoint-create", name="late%d" % i, disks=["vda"])
    stop_all(s)
    touch(disk.image, was)
    return copy


def check_doubted(s, q, names, word):
    """Nothing from before can be used, it is said why; a full backup and what comes after it can."""
    info = s.disk_info("vda")
    assert word in info["changed"]["why"], info
    for name in names:
        refused(q, "vda", "backup-begin", disks=[{"disk": "vda", "since": name}])
    refused(q, "inconsistent", "backup-begin", disks=[{"disk": "vda", "bitmap": "rec"}])
    for p in q.cmd("query-checkpoints"):
        assert not p["disks"][0]["usable"] and word in p["disks"][0]["reason"], p
    disk = s.disks["vda"]
    with disk.connect() as c:
        ident, _ = backups.begin(q, ["vda"], checkpoint="new")
        backups.end(q, ident)
        c.write(3 * M, b"n" * BLOCK)
        ident, answer = backups.begin(q, [{"disk": "vda", "since": "new"}])
        assert backups.dirty(s.nbd, "vda", answer["vda"]["context"]) == [(3 * M, BLOCK)]
        backups.end(q, ident)
    wait_for("all is well again", lambda: s.disk_info("vda")["state"] == "live")
    # The numbers go on behind all that the catalogue knew.
    epochs = [d["epoch"] for p in q.cmd("query-checkpoints") for d in p["disks"] if p["name"] != "new"]
    assert s.disk_info("vda")["epoch"] > max(epochs)


@test
def before_the_plugin_starts_the_daemon_finds_it():
    for later, doubted in ((1, False), (3, True)):
        with Stack() as s:
            copy = begin_disk(s, later, doubted)
            put_back(s, copy)
            reboot(s)
            s.start_daemon()
            s.wait_disk("vda", "inconsistent")
            assert not os.path.exists(os.path.join(s.state, "vda", "doubt"))
            serve(s)
            with s.qmp() as q:
                s.wait_disk("vda", "inconsistent")
                check_doubted(s, q, ["a", "late0"], "from an older copy")


@test
def where_the_plugin_was_first_nothing_is_named_until_it_starts_again():
    """The guest has its disk, and writes in epochs whose numbers the catalogue has for others."""
    for quick in (True, False):
        with Stack() as s:
            copy = begin_disk(s, 2)
            put_back(s, copy)
            reboot(s)
            with serve(s).connect() as c:
                c.write(2 * M, b"w" * BLOCK)
            s.start_daemon()
            s.wait_disk("vda", "inconsistent")
            with s.qmp() as q:
                for args in ({"disk": "vda"}, {"disk": "vda", "since": "a"}, {"disk": "vda", "since": "late1"}):
                    refused(q, "older copy", "backup-begin", disks=[args])
                refused(q, "older copy", "checkpoint-create", name="x", disks=["vda"])
                assert "start its nbdkit again" in s.disk_info("vda")["reason"]
            if quick:  # nobody looks meanwhile
                s.stop(s.daemon)
            s.stop(s.disks["vda"].process)
            serve(s)
            if quick:
                s.start_daemon()
            with s.qmp() as q:
                wait_for("it is doubted", lambda: "changed" in s.disk_info("vda"))
                check_doubted(s, q, ["a", "late0", "late1"], "from an older copy")


@test
def a_folder_that_has_gone_on_under_the_same_numbers_is_found_by_its_births():
    """It went on with the catalogue of its time; then the newer catalogue came back."""
    for daemon_first in (True, False):
        with Stack() as s:
            copy = begin_disk(s, 2)
            newer = s.path("newer")
            shutil.copytree(s.state, newer)
            shutil.rmtree(s.state)
            shutil.copytree(copy, s.state)
            reboot(s)
            serve(s)
            s.start_daemon()
            s.wait_disk("vda", "live")
            with s.qmp() as q, s.disks["vda"].connect() as c:
                for i in range(3):
                    q.cmd("checkpoint-create", name="other%d" % i, disks=["vda"])
                    c.write(i * M, b"%d" % i * BLOCK)
            stop_all(s)
            for slot in ("catalogue-0", "catalogue-1"):
                shutil.copy(os.path.join(newer, slot), os.path.join(s.state, slot))
            reboot(s)
            if daemon_first:
                s.start_daemon()
                s.wait_disk("vda", "inconsistent")
                serve(s)
            else:
                serve(s)
                s.start_daemon()
                s.wait_disk("vda", "inconsistent")
                with s.qmp() as q:
                    refused(q, "older copy", "backup-begin", disks=[{"disk": "vda", "since": "late1"}])
                s.stop(s.disks["vda"].process)
                serve(s)
            with s.qmp() as q:
                wait_for("it is doubted", lambda: "changed" in s.disk_info("vda"))
                check_doubted(s, q, ["a", "late0", "late1"], "went on from an older copy")


@test
def a_catalogue_that_is_older_than_the_folder_raises_no_alarm():
    """What it names is there."""
    with Stack() as s:
        copy = begin_disk(s, 3)
        for slot in ("catalogue-0", "catalogue-1"):
            shutil.copy(os.path.join(copy, slot), os.path.join(s.state, slot))
        reboot(s)
        with serve(s).connect() as c:
            c.write(5 * M, b"x" * BLOCK)
        s.start_daemon()
        s.wait_disk("vda", "live")
        with s.qmp() as q:
            ident, answer = backups.begin(q, [{"disk": "vda", "since": "a"}])
            assert backups.dirty(s.nbd, "vda", answer["vda"]["context"]) == [(5 * M, BLOCK)]
            backups.end(q, ident)
            assert "changed" not in s.disk_info("vda")


if __name__ == "__main__":
    main()
