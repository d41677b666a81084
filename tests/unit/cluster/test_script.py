"""How sites differ in what a script may say."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cluster.job import Job
from cluster.launch import Attempt, check_command, rank_command, rank_environment
from cluster.script import render_script, sbatch_options
from cluster.site import ContainerConfig, SiteConfig
from coatnet.config import UserError


def job(**site: object) -> Job:
    return Job("run", "/runs/x", ["pretrain", "c.yaml"], site=SiteConfig(**site))  # type: ignore[arg-type]


def test_a_warning_that_comes_before_anybody_listens_ends_no_job(tmp_path: Path) -> None:
    early = tmp_path / "python"
    early.write_text("#!/bin/sh\nkill -USR1 $$\necho lives\n")
    early.chmod(0o755)
    one = job()
    one.python = str(early)
    script = render_script(one, job_file=tmp_path / "job.json")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "lives\n")


@pytest.mark.parametrize(("line", "said"), [('export A="$UNSET"', "lives\n"), ("false", "")])
def test_a_sites_script_may_ask_for_what_is_not_set_and_ends_the_job_when_it_fails(
    tmp_path: Path, line: str, said: str
) -> None:
    setup = tmp_path / "setup.sh"
    setup.write_text(f"{line}\n")
    one = job(setup_script=str(setup))
    one.code, one.python = str(tmp_path), "/bin/echo"
    script = render_script(one, job_file=tmp_path / "job.json").replace("-m cluster.supervisor", "lives #")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == (said, int(not said))


@pytest.mark.parametrize("inherited", [False, True])
def test_modules_are_loaded_although_a_job_inherits_no_function_that_does_so(
    tmp_path: Path, inherited: bool
) -> None:
    """As the user's login shell has it: from /etc/profile, which makes the path anew and may end badly."""
    profile = tmp_path / "profile"
    profile.write_text('PATH=/nowhere\nmodule() { echo "$* by the profile"; }\nfalse\n')
    one = job(modules=["cuda/12.6"])
    one.code, one.python = str(tmp_path), "/bin/echo"
    script = render_script(one, job_file=tmp_path / "job.json").replace("/etc/profile", str(profile))
    script = script.replace("-m cluster.supervisor", '"$PATH" #')
    given = {"PATH": os.environ["PATH"]}
    if inherited:
        given["BASH_FUNC_module%%"] = '() { echo "$* by the shell"; }'
    done = subprocess.run(["bash", "-c", script], env=given, capture_output=True, text=True, check=False)
    by = "shell" if inherited else "profile"
    assert done.stdout == f"load cuda/12.6 by the {by}\n{given['PATH']}\n", done.stderr


@pytest.mark.parametrize("own", ["--gres=gpu:a100:8", "--gpus=16", "--gpus-per-node=a100:8"])
def test_gpus_may_be_asked_for_in_the_sites_own_way(own: str) -> None:
    options = sbatch_options(job(sbatch=[own]))
    assert [option for option in options if "gpu" in option] == [own]


@pytest.mark.parametrize(("option", "key"), [("account", "account"), ("mem", "memory"), ("qos", "qos")])
def test_an_option_is_not_taken_twice(option: str, key: str) -> None:
    given = f"--{option}=100G"
    assert sbatch_options(job(sbatch=[given]))[-1] == given
    with pytest.raises(UserError, match=f"sbatch: --{option} is given, and so is {key}, 200G"):
        sbatch_options(job(**{"sbatch": [given], key: "200G"}))


def test_another_resource_takes_no_gpus_away() -> None:
    options = sbatch_options(job(sbatch=["--gres=nvme:1"]))
    assert "--gpus-per-node=8" in options and "--gres=nvme:1" in options


def test_checks_start_like_ranks_but_share_out_nothing() -> None:
    one = job(srun=["--mpi=none", "--gpus-per-task=1", "--cpu-bind=cores"])
    checks = check_command(one, nodes=["n1"], results=Path("/runs/x/preflight"), output="x")
    assert [word for word in checks if word in one.site.srun] == ["--mpi=none"]
    ranks = rank_command(one, attempt=Attempt("7", 1, 1), nodes=["n1"], directory=Path("/runs/x"))
    assert [word for word in ranks if word in one.site.srun] == one.site.srun


def test_ranks_have_the_threads_and_the_code_that_were_submitted() -> None:
    one, attempt = job(cpus_per_task=6), Attempt("7", 2, 1)

    def environment(**given: str) -> dict[str, str]:
        return rank_environment(one, attempt=attempt, nodes=["n2", "n1"], given=given, secrets={})

    one.code = "/runs/x/submissions/code"
    made = environment(PYTHONPATH="/mine")
    assert (made["OMP_NUM_THREADS"], made["PYTHONPATH"], made["MASTER_ADDR"]) == ("6", one.code, "n2")
    assert made["TORCH_EXTENSIONS_DIR"].endswith("7.2.1"), "a lock of a killed build hangs no other start"
    assert environment(OMP_NUM_THREADS="2")["OMP_NUM_THREADS"] == "2"


def test_a_container_sees_the_run_and_starts_in_the_working_directory() -> None:
    one = job(container=ContainerConfig("apptainer", "/i.sif", ["/data:/data:ro"]))
    one.working_directory = "/work"
    ranks = rank_command(one, attempt=Attempt("7", 1, 1), nodes=["n1"], directory=Path("/runs/x"))
    checks = check_command(one, nodes=["n1"], results=Path("/runs/x/preflight"), output="x")
    inside = ranks[ranks.index("apptainer") :]
    mounts = ["--bind", "/runs/x:/runs/x", "--bind", "/data:/data:ro", "--bind", "/work:/work"]
    outside = ["apptainer", "exec", "--nv", *mounts, "--pwd", "/work", "/i.sif"]
    assert inside == [*outside, "coatnet", "pretrain", "c.yaml"]
    checked = [*outside, "python3", "-m", "cluster.node_check", "/runs/x/preflight"]
    assert checks[checks.index("apptainer") :] == checked


def test_a_check_is_one_task_on_every_node_by_the_sites_own_python() -> None:
    one = job(cpus_per_task=3)
    one.python = "/venv/bin/python"
    checks = check_command(one, nodes=["n1", "n2"], results=Path("/runs/x/preflight"), output="log-%t")
    assert checks == [
        "srun", "--nodes=2", "--nodelist=n1,n2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=3",
        "--kill-on-bad-exit=1", "--wait=120", "--export=ALL", "--output=log-%t",
        "/venv/bin/python", "-m", "cluster.node_check", "/runs/x/preflight",
    ]  # fmt: skip


def test_every_start_of_the_ranks_has_a_port_of_its_own() -> None:
    starts = [Attempt(job_id, life, number) for job_id in "78" for life in (1, 2) for number in (1, 2)]
    ports = {start.port for start in starts}
    assert len(ports) == len(starts) and all(20000 <= port < 30000 for port in ports)
    assert Attempt("7", 1, 1).port == 20000 + 7 + 1009 + 101 == Attempt("10007", 1, 1).port
    task = rank_command(
        Job("run", "/runs/x", ["shard", "part-{task}"], program="/coatnet"),
        attempt=starts[0], nodes=["n1"], directory=Path("/runs/x"), task=3,
    )  # fmt: skip
    assert task[-3:] == ["/coatnet", "shard", "part-3"]
