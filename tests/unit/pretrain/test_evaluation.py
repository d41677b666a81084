"""Evaluation during training counts what it can read, and names the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from coatnet.runtime.ranks import Ranks
from coatnet.training.sections import LossConfig
from coatnet.training.way_out import WayOut
from data_pipeline import decode
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.config import CorpusConfig, DataConfig
from data_pipeline.open_corpus import open_corpus
from data_pipeline.sharding.sharder import shard_corpus
from pretrain import evaluation
from pretrain.config import PretrainConfig
from pretrain.evaluation import Evaluator, equal_batches
from pretrain.sections import PretrainEvaluateConfig
from pretrain.transfer import TransferProbe


@contextmanager
def first_class(*, ema: bool) -> Iterator[Any]:
    yield lambda pixels: torch.eye(2)[0].repeat(len(pixels), 1)


ENGINE: Any = SimpleNamespace(state=SimpleNamespace(ema=None), evaluating=first_class)
ALONE: Any = {"ranks": Ranks(), "way_out": WayOut(Ranks())}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of three images, of which one is broken."""
    draw = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for number in range(3):
            pixels = draw.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.jpg")
    (tmp_path / "ant" / "1.jpg").write_bytes(b"no image")
    return tmp_path


def config(folder: Path, *, decoder: str = "auto", batch: int = 64) -> PretrainConfig:
    data = DataConfig(train=[CorpusConfig(str(folder))], decoder=decoder)
    evaluate = PretrainEvaluateConfig(batch=batch, neighbours=1)
    return PretrainConfig(data=data, augment=AugmentConfig(image_size=32), evaluate=evaluate)


@pytest.mark.parametrize("batch", [1, 64])
def test_an_image_that_cannot_be_read_is_left_out_and_named(folder: Path, batch: int) -> None:
    found = Evaluator(open_corpus(folder), config(folder, batch=batch), **ALONE)
    for _ in range(2):
        measured = found.measure(ENGINE)
        assert (measured.figures["samples"], measured.figures["top1"]) == (5, 2 / 5)
        assert [sample["name"] for sample in measured.bad] == ["ant/1.jpg"]


def test_the_loss_is_the_mean_over_images_in_batches_of_any_size(folder: Path) -> None:
    losses = [
        Evaluator(open_corpus(folder), config(folder, batch=batch), **ALONE).measure(ENGINE).figures["loss"]
        for batch in (2, 64)
    ]
    guess = torch.eye(2)[:1]
    right, wrong = (float(cross_entropy(guess, torch.tensor([label]))) for label in (0, 1))
    assert losses == pytest.approx([(2 * right + 3 * wrong) / 5] * 2)


def test_the_average_is_measured_beside_the_weights_under_names_of_its_own(folder: Path) -> None:
    @contextmanager
    def evaluating(*, ema: bool) -> Iterator[Any]:
        yield lambda pixels: torch.eye(2)[int(ema)].repeat(len(pixels), 1)

    engine: Any = SimpleNamespace(state=SimpleNamespace(ema=object()), evaluating=evaluating)
    figures = Evaluator(open_corpus(folder), config(folder), **ALONE).measure(engine).figures
    assert (figures["top1"], figures["ema_top1"]) == (2 / 5, 3 / 5)
    assert figures["samples"] == figures["ema_samples"] == 5


def test_the_counts_of_all_ranks_are_added_up(folder: Path) -> None:
    class Twins(Ranks):
        def all_reduce_sum(self, tensor: torch.Tensor) -> None:
            tensor.mul_(2)

    parts: Any = {**ALONE, "ranks": Twins()}
    figures = Evaluator(open_corpus(folder), config(folder), **parts).measure(ENGINE).figures
    assert (figures["samples"], figures["top1"]) == (10, 2 / 5)


