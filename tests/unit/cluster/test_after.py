"""`coatnet submit --after RUN`: what is submitted behind a run that waits or runs already."""

from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.after import is_chain
from cluster.cli import submit as submit_command
from cluster.job import newest_job
from coatnet.config import UserError

Cluster = Any  # of conftest.py, which nothing can be imported from
KILL = "--kill-on-invalid-dep=yes"


def submit_behind(cluster: Cluster, name: str, *, after: str, **options: Any) -> list[str]:
    """Submit one job as a user would, and return what SLURM was asked to do."""
    cluster.forget()
    submit_command(
        "x", command="evaluate", directory=cluster.folder / name, after=cluster.folder / after, **options
    )
    return cluster.heard()


def test_a_job_waits_for_the_end_of_a_run_that_was_submitted_before_it(cluster: Cluster) -> None:
    cluster.stages(a="requeue")
    cluster.submit()
    cluster.queue("10")
    assert submit_behind(cluster, "b", after="a") == [f"sbatch --dependency=afterok:10 {KILL} b"]


def test_a_job_waits_for_the_job_of_a_run_whose_submission_was_cleared_away(cluster: Cluster) -> None:
    cluster.stages(a="requeue")
    cluster.submit()
    cluster.queue("10")
    shutil.rmtree(cluster.folder / "a" / "submissions")
    assert submit_behind(cluster, "b", after="a") == [f"sbatch --dependency=afterok:10 {KILL} b"]


def test_a_job_behind_a_chain_is_held_until_the_chains_last_life_releases_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.stages(a="chain")
    cluster.submit()
    cluster.queue("10")
    monkeypatch.chdir(cluster.folder)
    cluster.forget()
    submit_command("x", command="evaluate", directory=Path("b"), after=Path("a"))
    assert cluster.heard() == ["sbatch --hold b"]
    assert cluster.behind("a") == (["11"], [])
    cluster.queue("10", "11")
    assert cluster.status("b") == ("pending", f"begins after {cluster.folder}/a")


@pytest.mark.parametrize("section", [[], ["site"], ["site", "preflight"]])
def test_a_chain_that_other_code_submitted_is_one_though_a_key_is_no_more(
    cluster: Cluster, section: list[str]
) -> None:
    cluster.stages(a="chain")
    cluster.submit()
    cluster.queue("10")
    path = cluster.folder / "a" / "submissions" / "0001" / "job.json"
    values = json.loads(path.read_text())
    functools.reduce(dict.__getitem__, section, values)["no_more"] = 3
    path.write_text(json.dumps(values))
    assert submit_behind(cluster, "b", after="a") == ["sbatch --hold b"]
    assert json.loads(path.read_text()) == values | {"dependents": ["11"]}
    cluster.queue("11")  # scancel ended the chain before it began
    cluster.submit()
    assert cluster.behind("a") == (["11"], [])


