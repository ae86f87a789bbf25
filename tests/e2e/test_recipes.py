#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The shell commands of varve-recipes(7) and varve-protocol(7) do what the pages say.

`=for example ACTION` in the page: run (the block that follows, with sh -e), file PATH (writes the block
there), write OFFSET LENGTH and zero OFFSET LENGTH (the guest does), same PATH (that file is the disk as
it is now), key USER (varved is started anew with a key for USER, and TLS is required)."""
import os
import re
import subprocess

from harness import K, M, VARVE, Stack, wait_for
from tap import main, test

DOCS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../docs")
SIZE = 8 * M


def actions(text):
    """[(words, the verbatim block that follows)]"""
    out = []
    for part in text.split("\n=for example ")[1:]:
        words, _, rest = part.partition("\n")
        block = re.match(r"\n*((?:    .*\n|\n(?=    ))*)", rest).group(1)
        out.append((words.split(), re.sub("^    ", "", block, flags=re.MULTILINE)))
    return out


def size(text):
    return int(text[:-1]) * {"K": K, "M": M}[text[-1]]


class Kitchen:
    def __init__(self, s):
        self.s, self.filled = s, 1
        self.paths = [("/srv/backup", s.path("backup")), ("/run/varve", s.runtime),
                      ("/etc/varve", s.path("etc"))]
        os.mkdir(s.path("backup"))
        os.mkdir(s.path("etc"))
        s.start("vda", SIZE, os.urandom(2 * M) + bytes(SIZE - 2 * M))

    def real(self, text):
        for page, real in self.paths:
            text = text.replace(page, real)
        return text

    def run(self, block):
        path = "%s:%s" % (os.path.dirname(VARVE), os.environ["PATH"])
        done = subprocess.run(["sh", "-e", "-c", self.real(block)], capture_output=True, text=True,
                              timeout=300, env=dict(os.environ, PATH=path, VARVE_CONTROL=self.s.control))
        assert done.returncode == 0, "%s\n%s%s" % (block, done.stdout, done.stderr)

    def file(self, block, path):
        with open(self.real(path), "w", encoding="utf-8") as f:
            f.write(self.real(block))

    def write(self, _, off, length):
        self.filled += 1
        with self.s.disks["vda"].connect() as guest:
            guest.write(size(off), bytes([self.filled]) * size(length))
            guest.flush()

    def zero(self, _, off, length):
        with self.s.disks["vda"].connect() as guest:
            guest.zero(size(off), size(length))
            guest.flush()

    def same(self, _, path):
        assert self.s.content(self.real(path)) == self.s.content(self.s.disks["vda"].image), path

    def key(self, _, user):
        keys = self.s.path("etc/keys.psk")
        subprocess.run(["psktool", "-u", user, "-p", keys], check=True, stdout=subprocess.DEVNULL)
        assert self.s.stop(self.s.daemon) == 0
        self.s.daemon = self.s.spawn("varved", [
            os.path.join(os.path.dirname(VARVE), "../server/varved"), "--state-dir", self.s.state,
            "--runtime-dir", self.s.runtime, "--tls", "require", "--tls-psk", keys])
        wait_for("varved listens", lambda: os.path.exists(self.s.control), self.s.daemon)
        self.s.wait_disk("vda", "live")


def follow(page, least):
    with open(os.path.join(DOCS, page), encoding="utf-8") as f:
        found = actions(f.read())
    assert len(found) >= least, found
    with Stack() as s:
        kitchen = Kitchen(s)
        for words, block in found:
            assert bool(block) == (words[0] in ("run", "file")), words
            getattr(kitchen, words[0])(block, *words[1:])


@test
def every_recipe_does_what_it_says():
    follow("varve-recipes.pod", 38)


@test
def what_an_appliance_does_by_hand_is_what_the_page_says():
    follow("varve-protocol.pod", 5)


if __name__ == "__main__":
    main()
