"""What ranks make of a step together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from coatnet.config import load_config
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.endings import Distrusted
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


def trainer(folder: Path, rank: int, *, update: Update, other: float) -> Trainer:
    """Make one of two ranks, which finds an update where the other finds a norm."""
    ranks = Told(rank=rank, world_size=2, said=(2.0, other, 0.5, 0, 0, 0))
    module = torch.nn.Linear(1, 1)
    engine = SimpleNamespace(ranks=ranks, module=module, own_seconds=0.25, step=lambda *_, **__: update)
    return Trainer(
        cast(Any, engine),
        load_config(PretrainConfig, overrides=["data.train=nowhere"]),
        num_classes=2,
        group_images=2,
        account=TimeAccount(folder, rank=rank, life=1),
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_a_gradient_norm_that_one_rank_alone_finds_otherwise_is_judged_by_all_as_the_first_found_it(
    tmp_path: Path, rank: int
) -> None:
    found = (3.25, 1e30)  # the second rank's copy of the gradient is wrong
    update = Update(torch.tensor(1.0), found[rank], applied=False)
    steps = trainer(tmp_path, rank, update=update, other=found[1 - rank])
    result = steps.step(Batch.blank(image_size=32, samples=2), samples_seen=0, learning_rate=0.1)
    assert result.gradient_norm == 3.25 and result.loss == 1.5
    assert sorted(result.seconds) == [0.25, 0.5] and result.samples == 4


@pytest.mark.parametrize(("norm", "applied", "other"), [(3.25, True, math.inf), (math.inf, False, 3.25)])
def test_a_step_that_one_rank_refuses_and_the_other_takes_ends_both_before_they_wait_for_each_other(
    tmp_path: Path, norm: float, applied: bool, other: float
) -> None:
    update = Update(torch.tensor(1.0), norm, applied=applied)
    steps = trainer(tmp_path, 0, update=update, other=other)
    with pytest.raises(Distrusted, match=r"the ranks' gradients differ .* after 48 images, which not"):
        steps.step(Batch.blank(image_size=32, samples=2), samples_seen=48, learning_rate=0.1)
