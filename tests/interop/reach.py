# SPDX-License-Identifier: BSD-3-Clause
"""The ways to a server: unix socket or TCP, plain or TLS with certificates or pre-shared keys, as
libnbd's URIs and as QEMU's options."""
import os
import shutil
import urllib.parse

import history
import tlslib
from history import KEY, USER


class Credentials:
    """Folders of a server's and a client's files, in a temporary folder of tlslib's."""

    def __init__(self):
        ca = tlslib.ca("interop")
        self.server, self.client = ca.dir, ca.client(USER)
        self.psk = os.path.join(ca.base, "keys.psk")
        with open(self.psk, "w") as f:
            f.write("%s:%s\n" % (USER, KEY))
        self.home = os.path.join(ca.base, "home")  # where libnbd looks if nobody tells it
        shutil.copytree(self.client, os.path.join(self.home, ".pki", "libnbd"))


class Reach:
    def __init__(self, name, tcp, tls=None):
        self.name, self.tcp, self.tls = name, tcp, tls

    def uri(self, h, export):
        """For libnbd.  What it says of keys and certificates needs leave to read local files."""
        query = {}
        if not self.tcp:
            query["socket"] = h.s.nbd
        if self.tls == "psk":
            query["tls-psk-file"] = h.credentials.psk
        elif self.tls == "x509":
            query["tls-certificates"] = h.credentials.client
        return "nbd%s%s://%s%s/%s%s" % (
            "s" if self.tls else "", "" if self.tcp else "+unix",
            USER + "@" if self.tls == "psk" else "",
            "127.0.0.1:%d" % h.port if self.tcp else "", urllib.parse.quote(export),
            "?" + urllib.parse.urlencode(query, safe="/") if query else "")

    def qemu(self, h, export, **more):
        """QEMU's options: ([--object, …], {"driver": "nbd", …})"""
        opts = {"driver": "nbd", "export": export}
        if self.tcp:
            opts["server"] = {"type": "inet", "host": "127.0.0.1", "port": str(h.port)}
        else:
            opts["server"] = {"type": "unix", "path": h.s.nbd}
        objects = []
        if self.tls:
            c = h.credentials
            objects = ["--object", "tls-creds-%s,id=t0,endpoint=client,dir=%s%s" % (
                self.tls, c.client if self.tls == "x509" else os.path.dirname(c.psk),
                "" if self.tls == "x509" else ",username=" + USER)]
            opts["tls-creds"] = "t0"
            if not self.tcp and self.tls == "x509":
                opts["tls-hostname"] = "localhost"
        opts.update({k.replace("_", "-"): v for k, v in more.items()})
        return objects, opts


UNIX, TCP = Reach("unix", False), Reach("tcp", True)
X509, X509_UNIX = Reach("x509", True, "x509"), Reach("x509_unix", False, "x509")
PSK, PSK_UNIX = Reach("psk", True, "psk"), Reach("psk_unix", False, "psk")
ALL = [UNIX, TCP, X509, PSK]
if os.environ.get("VARVE_INTEROP_ALL"):  # `run` sets it; make check has no time for more
    ALL += [X509_UNIX, PSK_UNIX]

_made = {}


def shared(tls):
    """The history of this process, with or without TLS; made once."""
    if tls not in _made:
        _made[tls] = history.History(Credentials() if tls else None)
    return _made[tls]


def close_all(show):
    wrong = []
    while _made:
        wrong += _made.popitem()[1].close(show)
    return wrong
