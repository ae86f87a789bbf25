#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""varve pull against nbdkit, qemu-nbd and servers that misbehave."""
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time

from fakenbd import FakeNbd, hang_up, io_error, stall
from harness import (K, M, VARVE, Folder, Skip, allocated, good, main, misused, no_marker, refused, run, same,
                     test, varve)

B0 = "qemu:dirty-bitmap:b0"
ALLOCATION = "base:allocation"
SIZE = 24 * M


def some_data(seed=1, size=SIZE):
    """A disk with data, holes and zeroes that are not holes."""
    r = random.Random(seed)
    disk = bytearray(size)
    for off, n in ((0, 64 * K), (3 * M + 5, 2 * M), (10 * M, 4 * K), (size - 5000, 5000)):
        disk[off:off + n] = r.randbytes(n)
    return bytes(disk)


def write_sparse(path, content):
    with open(path, "wb") as f:
        f.truncate(len(content))
        for off in range(0, len(content), 64 * K):
            piece = content[off:off + 64 * K]
            if piece.count(0) != len(piece):
                f.seek(off)
                f.write(piece)


class Qcow2:
    """yesterday.img: a full pull; then changes of each kind; then q.qcow2 served with bitmap b0."""

    def __init__(self, d, serve=None):
        self.d, serve = d, serve or d.qemu_nbd
        run("qemu-img", "create", "-q", "-f", "qcow2", d("q.qcow2"), "64M")
        self.io("write -P 1 0 8M", "write -P 2 40M 3M")
        run("qemu-img", "convert", "-O", "raw", d("q.qcow2"), d("today.img"))
        server = serve("q.qcow2")
        good("pull", d.uri(), d("yesterday.img"), "--verify")
        d.stop(server)
        assert same(d("yesterday.img"), d("today.img"))
        run("qemu-img", "bitmap", "--add", "-g", "65536", d("q.qcow2"), "b0")
        self.io("write -P 7 1M 200k", "write -z 2M 1M", "discard 41M 1M", "write -P 8 50M 5000",
                "write -P 9 65500k 36k", "write -P 1 6M 64k")
        run("qemu-img", "convert", "-O", "raw", d("q.qcow2"), d("today.img"))
        serve("q.qcow2", "b0")

    def io(self, *commands):
        args = [a for c in commands for a in ("-c", c)]
        run("qemu-io", "-f", "qcow2", *args, self.d("q.qcow2"))


@test
def full_pull_copies_all_and_keeps_holes():
    with Folder() as d:
        write_sparse(d("src.img"), some_data())
        d.nbdkit("file", d("src.img"))
        said = good("pull", d.uri(), d("out.img"))
        assert same(d("src.img"), d("out.img"))
        assert allocated(d("out.img")) <= allocated(d("src.img"))
        assert said.startswith("pulled ") and said.count("\n") == 1, said
        assert os.stat(d("out.img")).st_mode & 0o777 == 0o600
        no_marker(d)


@test
def json_counts_what_was_moved():
    with Folder() as d:
        write_sparse(d("src.img"), some_data())
        d.nbdkit("file", d("src.img"))
        told = json.loads(good("--json", "pull", d.uri(), d("out.img"), "--verify"))
        assert told["size"] == told["dirty-bytes"] == SIZE, told
        assert told["data-bytes"] + told["zero-bytes"] == SIZE, told
        assert 2 * M < told["data-bytes"] < 4 * M and told["verified"] is True, told


@test
def full_pull_of_a_server_without_contexts_finds_the_zeroes_itself():
    with Folder() as d:
        d.write("src.img", some_data())
        d.nbdkit("--no-sr", "file", d("src.img"))
        told = json.loads(good("--json", "pull", d.uri(), d("out.img"), "--verify"))
        assert told["data-bytes"] == SIZE and told["verified"] is True, told
        assert same(d("src.img"), d("out.img"))
        assert allocated(d("out.img")) < 4 * M


@test
def oldstyle_server_is_pulled():
    with Folder() as d:
        d.write("src.img", some_data())
        d.nbdkit("-o", "file", d("src.img"))
        good("pull", d.uri(), d("out.img"), "--verify")
        assert same(d("src.img"), d("out.img"))
        refused("pull", d.uri(), d("o2.img"), "--context", B0, says=[B0, "offers none"])
        refused("pull", d.uri(), d("o2.img"), "--since", "b0", says="no export names")


