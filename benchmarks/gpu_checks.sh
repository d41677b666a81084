#!/usr/bin/env bash
# What only a GPU can show, in ten minutes; every part has a time of its own and a log in the folder.
#
#     benchmarks/gpu_checks.sh runs/gpu h200      a folder, and the profile that the plan is compared by
#
# First runs by the command line over NCCL (kills compared in bits, fine-tuning), then the kernels against
# float64, then the plan beside three compiled models of the family.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?a folder for the logs} profile=${2:-h100} failed=0
mkdir -p "$out"

part() { # SECONDS NAME COMMAND…
    local limit=$1 name=$2 began=$SECONDS
    shift 2
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    local status=$?
    printf '%-10s %s after %d s: %s\n' "$name" "$([ $status = 0 ] && echo passed || echo "failed ($status)")" \
        $((SECONDS - began)) "$(grep -v '^$' "$out/$name.log" | tail -n 1)"
    [ $status = 0 ] || failed=1
}

part 200 runs python3 -m pytest -x -q tests/gpu/test_runs.py tests/gpu/test_finetune.py
part 60 kernels python3 -m pytest -q tests/gpu --ignore tests/gpu/test_runs.py --ignore tests/gpu/test_finetune.py
part 330 plan python3 benchmarks/plan.py --hardware "$profile"
exit $failed
