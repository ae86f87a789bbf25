#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Jobs (and a pull) whose peer is spoken to over TLS: the reference of a diff and the target of a push as nbds: URIs
with credentials of their own, certificates or a pre-shared key; and peers that are not who they should be."""
import os
import re
import shutil
import socket
import subprocess

import bitmaps
from bitmaps import SIZE, Disk
from harness import M, WAIT, Stack, run, wait_for
from jobs import concluded, diff, diffed
from tap import main, test


class Authority:
    """Makes folders as libnbd and nbdkit want them: ca-cert.pem, KIND-cert.pem, KIND-key.pem."""

    def __init__(self, folder):
        self.folder = folder
        os.mkdir(folder)
        self.key, self.cert = (os.path.join(folder, n) for n in ("ca-key.pem", "ca-cert.pem"))
        self.make(self.key, self.cert, 'cn = "%s"\nca\ncert_signing_key\n' % os.path.basename(folder), [
            "--generate-self-signed", "--load-privkey", self.key])

    def make(self, key, cert, text, how):
        template = os.path.join(self.folder, "template")
        with open(template, "w") as f:
            f.write(text)
        for args in (["--generate-privkey", "--key-type=ecdsa", "--outfile", key],
                     how + ["--template", template, "--outfile", cert]):
            subprocess.run(["certtool", *args], stdin=subprocess.DEVNULL, capture_output=True, check=True)

    def issue(self, kind, purpose):
        folder = os.path.join(self.folder, kind)
        os.mkdir(folder)
        os.link(self.cert, os.path.join(folder, "ca-cert.pem"))
        key, cert = (os.path.join(folder, kind + n) for n in ("-key.pem", "-cert.pem"))
        self.make(key, cert, 'cn = "localhost"\ndns_name = "localhost"\nsigning_key\n%s\n' % purpose, [
            "--generate-certificate", "--load-privkey", key, "--load-ca-certificate", self.cert,
            "--load-ca-privkey", self.key])
        return folder


class Remote:
    """nbdkit with a file, at localhost: over a unix socket libnbd does not look whom it speaks to."""

    def __init__(self, s, image, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = s.spawn("peer", ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(self.port),
                                        "--exit-with-parent", *options, "file", image])
        wait_for("the peer listens", self.listens, self.process)

    def listens(self):
        with socket.socket() as c:
            return c.connect_ex(("127.0.0.1", self.port)) == 0

    def uri(self, credentials=None, host="localhost"):
        """With "USER" and "NAME=VALUE": over TLS."""
        if not credentials:
            return "nbd://%s:%d/" % (host, self.port)
        user, query = credentials
        return "nbds://%s%s:%d/?%s" % (user and user + "@", host, self.port, query)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.terminate()
        self.process.wait(WAIT)


def push(q, uri):
    return q.cmd("backup-push", disk="vda", target=uri)["id"]


def check_diff_and_push(options, credentials):
    """A push to the peer, then a diff with what that has left."""
    with Disk() as (s, c, q):
        options, credentials = options(s), credentials(s)
        c.write(0, os.urandom(SIZE))
        c.flush()
        image = s.image("target.img", SIZE)
        with Remote(s, image, *options) as peer:
            j = concluded(q, push(q, peer.uri(credentials)))
            assert "error" not in j and s.content(image) == s.content(s.path("vda.img")), j
            c.write(5 * M, b"differs")
            diffed(q, "b", peer.uri(credentials))
            assert bitmaps.frozen(s, q, ["b"])["b"] == {5 * M // bitmaps.G64}


@test
def diff_and_push_prove_themselves_by_certificates_and_have_the_peer_proved():
    def options(s):
        ca = Authority(s.path("ca"))
        ca.issue("client", "tls_www_client")
        return "--tls=require", "--tls-verify-peer", "--tls-certificates=" + ca.issue("server", "tls_www_server")
    check_diff_and_push(options, lambda s: ("", "tls-certificates=" + s.path("ca/client")))


@test
def diff_and_push_prove_themselves_by_a_key():
    def options(s):
        run(["psktool", "-u", "alice", "-p", s.path("keys.psk")])
        return "--tls=require", "--tls-psk=" + s.path("keys.psk")
    check_diff_and_push(options, lambda s: ("alice", "tls-psk-file=" + s.path("keys.psk")))


def check_refused(s, q, image, uri, says):
    for ident in (diff(q, "b", uri), push(q, uri)):
        error = concluded(q, ident).get("error", "")
        assert error.startswith(uri + ": ") and re.search(says, error[len(uri):]), (says, error)
    assert not any(s.content(image)) and "b" not in bitmaps.infos(q), uri


@test
def a_peer_that_does_not_prove_itself_is_refused_with_the_reason():
    """Its certificate is by another authority, or for another host; it speaks no TLS, or nothing else; it
    does not know us by our certificate or key; our own credentials are not there.  It is sent nothing."""
    with Disk() as (s, c, q):
        c.write(0, os.urandom(SIZE))
        ca, other, image = Authority(s.path("ca")), Authority(s.path("other")), s.image("target.img", SIZE)
        good, wrong = ca.issue("client", "tls_www_client"), other.issue("client", "tls_www_client")
        stranger = s.path("stranger")  # who believes our authority, and is believed by another one only
        shutil.copytree(wrong, stranger)
        shutil.copy(ca.cert, stranger)
        for name in ("keys.psk", "wrong.psk"):
            run(["psktool", "-u", "alice", "-p", s.path(name)])
        x509 = ["--tls=require", "--tls-certificates=" + ca.issue("server", "tls_www_server")]
        for options, credentials, host, says in (
                (x509, ("", "tls-certificates=" + wrong), "localhost", "certificate verification"),
                (x509, ("", "tls-certificates=" + good), "127.0.0.1", "certificate verification"),
                (x509 + ["--tls-verify-peer"], ("", "tls-certificates=" + stranger), "localhost", "gnutls"),
                ([], ("", "tls-certificates=" + good), "localhost", "refused TLS"),
                (x509, None, "localhost", "requires TLS"),
                (["--tls=require", "--tls-psk=" + s.path("keys.psk")],
                 ("alice", "tls-psk-file=" + s.path("wrong.psk")), "localhost", "TLS"),
                (x509, ("", "tls-certificates=" + s.path("nowhere")), "localhost",
                 "cannot prove itself without .*/nowhere/ca-cert.pem: No such file"),
                (x509, ("", "tls-psk-file="), "localhost", "tls-certificates=FOLDER")):
            with Remote(s, image, *options) as peer:
                check_refused(s, q, image, peer.uri(credentials, host), says)


@test
def a_pull_believes_nobody_by_a_folder_without_an_authority():
    """One that is not there, and one that holds something else."""
    with Stack() as s:
        ca, image, out = Authority(s.path("ca")), s.image("source.img", M, b"x" * M), s.path("out.img")
        good = ca.issue("client", "tls_www_client")
        os.mkdir(s.path("empty"))
        with Remote(s, image, "--tls=require", "--tls-certificates=" + ca.issue("server", "tls_www_server")) as peer:
            for folder in ("nowhere", "empty"):
                r = s.varve("pull", peer.uri(("", "tls-certificates=" + s.path(folder))), out, check=False)
                assert r.returncode == 1 and folder + "/ca-cert.pem: No such file" in r.stderr, r
                assert not os.path.exists(out)
            s.varve("pull", peer.uri(("", "tls-certificates=" + good)), out)
            assert s.content(out) == s.content(image)


if __name__ == "__main__":
    main()
