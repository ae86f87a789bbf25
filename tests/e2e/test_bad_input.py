#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Bad input gets a clear one-line error that names the object, and changes nothing."""
import hashlib
import json
import os
import re
import stat

import backups
from harness import M, VARVE, VARVED, Disk, Stack, run, tree
from qmpclient import QMPError
from tap import main, test

SIZE = 16 * M


def one_line(text, *naming):
    """The error is one line, without control characters, and names each of `naming`."""
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 1, "not one line: %r" % text
    for word in naming:
        assert str(word) in lines[0], "%r does not name %r" % (lines[0], str(word))
    return lines[0]


def shown(name):
    """What an error must show of a bad name: all of it, unless it is no text or endless."""
    return [name] if name.isprintable() and len(name) <= 64 else []


def quiet(state):
    """The state directory as it is; a lock file may name who holds it."""
    return {k: v for k, v in tree(state).items() if os.path.basename(k) != "lock"}


def refused_nbdkit(s, image, *naming, name="vda", **params):
    """Starting nbdkit fails with one line that names the objects; state and image are untouched."""
    disk = Disk(s, "refused", image)
    disk.name = name
    before = quiet(s.state), tree(s.runtime), os.path.exists(image) and s.content(image)
    cmd = s.nbdkit_command(disk, **params)
    r = run(cmd, check=False, env=s.nbdkit_env(), timeout=60)
    assert r.returncode == 1, "exit status %s, stderr %r" % (r.returncode, r.stderr)
    one_line(r.stderr, *naming)
    assert r.stderr.startswith("nbdkit: "), r.stderr
    assert (quiet(s.state), tree(s.runtime),
            os.path.exists(image) and s.content(image)) == before, "something changed"
    assert not os.path.exists(disk.sock)


def everything(q):
    """What the daemon answers to all queries, but for numbers that only count."""
    out = [q.cmd("query-checkpoints"), q.cmd("query-backups")]
    for d in q.cmd("query-disks"):
        out.append({k: d[k] for k in ("name", "image", "size", "granularity", "state", "epochs",
                                      "checkpoints", "backups") if k in d})
    return json.dumps(out, sort_keys=True)


class Refusals:
    """Commands that must be refused and change nothing, neither in answers nor on disk."""

    def __init__(self, s, q):
        self.s, self.q = s, q

    def __call__(self, command, args, *naming, cls="GenericError"):
        before = everything(self.q), quiet(self.s.state)
        try:
            self.q.execute(command, args)
        except QMPError as e:
            assert e.cls == cls, "%s %s: class %s: %s" % (command, args, e.cls, e.desc)
            one_line(e.desc, *naming)
        else:
            raise AssertionError("%s %s succeeded" % (command, args))
        assert (everything(self.q), quiet(self.s.state)) == before, \
            "%s %s changed something" % (command, args)


# --- the plugin ---------------------------------------------------------------------------------


@test
def no_such_image():
    with Stack() as s:
        refused_nbdkit(s, s.path("missing.img"), s.path("missing.img"))
        os.mkdir(s.path("folder"))
        disk = Disk(s, "refused", s.path("folder"))
        r = run(s.nbdkit_command(disk), check=False, env=s.nbdkit_env())
        assert r.returncode == 1
        one_line(r.stderr, s.path("folder"))
        r = run([w for w in s.nbdkit_command(disk) if not w.startswith("file=")], check=False,
                env=s.nbdkit_env())
        assert r.returncode == 1
        one_line(r.stderr, "file=")
        assert os.listdir(s.state) == [], os.listdir(s.state)


@test
def image_in_use():
    """By the same name, by another name, and by another path to it: the message names the pid."""
    with Stack() as s:
        image = s.image("vda.img", SIZE)
        disk = s.serve("vda", image)
        os.symlink(image, s.path("other.img"))
        refused_nbdkit(s, image, disk.process.pid)
        refused_nbdkit(s, image, image, name="vdb")
        refused_nbdkit(s, s.path("other.img"), name="vdc")
        with disk.connect() as c:
            c.write(0, b"still served")
        s.start_daemon()
        assert [d["name"] for d in s.command("query-disks")] == ["vda"]


@test
def name_of_another_image():
    """A second image under a used name is refused, served or not: its state is another disk's."""
    with Stack() as s:
        disk = s.serve("vda", s.image("vda.img", SIZE))
        other = s.image("b.img", SIZE)
        refused_nbdkit(s, other, "vda")
        s.stop(disk.process)
        refused_nbdkit(s, other, "vda")


