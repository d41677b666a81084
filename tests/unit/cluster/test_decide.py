"""Every ending of the ranks has one action, and a cancelled job is never revived."""

from __future__ import annotations

import itertools

import pytest

from cluster.decide import Action, Ending, decide


def ending(**changes: object) -> Ending:
    values: dict[str, object] = {
        "status": 0,
        "node": "n1",
        "message": "",
        "done": False,
        "stopped": False,
        "cancelled": False,
    }
    values |= {"state": "RUNNING", "warned": False, "user_error": False, "retries_left": 2}
    return Ending(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"done": True}, Action.FINISH),
        ({"done": True, "status": 1}, Action.FINISH),
        ({"stopped": True, "warned": True}, Action.CONTINUE),
        ({"stopped": True}, Action.CONTINUE),  # preemption with grace tells the ranks alone
        ({"stopped": True, "state": "COMPLETING"}, Action.LEAVE),
        ({"status": 143, "state": "CANCELLED"}, Action.LEAVE),
        ({"status": 1, "state": None}, Action.LEAVE),
        ({"status": 1}, Action.RETRY),
        ({"status": 1, "retries_left": 1}, Action.RETRY),  # the last one
        ({"status": 1, "retries_left": 0}, Action.FAIL),
        ({"status": 2, "user_error": True}, Action.FAIL),
        ({"status": 1, "warned": True}, Action.CONTINUE),
        ({}, Action.RETRY),  # ended well, but says neither done nor stopped
        ({"cancelled": True, "stopped": True}, Action.LEAVE),
    ],
)
def test_an_ending_leads_to_its_action(given: dict[str, object], expected: Action) -> None:
    assert decide(ending(**given))[0] is expected


def test_a_job_that_slurm_is_ending_is_never_continued_or_tried_again() -> None:
    flags = [False, True]
    states = ["COMPLETING", "CANCELLED", "PREEMPTED", "NODE_FAIL", "TIMEOUT", "PENDING", None]
    for state, stopped, warned, user_error in itertools.product(states, flags, flags, flags):
        for status in (0, 1, 2, 143):
            found = ending(state=state, stopped=stopped, warned=warned, user_error=user_error, status=status)
            assert decide(found)[0] is Action.LEAVE


def test_a_failure_names_the_node_and_the_status() -> None:
    given = ending(status=7, node="fake2", message="RuntimeError: no")
    assert decide(given)[1] == "a rank on fake2 ended with status 7: RuntimeError: no"
    assert decide(ending(status=1, node=""))[1] == "srun ended with status 1"


@pytest.mark.parametrize(
    ("message", "reason"),
    [("train.steps is 'x'", "train.steps is 'x'"), ("", "the config or its data are wrong (status 2)")],
)
def test_a_users_mistake_is_told_in_the_ranks_words_or_in_ours(message: str, reason: str) -> None:
    assert decide(ending(status=2, user_error=True, message=message))[1] == reason