@test
def odd_and_empty_sizes_are_pulled():
    with Folder() as d:
        for n, size in enumerate((0, 1, 511, M + 513)):
            d.write("src.img", b"x" * size)
            server = d.nbdkit("file", d("src.img"))
            good("pull", d.uri(), d("out%d" % n), "--verify")
            assert same(d("src.img"), d("out%d" % n)), size
            d.stop(server)


@test
def small_requests_are_used_where_the_server_wants_them():
    with Folder() as d:
        d.write("src.img", some_data())
        d.nbdkit("--filter=blocksize-policy", "file", d("src.img"), "blocksize-minimum=4096",
                 "blocksize-preferred=4096", "blocksize-maximum=65536",
                 "blocksize-error-policy=error")
        good("pull", d.uri(), d("out.img"), "--verify")
        assert same(d("src.img"), d("out.img"))


@test
def incremental_pull_makes_todays_of_yesterdays():
    """Dirty data, zeroes written, discarded ranges, unaligned ends; only dirty extents move."""
    with Folder() as d:
        Qcow2(d)
        good("pull", d.uri(), d("yesterday.img"), "--context", B0)
        assert same(d("yesterday.img"), d("today.img"))
        no_marker(d)


@test
def qemu_storage_daemon_is_pulled_whole_and_by_its_bitmap():
    if not shutil.which("qemu-storage-daemon"):
        raise Skip("qemu-storage-daemon is not installed")
    with Folder() as d:
        Qcow2(d, d.qemu_storage_daemon)
        for name in ("yesterday.img", "new.img"):
            good("pull", d.uri(), d(name), "--context", B0, "--verify")
            assert same(d(name), d("today.img"))


@test
def incremental_pull_verifies_and_counts():
    with Folder() as d:
        Qcow2(d)
        told = json.loads(good("pull", "--json", "--verify", d.uri(), d("yesterday.img"),
                               "--context", B0))
        assert same(d("yesterday.img"), d("today.img"))
        nbdinfo = json.loads(run("nbdinfo", "--json", "--map=" + B0, d.uri()).out)
        dirty = sum(e["length"] for e in nbdinfo if e["type"] == 1)
        assert told["dirty-bytes"] == dirty, (told, dirty)
        assert told["data-bytes"] + told["zero-bytes"] == dirty, told
        assert told["zero-bytes"] == 2 * M and told["size"] == 64 * M, told


@test
def zeroed_ranges_become_holes_of_the_backup():
    with Folder() as d:
        Qcow2(d)
        before = allocated(d("yesterday.img"))
        good("pull", d.uri(), d("yesterday.img"), "--context", B0)
        assert allocated(d("yesterday.img")) <= before - 2 * M + 256 * K


@test
def incremental_pull_touches_only_dirty_ranges():
    """Bytes outside the dirty extents stay as they are, also where they differ from the export."""
    content = some_data()
    marks = {ALLOCATION: [(SIZE, 0)], B0: [(M, 0), (64 * K, 1), (SIZE - M - 64 * K, 0)]}
    with Folder() as d, FakeNbd(d("sock"), content, marks):
        d.write("out.img", b"\xee" * SIZE)
        good("pull", d.uri(), d("out.img"), "--context", B0)
        got = d.read("out.img")
        assert got[M:M + 64 * K] == content[M:M + 64 * K]
        assert got[:M] == b"\xee" * M and got[M + 64 * K:] == b"\xee" * (SIZE - M - 64 * K)


@test
def with_a_context_and_no_file_the_pull_is_full():
    with Folder() as d:
        Qcow2(d)
        good("pull", d.uri(), d("new.img"), "--context", B0)
        assert same(d("new.img"), d("today.img"))


@test
def existing_file_is_not_overwritten_by_a_full_pull():
    with Folder() as d:
        d.write("src.img", some_data())
        d.write("out.img", b"precious")
        d.nbdkit("file", d("src.img"))
        refused("pull", d.uri(), d("out.img"), says=["exists", "--context"])
        assert d.read("out.img") == b"precious"
        no_marker(d)