@test
def names_that_are_no_names():
    """Of disks, to the plugin: slashes, dots, @ and +, empty, too long."""
    with Stack() as s:
        image = s.image("vda.img", SIZE)
        for name in ("a/b", "../vda", "/etc", ".", "..", ".hidden", "a@b", "a+b", "", "n" * 65,
                     "a b", "-x", "a\tb", "ä"):
            refused_nbdkit(s, image, *shown(name), name=name)
        assert os.listdir(s.state) == [] and os.listdir(s.dir) != []


@test
def granularity_that_is_no_power_of_two():
    """Nor within 4 KiB to 1 MiB, nor a number, nor the disk's own."""
    with Stack() as s:
        image = s.image("vda.img", SIZE)
        for value in ("5000", "0", "3K", "2K", "1", "2M", "-4096", "64Q", "x", ""):
            refused_nbdkit(s, image, "granularity", granularity=value)
        assert os.listdir(s.state) == []
        s.stop(s.serve("vda", image, granularity="64K").process)
        refused_nbdkit(s, image, "vda", granularity="4K")
        s.stop(s.serve("vda", image, granularity="65536").process)
        s.stop(s.serve("vda", image).process)


@test
def unknown_and_wrong_parameters():
    with Stack() as s:
        image = s.image("vda.img", SIZE)
        for key, value in (("durability", "never"), ("on-scratch-full", "panic"),
                           ("freeze-timeout", "soon"), ("scratch-max", "lots")):
            refused_nbdkit(s, image, key, value, **{key: value})
        refused_nbdkit(s, image, "granularty", granularty="4K")
        assert os.listdir(s.state) == []


def without_privileges(cmd):
    """As a user who may not write everywhere (root may, unless it gives the capability up)."""
    if os.getuid() == 0:
        return ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"] + cmd
    return cmd


@test
def state_directory_not_writable():
    """Plugin and daemon say so in one line that names it."""
    with Stack() as s:
        image = s.image("vda.img", SIZE)
        os.chmod(s.state, 0o555)
        try:
            for d in (s.state, s.image("a-file", 1)):
                disk = Disk(s, "vda", image)
                r = run(without_privileges(s.nbdkit_command(disk, state_dir=d)), check=False,
                        env=s.nbdkit_env())
                assert r.returncode == 1, r
                one_line(r.stderr, d)
                r = run(without_privileges([VARVED, "--state-dir", d, "--runtime-dir", s.runtime]),
                        check=False, timeout=60)
                assert r.returncode == 1, r
                one_line(r.stderr, d)
            assert os.listdir(s.state) == []
        finally:
            os.chmod(s.state, 0o755)
        assert [f for f in os.listdir(s.runtime) if stat.S_ISSOCK(
            os.stat(os.path.join(s.runtime, f)).st_mode)] == [], "sockets are left"


@test
def state_directory_of_another_format_version():
    """The plugin refuses the disk; the daemon serves the others and says what is wrong with it; a
    catalogue of another format is refused."""
    with Stack() as s:
        image = s.image("vda.img", SIZE)
        s.stop(s.serve("vda", image).process)
        ident = os.path.join(s.state, "vda", "disk.json")
        with open(ident) as f:
            text = f.read()
        newer = re.sub(r'("format"\s*:\s*)1\b', r"\g<1>99", text)
        assert newer != text, text
        with open(ident, "w") as f:
            f.write(newer)
        refused_nbdkit(s, image, "format", "99")
        good = s.start("good", SIZE)
        before = tree(os.path.join(s.state, "vda"))
        with s.qmp() as q:
            states = {d["name"]: d["state"] for d in q.cmd("query-disks")}
            assert states.get("vda") not in ("live", "offline"), states
            for command, args in (("checkpoint-create", {"name": "c", "disks": ["vda"]}),
                                  ("checkpoint-create", {"name": "c", "disks": ["good", "vda"]}),
                                  ("backup-begin", {"disks": [{"disk": "vda"}]})):
                try:
                    q.execute(command, args)
                    raise AssertionError("%s on a disk of another format" % command)
                except QMPError as e:
                    one_line(e.desc, "vda")
            q.cmd("checkpoint-create", name="c", disks=["good"])
        with good.connect() as c:
            c.write(0, b"x")
        assert tree(os.path.join(s.state, "vda")) == before
        # the catalogue
        assert s.stop(s.daemon) == 0
        for n in (0, 1):
            path = os.path.join(s.state, "catalogue-%d" % n)
            with open(path, "rb") as f:
                data = f.read()
            with open(path, "wb") as f:
                f.write(reformat(data, 99))
        before = tree(s.state)
        r = run([VARVED, "--state-dir", s.state, "--runtime-dir", s.runtime], check=False,
                timeout=60)
        assert r.returncode == 1, r
        one_line(r.stderr, s.state, "format")
        assert tree(s.state) == before


