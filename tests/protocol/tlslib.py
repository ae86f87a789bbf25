# SPDX-License-Identifier: BSD-3-Clause
"""TLS for the protocol tests: certificates made on the spot with certtool, raw connections that
change to TLS, libnbd for pre-shared keys.  Nothing here needs a network or a file that stays."""
import os
import socket
import ssl
import subprocess
import sys

from nbdtest import DEADLINE, Fixture, Skip, must, tmpdir
from nbdwire import Closed, OPT_STARTTLS, REP_ACK, rep_name

EXPORTS = ["vda:8M:half,dirty=backup-vda", "pat:4M:pattern", "vda@monday:8M:half,dirty=monday,unlisted"]


def certtool(*args):
    r = subprocess.run(["certtool", *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, timeout=DEADLINE)
    must(r.returncode == 0, "certtool %s: %s", " ".join(args), r.stdout.decode()[-500:])


def template(path, text):
    with open(path, "w") as f:
        f.write(text)
    return path


def key(path):
    certtool("--generate-privkey", "--key-type=ecdsa", "--outfile", path)


class CA:
    """A directory `dir` as servers want it, and one for each client: ca-cert.pem, client-*.pem."""

    def __init__(self, name):
        self.base = os.path.join(tmpdir(), "ca-" + name)
        self.dir = os.path.join(self.base, "server")
        os.makedirs(self.dir)
        self.key = os.path.join(self.base, "ca-key.pem")
        self.cert = os.path.join(self.dir, "ca-cert.pem")
        key(self.key)
        t = template(os.path.join(self.base, "ca.tmpl"),
                     'cn = "CA %s"\nca\ncert_signing_key\ncrl_signing_key\n' % name)
        certtool("--generate-self-signed", "--load-privkey", self.key, "--template", t,
                 "--outfile", self.cert)
        self.server("server")

    def issue(self, folder, kind, text):
        os.makedirs(folder, exist_ok=True)
        k, c = (os.path.join(folder, kind + e) for e in ("-key.pem", "-cert.pem"))
        key(k)
        t = template(os.path.join(folder, kind + ".tmpl"), text)
        certtool("--generate-certificate", "--load-ca-certificate", self.cert, "--load-ca-privkey",
                 self.key, "--load-privkey", k, "--template", t, "--outfile", c)
        return c

    def server(self, cn):
        """A new certificate for the server."""
        self.issue(self.dir, "server", 'cn = "%s"\ndns_name = "localhost"\nip_address = "127.0.0.1"\n'
                   "tls_www_server\nsigning_key\n" % cn)

    def client(self, name, more="tls_www_client\n", dn=None):
        """The folder of a client, made at the first call."""
        folder = os.path.join(self.base, "client-" + name)
        if not os.path.isdir(folder):
            subject = dn or 'cn = "%s"\norganization = "Example"\n' % name
            self.issue(folder, "client", subject + "signing_key\n" + more)
            os.link(self.cert, os.path.join(folder, "ca-cert.pem"))
        return folder

    def expired(self):
        return self.client("expired", "tls_www_client\n"
                           'activation_date = "2001-01-01 00:00:00"\n'
                           'expiration_date = "2002-01-01 00:00:00"\n')

    def revoke(self, folder, out="ca-crl.pem"):
        t = template(os.path.join(self.base, "crl.tmpl"), "crl_next_update = 30\ncrl_number = 1\n")
        certtool("--generate-crl", "--load-ca-privkey", self.key, "--load-ca-certificate", self.cert,
                 "--load-certificate", os.path.join(folder, "client-cert.pem"), "--template", t,
                 "--outfile", os.path.join(self.dir, out))


_ca = {}


def ca(name="main"):
    if name not in _ca:
        _ca[name] = CA(name)
    return _ca[name]


def context(authority=None, client=None, lo=None, hi=None, strict=False):
    """A client's settings; client: its folder; strict: an end without close_notify raises."""
    ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if strict:
        ctx.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0x80)
    ctx.load_verify_locations((authority or ca()).cert)
    if client:
        ctx.load_cert_chain(os.path.join(client, "client-cert.pem"),
                            os.path.join(client, "client-key.pem"))
    if lo:
        ctx.minimum_version = lo
    if hi:
        ctx.maximum_version = hi
    return ctx


def ask_starttls(c):
    c.send_opt(OPT_STARTTLS)
    r = c.opt_reply(OPT_STARTTLS)
    must(r.type == REP_ACK, "STARTTLS got %s", rep_name(r.type))
    must(not c.buf, "bytes in plain behind the ACK: %r", bytes(c.buf[:40]))


def upgrade(c, ctx=None):
    """STARTTLS and the TLS handshake; what was negotiated before is gone.  ssl.SSLError or Closed:
    refused (with TLS 1.3 it may come only with the first answer)."""
    ask_starttls(c)
    c.structured = False
    c.contexts, c.context_export = {}, None
    c.sock.settimeout(c.deadline)
    try:
        c.sock = (ctx or context()).wrap_socket(c.sock, server_hostname="localhost",
                                                suppress_ragged_eofs=False)
    except (ConnectionResetError, BrokenPipeError):
        raise Closed("the server closed in the TLS handshake") from None
    return c


def refused(s, ctx, tcp=False):
    """The server lets no option through: why (the client's view)."""
    with s.hello(tcp) as c:
        try:
            upgrade(c, ctx)
            c.info("vda")
        except (ssl.SSLError, Closed) as e:
            return str(e)
    raise AssertionError("the client got in")


def tls_open(s, name="vda", contexts=None, ctx=None, tcp=False, **kw):
    c = upgrade(s.hello(tcp, **kw), ctx)
    c.negotiate_structured()
    if contexts is not None:
        c.set_meta(name, contexts)
    c.go(name)
    return c


class TlsFixture(Fixture):
    """Serves with TLS; its good client of check_serves uses TLS, too."""

    def __init__(self, mode="require", exports=None, args=(), ctx=None, certificates=None, **kw):
        self.ctx = ctx
        args = ["--tls", mode, *args]
        if certificates is not False:
            args += ["--tls-certificates", certificates or ca().dir]
        super().__init__(exports or EXPORTS, args, **kw)

    def check_serves(self):
        with tls_open(self, self.name, ctx=self.ctx) as c:
            must(not c.read(0, 4096).errors, "a good client's read failed")
            c.disc()

    def reload(self):
        """SIGHUP; whether all files were good."""
        self.proc.send_signal(1)
        line = self._line()
        must(line in ("reload ok", "reload failed"), "the fixture said %r", line)
        return line == "reload ok"


def libnbd():
    try:
        import nbd
    except ImportError:
        raise Skip("no Python module nbd (libnbd)") from None
    if not nbd.NBD().supports_tls():
        raise Skip("libnbd without TLS")
    return nbd


def psk_file(users, name="keys.psk"):
    path = os.path.join(tmpdir(), name)
    with open(path, "w") as f:
        for user, k in users.items():
            f.write("%s:%s\n" % (user, k))
    return path


def program(name):
    for d in os.environ["PATH"].split(":"):
        if os.access(os.path.join(d, name), os.X_OK):
            return os.path.join(d, name)
    raise Skip("no %s" % name)


def run(*cmd, status=0):
    r = subprocess.run([str(c) for c in cmd], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, timeout=3 * DEADLINE)
    must(status is None or r.returncode == status, "%s ended with %d: %s", cmd[0], r.returncode,
         r.stderr.decode(errors="replace")[-400:])
    return r


__all__ = [n for n in dir() if not n.startswith("_") and n not in ("os", "sys", "socket")]
