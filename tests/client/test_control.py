#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The verbs that talk to varved, against a control socket that answers as told."""
import json
import os
import subprocess

from fakevarved import Error, FakeDaemon
from harness import K, M, VARVE, good, main, misused, refused, test, varve

DISK = {
    "name": "vda", "image": "/images/vda.img", "size": 64 * M, "granularity": 64 * K,
    "state": "live", "epoch": 7, "epochs": 3, "durability": "host",
    "scratch": {"used": 1536 * K, "max": None}, "dirty-bytes": 448 * K, "intent-regions": 2,
    "checkpoints": ["monday", "tuesday"], "bitmaps": [], "backups": ["b1"],
}
LOST = {**DISK, "name": "vdb", "state": "missing", "reason": "no such image", "checkpoints": [],
        "backups": [], "scratch": {"used": 0, "max": M}}
STATES = [
    {"id": "b1", "state": "failed", "reason": "over and done", "disks": []},
    {"id": "b2", "state": "broken", "reason": "no room", "disks": []},
    {"id": "b3", "state": "degraded", "lost-bytes": 3 * M, "disks": []},
    {"id": "b4", "state": "running", "disks": []},
]
CHECKPOINTS = [
    {"name": "monday", "time": 1700000000.25,
     "disks": [{"disk": "vda", "epoch": 3, "dirty-bytes": 5 * M, "usable": True}]},
    {"name": "tuesday", "time": 1700086400,
     "disks": [{"disk": "vda", "epoch": 5, "dirty-bytes": 448 * K, "usable": False,
                "reason": "epoch 4 is damaged"}]},
]
BEGUN = {"id": "b1", "disks": [{"disk": "vda", "export": "vda",
                               "context": "qemu:dirty-bitmap:backup-vda", "epoch": 7,
                               "dirty-bytes": 458752}]}


def backup(ident, begun, state, disk, export):
    return {"id": ident, "state": state, "time": begun, "disks": [
        {"disk": disk, "since": "monday", "export": export,
         "context": "qemu:dirty-bitmap:backup-" + disk, "epoch": 7, "dirty-bytes": 448 * K,
         "clients": 2, "bytes-read": 3 * M, "bytes-released": 0, "scratch-used": 64 * K}]}


class Cli(FakeDaemon):
    """A fake daemon and a varve that talks to it."""

    def good(self, *args, **kw):
        return good("--control", self.control, *args, **kw)

    def refused(self, *args, **kw):
        return refused("--control", self.control, *args, **kw)

    def last(self):
        return self.daemon.seen[-1]


@test
def help_names_every_verb_and_ends_well():
    told = good("--help")
    for verb in ("status", "checkpoint create", "checkpoint delete", "checkpoint list",
                 "backup begin", "backup end", "backup estimate", "backup list", "map", "pull", "qmp"):
        assert "\n  " + verb in told, verb
        assert good(*verb.split(), "--help").startswith("usage: varve "), verb
    assert good("backup", "--help").count("\n  backup ") == 4
    assert good("--version").startswith("varve ")


@test
def bad_command_lines_are_usage():
    misused(says="which verb")
    misused("nonsense", says="nonsense")
    misused("backup", says="second word")
    misused("backup", "nonsense", says="backup nonsense")
    misused("--nonsense", says="--nonsense")
    misused("status", "--nonsense", says="--nonsense")
    misused("status", "vda", "vdb", says="'vdb'")
    misused("checkpoint", "create", "monday", says="NAME DISK...")
    misused("backup", "begin", says="DISK...")
    misused("backup", "begin", "a", "b", "--export", "x", says="one disk")
    misused("backup", "begin", "a", "--ttl", "soon", says="not a time")
    misused("backup", "end", says="ID")
    misused("backup", "end", "--failed=1", "x", says="--failed=1")
    misused("--control", says="needs an argument")
    misused("map", "nbd://x", "--since", "a", "--context", "b", says="exclude")


@test
def socket_comes_from_option_then_environment():
    with Cli({"query-disks": [], "query-nbd-server": {"clients": []}}) as c:
        assert "no disks" in good("status", env={"VARVE_CONTROL": c("c.sock")})
        assert "no disks" in good("status", "--control", c("c.sock"),
                                  env={"VARVE_CONTROL": "/nowhere"})
        refused("status", env={"VARVE_CONTROL": "/nowhere"}, says="/nowhere")


