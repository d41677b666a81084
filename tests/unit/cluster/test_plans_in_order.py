"""Plans of many layouts against each other: no number is absurd, and what grows with a choice never falls."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.planning.estimate import ALL_STAGES, make_plan
from cluster.planning.hardware import Hardware, load_hardware
from cluster.planning.plan import Plan
from cluster.planning.recipe_view import RecipeView, view
from cluster.recipe import read_recipe
from coatnet.config import to_dict

_BATCH, _EPOCH = 4096, 1_281_167
_PRECISIONS = ("fp32", "autocast", "bf16")


@functools.cache
def recipe(size: int) -> RecipeView:
    shipped = Path(__file__).parents[3] / "configs" / "pretrain" / "imagenet_1k_coatnet_0.yaml"
    config = read_recipe("pretrain", shipped, overrides=[f"model.name=coatnet_{size}"])
    known = view(to_dict(config), origin="", epoch_samples=_EPOCH)
    return replace(known, global_batch=_BATCH, group_images=1, mixed=False)


@functools.cache
def hardware() -> Hardware:
    return load_hardware("h100")


def plan(size: int, *, nodes: int = 2, micro_batch: int = 16, **layout: Any) -> Plan:
    one = replace(recipe(size), micro_batch=micro_batch).laid_out(**layout)
    return make_plan(one, hardware=hardware(), nodes=nodes)


def numbers(node: Any) -> Iterator[float]:
    if isinstance(node, dict | list | tuple):
        for value in node.values() if isinstance(node, dict) else node:
            yield from numbers(value)
    elif isinstance(node, int | float):
        yield node


@pytest.mark.parametrize(("size", "stage"), itertools.product((0, 7), range(4)))
def test_every_number_is_finite_and_no_run_is_quicker_than_its_device(size: int, stage: int) -> None:
    for nodes, precision, micro_batch in itertools.product((1, 32), _PRECISIONS, (1, 16)):
        found = plan(size, nodes=nodes, micro_batch=micro_batch, zero_stage=stage, precision=precision)
        assert all(math.isfinite(value) and value >= 0 for value in numbers(found.to_dict()))
        assert 0 < found.mfu < 1 and found.memory.total > found.memory.process > 0
        assert found.days is not None and found.total_samples is not None
        assert found.days * 86400 > found.total_samples / found.images_per_second


@pytest.mark.parametrize(("precision", "stage"), itertools.product(_PRECISIONS, range(4)))
def test_memory_grows_with_the_micro_batch_and_the_model_and_falls_with_what_is_shared_or_recomputed(
    precision: str, stage: int
) -> None:
    given = {"precision": precision, "zero_stage": stage}
    grown = [plan(0, micro_batch=size, **given).memory.total for size in (1, 4, 16, 64)]
    grown += [plan(size, micro_batch=64, **given).memory.total for size in (3, 5, 7)]
    assert sorted(grown) == grown and len({*grown}) == len(grown)
    shared = [plan(7, nodes=nodes, **given).memory.total for nodes in (1, 4, 16)]
    assert sorted(shared, reverse=True) == shared
    kept, computed_again = plan(7, **given), plan(7, checkpointing=ALL_STAGES, **given)
    assert computed_again.memory.total < kept.memory.total
    assert computed_again.step_seconds >= kept.step_seconds


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_device_that_computes_more_quickly_never_makes_a_step_longer(stage: int) -> None:
    """Where the host calls more slowly, what goes beside the backward pass has all that time."""
    for micro_batch in (1, 16):
        given = {"micro_batch": micro_batch, "zero_stage": stage, "overlap": True}
        slow, quick = (plan(7, precision=precision, **given) for precision in ("fp32", "autocast"))
        assert quick.step_seconds <= slow.step_seconds * (1 + 1e-9)
