"""The plan beside runs that a GPU once measured: three sizes of the family."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
import plan as benchmark

RECORDED = Path(benchmark.__file__).parent / "results" / "plan_h200_fp32.json"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus that the benchmark makes."""
    return benchmark.make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.slow
@pytest.mark.parametrize("case", benchmark.GPU_CASES, ids=lambda case: case.name)
def test_memory_is_within_a_tenth_and_time_within_a_fifth_of_what_a_gpu_took(
    tmp_path: Path, shards: Path, case: benchmark.Case
) -> None:
    assert set(json.loads(RECORDED.read_text())["runs"]) == {one.name for one in benchmark.GPU_CASES}
    ran = replace(case, compile=False, precision="fp32")
    config, directory = benchmark.write_config(ran, tmp_path, shards, command="pretrain")
    recall = partial(benchmark.recall, RECORDED)
    cells = benchmark.compare_gpu(
        ran, config, directory, command="pretrain", hardware="h200", measured=recall
    )
    planned_mib, measured_mib, _, planned_seconds, measured_seconds, _, _ = cells
    assert float(planned_mib) == pytest.approx(float(measured_mib), rel=0.10)
    assert float(planned_seconds) == pytest.approx(float(measured_seconds), rel=0.20)