@test
def absent_or_foreign_daemon_is_one_line():
    refused("--control", "/nowhere/c.sock", "status", says=["/nowhere/c.sock", "varved"])
    refused("--control", "/" + "x" * 200, "status", says="at most 107 bytes")
    for greeting in (b"SSH-2.0-OpenSSH\r\n", b"{}\r\n", b"[]\r\n", b"{\"QMP\": 1}\r\n"):
        with Cli(greeting=greeting) as c:
            c.refused("status", says=c("c.sock"))


@test
def replies_in_pieces_and_among_events_are_understood():
    event = b'{"event": "X", "data": {"a": "}"}, "timestamp": {"seconds": 1, "microseconds": 2}}'
    with Cli({"query-disks": [DISK]}, split=7, noise=event) as c:
        assert json.loads(c.good("--json", "status")) == [DISK]


@test
def refusals_are_the_daemons_words_in_one_line():
    with Cli({"query-disks": Error("disk vdx is not known\nsee query-disks", "DeviceNotFound")}) as c:
        c.refused("status", "vdx", says="disk vdx is not known?see query-disks")
        c.refused("checkpoint", "list", says="query-checkpoints")


@test
def daemon_that_hangs_up_is_one_line():
    def gone(arguments):
        raise OSError

    with Cli({"query-disks": gone}) as c:
        c.refused("status", says="closed the connection")


@test
def status_shows_all_disks_and_one():
    with Cli({"query-disks": lambda a: [DISK] if a else [DISK, LOST],
              "query-backups": STATES, "query-nbd-server": {"listeners": [], "clients": []}}) as c:
        lines = c.good("status").splitlines()
        assert lines[0].split()[:3] == ["DISK", "STATE", "SIZE"] and len(lines) == 6, lines
        assert lines[0].index("SIZE") + 4 == lines[1].index("64M") + 3, lines  # numbers stand on the right
        assert lines[3:] == ["disk vdb: no such image", "backup b2: no room",
                             "backup b3: 3M could not be kept and cannot be read"], lines
        assert lines[1].split() == ["vda", "live", "64M", "64K", "3", "448K", "2", "1",
                                    "/images/vda.img"], lines
        assert c.daemon.seen[-3:] == [("query-disks", None), ("query-backups", None), ("query-nbd-server", None)]
        told = c.good("status", "vda")
        assert c.last() == ("query-disks", {"disk": "vda"})
        for text in ("64M (67108864 bytes)", "monday, tuesday", "1.5M used", "live", "7 (3 kept)"):
            assert text in told, (text, told)
        assert json.loads(c.good("status", "--json")) == [DISK, LOST]


@test
def status_shows_the_clients():
    server = {"listeners": ["unix:/run/varve/nbd.sock"], "max-connections": 1024, "accepted": 7,
              "refused": 2, "clients": [
                  {"peer": "192.0.2.1:50000", "identity": "psk:alice", "tls": True, "export": "vda",
                   "since": 1700000000.5, "requests": 12, "bytes-read": 3 << 20, "errors": 1,
                   "queue": 4},
                  {"peer": "uid 0 (pid 7)", "tls": False, "since": 1700000000, "requests": 0,
                   "bytes-read": 0, "errors": 0, "queue": 0}]}
    with Cli({"query-disks": [DISK], "query-backups": [], "query-nbd-server": server}) as c:
        for words in (("status",), ("status", "--clients")):
            lines = c.good(*words).splitlines()
            one = [x for x in lines if x.startswith("192.0.2.1:50000")][0].split()
            assert one[1:4] == ["psk:alice", "yes", "vda"] and one[-4:] == ["12", "3M", "1", "4"], one
            assert [x for x in lines if x.startswith("uid 0 (pid 7)")], lines
        told = c.good("status", "--clients")
        assert "2 now (at most 1024), 7 accepted, 2 refused" in told, told
        assert "unix:/run/varve/nbd.sock" in told, told
        assert json.loads(c.good("--json", "status", "--clients")) == server
        misused("status", "--clients", "vda", says="leave out vda")


@test
def reasons_are_shown():
    with Cli({"query-disks": [LOST]}) as c:
        told = c.good("status", "vdb")
        assert "missing: no such image" in told and "0 used of 1M" in told, told


