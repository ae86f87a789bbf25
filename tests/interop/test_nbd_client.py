#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""nbd-client without its kernel module (with it: test_guest.py)."""
from clients import client, main, refused, run
from history import EXPORTS
from reach import TCP, UNIX, X509

PACKAGE = "nbd-client"


def where(h, r):
    out = ["127.0.0.1", str(h.port)] if r.tcp else ["-unix", h.s.nbd]
    if r.tls:
        out += ["-enable-tls", "-tlshostname", "localhost"]
        for option, name in (("-certfile", "client-cert.pem"), ("-keyfile", "client-key.pem"),
                             ("-cacertfile", "ca-cert.pem")):
            out += [option, "%s/%s" % (h.credentials.client, name)]
    return out


@client(PACKAGE, "nbd-client -l", [UNIX, TCP, X509])
def nbd_client_lists_the_exports(h, r):
    out = run(h, ["nbd-client", "-l", *where(h, r)]).stdout
    names = [line.partition(":")[0] for line in out.splitlines() if ": disk " in line]
    assert sorted(names) == sorted(EXPORTS), out


@client(PACKAGE, "nbd-client -l in plain, to a server that demands TLS: refused", [X509])
def nbd_client_in_plain_is_refused(h, r):
    said = refused(h, ["nbd-client", "-l", "127.0.0.1", str(h.port)])
    assert "TLS" in said, said


if __name__ == "__main__":
    main()
