# SPDX-License-Identifier: BSD-3-Clause
"""varve pull beside nbdcopy's full copy of the same view."""
import os
import random

from bench import pairs, ratio
from peers import Bench, G, K, M, timed


class pull_what_changed:
    what = "varve pull of what changed, onto the last backup"
    against = "nbdcopy, a full copy of the same view"
    bound = ">= 1.0"

    @staticmethod
    def run(args):
        size, unit, out = 1 * G, 256 * K, []
        for percent in (1, 25, 49, 100):
            with Bench() as s:
                disk = s.varve_disk("vda", s.shm("vda.img", size, True))
                s.start_daemon()
                s.wait_disk("vda", "live")
                with s.qmp() as q, disk.connect() as c:
                    q.cmd("checkpoint-create", name="base", disks=["vda"])
                    units = random.sample(range(size // unit), size // unit * percent // 100)
                    piece = random.randbytes(M)[:unit]
                    for i in units:
                        c.write(i * unit, piece)
                    s.backup(q, "vda", since="base")
                mine, theirs = s.shm("mine.img", size, True), os.path.join(s.images, "theirs.img")
                pull = [os.path.join(os.environ["VARVE_BUILD"], "client/varve"), "pull", s.uri("vda"), mine,
                        "--context", "qemu:dirty-bitmap:backup-vda"]

                def copy():
                    if os.path.exists(theirs):
                        os.unlink(theirs)
                    return timed(["nbdcopy", s.uri("vda"), theirs])

                copy(), timed(pull)
                r = ratio([(b, a) for a, b in pairs(args, lambda: timed(pull), copy)])
                out.append(("%d %% dirty" % percent, dict(r, own_bound=">= 0.95") if percent == 100 else r))
        return out


ROWS = [pull_what_changed]
