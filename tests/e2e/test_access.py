#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""varved's own --tls and --access options: a real backup for those who may read it, and SIGHUP.
The rules themselves, and the protocol, are judged by tests/protocol/test_tls.py and test_access.py."""
import os
import signal
import subprocess

import backups
from harness import M, VARVED, Stack, run, wait_for
from tap import main, test

SIZE = 8 * M
KEY = "1f" * 32


def log(stack):
    with open(stack.daemon.log) as f:
        return f.read()


def hup(stack, expected):
    seen = len(log(stack))
    stack.daemon.send_signal(signal.SIGHUP)
    wait_for("varved says %r" % expected, lambda: expected in log(stack)[seen:], stack.daemon)


def write(path, text):
    with open(path, "w") as f:
        f.write(text)
    return path


def nbdinfo(uri):
    return run(["nbdinfo", "--size", uri], check=False)


@test
def backup_is_read_by_those_who_may_and_by_nobody_else():
    with Stack() as s:
        keys = write(s.dir + "/keys.psk", "alice:%s\nbob:%s\n" % (KEY, KEY))
        rules = write(s.dir + "/rules", "psk:alice vda\n")
        s.serve("vda", s.image("vda.img", SIZE, b"\x5a" * SIZE))
        s.start_daemon("--tls", "require", "--tls-psk", keys, "--access", rules)
        s.wait_disk("vda", "live")

        def uri(user, export="vda"):
            return "nbds+unix://%s@/%s?socket=%s&tls-psk-file=%s" % (user, export, s.nbd, keys)
        with s.qmp() as q:
            ident, _ = backups.begin(q, [{"disk": "vda"}])
            run(["nbdcopy", uri("alice"), s.dir + "/copy"])
            with open(s.dir + "/copy", "rb") as f:
                assert f.read() == b"\x5a" * SIZE
            assert nbdinfo(uri("alice", "vda%2Bdelta")).returncode == 0
            hidden, unknown = nbdinfo(uri("bob")), nbdinfo(uri("bob", "vdx"))
            assert hidden.returncode == 1 and unknown.returncode == 1
            assert hidden.stderr == unknown.stderr.replace("vdx", "vda"), hidden.stderr
            assert nbdinfo(s.uri("vda")).returncode == 1, "served in plain"

            write(rules, "psk:bob vd*\n")
            hup(s, "access rules are read")
            assert nbdinfo(uri("bob")).returncode == 0 and nbdinfo(uri("alice")).returncode == 1
            write(rules, "psk:alice vda\nwho?\n")
            hup(s, rules + ":2: ")
            assert nbdinfo(uri("bob")).returncode == 0 and nbdinfo(uri("alice")).returncode == 1
            os.unlink(keys)
            hup(s, keys)
            write(keys, "bob:%s\n" % KEY)
            assert nbdinfo(uri("bob")).returncode == 0, "the old keys are gone"
            backups.end(q, ident)


def varved(*options):
    with Stack() as s:
        r = subprocess.run([VARVED, "--state-dir", s.state, "--runtime-dir", s.runtime, *options],
                           capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        lines = r.stderr.splitlines()
        assert len(lines) == 1, lines
        return r.returncode, lines[0]


@test
def wrong_options_and_files_are_told_in_one_line():
    assert varved("--tls", "maybe")[0] == 2
    status, said = varved("--tls", "require")
    assert status == 2 and "--tls require needs --tls-certificates" in said, said
    status, said = varved("--tls-psk", "/nonexistent/k")
    assert status == 2 and "--tls-psk does nothing" in said, said
    status, said = varved("--tls", "on", "--tls-psk", "/nonexistent/k")
    assert status == 1 and "/nonexistent/k" in said and "psktool" in said, said
    status, said = varved("--access", "/nonexistent/rules")
    assert status == 1 and "/nonexistent/rules" in said, said


if __name__ == "__main__":
    main()