def reformat(data, number):
    """A slot file as a later version would write it: another format, and its checksum right."""
    if not data.startswith(b"varve-slot "):
        return data
    _, _, seq, length, _ = data[:4096].split(b"\n")[0].split()
    text = data[4096:4096 + int(length)]
    digest = hashlib.sha256(b"%d %s %s\n" % (number, seq, length) + text).hexdigest().encode()
    line = b"varve-slot %d %s %s %s\n" % (number, seq, length, digest)
    return line.ljust(4096, b"\0") + data[4096:]


# --- the daemon ---------------------------------------------------------------------------------


@test
def no_such_disk():
    with Stack() as s:
        s.start("vda", SIZE)
        with s.qmp() as q:
            no = Refusals(s, q)
            for command, args in (
                    ("query-disks", {"disk": "nope"}),
                    ("checkpoint-create", {"name": "c", "disks": ["nope"]}),
                    ("checkpoint-create", {"name": "c", "disks": ["vda", "nope"]}),
                    ("checkpoint-delete", {"name": "c", "disks": ["nope"]}),
                    ("query-checkpoints", {"disk": "nope"}),
                    ("backup-begin", {"disks": [{"disk": "nope"}]}),
                    ("backup-begin", {"disks": [{"disk": "vda"}, {"disk": "nope"}]})):
                no(command, args, "nope", cls="DeviceNotFound")


@test
def no_such_checkpoint_or_backup():
    with Stack() as s:
        s.start("vda", SIZE)
        with s.qmp() as q:
            q.cmd("checkpoint-create", name="c", disks=["vda"])
            no = Refusals(s, q)
            no("checkpoint-delete", {"name": "gone"}, "gone")
            no("checkpoint-delete", {"name": "gone", "disks": ["vda"]}, "gone", "vda")
            no("backup-begin", {"disks": [{"disk": "vda", "since": "gone"}]}, "gone", "vda")
            no("backup-end", {"id": "gone"}, "gone")
            no("backup-end", {"id": "gone", "success": False}, "gone")
            # the base of a running backup's own checkpoint is no base yet
            ident, _ = backups.begin(q, ["vda"], checkpoint="own")
            no("backup-begin", {"disks": [{"disk": "vda", "since": "own", "export": "x"}]}, "own")
            backups.end(q, ident)


@test
def duplicate_names():
    """Of checkpoints, exports, backups, and a disk twice in one command."""
    with Stack() as s:
        s.start("vda", SIZE)
        s.start("vdb", SIZE)
        with s.qmp() as q:
            q.cmd("checkpoint-create", name="c", disks=["vda"])
            ident, _ = backups.begin(q, ["vda"], id="mine")
            assert ident == "mine"
            no = Refusals(s, q)
            no("checkpoint-create", {"name": "c", "disks": ["vda"]}, "c", "vda")
            no("checkpoint-create", {"name": "c", "disks": ["vdb", "vda"]}, "c", "vda")
            no("checkpoint-create", {"name": "d", "disks": ["vda", "vda"]}, "vda")
            no("backup-begin", {"disks": [{"disk": "vdb"}, {"disk": "vda", "export": "x"}],
                                "checkpoint": "c"}, "c", "vda")
            no("backup-begin", {"disks": [{"disk": "vda"}]}, "vda")
            no("backup-begin", {"disks": [{"disk": "vdb", "export": "vda"}]}, "vda")
            no("backup-begin", {"disks": [{"disk": "vdb"}], "id": "mine"}, "mine")
            no("backup-begin", {"disks": [{"disk": "vdb"}, {"disk": "vdb", "export": "y"}]}, "vdb")
            no("backup-begin", {"disks": [{"disk": "vda", "export": "x"},
                                          {"disk": "vdb", "export": "x"}]}, "x")
            backups.end(q, ident)


