"""Jobs that SLURM took and no history names, since who submitted them was killed or heard nothing."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import slurm, snapshot
from cluster.cancel import cancel_run
from cluster.run_jobs import jobs_of_run, users_of
from cluster.site import SiteConfig
from cluster.status import find_runs, read_status
from cluster.submission import Prepared, Request, prepare, submit
from coatnet.config import UserError
from coatnet.runtime.run_directory import RunDirectory

Program = Callable[[str, str], None]


@pytest.fixture
def prepared(tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """A run that could be submitted, to a SLURM whose sbatch the test still has to say."""
    program("scontrol", "echo PartitionName=gpu Default=YES MaxTime=UNLIMITED State=UP TotalNodes=16")
    program("squeue", "")
    monkeypatch.setattr(snapshot, "PACKAGES", ("cluster",))  # copied in milliseconds
    return prepare(Request("shard", "photos", ("shards",), SiteConfig(), directory=tmp_path / "run"))


def knows(program: Program, script: Path, *, state: str = "PENDING") -> None:
    """Let SLURM know job 9 of a script."""
    program("squeue", f"echo '9|9|N/A|{state}|None|N/A|(null)|{script}'")


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [
        "echo 'sbatch: error: Batch job submission failed: Socket timed out' >&2; exit 1",
        "echo welcome",
    ],
)
def test_a_job_that_slurm_may_have_taken_is_neither_forgotten_nor_submitted_twice(
    prepared: Prepared, program: Program, answer: str
) -> None:
    run = RunDirectory(prepared.job.directory)
    run.path.mkdir()
    run.mark("cancelled")
    program("sbatch", answer)
    with pytest.raises(UserError, match="whether SLURM took the job is not known: look at coatnet status"):
        submit(prepared, release=True)
    assert (prepared.folder / "job.json").exists() and run.marker("cancelled") is None, "it may begin"
    assert find_runs([run.path.parent]) == [run.path]
    assert read_status(run.path, queue={}).state == "lost"
    knows(program, prepared.folder / "script.sh")
    again = prepare(Request("shard", "photos", ("shards",), SiteConfig(), directory=run.path))
    with pytest.raises(UserError, match="has job 9 already"):
        submit(again)
    assert read_status(run.path, queue=slurm.queue()).state == "pending"
    program("scancel", "true")
    assert cancel_run(run.path) == ["9"]


def test_a_refused_job_leaves_nothing(prepared: Prepared, program: Program) -> None:
    program(
        "sbatch", "echo 'sbatch: error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    )
    with pytest.raises(UserError, match="Unable to contact"):
        submit(prepared)
    assert find_runs([prepared.folder.parents[2]]) == []


def test_a_run_is_locked_until_sbatch_has_ended_though_its_submission_is_killed(
    prepared: Prepared, program: Program, tmp_path: Path
) -> None:
    program("sbatch", f"kill -9 $PPID; until [ -e {tmp_path}/go ]; do sleep 0.02; done")
    killed = os.fork()
    if not killed:
        submit(prepared)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(killed, 0)[1]) == 9
    with pytest.raises(UserError, match="another submission is under way"):
        submit(prepared)
    with (tmp_path / "run" / ".submitting").open() as lock:
        (tmp_path / "go").touch()
        fcntl.flock(lock, fcntl.LOCK_EX)  # as soon as sbatch has ended


def test_a_script_is_of_the_run_it_lies_in_by_whatever_name(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    for path in (run, other):
        (path / "submissions" / "0001").mkdir(parents=True)
    (tmp_path / "link").symlink_to(run)
    scripts = ["run/submissions/0001/script.sh", "other/submissions/0001/script.sh", "run/0001/script.sh"]
    queue = {
        str(number): slurm.QueuedJob(str(number), "PENDING", script=str(tmp_path / script))
        for number, script in enumerate(scripts)
    }
    assert jobs_of_run(tmp_path / "link", queue) == jobs_of_run(run, queue) == [queue["0"]]
    assert jobs_of_run(other, queue) == [queue["1"]]


def test_a_job_that_sbatch_refused_is_not_the_runs_although_slurm_keeps_it(tmp_path: Path) -> None:
    """SLURM 22.05 does so where no node has so many cores; it has the path of the script that came after."""
    script = str(tmp_path / "submissions" / "0001" / "script.sh")
    Path(script).parent.mkdir(parents=True)
    refused = slurm.QueuedJob("8", "FAILED", reason="BadConstraints", script=script)
    ended = slurm.QueuedJob("9", "FAILED", reason="NonZeroExitCode", script=script)
    assert jobs_of_run(tmp_path, {"9": ended, "8": refused}) == [ended]


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_the_jobs_of_everybody_who_submitted_a_run_are_looked_at(
    prepared: Prepared, program: Program
) -> None:
    folder = prepared.folder.parent / "0001"
    folder.mkdir(parents=True)
    os.chown(folder, 70000, -1)
    run = Path(prepared.job.directory)
    assert users_of([run, run.parent / "nowhere"]) == {0, 70000}
    program("squeue", f"case $* in *70000*) echo '9|9|N/A|PENDING|None|N/A|(null)|{folder}/script.sh';; esac")
    again = prepare(Request("shard", "photos", ("shards",), SiteConfig(), directory=run))
    with pytest.raises(UserError, match="has job 9 already"):
        submit(again)
