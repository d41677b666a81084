"""What a life does before its ranks begin: what is settled already, and which nodes are fit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import supervisor
from cluster.job import STATUS, Job, write_job
from cluster.site import SiteConfig
from coatnet.runtime.run_directory import RunDirectory

Machine = Any  # of conftest.py, which nothing can be imported from
# The checks' tasks write what they find of each node; results is the last word of srun's command.
FITNESS = 'for results; do :; done; word() {{ echo "{{\\"failures\\": [$2]}}" > $results/$1.json; }}; {}; '

# As SLURM starts a batch script, whatever stands in the environment of these tests.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def checks(**failures: str) -> str:
    """Return what the preflight's tasks do: nodes with their failure, none where it is empty."""
    words = "; ".join(
        f"word {node} '\"{failure}\"'" if failure else f"word {node}" for node, failure in failures.items()
    )
    return FITNESS.format(words or "true")


@pytest.mark.parametrize(
    ("marker", "continuation", "status"),
    [("done", "requeue", 0), ("cancelled", "requeue", 85), ("cancelled", "chain", 0), ("held", "requeue", 1)],
)
def test_a_run_that_is_settled_begins_no_life(
    machine: Machine, marker: str, continuation: str, status: int
) -> None:
    machine.run.mark(marker)
    assert machine.live(machine.DONE, continuation=continuation) == status
    assert machine.heard() == [] and machine.history.lives() == []


def test_a_run_in_which_another_job_is_running_is_left_to_it(machine: Machine) -> None:
    machine.run.mark("attempt", job_id="6")
    assert machine.live(machine.DONE) == 3
    assert machine.heard() == [] and machine.history.lives() == []
    machine.set_state("6", "COMPLETED")
    assert machine.live(machine.DONE) == 0


def test_a_requeued_job_goes_on_with_its_own_run(machine: Machine) -> None:
    machine.run.mark("attempt", job_id="7")
    assert machine.live(machine.DONE) == 0


def test_the_successor_of_a_job_that_was_cancelled_cancels_the_run(machine: Machine) -> None:
    machine.history.begin(job_id="6", nodes=["n1"], step=-1)
    machine.history.note("successor", job_id="7")
    machine.set_state("6", "CANCELLED")
    assert machine.live(machine.DONE, continuation="chain", dependents=["20"]) == 0
    assert machine.run.marker("cancelled")["reason"] == "scancel"
    assert len(machine.history.lives()) == 1 and machine.heard() == ["scancel 20"]


def test_the_successor_of_a_job_that_failed_while_nobody_heard_it_begins_no_life(machine: Machine) -> None:
    life = machine.history.begin(job_id="6", nodes=["n1"], step=-1)
    machine.history.end(life, outcome="failed", reason="bad data", tries=1, excluded={})
    machine.history.note("successor", job_id="7")
    assert machine.live(machine.DONE, continuation="chain", dependents=["20"]) == 1
    assert len(machine.history.lives()) == 1 and machine.heard() == ["scancel 20"]
    assert machine.run.marker("cancelled") is None


def test_lives_without_a_new_checkpoint_hold_the_run_with_the_last_reason(machine: Machine) -> None:
    boom = machine.ended("n1", "Exited with exit code 7")
    for _ in range(2):
        assert machine.live(boom, retries=0, lives_without_progress=2) == 7
    heard = machine.heard()
    assert machine.live(machine.DONE, lives_without_progress=2, dependents=["20"]) == 1
    reason = (
        "2 lives in a row made no new checkpoint after step 0; the last one: a rank on n1 ended with status 7"
    )
    assert machine.run.marker("held")["reason"] == reason
    (event,) = machine.events("held")
    assert (event["reason"], event["job_id"]) == (reason, "7")
    assert len(machine.history.lives()) == 2 and machine.heard() == [*heard, "scancel 20"]


@pytest.mark.parametrize(
    ("reasons", "told"),
    [(["bad", "worse", ""], "after step 0; the last one: worse"), (["", ""], "after step 0")],
)
def test_lives_that_were_killed_give_no_reason(machine: Machine, reasons: list[str], told: str) -> None:
    for reason in reasons:
        life = machine.history.begin(job_id="6", nodes=["n1"], step=-1)
        if reason:
            machine.history.end(life, outcome="stopped", reason=reason, tries=1, excluded={})
    assert machine.live(machine.DONE, lives_without_progress=2) == 1
    assert machine.run.marker("held")["reason"].endswith(told)


