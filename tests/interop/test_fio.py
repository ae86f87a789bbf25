#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""fio's nbd engine: as the guest it writes what it can recognize, and finds that in the backup
although the guest wrote something else later."""
import clients
from clients import at_home, client, main, need
from history import M, backups
from reach import TCP, UNIX, X509

MONDAY, LATER = "0x6d6f6e64", "0x6c617465"


def fio(h, uri, rw, pattern, *more, check=True, wrap=lambda h, cmd: cmd):
    need("fio")
    return clients.run(h, wrap(h, [
        "fio", "--name=x", "--ioengine=nbd", "--uri=" + uri, "--rw=" + rw, "--bs=64k", "--size=16M",
        "--iodepth=32", "--verify=pattern", "--verify_pattern=" + pattern, "--verify_fatal=1",
        "--verify_state_save=0", "--minimal", *more]), check=check)


@client("fio", "--ioengine=nbd: verified reads, in order and at random, 32 in flight",
        [UNIX, TCP, X509])  # its URI may name no file, so no pre-shared key
def fio_finds_what_it_wrote(h, r):
    """As a guest fio writes a pattern; a backup begins; it writes another one.  The backup has the
    first one, and fio tells them apart."""
    disk = h.s.disks.get("fio") or h.s.serve("fio", h.s.image("fio.img", 16 * M))
    h.s.wait_disk("fio", "live")
    fio(h, disk.uri, "write", MONDAY, "--do_verify=0")
    ident, _ = backups.begin(h.q, ["fio"])
    try:
        uri = r.uri(h, "fio").split("?tls-")[0]
        fio(h, uri, "read", MONDAY, wrap=at_home)
        fio(h, disk.uri, "write", LATER, "--do_verify=0")
        fio(h, uri, "read", MONDAY, wrap=at_home)
        fio(h, uri, "randread", MONDAY, "--thread", wrap=at_home)
        wrong = fio(h, uri, "read", LATER, check=False, wrap=at_home)
        assert wrong.returncode != 0 and "verify" in wrong.stderr + wrong.stdout, wrong
        fio(h, disk.uri, "read", LATER)
    finally:
        backups.end(h.q, ident)


if __name__ == "__main__":
    main()
