# SPDX-License-Identifier: BSD-3-Clause
"""How these tests run clients: the programs of this machine, or those of a Debian in a folder.

`run` says which (VARVE_INTEROP_ROOT); in a root a client is run by chroot(8), with /dev, /proc and the
folders of temporary files that the test and it share.  @client registers a check once for each way
to reach the server; main() runs them and, for docs/clients.md, says what came of each.
"""
import functools
import os
import shutil
import signal
import subprocess
import sys

import reach
import harness
import tap
from tap import Skip, diag

ROOT = os.environ.get("VARVE_INTEROP_ROOT", "")
# A distribution's programs only: nbdsh takes the first python3, which has to have its module.
PATHS = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin")
PKI = "/etc/pki/libnbd"  # where libnbd looks for root's certificates if nobody tells it
rows = []                # (package, what was run, reach, result)


def find(program):
    return next((os.path.join(d, program) for d in PATHS
                 if os.path.exists(os.path.join(ROOT + d, program))), None)


def need(*programs):
    for p in programs:
        if not find(p):
            raise Skip("%s is not installed" % p)


def command(cmd):
    """What starts a client; the process is the client's."""
    return (["chroot", ROOT] if ROOT else []) + [str(c) for c in cmd]


def environment(h):
    env = {"LC_ALL": "C.UTF-8", "PATH": ":".join(PATHS)}
    if h.credentials:
        env["HOME"] = h.credentials.home
    return env


def run(h, cmd, check=True):
    need(cmd[0])
    return harness.run(command(cmd), check=check, env=environment(h))


def refused(h, cmd):
    """The client ends by itself and says why."""
    r = run(h, cmd, check=False)
    assert r.returncode > 0 and (r.stderr or r.stdout).strip(), (cmd, r)
    return r.stderr + r.stdout


def spawn(h, cmd):
    need(cmd[0])
    return h.s.spawn(os.path.basename(cmd[0]), command(cmd), environment(h))


def seen_by_us(path):
    """A client's path, as this program has to say it: mounts that it made are in the root only."""
    return ROOT + path


def at_home(h, cmd):
    """The command, run where libnbd finds the client's certificates by itself: in HOME for a user,
    in /etc for root.  Root of this machine becomes a user, in a namespace of its own."""
    if not h.credentials or (not ROOT and os.geteuid() != 0):
        return cmd
    if ROOT:
        if not os.path.isdir(ROOT + PKI):
            shutil.copytree(h.credentials.client, ROOT + PKI)
        return cmd
    be_user = ["unshare", "--user", "--map-user=1000", "--"]
    if subprocess.run(be_user + ["true"], capture_output=True).returncode != 0:
        raise Skip("user namespaces cannot be used here")
    return be_user + cmd


@functools.lru_cache(maxsize=None)
def version(package):
    r = subprocess.run(command(["dpkg-query", "-W", "-f", "${Version}", package]),
                       capture_output=True, text=True)
    return r.stdout if r.returncode == 0 else "?"


def client(package, what, over=reach.ALL):
    """Registers check(h, r) once for each reach."""
    def register(check):
        for r in over:
            @functools.wraps(check)
            def one(r=r):
                result = "FAILED"
                try:
                    check(reach.shared(r.tls is not None), r)
                    result = "passed"
                except Skip as why:
                    result = "skipped: %s" % why
                    raise
                finally:
                    rows.append((package, what, r.name, result))
            one.__name__ = "%s_over_%s" % (check.__name__, r.name)
            one.__doc__ = check.__doc__
            tap.test(one)
        return check
    return register


def table():
    """Lines of docs/clients.md: one for each package and check, the reaches joined."""
    joined = {}
    for package, what, name, result in rows:
        joined.setdefault((package, what, result), []).append(name)
    return ["| %s %s | %s | %s | %s |" % (package, version(package), what, ", ".join(names), result)
            for (package, what, result), names in joined.items()]


def main():
    status = 1
    try:
        tap.main()
    except SystemExit as end:
        status = end.code
    signal.alarm(0)
    shutil.rmtree(ROOT + PKI, ignore_errors=True) if ROOT else None
    wrong = reach.close_all(show=status != 0)
    for text in wrong:
        diag("at the end: " + text)
    for row in table():
        diag(row)
    sys.exit(1 if wrong and not status else status)
