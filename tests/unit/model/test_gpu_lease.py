"""benchmarks/gpu_lease.py on a CPU with tiny shapes: all phases run, a short lease says what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def lease(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("gpu_lease")


@pytest.mark.slow
def test_every_phase_writes_its_rows_in_the_leases_order(lease: ModuleType, tmp_path: Path) -> None:
    lease.main(["--tiny", "--out", str(tmp_path)])
    phases = json.loads((tmp_path / "lease.json").read_text())["phases"]
    assert list(phases) == ["ceilings", "peer", "depthwise", "fused", "attention", "stages", "batches"]
    rows = [row for found in phases.values() for row in found]
    assert not [row for row in rows if "failed" in row or "left_out" in row]
    assert [row["case"] for row in phases["fused"]] == [
        f"{what} {way}"
        for what in ("block S1", "block S2", "step")
        for way in ("stored", "timed", "apart", "joined")
    ]
    assert [row["case"].split()[-1] for row in phases["stages"]] == ["step", "S0", "S1", "S2", "S3", "S4"]
    assert all(
        row["finite"] and row["type_kept"] and row["largest_error"] < 1e-4 for row in phases["attention"]
    )
    text = (tmp_path / "lease.md").read_text()
    assert text.count("## ") == 7 and "forward share of copy" in text


def test_whole_models_are_measured_at_the_batch_that_a_card_has_room_for(
    lease: ModuleType, tmp_path: Path
) -> None:
    lease.main(["--tiny", "--batch", "1", "--phases", "batches", "--out", str(tmp_path)])
    (row,) = json.loads((tmp_path / "lease.json").read_text())["phases"]["batches"]
    assert row["case"].endswith(" b1") and row["images_per_second"] > 0
    assert {batch for _, batch in lease.FULL.at_batch(32).peers + lease.FULL.at_batch(32).models} == {32}


def test_what_fails_or_comes_too_late_is_a_row_that_says_so(lease: ModuleType) -> None:
    now = iter([0.0, 1.0, 2.0])

    def fail() -> dict:
        raise RuntimeError("out of memory\nand more")

    cases = iter([("good", lambda: {"ms": 1.0}), ("bad", fail), ("late", lambda: {"ms": 2.0})])
    rows = list(lease.run_phase(cases, deadline=1.5, clock=lambda: next(now)))
    assert rows == [
        {"case": "good", "ms": 1.0},
        {"case": "bad", "failed": "out of memory"},
        {"case": "late", "left_out": "the phase's time was over"},
    ]
    assert lease.table(rows).splitlines()[0] == "| case | ms | failed | left out |"


def test_without_a_gpu_the_whole_lease_is_refused_with_the_way_out(
    lease: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        lease.main([])
    assert "--tiny runs the same logic on a CPU" in capsys.readouterr().err
