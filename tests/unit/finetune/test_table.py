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


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_below_the_figures_stands_what_the_last_resolution_was_judged_by_and_what_it_took_for_what(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    share = "ap" if kind == "multi" else "top1"
    rows = [{"class": f"[b]{n}", "samples": 9, share: n / 8} for n in (7, 1, 6, 2, 3, 4)]
    rows.append({"class": "never shown", "samples": 0, share: None})
    last = {**REPORT, "label_kind": kind, "model": "[runs]", "data": "[photos]", "per_class": rows}
    last |= {"map": 0.25, "map_interval": [0.125, 0.5], "map_micro": 0.375, "precision1": 0.75}
    more = {"judged_among": 7, "non_finite": 2, "real_top1": 0.875}
    if kind == "single":
        more["most_confused"] = [{"class": "[a]", "taken_for": "[b]", "count": 1000}]
    print_reports([last, {**last, **more}])
    first, _, heading, _, *below = (line.strip() for line in capsys.readouterr().out.splitlines())
    assert first == "[runs] on [photos]: 181 images"
    names = {"single": "top-1 95 % top-5 balanced", "multi": "mAP 95 % micro precision@1"}[kind]
    assert heading.split() == ["px", *names.split(), "loss", "ECE", "images/s", "GMAC"]
    shares = {"single": "98.34% 95.2%–99.4% 100.00% 98.36%", "multi": "25.00% 12.5%–50.0% 37.50% 75.00%"}[
        kind
    ]
    assert below[0].split() == ["64", *shares.split(), "0.121", "0.092", "1,234", "0.01"]
    said = ["ReaL top-1: 87.50%", "judged among the 7 classes of the data"]
    said += ["weakest: [b]1 12%, [b]2 25%, [b]3 38%, [b]4 50%, [b]6 75%"]
    said += ["most confused: [a] → [b], 1,000 times"] if kind == "single" else []
    assert [line for line in below[2:] if line] == [*said, "2 images without finite logits"]
    print_reports([{**last, "most_confused": [{"class": "a", "taken_for": "b", "count": 1}]}])
    said = capsys.readouterr().out
    assert "most confused: a → b, once" in said and not {"ReaL", "judged", "finite"} & {*said.split()}


@pytest.mark.parametrize(("map_", "said"), [(0.0021, True), (0.002, False)])
def test_map_above_its_own_interval_is_told_why(
    map_: float, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    multi = {**REPORT, "label_kind": "multi", "map": map_, "map_interval": [0.001, 0.002]}
    print_reports([{**multi, "map_micro": 0.375, "precision1": 0.75}])
    assert ("mAP above its interval: chance makes it too high" in capsys.readouterr().out) is said
