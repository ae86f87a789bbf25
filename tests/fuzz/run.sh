#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Fuzzes: builds the targets with clang, libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer,
# and runs one after another.
#
#     tests/fuzz/run.sh [-t SECONDS] [-d FOLDER] [TARGET...]
#
# SECONDS: for each target, 60 if not said.  FOLDER keeps, from run to run,
#     build/          the build, of the source as it is now
#     corpus/TARGET/  inputs that reached something new; copy the best into tests/fuzz/corpus
#     found/TARGET/   inputs that broke something, each also as NAME.min, minimized
# and is varve-fuzz below $TMPDIR or /tmp if not said.  Nothing is written into the source.
# Ends with 1 if anything is in found/, 2 if it could not run.
set -u

seconds=60
folder=${TMPDIR:-/tmp}/varve-fuzz
while getopts t:d: option; do
    case $option in
    t) seconds=$OPTARG ;;
    d) folder=$OPTARG ;;
    *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
src=$(cd "$(dirname "$0")/../.." && pwd) || exit 2
mkdir -p "$folder/build" "$folder/tmp" || exit 2
folder=$(cd "$folder" && pwd)
if [ $# = 0 ]; then
    mapfile -t targets < <(ls "$src/tests/fuzz/corpus")
else
    targets=("$@")
fi

build() {
    [ -x "$src/configure" ] || (cd "$src" && autoreconf -fi) || return
    cd "$folder/build" || return
    [ -e config.status ] || "$src/configure" CC=clang CFLAGS='-g -O1' --enable-fuzzers \
        --with-sanitizer=address,undefined || return
    make -j "$(nproc)" fuzzers
}
if ! build >"$folder/build.log" 2>&1; then
    tail -n 40 "$folder/build.log" >&2
    exit 2
fi

export TMPDIR=$folder/tmp
export ASAN_OPTIONS=${ASAN_OPTIONS-detect_stack_use_after_return=1}
export UBSAN_OPTIONS=${UBSAN_OPTIONS-print_stacktrace=1}
status=0
for target in "${targets[@]}"; do
    fuzzer=$folder/build/tests/fuzz/fuzz-$target
    corpus=$folder/corpus/$target
    found=$folder/found/$target
    options=(-rss_limit_mb=1024 -malloc_limit_mb=512 -timeout=25 -max_len=4096)
    [ ! -e "$src/tests/fuzz/$target.dict" ] || options+=("-dict=$src/tests/fuzz/$target.dict")
    mkdir -p "$corpus" "$found"
    timeout -k 10 $((seconds + 120)) "$fuzzer" "${options[@]}" -max_total_time="$seconds" \
        -print_final_stats=1 -artifact_prefix="$found/" "$corpus" "$src/tests/fuzz/corpus/$target" \
        >"$folder/$target.log" 2>&1 </dev/null
    rc=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$folder/$target.log")
    echo "$target: ${runs:-no} runs in $seconds s, exit status $rc"
    for input in "$found"/*; do
        [ -e "$input" ] || continue
        status=1
        echo "    $input"
        case $input in
        *.min | */slow-unit-*) continue ;;
        esac
        [ -e "$input.min" ] || timeout 90 "$fuzzer" "${options[@]}" -minimize_crash=1 \
            -max_total_time=60 -exact_artifact_path="$input.min" "$input" >/dev/null 2>&1 </dev/null
    done
    [ $rc = 0 ] || [ $status != 0 ] || { tail -n 30 "$folder/$target.log" >&2 && status=2; }
done
rm -rf "$folder/tmp"
exit $status
