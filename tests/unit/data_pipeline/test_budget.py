"""How many bad samples are too many, and which one is named."""

from __future__ import annotations

import pytest

from coatnet.config import UserError
from data_pipeline.batch import BadSample
from data_pipeline.budget import BadSampleBudget


def bad(number: int) -> BadSample:
    return BadSample(number, f"sample-{number}", "gone")


def test_the_first_bad_sample_is_named_though_a_later_one_is_too_many() -> None:
    budget = BadSampleBudget(0.01, expected=200)
    budget.count(read=10, bad=[bad(3)])
    budget.count(read=10, bad=[])
    budget.count(read=10, bad=[bad(25)])
    with pytest.raises(UserError, match=r"3 bad samples among 40 read, .*; the first: sample-3: gone"):
        budget.count(read=10, bad=[bad(31)])


def test_who_accepts_no_bad_sample_is_stopped_by_the_first() -> None:
    budget = BadSampleBudget(0.0, expected=1000)
    budget.count(read=500, bad=[])
    with pytest.raises(UserError, match="1 bad samples among 1000 read"):
        budget.count(read=500, bad=[bad(700)])