@test
def another_size_is_refused():
    with Folder() as d:
        Qcow2(d)
        for size in (64 * M - 512, 64 * M + 512, 0):
            d.write("other.img", b"\x55" * size)
            refused("pull", d.uri(), d("other.img"), "--context", B0,
                    says=[str(size), str(64 * M), "full copy"])
            assert d.read("other.img") == b"\x55" * size
        no_marker(d)


@test
def what_is_no_regular_file_is_refused():
    with Folder() as d:
        d.write("src.img", some_data())
        d.nbdkit("file", d("src.img"))
        os.mkdir(d("folder"))
        os.mkfifo(d("fifo"))
        os.symlink("nowhere", d("dangling"))
        refused("pull", d.uri(), d("folder"), says="not a regular file")
        refused("pull", d.uri(), d("fifo"), says="not a regular file")
        refused("pull", d.uri(), d("dangling"), says="leads nowhere")
        refused("pull", d.uri(), d("none/out.img"), says="none/out.img")
        refused("pull", d.uri(), "", says="no name")
        no_marker(d)


@test
def marker_stands_beside_the_real_file():
    """A backup that is updated through a symbolic link is marked where it lies."""
    with Folder() as d:
        content = some_data()
        os.mkdir(d("real"))
        d.write("real/out.img", b"\0" * SIZE)
        os.symlink("real/out.img", d("latest"))
        marks = {ALLOCATION: [(SIZE, 0)], B0: [(SIZE, 1)]}
        with FakeNbd(d("sock"), content, marks, after_reads=2, then=hang_up):
            refused("pull", d.uri(), d("latest"), "--context", B0, says="partial")
        assert sorted(os.listdir(d("real"))) == ["out.img", "out.img.partial"]
        with FakeNbd(d("sock"), content, marks):
            good("pull", d.uri(), d("real/out.img"), "--context", B0)
        assert d.read("real/out.img") == content


@test
def file_in_use_is_refused():
    with Folder() as d:
        content = some_data()
        d.write("out.img", b"\0" * SIZE)
        marks = {ALLOCATION: [(SIZE, 0)], B0: [(SIZE, 1)]}
        with FakeNbd(d("sock"), content, marks, after_reads=2, then=stall) as server:
            p = subprocess.Popen([VARVE, "pull", d.uri(), d("out.img"), "--context", B0])
            try:
                assert server.stalled.wait(60)
                refused("pull", d.uri(), d("out.img"), "--context", B0, says="in use")
            finally:
                p.kill()
                p.wait()


def killed_pull(d, content, marks, *args, description=None):
    """Runs a pull until the server has answered some reads and no more, and kills it."""
    with FakeNbd(d("sock"), content, marks, after_reads=5, then=stall,
                 description=description) as server:
        p = subprocess.Popen([VARVE, "pull", d.uri(), d("out.img"), *args])
        try:
            assert server.stalled.wait(60), "never got so far"
        finally:
            p.send_signal(signal.SIGKILL)
            p.wait()


@test
def killed_incremental_is_marked_and_the_same_command_finishes_it():
    with Folder() as d:
        content = some_data(2)
        marks = {ALLOCATION: [(SIZE, 0)], B0: [(2 * M, 1), (4 * M, 0), (SIZE - 6 * M, 1)]}
        before = bytearray(content)
        before[:2 * M] = b"\x11" * (2 * M)
        before[6 * M:] = b"\x22" * (SIZE - 6 * M)
        d.write("out.img", before)
        killed_pull(d, content, marks, "--context", B0)
        marker = json.loads(d.read("out.img.partial"))
        assert marker["kind"] == "incremental" and marker["context"] == B0, marker
        assert marker["uri"] == d.uri() and isinstance(marker["pid"], int) and marker["time"]
        with FakeNbd(d("sock"), content, {**marks, "qemu:dirty-bitmap:other": [(SIZE, 0)]}):
            half = d.read("out.img")
            refused("pull", d.uri(), d("out.img"), says=["partial", "unfinished", B0])
            refused("pull", d.uri(), d("out.img"), "--context", "qemu:dirty-bitmap:other",
                    says=["partial", "unfinished", B0])
            assert d.read("out.img") == half
            good("pull", d.uri(), d("out.img"), "--context", B0, "--verify")
        assert d.read("out.img") == content
        no_marker(d)


