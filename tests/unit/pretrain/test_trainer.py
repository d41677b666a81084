"""What ranks make of a step together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from coatnet.config import load_config
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.ranks import Ranks
from data_pipeline.batch import Batch
from pretrain.config import PretrainConfig
from pretrain.engine.engine import Update
from pretrain.trainer import Trainer


@dataclass(frozen=True)
class Told(Ranks):
    """Two ranks, of which the other says what it is given to say."""

    said: tuple[float, ...] = ()

    def table(self, own: torch.Tensor) -> torch.Tensor:
        other = torch.tensor(self.said, dtype=own.dtype)
        return torch.stack([own, other] if self.is_main else [other, own])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_gradient_norm_that_one_rank_alone_finds_otherwise_is_judged_by_all_as_the_first_found_it(
    tmp_path: Path, rank: int
) -> None:
    found = (3.25, 1e30)  # the second rank's copy of the gradient is wrong
    ranks = Told(rank=rank, world_size=2, said=(2.0, found[1 - rank], 0.5, 0, 0, 0))
    update = Update(torch.tensor(1.0), found[rank], applied=False)
    module = torch.nn.Linear(1, 1)
    engine = SimpleNamespace(ranks=ranks, module=module, own_seconds=0.25, step=lambda *_, **__: update)
    trainer = Trainer(
        cast(Any, engine),
        load_config(PretrainConfig, overrides=["data.train=nowhere"]),
        num_classes=2,
        group_images=2,
        account=TimeAccount(tmp_path, rank=rank, life=1),
    )
    result = trainer.step(Batch.blank(image_size=32, samples=2), samples_seen=0, learning_rate=0.1)
    assert result.gradient_norm == 3.25 and result.loss == 1.5
    assert sorted(result.seconds) == [0.25, 0.5] and result.samples == 4
