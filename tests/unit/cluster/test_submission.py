"""What SLURM would only refuse later, or would start twice, is refused at once."""

from __future__ import annotations

import fcntl
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import snapshot
from cluster.cli import submit as submit_command
from cluster.history import History
from cluster.job import MARKERS, STATUS, read_job
from cluster.site import ContainerConfig, SiteConfig
from cluster.status import find_runs
from cluster.submission import Prepared, Request, directory_note, prepare, preview, submit
from coatnet.config import UserError, to_yaml
from coatnet.runtime.lease import Lease
from coatnet.runtime.run_directory import RunDirectory

_PARTITIONS = """\
PartitionName=gpu Default=YES MaxNodes=UNLIMITED MaxTime=1-00:00:00 State=UP TotalNodes=16
PartitionName=small Default=NO MaxNodes=2 MaxTime=UNLIMITED State=UP TotalNodes=16
PartitionName=old Default=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED State=DOWN TotalNodes=16
PartitionName=empty Default=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED State=UP TotalNodes=0
"""
Program = Callable[[str, str], None]
SITE = SiteConfig(nodes=4, gpus_per_node=8, time="12:00:00")


@pytest.fixture
def programs(program: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Put SLURM's commands, as shell scripts, first into the path, and return what makes them anew."""
    program("scontrol", f"cat <<'END'\n{_PARTITIONS}END")
    program("squeue", "")
    program("sbatch", "echo 7")
    monkeypatch.setattr(snapshot, "PACKAGES", ("coatnet.doctor",))  # copied in milliseconds
    return program


def request(folder: Path, site: SiteConfig) -> Request:
    config = folder / "config.yaml"
    config.write_text("model: {name: coatnet_0}\ndata: {train: [{path: nowhere}]}\n")
    return Request("pretrain", str(config), (), site, directory=folder / "run")


def try_to_submit(folder: Path, **site: object) -> str:
    return submit(prepare(request(folder, replace(SITE, **site))))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ({"time": "2-00:00:00"}, r"longer than partition gpu allows \(1,440 minutes\)"),
        ({"nodes": 17}, "17 nodes are more than partition gpu gives, 16"),
        ({"nodes": 16, "spares": 1}, "17 nodes with 1 spare are more"),
        ({"nodes": 1, "partition": "empty"}, "1 node is more than partition empty gives, 0"),
        ({"partition": "small"}, "4 nodes are more than partition small gives, 2"),
        ({"partition": "old"}, "partition old is DOWN"),
        ({"partition": "gpus"}, "partition gpus does not exist; there are: gpu, small, old"),
        ({"partition": "old,small"}, "partition old is DOWN; 4 nodes are more than partition small"),
        ({"secrets_file": "/nowhere/secrets"}, "no such file"),
        ({"account": "my account"}, "account is 'my account'; allowed: letters"),
        ({"sbatch": ["--mail-user=a b"]}, "sbatch is '--mail-user=a b'; allowed"),
    ],
)
def test_what_would_wait_for_ever_or_cannot_be_written_is_refused(
    programs: Program, tmp_path: Path, site: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        try_to_submit(tmp_path, **site)
    assert not (tmp_path / "run" / "submissions").exists()


def test_a_job_that_cannot_be_recorded_is_taken_back(programs: Program, tmp_path: Path) -> None:
    cancelled = tmp_path / "cancelled"
    programs("sbatch", f"rm {tmp_path}/run/lives.jsonl; mkdir {tmp_path}/run/lives.jsonl; echo 7")
    programs("scancel", f"echo $1 > {cancelled}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lives.jsonl").touch()
    with pytest.raises(UserError, match="Is a directory; job 7, which could not be recorded, was cancelled"):
        try_to_submit(tmp_path)
    assert cancelled.read_text() == "7\n" and not (tmp_path / "run/submissions/0001").exists()


def test_a_folder_that_cannot_be_made_is_told_by_its_run(programs: Program, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "submissions").touch()
    with pytest.raises(UserError, match="run: Not a directory; mend that, then submit again"):
        try_to_submit(tmp_path)


def test_of_several_partitions_one_that_fits_suffices(programs: Program, tmp_path: Path) -> None:
    assert try_to_submit(tmp_path, partition="small,gpu") == "7"


def test_a_submission_leaves_everything_that_the_job_needs(programs: Program, tmp_path: Path) -> None:
    (tmp_path / "run" / "submissions" / "0001.old").mkdir(parents=True)
    assert try_to_submit(tmp_path, hardware="h100", gpus_per_node=4) == "7"
    folder = tmp_path / "run" / "submissions" / "0001"
    assert (tmp_path / "run" / "logs").is_dir(), "without it SLURM fails the job and leaves no log"
    assert read_job(folder / "job.json").command[0] == "pretrain" and (folder / "config.yaml").exists()
    assert (folder / "script.sh").read_text().startswith("#!/bin/bash\n#SBATCH")
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["world_size"] == 16
    assert History(tmp_path / "run").job_ids() == ["7"]


def test_fine_tuning_of_a_model_that_is_yet_to_come_is_submitted_without_a_plan(
    programs: Program, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"init: {tmp_path}/first\nhead: {{keep_rows: none}}\ndata: {{train: [{{path: nowhere}}]}}\n"
    )
    site = replace(SITE, hardware="h100")
    assert submit(prepare(Request("finetune", str(config), (), site, directory=tmp_path / "run"))) == "7"
    assert not (tmp_path / "run" / "plan.json").exists()


def test_the_script_that_is_shown_is_the_one_that_is_submitted(programs: Program, tmp_path: Path) -> None:
    prepared = prepare(request(tmp_path, SITE))
    shown = preview(prepared)
    assert not (tmp_path / "run").exists() and "export PYTHONPATH=" in shown
    submit(prepared)
    assert (prepared.folder / "script.sh").read_text() == shown


def test_a_job_that_begins_before_its_submission_is_noted_is_awaited_no_more(
    programs: Program, tmp_path: Path
) -> None:
    begin = json.dumps({"event": "begin", "time": 1, "life": 1, "job_id": "7", "nodes": ["n1"], "step": -1})
    programs("sbatch", f"echo '{begin}' >> {tmp_path}/run/lives.jsonl; echo 7")
    try_to_submit(tmp_path)
    history = History(tmp_path / "run")
    assert not history.awaits_a_life() and history.lives_without_progress(step=-1) == 1


def test_what_srun_would_refuse_is_refused_before_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="srun is '--cpu-bind cores'"):
        prepare(request(tmp_path, replace(SITE, srun=["--cpu-bind cores"])))
    with pytest.raises(UserError, match="srun: --output is set by coatnet itself"):
        prepare(request(tmp_path, replace(SITE, srun=["--output=x"])))
    there = tmp_path / "my work"
    there.mkdir()
    monkeypatch.chdir(there)
    prepare(request(tmp_path, SITE))  # relative paths may begin anywhere
    inside = replace(SITE, container=ContainerConfig("apptainer", "/i.sif"))
    with pytest.raises(UserError, match=r"working directory is '.*my work'"):
        prepare(request(tmp_path, inside))