@test
def killed_incremental_is_finished_from_the_same_base_only():
    """Half of yesterday's changes and all of today's since yesterday are no backup of anything."""
    with Folder() as d:
        content = some_data(2)
        marks = {ALLOCATION: [(SIZE, 0)], B0: [(SIZE, 1)]}
        d.write("out.img", b"\x11" * SIZE)
        killed_pull(d, content, marks, "--context", B0,
                    description="disk vda at the start of its epoch 9, changes since epoch 3 [a]")
        assert json.loads(d.read("out.img.partial"))["base"] == "epoch 3 [a]"
        half = d.read("out.img")
        for other in ("disk vda at the start of its epoch 9, changes since epoch 4 [a]",
                      "disk vdb at the start of its epoch 9, changes since epoch 3 [b]", None):
            with FakeNbd(d("sock"), content, marks, description=other):
                refused("pull", d.uri(), d("out.img"), "--context", B0,
                        says=["partial", "same base", "epoch 3 [a]"])
            assert d.read("out.img") == half
        with FakeNbd(d("sock"), content, marks, description="later, changes since epoch 3 [a]"):
            good("pull", d.uri(), d("out.img"), "--context", B0, "--verify")
        assert d.read("out.img") == content
        no_marker(d)


@test
def killed_full_pull_is_marked_and_the_same_command_finishes_it():
    with Folder() as d:
        content = some_data(3)
        marks = {ALLOCATION: [(SIZE, 0)], B0: [(SIZE, 0)]}
        killed_pull(d, content, marks)
        assert json.loads(d.read("out.img.partial"))["kind"] == "full"
        with FakeNbd(d("sock"), content, marks):
            # Nothing is dirty: taken for yesterday's backup, the half copy would stay as it is.
            refused("pull", d.uri(), d("out.img"), "--context", B0, says=["unfinished full"])
            good("pull", d.uri(), d("out.img"))
        assert d.read("out.img") == content
        no_marker(d)


@test
def killed_full_pull_with_a_context_is_finished_as_a_full_one():
    with Folder() as d:
        content = some_data(3)
        marks = {ALLOCATION: [(SIZE, 0)], B0: [(SIZE, 0)]}
        killed_pull(d, content, marks, "--context", B0)
        with FakeNbd(d("sock"), content, marks):
            good("pull", d.uri(), d("out.img"), "--context", B0)
        assert d.read("out.img") == content
        no_marker(d)


@test
def unfinished_full_pull_starts_over_without_old_bytes():
    """What an earlier attempt wrote where the source is a hole by now is gone."""
    with Folder() as d:
        killed_pull(d, b"\x99" * SIZE, {ALLOCATION: [(SIZE, 0)]})
        content = some_data(4)
        with FakeNbd(d("sock"), bytes(SIZE), {ALLOCATION: [(SIZE, 3)]}):
            good("pull", d.uri(), d("out.img"))
        assert d.read("out.img") == bytes(SIZE) != content


@test
def foreign_marker_is_not_believed():
    with Folder() as d:
        d.write("src.img", some_data())
        d.nbdkit("file", d("src.img"))
        for text in (b"", b"{}", b"no json", b'{"kind": 1}'):
            d.write("out.img.partial", text)
            refused("pull", d.uri(), d("out.img"), says=["out.img.partial", "not a marker"])
            assert not os.path.exists(d("out.img")) and d.read("out.img.partial") == text


@test
def lost_connection_is_one_line_and_the_marker_stays():
    with Folder() as d:
        content = some_data()
        marks = {ALLOCATION: [(SIZE, 0)]}
        with FakeNbd(d("sock"), content, marks, after_reads=7, then=hang_up):
            refused("pull", d.uri(), d("out.img"), says=["server", "partial"])
        assert json.loads(d.read("out.img.partial"))["kind"] == "full"
        with FakeNbd(d("sock"), content, marks):
            good("pull", d.uri(), d("out.img"))
        assert d.read("out.img") == content


@test
def read_error_names_the_range():
    with Folder() as d:
        marks = {ALLOCATION: [(SIZE, 0)]}
        with FakeNbd(d("sock"), some_data(), marks, after_reads=3, then=io_error):
            refused("pull", d.uri(), d("out.img"),
                    says=["cannot read 262144 bytes at ", "Input/output error", "partial"])