def test_every_rank_has_as_many_batches_and_together_they_have_each_image_once(folder: Path) -> None:
    moved, positions, lengths = [], [], []
    for rank in range(4):  # 1, 2, 1 and 2 of six images
        found = equal_batches(
            open_corpus(folder),
            config(folder, batch=1),
            ranks=Ranks(rank, 4),
            way_out=WayOut(Ranks(rank, 4), breathe=lambda: moved.append(None)),
        )
        batches = [*found]
        lengths.append(len(batches))
        assert all(len(pixels) == 1 for pixels, _ in batches), "a blank one where there is none"
        positions += [position for _, batch in batches for position in batch.positions.tolist()]
    assert lengths == [2] * 4 and len(moved) == 8
    assert sorted(positions) == [0, 2, 3, 4, 5], "one is broken"


def test_guesses_are_counted_by_class_where_that_can_be_looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for most, shown in ((2, True), (1, False)):
        monkeypatch.setattr(evaluation, "_MOST_CONFUSION_CLASSES", most)
        found = Evaluator(open_corpus(folder), config(folder), **ALONE).measure(ENGINE)
        assert (found.confusion is not None) == shown
        if found.confusion is not None:
            assert found.confusion.tolist() == [[2, 0], [3, 0]]


def test_several_labels_are_ranked_by_what_the_loss_makes_of_logits(folder: Path, tmp_path: Path) -> None:
    """A softmax knows no level of the logits that an image shifts as a whole; sigmoids do."""
    files = sorted(path for path in folder.rglob("*.jpg") if path.stat().st_size > 100)
    rows = [
        {
            "path": str(path),
            "labels": {"even": 1.0, "all": 1.0} if number % 2 == 0 else {"odd": 1.0, "all": 1.0},
        }
        for number, path in enumerate(files)
    ]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shard_corpus(tmp_path / "table.jsonl", tmp_path / "shards", quiet=True)
    corpus = open_corpus(tmp_path / "shards")

    def measure(loss: str, shift: float) -> dict[str, float]:
        @contextmanager
        def evaluating(*, ema: bool) -> Iterator[Any]:
            draw = torch.Generator().manual_seed(1)
            levels = shift * torch.randn(len(files), 1, generator=draw)
            logits = torch.randn(len(files), 3, generator=draw)
            yield lambda pixels: logits + levels

        settings = replace(config(folder), loss=LossConfig(loss))
        engine = SimpleNamespace(state=SimpleNamespace(ema=None), evaluating=evaluating)
        return Evaluator(corpus, settings, **ALONE).measure(engine).figures

    assert corpus.label_kind == "multi"
    assert measure("softmax", 3.0)["map"] == pytest.approx(measure("softmax", 0.0)["map"])
    assert measure("sigmoid", 3.0)["map"] != pytest.approx(measure("sigmoid", 0.0)["map"])


def test_so_does_the_measure_of_transfer(folder: Path) -> None:
    head = torch.nn.Linear(3, 2)
    module = torch.nn.ModuleDict({"head": torch.nn.ModuleDict({"logits": head})})

    @contextmanager
    def evaluating() -> Iterator[Any]:
        yield lambda pixels: head(pixels.mean(dim=(2, 3)))

    engine: Any = SimpleNamespace(module=module, evaluating=evaluating)
    probe = TransferProbe(open_corpus(folder), config(folder, batch=1), **ALONE)
    found = probe.measure(engine)
    assert 0.0 <= found.figures["transfer_top1"] <= 1.0
    assert [sample["name"] for sample in found.bad] == ["ant/1.jpg"]
    *others, last = sorted(folder.rglob("*.jpg"))
    for image in others:
        image.write_bytes(b"no image")
    found = probe.measure(engine)
    assert found.figures == {} and len(found.bad) == 5, "an image alone has no neighbours"
    last.write_bytes(b"no image")
    found = probe.measure(engine)
    assert found.figures == {} and len(found.bad) == 6, "a figure of no image would be a false one"


def test_it_reads_by_the_decoder_of_the_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(decode.kernel, "decode", lambda *given, **options: asked.append(given))
    Evaluator(open_corpus(folder), config(folder, decoder="pillow"), **ALONE).measure(ENGINE)
    assert not asked
