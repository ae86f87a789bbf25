#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Each option that a program's --help names stands in its manual page, and each verb of varve too."""

import os
import re
import subprocess
import sys

import tree

OPTION = re.compile(r"(?:^|[\s\[|,])(--[a-z][a-z0-9-]*)", re.MULTILINE)
VERB = re.compile(r"^  ([a-z]+(?: [a-z]+)?)(?= |$)", re.MULTILINE)
KEY = re.compile(r"(?:^|[\s\[])([a-z][a-z-]+)=", re.MULTILINE)


def said_by(*command):
    r = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                       check=True, timeout=60)
    return r.stdout


def names_in_pod(pod):
    """What the page names in its headings, items and code."""
    text = re.sub(r"[A-Z]<+\s*|\s*>+", " ", pod)
    return set(re.findall(r"--[a-z][a-z0-9-]*", text)), text


def missing_options(told, pod):
    known, _ = names_in_pod(pod)
    return sorted(set(OPTION.findall(told)) - known)


def missing_keys(told, pod):
    return sorted(k for k in set(KEY.findall(told)) if not re.search(rf"\b{re.escape(k)}\s*=", pod))


def missing_verbs(told, pod):
    _, text = names_in_pod(pod)
    text = re.sub(r"\s+", " ", text)
    return sorted(v for v in set(VERB.findall(told)) if f" {v} " not in f" {text} ")


def main():
    tap = tree.Tap()
    src, build = os.environ["abs_top_srcdir"], os.environ["abs_top_builddir"]

    pod = "=item B<--one>=FILE\n\n=head2 C<backup begin> DISK\n\nB<key=>VALUE\n"
    tap.result(missing_options("  --one FILE\n  [--two]\n", pod) == ["--two"], "sees a missing option")
    tap.result(missing_keys("key=<A>\nother=<B>\n", pod) == ["other"], "sees a missing key")
    tap.result(missing_verbs("  backup begin DISK\n  backup end ID\n", pod) == ["backup end"],
               "sees a missing verb")

    varve = os.path.join(build, "client/varve")
    told = said_by(varve, "--help")
    page = tree.read(src, "docs/varve.pod")
    verbs = VERB.findall(told.split("options:")[0])
    tap.result(len(verbs) > 5, "finds the verbs of varve", [told])
    found = missing_verbs(told.split("options:")[0], page)
    tap.result(not found, "varve: every verb stands in the manual", found)
    for verb in verbs:
        told += said_by(varve, *verb.split(), "--help")
    found = missing_options(told, page)
    tap.result(not found, "varve: every option stands in the manual", found)

    told = said_by(os.path.join(build, "server/varved"), "--help")
    found = missing_options(told, tree.read(src, "docs/varved.pod"))
    tap.result("--state-dir" in told and not found, "varved: every option stands in the manual", found)

    told = said_by("nbdkit", os.path.join(build, "plugin/.libs/nbdkit-varve-plugin.so"), "--help")
    found = missing_keys(told, tree.read(src, "docs/nbdkit-varve-plugin.pod"))
    tap.result("granularity" in told and not found, "plugin: every key stands in the manual", found)
    return tap.done()


if __name__ == "__main__":
    sys.exit(main())
