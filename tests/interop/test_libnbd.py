#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""libnbd's programs and its Python module: nbdinfo, nbdcopy, nbdsh, nbdfuse, nbddump."""
import json
import os

import clients
from clients import client, main, need, refused, run
from harness import M, wait_for
from history import ALLOC, BIG, EXPORTS, SIZE, USER, backups, bitmap
from reach import ALL, UNIX
from tap import Skip

PACKAGE = "libnbd-bin"


@client(PACKAGE, "nbdinfo: --json, --list, --size, --can, --is")
def nbdinfo_tells_what_is_served(h, r):
    """Size, flags, block sizes, contexts, TLS, the list of exports."""
    info = json.loads(run(h, ["nbdinfo", "--json", r.uri(h, "vda")]).stdout)
    export, = info["exports"]
    assert info["protocol"] == "newstyle-fixed" and info["structured"] is True
    assert info["TLS"] is (r.tls is not None), info
    assert export["export-size"] == SIZE and export["is_read_only"] is True
    assert export["can_multi_conn"] is True and export["can_df"] is True
    assert export["block_size_minimum"] == 1 and export["block_size_maximum"] == 32 * M
    assert {ALLOC, bitmap("backup-vda"), "varve:changes:backup-vda", "varve:lost"} <= \
        set(export["contexts"]), export
    assert [c for c in export["contexts"] if c.startswith("qemu:")] == [bitmap("backup-vda")], export
    listed = json.loads(run(h, ["nbdinfo", "--list", "--json", r.uri(h, "")]).stdout)
    assert sorted(e["export-name"] for e in listed["exports"]) == sorted(EXPORTS), listed
    assert run(h, ["nbdinfo", "--size", r.uri(h, "big")]).stdout.strip() == str(BIG)
    run(h, ["nbdinfo", "--can", "multi-conn", r.uri(h, "vda")])
    run(h, ["nbdinfo", "--is", "read-only", r.uri(h, "vda")])


def nbdinfo_map(h, r, export, context):
    got = json.loads(run(h, ["nbdinfo", "--map=" + context, "--json", r.uri(h, export)]).stdout)
    merged = []
    for e in got:
        if merged and merged[-1][2] == e["type"]:
            merged[-1][1] += e["length"]
        else:
            merged.append([e["offset"], e["length"], e["type"]])
    return [tuple(e) for e in merged]


@client(PACKAGE, "nbdinfo --map of each context")
def nbdinfo_maps_are_true(h, r):
    """base:allocation, the dirty bitmap, varve:changes: every extent, on both sides of 4 GiB."""
    for export in EXPORTS:
        model, full = h.model(export)
        disk = export.partition("-")[0]
        assert nbdinfo_map(h, r, export, ALLOC) == model.allocation(full), export
        assert nbdinfo_map(h, r, export, bitmap("backup-" + disk)) == model.bitmap(full), export
        if not full:
            assert nbdinfo_map(h, r, disk + "@monday", bitmap("monday")) == model.bitmap()
            assert nbdinfo_map(h, r, disk, "varve:changes:backup-" + disk) == model.changes()
    totals = run(h, ["nbdinfo", "--map", "--totals", r.uri(h, "vda")]).stdout
    assert "100.0%" not in totals and "data" in totals, totals


@client(PACKAGE, "nbdcopy: full copies; 1, 4, 16 connections; --no-extents, --synchronous")
def nbdcopy_makes_full_copies(h, r):
    target = h.s.path("copy.img")
    for export, options in (("vda-full", []), ("vda", ["--connections=1"]),
                            ("vda", ["--connections=16", "--requests=64"]),
                            ("vda", ["--no-extents"]), ("vda", ["--synchronous"]),
                            ("big-full", []), ("big", ["--connections=4"])):
        run(h, ["nbdcopy", *options, r.uri(h, export), target])
        h.expect_copy(export, target)


@client(PACKAGE, "nbdcopy of NAME+delta onto yesterday's copy, as in varved(1)")
def nbdcopy_of_delta_makes_todays_of_yesterdays(h, r):
    need("nbdkit")
    for export in ("vda+delta", "vda@monday+delta"):
        target = h.yesterdays_copy()
        run(h, ["nbdcopy", "--destination-is-zero", "-S", "0", r.uri(h, export),
                "--", "[", "nbdkit", "file", target, "]"])
        h.expect_copy("vda", target)


