"""What SLURM would only refuse later, or would start twice, is refused at once."""

from __future__ import annotations

import fcntl
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.history import History
from cluster.job import read_job
from cluster.site import SiteConfig
from cluster.status import find_runs
from cluster.submission import Request, prepare, submit
from coatnet.config import UserError
from coatnet.runtime.run_directory import RunDirectory

_PARTITIONS = """\
PartitionName=gpu Default=YES MaxNodes=UNLIMITED MaxTime=1-00:00:00 State=UP TotalNodes=16
PartitionName=small Default=NO MaxNodes=2 MaxTime=UNLIMITED State=UP TotalNodes=16
PartitionName=old Default=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED State=DOWN TotalNodes=16
"""
SITE = SiteConfig(nodes=4, gpus_per_node=8, time="12:00:00")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put SLURM's commands, as shell scripts, first into the path."""
    folder = tmp_path / "programs"
    folder.mkdir()
    write_program(folder / "scontrol", f"cat <<'END'\n{_PARTITIONS}END")
    write_program(folder / "squeue", """echo '{"jobs": []}'""")
    write_program(folder / "sbatch", "echo 7")
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def request(folder: Path, site: SiteConfig) -> Request:
    config = folder / "config.yaml"
    config.write_text("model: {name: coatnet_0}\ndata: {train: [{path: nowhere}]}\n")
    return Request("pretrain", str(config), (), site, directory=folder / "run")


def try_to_submit(folder: Path, **site: object) -> str:
    return submit(prepare(request(folder, replace(SITE, **site))), snapshot=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ({"time": "2-00:00:00"}, r"longer than partition gpu allows \(1440 minutes\)"),
        ({"nodes": 17}, "17 nodes are more than partition gpu gives, 16"),
        ({"nodes": 16, "spares": 1}, "17 nodes with 1 spare are more"),
        ({"partition": "small"}, "4 nodes are more than partition small gives, 2"),
        ({"partition": "old"}, "partition old is DOWN"),
        ({"partition": "gpus"}, "partition gpus does not exist; there are: gpu, small, old"),
        ({"partition": "old,small"}, "partition old is DOWN; 4 nodes are more than partition small"),
        ({"secrets_file": "/nowhere/secrets"}, "no such file"),
    ],
)
def test_what_would_wait_for_ever_is_refused(
    programs: Path, tmp_path: Path, site: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        try_to_submit(tmp_path, **site)
    assert not (tmp_path / "run" / "submissions").exists()


def test_of_several_partitions_one_that_fits_suffices(programs: Path, tmp_path: Path) -> None:
    assert try_to_submit(tmp_path, partition="small,gpu") == "7"


def test_a_submission_leaves_everything_that_the_job_needs(programs: Path, tmp_path: Path) -> None:
    assert try_to_submit(tmp_path, hardware="h100") == "7"
    folder = tmp_path / "run" / "submissions" / "0001"
    assert (tmp_path / "run" / "logs").is_dir(), "without it SLURM fails the job and leaves no log"
    assert read_job(folder / "job.json").command[0] == "pretrain" and (folder / "config.yaml").exists()
    assert (folder / "script.sh").read_text().startswith("#!/bin/bash\n#SBATCH")
    assert (tmp_path / "run" / "plan.json").exists()
    assert History(tmp_path / "run").job_ids() == ["7"]


def test_two_submissions_at_once_queue_one_job(programs: Path, tmp_path: Path) -> None:
    prepared = prepare(request(tmp_path, SITE))
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".submitting").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another submission is under way"):
            submit(prepared, snapshot=False)
    twin = prepare(request(tmp_path, SITE))
    assert submit(prepared, snapshot=False) == "7"
    with pytest.raises(UserError, match="was submitted by another just now"):
        submit(twin, snapshot=False)


def test_what_slurm_refuses_is_told_in_its_own_words(programs: Path, tmp_path: Path) -> None:
    write_program(programs / "sbatch", "echo 'sbatch: error: Invalid account' >&2; exit 1")
    with pytest.raises(UserError, match="sbatch: Invalid account; give one that is yours by --account"):
        try_to_submit(tmp_path)
    assert find_runs([tmp_path]) == [], "what was refused is no run"
    write_program(programs / "sbatch", "echo 7")
    assert try_to_submit(tmp_path) == "7" and find_runs([tmp_path]) == [tmp_path / "run"]


@pytest.mark.parametrize("marker", ["held", "cancelled"])
def test_a_held_or_cancelled_run_needs_a_word(programs: Path, tmp_path: Path, marker: str) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.mark(marker, reason="three lives")
    with pytest.raises(UserError, match=f"is {marker} \\(three lives\\); submit with --release"):
        try_to_submit(tmp_path)
    prepared = prepare(request(tmp_path, SITE))
    assert submit(prepared, snapshot=False, release=True) == "7" and run.marker(marker) is None


def test_a_batch_that_does_not_divide_is_refused_before_the_queue(programs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose other numbers"):
        try_to_submit(tmp_path, nodes=3, hardware="h100")


def test_every_local_corpus_of_a_config_is_looked_for_on_the_nodes(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {name: coatnet_0}\n"
        "data:\n  train: [{path: /a}, {path: 's3://bucket/b'}, {path: /a}]\n  evaluate: /c\n"
    )
    request = Request("pretrain", str(config), (), SITE, directory=tmp_path / "run")
    assert prepare(request).job.shards == ["/a", "/c"]


def test_tasks_of_an_array_do_not_train_in_one_run_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--array 3: tasks of an array would train in one run directory"):
        prepare(replace(request(tmp_path, SITE), array=3))