@test
def answers_that_lack_everything_do_no_harm():
    junk = [[], [{}], [1, None, "x", []], [{"disks": 5}], [{"disks": [7, {}]}], {}, 3, "x", None, True]
    for value in junk:
        replies = dict.fromkeys(("query-disks", "query-checkpoints", "query-backups",
                                 "checkpoint-create", "checkpoint-delete", "backup-begin",
                                 "backup-end", "query-nbd-server"), value)
        if value is None:
            continue
        with Cli(replies) as c:
            for words in (("status",), ("status", "x"), ("checkpoint", "list"), ("backup", "list"),
                          ("checkpoint", "create", "n", "d"), ("checkpoint", "delete", "n"),
                          ("backup", "begin", "d"), ("backup", "end", "i"), ("map", "d")):
                varve("--control", c("c.sock"), *words)


@test
def bitmap_verbs_say_what_was_asked():
    made = {"block-dirty-bitmap-" + v: {} for v in ("add", "remove", "clear", "enable", "disable",
                                                    "merge", "copy")}
    one = {"name": "b", "count": 65536, "granularity": 4096, "recording": True, "busy": True,
           "persistent": False, "inconsistent": False}
    two = {**one, "name": "ä\x1b", "recording": False, "busy": False, "persistent": True}
    three = {**one, "name": "i", "inconsistent": True, "reason": "epoch 4 is missing"}
    nodes = [{"node-name": "vda", "dirty-bitmaps": [one, two]},
             {"node-name": "vdb", "dirty-bitmaps": [three]}, {"node-name": "vdc"}]
    with Cli({**made, "query-named-block-nodes": nodes}) as c:
        for words, verb, args in (
                (("add", "vda", "b"), "add", {"name": "b"}),
                (("add", "--granularity", "1M", "--disabled", "--transient", "vda", "b"), "add",
                 {"name": "b", "granularity": 1 << 20, "disabled": True, "persistent": False}),
                (("remove", "vda", "b"), "remove", {"name": "b"}),
                (("clear", "vda", "b"), "clear", {"name": "b"}),
                (("enable", "vda", "b"), "enable", {"name": "b"}),
                (("disable", "vda", "b"), "disable", {"name": "b"}),
                (("copy", "vda", "b", "c"), "copy", {"name": "b", "target": "c"}),
                (("merge", "vda", "t"), "merge", {"target": "t", "bitmaps": []}),
                (("merge", "vda", "t", "a", "b"), "merge", {"target": "t", "bitmaps": ["a", "b"]}),
                (("merge", "--from", "vdb", "vda", "t", "a"), "merge",
                 {"target": "t", "bitmaps": [{"node": "vdb", "name": "a"}]})):
            told = c.good("bitmap", *words)
            assert "vda" in told, told
            assert c.last() == ("block-dirty-bitmap-" + verb, dict(args, node="vda")), c.last()
            assert json.loads(c.good("--json", "bitmap", *words)) == {}
        lines = c.good("bitmap", "list").splitlines()
        assert len(lines) == 4 and lines[0].split() == ["DISK", "BITMAP", "DIRTY", "GRANULARITY",
                                                        "STATE"], lines
        assert lines[1].split() == ["vda", "b", "64K", "4K", "recording,", "busy,", "transient"]
        assert lines[2].split()[-1] == "disabled" and "\x1b" not in lines[2], lines
        assert "inconsistent: epoch 4 is missing" in lines[3]
        assert len(c.good("bitmap", "list", "vdb").splitlines()) == 2
        assert json.loads(c.good("--json", "bitmap", "list", "vda")) == {"vda": [one, two]}
        c.refused("bitmap", "list", "no", says="no disk 'no'")
    for words, says in ((("bitmap",), "second word"), (("bitmap", "add", "vda"), "DISK NAME"),
                        (("bitmap", "add", "--granularity", "x", "vda", "b"), "not a size"),
                        (("bitmap", "copy", "vda", "b"), "TARGET"),
                        (("bitmap", "merge", "vda"), "TARGET"),
                        (("backup", "begin", "--bitmap", "b", "--since", "c", "vda"), "exclude"),
                        (("backup", "begin", "--bitmap-mode", "never", "vda"), "--bitmap")):
        misused(*words, says=says)
    with Cli({"backup-begin": {"id": "x", "disks": []}, "query-nbd-server": {"listeners": []}}) as c:
        c.good("backup", "begin", "--bitmap", "b", "--bitmap-mode", "never", "vda", "vdb")
        assert ("backup-begin", {"disks": [{"disk": d, "bitmap": "b", "bitmap-mode": "never"}
                                           for d in ("vda", "vdb")]}) in c.daemon.seen, c.daemon.seen


