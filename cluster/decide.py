"""What to do when srun has ended: a pure function from what is known to one action and its reason.

A cancelled job must stay cancelled, so the job's own state decides before anything else does: whatever is not
RUNNING is being ended by SLURM, which requeues preempted jobs and lost nodes by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

RUNNING = "RUNNING"


class Action(Enum):
    """What the supervisor can do."""

    FINISH = "finish"  # the command is done: exit 0
    LEAVE = "leave"  # SLURM or the user is ending the job: touch nothing
    CONTINUE = "continue"  # go on in another life, by the continuation mode
    RETRY = "retry"  # start the ranks again in place
    FAIL = "fail"  # exit with the status


@dataclass(frozen=True)
class Ending:
    """What is known after srun ended.

    Args:
        status: srun's exit status, or that of the first rank that failed: the others' are signals.
        node: where that rank was, if srun said so.
        message: the last words of its log, or srun's own.
        done: the run says that it is finished.
        stopped: the run says that *this* attempt saved and stopped because it was told to.
        cancelled: the user cancelled the run by its marker.
        state: the job's state as the controller has it, None if it no longer knows the job.
        warned: SLURM announced the time limit, or the user asked for a stop.
        user_error: a rank ended with the status of a mistake in the config; trying again cannot help.
        retries_left: starts in place that remain in this life.
    """

    status: int
    node: str
    message: str
    done: bool
    stopped: bool
    cancelled: bool
    state: str | None
    warned: bool
    user_error: bool
    retries_left: int


def decide(ending: Ending) -> tuple[Action, str]:
    """Return the action and a reason for the run's history."""
    if ending.done:
        return Action.FINISH, "done"
    if ending.cancelled:
        return Action.LEAVE, "cancelled by the user"
    if ending.state != RUNNING:
        return Action.LEAVE, f"SLURM ended the job ({ending.state or 'unknown to it'})"
    if ending.stopped and ending.status == 0:
        return Action.CONTINUE, "saved and stopped as asked"
    if ending.user_error:
        return Action.FAIL, ending.message or "the config or its data are wrong (status 2)"
    if ending.warned:
        return Action.CONTINUE, f"asked to stop, ended with status {ending.status}"
    reason = "ended without being done or stopped"
    if ending.status:
        who = f"a rank on {ending.node}" if ending.node else "srun"
        reason = f"{who} ended with status {ending.status}"
        reason += f": {ending.message}" if ending.message else ""
    if ending.retries_left > 0:
        return Action.RETRY, reason
    return Action.FAIL, reason
