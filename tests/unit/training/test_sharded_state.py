"""What a run's checkpoints hold: each element of the state once, and all that the next step depends on."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coatnet.checkpoint.format import CheckpointError
from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.reader import Checkpoint
from coatnet.checkpoint.store import CheckpointStore
from coatnet.runtime.ranks import Ranks
from coatnet.training.ema import Ema
from coatnet.training.optimizer import ClippedAdamW, MasterAdamW
from coatnet.training.sharded_state import ShardedState

MOMENTS = {"exp_avg", "exp_avg_sq"}


def make_engine(*, seed: int, bf16: bool = False) -> Any:
    """A model with a frozen weight, running statistics and sums under way, and its optimizer."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    module.register_buffer("sums", torch.rand(3), persistent=False)
    module[0].weight.requires_grad = False
    module[1].running_mean.normal_()
    module[1].num_batches_tracked.fill_(seed)
    learning = [one for one in module.parameters() if one.requires_grad]
    optimizer = (MasterAdamW if bf16 else ClippedAdamW)([{"params": learning}], clip=0.0, lr=0.1)
    if isinstance(optimizer, MasterAdamW):
        optimizer.halve()
    return SimpleNamespace(module=module, optimizer=optimizer)


def take_step(engine: Any, state: ShardedState, *, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for one in engine.module.parameters():
        if one.requires_grad:
            one.grad = torch.randn(one.shape, generator=generator)
    engine.optimizer.step()
    engine.module[1].running_var.mul_(1.5)
    state.applied_steps = step
    state.update_ema()


def begin(
    *, seed: int, bf16: bool = False, steps: int = 0, ema: float | None = 0.9, ranks: Ranks | None = None
) -> tuple[Any, ShardedState]:
    engine = make_engine(seed=seed, bf16=bf16)
    state = ShardedState(engine, stage=0, ranks=ranks or Ranks(), ema_decay=ema)
    for step in range(1, steps + 1):
        take_step(engine, state, step=step)
    return engine, state


def whole(fragments: list[Fragment]) -> dict[tuple[str, str], Tensor]:
    """Put fragments together, and see that they cover each tensor once."""
    pieces: dict[tuple[str, str], list[Fragment]] = defaultdict(list)
    for one in fragments:
        pieces[one.kind, one.name].append(one)
    tensors = {}
    for key, parts in pieces.items():
        parts.sort(key=lambda one: one.start)
        ends = [one.start + len(one.data) for one in parts]
        assert [one.start for one in parts] == [0, *ends[:-1]], key
        tensors[key] = torch.cat([one.data for one in parts]).clone().view(parts[0].shape)
    return tensors


def assert_equal(found: dict[Any, Tensor], expected: dict[Any, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), key


def saved(folder: Path, fragments: list[Fragment]) -> Checkpoint:
    store = CheckpointStore(folder, ranks=Ranks())
    store.save(step=1, samples_seen=8, fragments=fragments, facts={}, wait=True)
    return Checkpoint(store.path(1))


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("world_size", [2, 3, 20])
def test_the_pieces_of_all_ranks_are_the_state_however_many_there_are(world_size: int, bf16: bool) -> None:
    _, alone = begin(seed=1, bf16=bf16, steps=2)
    expected = whole([*alone.fragments()])
    names = {"0.bias", "1.weight", "1.bias", "2.weight", "2.bias"}
    statistics = {f"1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert {name for kind, name in expected if kind == "weight"} == {*names, "0.weight"}
    assert {(kind, name) for kind, name in expected if kind in MOMENTS} == {
        (kind, name) for kind in MOMENTS for name in names
    }
    assert {name for kind, name in expected if kind == "buffer"} == statistics
    fragments: list[Fragment] = []
    for rank in range(world_size):  # at stage 0 each of them steps on everything
        _, own = begin(seed=1, bf16=bf16, steps=2, ranks=Ranks(rank, world_size))
        fragments += own.fragments()
        assert all(len(piece.weight) for piece in own.pieces)
        elements = sum(len(piece.weight) for piece in own.pieces)
        assert elements in (17 // world_size, 17 // world_size + 1), "of all that learns"
    assert_equal(whole(fragments), expected)


@pytest.mark.parametrize("bf16", [False, True])
def test_what_was_loaded_goes_on_as_what_was_saved(tmp_path: Path, bf16: bool) -> None:
    first, state = begin(seed=1, bf16=bf16, steps=3)
    checkpoint = saved(tmp_path, [*state.fragments()])
    second, again = begin(seed=2, bf16=bf16, steps=1)
    sums = second.module.sums.clone()
    again.load(checkpoint, applied_steps=3)
    assert_equal(whole([*again.fragments()]), whole([*state.fragments()]))
    assert_equal(dict(second.module.state_dict()), dict(first.module.state_dict()))
    assert torch.equal(second.module.sums, sums)
    for engine, own in ((first, state), (second, again)):
        take_step(engine, own, step=4)
    assert_equal(whole([*again.fragments()]), whole([*state.fragments()]))


def test_to_load_a_state_each_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tensors there are: of a thousand ranks each opening is work for one server."""
    _, state = begin(seed=1, steps=2)
    checkpoint, opened, open_file = saved(tmp_path, [*state.fragments()]), [], Path.open

    def noting(path: Path, *given: Any, **options: Any) -> Any:
        opened.append(open_file(path, *given, **options))
        return opened[-1]

    monkeypatch.setattr(Path, "open", noting)
    state.load(checkpoint, applied_steps=2)
    assert len(opened) == 1 and opened[0].closed


def learning_and_statistics(state: ShardedState) -> dict[str, Tensor]:
    tensors = whole([*state.fragments()])
    averaged = {name for kind, name in tensors if kind == "ema"}
    return {
        name: tensor
        for (kind, name), tensor in tensors.items()
        if kind in ("weight", "buffer") and name in averaged
    }


def test_the_average_follows_the_weights_and_the_statistics() -> None:
    engine, state = begin(seed=1)
    reference = Ema(0.9, learning_and_statistics(state))
    for step in (1, 2, 3):
        take_step(engine, state, step=step)
        reference.update(learning_and_statistics(state), step=step)
    found = {name: tensor for (kind, name), tensor in whole([*state.fragments()]).items() if kind == "ema"}
    assert_equal(found, reference.tensors)


def test_an_average_that_is_asked_for_later_begins_at_the_weights(tmp_path: Path) -> None:
    _, without = begin(seed=1, steps=3, ema=None)
    checkpoint = saved(tmp_path, [*without.fragments()])
    _, state = begin(seed=2, steps=1)
    state.load(checkpoint, applied_steps=3)
    found = whole([*state.fragments()])
    averages = {name: tensor for (kind, name), tensor in found.items() if kind == "ema"}
    assert averages.keys() == {
        "0.bias",
        "1.weight",
        "1.bias",
        "2.weight",
        "2.bias",
        "1.running_mean",
        "1.running_var",
    }
    for name, average in averages.items():
        assert torch.equal(average, found["buffer" if "running" in name else "weight", name])


def test_statistics_that_a_checkpoint_does_not_hold_stay_and_weights_that_it_does_not_hold_are_refused(
    tmp_path: Path,
) -> None:
    _, first = begin(seed=1, steps=1)
    fragments = [*first.fragments()]
    checkpoint = saved(tmp_path / "a", [one for one in fragments if "running" not in one.name])
    engine, state = begin(seed=2, steps=1)
    before = engine.module[1].running_var.clone()
    state.load(checkpoint, applied_steps=1)
    assert torch.equal(engine.module[1].running_var, before)
    assert state.ema is not None and torch.equal(state.ema.tensors["1.running_var"], before)
    for kind, name in (("weight", "0.weight"), ("exp_avg", "2.bias"), ("ema", "2.bias")):
        left = [one for one in fragments if (one.kind, one.name) != (kind, name)]
        with pytest.raises(CheckpointError, match=f"holds no {kind} {name}"):
            state.load(saved(tmp_path / f"{kind} {name}", left), applied_steps=1)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_average_is_in_the_weights_place_inside_the_block_alone(bf16: bool) -> None:
    engine, state = begin(seed=1, bf16=bf16, steps=3)
    before = {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}
    average = {name: tensor for (kind, name), tensor in whole([*state.fragments()]).items() if kind == "ema"}
    with state.averaged_weights():
        inside = {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}
    assert_equal(inside, {name: average.get(name, old).to(old.dtype) for name, old in before.items()})
    assert any(not torch.equal(inside[name], old) for name, old in before.items())
    assert_equal(dict(engine.module.state_dict()), before)
    other, without = begin(seed=1, bf16=bf16, steps=3, ema=None)
    with without.averaged_weights():
        assert_equal(dict(other.module.state_dict()), before)
