#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The demo: a disk that is being written is backed up twice, in full and incrementally, by ordinary
# NBD clients, and both backups are proved to be exactly the disk at their instants.
#
# Sets up all it needs on a fresh Debian 12 or 13 (as root, with sudo, or as anyone where the packages
# are there already), builds outside the source tree, takes under two minutes, needs no kernel module,
# and leaves nothing behind.
#
#     tests/demo.sh [--build DIR]       DIR: a build directory, made if need be, and kept
set -eu -o pipefail

src=$(cd "$(dirname "$0")/.." && pwd)
build=
case ${1-} in
--build) build=$2 ;;
--build=*) build=${1#--build=} ;;
'') ;;
*)
    echo "usage: tests/demo.sh [--build DIR]" >&2
    exit 2
    ;;
esac

# --- what is left at the end: nothing --------------------------------------------------------------

work=
run_dir=
pids=()
fuse=

end_all() {
    local status=$?
    trap - EXIT INT TERM
    if [ "$status" != 0 ] && [ -n "$work" ]; then
        for log in "$work"/*.log; do
            [ -s "$log" ] && { echo "--- ${log##*/}"; tail -n 20 "$log"; } >&2
        done
        echo "demo: FAILED" >&2
    fi
    [ -z "$fuse" ] || fusermount3 -uz "$fuse" 2>/dev/null || umount -l "$fuse" 2>/dev/null || :
    # The last one started ends first.
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        stop "${pids[$i]}"
    done
    cd /
    [ -z "$work" ] || rm -rf "$work"
    [ -z "$run_dir" ] || rm -rf "$run_dir"
    exit "$status"
}

# Ends a process that we started, for good.
stop() {
    local i
    kill "$1" 2>/dev/null || return 0
    for ((i = 0; i < 100; i++)); do
        kill -0 "$1" 2>/dev/null || break
        sleep 0.1
    done
    kill -9 "$1" 2>/dev/null || :
    wait "$1" 2>/dev/null || :
}

trap end_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- telling what is done --------------------------------------------------------------------------

if [ -t 1 ]; then
    bold=$(printf '\033[1m') dim=$(printf '\033[36m') plain=$(printf '\033[m')
else
    bold='' dim='' plain=''
fi
number=0

step() {
    number=$((number + 1))
    printf '\n%s%d. %s%s\n' "$bold" "$number" "$*" "$plain"
}

say() {
    printf '   %s\n' "$*"
}

show() {
    local words='' w
    for w in "$@"; do
        case $w in
        '&') ;;
        *[!A-Za-z0-9_@%+=:,./-]*) w="'$w'" ;;
        esac
        words="$words $w"
    done
    printf '   %s$%s%s\n' "$dim" "$words" "$plain"
}

# Shows a command, runs it, indents what it says.
run() {
    show "$@"
    "$@" >out.txt 2>&1 || {
        local status=$?
        sed 's/^/     /' out.txt
        return "$status"
    }
    sed 's/^/     /' out.txt
}

# Shows and starts a command that stays.
start() {
    local log=$1
    shift
    show "$@" '&'
    "$@" >"$log" 2>&1 </dev/null &
    pids+=($!)
}

wait_for() {
    local i
    for ((i = 0; i < 200; i++)); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.05
    done
    echo "demo: waited in vain for: $*" >&2
    return 1
}

mib() {
    awk -v b="$1" 'BEGIN { printf "%.1f MiB", b / 1048576 }'
}

# --- set-up ----------------------------------------------------------------------------------------

began=$SECONDS
"$src/tests/deps.sh" build test
python=/usr/bin/python3
"$python" -c 'import nbd' 2>/dev/null || python=${PYTHON:-python3}

work=$(mktemp -d "${TMPDIR:-/tmp}/vd.XXXXXX")
if [ -z "$build" ]; then
    build=$work/build
fi
if [ ! -x "$build/server/varved" ] || [ ! -x "$build/client/varve" ]; then
    echo "Building varve (a minute at most)..."
    "$src/tests/build.sh" "$build" >"$work/build.log" 2>&1
fi
build=$(cd "$build" && pwd)

# What lives only as long as the machine runs belongs on a tmpfs.
for dir in "${XDG_RUNTIME_DIR-}" /dev/shm /run; do
    if [ -n "$dir" ] && [ -w "$dir" ] && [ "$(stat -f -c %T "$dir")" = tmpfs ]; then
        run_dir=$(mktemp -d "$dir/vd.XXXXXX")
        break
    fi
done
[ -n "$run_dir" ] || run_dir=$(mktemp -d "$work/run.XXXXXX")

cd "$work"
export PYTHONDONTWRITEBYTECODE=1
export PATH="$build/server:$build/client:$PATH:/usr/sbin:/sbin"
ln -s "$build/plugin/.libs/nbdkit-varve-plugin.so" nbdkit-varve-plugin.so
ln -s "$run_dir" run
mkdir state
export VARVE_CONTROL=run/control.sock
ledger() { "$python" "$src/tests/demo/ledger.py" "$@"; }
live='nbd+unix:///?socket=live.sock'

# --- the demo --------------------------------------------------------------------------------------

step "A disk: 256 MiB, a real ext4 file system with real files"
mkdir files files/etc files/srv
find /usr/share/doc /usr/include /usr/share/perl /usr/lib/python3 -xdev -type f -size +0 -readable \
    -printf '%s %p\n' 2>/dev/null | awk '(sum += $1) < 64 * 1048576 { sub(/^[0-9]+ /, ""); print }' \
    >list.txt