@test
def checkpoint_verbs_say_what_was_asked():
    with Cli({"checkpoint-create": {"name": "n", "time": 1700000000.75, "disks": []},
              "checkpoint-delete": {}, "query-checkpoints": CHECKPOINTS}) as c:
        told = c.good("checkpoint", "create", "monday", "vda", "vdb")
        assert c.last() == ("checkpoint-create", {"name": "monday", "disks": ["vda", "vdb"]})
        assert told.startswith("checkpoint monday at 2023-11-1") and "vda, vdb" in told, told
        c.good("checkpoint", "delete", "monday")
        assert c.last() == ("checkpoint-delete", {"name": "monday"})
        c.good("checkpoint", "delete", "monday", "vda")
        assert c.last() == ("checkpoint-delete", {"name": "monday", "disks": ["vda"]})
        lines = c.good("checkpoint", "list", "vda").splitlines()
        assert c.last() == ("query-checkpoints", {"disk": "vda"})
        assert len(lines) == 3 and lines[1].endswith("usable"), lines
        assert all(" 2023-11-1" in x for x in lines[1:]), lines
        assert lines[2].endswith("epoch 4 is damaged"), lines
        c.good("checkpoint", "list")
        assert c.last() == ("query-checkpoints", None)
        told = c.good("checkpoint", "delete", "--exported", "monday")
        assert c.last() == ("checkpoint-delete", {"name": "monday", "exported": True})
        assert "given up" in told, told


EXPORTED = [{"name": "n", "time": 1700000000.0, "disks": [
    {"disk": "vda", "epoch": 3, "known-until": 7, "exported-time": 1700086400.0, "deleted": True},
    {"disk": "vdb"}]}]


@test
def checkpoint_files_are_named_from_where_the_client_is():
    reply = {"disk": "vda", "name": "n", "file": "/b/n.ckp", "time": 1700000000.0, "epoch": 3,
             "known-until": 7, "dirty-bytes": 458752}
    with Cli({"checkpoint-export": reply, "checkpoint-import": reply,
              "query-checkpoints": EXPORTED}) as c:
        told = c.good("checkpoint", "export", "n", "vda", "/b/n.ckp")
        assert c.last() == ("checkpoint-export", {"disk": "vda", "name": "n", "file": "/b/n.ckp"})
        assert "448K" in told and "/b/n.ckp" in told and told.count("\n") == 1, told
        assert json.loads(c.good("--json", "checkpoint", "export", "n", "vda", "/b/n.ckp")) == reply
        told = c.good("checkpoint", "import", "n", "vda", "n.ckp")
        assert c.last() == ("checkpoint-import", {"disk": "vda", "name": "n",
                                                  "file": os.path.join(os.getcwd(), "n.ckp")})
        assert "is there again" in told, told
        assert json.loads(c.good("--json", "checkpoint", "import", "n", "vda", "/n")) == reply
        lines = c.good("checkpoint", "list", "--exported").splitlines()
        assert c.last() == ("query-checkpoints", {"exported": True})
        assert len(lines) == 3 and lines[1].endswith("deleted, can be imported"), lines
        c.good("checkpoint", "list", "--exported", "vda")
        assert c.last() == ("query-checkpoints", {"disk": "vda", "exported": True})
        for verb in ("export", "import"):
            misused("checkpoint", verb, "n", "vda")
            misused("checkpoint", verb, "n", "vda", "f", "g")


