#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Automake's test driver of this tree: runs one test program and judges it.

A test program either speaks TAP on stdout (cmocka's programs do so when CMOCKA_MESSAGE_OUTPUT=TAP;
several plans in one output add up) or is judged by its exit status (77: skipped).  Beyond what it
says itself a test fails here when

  * it has not ended after VARVE_TEST_TIMEOUT seconds,
  * it leaves a process behind (this driver is the subreaper of all it starts),
  * it leaves a file or socket behind in TMPDIR, which is a fresh and short folder for each test,
  * a sanitizer said something in any process of it, also in one whose status nobody looked at.

Each TAP line becomes one :test-result: in the .trs file; tests/harness/count.py adds them up.
"""

import argparse
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

PR_SET_CHILD_SUBREAPER = 36
TIMEOUT_S = float(os.environ.get("VARVE_TEST_TIMEOUT", "600"))
GRACE_S = 3.0

RESULT = re.compile(r"^(not )?ok\b\s*(\d+)?\s*-?\s*(.*)$")
PLAN = re.compile(r"^1\.\.(\d+)\s*(?:#\s*(.*))?$")
DIRECTIVE = re.compile(r"(?:^|\s)#\s*(SKIP|TODO)\S*\s*(.*)$", re.IGNORECASE)


class Results:
    def __init__(self):
        self.lines = []  # (PASS | FAIL | SKIP | XFAIL | XPASS, name)
        self.planned = 0
        self.has_plan = False
        self.seen = 0
        self.skip_all = None

    def feed(self, line):
        m = PLAN.match(line)
        if m:
            self.has_plan = True
            self.planned += int(m.group(1))
            d = DIRECTIVE.search("#" + (m.group(2) or ""))
            if int(m.group(1)) == 0 and d and d.group(1).upper() == "SKIP":
                self.skip_all = d.group(2)
            return
        if line.startswith("Bail out!"):
            self.lines.append(("FAIL", "bailed out: " + line[9:].strip()))
            return
        m = RESULT.match(line)
        if not m:
            return
        self.seen += 1
        bad, name = bool(m.group(1)), m.group(3).strip()
        d = DIRECTIVE.search(name)
        kind = d.group(1).upper() if d else None
        # cmocka 1.1.5 says "not ok N # SKIP name".
        if kind == "SKIP" and (not bad or name.startswith("#")):
            self.lines.append(("SKIP", name))
        elif kind == "TODO":
            self.lines.append(("XFAIL" if bad else "XPASS", name))
        else:
            self.lines.append(("FAIL" if bad else "PASS", name or str(self.seen)))

    def finish(self, status):
        spoke = self.has_plan or self.seen
        if self.skip_all is not None and not self.seen:
            self.lines.append(("SKIP", "all # SKIP " + self.skip_all))
        if not spoke and status == 77:
            self.lines.append(("SKIP", "all"))
        elif not spoke and status == 0:
            self.lines.append(("PASS", "exit status"))
        elif status != 0 and not any(r == "FAIL" for r, _ in self.lines):
            self.lines.append(("FAIL", "ended with " + describe(status)))
        if self.has_plan and self.seen != self.planned and self.skip_all is None:
            self.lines.append(("FAIL", f"planned {self.planned} results, gave {self.seen}"))


def describe(status):
    if status < 0:
        return "signal " + signal.Signals(-status).name
    return f"exit status {status}"


def children():
    """Processes whose parent we are, orphans of the test among them, without zombies."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
                comm, rest = f.read().rsplit(")", 1)
        except OSError:
            continue
        state, ppid = rest.split()[:2]
        if int(ppid) == os.getpid() and state != "Z":
            found.append((int(pid), comm.split("(", 1)[1]))
    return found


def reap():
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass


def end_leftovers(grace_s=GRACE_S):
    """Names of the processes that did not go by themselves; they are gone when this returns."""
    deadline = time.monotonic() + grace_s
    while children() and time.monotonic() < deadline:
        time.sleep(0.02)
        reap()
    left = children()
    while children():
        for pid, _ in children():
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
        reap()
    return [f"{name} ({pid})" for pid, name in left]


def files_below(folder):
    found = []
    for base, dirs, files in os.walk(folder):
        found += [os.path.relpath(os.path.join(base, n), folder) for n in dirs + files]
    return sorted(found)


def sanitizer_env(env, folder):
    for var in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS", "LSAN_OPTIONS"):
        if var != "LSAN_OPTIONS" or var in env:
            path = os.path.join(folder, var[:4].lower())
            env[var] = ":".join(filter(None, [env.get(var), "log_path=" + path]))