@client(PACKAGE, "nbdcopy of a backup into a disk that runs, which then is backed up incrementally")
def nbdcopy_restores_into_a_running_disk(h, r):
    """Nothing but nbdcopy on both ends; what was on the disk and is not in the backup is gone."""
    disk = h.s.serve("restored", h.s.image("restored.img", SIZE, b"\xee" * SIZE), granularity="64K")
    try:
        h.s.wait_disk("restored", "live")
        ident, _ = backups.begin(h.q, ["restored"], checkpoint="before")
        old = h.s.path("old.copy")
        run(h, ["nbdcopy", r.uri(h, "restored"), old])
        backups.end(h.q, ident)
        run(h, ["nbdcopy", "--flush", r.uri(h, "vda"), disk.uri])
        ident, _ = backups.begin(h.q, [{"disk": "restored", "since": "before"}])
        run(h, ["nbdcopy", "--destination-is-zero", "-S", "0", r.uri(h, "restored+delta"),
                "--", "[", "nbdkit", "file", old, "]"])
        backups.end(h.q, ident)
        assert h.tuesday["vda"].difference(disk.image) is None, "the disk is not what was restored"
        h.expect_copy("vda", old)
    finally:
        h.drop("restored")


SHELL = r"""
import json
for c in %(contexts)r + %(contexts)r[:1]:
    h.add_meta_context(c)  # the first one twice, as virtnbdbackup does
h.set_uri_allow_local_file(True)
h.connect_uri(%(uri)r)
assert h.is_read_only() and h.can_multi_conn() and h.can_df()
maps = {c: [] for c in %(contexts)r}
size, off = h.get_size(), 0
bits = 64 if hasattr(h, "block_status_64") else 32
while off < size:
    ends = {}
    def take(context, at, entries, error):
        pairs = entries if bits == 64 else list(zip(entries[::2], entries[1::2]))
        assert at == off
        maps[context] += [list(p) for p in pairs]
        ends[context] = at + sum(n for n, _ in pairs)
    if bits == 64:
        h.block_status_64(size - off, off, take)
    else:
        h.block_status(min(size - off, 0xFFFF0000), off, take)
    assert len(ends) == len(maps) and len(set(ends.values())) == 1, ends
    assert size >= 1 << 32 or ends == dict.fromkeys(maps, size), "not answered whole"
    off = ends.popitem()[1]
data = h.pread(1000, %(at)d)
chunks = []
whole = h.pread_structured(300000, %(at)d, lambda b, o, s, e: chunks.append((o, bytes(b))))
assert whole[:1000] == data and all(whole[o - %(at)d:][:len(b)] == b for o, b in chunks)
try:
    h.pread(1024, size)
    raise SystemExit("a read beyond the end was not refused")
except nbd.Error as e:
    assert e.errno == "EINVAL", e
print(json.dumps({"maps": maps, "data": data.hex(), "libnbd": h.get_version(),
    "extended": bool(getattr(h, "get_extended_headers_negotiated", lambda: False)())}))
h.shutdown()
"""


def merged(pairs):
    out, off = [], 0
    for n, flags in pairs:
        if out and out[-1][2] == flags:
            out[-1][1] += n
        else:
            out.append([off, n, flags])
        off += n
    return [tuple(e) for e in out]


def shell(h, r, export, contexts, at):
    text = SHELL % {"contexts": contexts, "uri": r.uri(h, export), "at": at}
    out = run(h, ["nbdsh", "-c", text]).stdout
    return json.loads(out.splitlines()[-1])


