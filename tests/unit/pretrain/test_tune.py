"""The dry run before any data, and the largest micro-batch that fits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from coatnet.config import UserError
from coatnet.runtime.ranks import Ranks
from pretrain.tune import largest_micro_batch, rehearse


def trainer_that_fits(most: int) -> Any:
    """A trainer whose rehearsal runs out of memory above `most` samples, as torch does."""

    def take(*, image_size: int, samples: int) -> None:
        tried.append(samples)
        assert trainer.micro_batch is None, "the step would be cut"
        if samples > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    tried: list[int] = []
    trainer = SimpleNamespace(
        engine=SimpleNamespace(ranks=Ranks()),
        rehearse=take,
        rehearse_alone=take,
        tried=tried,
        micro_batch=None,
    )
    return trainer


@pytest.mark.parametrize(
    ("most", "share", "group", "found"), [(16, 48, 4, 16), (1000, 48, 4, 48), (7, 48, 4, 4), (20, 60, 6, 12)]
)
def test_the_largest_divisor_in_whole_groups_that_fits_is_taken(
    most: int, share: int, group: int, found: int
) -> None:
    trainer = trainer_that_fits(most)
    trainer.micro_batch = 4  # of the config
    assert largest_micro_batch(trainer, image_size=32, shares=[share], group_images=group) == found
    assert all(share % tried == 0 and tried % group == 0 for tried in trainer.tried)


@pytest.mark.parametrize(
    ("most", "shares", "found"),
    [
        (47, [48, 40], 8),
        (48, [48, 40], 48),
        (1000, [12, 48], 48),
        (39, [12, 40], 20),
        (19, [12, 40], 4),
        (1000, [40, 8], 40),
    ],
)
def test_a_micro_batch_cuts_the_share_of_every_global_batch_of_the_run_evenly(
    most: int, shares: list[int], found: int
) -> None:
    """One smaller than it is taken whole."""
    trainer = trainer_that_fits(most)
    assert largest_micro_batch(trainer, image_size=32, shares=shares, group_images=4) == found


def test_a_group_that_does_not_fit_is_an_error_that_says_what_to_change() -> None:
    with pytest.raises(
        UserError, match=r"micro_batch=4 .* give a smaller norm\.group_images, activation check"
    ):
        largest_micro_batch(trainer_that_fits(2), image_size=32, shares=[48], group_images=4)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory",
        "Triton Error [CUDA]: out of memory",
    ],
)
def test_what_a_gpus_libraries_say_of_no_memory_is_understood(said: str) -> None:
    """torch has a class of error for its own allocator's alone."""

    def take(**_: int) -> None:
        raise RuntimeError(said)

    trainer: Any = SimpleNamespace(engine=SimpleNamespace(ranks=Ranks()), rehearse=take, rehearse_alone=take)
    with pytest.raises(UserError, match=r"out of memory on rank 0 .*train\.micro_batch=8"):
        rehearse(trainer, image_size=32, samples=8)
    with pytest.raises(UserError, match=r"out of memory on rank 0 .*train\.micro_batch=4"):
        largest_micro_batch(trainer, image_size=32, shares=[8], group_images=4)


def test_a_dry_run_out_of_memory_names_the_micro_batch_and_the_remedies() -> None:
    with pytest.raises(UserError, match=r"train\.micro_batch=64 at 224 px.*tune\.micro_batch=auto"):
        rehearse(trainer_that_fits(32), image_size=224, samples=64)
