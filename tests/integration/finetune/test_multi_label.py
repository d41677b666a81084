"""Several labels per image: fine-tuned, judged by mAP on the way, evaluated by any number of ranks alike."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coatnet.report.write import write_report
from data_pipeline.sharding.sharder import shard_corpus

Arguments = Callable[..., list[str]]
OnRanks = Callable[..., list[Any]]
CLASSES = ("amber", "blue", "green")
EXACT = ("map", "map_micro", "precision1", "map_interval", "map_micro_interval", "samples", "labels")


def write_shards(folder: Path, *, images: int, seed: int, different: int | None = None) -> Path:
    """Noise with rows of each colour that the image is labelled with, one to three of them.

    Those beyond the first `different` are copies of these, labelled in other ways.
    """
    rng = np.random.default_rng(seed)
    lines: list[dict[str, Any]] = []
    for number in range(images):
        shown = [label for label in range(3) if (number % 7 + 1) >> label & 1]
        pixels = rng.integers(0, 90, size=(48, 48, 3), dtype=np.uint8)
        for label in shown:
            pixels[label::4, :, label] += 150
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        image = base64.b64encode(file.getvalue()).decode()
        if different is not None and number >= different:
            image = lines[number % different]["bytes"]
        lines.append({"bytes": image, "labels": {CLASSES[label]: 1.0 for label in shown}})
    folder.mkdir(parents=True)
    (folder / "table.jsonl").write_text("\n".join(map(json.dumps, lines)))
    shard_corpus(folder / "table.jsonl", folder / "shards", quiet=True)
    return folder / "shards"


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("tagged")
    train = write_shards(root / "train", images=64, seed=1)
    validation = write_shards(root / "validation", images=13, seed=2)
    return {
        "data__train": f"[{{path: {train}}}]",
        "data__evaluate": str(validation),
        "loss__name": "sigmoid",
        "loss__smoothing": "0.001",
    }


def finetune(
    arguments: Arguments, on_ranks: OnRanks, directory: Path, *, ranks: int = 1, **changes: str
) -> dict[str, Any]:
    words = arguments(directory, ranks=ranks, **changes)
    on_ranks("finetune_run", world_size=ranks, arguments=words)
    return json.loads((directory / "summary.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("ema", "weights", "ranks"), [("0.9", "ema", 1), ("0", "raw", 2)])
def test_a_run_is_judged_by_map_and_any_number_of_ranks_finds_the_same(
    tagged: dict[str, str],
    arguments: Arguments,
    on_ranks: OnRanks,
    tmp_path: Path,
    ema: str,
    weights: str,
    ranks: int,
) -> None:
    run = tmp_path / "run"
    summary = finetune(arguments, on_ranks, run, ranks=ranks, ema=ema, **tagged)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curve = [row["evaluate/map"] for row in rows if "evaluate/map" in row]
    assert len(curve) == 2 and curve[-1] == summary["map"] and summary["best_map"] == max(curve)
    assert "top1" not in summary and 0 < summary["precision1"] <= 1
    text = write_report(run).with_suffix(".md").read_text()
    assert f"| mAP | {summary['map']:.2%} |" in text and f"precision1 {summary['precision1']:.2%}" in text

    def evaluate(ranks: int, batch: int, data: str = tagged["data__evaluate"]) -> dict[str, Any]:
        request = {"model": str(run), "data": data, "sizes": [], "batch": batch}
        whole, *empty = on_ranks(
            "evaluate_on_ranks", world_size=ranks, request={**request, "weights": weights}
        )
        assert not any(empty), "one rank's figures are enough"
        return whole

    alone = evaluate(1, 64)
    assert alone["samples"] == 13 and all(alone[key] == summary[key] for key in ("map", "precision1"))
    for others, batch in ((2, 4), (3, 3)):
        other = evaluate(others, batch)
        assert {key: other[key] for key in EXACT} == {key: alone[key] for key in EXACT}
        assert [row["ap"] for row in other["per_class"]] == [row["ap"] for row in alone["per_class"]]
        assert other["loss"] == pytest.approx(alone["loss"], abs=1e-5)

    few = str(write_shards(tmp_path / "few", images=3, seed=3))
    alone = evaluate(1, 64, few)
    other = evaluate(4, 64, few)  # one of which has no image
    assert {key: other[key] for key in EXACT} == {key: alone[key] for key in EXACT}


@pytest.mark.slow
def test_copies_of_an_image_tie_whatever_the_batch_and_the_number_of_ranks(
    trained: Path, on_ranks: OnRanks, tmp_path: Path
) -> None:
    """Products of another batch's size are rounded differently: copies used to differ by a last bit."""
    data = str(write_shards(tmp_path / "copies", images=44, seed=4, different=4))

    def evaluate(ranks: int, batch: int) -> dict[str, Any]:
        request = {"model": str(trained), "data": data, "sizes": [], "batch": batch}
        found = on_ranks("evaluate_on_ranks", world_size=ranks, request=request)[0]
        rows = [(row["ap"], row["guessed"], row["right"]) for row in found["per_class"]]
        return {"per_class": rows, **{name: found[name] for name in EXACT}, "ece": round(found["ece"], 6)}

    alone = evaluate(1, 64)
    for ranks, batch in ((1, 1), (1, 3), (1, 7), (2, 1), (2, 3), (2, 7)):
        assert evaluate(ranks, batch) == alone, (ranks, batch)


@pytest.mark.slow
def test_patience_ends_a_run_whose_map_does_not_rise_and_the_best_checkpoint_stays(
    tagged: dict[str, str], arguments: Arguments, on_ranks: OnRanks, tmp_path: Path
) -> None:
    settings = {
        **tagged,
        "optimizer__learning_rate": "1e-9",
        "train__patience": "1",
        "train__duration": "40 steps",
        "evaluate__every": "2 steps",
        "norm__momentum": "0.000001",
        "save__every": "3 steps",
    }
    summary = finetune(arguments, on_ranks, tmp_path / "run", **settings)
    assert summary["steps"] < 40 and summary["best_step"] < summary["steps"]
    assert (tmp_path / "run" / "checkpoints" / f"step-{summary['best_step']:08d}").is_dir()
