"""A profile of this machine's cores, from what its ranks attain in single operations now. Without torch here.

The ranks measure at once, since cores share caches and memory; `coatnet.model.rates` does it in processes of
its own. No block and no network is timed: the constants of the roofline are measured, not its results.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.planning.hardware import Hardware, load_hardware
from cluster.planning.speed import BACKWARD, FLOPS_PER_MAC, UNFUSED_PASSES
from coatnet.config import UserError, to_yaml
from coatnet.config.checks import file_to_write
from coatnet.config.plain_text import number_of
from coatnet.runtime.memory import available_memory

BASE = "cpu2"  # gives what is not measured: networks, storage, decoding, a process's own memory
_FP32 = 4
# Elements moved in the forward pass per element of the output, as the model's list of operations counts them.
_NORM_AND_GELU, _DEPTHWISE, _ATTENTION, _COPY = 3 + 2, 2, 3 + 1, 2
_LEAST_WORK = 0.5  # of what a probe takes, however slow a call was
_TIMEOUT_SECONDS = 300.0
_MEASURED = "matmul_flops, copy_bytes_per_second, the shares and operator_seconds are measured, by {} at once"


def calibrate(path: Path, *, ranks: int) -> Hardware:
    """Measure this machine by so many processes at once and write the profile that `hardware=PATH` accepts.

    Raises:
        UserError: the path is no .yaml or cannot be written, or a process failed.
    """
    file_to_write(path, endings=[".yaml"])
    measured = calibrated(load_hardware(BASE), _measure(ranks))
    memory = float(available_memory().total)
    found = replace(
        measured, name=path.stem, memory_bytes=memory, gpus_per_node=ranks,
        cores_per_gpu=max(1, len(os.sched_getaffinity(0)) // ranks),
        notes=[_MEASURED.format(number_of(ranks, 'rank')), f"everything else as {BASE} has it"],
    )  # fmt: skip
    try:
        path.write_text(to_yaml(found))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return found


def calibrated(base: Hardware, rates: Sequence[Mapping[str, Any]]) -> Hardware:
    """Return the profile under which the roofline gives each measured operation its measured time.

    The peak is the quickest product's rate; cores compute bf16 no faster.

    Args:
        base: what is not measured.
        rates: `coatnet.model.rates.Rate` as plain containers; of several with one kind the sums count.
    """

    def total(kind: str, field: str) -> float:
        return sum(float(rate[field]) for rate in rates if rate["kind"] == kind)

    call = total("launch", "seconds") / total("launch", "calls")

    def bytes_per_second(kind: str, moved: float) -> float:
        work = total(kind, "seconds") - call * total(kind, "calls")
        forward = max(work, _LEAST_WORK * total(kind, "seconds")) / (1.0 + BACKWARD)
        return moved * _FP32 * total(kind, "elements") / forward

    products = [rate for rate in rates if rate["kind"] == "product"]
    slowest_first = sorted(float(rate["macs"]) / float(rate["seconds"]) for rate in products)
    attained = total("product", "macs") / total("product", "seconds")
    copy = _COPY * _FP32 * total("copy", "elements") / total("copy", "seconds")
    peak = FLOPS_PER_MAC * (1.0 + BACKWARD) * slowest_first[-1]
    constants = {
        "copy_bytes_per_second": copy,
        "matmul_share": attained / slowest_first[-1],
        "elementwise_share": bytes_per_second("norm", _NORM_AND_GELU * UNFUSED_PASSES) / copy,
        "depthwise_share": bytes_per_second("depthwise", _DEPTHWISE) / copy,
        "attention_share": bytes_per_second("attention", _ATTENTION) / copy,
        "operator_seconds": call,
    }
    rounded: dict[str, Any] = {name: float(f"{value:.3g}") for name, value in constants.items()}
    return replace(base, matmul_flops=dict.fromkeys(base.matmul_flops, float(f"{peak:.3g}")), **rounded)


def mean_rates(tables: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return the ranks' mean times."""
    return [
        {**same[0], "seconds": sum(float(one["seconds"]) for one in same) / len(same)}
        for same in zip(*tables, strict=True)
    ]


def _measure(ranks: int) -> list[dict[str, Any]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "coatnet.model.rates"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=environment,
        )
        for _ in range(ranks)
    ]  # fmt: skip
    tables = []
    try:
        for process in processes:
            printed, complaint = process.communicate(timeout=_TIMEOUT_SECONDS)
            if process.returncode != 0:
                last = (complaint.strip().splitlines() or ["no message"])[-1]
                raise UserError(f"--calibrate: measuring ended with status {process.returncode}: {last}")
            tables.append(json.loads(printed))
    except subprocess.TimeoutExpired:
        raise UserError(f"--calibrate: measuring took over {_TIMEOUT_SECONDS:.0f} s") from None
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return mean_rates(tables)
