#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The test driver and the count see what they must: a driver that cannot fail proves nothing."""

import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))


def drive(script, folder, **env):
    """Results that the driver makes of a shell script, as lines "KIND name"."""
    log, trs = os.path.join(folder, "t.log"), os.path.join(folder, "t.trs")
    full = dict(os.environ, VARVE_TEST_TIMEOUT="2", SANITIZER="", **{})
    full.update(env)
    subprocess.run([sys.executable, os.path.join(HERE, "driver.py"), "--test-name", "t",
                    "--log-file", log, "--trs-file", trs, "--", "/bin/sh", "-c", script],
                   check=True, env=full, stdout=subprocess.DEVNULL)
    with open(trs, encoding="utf-8") as f:
        return [line[14:].strip() for line in f if line.startswith(":test-result:")]


CASES = [
    ("silent_success_passes", "true", {}, ["PASS exit status"]),
    ("silent_failure_fails", "exit 3", {}, ["FAIL ended with exit status 3"]),
    ("status_77_skips", "exit 77", {}, ["SKIP all"]),
    ("signal_fails", "kill -SEGV $$", {}, ["FAIL ended with signal SIGSEGV"]),
    ("tap_lines_count_one_by_one", "echo 1..2; echo ok 1 - a; echo not ok 2 - b; exit 1", {},
     ["PASS a", "FAIL b"]),
    ("plans_add_up", "echo 1..1; echo ok 1 - a; echo 1..1; echo ok 1 - b", {}, ["PASS a", "PASS b"]),
    ("a_result_that_is_missing_fails", "echo 1..2; echo ok 1 - a", {},
     ["PASS a", "FAIL planned 2 results, gave 1"]),
    ("status_fails_though_all_lines_passed", "echo 1..1; echo ok 1 - a; exit 1", {},
     ["PASS a", "FAIL ended with exit status 1"]),
    ("skip_has_its_reason", "echo 1..1; echo 'ok 1 - a # SKIP no b'", {}, ["SKIP a # SKIP no b"]),
    ("skip_of_all_is_one_skip", "echo '1..0 # SKIP no b'", {}, ["SKIP all # SKIP no b"]),
    ("cmocka_skips_in_its_own_way", "echo 1..2; echo 'not ok 1 - # SKIP b'; echo 'not ok 2 - c # SKIP d'", {},
     ["SKIP # SKIP b", "FAIL c # SKIP d"]),
    ("bail_out_fails", "echo 1..1; echo ok 1 - a; echo 'Bail out! disk on fire'", {},
     ["PASS a", "FAIL bailed out: disk on fire"]),
    ("hung_test_is_ended", "sleep 30", {}, ["FAIL not ended after 2 s"]),
    ("process_left_behind_fails", "(sleep 30 &) ; true", {},
     ["PASS exit status", "FAIL left processes behind: sleep"]),
    ("process_that_is_just_ending_is_no_failure", "(sleep 1 &) ; true", {}, ["PASS exit status"]),
    ("file_left_behind_fails", "touch $TMPDIR/x", {},
     ["PASS exit status", "FAIL left files behind: x"]),
    ("what_a_sanitizer_says_fails",
     "p=${ASAN_OPTIONS##*log_path=}; echo 'ERROR: AddressSanitizer: boom' >$p.1", {"SANITIZER": "address"},
     ["PASS exit status", "FAIL sanitizer: ERROR: AddressSanitizer: boom"]),
]


def count(folder, skips):
    path = os.path.join(folder, "SKIPS")
    with open(path, "w", encoding="utf-8") as f:
        f.write(skips)
    r = subprocess.run([sys.executable, os.path.join(HERE, "count.py"), "--skips", path,
                        "--passed", "1", "x=" + folder], stdout=subprocess.PIPE,
                       stderr=subprocess.DEVNULL, text=True)
    return r.returncode, (r.stdout.strip().splitlines() or [""])[-1]


def main():
    number = failed = 0

    def result(ok, name, got):
        nonlocal number, failed
        number += 1
        failed += not ok
        print(f"{'ok' if ok else 'not ok'} {number} - {name}")
        if not ok:
            print(f"# got {got!r}")

    for name, script, env, want in CASES:
        with tempfile.TemporaryDirectory() as folder:
            got = drive(script, folder, **env)
            ok = len(got) == len(want) and all(g.startswith(w) for g, w in zip(got, want))
            result(ok, name, got)
    with tempfile.TemporaryDirectory() as folder:
        drive("echo 1..2; echo ok 1 - a; echo 'ok 2 - b # SKIP no c'", folder)
        got = count(folder, "# none\n")
        result(got == (1, "2 passed, 1 failed, 0 skipped"), "unlisted_skip_is_a_failure", got)
        got = count(folder, "t | b # * | no c on this machine\n")
        result(got == (0, "2 passed, 0 failed, 1 skipped"), "listed_skip_is_a_skip", got)
        got = count(folder, "t | b\n")
        result(got[0] != 0, "list_without_a_reason_is_refused", got)
    print(f"1..{number}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
