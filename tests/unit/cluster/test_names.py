"""A thousand hostile names and paths: refused, or carried as data; nothing is ever executed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.job import Job, read_job, write_job
from cluster.launch import Attempt, rank_command
from cluster.names import NAME, VALUE, check, check_options, check_path
from cluster.script import render_script
from cluster.site import ContainerConfig, SiteConfig
from cluster.submission import Request, prepare
from coatnet.config import UserError

_COMMANDS = ["$({})", "`{}`", "; {}", "&& {}", "| {}", "\n{}"]
_PIECES = [text.format("touch {mark}") for text in _COMMANDS] + [
    "'", '"', "\\", "%j", "%x", "#SBATCH --wrap=x", "--wrap=touch", "\r\n", "\t", " ", "${{IFS}}", "*", "?",
    "../", "~root", "é", "\u202e", "\0", "-", "--", ">", "<", "!", "a", "run",
]  # fmt: skip


def hostile(mark: Path, *, count: int = 1000) -> list[str]:
    generator = random.Random(5)
    found = []
    while len(found) < count:
        text = "".join(generator.choice(_PIECES) for _ in range(generator.randint(1, 5))).format(mark=mark)
        if not text.replace("-", "").isalnum() or not text.isascii() or text.startswith("-"):
            found.append(text)
    return found


@pytest.mark.slow
def test_a_thousand_hostile_texts_enter_no_script_and_execute_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    shown = tmp_path / "argv.json"
    fake_python = tmp_path / "python"
    fake_python.write_text(
        f"#!{sys.executable}\nimport json, sys\njson.dump(sys.argv, open({str(shown)!r}, 'w'))\n"
    )
    fake_python.chmod(0o755)
    refused = 0
    scripts = []
    for text in hostile(mark):
        for field in (
            "name",
            "directory",
            "partition",
            "exclude",
            "modules",
            "environment",
            "sbatch",
            "code",
        ):
            try:
                scripts.append(render_script(job_with(field, text, python=fake_python, tmp_path=tmp_path),
                                             job_file=tmp_path / "job.json"))  # fmt: skip
            except UserError:
                refused += 1
    assert refused > 7000, "most hostile texts cannot be part of a name"
    for script in set(scripts):
        subprocess.run(["bash", "-c", script], capture_output=True, timeout=20, check=False)
    assert not mark.exists()


def job_with(field: str, text: str, *, python: Path, tmp_path: Path) -> Job:
    job = Job(name="run", directory=str(tmp_path / "run"), command=["pretrain", "c.yaml"], python=str(python))
    if field in {"name", "code"}:
        setattr(job, field, text)
    elif field == "directory":
        job.directory = str(tmp_path / text)
    elif field in {"modules", "environment", "sbatch"}:
        setattr(job.site, field, [text])
    else:
        setattr(job.site, field, text)
    return job


@pytest.mark.slow
def test_a_thousand_hostile_arguments_reach_the_ranks_unchanged(tmp_path: Path) -> None:
    for number, text in enumerate(hostile(tmp_path / "executed")):
        job = Job(name="run", directory="/runs/x", command=["pretrain", "c.yaml", f"data.evaluate={text}"])
        if number % 20 == 0:
            write_job(job, tmp_path / "job.json")
            job = read_job(tmp_path / "job.json")
        argv = rank_command(job, attempt=Attempt("1", 1, 1), nodes=["n1"], directory=Path("/runs/x"))
        assert argv[-1] == f"data.evaluate={text}"
        assert f"data.evaluate={text}" not in render_script(
            Job(**{**job.__dict__, "python": "/usr/bin/python3"}), job_file=Path("/runs/x/job.json")
        )


@pytest.mark.parametrize(
    "option", ["--wrap=id", "--output=/etc/x", "--export=ALL", "--requeue", "--array=1-9"]
)
def test_options_that_the_machine_depends_on_are_refused(option: str) -> None:
    with pytest.raises(UserError, match="set by coatnet itself"):
        check_options([option], what="sbatch")


@pytest.mark.parametrize("option", ["mail", "-x", "--mail-type=a b", "--comment=$(id)", "--x;id"])
def test_options_that_are_no_plain_options_are_refused(option: str) -> None:
    with pytest.raises(UserError):
        check_options([option], what="sbatch")


def test_ordinary_names_paths_and_options_pass() -> None:
    assert check("imagenet-21k_v2.1", NAME, what="job name")
    assert check_path(Path("/scratch/me/runs/x=1"), what="run directory")
    assert check("gpu[01-12,14]", VALUE, what="exclude") and check("a100&ib", VALUE, what="constraint")
    assert check_options(["--mail-type=FAIL", "--gres=gpu:8", "--contiguous"], what="sbatch")


@pytest.mark.parametrize(
    ("folder", "name"), [("lr=0.1+ema", "lr-0.1-ema"), ("~", "evaluate"), ("_x", "x"), ("y" * 70, "y" * 64)]
)
def test_a_job_is_called_like_its_folder_as_far_as_a_job_may(tmp_path: Path, folder: str, name: str) -> None:
    request = Request("evaluate", "x", (), SiteConfig(), directory=tmp_path / folder)
    assert prepare(request).job.name == name
    with pytest.raises(UserError, match="job name is 'my run'; allowed: letters"):
        prepare(replace(request, name="my run"))


def test_a_container_wraps_the_ranks_and_not_the_script() -> None:
    for runtime, head in (("pyxis", "--container-image=/images/coatnet.sqsh"), ("apptainer", "apptainer")):
        site = SiteConfig(container=ContainerConfig(runtime=runtime, image="/images/coatnet.sqsh"))
        job = Job(
            name="run",
            directory="/runs/x",
            command=["pretrain", "c.yaml"],
            site=site,
            python="/usr/bin/python3",
            working_directory="/home/me",
        )
        argv = rank_command(job, attempt=Attempt("1", 1, 1), nodes=["n1"], directory=Path("/runs/x"))
        assert head in argv and argv[-3:] == ["coatnet", "pretrain", "c.yaml"]
        assert "sqsh" not in render_script(job, job_file=Path("/runs/x/job.json"))


def test_a_job_file_reads_back_as_it_was_and_belongs_to_its_owner_alone(tmp_path: Path) -> None:
    job = Job(name="run", directory="/runs/x", command=["pretrain", "a b", "é'\"$"], array=3)
    write_job(job, tmp_path / "job.json")
    assert read_job(tmp_path / "job.json") == job
    assert (tmp_path / "job.json").stat().st_mode & 0o077 == 0
    assert json.loads((tmp_path / "job.json").read_text())["command"] == job.command
