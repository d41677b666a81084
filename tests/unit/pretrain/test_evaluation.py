"""Evaluation during training counts what it can read, and names the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from coatnet.runtime.ranks import Ranks
from data_pipeline import decode
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.config import CorpusConfig, DataConfig
from data_pipeline.open_corpus import open_corpus
from pretrain.config import PretrainConfig
from pretrain.evaluation import Evaluator


@contextmanager
def first_class(*, ema: bool) -> Iterator[Any]:
    yield lambda pixels: torch.eye(2)[0].repeat(len(pixels), 1)


ENGINE: Any = SimpleNamespace(ema=None, evaluating=first_class)


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


def evaluator(folder: Path, *, decoder: str = "auto") -> Evaluator:
    data = DataConfig(train=[CorpusConfig(str(folder))], decoder=decoder)
    config = PretrainConfig(data=data, augment=AugmentConfig(image_size=32))
    return Evaluator(open_corpus(folder), config, ranks=Ranks())


def test_an_image_that_cannot_be_read_is_left_out_and_named(folder: Path) -> None:
    found = evaluator(folder)
    for _ in range(2):
        measured = found.measure(ENGINE)
        assert (measured["samples"], measured["top1"]) == (5, 2 / 5)
        assert [sample["name"] for sample in found.bad] == ["ant/1.jpg"]


def test_it_reads_by_the_decoder_of_the_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(decode.kernel, "decode", lambda *given, **options: asked.append(given))
    evaluator(folder, decoder="pillow").measure(ENGINE)
    assert not asked
