"""What ranks make of a step together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from coatnet.config import load_config
from coatnet.model.norm import GroupBatchNorm
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.endings import Distrusted
from coatnet.runtime.ranks import Ranks
from coatnet.training.sharded_state import ShardedState
from data_pipeline.batch import BadSample, Batch
from pretrain.config import PretrainConfig
from pretrain.engine.engine import Update
from pretrain.state import digest_of_positions
from pretrain.trainer import Trainer


@dataclass(frozen=True)
class Told(Ranks):
    """Two ranks, of which the other says what it is given to say."""

    said: tuple[float, ...] = ()

    def table(self, own: torch.Tensor) -> torch.Tensor:
        other = torch.tensor(self.said, dtype=own.dtype)
        return torch.stack([own, other] if self.is_main else [other, own])

    def all_reduce_sum(self, tensor: torch.Tensor) -> None:
        tensor += self.said[0] if tensor.dim() == 0 else tensor  # a loss; else both found the same


class FakeState(ShardedState):
    """Keeps when the average moved, and has no moments."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine, self._ranks, self.applied_steps = engine, engine.ranks, 7
        self.averaged: list[int] = []

    def update_ema(self) -> None:
        self.averaged.append(self.applied_steps)


class FakeEngine:
    """Passes images through a norm and says what the update was."""

    own_seconds = 0.25

    def __init__(self, ranks: Ranks, update: Update) -> None:
        self.ranks, self._update = ranks, update
        self.drawn: list[float] = []
        self.module = GroupBatchNorm(3, group_images=2, momentum=0.1, eps=1e-3)
        self.state = FakeState(self)

    def step(self, *_: Any, **__: Any) -> Update:
        self.drawn.append(float(torch.rand(())))
        self.module(torch.ones(2, 4, 4, 3))
        return self._update

    def rehearse_alone(self, *_: Any, **__: Any) -> None:
        self.module(torch.ones(2, 4, 4, 3))
        raise RuntimeError("out of memory")


def trainer(
    folder: Path, rank: int, *, update: Update, other: float, counts: tuple[int, int, int] = (0, 0, 0)
) -> Trainer:
    """Make one of two ranks, which finds an update where the other finds a norm and has counts."""
    engine = FakeEngine(Told(rank=rank, world_size=2, said=(2.0, other, 0.5, *counts)), update)
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


@pytest.mark.parametrize("applied", [True, False])
def test_a_step_that_was_taken_moves_statistics_and_average_and_a_refused_one_leaves_nothing_behind(
    tmp_path: Path, applied: bool
) -> None:
    norm = 3.25 if applied else math.inf
    steps = trainer(tmp_path, 0, update=Update(torch.tensor(1.0), norm, applied=applied), other=norm)
    result = steps.step(Batch.blank(image_size=32, samples=2), samples_seen=0, learning_rate=0.1)
    engine = cast(Any, steps.engine)
    assert result.applied is applied and engine.state.averaged == [7] * applied
    assert (engine.module.running_mean > 0).all() == applied
    assert not engine.module.sums.any() and not engine.module.groups


def test_whether_a_loss_is_a_spike_is_judged_by_the_mean_of_all_and_a_rank_alone_may_refuse(
    tmp_path: Path,
) -> None:
    steps, asked = trainer(tmp_path, 0, update=Update(torch.tensor(1.0), 1.0, applied=True), other=1.0), []

    def veto(loss: float) -> bool:
        asked.append(loss)
        return loss > 5

    assert steps._ask_all(None, refused=False) is None
    for refused, own, answer in ((False, 10.0, True), (False, 6.0, False), (True, 6.0, True)):
        ask = steps._ask_all(veto, refused=refused)
        assert ask is not None and ask(torch.tensor(own)) is answer
    assert asked == [6.0, 4.0, 4.0]
    ask = steps._ask_all(None, refused=True)
    assert ask is not None and ask(torch.tensor(1.0)) is True