@test
def full_disk_is_one_line_and_the_marker_stays():
    with Folder() as d:
        d.write("src.img", random.Random(5).randbytes(8 * M))
        d.nbdkit("file", d("src.img"))
        limit = "ulimit -f 4096; trap '' XFSZ; exec \"$@\""
        done = subprocess.run(["bash", "-c", limit, "sh", VARVE, "pull", d.uri(), d("out.img")],
                              stderr=subprocess.PIPE, check=False)
        assert done.returncode == 1 and done.stderr.count(b"\n") == 1, done
        assert b"File too large" in done.stderr, done
        good("pull", d.uri(), d("out2.img"))


@test
def missing_context_is_said_with_what_there_is():
    with Folder() as d:
        marks = {ALLOCATION: [(SIZE, 0)], B0: [(SIZE, 0)]}
        d.write("out.img", bytes(SIZE))
        with FakeNbd(d("sock"), some_data(), marks):
            refused("pull", d.uri(), d("out.img"), "--context", "qemu:dirty-bitmap:b1",
                    says=["qemu:dirty-bitmap:b1", "offers", B0])
            refused("pull", d.uri(), d("new.img"), "--context", "qemu:dirty-bitmap:b1",
                    says=["qemu:dirty-bitmap:b1", "offers", B0])
        assert not os.path.exists(d("new.img"))
        no_marker(d)


@test
def hostile_status_is_a_clean_error():
    """Extents of length 0, beyond the end, without end, none at all, a context left out.

    A newer libnbd (1.22) judges itself: it leaves out extents of length 0, then the pull is right,
    and calls what reaches beyond the end a protocol error."""
    lies = {
        "length 0": lambda ctx, off, n: [(M, 1), (0, 0), (n - M, 1)],
        "beyond the end": lambda ctx, off, n: [(n, 0), (512, 1)],
        "beyond the end of": lambda ctx, off, n: [(0xffffffff, 1)],
    }
    marks = {ALLOCATION: [(SIZE, 0)], B0: [(SIZE, 1)]}
    for says, lie in lies.items():
        with Folder() as d, FakeNbd(d("sock"), some_data(), marks, status=lie):
            d.write("out.img", bytes(SIZE))
            for verb in (["pull", d.uri(), d("out.img"), "--context", B0], ["map", d.uri()]):
                done = varve(*verb)
                if done.status == 0:
                    assert says == "length 0" and (verb[0] == "map" or
                                                   d.read("out.img") == some_data()), str(done)
                else:
                    assert says in done.err or "Protocol error" in done.err, str(done)
                    assert d.read("out.img") == bytes(SIZE)
    for sent in ([], [ALLOCATION], [ALLOCATION, B0, B0]):
        with Folder() as d, FakeNbd(d("sock"), some_data(), marks, status=lambda c, o, n: [(M, 1)],
                                    send_contexts=sent):
            d.write("out.img", bytes(SIZE))
            refused("pull", d.uri(), d("out.img"), "--context", B0)
            assert d.read("out.img") == bytes(SIZE)


@test
def short_and_uneven_status_is_asked_again():
    """One extent a reply, of which each context ends elsewhere."""
    content = some_data(6)
    marks = {
        ALLOCATION: [(5 * M, 0), (M, 3), (SIZE - 6 * M, 0)],
        B0: [(K * 4, 1), (M, 0), (7 * M, 1), (SIZE - 8 * M - 4 * K, 0)],
    }
    content = content[:5 * M] + bytes(M) + content[6 * M:]
    server = None

    def short(ctx, off, n):
        length, flags = FakeNbd.honest(server, ctx, off, n)[0]
        return [(min(length, 768 * K if ctx == B0 else 640 * K), flags)]

    with Folder() as d:
        server = FakeNbd(d("sock"), content, marks, status=short)
        with server:
            old = bytearray(b"\x77" * SIZE)
            d.write("out.img", old)
            told = json.loads(good("--json", "pull", d.uri(), d("out.img"), "--context", B0))
        for off, n in ((0, 4 * K), (M + 4 * K, 7 * M)):
            old[off:off + n] = content[off:off + n]
        assert d.read("out.img") == bytes(old)
        assert told["dirty-bytes"] == 7 * M + 4 * K and told["zero-bytes"] == M, told


@test
def hole_that_is_not_zero_is_read():
    content = b"\x42" * M
    with Folder() as d, FakeNbd(d("sock"), content, {ALLOCATION: [(M, 1)]}):
        good("pull", d.uri(), d("out.img"))
        assert d.read("out.img") == content


