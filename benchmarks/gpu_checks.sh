#!/usr/bin/env bash
# What only a GPU can show, in ten minutes, what decides most first; every part has a log in the folder that grows
# as it goes, and all the time but what the parts after it are promised, so that nothing of one part is lost by
# the next.
#
#     benchmarks/gpu_checks.sh runs/gpu h200                 a folder, and the profile that the plan is compared by
#     benchmarks/gpu_checks.sh runs/gpu h200 fused plan      these parts alone, in ten minutes
#
# runs     pretraining and fine-tuning by the command line over NCCL, killed and resumed, compared in bits: ZeRO 0
#          to 3, bf16, compiled, two ranks on the card; DDP and accelerate's DeepSpeed plug-in
# kernels  the Triton kernels against float64
# peers    a training step beside timm's, all compiled; they compile at once and are timed in turns
# fused    whether recomputing and train.fused_mbconv pay, and what sums of one form cost
# plan     the plan beside a compiled run
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?a folder for the logs} profile=${2:-h100} failed=0
parts=("${@:3}")
[ ${#parts[@]} -gt 0 ] || parts=(runs kernels peers fused plan)
declare -A promised=([runs]=190 [kernels]=45 [peers]=150 [fused]=95 [plan]=105) # seconds
work=$(mktemp -d)
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python=${PYTHON:-python3}

part() { # NAME COMMAND…
    local name=$1 began=$SECONDS limit=$((590 - SECONDS)) later
    shift
    unset "promised[$name]"
    [[ " ${parts[*]} " == *" $name "* ]] || return 0
    for later in "${!promised[@]}"; do
        [[ " ${parts[*]} " != *" $later "* ]] || limit=$((limit - promised[$later]))
    done
    timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
    local status=$?
    printf '%-8s %s after %d s: %s\n' "$name" "$([ $status = 0 ] && echo passed || echo "failed ($status)")" \
        $((SECONDS - began)) "$(grep -v '^$' "$out/$name.log" | tail -n 1)" | tee -a "$out/summary.txt"
    [ $status = 0 ] || failed=1
}

together() { # COMMAND-LINE… each in the background; their lines are told apart by a number
    local number=0 failed=0 pids=() command pid
    for command in "$@"; do
        number=$((number + 1))
        { eval "$command" 2>&1 | sed -u "s/^/$number: /"; exit "${PIPESTATUS[0]}"; } &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || failed=$?; done
    return "$failed"
}

lease() { # NUMBER ARGUMENTS… as a command line for `together`
    local number=$1
    shift
    printf '%q ' "$python" benchmarks/gpu_lease.py --out "$work/lease-$number" "$@"
}
export -f together

# A checkout names its commands only once it has been installed; this is the part of it that needs no network.
"$python" -c 'from importlib.metadata import entry_points as p; exit(not p(group="coatnet.commands"))' >"$work/setup.log" ||
    "$python" setup.py -q egg_info >"$work/setup.log" 2>&1 || { cat "$work/setup.log"; exit 1; }
workers=-n$(($(nproc) < 12 ? $(nproc) : 12))
"$python" -c 'import xdist' >"$work/setup.log" 2>&1 || workers=

"$python" - <<'PY' >"$out/machine.txt" 2>&1
import platform, torch
print(platform.python_version(), torch.__version__, torch.cuda.is_available() and torch.cuda.get_device_name())
PY
# On 80 GB four models in training have room at 32 images each.
[ "$profile" = h200 ] && batch=64 || batch=32
step="coatnet_4 b$batch" timm="coatnet_4_224 b$batch"
tests=(tests/gpu/test_runs.py tests/gpu/test_finetune.py)

part runs "$python" -m pytest -v -v -rxX $workers --timeout 180 -k 'not cpu' "${tests[@]}"
part kernels "$python" -m pytest -v -v $workers --timeout 45 tests/gpu --ignore "${tests[0]}" --ignore "${tests[1]}"
part peers bash -c 'together "$@"' - \
    "$(lease 1 --batch "$batch" --phases batches --only "$step")" \
    "$(lease 2 --batch "$batch" --phases peer --only "$timm compiled NHWC" "$timm eager NHWC")" \
    "$(lease 3 --batch "$batch" --phases peer --only "$timm products, compiled by block NCHW")"
part fused bash -c 'together "$@"' - \
    "$(lease 4 --batch "$batch" --phases fused --only 'step stored')" \
    "$(lease 5 --batch "$batch" --phases fused --only 'step timed')" \
    "$(lease 6 --batch "$batch" --phases fused --only 'step apart')" \
    "$(lease 7 --batch "$batch" --phases fused --only 'step joined' kernels)"
part plan "$python" benchmarks/plan.py --hardware "$profile" --only coatnet_4
rm -rf "$work"
exit $failed