@pytest.mark.parametrize(("micro_batch", "slices"), [(2, [(0, 2), (2, 4)]), (None, [(0, 4)])])
def test_a_share_is_taken_in_micro_batches_or_whole(
    tmp_path: Path, micro_batch: int | None, slices: list[tuple[int, int]]
) -> None:
    steps = trainer(tmp_path, 0, update=Update(torch.tensor(1.0), 1.0, applied=True), other=1.0)
    steps.micro_batch = micro_batch
    parts = steps._micro_batches(Batch.blank(image_size=32, samples=4))
    assert [(part.start, part.stop) for _, part in parts] == slices


def test_what_ranks_have_counted_and_ask_for_is_told_of_all(tmp_path: Path) -> None:
    update = Update(torch.tensor(1.0), 1.0, applied=True)
    steps = trainer(tmp_path, 0, update=update, other=1.0, counts=(2, 1000, 3))
    batch = Batch.blank(image_size=32, samples=2)
    batch.bad.append(BadSample(0, "shard:0", "truncated", "shard:1"))
    result = steps.step(batch, samples_seen=0, learning_rate=0.1, wish=1)
    assert result.digest == digest_of_positions(batch.seen.numpy()) + 1000
    assert (result.wishes, result.bad, result.losses) == ([1, 2], 4, [1.0, 2.0])


@pytest.mark.parametrize(("label", "waits_as"), [("compute", "communication"), ("redone", "redone")])
def test_a_steps_time_and_its_waits_are_of_the_class_that_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str, waits_as: str
) -> None:
    counting = list[str]()
    steps = trainer(tmp_path, 0, update=Update(torch.tensor(1.0), 1.0, applied=True), other=1.0)
    for owner, name in ((FakeEngine, "step"), (Told, "table"), (FakeState, "update_ema")):
        original = getattr(owner, name)

        def noting(self: Any, *given: Any, original: Any = original, **options: Any) -> Any:
            counting.append(steps._account.counting)
            return original(self, *given, **options)

        monkeypatch.setattr(owner, name, noting)
    steps.step(Batch.blank(image_size=32, samples=2), samples_seen=0, learning_rate=0.1, label=label)
    assert counting == [label, waits_as, label]


def test_what_draws_from_torchs_generator_draws_by_the_steps_position_alone(tmp_path: Path) -> None:
    steps = trainer(tmp_path, 0, update=Update(torch.tensor(1.0), 1.0, applied=True), other=1.0)
    for position in (0, 48, 0):
        steps.step(Batch.blank(image_size=32, samples=2), samples_seen=position, learning_rate=0.1)
        torch.rand(3)
    first, other, again = cast(Any, steps.engine).drawn
    assert first == again != other


def test_a_loss_is_of_images_with_their_keys_and_weights(tmp_path: Path) -> None:
    steps = trainer(tmp_path, 0, update=Update(torch.tensor(1.0), 1.0, applied=True), other=1.0)
    told = list[Any]()
    steps.transform = cast(Any, lambda *part: (part, "targets", "keys", "weights"))
    steps._loss = cast(Any, lambda *given: told.append(given))
    model = cast(Any, lambda pixels, sample_keys: ("logits", pixels, sample_keys))
    steps._loss_of(model, cast(Any, ("batch", "slice")))
    assert told == [(("logits", ("batch", "slice"), "keys"), "targets", "weights")]


def test_a_rehearsal_that_does_not_fit_leaves_no_sums_to_the_first_step(tmp_path: Path) -> None:
    steps = trainer(tmp_path, 0, update=Update(torch.tensor(1.0), 1.0, applied=True), other=1.0)
    with pytest.raises(RuntimeError, match="out of memory"):
        steps.rehearse_alone(image_size=32, samples=2)
    module = cast(Any, steps.engine).module
    assert not module.sums.any() and not module.groups