@test
def backup_begin_says_what_was_asked_and_where_to_pull():
    listeners = {"listeners": ["tcp:127.0.0.1:10809", "unix:/run/va ve/nbd.sock"]}
    with Cli({"backup-begin": BEGUN, "query-nbd-server": listeners}) as c:
        told = c.good("backup", "begin", "vda")
        assert c.daemon.seen[-2] == ("backup-begin", {"disks": [{"disk": "vda"}]})
        for text in ("backup   b1", "export   vda", "context  qemu:dirty-bitmap:backup-vda",
                     "uri      nbd+unix:///vda?socket=/run/va%20ve/nbd.sock",
                     "dirty    448K (458752 bytes)"):
            assert text in told.splitlines(), (text, told)
        c.good("backup", "begin", "--id", "b1", "--since", "monday", "--checkpoint", "tuesday",
               "--ttl", "2h", "--export", "e", "--exportbitmap", "m", "--freeze", "--speed", "50M",
               "--adaptive", "vda")
        assert c.daemon.seen[-2] == ("backup-begin", {
            "id": "b1", "ttl": 7200, "checkpoint": "tuesday", "freeze": True, "speed": 50 * M,
            "adaptive": True,
            "disks": [{"disk": "vda", "since": "monday", "export": "e", "exportbitmap": "m"}]})
        c.good("backup", "begin", "vda", "vdb", "--since", "monday", "--ttl", "0")
        assert c.daemon.seen[-2] == ("backup-begin", {
            "ttl": 0, "disks": [{"disk": "vda", "since": "monday"},
                                {"disk": "vdb", "since": "monday"}]})
        told = json.loads(c.good("--json", "backup", "begin", "vda"))
        assert told["disks"][0]["uri"] == "nbd+unix:///vda?socket=/run/va%20ve/nbd.sock", told


@test
def backup_that_has_begun_is_told_also_without_a_listener():
    with Cli({"backup-begin": BEGUN}) as c:
        assert "uri      -" in c.good("backup", "begin", "vda").splitlines()
    with Cli({"backup-begin": BEGUN,
              "query-nbd-server": {"listeners": ["tcp:[::1]:10809"]}}) as c:
        assert "nbd://[::1]:10809/vda" in c.good("backup", "begin", "vda")


@test
def backup_end_and_list():
    with Cli({"backup-end": {}, "query-backups": [
            backup("b1", 1700000000, "running", "vda", "vda"),
            {**backup("b2", 1700000001, "broken", "vdb", "vdb"), "reason": "scratch is full"}]}) as c:
        assert c.good("backup", "end", "b1") == "backup b1 ended\n"
        assert c.last() == ("backup-end", {"id": "b1", "success": True})
        c.good("backup", "end", "b1", "--failed")
        assert c.last() == ("backup-end", {"id": "b1", "success": False})
        lines = c.good("backup", "list").splitlines()
        assert len(lines) == 3 and lines[2].endswith("broken: scratch is full"), lines
        assert all(" 2023-11-1" in x for x in lines[1:]), lines
        assert "3M" in lines[1] and "monday" in lines[1], lines


@test
def backup_list_tells_what_may_be_read():
    for members, text in (({}, "-"), ({"speed": 0, "adaptive": False}, "-"),
                          ({"speed": 5 * M, "adaptive": False, "current-speed": 5 * M}, "5M"),
                          ({"speed": 5 * M, "adaptive": True, "current-speed": 5 * M},
                           "5M, adaptive"),
                          ({"speed": 5 * M, "adaptive": True, "current-speed": M},
                           "5M, adaptive: 1M"),
                          ({"speed": 0, "adaptive": True, "current-speed": 0}, "adaptive"),
                          ({"speed": 0, "adaptive": True, "current-speed": M}, "adaptive: 1M"),
                          ({"speed": 5 * M, "adaptive": True}, "5M, adaptive")):
        with Cli({"query-backups": [{**backup("b1", 1700000000, "ended", "vda", "vda"),
                                     **members}]}) as c:
            heading, line = c.good("backup", "list").splitlines()
            at = heading.index("SPEED")
            assert line[at:heading.index("STATE")].rstrip() == text, (line, text)
    misused("backup", "begin", "vda", "--speed", "fast")
    misused("backup", "begin", "vda", "--speed", "16E")


@test
def backup_estimate_says_what_was_asked():
    told = {"disk": "vda", "size": 64 * M, "dirty-bytes": 448 * K, "extents": 5,
            "scratch-free": 3 * M, "dirty-bytes-per-second": 12 * K}
    with Cli({"backup-estimate": {"disks": [told, {"disk": "vdb"}]}}) as c:
        r = c.good("backup", "estimate", "vda", "vdb", "--since", "monday")
        assert c.last() == ("backup-estimate", {"disks": [
            {"disk": "vda", "since": "monday"}, {"disk": "vdb", "since": "monday"}]})
        rows = [line.split() for line in r.splitlines()[1:]]
        assert rows == [["vda", "64M", "448K", "5", "3M", "12K"],
                        ["vdb", "-", "-", "-", "-", "-"]], rows
        c.good("backup", "estimate", "vda")
        assert c.last()[1] == {"disks": [{"disk": "vda"}]}
        assert json.loads(c.good("--json", "backup", "estimate", "vda"))["disks"][0] == told
        misused("backup", "estimate")


