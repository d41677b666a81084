#!/usr/bin/env bash
# Wheels of what a machine with a GPU lacks that has torch for CUDA, the usual packages and no network: 5 MiB, for
# Python 3.12 on x86-64, in the versions of constraints.txt.
#
#     benchmarks/gpu_wheels.sh wheels
set -euo pipefail
folder=$(realpath -m "${1:?a folder for the wheels}")
cd "$(dirname "$0")/.."
pip() { "${PYTHON:-python3}" -m pip "$@" --quiet --no-deps --constraint constraints.txt; }
pip download --dest "$folder" --only-binary :all: --implementation cp --python-version 3.12 \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
    hjson omegaconf pydantic pydantic-core annotated-types typing-inspection webdataset braceexpand
DS_BUILD_OPS=0 pip wheel --wheel-dir "$folder" deepspeed # of which there is source alone, and no part is compiled
ls -sh "$folder"
