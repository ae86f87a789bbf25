#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What survives the death of the daemon and of nbdkit: tracking, checkpoints, open backups."""
import errno
import os
import signal
import threading

import backups
from harness import K, M, Stack, wait_for
from nbdclient import CMD_READ
from qmpclient import QMPError
from tap import main, rng, test
from writers import Guests

SIZE, BLOCK = 64 * M, 64 * K
BITMAP = "qemu:dirty-bitmap:backup-vda"


def stable(listed):
    """What of query-backups must not change when a daemon comes back."""
    return [(b["id"], b["state"], [(d["disk"], d["export"]) for d in b["disks"]]) for b in listed]


def names(listed):
    return [c["name"] for c in listed]


@test
def a_killed_daemon_comes_back_with_the_same_backups_and_bytes():
    """kill -9 during a pull, with guests at full speed: their I/O goes on without an error; started
    again the daemon lists the same checkpoints and backups, and new clients read the same bytes."""
    random = rng("kill-daemon")
    with Stack() as s:
        disk = s.start("vda", SIZE)
        with Guests(disk, SIZE, 3, random) as guests:
            for round_ in range(3):
                with s.qmp() as q:
                    wait_for("guests write", lambda: guests.progress() > 100 * (round_ + 1)
                             or guests.errors)
                    q.cmd("checkpoint-create", name="c%d" % round_, disks=["vda"])
                    ident, answer = backups.begin(q, [{"disk": "vda", "since": "c0"}
                                                      if round_ else {"disk": "vda"}],
                                                  checkpoint="b%d" % round_)
                    context = answer["vda"]["context"]
                    image = backups.pull(s.nbd, "vda")
                    dirty = backups.dirty(s.nbd, "vda", context)
                    listed = stable(q.cmd("query-backups"))
                    checkpoints = names(q.cmd("query-checkpoints"))

                def doomed():
                    """A pull that the daemon's death cuts off."""
                    try:
                        while True:
                            backups.pull(s.nbd, "vda")
                    except (EOFError, OSError):
                        pass
                t = threading.Thread(target=doomed, daemon=True)
                t.start()
                with s.connect("vda") as c:
                    c.read(random.randrange(SIZE - M), M)
                s.kill(s.daemon)
                t.join()
                before = guests.progress()
                wait_for("guests go on without a daemon",
                         lambda: guests.progress() > before + 50 or guests.errors)
                guests.check()
                s.start_daemon()
                s.wait_disk("vda", "live")
                with s.qmp() as q:
                    assert stable(q.cmd("query-backups")) == listed
                    assert names(q.cmd("query-checkpoints")) == checkpoints
                    assert backups.pull(s.nbd, "vda") == image, "other bytes than before the kill"
                    assert backups.dirty(s.nbd, "vda", context) == dirty
                    backups.end(q, ident)
                    assert not [b for b in q.cmd("query-backups")
                                if b["state"] in ("running", "degraded")]
            guests.stop()


