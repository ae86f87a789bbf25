#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The tab key: what `varve complete` proposes, and what real shells on a terminal make of it."""
import json
import os
import pty
import select
import sys

from fakevarved import FakeDaemon
from harness import VARVE, good, main, test

VARVED = os.path.join(os.path.dirname(VARVE), "../server/varved")
COMPLETION = os.path.abspath(os.path.join(os.path.dirname(__file__), "../../client/completion"))
DISKS = [
    {"name": "vda", "state": "live", "checkpoints": ["monday", "tuesday"],
     "bitmaps": ["nightly", "week ly"], "backups": ["b-1"]},
    {"name": "vdb", "state": "offline", "checkpoints": ["sunday"], "bitmaps": ["a:b"], "backups": []},
]

# Stands in for a program: completes with the real one, and writes down what else it is told to do.
WRAPPER = """#!/usr/bin/env python3
import json, os, sys
if sys.argv[1:2] in (["complete"], ["--help"]):
    os.execv(%r, sys.argv)
with open(%r, "w") as f:
    json.dump(sys.argv[1:], f)
os.rename(%r, %r)
"""


def proposed(*words, control="/nowhere", **env):
    out = good("complete", "--", *words, env={"VARVE_CONTROL": control, **env})
    return [line.split("\t")[0] for line in out.splitlines()]


def verbs_of_help():
    return [line.split() for line in good("--help").split("\noptions:")[0].splitlines()
            if line.startswith("  ") and not line.startswith("   ")]


class Daemon(FakeDaemon):
    def __init__(self, disks=DISKS):
        super().__init__({"query-disks": disks})


@test
def verbs_are_those_of_help():
    assert proposed("") == list(dict.fromkeys(v[0] for v in verbs_of_help()))
    assert proposed("ba") == ["backup"]
    assert proposed("--json", "ba") == ["backup"]
    assert proposed("nonsense", "") == []


@test
def options_are_those_of_help():
    """Each verb's help and its completion come from one table: nothing is in one alone."""
    seen = 0
    for line in verbs_of_help():
        verb = line[:2] if len(line) > 1 and line[1].islower() else line[:1]
        told = good(*verb, "--help")
        own = [w.split()[0] for w in told.split("options:\n")[-1].splitlines()
               if w.startswith("  --")] if "options:\n" in told else []
        assert proposed(*verb, "--")[:len(own)] == own, (verb, told)
        seen += len(own)
    assert seen > 20
    assert "--since" not in proposed("backup", "begin", "--since", "x", "--")
    assert proposed("backup", "begin", "--preserve", "") == ["all", "dirty"]
    assert proposed("backup", "begin", "--preserve=d") == ["--preserve=dirty"]
    assert proposed("backup", "begin", "--", "--") == []


@test
def names_are_what_the_place_wants():
    with Daemon() as d:
        def names(*words):
            return proposed(*words, control=d.control, VARVE_COMPLETION_TIME="100s")
        assert names("status", "") == ["vda", "vdb"]
        assert names("backup", "begin", "vda", "") == ["vda", "vdb"]
        assert names("backup", "begin", "--since", "", "vda")[:1] == ["vda"]
        assert names("backup", "begin", "--since", "mon") == ["monday"]
        assert names("backup", "begin", "vdb", "--since", "") == ["sunday"]
        assert names("backup", "begin", "--since=s") == ["--since=sunday"]
        assert names("backup", "end", "") == ["b-1"]
        assert names("backup", "begin", "--id", "") == []
        assert names("checkpoint", "create", "") == []
        assert names("checkpoint", "delete", "") == ["monday", "tuesday", "sunday"]
        assert names("checkpoint", "delete", "monday", "") == ["vda", "vdb"]
        assert names("checkpoint", "export", "monday", "vda", "") == ["", ]  # files
        assert names("bitmap", "remove", "vda", "") == ["nightly", "week ly"]
        assert names("bitmap", "merge", "--from", "") == ["vda", "vdb"]
        assert names("bitmap", "merge", "vdb", "") == ["a:b"]
        assert names("bitmap", "add", "vda", "") == []
        assert names("map", "") == ["vda", "vdb"]
        assert names("map", "vdb", "--since", "sunday", "--until=") == ["--until=sunday", "--until=a:b"]
        assert names("map", "vda", "--svg", "") == ["", ]  # files
        assert names("status", "vda", "") == []


