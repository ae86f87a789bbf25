#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""QEMU's block layer as a client: qemu-img, qemu-io, and qemu-nbd or qemu-storage-daemon that
export what they read from us once more."""
import json
import os

from clients import client, main, need, refused, run, spawn
from harness import K, M, can_connect, wait_for
from history import BLOCK, SIZE, ZERO, bitmap
from qemu_map import dirty_by_qemu, dotted, image, qemu_img

PACKAGE = "qemu-utils"


@client(PACKAGE, "qemu-img info, map of allocation")
def qemu_img_maps_the_allocation(h, r):
    """data, zeroes inside dirty ranges, holes: every extent, on both sides of 4 GiB."""
    for export in ("vda", "vda-full", "big", "big-full"):
        model, full = h.model(export)
        info = json.loads(qemu_img(h, r, "info", export, options=["--output=json"]).stdout)
        assert info["virtual-size"] == model.size, info
        got = json.loads(qemu_img(h, r, "map", export, options=["--output=json"]).stdout)
        seen = []
        for e in got:
            kind = (e["data"], e["zero"])
            if seen and seen[-1][2] == kind:
                seen[-1][1] += e["length"]
            else:
                seen.append([e["start"], e["length"], kind])
        want = [[off, n, (not flags & 1, bool(flags & ZERO))]
                for off, n, flags in model.allocation(full)]
        assert seen == want, export


@client(PACKAGE, "qemu-img map with x-dirty-bitmap")
def qemu_img_maps_the_bitmap(h, r):
    for disk in ("vda", "big"):
        want = h.tuesday[disk].changed()
        assert dirty_by_qemu(h, r, disk, bitmap("backup-" + disk)) == want
        assert dirty_by_qemu(h, r, disk + "@monday", bitmap("monday")) == want


@client(PACKAGE, "qemu-img convert to raw and qcow2, compare")
def qemu_img_converts_and_compares(h, r):
    """Also with the most coroutines; compare finds the copy equal, and another one different."""
    raw, qcow = h.s.path("copy.raw"), h.s.path("copy.qcow2")
    for export, options in (("vda-full", []), ("vda", ["-m", "16", "-W"]), ("big", [])):
        qemu_img(h, r, "convert", export, raw, options=["-O", "raw", *options])
        h.expect_copy(export, raw)
    qemu_img(h, r, "convert", "vda", qcow, options=["-O", "qcow2", "-c"])
    run(h, ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", qcow, raw])
    h.expect_copy("vda", raw)
    objects, opts = image(h, r, "vda")
    name = "driver=qcow2,file.driver=file,file.filename=" + qcow
    same = run(h, ["qemu-img", "compare", *objects, *opts, name])
    assert "identical" in same.stdout, same
    objects, opts = image(h, r, "vda-full")
    other = run(h, ["qemu-img", "compare", *objects, *opts, name], check=False)
    assert other.returncode == 1 and "ontent mismatch" in other.stdout, other
    os.unlink(qcow)


@client(PACKAGE, "qemu-img map + qemu-io -C: an incremental qcow2, rebased onto yesterday's copy")
def qemu_io_copies_what_is_dirty(h, r):
    """Copy-on-read of the dirty ranges into an empty overlay, which then gets monday's full backup
    below it; zeroes that replaced data have to be in the overlay."""
    base, top, raw = h.yesterdays_copy(), h.s.path("top.qcow2"), h.s.path("copy.raw")
    objects, opts = r.qemu(h, "vda")
    backing = "json:" + json.dumps({"driver": "raw", "file": opts})
    run(h, ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", backing, top, SIZE])
    reads = []
    for off, n in dirty_by_qemu(h, r, "vda", bitmap("backup-vda")):
        reads += ["-c", "read %d %d" % (off, n)]
    run(h, ["qemu-io", *objects, "-C", "-f", "qcow2", *reads, top])
    run(h, ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", base, top])
    run(h, ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", top, raw])
    h.expect_copy("vda", raw)
    os.unlink(top)
    os.unlink(base)


@client(PACKAGE, "qemu-io: reads at odd offsets, map; writes are refused")
def qemu_io_reads_and_may_not_write(h, r):
    objects, opts = r.qemu(h, "vda")
    name = "json:" + json.dumps(opts)
    model = h.tuesday["vda"]
    zeroes = next(b for b in range(SIZE // BLOCK) if b not in model.blocks) * BLOCK
    out = run(h, ["qemu-io", *objects, "-r", "-c", "read -P 0 %d 65536" % zeroes,
                  "-c", "read -v 4096 512", "-c", "read -q 1 65537", "-c", "map", name]).stdout
    assert "failed" not in out, out
    hexes = "".join(line[10:58].replace(" ", "") for line in out.splitlines()
                    if len(line) > 60 and line[8:10] == ": ")
    assert hexes == model.block(0)[4096:4608].hex(), out
    out = run(h, ["qemu-io", *objects, "-r", "-c", "read -P 0x77 0 65536", name], check=False)
    assert "attern verification failed" in out.stdout, "qemu-io cannot tell"
    refused(h, ["qemu-io", *objects, "-c", "write 0 512", name])


def exported_again(h, server, sock, name):
    p = spawn(h, server)
    try:
        wait_for("%s listens" % server[0], lambda: can_connect(sock), p)
        target = h.s.path("copy.img")
        run(h, ["nbdcopy", "nbd+unix:///%s?socket=%s" % (name, sock), target])
        h.expect_copy("vda", target)
    finally:
        h.s.stop(p)
        if os.path.exists(sock):
            os.unlink(sock)


@client(PACKAGE, "qemu-nbd -r of our export, copied by nbdcopy")
def qemu_nbd_exports_the_view_again(h, r):
    """As qemu-nbd -c would, but for the kernel: /dev/nbd is not needed."""
    sock = os.path.join(h.s.socks, "again.sock")
    objects, opts = image(h, r, "vda")
    exported_again(h, ["qemu-nbd", *objects, "-r", "-t", "-k", sock, "-x", "again", *opts], sock,
                   "again")


@client(PACKAGE, "qemu-storage-daemon of our export, copied by nbdcopy")
def qemu_storage_daemon_exports_the_view_again(h, r):
    need("qemu-storage-daemon")
    sock = os.path.join(h.s.socks, "again.sock")
    objects, opts = r.qemu(h, "vda", node_name="ours", read_only="on")
    exported_again(h, ["qemu-storage-daemon", *objects, "--blockdev", ",".join(dotted(opts)),
                       "--nbd-server", "addr.type=unix,addr.path=" + sock,
                       "--export", "nbd,id=e,node-name=ours,name=again,writable=off"], sock, "again")


if __name__ == "__main__":
    main()