def test_the_ranks_checkpoints_are_progress(machine: Machine) -> None:
    save = "mkdir -p $run/checkpoints/step-00000004; echo {} > $run/checkpoints/step-00000004/manifest.json"
    assert machine.live(f"{save}; exit 7", retries=0, lives_without_progress=1) == 7
    assert machine.live(machine.DONE, lives_without_progress=1) == 0
    assert [life.step for life in machine.history.lives()] == [-1, 4]


def test_a_command_without_checkpoints_is_never_held_for_want_of_them(machine: Machine) -> None:
    for status in (7, 7, 0):
        found = machine.live(f"exit {status}", protocol=STATUS, retries=0, lives_without_progress=1)
        assert found == status


def test_an_unfit_node_is_left_out_for_a_spare_and_not_checked_again(machine: Machine) -> None:
    machine.nodes = ["n1", "n2", "n3"]
    found = checks(n1="fan is dead", n2="", n3="")
    assert machine.live("exit 7", machine.DONE, checks=found, nodes=2, spares=1) == 0
    first = ["check --nodelist=n1,n2,n3", "srun --nodelist=n2,n3"]
    assert machine.heard() == [*first, "check --nodelist=n2,n3", "srun --nodelist=n2,n3"]
    assert machine.history.excluded() == {"n1": "fan is dead"}
    limits = json.loads((machine.run.path / "preflight" / "life-001.try-2.json").read_text())["limits"]
    assert limits["directory"] == str(machine.run.path)


def test_too_few_fit_nodes_send_the_run_elsewhere(machine: Machine) -> None:
    machine.nodes = ["n1", "n2", "n3"]
    found = checks(n1="", n2="fan is dead", n3="no GPU")
    assert machine.live(machine.DONE, checks=found, nodes=2, spares=1) == 1
    assert machine.heard()[1:] == ["scontrol requeue 7", "scontrol update jobid=7 ExcNodeList=n2,n3"]
    assert machine.last_life() == ("excluded", 0, "n2: fan is dead; n3: no GPU")


def test_what_all_nodes_find_alike_is_no_nodes_fault(machine: Machine) -> None:
    assert machine.live(machine.DONE, checks=checks(n1="no such folder", n2="no such folder")) == 1
    assert machine.last_life() == ("failed", 0, "preflight: all 2 nodes: no such folder")
    assert machine.heard()[1:] == [] and machine.history.excluded() == {}


@pytest.mark.slow
def test_one_node_after_the_other_that_finds_the_same_is_no_nodes_fault(machine: Machine) -> None:
    for node in ("n1", "n2", "n3"):
        machine.nodes = [node]
        status = machine.live(machine.DONE, checks=checks(**{node: "no such folder"}))
        assert status == 1
    assert [life.outcome for life in machine.history.lives()] == ["excluded", "excluded", "failed"]
    assert machine.last_life()[2] == "preflight: life after life: no such folder"


def test_checks_that_the_end_of_the_job_cut_short_blame_no_node(machine: Machine) -> None:
    cut = f"{checks(n1='')} echo CANCELLED > {machine.state_file('7')};"
    assert machine.live(machine.DONE, checks=cut) == 0
    assert machine.last_life() == ("ended", 0, "SLURM ended the job")
    assert machine.heard()[1:] == [] and machine.history.excluded() == {}


def test_nothing_begins_after_a_run_that_was_cancelled_while_its_nodes_were_checked(machine: Machine) -> None:
    cut = f"{checks(n1='')} echo COMPLETING > {machine.state_file('7')}; touch {machine.run.path}/cancelled;"
    assert machine.live(machine.DONE, checks=cut) == 85