@pytest.mark.skipif(os.getuid() != 0, reason="permissions bind everybody but root, who plays somebody")
def test_a_colleagues_chain_is_one_though_its_job_file_is_closed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What SLURM lets wait for one life of a chain is ended by the next."""
    cluster.stages(a="chain", b="requeue")
    cluster.submit()
    cluster.folder.chmod(0o755)
    monkeypatch.chdir(cluster.folder)  # pytest's own folders are closed to others
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            newest_job(Path("a"))
        assert (is_chain(Path("a")), is_chain(Path("b"))) == (True, False)
    finally:
        os.seteuid(0)


def test_a_job_of_which_the_chain_cannot_be_told_does_not_stay_in_the_queue(cluster: Cluster) -> None:
    cluster.stages(a="chain")
    cluster.submit()
    cluster.queue("10")
    (cluster.folder / "a" / "submissions" / "0001" / "job.part").mkdir()  # where the file is to be written
    with pytest.raises(UserError, match=r"Is a directory; job 11, .* was cancelled"):
        submit_behind(cluster, "b", after="a")
    assert cluster.heard() == ["sbatch --hold b", "scancel 11"]


def test_jobs_behind_one_chain_and_behind_each_other_are_all_known_to_it(cluster: Cluster) -> None:
    cluster.stages(a="chain")
    cluster.submit()
    cluster.queue("10")
    submit_behind(cluster, "b", after="a", continuation="chain")
    submit_behind(cluster, "c", after="a")
    cluster.queue("10", "11", "12")
    submit_behind(cluster, "d", after="b", continuation="chain")
    cluster.queue("10", "11", "12", "13")
    assert submit_behind(cluster, "e", after="d") == ["sbatch --hold e"]
    assert cluster.behind("a") == (["11", "12"], ["13", "14"]), "a failure takes all of them along"
    assert cluster.behind("b") == (["13"], ["14"]) and cluster.behind("d") == (["14"], [])


@pytest.mark.parametrize("by_file", [False, True])
def test_the_job_file_of_a_chain_that_other_code_submitted_stays_as_that_code_reads_it(
    cluster: Cluster, by_file: bool
) -> None:
    cluster.stages(a="chain", b="a requeue")
    cluster.submit()
    path = cluster.folder / "a" / "submissions" / "0001" / "job.json"
    before = json.loads(path.read_text())
    del before["site"]["retries"]
    path.write_text(json.dumps(before))
    if by_file:
        cluster.queue("10")
        cluster.submit()  # stage b anew
    else:
        cluster.queue("10", "11")
        submit_behind(cluster, "c", after="a")
    after = json.loads(path.read_text())
    assert after.pop("dependents") == (["12"] if by_file else ["11", "12"])
    del before["dependents"]
    assert after == before


def test_a_chain_that_ends_while_a_job_is_queued_behind_it_has_seen_nobody(cluster: Cluster) -> None:
    cluster.stages(a="chain")
    cluster.submit()
    cluster.queue("10")
    cluster.program("sbatch", f"touch {cluster.folder}/a/done; echo 11")
    assert submit_behind(cluster, "b", after="a") == ["sbatch --hold b", "scontrol release 11"]


def test_a_chain_that_is_submitted_anew_still_knows_the_job_behind_it(cluster: Cluster) -> None:
    cluster.stages(a="chain", b="a requeue")
    cluster.submit()
    cluster.queue("10", "11")
    submit_behind(cluster, "c", after="a")
    assert cluster.behind("a") == (["11", "12"], [])
    cluster.queue("10", "11", "12")
    cluster.submit()  # goes on with what is queued
    assert cluster.behind("a") == (["11", "12"], [])
    cluster.queue("11", "12")  # scancel ended the chain before it began
    cluster.submit()
    assert cluster.behind("a") == (["11", "12"], [])


def test_a_job_behind_a_run_that_is_done_waits_for_nothing(cluster: Cluster) -> None:
    cluster.stages(a="chain")
    cluster.submit()
    cluster.end("a")
    assert submit_behind(cluster, "b", after="a") == ["sbatch b"]


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_job_behind_a_run_of_which_nothing_will_come_would_wait_for_ever(
    cluster: Cluster, dry_run: bool
) -> None:
    cluster.stages(a="requeue", cancelled="requeue", held="chain")
    cluster.submit()
    cluster.queue("11", "12")  # which SLURM is about to end
    for marker in ("cancelled", "held"):
        cluster.end(marker, marker)
    (cluster.folder / "empty").mkdir()
    for name, words in (
        ("a", "it is not done, and no job of it waits or runs"),
        ("cancelled", "it is cancelled; submit it with --release first"),
        ("held", "it is held; submit it with --release first"),
        ("empty", "holds no run that was submitted"),
        ("nowhere", "no such folder"),
    ):
        with pytest.raises(UserError, match=f"--after .*/{name}: {words}"):
            submit_behind(cluster, "b", after=name, dry_run=dry_run)
        assert not (cluster.folder / "b").exists(), "nothing was queued"


def test_a_preview_where_no_slurm_is_looks_at_the_directory_alone(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.stages(a="requeue")
    cluster.submit()
    cluster.forget()
    monkeypatch.setenv("PATH", "")
    options = {"command": "evaluate", "directory": cluster.folder / "b", "dry_run": True}
    submit_command("x", after=cluster.folder / "a", **options)
    with pytest.raises(UserError, match="no such folder"):
        submit_command("x", after=cluster.folder / "nowhere", **options)


def test_a_job_that_slurm_lets_wait_for_a_run_says_for_which(cluster: Cluster) -> None:
    cluster.stages(a="requeue", b="a requeue")
    cluster.submit()
    script = f"{cluster.folder}/a/submissions/0001/script.sh"

    def told(waits_for: str) -> tuple[str, str]:
        cluster.program(
            "squeue",
            f"echo '10|10|N/A|RUNNING|None|N/A|(null)|{script}'\n"
            f"echo '11|11|N/A|PENDING|Dependency|N/A|{waits_for}|'",
        )
        return cluster.status("b")

    assert told("afterok:10(unfulfilled)") == ("pending", f"begins after {cluster.folder}/a")
    assert told("afterok:10,afterok:9(unfulfilled)") == ("pending", f"begins after {cluster.folder}/a, job 9")
    assert told("singleton(unfulfilled)") == ("pending", "Dependency")


def test_what_has_a_job_itself_is_refused_as_ever(cluster: Cluster) -> None:
    cluster.stages(a="requeue")
    cluster.submit()
    cluster.queue("10")
    with pytest.raises(UserError, match="a has job 10 already"):
        submit_behind(cluster, "a", after="a")
    with pytest.raises(UserError, match="is a pipeline: its stages give --after themselves"):
        submit_command(str(cluster.path), after=cluster.folder / "a")


def test_only_what_begins_with_a_model_that_is_yet_to_come_needs_no_plan(cluster: Cluster) -> None:
    cluster.stages(a="requeue")
    cluster.submit()
    cluster.queue("10")
    config = cluster.folder / "config.yaml"
    config.write_text("data: {train: [{path: nowhere}]}\n")

    def fine_tune(init: str) -> None:
        words = [f"init={cluster.folder / init}", f"run.directory={cluster.folder / init}-tuned"]
        submit_command(str(config), words, command="finetune", gpus_per_node=1, set_=["hardware=h100"])

    fine_tune("a")
    assert (cluster.folder / "a-tuned" / "submissions").exists(), "its plan cannot be made yet"
    (cluster.folder / "empty").mkdir()
    (cluster.folder / "a" / "checkpoints" / "step-00000001").mkdir(parents=True)
    (cluster.folder / "a" / "checkpoints" / "step-00000001" / "manifest.json").write_text("{}")
    for init in ("a", "empty"):
        with pytest.raises(UserError, match=rf"{cluster.folder}/{init}"):
            fine_tune(init)
