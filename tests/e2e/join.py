# SPDX-License-Identifier: BSD-3-Clause
"""Runs several test files one after the other and makes one TAP stream of theirs."""
import os
import re
import signal
import subprocess
import sys


def ended(signum, frame):
    sys.exit(128 + signum)


def run_all(paths, words, heard=lambda line: None):
    """Each file as a process of its own, with the words that choose its tests; the exit status.
    What is no TAP is printed behind a '#'.  heard() gets every line of theirs."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, ended)
    n = failed = skipped = 0
    env = dict(os.environ, PYTHONDONTWRITEBYTECODE="1")
    for path in paths:
        topic = os.path.basename(path)[5:-3]
        child = subprocess.Popen([sys.executable, path] + words, stdout=subprocess.PIPE, env=env)
        planned = seen = bad = 0
        try:
            for raw in child.stdout:
                line = raw.decode(errors="replace").rstrip("\n")
                heard(line)
                m = re.fullmatch(r"(ok|not ok) \d+ - (.*)", line)
                if m:
                    n += 1
                    seen += 1
                    bad += m.group(1) == "not ok" and " # TODO " not in line
                    skipped += " # SKIP " in line
                    print("%s %d - %s/%s" % (m.group(1), n, topic, m.group(2)), flush=True)
                elif line.startswith("1.."):
                    planned = int(re.match(r"\d+", line[3:]).group())
                else:
                    print(line if line.startswith("#") else "# " + line, flush=True)
            status = child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise
        if planned != seen or (status != 0 and not bad):
            n += 1
            bad += 1
            print("not ok %d - %s/ran_to_its_end # status %s" % (n, topic, status), flush=True)
        failed += bad
    print("1..%d" % n)
    print("# %d passed, %d failed, %d skipped" % (n - failed - skipped, failed, skipped), flush=True)
    return 1 if failed or not n else 0