@test
def what_clients_got_errors_for_before_a_kill_is_in_the_next_incremental():
    """A read that spans a lost block fails as a whole, and so does one of an image that cannot be
    read; the daemon is killed; the end with success comes to its successor.  The next incremental
    has exactly these two ranges, and no file tells of them any more."""
    content = b"".join(bytes([i % 251 + 1]) * BLOCK for i in range(SIZE // BLOCK))
    with Stack() as s:
        disk = s.start("vda", SIZE, content, granularity="64K", scratch_max="64K",
                       on_scratch_full="degrade")
        runtime = os.path.join(s.runtime, "vda")
        with s.qmp() as q, disk.connect() as guest:
            ident, _ = backups.begin(q, ["vda"], checkpoint="c")
            guest.write(0, b"kept" + content[4:BLOCK])
            guest.write(5 * M, b"lost" + content[5 * M + 4:5 * M + BLOCK])
            os.truncate(disk.image, 32 * M)
            with s.connect("vda") as c:
                for off, length in ((4 * M + BLOCK, 2 * M), (40 * M, 3 * BLOCK)):
                    c.send(CMD_READ, off, length)
                    r = c.recv()
                    assert r.error == errno.EIO, (off, r.error)
            os.truncate(disk.image, SIZE)
        s.kill(s.daemon)
        s.start_daemon()
        s.wait_disk("vda", "live")
        with s.qmp() as q:
            assert [f for f in os.listdir(runtime) if f.endswith(".failed")]
            backups.end(q, ident)
            wait_for("nothing is left of it",
                     lambda: not [f for f in os.listdir(runtime) if f.endswith(".failed")])
            ident, answer = backups.begin(q, [{"disk": "vda", "since": "c"}])
            got = backups.dirty(s.nbd, "vda", answer["vda"]["context"])
            assert got == [(0, BLOCK), (4 * M + BLOCK, 2 * M), (40 * M, 3 * BLOCK)], got
            backups.end(q, ident, success=False)


@test
def tracking_without_a_daemon_is_exact():
    """Writes while the daemon is dead, killed or never started, are found by the next one."""
    with Stack() as s:
        disk = s.serve("vda", s.image("vda.img", SIZE), granularity="64K")
        with disk.connect() as c:
            c.write(0, b"before any daemon")
            s.start_daemon()
            s.wait_disk("vda", "live")
            s.command("checkpoint-create", name="c", disks=["vda"])
            s.kill(s.daemon)
            c.write(5 * M, b"x")
            c.trim(9 * M, 1)
            s.start_daemon()
            s.wait_disk("vda", "live")
            c.write(7 * M, b"x")
            assert s.stop(s.daemon) == 0
            c.zero(11 * M, 1)
            s.start_daemon()
            s.wait_disk("vda", "live")
            with s.qmp() as q:
                ident, _ = backups.begin(q, [{"disk": "vda", "since": "c"}])
                got = backups.dirty(s.nbd, "vda", BITMAP)
                assert got == [(o * M, BLOCK) for o in (5, 7, 9, 11)], got
                backups.end(q, ident)


@test
def a_killed_nbdkit_comes_back_with_exact_tracking_and_the_open_backup():
    """kill -9 of nbdkit with a backup open and guests writing: when the disk is served again, the
    backup is still the disk at its instant, and since its checkpoint exactly what was written is
    dirty (a request that was under way may or may not be)."""
    random = rng("kill-nbdkit")
    with Stack() as s:
        image = s.image("vda.img", SIZE, b"\x42" * SIZE)
        disk = s.serve("vda", image, granularity="64K")
        s.start_daemon()
        s.wait_disk("vda", "live")
        for round_ in range(3):
            with s.qmp() as q:
                ident, _ = backups.begin(q, ["vda"], checkpoint="c%d" % round_)
            at_begin = s.content(image)
            assert backups.pull(s.nbd, "vda") == at_begin
            done, maybe = set(), set()

            def guest():
                try:
                    with disk.connect() as c:
                        while True:
                            n = random.choice((1, 512, 5000, 2 * M))
                            off = random.randrange(SIZE - n)
                            now = set(range(off // BLOCK, (off + n - 1) // BLOCK + 1))
                            maybe.update(now)
                            random.choice((lambda: c.write(off, b"g" * n), lambda: c.zero(off, n),
                                           lambda: c.trim(off, n)))()
                            done.update(now)
                            maybe.difference_update(now)
                except (EOFError, OSError):
                    pass
            t = threading.Thread(target=guest, daemon=True)
            t.start()
            wait_for("the guest writes", lambda: len(done) > 40)
            s.kill(disk.process)
            t.join()
            disk = s.serve("vda", image)
            s.wait_disk("vda", "live")
            with disk.connect() as c:
                c.write(SIZE - 1, b"!")
            done.add(SIZE // BLOCK - 1)
            assert backups.pull(s.nbd, "vda") == at_begin, "the backup changed over the kill"
            with s.qmp() as q:
                backups.end(q, ident)
                ident, _ = backups.begin(q, [{"disk": "vda", "since": "c%d" % round_}])
                got = {b for off, n in backups.dirty(s.nbd, "vda", BITMAP)
                       for b in range(off // BLOCK, (off + n) // BLOCK)}
                assert done - got == set(), "written, but clean: %s" % sorted(done - got)[:5]
                assert got - done - maybe == set(), "dirty, but not written"
                backups.end(q, ident)


@test
def both_killed_at_once_come_back():
    """As when the OOM killer takes both: tracking and the open backup survive."""
    with Stack() as s:
        image = s.image("vda.img", SIZE, b"\x42" * SIZE)
        disk = s.serve("vda", image, granularity="64K")
        s.start_daemon()
        s.wait_disk("vda", "live")
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"], checkpoint="c")
        with disk.connect() as c:
            c.write(3 * M, b"x" * M)
            s.kill(disk.process)
        s.kill(s.daemon)
        disk = s.serve("vda", image)
        s.start_daemon()
        s.wait_disk("vda", "live")
        with disk.connect() as c:
            c.write(20 * M, b"y" * M)
        assert backups.pull(s.nbd, "vda") == b"\x42" * SIZE
        with s.qmp() as q:
            backups.end(q, ident)
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "c"}])
            assert backups.dirty(s.nbd, "vda", BITMAP) == [(3 * M, M), (20 * M, M)]
            backups.end(q, ident)


@test
def a_clean_stop_and_start_of_nbdkit_keeps_all():
    """SIGTERM and a new start: tracking exact, the open backup readable before, between, after."""
    with Stack() as s:
        image = s.image("vda.img", SIZE, b"\x42" * SIZE)
        disk = s.serve("vda", image, granularity="64K")
        s.start_daemon()
        s.wait_disk("vda", "live")
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"], checkpoint="c")
            for round_ in range(3):
                with disk.connect() as c:
                    c.write(round_ * 8 * M, b"r" * BLOCK)
                assert s.stop(disk.process) == 0
                s.wait_disk("vda", "offline")
                assert backups.pull(s.nbd, "vda") == b"\x42" * SIZE, "while nobody serves the disk"
                disk = s.serve("vda", image)
                s.wait_disk("vda", "live")
                assert backups.pull(s.nbd, "vda") == b"\x42" * SIZE, "when it is served again"
            backups.end(q, ident)
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "c"}])
            assert backups.dirty(s.nbd, "vda", BITMAP) == [(i * 8 * M, BLOCK) for i in range(3)]
            backups.end(q, ident)


@test
def an_offline_disk_is_backed_up_without_nbdkit():
    """Full and incremental backups, checkpoints, and a daemon's restart with no nbdkit at all."""
    with Stack() as s:
        image = s.image("vda.img", SIZE, b"\x42" * SIZE)
        disk = s.serve("vda", image, granularity="64K")
        s.start_daemon()
        s.wait_disk("vda", "live")
        s.command("checkpoint-create", name="c", disks=["vda"])
        with disk.connect() as c:
            c.write(M, b"z" * BLOCK)
        assert s.stop(disk.process) == 0
        s.wait_disk("vda", "offline")
        content = s.content(image)
        with s.qmp() as q:
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "c"}], checkpoint="d")
            assert backups.pull(s.nbd, "vda") == content
            assert backups.dirty(s.nbd, "vda", BITMAP) == [(M, BLOCK)]
        s.kill(s.daemon)
        s.start_daemon()
        s.wait_disk("vda", "offline")
        with s.qmp() as q:
            assert backups.pull(s.nbd, "vda") == content
            backups.end(q, ident)
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "d"}])
            assert backups.dirty(s.nbd, "vda", BITMAP) == []
        # a guest comes while the backup of the offline disk is open
        disk = s.serve("vda", image)
        s.wait_disk("vda", "live")
        with disk.connect() as c:
            c.write(2 * M, b"q" * M)
        assert backups.pull(s.nbd, "vda") == content, "the guest's write shows in the backup"
        with s.qmp() as q:
            backups.end(q, ident)
            ident, _ = backups.begin(q, [{"disk": "vda", "since": "d"}])
            assert backups.dirty(s.nbd, "vda", BITMAP) == [(2 * M, M)]
            backups.end(q, ident)