@test
def a_daemon_that_cannot_be_asked_costs_nothing():
    """None, one that never answers, one that answers nonsense: no names, no error, no waiting."""
    assert proposed("status", "") == []
    with Daemon(disks=None) as d:
        assert proposed("status", "", control=d.control) == []
        assert "--clients" in proposed("status", "--", control=d.control)
    for nonsense in ([1, {"name": 3}, {"checkpoints": 4}], {"a": "b"}, "x"):
        with Daemon(nonsense) as d:
            proposed("checkpoint", "delete", "", control=d.control)
    with Daemon([{"name": "a\tb"}, {"name": "c\x1b[31m"}, {"name": "d\u009b31m"}, {"name": "good"}]) as d:
        assert proposed("status", "", control=d.control, VARVE_COMPLETION_TIME="100s") == ["good"]


def typed(command, ready, keys):
    """Types keys at a shell on a terminal once it is ready; the arguments that the program then got."""
    with Daemon() as d:
        told = d("told")
        for name, real in (("varve", VARVE), ("varved", VARVED)):
            wrapper = d.write(name, b"")
            with open(wrapper, "w", encoding="utf-8") as f:
                f.write(WRAPPER % (real, told + ".new", told + ".new", told))
            os.chmod(wrapper, 0o755)
        os.mkdir(d("sub"))
        d.write("sub/nightly.ckpt", b"")
        pid, fd = pty.fork()
        if pid == 0:
            os.environ.update(PATH=d.path + ":" + os.environ["PATH"], VARVE_CONTROL=d.control,
                              VARVE_COMPLETION_TIME="100s",
                              TERM="dumb", HOME=d.path, LC_ALL="C.UTF-8")
            os.chdir(d.path)
            os.execvp(command[0], command)
        seen = b""
        try:
            os.write(fd, ready.encode())
            while b"READY>" not in seen:
                seen += os.read(fd, 4096)
            os.write(fd, keys.encode() + b"\n")
            while not os.path.exists(told):
                if select.select([fd], [], [], 0.05)[0]:
                    seen += os.read(fd, 4096)
        except TimeoutError as e:
            raise AssertionError("%s shows: %r" % (command[0], seen)) from e
        finally:
            os.close(fd)  # hangs up: the shell ends
            os.waitpid(pid, 0)
        return json.loads(d.read("told"))


def bash(keys):
    return typed(["bash", "--norc", "--noprofile", "-i"],
                 "bind 'set bell-style none'; . %s/varve; . %s/varved; PS1='REA''DY> '\n"
                 % (COMPLETION, COMPLETION), keys)


def zsh(keys):
    return typed(["zsh", "-f", "-i"],
                 "fpath=(%s $fpath); autoload -U compinit; compinit -D -u; PS1='REA''DY> '\n"
                 % COMPLETION, keys)


for_both = [
    # (keys, the arguments)
    ("varve che\tdel\tmon\tvdb\t", ["checkpoint", "delete", "monday", "vdb"]),
    ("varve backup begin --sin\ttue\tvda", ["backup", "begin", "--since", "tuesday", "vda"]),
    ("varve backup begin --preserve=d\t vda", ["backup", "begin", "--preserve=dirty", "vda"]),
    ("varve bitmap remove vda we\t", ["bitmap", "remove", "vda", "week ly"]),
    ("varve bitmap remove vdb a\t", ["bitmap", "remove", "vdb", "a:b"]),
    ("varve bitmap remove vdb a:\t", ["bitmap", "remove", "vdb", "a:b"]),
    ("varve checkpoint import x vda su\tni\t", ["checkpoint", "import", "x", "vda",
                                              "sub/nightly.ckpt"]),
    ("varved --acc\tsub/ni\t--list-\t", ["--access", "sub/nightly.ckpt", "--list-bases"]),
    ("varved --metr\tunix:/x --vers\t", ["--metrics", "unix:/x", "--version"]),
]


@test
def bash_completes():
    for keys, arguments in for_both + [("varved --tls r\t--tls-psk x", ["--tls", "require", "--tls-psk", "x"])]:
        told = bash(keys)
        assert told == arguments, (keys, told)


@test
def zsh_completes():
    for keys, arguments in for_both:
        told = zsh(keys)
        assert told == arguments, (keys, told)


if __name__ == "__main__":
    sys.exit(main())
