# SPDX-License-Identifier: BSD-3-Clause
"""TAP for the end-to-end tests: @test marks a promise, main() runs them in order.

A test's name is what it promises.  It passes when it returns, is skipped when it raises Skip (the
test must stand in tests/SKIPS), and fails on any other exception.  A watchdog ends a test that
hangs.  `./test_x.py PATTERN...` runs those whose names contain one of the patterns.

Environment: SEED=N repeats a run's random choices, LONG=1 chooses the long run's numbers,
DEADLINE=SECONDS is how long one test may take (generous; no test measures time).
"""
import faulthandler
import os
import random
import signal
import sys
import traceback

tests = []
LONG = os.environ.get("LONG", "0") not in ("", "0")
SEED = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
DEADLINE = int(os.environ.get("DEADLINE", "3600" if LONG else "600"))


class Skip(Exception):
    """The test cannot run here; the text says why.  tests/SKIPS lists what may be skipped."""


def test(function):
    tests.append(function)
    return function


def number(name, default, long=None):
    """A number the environment may choose: NAME, else the long run's, else the default."""
    if os.environ.get(name):
        return int(os.environ[name])
    return long if LONG and long is not None else default


def diag(text):
    for line in str(text).splitlines() or [""]:
        print("# " + line)
    sys.stdout.flush()


def rng(what):
    """A random source of its own for each purpose, all from the printed seed."""
    return random.Random("%d/%s" % (SEED, what))


def too_long(signum, frame):
    faulthandler.dump_traceback(file=sys.stderr)
    raise TimeoutError("the test took longer than %d s" % DEADLINE)


def ended(signum, frame):
    sys.exit(128 + signum)


def run_one(number_, function):
    name = function.__name__
    signal.alarm(DEADLINE)
    try:
        function()
    except Skip as why:
        print("ok %d - %s # SKIP %s" % (number_, name, why))
        return True
    except Exception:  # SystemExit goes through
        signal.alarm(0)
        print("not ok %d - %s" % (number_, name))
        diag("promise: " + " ".join((function.__doc__ or name).split()))
        diag(traceback.format_exc())
        return False
    finally:
        signal.alarm(0)
    print("ok %d - %s" % (number_, name))
    return True


def main():
    signal.signal(signal.SIGTERM, ended)
    signal.signal(signal.SIGHUP, ended)
    signal.signal(signal.SIGALRM, too_long)
    patterns = sys.argv[1:]
    chosen = [t for t in tests if not patterns or any(p in t.__name__ for p in patterns)]
    diag("seed %d (repeat with SEED=%d)" % (SEED, SEED))
    print("1..%d" % len(chosen))
    sys.stdout.flush()
    failed = 0
    for i, function in enumerate(chosen, 1):
        if not run_one(i, function):
            failed += 1
        sys.stdout.flush()
    if failed:
        diag("%d of %d failed, seed %d" % (failed, len(chosen), SEED))
    sys.exit(1 if failed else 0)