def test_ranks_have_the_sites_secrets(machine: Machine, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.write_text("TOKEN=sesame\n")
    secrets.chmod(0o600)
    assert machine.live(f'[ "$TOKEN" = sesame ] && {machine.DONE}', secrets_file=str(secrets)) == 0
    assert machine.last_life()[:2] == ("done", 1)


def test_a_warning_during_the_checks_starts_no_ranks(machine: Machine) -> None:
    warned = checks(n1="", n2="") + "kill -USR1 $PPID;"
    assert machine.live(machine.DONE, checks=warned) == 0
    assert machine.heard()[1:] == ["scontrol requeue 7"]
    assert machine.last_life() == ("stopped", 1, "asked to stop, ended with status 0")


def test_a_warning_that_comes_while_srun_is_starting_reaches_the_ranks(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening, start = machine.run.path / "listening", subprocess.Popen

    os.mkfifo(listening)

    def warned(argv: list[str], **more: Any) -> subprocess.Popen[str]:
        process = start(argv, **more)
        if argv[0] == "srun":
            listening.read_text()
            os.kill(os.getpid(), signal.SIGUSR1)
        return process

    monkeypatch.setattr("cluster.supervisor.subprocess.Popen", warned)
    ranks = f"trap '{machine.STOPPED}; exit 0' USR1; echo > {listening}; while :; do sleep 0.02; done"
    assert machine.live(ranks) == 0
    assert machine.last_life() == ("stopped", 1, "saved and stopped as asked")


@pytest.mark.parametrize("text", ['{"colour": "red", "site": {}}', "{", "[]", '{"site": {}}', "{}"])
def test_a_job_file_of_another_version_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "job.json").write_text(text)
    monkeypatch.setattr(sys, "argv", ["supervisor", str(tmp_path / "job.json")])
    assert supervisor.main() == 1
    assert "job.json: no job file of this version of coatnet" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_under_the_jobs_log_does_not_end_the_life(tmp_path: Path) -> None:
    write_job(Job("run", str(tmp_path / "run"), ["pretrain"], site=SiteConfig()), tmp_path / "job.json")
    (tmp_path / "run").mkdir()
    RunDirectory(tmp_path / "run").mark("done")
    command = [sys.executable, "-m", "cluster.supervisor", str(tmp_path / "job.json")]
    with open("/dev/full", "w") as full:
        life = subprocess.run(
            command,
            env={**os.environ, "SLURM_JOB_ID": "7"},
            stdout=full,
            stderr=full,
            timeout=60,
            check=False,
        )
    assert life.returncode == 0


# A pipe that nobody reads is the slowest log; whatever the handler does comes in the middle of the write.
SLOW_LOG = """
import fcntl, os, signal, sys, termios, threading
from pathlib import Path
from cluster.job import Job
from cluster.site import SiteConfig
from cluster.supervisor import Supervisor, say

reading, writing = os.pipe()
os.dup2(writing, 1)
os.close(writing)
main, full = threading.main_thread().ident, fcntl.fcntl(1, fcntl.F_GETPIPE_SZ)

def warn():
    while int.from_bytes(fcntl.ioctl(reading, termios.FIONREAD, bytes(4)), sys.byteorder) < full:
        pass
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.pthread_kill(main, number)
    while os.read(reading, 1 << 20):
        pass

job = Job("run", sys.argv[1], ["pretrain"], site=SiteConfig())
supervisor = Supervisor(job, job_file=Path("job.json"), environment={"SLURM_JOB_ID": "7"})
signal.signal(signal.SIGUSR1, supervisor._on_warning)
signal.signal(signal.SIGTERM, supervisor._on_terminate)
reader = threading.Thread(target=warn, daemon=True)
reader.start()
say("x" * (full + 1))
os.close(1)
reader.join()
os._exit(0 if supervisor.warned and supervisor.terminated else 7)
"""


def test_a_warning_that_comes_while_a_line_is_written_to_the_log_is_heard_and_ends_nothing(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", SLOW_LOG, str(tmp_path / "run")]
    done = subprocess.run(command, env=BUFFERED, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told = [line.split(" ", 2)[2] for line in done.stderr.splitlines()]
    assert told == ["USR1: telling the ranks to save and stop", "TERM: SLURM ends the job"]


def test_a_job_whose_submission_was_not_noted_notes_it_before_it_counts_lives(machine: Machine) -> None:
    for _ in range(3):
        machine.history.begin(job_id="6", nodes=["n1"], step=-1)
    machine.submit_anew()
    assert machine.live(machine.DONE) == 0, "counting has begun anew"
    told = [one for one in machine.history.events() if one["event"] == "submitted"]
    assert [(one["job_id"], one["folder"], one["lives"]) for one in told[1:]] == [("7", "0002", 3)]
    assert machine.history.continuation() == "requeue"
