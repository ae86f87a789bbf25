#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What `make install` installs is in the Debian packages and in the RPMs, each file in one of them; and
what these list is installed.  Units that run are stopped, and not forgotten, when the package goes."""

import fnmatch
import os
import re
import subprocess
import sys
import tempfile

import tree

# make's variable -> what both packagings call the place; and rpm's macros for the same.
PLACES = {
    "bindir": "usr/bin", "sbindir": "usr/sbin", "includedir": "usr/include", "sysconfdir": "etc",
    "libdir": "usr/lib/ARCH", "nbdkitplugindir": "usr/lib/ARCH/nbdkit/plugins",
    "systemunitdir": "usr/lib/systemd/system", "systemusersdir": "usr/lib/sysusers.d",
    "systemtmpfilesdir": "usr/lib/tmpfiles.d", "datadir": "usr/share", "mandir": "usr/share/man",
}
MACROS = {
    "_bindir": "bindir", "_sbindir": "sbindir", "_includedir": "includedir", "_sysconfdir": "sysconfdir",
    "_libdir": "libdir", "nbdkitplugindir": "nbdkitplugindir", "_unitdir": "systemunitdir",
    "_sysusersdir": "systemusersdir", "_tmpfilesdir": "systemtmpfilesdir", "_datadir": "datadir",
    "_mandir": "mandir",
}
ZSH, ZSH_DEBIAN = "usr/share/zsh/site-functions/", "usr/share/zsh/vendor-completions/"
UNITS = "usr/lib/systemd/system/"


def make(build, *args, text=""):
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    r = subprocess.run(["make", "-s", "-C", build, *args], input=text, env=env, capture_output=True, text=True,
                       timeout=300, check=False)
    if r.returncode != 0:
        raise RuntimeError(r.stdout + r.stderr)
    return r.stdout


def installed(build):
    """Files, and empty folders with a slash behind them, where they would be in the system's own prefix."""
    show = "varve-show:\n" + "".join("\t@echo '%s=$(%s)'\n" % (v, v) for v in PLACES)
    values = dict(line.split("=", 1) for line in make(build, "-f", "Makefile", "-f", "-", "varve-show",
                                                      text=show).splitlines())
    places = sorted(((os.path.normpath(values[v]) + "/", place + "/") for v, place in PLACES.items()), reverse=True)
    found = set()
    with tempfile.TemporaryDirectory() as root:
        doc = os.path.join(values["datadir"], "doc/varve-doc")
        make(build, "install", "DESTDIR=" + root, "docdir=" + doc, "htmldir=" + doc + "/html")
        for base, folders, files in os.walk(root):
            for path in [os.path.join(base, f) for f in files] + ([] if folders or files else [base + "/"]):
                path = path[len(root):]
                real = next((place + path[len(p):] for p, place in places if path.startswith(p)), path)
                found.add(real.lstrip("/"))
    return found


def of_debian(read, names):
    """package -> patterns.  A folder stands for all in it."""
    rules = read("debian/rules")
    packages = {"nothing": read("debian/not-installed").split()}
    for package in re.findall("^Package: (.*)$", read("debian/control"), re.MULTILINE):
        listed = read("debian/%s.install" % package).split() if "debian/%s.install" % package in names else []
        units = re.findall(r"^\tmv \$\(UNITS\)/(\S+) debian/%s\.[a-z]" % package, rules, re.MULTILINE)
        packages[package] = [p.replace("usr/lib/*/", "usr/lib/ARCH/") for p in listed] + [UNITS + u for u in units]
    return packages