def test_two_submissions_at_once_queue_one_job(programs: Program, tmp_path: Path) -> None:
    prepared = prepare(request(tmp_path, SITE))
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".submitting").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another submission is under way"):
            submit(prepared)
    twin = prepare(request(tmp_path, SITE))
    assert submit(prepared) == "7"
    with pytest.raises(UserError, match="was submitted by another just now"):
        submit(twin)


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("Invalid account", "give one that is yours by --account"),
        ("Job violates accounting/QOS policy", "so many jobs, or one so large or long, are not allowed"),
        ("QOSMaxSubmitJobPerUserLimit", "so many jobs, or one so large or long, are not allowed"),
        ("CPU count per node can not be satisfied", "no node is like that: .* --set cpus_per_task=N"),
        ("Requested node configuration is not available", "no node is like that: .* or exclude fewer"),
        ("Invalid feature specification", "no node has these; sinfo -o %f shows those that there are"),
        ("Invalid node name specified", "there is none of that name; sinfo -N shows them"),
        ("Invalid --mem specification", "write it as 200G"),
        ("No partition specified or system default partition", "give one by --partition"),
    ],
)
def test_what_slurm_refuses_is_told_in_its_own_words_with_a_remedy(
    programs: Program, tmp_path: Path, words: str, remedy: str
) -> None:
    programs("sbatch", f"echo 'sbatch: error: {words}' >&2; exit 1")
    with pytest.raises(UserError, match=f"sbatch: {words}; {remedy}"):
        try_to_submit(tmp_path)
    assert find_runs([tmp_path]) == [], "what was refused is no run"
    programs("sbatch", "echo 7")
    assert try_to_submit(tmp_path) == "7" and find_runs([tmp_path]) == [tmp_path / "run"]


@pytest.mark.parametrize("marker", ["held", "cancelled"])
def test_a_held_or_cancelled_run_needs_a_word(programs: Program, tmp_path: Path, marker: str) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.mark(marker, reason="three lives")
    with pytest.raises(UserError, match=f"is {marker} \\(three lives\\); submit with --release"):
        try_to_submit(tmp_path)
    prepared = prepare(request(tmp_path, SITE))
    assert submit(prepared, release=True) == "7" and run.marker(marker) is None