@test
def names_with_slashes_and_worse():
    with Stack() as s:
        s.start("vda", SIZE)
        with s.qmp() as q:
            no = Refusals(s, q)
            for bad in ("a/b", "../c", "a@b", "a+b", "", ".c", "x" * 65, "a b", "c\n"):
                no("checkpoint-create", {"name": bad, "disks": ["vda"]}, *shown(bad))
                no("backup-begin", {"disks": [{"disk": "vda", "export": bad}]}, *shown(bad))
                no("backup-begin", {"disks": [{"disk": "vda"}], "checkpoint": bad}, *shown(bad))
                no("backup-begin", {"disks": [{"disk": "vda"}], "id": bad}, *shown(bad))
            no("checkpoint-create", {"name": "c", "disks": ["a/b"]}, "a/b", cls="DeviceNotFound")


@test
def arguments_of_the_wrong_kind():
    """Missing, unknown, of another type, out of range."""
    with Stack() as s:
        s.start("vda", SIZE)
        with s.qmp() as q:
            no = Refusals(s, q)
            for command, args, word in (
                    ("checkpoint-create", {}, "name"),
                    ("checkpoint-create", {"name": "c"}, "disks"),
                    ("checkpoint-create", {"name": "c", "disks": []}, "disks"),
                    ("checkpoint-create", {"name": 7, "disks": ["vda"]}, "name"),
                    ("checkpoint-create", {"name": "c", "disks": "vda"}, "disks"),
                    ("checkpoint-create", {"name": "c", "disks": [7]}, "disks"),
                    ("checkpoint-create", {"name": "c", "disks": ["vda"], "x": 1}, "x"),
                    ("backup-begin", {"disks": ["vda"]}, "disks"),
                    ("backup-begin", {"disks": [{}]}, "disk"),
                    ("backup-begin", {"disks": [{"disk": "vda", "sinse": "c"}]}, "sinse"),
                    ("backup-begin", {"disks": [{"disk": "vda"}], "ttl": -1}, "ttl"),
                    ("backup-begin", {"disks": [{"disk": "vda"}], "ttl": "day"}, "ttl"),
                    ("backup-end", {}, "id"),
                    ("backup-end", {"id": "x", "success": "yes"}, "success"),
                    ("query-disks", {"disks": "vda"}, "disks")):
                no(command, args, word)
            no("launch-missiles", {}, "launch-missiles", cls="CommandNotFound")


@test
def the_command_line_says_what_is_wrong():
    """One line on stderr, nothing on stdout, status 1 for what is refused and 2 for usage."""
    with Stack() as s:
        s.start("vda", SIZE)
        s.varve("checkpoint", "create", "c", "vda")
        before = quiet(s.state)
        for args, status, words in (
                (["checkpoint", "create", "c", "vda"], 1, ["c", "vda"]),
                (["checkpoint", "create", "a/b", "vda"], 1, ["a/b"]),
                (["checkpoint", "create", "d", "nope"], 1, ["nope"]),
                (["checkpoint", "delete", "nope"], 1, ["nope"]),
                (["backup", "begin", "nope"], 1, ["nope"]),
                (["backup", "begin", "vda", "--since", "nope"], 1, ["nope"]),
                (["backup", "end", "nope"], 1, ["nope"]),
                (["status", "nope"], 1, ["nope"]),
                (["frobnicate"], 2, ["frobnicate"]),
                (["checkpoint", "frobnicate"], 2, ["frobnicate"]),
                (["status", "--nope"], 2, ["--nope"])):
            r = s.varve(*args, check=False)
            assert r.returncode == status, (args, r)
            assert r.stdout == "", (args, r)
            one_line(r.stderr, *words)
        r = run([VARVE, "--control", s.path("no.sock"), "status"], check=False)
        assert r.returncode == 1
        one_line(r.stderr, s.path("no.sock"))
        assert quiet(s.state) == before


@test
def a_second_daemon_is_refused():
    """On the same state directory; the first one goes on."""
    with Stack() as s:
        s.start("vda", SIZE)
        r = run([VARVED, "--state-dir", s.state, "--runtime-dir", s.runtime], check=False,
                timeout=60)
        assert r.returncode == 1, r
        one_line(r.stderr)
        assert s.command("query-disks")[0]["state"] == "live"
        with s.qmp() as q:
            ident, _ = backups.begin(q, ["vda"])
            assert backups.pull(s.nbd, "vda") == bytes(SIZE)
            backups.end(q, ident)


if __name__ == "__main__":
    main()