@test
def names_that_are_no_utf8_are_usage():
    with Cli() as c:
        for words in (("checkpoint", "create", b"\xff", "vda"), ("backup", "begin", b"\xff"),
                      ("backup", "end", b"\xff"), ("checkpoint", "list", b"\xff"),
                      ("status", b"\xff")):
            assert varve("--control", c("c.sock"), *words).status == 2, words
        assert c.daemon.seen == []


@test
def map_of_a_disk_finds_its_newest_running_backup():
    backups = [backup("old", 9.25, "running", "vda", "old"), backup("new", 9.5, "degraded", "vda", "e/1"),
               backup("mid", 9, "running", "vda", "mid"), backup("b4", 99, "failed", "vda", "x"),
               backup("b5", 99, "running", "vdb", "vdb")]
    with Cli() as c:
        script = c.write("plugin.sh", b"""
case "$1" in
open) echo "$3" >>$LOGFILE; echo x;;
get_size) echo 1048576;;
pread) dd if=/dev/zero bs=$3 count=1 2>/dev/null;;
*) exit 2;;
esac
""")
        os.chmod(script, 0o755)
        os.environ["LOGFILE"] = c("exports")
        c.nbdkit("sh", script)
        c.daemon.replies = {"query-backups": backups,
                            "query-nbd-server": {"listeners": ["unix:" + c("sock")]}}
        c.good("map", "vda")
        assert c.read("exports").decode().split() == ["e/1"]
        c.refused("map", "vda", "--since", "monday", says="qemu:dirty-bitmap:monday")
        assert c.read("exports").decode().split()[-1] == "e/1@monday"
        c.refused("map", "vdc", says=["vdc", "no running backup", "varve backup begin vdc"])


@test
def qmp_sends_objects_and_prints_answers():
    with Cli({"query-version": {"varve": {}}, "query-disks": lambda a: [a]}) as c:
        sent = b'{"execute": "query-version", "id": 1}{"execute":"query-disks",\n"arguments":{"disk":"}"}}'
        lines = c.good("qmp", stdin=sent).splitlines()
        assert [json.loads(x) for x in lines] == [{"return": {"varve": {}}, "id": 1},
                                                 {"return": [{"disk": "}"}]}], lines
        assert c.good("qmp") == ""


@test
def qmp_prints_refusals_and_says_how_many():
    with Cli({"query-version": {}}) as c:
        r = varve("--control", c("c.sock"), "qmp", stdin=b'{"execute":"x"}{"execute":"query-version"}')
        assert r.status == 1 and "refused 1 of 2" in r.err, str(r)
        assert [list(json.loads(x))[0] for x in r.out.splitlines()] == ["error", "return"], str(r)


@test
def qmp_answers_what_came_before_bad_input():
    with Cli({"query-version": {"a": 1}}) as c:
        for bad in (b"nonsense", b"[1]", b'{"execute": ', b"{]"):
            r = varve("--control", c("c.sock"), "qmp", stdin=b'{"execute":"query-version"}' + bad)
            assert r.status == 1 and "standard input" in r.err, str(r)
            assert json.loads(r.out) == {"return": {"a": 1}}, str(r)


@test
def qmp_quit_ends_well():
    with Cli({"quit": {}}) as c:
        assert json.loads(c.good("qmp", stdin=b'{"execute":"quit"}')) == {"return": {}}


@test
def full_standard_output_is_an_error():
    with Cli({"query-disks": [DISK], "query-backups": [], "query-nbd-server": {}}) as c, open("/dev/full", "wb") as full:
        done = subprocess.run([VARVE, "--control", c("c.sock"), "status"], stdout=full,
                              stderr=subprocess.PIPE, check=False)
        assert done.returncode == 1 and done.stderr.count(b"\n") == 1, done
        assert b"standard output" in done.stderr, done


main()
