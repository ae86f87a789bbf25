#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The demo works from end to end, and its judge can tell a backup from something else."""

import json
import os
import subprocess
import sys
import tempfile

import ledger

HERE = os.path.dirname(os.path.abspath(__file__))
SIZE, EXTENTS = 8 << 20, [[1 << 20, 512 << 10], [3 << 20, 256 << 10]]
WRITES = 300


class Case:
    """A disk, the same after WRITES writes, and whatever a test makes of the latter."""

    def __init__(self, folder):
        self.start, self.after, self.extents = (os.path.join(folder, n) for n in "sae")
        with open(self.extents, "w", encoding="ascii") as f:
            json.dump(EXTENTS, f)
        with open(self.start, "wb") as f:
            f.write(b"." * SIZE)

    def replay(self, numbers):
        with open(self.start, "rb") as f:
            data = bytearray(f.read())
        book = ledger.Ledger(self.extents)
        for n in numbers:
            w = ledger.Write(n, book)
            data[w.off:w.off + w.count * ledger.SECTOR] = w.data()
        with open(self.after, "wb") as f:
            f.write(data)

    def change(self, off, byte):
        with open(self.after, "r+b") as f:
            f.seek(off)
            f.write(byte)

    def judged(self, lowest=0, highest=WRITES):
        r = subprocess.run([sys.executable, os.path.join(HERE, "ledger.py"), "judge", self.start,
                            self.start, self.after, self.extents, str(lowest), str(highest)],
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return r.returncode, r.stdout.strip()


def judge_takes_the_disk_after_any_write(case):
    for k in list(range(1, 60)) + [WRITES]:
        case.replay(range(1, k + 1))
        status, said = case.judged()
        assert status == 0 and f"after write {k}," in said, (k, said)


def judge_sees_a_byte_beside_the_ledger(case):
    case.replay(range(1, WRITES + 1))
    case.change(SIZE - 1, b"!")
    assert case.judged() == (1, f"NOT EQUAL: differs at byte {SIZE - 1} of the disk")


def judge_sees_a_byte_of_the_ledger(case):
    case.replay(range(1, WRITES + 1))
    case.change((3 << 20) + 77, b"!")
    assert case.judged()[0] == 1


def judge_sees_a_write_that_is_missing(case):
    numbers = list(range(1, WRITES + 1))
    numbers.remove(WRITES - 1)
    case.replay(numbers)
    assert case.judged()[0] == 1


def judge_sees_a_write_from_after_the_instant(case):
    case.replay(list(range(1, WRITES + 1)) + [WRITES + 5])
    assert case.judged(highest=WRITES + 10)[0] == 1


def judge_sees_another_instant(case):
    case.replay(range(1, WRITES + 1))
    assert case.judged(lowest=WRITES + 2, highest=WRITES + 9)[0] == 1
    assert case.judged(lowest=1, highest=WRITES - 2)[0] == 1


def judge_sees_another_size(case):
    case.replay(range(1, WRITES + 1))
    os.truncate(case.after, SIZE - 512)
    assert case.judged()[0] == 1


def the_demo_proves_both_backups(_):
    r = subprocess.run([os.path.join(HERE, "..", "demo.sh"), "--build",
                        os.environ["abs_top_builddir"]], stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True)
    for line in r.stdout.splitlines():
        print("# " + line)
    assert r.returncode == 0, f"exit status {r.returncode}"
    assert r.stdout.count("equal: the disk after write ") == 2


def main():
    tests = [judge_takes_the_disk_after_any_write, judge_sees_a_byte_beside_the_ledger,
             judge_sees_a_byte_of_the_ledger, judge_sees_a_write_that_is_missing,
             judge_sees_a_write_from_after_the_instant, judge_sees_another_instant,
             judge_sees_another_size, the_demo_proves_both_backups]
    failed = 0
    print(f"1..{len(tests)}")
    for number, test in enumerate(tests, 1):
        with tempfile.TemporaryDirectory() as folder:
            try:
                test(Case(folder))
                print(f"ok {number} - {test.__name__}", flush=True)
            except AssertionError as e:
                failed += 1
                print(f"not ok {number} - {test.__name__}\n# {e}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