def run(command, log, results):
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    tmp = tempfile.mkdtemp(prefix="vt.", dir=os.environ.get("VARVE_TEST_TMPDIR", "/tmp"))
    said = tempfile.mkdtemp(prefix="vs.", dir="/tmp")
    env = dict(os.environ, TMPDIR=tmp, CMOCKA_MESSAGE_OUTPUT="TAP", PYTHONDONTWRITEBYTECODE="1")
    if env.get("SANITIZER"):
        sanitizer_env(env, said)
    lock = threading.Lock()

    def pump(pipe, feed):
        for raw in pipe:
            line = raw.decode(errors="replace").rstrip("\n")
            with lock:
                log.write(line + "\n")
                log.flush()
                if feed:
                    results.feed(line)

    def interrupted(signum, _):
        end_leftovers(0)
        shutil.rmtree(tmp, ignore_errors=True)
        shutil.rmtree(said, ignore_errors=True)
        os._exit(128 + signum)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, interrupted)
    start = time.monotonic()
    timed_out = False
    p = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE)
    pumps = [threading.Thread(target=pump, args=a, daemon=True)
             for a in ((p.stdout, True), (p.stderr, False))]
    for t in pumps:
        t.start()
    try:
        status = p.wait(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        timed_out = True
        p.send_signal(signal.SIGABRT)
        try:
            status = p.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            p.kill()
            status = p.wait()
    left = end_leftovers()
    for t in pumps:
        t.join(GRACE_S)

    with lock:
        if timed_out:
            results.lines.append(("FAIL", f"not ended after {TIMEOUT_S:.0f} s"))
        results.finish(status)
        passed = not any(r == "FAIL" for r, _ in results.lines)
        if left and passed:
            results.lines.append(("FAIL", "left processes behind: " + ", ".join(left)))
        files = files_below(tmp)
        if files and passed:
            results.lines.append(("FAIL", "left files behind: " + ", ".join(files[:5])))
        for name in sorted(os.listdir(said)):
            with open(os.path.join(said, name), errors="replace") as f:
                text = f.read()
            if text.strip():
                log.write(f"--- sanitizer ({name})\n{text}\n")
                what = re.search(r"(?:ERROR|WARNING|SUMMARY): (.*)|runtime error: (.*)", text)
                results.lines.append(("FAIL", "sanitizer: " + (what.group(0) if what else name)))
        log.write(f"# {time.monotonic() - start:.1f} s\n")
    shutil.rmtree(tmp, ignore_errors=True)
    shutil.rmtree(said, ignore_errors=True)
    return time.monotonic() - start


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--test-name", required=True)
    ap.add_argument("--log-file", required=True)
    ap.add_argument("--trs-file", required=True)
    ap.add_argument("--color-tests", default="no")
    ap.add_argument("--expect-failure", default="no")
    ap.add_argument("--enable-hard-errors", default="yes")
    ap.add_argument("command", nargs=argparse.REMAINDER)
    args = ap.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command

    results = Results()
    with open(args.log_file, "w", encoding="utf-8") as log:
        took = run(command, log, results)

    counts = {}
    for kind, _ in results.lines:
        counts[kind] = counts.get(kind, 0) + 1
    worst = next((k for k in ("FAIL", "XPASS", "PASS", "XFAIL", "SKIP") if k in counts), "FAIL")
    with open(args.trs_file, "w", encoding="utf-8") as trs:
        for kind, name in results.lines:
            trs.write(f":test-result: {kind} {name}\n")
        trs.write(f":global-test-result: {worst}\n")
        trs.write(f":recheck: {'yes' if worst in ('FAIL', 'XPASS') else 'no'}\n")
        trs.write(f":copy-in-global-log: {'yes' if worst in ('FAIL', 'XPASS') else 'no'}\n")

    colour = {"FAIL": "\033[0;31m", "PASS": "\033[0;32m", "SKIP": "\033[1;34m"}
    head = worst
    if args.color_tests == "yes":
        head = colour.get(worst, "\033[0;35m") + worst + "\033[m"
    told = ", ".join(f"{n} {k.lower()}" for k, n in sorted(counts.items(), key=lambda c: c[0]))
    print(f"{head}: {args.test_name} ({told}, {took:.1f} s)", flush=True)
    for kind, name in results.lines:
        if kind in ("FAIL", "XPASS"):
            print(f"    {kind}: {name}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