@client("python3-libnbd", "nbdsh: four contexts at once, one asked for twice; structured reads; an error")
def nbdsh_reads_and_maps(h, r):
    """All contexts of a reply end together, below 4 GiB at the disk's end; a read beyond is refused."""
    for disk in ("vda", "big"):
        model = h.tuesday[disk]
        names = [ALLOC, bitmap("backup-" + disk), "varve:changes:backup-" + disk, "varve:lost"]
        got = shell(h, r, disk, names, 65000)
        truth = [model.allocation(), model.bitmap(), model.changes(), [(0, model.size, 0)]]
        for name, want in zip(names, truth):
            assert merged(got["maps"][name]) == want, (disk, name)
        assert got["data"] == (model.block(0) + model.block(1))[65000:66000].hex()
        if got["libnbd"] and tuple(map(int, got["libnbd"].split(".")[:2])) >= (1, 18):
            assert got["extended"], "extended headers were not negotiated"


WHOLE = """
if not hasattr(h, "get_extended_headers_negotiated"):
    print("old")
    raise SystemExit
h.add_meta_context("base:allocation")
h.set_uri_allow_local_file(True)
h.connect_uri(%r)
assert h.get_extended_headers_negotiated()
got = []
h.block_status_64(h.get_size(), 0, lambda c, o, e, r: got.extend(map(list, e)))
print(got)
"""


@client("python3-libnbd", "nbdsh: extended headers, one BLOCK_STATUS over more than 4 GiB")
def extended_headers_map_a_large_disk_in_one_request(h, r):
    out = run(h, ["nbdsh", "-c", WHOLE % r.uri(h, "big")]).stdout.strip()
    if out == "old":
        raise Skip("libnbd before 1.18 has no extended headers")
    assert merged(json.loads(out)) == h.tuesday["big"].allocation(), out


@client(PACKAGE, "nbdfuse: the backup as a file")
def nbdfuse_mounts_the_view(h, r):
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise Skip("FUSE cannot be used here")
    mount = h.s.path("mnt")
    os.mkdir(mount)
    p = clients.spawn(h, ["nbdfuse", "-r", mount, r.uri(h, "vda")])
    inside = os.path.join(clients.seen_by_us(mount), "nbd")
    try:
        wait_for("nbdfuse", lambda: os.path.exists(inside), p)
    except (RuntimeError, TimeoutError):
        with open(p.log) as f:
            why = f.read().strip()
        h.s.killed.add(p.pid)
        os.rmdir(mount)
        if "nbd_set_uri_allow_local_file" in why:
            raise Skip("this nbdfuse takes no credentials from a URI")
        if "not permitted" in why or "ermission" in why or "fusermount" in why:
            raise Skip("FUSE cannot be used here")
        raise
    try:
        at = h.tuesday["vda"].difference(inside)
    finally:
        run(h, (["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]) + [mount])
        p.wait(60)
        os.rmdir(mount)
    assert at is None, "nbdfuse shows something else at %d" % at


@client(PACKAGE, "nbddump", over=[UNIX])
def nbddump_shows_the_bytes(h, r):
    need("nbddump")
    out = run(h, ["nbddump", "-n", "64", r.uri(h, "vda")]).stdout
    got = "".join(line.split("|")[0].split(":")[1].replace(" ", "") for line in out.splitlines()
                  if ":" in line)
    assert got == h.tuesday["vda"].block(0)[:64].hex(), out


@client(PACKAGE, "nbdcopy to the export (and nbdzero, nbddiscard): refused")
def writers_are_refused_with_a_reason(h, r):
    source = h.s.image("new.img", SIZE, b"new")
    said = refused(h, ["nbdcopy", source, r.uri(h, "vda")])
    assert "read" in said, said
    for program in ("nbdzero", "nbddiscard"):
        if clients.find(program):
            refused(h, [program, r.uri(h, "vda")])
    assert run(h, ["nbdinfo", "--size", r.uri(h, "vda")]).stdout.strip() == str(SIZE)


@client(PACKAGE, "nbdcopy in plain, or as a stranger: refused", over=[r for r in ALL if r.tls])
def strangers_are_refused(h, r):
    """In plain, and with credentials that the server does not know."""
    uri = r.uri(h, "vda")
    said = refused(h, ["nbdcopy", uri.replace("nbds", "nbd", 1), "null:"])
    assert "TLS" in said, said
    if r.tls == "psk":
        refused(h, ["nbdcopy", uri.replace(USER + "@", "stranger@"), "null:"])


if __name__ == "__main__":
    main()