@test
def a_stopped_daemon_delays_no_guest():
    """SIGSTOP, the daemon hangs in the middle of whatever it does: guests go on, and after SIGCONT
    all goes on."""
    random = rng("stop-daemon")
    with Stack() as s:
        disk = s.start("vda", SIZE)
        with s.qmp() as q, Guests(disk, SIZE, 2, random) as guests:
            ident, _ = backups.begin(q, ["vda"])
            for _ in range(5):
                os.kill(s.daemon.pid, signal.SIGSTOP)
                before = guests.progress()
                wait_for("guests go on", lambda: guests.progress() > before + 50 or guests.errors)
                os.kill(s.daemon.pid, signal.SIGCONT)
                q.cmd("query-version")
            assert backups.pull(s.nbd, "vda") == backups.pull(s.nbd, "vda")
            backups.end(q, ident)
            guests.stop()


@test
def ends_that_are_repeated_succeed():
    """A reply that was lost: the same backup-end again succeeds, also after the daemon's death; the
    other outcome is refused."""
    with Stack() as s:
        s.start("vda", SIZE)
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"], checkpoint="c")
            backups.end(q, ident)
            backups.end(q, ident)
        s.kill(s.daemon)
        s.start_daemon()
        with s.qmp() as q:
            backups.end(q, ident)
            try:
                backups.end(q, ident, success=False)
                raise AssertionError("a success was made a failure afterwards")
            except QMPError:
                pass
            assert names(q.cmd("query-checkpoints")) == ["c"]
            ident, _ = backups.begin(q, ["vda"], checkpoint="d")
            backups.end(q, ident, success=False)
            assert names(q.cmd("query-checkpoints")) == ["c"], "a failed backup's checkpoint stays"


if __name__ == "__main__":
    main()