def test_a_batch_that_does_not_divide_is_refused_before_the_queue(programs: Program, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="allowed with 24 ranks: multiples of 24"):
        try_to_submit(tmp_path, nodes=3, hardware="h100")


def test_every_local_corpus_of_a_config_is_looked_for_on_the_nodes(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {name: coatnet_0}\n"
        "data:\n  train: [{path: /a}, {path: 's3://bucket/b'}, {path: /a}]\n  evaluate: /c\n"
    )
    request = Request("pretrain", str(config), (), SITE, directory=tmp_path / "run")
    assert prepare(request).job.shards == ["/a", "/c"]


def test_a_trainings_job_is_told_by_markers_and_begins_with_its_own_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepared = prepare(request(tmp_path, SITE))
    job, run = prepared.job, tmp_path / "run"
    config = run / "submissions" / "0001" / "config.yaml"
    assert job.command == ["pretrain", str(config), f"run.directory={run}"]
    assert (job.name, job.directory, job.protocol) == ("run", str(run), MARKERS)
    assert (job.working_directory, job.site) == (str(tmp_path), SITE)
    assert job.python == sys.executable and Path(job.program).name == "coatnet"
    assert str(config.with_name("job.json")) in prepared.script


@pytest.mark.parametrize(("command", "gpus"), [("shard", 0), ("evaluate", 8)])
def test_another_command_is_one_task_that_is_told_by_its_status(
    tmp_path: Path, command: str, gpus: int
) -> None:
    asked = Request(command, "photos", ("shards",), replace(SITE, spares=2), directory=tmp_path / "run")
    job = prepare(asked).job
    assert (job.command, job.protocol) == ([command, "photos", "shards"], STATUS)
    site = job.site
    assert (site.nodes, site.spares, site.ranks_per_node, site.gpus_per_node) == (1, 0, 1, gpus)
    assert not site.preflight.enabled


def test_a_command_that_there_is_not_is_refused_before_the_queue(tmp_path: Path) -> None:
    asked = Request("pretrian", "config.yaml", (), SITE, directory=tmp_path / "run")
    with pytest.raises(UserError, match=r"command is 'pretrian'; allowed: .*, evaluate, .*, pretrain, .*"):
        prepare(asked)


def test_a_training_without_a_run_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.directory must be given to submit"):
        prepare(replace(request(tmp_path, SITE), directory=None, arguments=("run.directory=.",)))


def without_a_directory(folder: Path, *words: str) -> Request:
    """Return a request of which only the config, or nobody, says where the run goes."""
    return replace(request(folder, SITE), directory=None, arguments=words)


