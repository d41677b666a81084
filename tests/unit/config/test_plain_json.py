"""What the project writes as JSON is JSON: a number that is not finite is text, which `float` reads back."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import pytest

from coatnet.checkpoint.format import read_json, write_json
from coatnet.config.plain_text import json_text
from coatnet.runtime.run_directory import RunDirectory, read_lines
from pretrain.state import State


def strictly(text: str) -> Any:
    """Read as other tools do: Python's own reader takes words that JSON does not have."""

    def refuse(word: str) -> NoReturn:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite_are_text_at_any_depth_and_everything_else_stays() -> None:
    value = {"loss": math.nan, "of": [{"a": (math.inf, -math.inf, 1.5, 2, None, True, "x")}]}
    found = strictly(json_text(value))
    assert found == {"loss": "nan", "of": [{"a": ["inf", "-inf", 1.5, 2, None, True, "x"]}]}
    assert json_text({"b": [1, 2.5]}, indent=2) == json.dumps({"b": [1, 2.5]}, indent=2)


def test_events_and_metrics_are_json_whatever_a_loss_was(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.record_event("loss_continuity", loss=math.nan, recorded=math.inf)
    (line,) = run.events.read_text().splitlines()
    assert (strictly(line)["loss"], strictly(line)["recorded"]) == ("nan", "inf")


def test_a_checkpoint_whose_figures_are_not_finite_is_json_and_resumes(tmp_path: Path) -> None:
    state = State(losses=[1.0, math.inf], figures={"loss": math.nan})
    write_json(tmp_path / "manifest.json", {"progress": asdict(state)})
    strictly(json.loads((tmp_path / "manifest.json").read_text())["body"])
    resumed = State(**read_json(tmp_path / "manifest.json")["progress"])
    assert resumed.losses == state.losses and math.isnan(float(resumed.figures["loss"]))


@pytest.mark.parametrize("word", ["NaN", "Infinity"])
def test_what_older_versions_wrote_is_still_read(tmp_path: Path, word: str) -> None:
    (tmp_path / "events.jsonl").write_text(f'{{"kind": "loss_continuity", "loss": {word}}}\n')
    (event,) = read_lines(tmp_path / "events.jsonl")
    assert not math.isfinite(event["loss"])
