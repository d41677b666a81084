"""Whether a process is one of several ranks, by what whoever started it left in the environment."""

from __future__ import annotations

import pytest

from coatnet.runtime.rendezvous import already_launched

TASK = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
# as salloc leaves it of a job of eight tasks, where LaunchParameters has use_interactive_step
INTERACTIVE = {**TASK, "SLURM_STEP_ID": "4294967290", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}


@pytest.mark.parametrize(
    ("environment", "is_rank"),
    [
        ({}, False),
        ({"RANK": "0"}, True),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, False),  # a batch script
        (TASK, False),  # `srun --pty bash`
        (INTERACTIVE, False),
        ({**TASK, "MASTER_ADDR": "n1"}, True),  # of a submitted run
        ({**TASK, "SLURM_NTASKS": "2"}, True),
        ({**TASK, "SLURM_STEP_NUM_TASKS": "2"}, True),
    ],
)
def test_a_shell_in_an_allocation_is_no_rank(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], is_rank: bool
) -> None:
    for name in ("RANK", "MASTER_ADDR", "SLURM_STEP_NUM_TASKS", *TASK):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert already_launched() is is_rank