tar -cf - -T list.txt 2>/dev/null | tar -xf - -C files
cp -R /etc/debian_version /etc/passwd files/etc/
# The ledger: 12 MiB that the writer of step 4 overwrites in place, as a database would.
head -c $((12 << 20)) /dev/zero | tr '\0' '.' >files/srv/ledger
run mkfs.ext4 -q -d files disk.img 256M
say "$(wc -l <list.txt) files of this machine, $(mib "$(du -sb files | cut -f1)") in all"
rm -rf files
ledger extents disk.img /srv/ledger >extents.json
# The judge's own copy of the disk at the start.
cp --sparse=always disk.img start.img

step "Served to its guest by nbdkit and the plugin"
start nbdkit.log nbdkit -f -U live.sock ./nbdkit-varve-plugin.so disk.img name=vda \
    state-dir="$work/state" runtime-dir="$run_dir"
wait_for nbdinfo --size "$live"

step "The daemon"
start varved.log varved --state-dir state --runtime-dir run
wait_for varve status
run varve status

step "A writer that never stops: it overwrites parts of /srv/ledger through NBD, also with zeroes and trims"
start writer.log "$python" "$src/tests/demo/ledger.py" write "$live" extents.json progress
writer=${pids[-1]}
enough_writes() { [ "$(ledger progress progress | cut -d' ' -f1)" -ge "$1" ]; }
wait_for enough_writes 500

# begin ARGUMENTS...: sets lowest and highest, the writes between which the instant must lie.
begin() {
    local before after
    before=$(ledger progress progress)
    run varve backup begin vda "$@"
    after=$(ledger progress progress)
    lowest=${before% *}
    highest=${after#* }
}

bytes_read() {
    varve --json backup list | "$python" -c '
import json, sys
told = json.load(sys.stdin)
told = told if isinstance(told, list) else told["backups"]
for backup in told:
    if backup["id"] == sys.argv[1]:
        print(sum(d["bytes-read"] for d in backup["disks"]))' "$1"
}

step "A full backup, while the writer goes on; its instant gets the name 'monday'"
begin --id full --checkpoint monday
full_lowest=$lowest full_highest=$highest
uri='nbd+unix:///vda?socket=run/nbd.sock'
run nbdcopy "$uri" full.img
full_bytes=$(bytes_read full)
during=$(ledger progress progress)
say "the writer made $((${during% *} - full_lowest)) writes meanwhile"
run varve backup end full

step "Files are changed through NBD"
cat >changes <<'EOF'
mkdir /srv/new
write /usr/bin/env /srv/new/env
write /etc/services /srv/new/services
rm /etc/passwd
sif /etc/debian_version mode 0100600
EOF
[ -r /etc/services ] || sed -i '/services/d' changes
mkdir fuse
if [ -r /dev/fuse ] && [ -w /dev/fuse ] && command -v nbdfuse >/dev/null &&
    { nbdfuse fuse/disk "$live" >nbdfuse.log 2>&1 & } && pids+=($!) && fuse=$work/fuse &&
    wait_for test -s fuse/disk; then
    show nbdfuse fuse/disk "$live" '&'
    run debugfs -w -f changes fuse/disk
    sync fuse/disk 2>/dev/null || :
    run fusermount3 -u fuse
    fuse=
    wait "${pids[-1]}" 2>/dev/null || :
else
    say "(no /dev/fuse here: debugfs works on a copy, and what it changes there is written through NBD)"
    nbdcopy "$live" before.img
    cp --sparse=always before.img after.img
    run debugfs -w -f changes after.img
    show ledger.py changed before.img after.img "$live"
    ledger changed before.img after.img "$live" | sed 's/^/     /'
    rm before.img after.img
fi
# Only the ledger changes from here to the next instant: a plain copy is exact everywhere else.
cp --sparse=always disk.img plain.img

step "An incremental backup since 'monday'; the writer still goes on"
begin --id incr --since monday --checkpoint tuesday
incr_lowest=$lowest incr_highest=$highest
show nbdinfo --map=qemu:dirty-bitmap:backup-vda "$uri"
nbdinfo --map=qemu:dirty-bitmap:backup-vda "$uri" >map.txt
head -n 8 map.txt | sed 's/^/     /'
[ "$(wc -l <map.txt)" -le 8 ] || say "  ... $(wc -l <map.txt) lines in all"
run nbdinfo --map=qemu:dirty-bitmap:backup-vda --totals "$uri"
run varve map vda --since monday

step "Only the dirty extents are pulled, onto a copy of the full backup"
run cp --sparse=always full.img incr.img
run varve pull "$uri" incr.img --context qemu:dirty-bitmap:backup-vda
incr_bytes=$(bytes_read incr)
run varve backup end incr

step "Proof: the judge replays the writer's writes onto its own copy and compares every byte"
show ledger.py judge full.img
ledger judge start.img start.img full.img extents.json "$full_lowest" "$full_highest" |
    sed 's/^/     full:        /'
show ledger.py judge incr.img
ledger judge start.img plain.img incr.img extents.json "$incr_lowest" "$incr_highest" |
    sed 's/^/     incremental: /'
run e2fsck -fn full.img
run e2fsck -fn incr.img
run debugfs -R 'ls -p /srv/new' incr.img

step "What the backups moved"
stop "$writer"
total=$(ledger progress progress)
say "full:        $full_bytes bytes ($(mib "$full_bytes"))"
say "incremental: $incr_bytes bytes ($(mib "$incr_bytes"))"
say "the disk:    $(stat -c %s disk.img) bytes; the writer made ${total% *} writes in all"
say "took $((SECONDS - began)) s"
