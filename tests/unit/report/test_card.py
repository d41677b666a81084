"""The model card: what it claims of model, recipe and results."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the test tree is no package; its modules import each other

from reported_runs import make_run, save_checkpoint, told

from coatnet.runtime.run_directory import append_line


def test_the_card_tells_model_recipe_and_results(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.config.write_text(
        "model: {name: coatnet_1, num_classes: 7}\naugment: {image_size: 224}\n"
        "train: {duration: 3 epochs, global_batch: 32}\ndata: {train: [{path: shards/a}]}\ninit: runs/b\n"
    )
    card = told(run).partition("## Model card")[2].partition("## ")[0]
    assert "| begins with | runs/b |\n| trained on | shards/a |\n" in card
    assert "| precision | fp32, moving average of the weights: none |\n| evaluated on | nothing |\n" in card
    assert "| checkpoint | none yet |" in card and "Licence, intended use and biases" in card
    run.config.write_text(
        "model: {name: coatnet_1, layout: C-C-C-T}\ndata: {train: [{path: a}, b], evaluate: c}\n"
        "augment: {image_size: 160}\nprecision: bf16\nema: 0.9\n"
        "train: {duration: 3 epochs, global_batch: 32}\noptimizer: {learning_rate: 0.5, weight_decay: 0.25}\n"
        "schedule: {shape: cosine, warmup: 9 steps}\nloss: {name: sigmoid, smoothing: 0.125}\n"
    )
    append_line(run.metrics, {"samples_seen": 16000, "evaluate/loss": 1.25, "evaluate/samples": 9})
    append_line(run.metrics, {"samples_seen": 16001, "evaluate/ema_top5": 0.8, "evaluate/transfer_ece": 0.1})
    rows = re.findall(r"^\| (.*?) \| (.*) \|$", told(run).partition("## Model card")[2], re.MULTILINE)
    assert rows[2:] == [
        ("architecture", "CoAtNet (Dai et al., arXiv 2106.04803): coatnet_1, C-C-C-T"),
        ("trained on", "a, b"),
        (
            "recipe",
            "3 epochs, global batch 32; images of 160 px; AdamW 0.5, weight decay 0.25; "
            "cosine after 9 steps of warm-up; sigmoid loss, smoothing 0.125",
        ),
        ("precision", "bf16, moving average of the weights: 0.9"),
        ("evaluated on", "c"),
        ("results", "top1 75.00%, loss 1.25, ema_top5 80.00%, transfer_ece 10.00%"),
        ("checkpoint", "none yet"),
    ]


@pytest.mark.parametrize(
    ("once", "row"), [(True, "| yes, proved by a digest of all positions |"), (False, "| NO |"), (None, "")]
)
def test_the_card_tells_whether_every_sample_came_once_if_the_run_is_over(
    tmp_path: Path, once: bool | None, row: str
) -> None:
    run = make_run(tmp_path / "run")
    run.config.write_text("model: {name: coatnet_0}\n")
    if once is not None:
        run.summary.write_text(json.dumps({"every_sample_once": once}))
    text = told(run)
    assert (f"| every sample once {row}" in text) if row else "every sample once" not in text


@pytest.mark.parametrize(("more", "named"), [(0, "l |"), (1, "l and 1 more |"), (1000, "l and 1,000 more |")])
def test_the_card_names_what_the_model_is_made_of_and_a_dozen_of_its_classes(
    tmp_path: Path, more: int, named: str
) -> None:
    run = make_run(tmp_path / "run")
    run.config.write_text("model: {name: coatnet_0}\ndata: {evaluate: shards/v}\n")
    save_checkpoint(run, classes=[*"abcdefghijkl", *map(str, range(more))], depths=[1, 2, 3, 4, 5])
    text = told(run)
    assert f"| {12 + more:,}: a, b, c, d, e, f, g, h, i, j, k, {named}" in text
    assert "coatnet_0, C-C-T-T, depths 1-2-3-4-5 |" in text and "| evaluated on | shards/v |" in text
    assert "| checkpoint | step-00000001 |" in text
    order = re.findall(r"^\| ([a-z ]+) \|", text.partition("## Model card")[2], re.MULTILINE)
    assert order[:4] == ["architecture", "size", "classes", "trained on"]


def test_the_card_tells_of_every_batch_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.config.write_text(
        "model: {name: coatnet_0}\ntrain: {global_batch: 32, duration: 3 epochs, "
        "batch_changes: [{at: 40 steps, global_batch: 48}, {at: 2 epochs, global_batch: 96}]}\n"
    )
    text = told(run)
    assert "3 epochs, global batch 32, 48 from 40 steps on, 96 from 2 epochs on; images" in text


def test_the_card_of_a_run_in_phases_is_of_the_size_of_images_that_it_ends_with(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.config.write_text(
        "model: {name: coatnet_0, image_size: 192}\naugment: {image_size: 384}\n"
        "train: {phases: [{image_size: 224, share: 6}, {image_size: 512, share: 1}]}\n"
    )
    save_checkpoint(run, classes=["ant", "bee"])
    text = told(run)
    assert "coatnet_0 at 512 px" in text and "GMAC per image at 512 px" in text
    assert "images of 224, then 512 px" in text and "384 px" not in text
