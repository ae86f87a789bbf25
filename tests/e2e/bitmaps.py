# SPDX-License-Identifier: BSD-3-Clause
"""Bitmaps over the control socket: change them, ask for them, read what they hold; and the disk that
most of their tests begin with."""
import re
import urllib.parse

import backups
from harness import K, M, Stack
from qmpclient import QMPError

SIZE, G64 = 64 * M, 64 * K
PREFIX = "block-dirty-bitmap-"


def infos(q, disk="vda"):
    """{name: BlockDirtyInfo}, the same in all places where it stands."""
    node = [n for n in q.cmd("query-named-block-nodes") if n["node-name"] == disk][0]
    block = [b for b in q.cmd("query-block") if b["device"] == disk][0]
    assert block["inserted"] == node and block["dirty-bitmaps"] == node["dirty-bitmaps"], block
    got = {b["name"]: b for b in node["dirty-bitmaps"]}
    assert set(got) == set([d for d in q.cmd("query-disks") if d["name"] == disk][0]["bitmaps"])
    return got


def count(q, name, disk="vda"):
    return infos(q, disk)[name]["count"]


def add(q, name, node="vda", **more):
    q.cmd(PREFIX + "add", node=node, name=name, **more)


def merge(q, target, sources, node="vda"):
    q.cmd(PREFIX + "merge", node=node, target=target, bitmaps=sources)


def change(q, verb, name, node="vda"):
    q.cmd(PREFIX + verb, node=node, name=name)


def blocks_of(s, export, bitmap, unit):
    """Numbers of the dirty units."""
    out = set()
    for off, n in backups.dirty(s.nbd, export, backups.DIRTY + bitmap):
        assert off % unit == 0, (off, unit)
        out.update(range(off // unit, (off + n - 1) // unit + 1))
    return out


def base_export(export, name):
    return export + "@" + urllib.parse.quote(name, safe="")


def frozen(s, q, names, unit=G64):
    """What the bitmaps hold now, read as bases of a full backup."""
    ident, _ = backups.begin(q, [{"disk": "vda", "export": "look"}])
    out = {n: blocks_of(s, base_export("look", n), n, unit) for n in names}
    backups.end(q, ident, False)
    return out


def refused(q, pattern, command, cls="GenericError", **args):
    try:
        answer = q.cmd(command, **args)
    except QMPError as e:
        assert e.cls == cls and re.search(pattern, e.desc), (command, args, e)
        return
    raise AssertionError("%s %r was accepted: %r" % (command, args, answer))


class Disk:
    """A stack with a disk of 64M in blocks of 64K, a guest and a control connection."""

    def __init__(self, size=SIZE, granularity="64K", **params):
        self.s = Stack()
        try:
            self.disk = self.s.start("vda", size, granularity=granularity, **params)
            self.c = self.disk.connect()
            self.q = self.s.qmp()
        except BaseException:
            self.s.close(show=True)
            raise

    def __enter__(self):
        return self.s, self.c, self.q

    def __exit__(self, kind, value, tb):
        try:
            if kind is None:
                self.c.disc()
        finally:
            self.q.close()
            self.s.__exit__(kind, value, tb)
