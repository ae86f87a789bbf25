# SPDX-License-Identifier: BSD-3-Clause
"""Begin, pull, map and end backups through the daemon's public interface."""
import threading

import nbdclient
from nbdclient import CMD_READ, NBDError

ALLOC = "base:allocation"
DIRTY = "qemu:dirty-bitmap:"
CHUNK = 1 << 20


def begin(qmp, disks, **args):
    """backup-begin; disks: names or dictionaries.  Returns (id, {disk: its answer})."""
    got = qmp.execute("backup-begin", dict(
        {k.replace("_", "-"): v for k, v in args.items()},
        disks=[{"disk": d} if isinstance(d, str) else d for d in disks]))
    answer = {d["disk"]: d for d in got["disks"]}
    for d in answer.values():
        if not d["context"].startswith(DIRTY):
            raise AssertionError("context %r" % d["context"])
    return got["id"], answer


def end(qmp, ident, success=True):
    return qmp.execute("backup-end", {"id": ident, "success": success})


def in_threads(functions):
    """Runs them all at once; raises the first error."""
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as e:  # handed on below
            errors.append(e)

    threads = [threading.Thread(target=guarded, args=(f,), daemon=True) for f in functions]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]


def pull(where, export, connections=4, depth=4, chunk=CHUNK):
    """The whole export, read by several connections with several requests in flight each."""
    with nbdclient.connect(where, export) as c:
        size = c.size
        assert c.flags & nbdclient.TF_CAN_MULTI_CONN, "CAN_MULTI_CONN is not set"
    image = bytearray(size)
    view = memoryview(image)

    def worker(first):
        with nbdclient.connect(where, export) as c:
            offsets = iter(range(first * chunk, size, connections * chunk))
            flying = 0
            while True:
                while flying < depth:
                    off = next(offsets, None)
                    if off is None:
                        break
                    c.send(CMD_READ, off, min(chunk, size - off),
                           into=view[off:off + min(chunk, size - off)])
                    flying += 1
                if flying == 0:
                    return
                r = c.recv()
                if r.error:
                    raise NBDError(r.error, r.text)
                flying -= 1

    in_threads([lambda i=i: worker(i) for i in range(connections)])
    return image


def extents(where, export, context):
    """[(offset, length, flags)] of one context of an export."""
    with nbdclient.connect(where, export, [context]) as c:
        return c.map(context)


def dirty(where, export, context):
    """[(offset, length)] of what a dirty bitmap names; its words are 0 or 1."""
    got = extents(where, export, context)
    assert all(flags in (0, 1) for _, _, flags in got), "a dirty word is neither 0 nor 1"
    return [(off, length) for off, length, flags in got if flags]


def apply(previous, now, ranges):
    """Yesterday's full backup with the ranges of today's put over it."""
    out = bytearray(previous)
    for off, length in ranges:
        out[off:off + length] = now[off:off + length]
    return out


def first_difference(a, b, step=512):
    """Offset of the first sector that differs, or None; lengths are equal."""
    assert len(a) == len(b), (len(a), len(b))
    if a == b:
        return None
    lo, hi = 0, len(a)
    va, vb = memoryview(a), memoryview(b)
    while hi - lo > step:
        mid = lo + max(step, (hi - lo) // 2 // step * step)
        if va[lo:mid] != vb[lo:mid]:
            hi = mid
        else:
            lo = mid
    return lo