def test_the_run_directory_that_nobody_gave_is_told_before_anything_is_queued(
    programs: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    programs("sbatch", "[ -s told ] || exit 1; echo 7")
    asked = without_a_directory(tmp_path)
    told = tmp_path / "told"
    monkeypatch.setattr("sys.stderr", told.open("w", buffering=1))
    for dry_run in (True, False):
        told.write_text("")
        submit_command(asked.target, gpus_per_node=8, dry_run=dry_run)
        words = "note: run.directory is not given; the config's own is runs/pretrain\n"
        assert words in told.read_text()
    assert "job 7 submitted" in capsys.readouterr().out


def test_a_run_in_a_directory_that_nobody_gave_goes_on_and_says_so(
    programs: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunDirectory("runs/pretrain")
    prepared = prepare(without_a_directory(tmp_path))
    assert directory_note(prepared).endswith("the config's own is runs/pretrain")
    run.create(to_yaml(prepared.config), digest=prepared.config.run_digest())
    (run.checkpoints / "step-00000045").mkdir()
    (run.checkpoints / "step-00000045" / "manifest.json").touch()
    assert directory_note(prepared).endswith("runs/pretrain, where a run goes on from step 45")
    assert submit(prepared) == "7"
    assert not directory_note(prepare(without_a_directory(tmp_path, "run.directory=runs/pretrain")))
    assert not directory_note(prepare(request(tmp_path, SITE)))


def test_what_pretraining_would_refuse_in_a_directory_is_refused_before_the_queue(
    programs: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunDirectory("runs/pretrain")
    earlier = prepare(without_a_directory(tmp_path, "seed=1")).config
    run.create(to_yaml(earlier), digest=earlier.run_digest())
    (run.checkpoints / "step-00000045").mkdir()
    other = prepare(without_a_directory(tmp_path))
    for attempt in (preview, submit):
        with pytest.raises(UserError, match=r"holds a run with another config, .* seed \(there 1\)"):
            attempt(other)
    assert not (run.path / "submissions").exists()
    same = prepare(without_a_directory(tmp_path, "seed=1", "train.micro_batch=8"))
    lease = Lease.acquire(run.path)
    try:
        with pytest.raises(UserError, match="held by process"):
            submit(same)
    finally:
        lease.release()
    run.mark("done")
    for attempt in (preview, submit):
        with pytest.raises(UserError, match=r"is done; choose another run\.directory"):
            attempt(same)


def test_other_images_than_a_run_began_with_are_refused_before_the_queue_where_they_can_be_read(
    programs: Program, tmp_path: Path
) -> None:
    for name in ("first", "other"):
        (tmp_path / name / "class").mkdir(parents=True)
        (tmp_path / name / "class" / f"{name}.jpg").touch()
    (tmp_path / "moved").symlink_to(tmp_path / "first")

    def prepared(place: str) -> Prepared:
        asked = request(tmp_path, SITE)
        return prepare(replace(asked, arguments=(f"data.train={place}", f"data.evaluate={tmp_path}/other")))

    began = prepared(f"{tmp_path}/first").config
    run = RunDirectory(tmp_path / "run")
    run.create(to_yaml(began), digest=began.run_digest())
    run.settle_corpora({"data.train": began.data.digests_here()["data.train"]})
    preview(prepared(f"{tmp_path}/other"))  # nothing was trained on yet
    run.metrics.write_text("{}")
    for attempt in (preview, submit):
        with pytest.raises(UserError, match=r"^data\.train: holds other images than .*run began with"):
            attempt(prepared(f"{tmp_path}/other"))
    for place in (f"{tmp_path}/moved", f"{tmp_path}/nowhere", "s3://bucket/shards"):
        preview(prepared(place))  # the same ones, or such as only the nodes can judge
    assert submit(prepared(f"{tmp_path}/first")) == "7"


def test_several_seeds_are_refused_before_the_queue_since_one_job_trains_one_run(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {name: coatnet_0}\nhead: {keep_rows: none}\ndata: {train: [{path: nowhere}]}\nseeds: [1, 2]\n"
    )
    remedy = rf"submit one for each, as seeds=\[\] seed=1 run.directory={tmp_path}/run/seed-1$"
    with pytest.raises(UserError, match=f"seeds: several runs in one job; {remedy}"):
        preview(prepare(Request("finetune", str(config), (), SITE, directory=tmp_path / "run")))


def test_the_code_goes_with_the_job_and_the_submission_into_the_history(
    programs: Program, tmp_path: Path
) -> None:
    submit(prepare(request(tmp_path, SITE)))
    folder = tmp_path / "run" / "submissions"
    job = read_job(folder / "0001" / "job.json")
    assert Path(job.code).parent == folder and (Path(job.code) / "doctor" / "checks.py").exists()
    (event,) = History(tmp_path / "run").events()
    told = (event["event"], event["job_id"], event["folder"], event["lives"])
    assert told == ("submitted", "7", "0001", 0)


@pytest.mark.parametrize(("array", "told"), [(0, "7"), (5, "5")])
def test_a_run_whose_job_is_queued_is_not_submitted_again(
    programs: Program, tmp_path: Path, array: int, told: str
) -> None:
    try_to_submit(tmp_path)
    programs("squeue", f"echo '7|{array or 7}|{0 if array else 'N/A'}|PENDING|None|N/A|(null)|'")
    with pytest.raises(UserError, match=f"has job {told} already; watch it, or end it by: coatnet cancel"):
        try_to_submit(tmp_path)


def test_tasks_of_an_array_do_not_train_in_one_run_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--array 3: tasks of an array would train in one run directory"):
        prepare(replace(request(tmp_path, SITE), array=3))


def test_a_run_that_slurm_does_not_take_back_stays_as_it_was(programs: Program, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.mark("held", reason="three lives")
    before = run.marker("held")
    prepared = prepare(request(tmp_path, SITE))
    programs("sbatch", "echo 'sbatch: error: Invalid account' >&2; exit 1")
    with pytest.raises(UserError, match="Invalid account"):
        submit(prepared, release=True)
    assert run.marker("held") == before
    History(run.path).note("submitted", job_id="7", folder="0001", lives=0)
    programs("squeue", "echo '7|7|N/A|COMPLETING|None|N/A|(null)|'")
    with pytest.raises(UserError, match="has job 7 already"):
        submit(prepared, release=True)
    assert run.marker("held") == before, "its last life still ends"
