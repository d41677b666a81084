"""Which gradients outlive the backward pass that would write over them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pretrain.engine.lifetimes import keep_until_reduced


@pytest.fixture
def optimizer() -> Any:
    """DeepSpeed's of stages 1 and 2, which keeps to itself who reads a gradient."""
    return SimpleNamespace(overlap_comm=True, _record_gradient_stream=lambda gradient, stream: None)


def reduce(optimizer: Any) -> list[str]:
    """Return which streams a gradient's allocator hears of when one is about to reduce it."""
    told: list[str] = []
    optimizer._record_gradient_stream(SimpleNamespace(record_stream=told.append), "beside")
    return told


def test_on_a_gpu_a_gradient_is_kept_for_the_stream_that_reduces_it(
    optimizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    keep_until_reduced(optimizer)
    assert reduce(optimizer) == ["beside"]


@pytest.mark.parametrize(("has_gpu", "overlap"), [(False, True), (True, False)])
def test_where_no_stream_runs_beside_the_backward_pass_nothing_is_told(
    optimizer: Any, monkeypatch: pytest.MonkeyPatch, has_gpu: bool, overlap: bool
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    optimizer.overlap_comm = overlap
    keep_until_reduced(optimizer)
    assert reduce(optimizer) == []


def test_an_optimizer_that_knows_no_streams_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    other = SimpleNamespace(overlap_comm=True)
    keep_until_reduced(other)
    assert vars(other) == {"overlap_comm": True}
