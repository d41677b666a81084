"""Weights that become flat one by one, in the places where DeepSpeed concatenates them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from pretrain.engine.flattening import move, moving_weights, stay


def concatenate(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([one.reshape(-1) for one in tensors])


def some_weights() -> list[Tensor]:
    return [torch.arange(6.0).view(2, 3).bfloat16(), torch.tensor(7.0).bfloat16(), torch.ones(4).bfloat16()]


def assert_views(tensors: list[Tensor], flat: Tensor) -> None:
    flat.mul_(2)
    for one, before in zip(tensors, some_weights(), strict=True):
        assert one.shape == before.shape and torch.equal(one, before * 2)


def test_what_was_moved_is_a_view_of_the_flat_tensor() -> None:
    weights = some_weights()
    flat = move(weights)
    assert flat.dtype == torch.bfloat16 and torch.equal(flat, concatenate(some_weights()))
    assert_views(weights, flat)


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[ModuleType]:
    """The two modules of DeepSpeed's that flatten; loading the true ones takes seconds."""
    names = ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.zero")
    packages = {name: ModuleType(name) for name in names}
    made = []
    for name in ("deepspeed.runtime.bf16_optimizer", "deepspeed.runtime.zero.stage_1_and_2"):
        module = ModuleType(name)
        module.__dict__["_flatten_dense_tensors"] = concatenate
        parent, _, leaf = name.rpartition(".")
        setattr(packages[parent], leaf, module)
        made.append(module)
    for name, module in packages.items():
        monkeypatch.setitem(sys.modules, name, module)
    return made


def test_weights_move_while_an_engine_is_built_and_gradients_stay_where_they_are(
    places: list[ModuleType],
) -> None:
    with moving_weights():
        kept = [place._flatten_dense_tensors for place in places]
        for flatten in kept:
            weights = some_weights()
            assert_views(weights, flatten(weights))
    for flatten in (*kept, *(place._flatten_dense_tensors for place in places)):
        gradients = some_weights()
        flatten(gradients).mul_(2)
        for one, before in zip(gradients, some_weights(), strict=True):
            assert torch.equal(one, before)


def test_an_engine_that_cannot_be_built_leaves_flattening_as_it_was(places: list[ModuleType]) -> None:
    with pytest.raises(RuntimeError), moving_weights():
        raise RuntimeError
    assert [place._flatten_dense_tensors for place in places] == [concatenate, concatenate]


def test_only_an_optimizer_that_points_weights_at_the_flat_tensor_is_spared_it() -> None:
    pointed: list[int] = []
    pointing, other = SimpleNamespace(_update_model_bit16_weights=pointed.append), SimpleNamespace()
    stay(pointing)
    pointing._update_model_bit16_weights(1)
    stay(other)
    assert pointed == [] and vars(other) == {}
