#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Installs what building and testing need, on Debian 12 and 13, as root or through sudo.
# Does nothing when all of it is there, so that an ordinary user can run it too.
#
#     tests/deps.sh [build] [test] [ci] [bench] [packages] [interop]        default: build test
set -eu

build="gcc libc6-dev make autoconf automake libtool pkg-config perl xz-utils
    nbdkit nbdkit-plugin-dev libnbd-dev libuv1-dev libgnutls28-dev libjansson-dev libcmocka-dev"
# util-linux: setpriv, setarch, unshare.  fio and virtnbdbackup are clients (tests/interop).
# jq: of a recipe.
# systemd: its judges of units; nothing of it runs.  libseccomp2: lives within a unit's system calls.
# libfuse3-dev: tests/e2e/lossfs.c, a file system that loses what was not synced; no other way to do
# that needs neither a kernel module nor a disk of one's own.
# The address sanitizer's and the others' libraries come with gcc.
test="python3 python3-libnbd libnbd-bin qemu-utils gnutls-bin e2fsprogs fuse3 libfuse3-dev
    procps util-linux fio virtnbdbackup zsh systemd libseccomp2 jq"
ci="clang llvm git debhelper"
# python3: runs the tests, those of a package build too.
packages="build-essential debhelper lintian fakeroot python3"
# qemu-system-common: qemu-storage-daemon
bench="fio qemu-system-common gnutls-bin libnbd-bin"
# What make interop runs beside test's clients: a guest, its kernel's NBD client, and a browser for the
# web page.
interop="qemu-system-x86 busybox-static nbd-client chromium"

want=
for set in "${@:-build test}"; do
    for s in $set; do
        case $s in
        build) want="$want $build" ;;
        test) want="$want $test" ;;
        ci) want="$want $ci" ;;
        packages) want="$want $packages" ;;
        bench) want="$want $bench" ;;
        interop) want="$want $interop" ;;
        *)
            echo "usage: tests/deps.sh [build] [test] [ci] [bench] [packages] [interop]" >&2
            exit 2
            ;;
        esac
    done
done

# libtool's Debian package has libtoolize only; pkg-config may be a virtual package (pkgconf).
installed() {
    dpkg-query -W -f '${db:Status-Status} ${Provides}\n' "$1" 2>/dev/null | grep -q '^installed' ||
        { [ "$1" = pkg-config ] && command -v pkg-config >/dev/null; }
}

missing=
for p in $want; do
    installed "$p" || missing="$missing $p"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root="sudo"
elif command -v sudo >/dev/null && [ -t 0 ]; then
    as_root="sudo"
else
    echo "deps.sh: these packages are missing, and installing them needs root:$missing" >&2
    exit 1
fi

echo "deps.sh: installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y"
# shellcheck disable=SC2086
{
    $apt -o Acquire::Retries=3 update >/dev/null
    $apt -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 install --no-install-recommends $missing >/dev/null
}
