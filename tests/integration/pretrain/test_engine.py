"""ZeRO 0 to 3 against each other, against DDP and against one process; checkpoints across all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bits import assert_same_tensors, newest

from coatnet.checkpoint.fragments import KINDS

OnRanks = Callable[..., list[Any]]
STAGES = (0, 1, 2, 3)
pytestmark = pytest.mark.slow


def assert_close(found: list[float], expected: list[float]) -> None:
    worst = max(abs(one - other) / abs(other) for one, other in zip(found, expected, strict=True))
    assert worst <= 1e-5, f"{worst:.2e} relative"


@pytest.fixture(scope="module")
def one_process(on_ranks: OnRanks) -> list[float]:
    """Twenty losses of one process on the whole batch."""
    return on_ranks("engine_losses", world_size=1, stage=0, steps=20, accumulation=1)[0]


@pytest.fixture(scope="module")
def tightly_clipped(on_ranks: OnRanks) -> list[float]:
    """Six losses of DDP that clips nearly every gradient."""
    return on_ranks("ddp_losses", world_size=2, steps=6, clip=0.05)[0]


@pytest.fixture(scope="module")
def in_fp32(on_ranks: OnRanks) -> list[float]:
    """Six losses at ZeRO-1."""
    return on_ranks("engine_losses", world_size=2, stage=1, steps=6, accumulation=2)[0]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ddp_agrees_with_one_process_over_twenty_steps(
    on_ranks: OnRanks, one_process: list[float], world_size: int
) -> None:
    assert_close(on_ranks("ddp_losses", world_size=world_size, steps=20)[0], one_process)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world_size", [2, 4])
def test_every_stage_agrees_with_one_process_over_twenty_steps(
    on_ranks: OnRanks, one_process: list[float], world_size: int, stage: int
) -> None:
    found = on_ranks("engine_losses", world_size=world_size, stage=stage, steps=20, accumulation=2)[0]
    assert_close(found, one_process)


@pytest.mark.parametrize("stage", STAGES)
def test_tight_clipping_means_the_same_at_every_stage(
    on_ranks: OnRanks, tightly_clipped: list[float], stage: int
) -> None:
    found = on_ranks("engine_losses", world_size=2, stage=stage, steps=6, accumulation=1, clip=0.05)[0]
    assert_close(found, tightly_clipped)


@pytest.mark.parametrize(
    ("stage", "precision"),
    [(0, "autocast"), (3, "autocast"), (0, "bf16"), (1, "bf16"), (2, "bf16"), (3, "bf16")],
)
def test_bf16_follows_fp32_closely(
    on_ranks: OnRanks, in_fp32: list[float], stage: int, precision: str
) -> None:
    found = on_ranks(
        "engine_losses", world_size=2, stage=stage, steps=6, accumulation=2, precision=precision
    )[0]
    assert found == pytest.approx(in_fp32, rel=0.02) and found != in_fp32


@pytest.mark.parametrize("stage", [1, 3])
def test_deepspeed_does_not_switch_autocast_off_on_a_gpu(
    on_ranks: OnRanks, in_fp32: list[float], stage: int
) -> None:
    options = {"stage": stage, "steps": 3, "accumulation": 2, "precision": "autocast"}
    found = on_ranks("engine_losses_as_on_a_gpu", world_size=2, **options)[0]
    assert found == on_ranks("engine_losses", world_size=2, **options)[0]
    assert found == pytest.approx(in_fp32[:3], rel=0.02) and found != in_fp32[:3]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "torch.float32"), ("bf16", "torch.bfloat16")])
def test_stage_three_never_holds_more_than_one_whole_module(
    on_ranks: OnRanks, precision: str, dtype: str
) -> None:
    for answer in on_ranks("sharded_build", world_size=2, precision=precision):
        assert answer["held"] == answer["largest"] and answer["equal"] is True
        assert answer["dtypes"] == [dtype]


@pytest.mark.parametrize(("stage", "precision"), [(1, "fp32"), (2, "fp32"), (1, "bf16"), (2, "bf16")])
def test_weights_become_flat_without_the_whole_model_being_held_twice(
    on_ranks: OnRanks, stage: int, precision: str
) -> None:
    found = on_ranks("flattened_build", world_size=1, stage=stage, precision=precision)[0]
    assert found < 0.5, "1.0 by concatenation"


# Four writers; together their readers are all twelve pairs of {1, 2, 4} ranks and stages 0 to 3.
GRID = {
    (1, 0): [(1, 0), (2, 2), (4, 3)],
    (2, 1): [(2, 1), (1, 3), (4, 0)],
    (2, 3): [(2, 3), (1, 1), (4, 2)],
    (4, 1): [(4, 1), (1, 2), (2, 0)],
}


@pytest.mark.parametrize("writer", GRID)
def test_a_checkpoint_opens_at_any_world_size_and_stage(
    on_ranks: OnRanks, tmp_path: Path, writer: tuple[int, int]
) -> None:
    first = tmp_path / "first"
    world_size, stage = writer
    continued = on_ranks("save_after_training", world_size=world_size, folder=str(first), stage=stage)[0]
    for reader in GRID[writer]:
        again = tmp_path / f"again-{reader[0]}-{reader[1]}"
        options = {"folder": str(first), "stage": reader[1], "again": str(again)}
        found = on_ranks("go_on", world_size=reader[0], **options)[0]
        assert_same(first, again)
        assert_close(found, continued)
        if reader == writer:
            assert found == continued


# bf16 weights: each stage is another class of DeepSpeed's, or ours; the checkpoints are the same.
@pytest.mark.parametrize("writer", [(2, 0), (4, 1)])
def test_a_checkpoint_of_bf16_weights_opens_at_any_world_size_and_stage(
    on_ranks: OnRanks, tmp_path: Path, writer: tuple[int, int]
) -> None:
    first, half = tmp_path / "first", {"precision": "bf16"}
    options = {"folder": str(first), "stage": writer[1], **half}
    continued = on_ranks("save_after_training", world_size=writer[0], **options)[0]
    for reader in (writer, (1, 0), (2, 1), (4, 2), (2, 3)):
        again = tmp_path / f"again-{reader[0]}-{reader[1]}"
        options = {"folder": str(first), "stage": reader[1], "again": str(again), **half}
        found = on_ranks("go_on", world_size=reader[0], **options)[0]
        assert_same(first, again)
        assert found == pytest.approx(continued, rel=2e-3)
        if reader == writer:
            assert found == continued


@pytest.mark.parametrize(
    "factors", [(float("nan"), 1.0), (1.0, 1e22)], ids=["not a number", "its square overflows fp32"]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_one_rank_spoils_refuses_the_step_on_all_and_leaves_no_trace(
    on_ranks: OnRanks, stage: int, precision: str, factors: tuple[float, float]
) -> None:
    options = {"stage": stage, "precision": precision, "image_factor": factors[0], "loss_factor": factors[1]}
    for answer in on_ranks("refused_step", world_size=2, **options):
        assert answer["applied"] is False and answer["norm"] == "inf"
        assert answer["unchanged"] is True and answer["applied_steps"] == 4, "two before and two after it"
        assert all(loss == loss for loss in answer["after"])


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 2e-2)])
def test_the_average_is_the_same_at_every_stage_and_gives_back_weights_that_a_rate_of_zero_leaves(
    on_ranks: OnRanks, precision: str, tolerance: float
) -> None:
    answers = {
        stage: on_ranks("averages", world_size=2, stage=stage, precision=precision) for stage in STAGES
    }
    expected = answers[0][0]
    for ranks in answers.values():
        for answer in ranks:
            assert answer["unchanged"] is True and answer["stayed"] is True
            assert answer["applied_steps"] == 6
            assert answer["plain"] == pytest.approx(expected["plain"], rel=tolerance)
            assert answer["averaged"] == pytest.approx(expected["averaged"], rel=tolerance)
            assert answer["averaged"] != answer["plain"]
            assert answer["nothing_kept"], "of the weights that were evaluated before"
            assert answer["told_update"] == pytest.approx(answer["update"], rel=1e-2)  # but for its decay


def assert_same(first: Path, second: Path) -> None:
    assert all(newest(first).names(kind) for kind in KINDS)
    assert_same_tensors(newest(first), newest(second))
