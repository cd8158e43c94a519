#!/usr/bin/env bash
# Fuzzes every parser, one after the other: the committed seeds first, then what libFuzzer makes of them.
#
#     tools/fuzz.sh SECONDS [TARGET…]
#
# SECONDS are those of each target; TARGETs are files in fuzz/fuzz_targets [all of them]. Prints a table; an input that is a
# finding lies in target/fuzz/findings, and `target/fuzz/*/release/TARGET FILE` runs it again. What was learned stays in
# target/fuzz/corpus for the next time. Needs a C++ compiler, for libFuzzer; cargo-fuzz runs the same targets
# (CONTRIBUTING.md), but its installation and its sanitizers are not needed here: the flags below are those that it passes
# for coverage, and the stable compiler takes them.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?'name the seconds for each target'}
shift
host=$(rustc -vV | sed -n 's/^host: //p')
build=target/fuzz
targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(cd fuzz/fuzz_targets && printf '%s\n' *.rs | sed 's/\.rs$//')

coverage='-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4'
coverage+=' -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table'
coverage+=' -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0 --cfg fuzzing'
RUSTFLAGS=$coverage cargo build --quiet --locked --release --manifest-path fuzz/Cargo.toml --target "$host" --target-dir "$build" \
    "${targets[@]/#/--bin=}"

# Parsers that take paths get them in memory.
shared=/dev/shm
[ -w "$shared" ] || shared=${TMPDIR:-/tmp}
TMPDIR=$(mktemp -d "$shared/perp-engine-fuzz-XXXXXX")
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
mkdir -p "$build/findings" "$build/logs"

printf '%-16s %10s %8s %8s  %s\n' target executions a/second edges findings
failed=0
for target in "${targets[@]}"; do
    corpus=$build/corpus/$target log=$build/logs/$target
    mkdir -p "$corpus"
    dictionary=()
    [ ! -f "fuzz/dictionaries/$target" ] || dictionary=("-dict=fuzz/dictionaries/$target")
    # Heap is counted by the targets themselves; the rest, such as zstd's windows, and what is resident, is limited here.
    status=0
    "$build/$host/release/$target" -max_total_time="$seconds" -rss_limit_mb=768 -timeout=25 -max_len=16384 \
        -print_final_stats=1 -artifact_prefix="$build/findings/$target-" "${dictionary[@]}" \
        "$corpus" "fuzz/seeds/$target" >"$log" 2>&1 </dev/null || status=$?
    rm -rf "${TMPDIR:?}"/*
    of() { sed -n "s/.*$1 *\([0-9][0-9]*\).*/\1/p" "$log" | tail -n 1; }
    found=none
    if [ "$status" -ne 0 ]; then
        failed=1
        found=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
        found=${found:-"status $status, $log"}
    fi
    printf '%-16s %10s %8s %8s  %s\n' "$target" "$(of 'number_of_executed_units:')" "$(of 'average_exec_per_sec:')" "$(of ' cov:')" "$found"
    [ "$status" -eq 0 ] || grep -m 3 -A 4 -E "panicked|over the target's memory|ERROR: libFuzzer" "$log" || tail -n 5 "$log"
done
exit "$failed"
