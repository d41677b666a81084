"""What an evaluation is given: each image as its record has it, once, whatever lies beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.assemble import Assembler
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.corpus import Corpus
from data_pipeline.evaluate_loader import EvaluateLoader

AUGMENT = AugmentConfig(image_size=16)


@pytest.mark.parametrize(("batch", "threads"), [(16, 1), (50, 3), (500, 2)])
def test_each_evaluated_image_is_its_records_also_beside_bad_ones(
    shard_folder: Path, tmp_path: Path, batch: int, threads: int
) -> None:
    whole = Corpus.open(shard_folder)
    records = [whole.read(shard, index) for shard in range(8) for index in range(15)]
    pixels = np.empty((120, 16, 16, 3), dtype=np.uint8)
    Assembler(AUGMENT, training=False, num_classes=0, decoder="auto").decode(records, np.arange(120), pixels)
    damaged = Path(shutil.copytree(shard_folder, tmp_path / "damaged"))
    for shard, index in ((0, 3), (2, 0)):
        with (damaged / f"shard-{shard:06d}.tar").open("r+b") as file:
            file.seek(int(whole.index(shard).samples["offset"][index]))
            file.write(b"\xff")
    batches = list(EvaluateLoader(Corpus.open(damaged), AUGMENT, batch=batch, threads=threads))
    good = [number for number in range(120) if number not in (3, 30)]
    assert torch.cat([one.positions for one in batches]).tolist() == good
    assert np.array_equal(torch.cat([one.images for one in batches]).numpy(), pixels[good])
    assert torch.cat([one.labels for one in batches]).tolist() == [records[number].label for number in good]
    assert [sample.position for one in batches for sample in one.bad] == [3, 30]


def test_a_rank_says_how_many_images_it_has(shard_folder: Path) -> None:
    corpus = Corpus.open(shard_folder)
    ranks = [EvaluateLoader(corpus, AUGMENT, batch=16, rank=rank, world_size=7) for rank in range(7)]
    assert [one.samples for one in ranks] == [17, 17, 17, 17, 17, 17, 18]