@test
def verify_finds_a_server_that_lies_about_zeroes():
    content = b"\x42" * M
    with Folder() as d, FakeNbd(d("sock"), content, {ALLOCATION: [(M, 3)]}):
        refused("pull", d.uri(), d("out.img"), "--verify",
                says=["differs from the export at byte ", "partial"])
        assert os.path.exists(d("out.img.partial"))


@test
def connections_that_hang_are_not_waited_for():
    """A server that offers multi-conn may still serve one client at a time."""
    content = some_data()
    with Folder() as d, FakeNbd(d("sock"), content, {ALLOCATION: [(SIZE, 0)]}, greet=1) as server:
        begun = time.monotonic()
        good("pull", d.uri(), d("out.img"), "--verify")
        assert time.monotonic() - begun < 25, "waited for the handshake's deadline"
        assert d.read("out.img") == content and len(server.connections) > 1


@test
def server_that_is_busy_with_another_client_is_reached_when_that_has_gone():
    """qemu-nbd serves one client at a time and lets the next one wait."""
    with Folder() as d:
        run("qemu-img", "create", "-q", "-f", "qcow2", d("q.qcow2"), "1M")
        d.qemu_nbd("q.qcow2")
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(d("sock"))
            assert other.recv(8) == b"NBDMAGIC"
            p = subprocess.Popen([VARVE, "pull", d.uri(), d("out.img")],
                                 stdout=subprocess.DEVNULL)
        assert p.wait(60) == 0


@test
def since_asks_for_the_export_of_that_base():
    """NAME@BASE, the base percent-encoded, its context by its own name."""
    with Folder() as d:
        d.write("src.img", some_data())
        base = "my bitmap/%"
        script = d.write("plugin.sh", b"""
case "$1" in
open) echo "$3" >>$LOGFILE; echo x;;
get_size) echo 1048576;;
pread) dd if=/dev/zero bs=$3 count=1 2>/dev/null;;
*) exit 2;;
esac
""")
        os.chmod(script, 0o755)
        os.environ["LOGFILE"] = d("exports")
        d.nbdkit("sh", script)
        refused("pull", d.uri("vda"), d("out.img"), "--since", base,
                says="no context 'qemu:dirty-bitmap:my bitmap/%'")
        assert d.read("exports").decode().split("\n")[-2] == "vda@my%20bitmap%2F%25"


@test
def bad_command_lines_are_usage():
    misused("pull", says="URI FILE")
    misused("pull", "nbd://x", says="URI FILE")
    misused("pull", "nbd://x", "f", "g", says="one word too many")
    misused("pull", "nbd://x", "f", "--context", B0, "--since", "b0", says="exclude")
    misused("pull", "nbd://x", "f", "--context", ALLOCATION, says="not a dirty bitmap")
    misused("pull", "nbd://x", "f", "--context", says="needs an argument")


@test
def bad_uris_are_one_line():
    with Folder() as d:
        refused("pull", "nbd+unix:///?socket=" + d("none"), d("f"), says="No such file")
        refused("pull", "file.img", d("f"), says="URI")
        refused("pull", "nbd://127.0.0.1:1/x", d("f"), says="refused")
        assert os.listdir(d.path) == []


@test
def pipe_gets_no_progress_bar():
    with Folder() as d:
        write_sparse(d("src.img"), some_data())
        d.nbdkit("--filter=delay", "file", d("src.img"), "rdelay=50ms")
        result = varve("pull", d.uri(), d("out.img"))
        assert result.status == 0 and result.err == "", str(result)


@test
def terminal_gets_a_progress_bar():
    with Folder() as d:
        write_sparse(d("src.img"), some_data())
        d.nbdkit("--filter=delay", "file", d("src.img"), "rdelay=300ms")
        master, slave = os.openpty()
        p = subprocess.Popen([VARVE, "pull", d.uri(), d("out.img")], stderr=slave,
                             stdout=subprocess.DEVNULL)
        os.close(slave)
        seen = b""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                piece = os.read(master, 4096)
            except OSError:
                break
            if not piece:
                break
            seen += piece
        assert p.wait(60) == 0
        os.close(master)
        assert b"\rpulling [" in seen and b"%" in seen and seen.endswith(b"\r\x1b[K"), seen


main()
