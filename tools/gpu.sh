#!/usr/bin/env bash
# Everything that a GPU can show, in one report: the tests of its kernels and of whole runs, then the kernels of a training
# step, as estimated and timed by CUDA events, and the products of linear layers.
#
#     tools/gpu.sh [REPORT.md]
#
# Steps that train all weights are timed with products by this program's kernels and by cuBLASLt; where a machine has no cuBLAS
# 12, that is a failure in the report. Needs a Rust toolchain and the driver (R535 or newer) of a GPU of compute capability 8.0
# or newer. MODELS are the models that are benchmarked, by name, with random weights [opt-125m opt-1.3b opt-2.7b].
set -euo pipefail
report=$(realpath -m "${1:-gpu-report.md}")
cd "$(dirname "$0")/.."
models=${MODELS:-opt-125m opt-1.3b opt-2.7b}

section() { printf '\n## %s\n\n' "$1" >>"$report"; }
# Runs a command; its output goes to the report, and where it fails so does that.
record() {
    printf '    $ %s\n' "$*" >>"$report"
    local status=0
    "$@" 2>&1 | sed 's/^/    /' | tee -a "$report" || status=$?
    if [ "$status" -ne 0 ]; then
        printf '\nFAILED with status %d\n' "$status" >>"$report"
        failed=1
    fi
}
failed=0

cargo build --locked --release
printf '# perp-engine on a GPU\n\n%s, commit %s\n' "$(date --utc +%F)" "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" >"$report"
section 'The GPU'
record nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit --format=csv
section 'Tests'
record cargo test --locked --release --workspace --test cuda -- --ignored gpu_ --test-threads=1
section 'The demo'
record target/release/perp-engine retrain --device cuda
for model in $models; do
    section "What is estimated of $model"
    record target/release/perp-engine profile --device cuda --model "$model" --batch 2 --seq-len 1024
    for pattern in '--sparsity 0.5' '--sparsity 0.7' '--pattern 2:4'; do
        section "A training step of $model, $pattern"
        # shellcheck disable=SC2086 # a flag and its value
        record target/release/perp-engine bench --device cuda --model "$model" $pattern --batch 2 --seq-len 1024 --steps 10
    done
    for gemm in own cublas; do
        section "A training step of $model, all weights, products by $gemm"
        record target/release/perp-engine bench --device cuda --model "$model" --method full --gemm "$gemm" --seq-len 1024 --steps 10
    done
    section "The products of $model"
    record target/release/perp-engine bench --device cuda --model "$model" --products --batch 2 --seq-len 1024 --steps 10
done
printf 'wrote %s\n' "$report"
exit "$failed"
