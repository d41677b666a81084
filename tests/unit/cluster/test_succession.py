"""What SLURM is asked for when a job ends; its commands are scripts here that write down what they hear."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.history import History
from cluster.job import Job, write_job
from cluster.site import SiteConfig
from cluster.succession import EXIT_UNFINISHED, Succession

Heard = Callable[[], list[str]]


@pytest.fixture
def heard(tmp_path: Path, program: Callable[[str, str], None]) -> Heard:
    """Return what SLURM's commands have heard so far. Job 6 was cancelled, every other one runs."""
    log = tmp_path / "heard"
    answers = {
        "sbatch": "echo 8",
        "scancel": "",
        "scontrol": 'case "$4" in 6) echo JobState=CANCELLED;; *) echo JobState=RUNNING;; esac',
    }
    for name, answer in answers.items():
        program(name, f'echo "{name} $*" >> {log}\n{answer}')
    return lambda: log.read_text().splitlines() if log.exists() else []


def succession(
    folder: Path, mode: str, *, job_id: str = "7", dependents: list[str] | None = None
) -> Succession:
    site = SiteConfig(continuation=mode, exclude="bad1")
    job = Job("run", str(folder), ["pretrain", "c.yaml"], site=site, dependents=dependents or [])
    return Succession(job, job_file=folder / "job.json", job_id=job_id, history=History(folder))


def test_a_chained_job_queues_a_successor_that_starts_only_after_its_failure(
    tmp_path: Path, heard: Heard
) -> None:
    history = History(tmp_path)
    life = history.begin(job_id="6", nodes=["n3"], step=-1)
    history.end(life, outcome="excluded", reason="", tries=0, excluded={"n3": "slow"})
    succession(tmp_path, "chain").prepare()
    options = "--dependency=afternotok:7 --kill-on-invalid-dep=yes --exclude=bad1,n3"
    assert heard() == [f"sbatch --parsable {options} {tmp_path / 'script.sh'}"]
    assert history.job_ids() == ["6", "8"]


def test_what_succeeds_a_task_of_an_array_is_that_task_alone(tmp_path: Path, heard: Heard) -> None:
    job = Job("run", str(tmp_path), ["shard", "x-{task}"], site=SiteConfig(continuation="chain"), array=3)
    task = Succession(
        job, job_file=tmp_path / "job.json", job_id="9", history=History(tmp_path), task=2, known_as="9_2"
    )
    task.prepare()
    assert "--dependency=afternotok:9_2 --kill-on-invalid-dep=yes --array=2 " in heard()[0]


@pytest.mark.parametrize("mode", ["requeue", "none"])
def test_no_other_mode_queues_a_successor(tmp_path: Path, heard: Heard, mode: str) -> None:
    succession(tmp_path, mode).prepare()
    assert heard() == [] and History(tmp_path).events() == []


def test_a_requeued_run_keeps_off_all_nodes_that_were_ever_excluded(tmp_path: Path, heard: Heard) -> None:
    history = History(tmp_path)
    life = history.begin(job_id="7", nodes=["n1", "n2"], step=-1)
    history.end(life, outcome="excluded", reason="", tries=0, excluded={"n1": "no"})
    assert succession(tmp_path, "requeue").go_on(excluded={"n2": "no", "n1": "again"}) == 0
    assert heard() == ["scontrol requeue 7", "scontrol update jobid=7 ExcNodeList=bad1,n1,n2"]


def test_a_chained_run_goes_on_by_a_status_that_starts_its_successor(tmp_path: Path, heard: Heard) -> None:
    chain = succession(tmp_path, "chain")
    chain.prepare()
    assert chain.go_on(excluded={}) == EXIT_UNFINISHED != 0
    assert len(heard()) == 1, "nothing was excluded since the successor was queued"
    assert chain.go_on(excluded={"n2": "no"}) == EXIT_UNFINISHED
    assert heard()[1:] == ["scontrol update jobid=8 ExcNodeList=bad1,n2"]


def test_a_run_that_may_not_go_on_starts_nothing_that_comes_after_it(tmp_path: Path, heard: Heard) -> None:
    assert succession(tmp_path, "none").go_on(excluded={"n2": "no"}) == EXIT_UNFINISHED != 0
    assert heard() == []


def test_a_finished_run_releases_what_waits_for_it_and_a_failed_one_cancels_it(
    tmp_path: Path, heard: Heard
) -> None:
    chain = succession(tmp_path, "chain", dependents=["20", "21"])
    chain.prepare()
    chain.finished()
    assert heard()[1:] == ["scontrol release 20", "scontrol release 21"]
    chain.failed()
    assert heard()[3:] == ["scancel 8", "scancel 20", "scancel 21"]


def test_what_is_queued_behind_a_run_after_it_began_is_released_or_cancelled_as_well(
    tmp_path: Path, heard: Heard
) -> None:
    began = succession(tmp_path, "chain", dependents=["20"])
    filed = Job("run", str(tmp_path), ["pretrain"], dependents=["20", "22"], later=["23"])
    write_job(filed, tmp_path / "job.json")
    began.finished()
    assert heard() == ["scontrol release 20", "scontrol release 22"]
    began.failed()
    assert heard()[2:] == ["scancel 20", "scancel 22", "scancel 23"]


@pytest.mark.parametrize(
    ("mode", "last_life", "outcome", "successor", "expected"),
    [
        ("chain", "6", "ended", "7", "cancelled"),
        ("chain", "5", "ended", "7", ""),  # it still runs, as far as SLURM knows
        ("chain", "5", "failed", "7", "failed"),
        ("chain", "6", "ended", "9", ""),  # submitted anew, no successor
        ("chain", "5", "failed", "9", ""),
        ("chain", "7", "ended", "7", ""),  # a life of its own was the last
        ("chain", "", "", "7", ""),
        ("requeue", "6", "ended", "7", ""),
    ],
)
def test_a_successor_sees_that_the_job_before_it_was_cancelled_or_failed(
    tmp_path: Path, heard: Heard, mode: str, last_life: str, outcome: str, successor: str, expected: str
) -> None:
    history = History(tmp_path)
    if last_life:
        life = history.begin(job_id=last_life, nodes=["n1"], step=-1)
        history.end(life, outcome=outcome, reason="", tries=1, excluded={})
    history.note("submitted", job_id="7", lives=0)
    history.note("successor", job_id=successor)
    assert succession(tmp_path, mode).end_before() == expected


@pytest.mark.slow
def test_a_failed_run_asks_again_to_end_its_successor_while_the_controller_is_away(
    tmp_path: Path, heard: Heard, program: Callable[[str, str], None]
) -> None:
    chain = succession(tmp_path, "chain")
    chain.prepare()
    away = "scancel: error: Kill job error on job id 8: Unable to contact slurm controller (connect failure)"
    asked = f'echo "scancel $*" >> {tmp_path}/heard; mkdir {tmp_path}/asked 2>/dev/null || exit 0'
    program("scancel", f'{asked}; echo "{away}" >&2; exit 8')
    chain.failed()
    assert heard()[1:] == ["scancel 8", "scancel 8"]
