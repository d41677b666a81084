"""What a pretraining run does where its ranks' weights differ, and in which order it ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from coatnet.runtime.endings import Distrusted
from coatnet.training.run import TrainingRun
from pretrain.run import PretrainRun
from pretrain.state import State


@pytest.mark.parametrize(
    ("rank", "wrong", "words", "waits"),
    [
        (0, [], "the ranks' weights differ from the others' at step 7, and none has a majority; the same", 0),
        (1, [1], r"silent corruption: the weights of ranks \[1\] differ from the others' at step 7", 0),
        (2, [1], r"silent corruption: the weights of ranks \[1\] differ .*; leave that node out", 1),
    ],
    ids=["no majority", "the wrong one, which ends first", "another one"],
)
def test_a_run_ends_where_its_ranks_weights_differ_and_says_which_are_wrong(
    rank: int, wrong: list[int], words: str, waits: int
) -> None:
    events, barriers = list[dict[str, Any]](), list[None]()
    found = {"ranks": wrong, "digests": [1, 2, 1]}
    run = SimpleNamespace(
        health=SimpleNamespace(differing_weights=lambda module: found),
        engine=SimpleNamespace(module=None),
        recorder=SimpleNamespace(event=lambda kind, **fields: events.append({"kind": kind, **fields})),
        ranks=SimpleNamespace(rank=rank, barrier=lambda: barriers.append(None)),
    )
    with pytest.raises(Distrusted, match=words):
        PretrainRun._require_equal_weights(cast(Any, run), State(step=7))
    assert events == [{"kind": "silent_corruption", "step": 7, **found}] and len(barriers) == waits


@pytest.mark.parametrize(
    ("state", "order"), [(State(step=7), ["traces 7", "all else"]), (None, ["all else"])]
)
def test_traces_are_written_while_the_account_runs_and_alarms_are_kept_and_only_where_all_ranks_end_well(
    monkeypatch: pytest.MonkeyPatch, state: State | None, order: list[str]
) -> None:
    ended = list[str]()
    run = object.__new__(PretrainRun)
    run.profiler = cast(Any, SimpleNamespace(close=lambda step: ended.append(f"traces {step}")))
    monkeypatch.setattr(TrainingRun, "close", lambda run, state: ended.append("all else"))
    run.close(state)
    assert ended == order
