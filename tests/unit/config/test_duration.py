"""Durations in epochs, steps and images become whole steps of samples; wall-clock ones do not."""

from __future__ import annotations

import pytest

from coatnet.config import Duration


@pytest.mark.parametrize(
    ("text", "samples"),
    [("2 epochs", 2048), ("10 steps", 640), ("1_000 images", 1024), ("1.5 epochs", 1536), ("1 step", 64)],
)
def test_a_duration_becomes_whole_steps_of_samples(text: str, samples: int) -> None:
    assert Duration.parse(text).in_samples(epoch_samples=1024, global_batch=64) == samples


def test_a_time_has_no_length_in_samples() -> None:
    duration = Duration.parse("30 minutes")
    assert duration.is_time and duration.value == 1800
    with pytest.raises(ValueError, match="no length in samples"):
        duration.in_samples(epoch_samples=1, global_batch=1)


@pytest.mark.parametrize("text", ["", "ten epochs", "10", "10 parsecs", "-3 steps", "1e3 steps"])
def test_what_is_no_duration_is_named_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="90 epochs"):
        Duration.parse(text)
