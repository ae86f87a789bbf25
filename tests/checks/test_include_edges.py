#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""One picture, one direction: judges every #include against the edges that HACKING draws.

First it proves that it can fail, on trees that each break one rule.
"""

import os
import re
import sys
import tempfile

import tree

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)

# Folder -> folders that its files may include from, beside their own.
EDGES = {
    "include": (),
    "lib": ("include",),
    "plugin": ("include", "lib"),
    "server": ("include", "lib", "server/nbd"),
    "server/nbd": ("include", "lib"),
    "client": ("include", "lib"),
    "tests": ("include", "lib", "plugin", "server", "server/nbd", "client"),
}

# Foreign header -> where it may be included.  A trailing / means the folder.
HOMES = [
    (re.compile(r"nbdkit-.*\.h"), ("plugin/",)),
    (re.compile(r"uv\.h"), ("server/", "tests/")),
    (re.compile(r"gnutls/.*"), ("server/", "lib/digest.c")),
    (re.compile(r"cmocka\.h"), ("tests/",)),
    (re.compile(r"libnbd\.h"), ("server/", "client/")),
    (re.compile(r"jansson\.h"), ("lib/json.h",)),
]


def folder_of(path):
    """The longest of EDGES' folders that it lies in, or its first part."""
    return max((f for f in EDGES if path.startswith(f + "/")), key=len, default=path.split("/", 1)[0])


def violations(top):
    found = []
    for path in tree.sources(top):
        text = tree.read(top, path)
        folder = folder_of(path)
        for m in INCLUDE.finditer(text):
            line = text.count("\n", 0, m.start(1)) + 1
            where, name = f"{path}:{line}", m.group(2)
            if m.group(1) == '"':
                if name == "config.h":
                    continue
                target = folder_of(name)
                if "/" not in name or target not in EDGES or ".." in name.split("/"):
                    found.append(f'{where}: "{name}" does not name its folder')
                elif target != folder and target not in EDGES[folder]:
                    found.append(f'{where}: {folder}/ must not include "{name}"')
            else:
                for pattern, homes in HOMES:
                    if pattern.fullmatch(name) and not any(
                            path == h or (h.endswith("/") and path.startswith(h)) for h in homes):
                        found.append(f"{where}: <{name}> has its home in {' '.join(homes)}")
    return found


def can_fail(tap):
    bad = {
        "no folder": ("lib/a.c", '#include "a.h"\n'),
        "a way up": ("lib/a.c", '#include "lib/../server/a.h"\n'),
        "unknown folder": ("lib/a.c", '#include "misc/a.h"\n'),
        "lib uses server": ("lib/a.c", '#include "server/a.h"\n'),
        "client uses server": ("client/a.c", '# include "server/a.h"\n'),
        "plugin uses client": ("plugin/a.h", '#include "client/a.h"\n'),
        "the NBD server uses the daemon": ("server/nbd/a.c", '#include "server/backup.h"\n'),
        "code uses tests": ("server/a.c", '#include "tests/lib/a.h"\n'),
        "nbdkit outside of the plugin": ("lib/a.c", "#include <nbdkit-plugin.h>\n"),
        "uv in the client": ("client/a.c", "#include <uv.h>\n"),
        "gnutls in lib": ("lib/a.c", "#include <gnutls/crypto.h>\n"),
        "jansson in the server": ("server/a.c", "#include <jansson.h>\n"),
        "cmocka in lib": ("lib/a.c", "#include <cmocka.h>\n"),
        "libnbd in the plugin": ("plugin/a.c", "#include <libnbd.h>\n"),
    }
    for name, (path, text) in bad.items():
        with tempfile.TemporaryDirectory() as top:
            os.makedirs(os.path.join(top, os.path.dirname(path)))
            with open(os.path.join(top, path), "w", encoding="utf-8") as f:
                f.write("/* x */\n" + text)
            found = violations(top)
            tap.result(len(found) == 1 and found[0].startswith(path + ":2:"), f"sees: {name}", found)
    with tempfile.TemporaryDirectory() as top:
        os.makedirs(os.path.join(top, "server"))
        with open(os.path.join(top, "server/a.c"), "w", encoding="utf-8") as f:
            f.write('#include "lib/a.h"\n#include "server/b.h"\n#include <uv.h>\n#include <stdio.h>\n')
        tap.result(not violations(top), "lets a good file through", violations(top))


def main():
    tap = tree.Tap()
    can_fail(tap)
    found = violations(os.environ["top_srcdir"])
    tap.result(not found, "every include of this tree is an allowed edge", found)
    return tap.done()


if __name__ == "__main__":
    sys.exit(main())
