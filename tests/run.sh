#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Runs all tests on a fresh Debian 12 or 13: installs what is missing (as root or with sudo), builds
# outside the source tree, and runs `make check`.  An ordinary user can run it where the packages are
# there already.
#
#     tests/run.sh [--build DIR] [configure's options...]
#
# --build DIR: build there and keep it; otherwise in a temporary folder that is removed at the end.
set -eu

src=$(cd "$(dirname "$0")/.." && pwd)
build=
while [ $# -gt 0 ]; do
    case $1 in
    --build)
        build=$2
        shift 2
        ;;
    --build=*)
        build=${1#--build=}
        shift
        ;;
    *) break ;;
    esac
done

"$src/tests/deps.sh" build test

if [ -z "$build" ]; then
    build=$(mktemp -d "${TMPDIR:-/tmp}/varve-build.XXXXXX")
    trap 'rm -rf "$build"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
fi

"$src/tests/build.sh" "$build" "$@"
jobs=$(nproc)
status=0
make -C "$build" -j"$jobs" -k check VERBOSE="${VERBOSE-1}" || status=$?

"${PYTHON:-python3}" "$src/tests/harness/count.py" --skips "$src/tests/SKIPS" "=$build" || status=1
exit "$status"
