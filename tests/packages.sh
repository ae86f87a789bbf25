#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Builds the packages of this tree for the Debian of this machine, judges them with lintian, and
# installs nothing.  Needs tests/deps.sh build packages.
#
#     tests/packages.sh DIR        DIR is made, and has the packages afterwards
#
# DEB_BUILD_OPTIONS=nocheck leaves out the tests.
set -eu

if [ $# != 1 ] || [ -e "$1" ]; then
    echo "usage: tests/packages.sh DIR (one that is not there yet)" >&2
    exit 2
fi
src=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd)

# From what a tarball holds, so that what is missing in one is missed.
mkdir "$dir/work" "$dir/work/dist"
if [ ! -x "$src/configure" ] || [ "$src/configure.ac" -nt "$src/configure" ]; then
    (cd "$src" && mkdir -p m4 && autoreconf -fi)
fi
(cd "$dir/work/dist" && "$src/configure" --silent && make dist >/dev/null)
tar -C "$dir/work" -xf "$dir"/work/dist/varve-*.tar.xz
cd "$dir"/work/varve-*/
dpkg-buildpackage --no-sign --jobs="$(nproc)" >"$dir/build.log" 2>&1 || {
    tail -n 60 "$dir/build.log" >&2
    exit 1
}
mv ../*.deb ../*.changes ../*.dsc ../*.tar.xz ../*.buildinfo "$dir/"
cd "$dir"
rm -rf work
lintian --fail-on error --suppress-tags bad-distribution-in-changes-file,initial-upload-closes-no-bugs \
    ./*.changes
ls -l ./*.deb
