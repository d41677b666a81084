"""An evaluation in the terminal: nothing is cut, however narrow it is."""

from __future__ import annotations

import pytest

from finetune.evaluation.table import print_reports

REPORT = {
    "model": "runs/mine",
    "data": "photos/validation",
    "samples": 181,
    "image_size": 64,
    "label_kind": "single",
    "top1": 0.9834,
    "top1_interval": [0.952, 0.994],
    "top5": 1.0,
    "balanced_top1": 0.9836,
    "loss": 0.121,
    "ece": 0.092,
    "images_per_second": 1234.0,
    "gmacs": 0.01,
    "judged_among": None,
    "per_class": [],
    "most_confused": [],
    "bad_samples": 0,
    "non_finite": 0,
}


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_every_figure_is_whole_at_any_width(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    print_reports([{**REPORT, "gmacs": 0.002571}, {**REPORT, "image_size": 96, "gmacs": 2586.1}])
    said = capsys.readouterr().out
    assert all(
        figure in said
        for figure in ("98.34%", "95.2%–99.4%", "100.00%", "0.121", "1,234", "balanced", "0.0026", "2,586")
    )
    assert "…" not in said and max(len(line) for line in said.splitlines()) <= columns


def test_the_first_image_that_cannot_be_read_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    bad = [{"name": "dress/[1]\x1b.jpg", "reason": "corrupt: ends early"}]
    print_reports([{**REPORT, "bad_samples": 3, "bad": bad}])
    said = " ".join(capsys.readouterr().out.split())
    assert r"3 images not readable, such as dress/[1]\x1b.jpg: corrupt: ends early" in said