def of_rpm(spec):
    """package -> patterns; %dir FOLDER is FOLDER/ and stands for itself."""
    def plain(pattern):
        pattern = pattern.replace("%{_docdir}", "%{_datadir}/doc")
        return re.sub(r"%\{(\w+)\}", lambda m: PLACES[MACROS[m.group(1)]], pattern)
    packages = {"nothing": [plain(p) for p in re.findall(r"^rm %\{buildroot\}(.*)$", spec, re.MULTILINE)]}
    for name, lines in re.findall(r"^%files(.*)\n((?:.+\n)*)", spec, re.MULTILINE):
        words = [line.split() for line in lines.splitlines()]
        packages["varve" + name] = [plain(w[-1]) + ("/" if w[0] == "%dir" else "") for w in words if w[0] != "%license"]
    return packages


def covers(pattern, path):
    if pattern.endswith("/"):
        return path == pattern
    return fnmatch.fnmatch(path, pattern) or path.startswith(pattern + "/")


def faults(packages, paths):
    found = []
    for path in sorted(paths):
        where = [p for p, patterns in packages.items() if any(covers(one, path) for one in patterns)]
        if len(where) != 1:
            found.append("%s is in %s" % (path, " and in ".join(where) or "no package"))
    for package, patterns in packages.items():
        found += ["%s lists %s, which is not installed" % (package, one) for one in patterns
                  if not any(covers(one, path) or (one.endswith("/") and path.startswith(one)) for path in paths)]
    return found


def section(spec, name):
    return re.search(r"^%%%s\n((?:(?!%%).*\n)*)" % name, spec, re.MULTILINE).group(1)


def forgotten_units(paths, rules, prerm, preun):
    """Units that are no templates: each is stopped and disabled when its package goes."""
    units = [p[len(UNITS):] for p in sorted(paths) if p.startswith(UNITS) and "@" not in p]
    helped = re.findall(r"dh_installsystemd .* (\S+)$", rules, re.MULTILINE)
    return ["debian/rules: %s" % u for u in units if u not in helped] + \
        ["debian/varve.prerm: %s" % u for u in units if u.endswith(".socket") and u not in prerm.split()] + \
        ["%%preun: %s" % u for u in units if u not in preun.split()]


def main():
    tap = tree.Tap()
    top = os.environ["top_srcdir"]

    paths = {"usr/bin/a", "usr/share/doc/a/b", "etc/a/d/"}
    good = {"a": ["usr/bin/*", "etc/a"], "doc": ["usr/share/doc/a"]}
    tap.result(not faults(good, paths), "takes right lists", faults(good, paths))
    tap.result(not faults({**good, "a": ["usr/bin/a", "etc/a/", "etc/a/d/"]}, paths), "takes folders by themselves")
    for what, lists in (("a file in no package", {**good, "a": ["etc/a"]}),
                        ("an empty folder in no package", {**good, "a": ["usr/bin/a"]}),
                        ("a file in two packages", {**good, "b": ["usr/bin/a"]}),
                        ("a file that is not there", {**good, "b": ["usr/bin/b"]})):
        tap.result(len(faults(lists, paths)) == 1, "sees " + what, faults(lists, paths))
    tap.result(len(forgotten_units({UNITS + "a.socket", UNITS + "b@.service"}, "", "", "")) == 3,
               "sees a unit that nobody stops")

    def read(path):
        return tree.read(top, path)

    paths = installed(os.environ["abs_top_builddir"])
    tap.result("usr/bin/varve" in paths and len(paths) > 30, "finds what is installed")
    spec = read("system/varve.spec.in")
    found = faults(of_debian(read, ["debian/" + n for n in os.listdir(os.path.join(top, "debian"))]),
                   {p.replace(ZSH, ZSH_DEBIAN) for p in paths})
    tap.result(not found, "debian/: each file is in one package", found)
    found = faults(of_rpm(spec), paths)
    tap.result(not found, "varve.spec: each file is in one package", found)
    found = forgotten_units(paths, read("debian/rules"), read("debian/varve.prerm"), section(spec, "preun"))
    tap.result(not found, "each unit is stopped and disabled when its package goes", found)
    return tap.done()


if __name__ == "__main__":
    sys.exit(main())
