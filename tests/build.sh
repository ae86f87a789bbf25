#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Configures and builds the tree in a folder of its own.  Installs nothing.
#
#     tests/build.sh BUILDDIR [configure's options...]
set -eu

src=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
build=$(cd "$1" && pwd)
shift

# A tarball has its configure; a clone, or one whose configure.ac changed, needs it made.
if [ ! -x "$src/configure" ] || [ "$src/configure.ac" -nt "$src/configure" ]; then
    (cd "$src" && mkdir -p m4 && autoreconf -fi)
fi
cd "$build"
if [ ! -f config.status ] || [ $# -gt 0 ]; then
    "$src/configure" --silent "$@"
fi
make -j"$(nproc)" all
