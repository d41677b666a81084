"""SLURM's commands as they answer, refuse and fall silent: scripts that stand first in the path."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import slurm
from cluster.admission import check_limits
from cluster.site import SiteConfig
from cluster.slurm import QueuedJob, SlurmError

Program = Callable[[str, str], None]
AWAY = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody wait between two questions."""
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: None)


def after_refusals(folder: Path, words: str) -> str:
    """Return the shell of a command that fails with `words` three times, then answers."""
    asked = f"{folder}/asked"
    return f'echo >> {asked}; [ $(wc -l < {asked}) -gt 3 ] || {{ echo "{words}" >&2; exit 1; }}'


def test_a_controller_that_is_away_is_asked_again(program: Program, tmp_path: Path) -> None:
    program("scontrol", f"{after_refusals(tmp_path, AWAY)}; echo 'JobId=7 JobState=RUNNING Reason=None'")
    assert slurm.job_state("7") == "RUNNING"
    assert len((tmp_path / "asked").read_text().splitlines()) == 4


def test_a_controller_that_is_away_is_asked_again_whatever_the_site_says_before(
    program: Program, tmp_path: Path
) -> None:
    program("scontrol", f"echo Maintenance on Monday >&2; {after_refusals(tmp_path, AWAY)}")
    slurm.requeue("7")
    assert len((tmp_path / "asked").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("sbatch: 10 % of your hours are left\nsbatch: error: Invalid qos\n", "Invalid qos"),
        (
            "sbatch: error: give a project\nsbatch: error: Batch job submission failed: Unspecified error",
            "give a project; Batch job submission failed: Unspecified error",
        ),
        ("sbatch: not today\nsbatch: nor tomorrow\n", "not today"),
        ("sbatch: error: no\n" * 9, "no"),
    ],
)
def test_of_what_a_refusal_says_the_errors_are_told(program: Program, said: str, told: str) -> None:
    program("sbatch", f"printf '{said.replace('%', '%%')}' >&2; exit 1")
    with pytest.raises(SlurmError) as refused:
        slurm.sbatch("script.sh")
    assert str(refused.value) == f"sbatch: {told}"


@pytest.mark.parametrize(
    "ask", [lambda: slurm.requeue("7"), lambda: slurm.release("7")], ids=["requeue", "release"]
)
def test_what_nobody_else_would_do_waits_for_the_controller(
    program: Program, tmp_path: Path, ask: Callable[[], None]
) -> None:
    program("scontrol", after_refusals(tmp_path, "Socket timed out on send/recv operation"))
    ask()
    assert len((tmp_path / "asked").read_text().splitlines()) == 4


@pytest.mark.parametrize("signal", ["TERM", "USR1"])
def test_a_question_that_slurms_own_signal_to_the_job_reaches_is_answered_all_the_same(
    program: Program, signal: str
) -> None:
    program("scontrol", f"kill -{signal} $$; echo JobState=COMPLETING")
    assert slurm.job_state("7") == "COMPLETING"


def test_a_command_that_was_killed_says_so_and_a_submission_may_have_been_heard(program: Program) -> None:
    for name in ("squeue", "sbatch"):
        program(name, "kill -KILL $$")
    with pytest.raises(SlurmError, match=r"^squeue: ended by SIGKILL$"):
        slurm.queue()
    with pytest.raises(slurm.PerhapsSubmitted, match=r"^sbatch: ended by SIGKILL$"):
        slurm.sbatch("script.sh")


def test_a_requeued_job_is_kept_off_nodes_once_it_waits(program: Program, tmp_path: Path) -> None:
    program("scontrol", f'echo "$*" >> {tmp_path}/asked')
    slurm.requeue("7")
    slurm.requeue("7", exclude=["n1", "n2"])
    asked = ["requeue 7", "requeue 7", "update jobid=7 ExcNodeList=n1,n2"]
    assert (tmp_path / "asked").read_text().splitlines() == asked


def test_a_controller_that_stays_away_is_given_up(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "_AWAY_SECONDS", 0.0)
    program("scontrol", f"echo '{AWAY}' >&2; exit 1")
    with pytest.raises(SlurmError, match="Unable to contact"):
        slurm.job_state("7")


def test_a_refusal_is_no_absence_except_for_nodes_of_a_job_that_is_requeued_this_moment(
    program: Program, tmp_path: Path
) -> None:
    program("scontrol", after_refusals(tmp_path, "Job is no longer pending execution"))
    with pytest.raises(SlurmError, match="scontrol: Job is no longer pending execution"):
        slurm.requeue("7")
    slurm.exclude_nodes("7", ["n1", "n2"])
    assert len((tmp_path / "asked").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ("echo 'JobId=7 JobName=x JobState=NODE_FAIL Reason=y'", "NODE_FAIL"),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", None),
        ("echo 'JobId=7 PreviousJobState=RUNNING'", None),
    ],
)
def test_the_state_of_a_job_is_one_word_or_unknown(program: Program, answer: str, state: str | None) -> None:
    program("scontrol", f'[ "$*" = "--oneliner show job 7" ] || exit 1; {answer}')
    assert slurm.job_state("7") == state


@pytest.mark.parametrize(
    ("command", "ask", "words"),
    [
        ("scancel", slurm.cancel_job, "Kill job error on job id 7: Invalid job id specified"),
        ("scancel", slurm.cancel_job, "Kill job error on job id 7: Job/step already completing or completed"),
        ("scontrol", slurm.release, "Job has already finished for job 7"),
        ("scontrol", slurm.release, "Invalid job id specified for job 7"),
    ],
)
def test_a_job_that_is_gone_needs_no_cancelling_and_no_release(
    program: Program, command: str, ask: Callable[[str], None], words: str
) -> None:
    program(command, f"echo '{command}: error: {words}' >&2; echo 'slurm_suspend error' >&2; exit 1")
    ask("7")


def test_who_cancels_by_hand_is_told_at_once_that_the_controller_is_away(
    program: Program, tmp_path: Path
) -> None:
    away = "echo 'scancel: error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    program("scancel", f"mkdir {tmp_path}/asked 2>/dev/null || exit 0; {away}")
    with pytest.raises(SlurmError, match="Unable to contact"):
        slurm.cancel_job("7")


def test_a_job_that_may_not_be_cancelled_is_told(program: Program) -> None:
    program("scancel", "echo 'scancel: error: Access denied' >&2; exit 1")
    with pytest.raises(SlurmError, match=r"^scancel: Access denied$"):
        slurm.cancel_job("7")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("echo >&2; echo 'sbatch: error: first' >&2; echo second >&2; exit 3", "^sbatch: first$"),
        ("exit 3", "^sbatch: no message$"),
        ("echo Submitted", "^sbatch printed 'Submitted' instead of a job id$"),
        ("", "^sbatch printed '' instead of a job id$"),
    ],
)
def test_what_sbatch_says_instead_of_a_job_is_told(program: Program, answer: str, message: str) -> None:
    program("sbatch", answer)
    with pytest.raises(SlurmError, match=message):
        slurm.sbatch("script.sh")


def test_what_is_submitted_is_heard_of_at_most_once(program: Program, tmp_path: Path) -> None:
    program("sbatch", '[ "$*" = "--parsable --hold script.sh" ] && echo 12')
    assert slurm.patient_sbatch("script.sh", "--hold") == "12"
    words = "Batch job submission failed: Socket timed out on send/recv operation"
    program("sbatch", after_refusals(tmp_path, words))
    with pytest.raises(SlurmError, match="Socket timed out"):
        slurm.patient_sbatch("script.sh")


@pytest.mark.parametrize(
    "answer",
    [
        "echo 12",
        "echo '12;cluster'",
        "echo note of 3 lines; echo 12; echo",
        "echo 12; echo 'your project has 9 h left'",
        "echo 9; echo 12; echo '8 hours are left'",
        "echo 'Submitted batch job 12 on cluster a'",
    ],
)
def test_a_job_id_may_come_with_its_cluster_and_among_what_a_site_says(program: Program, answer: str) -> None:
    program("sbatch", answer)
    assert slurm.sbatch("script.sh") == "12"


def test_a_command_that_hangs_is_an_error(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "_TIMEOUT_SECONDS", 0.1)
    program("squeue", "exec sleep 60")
    with pytest.raises(SlurmError, match=r"^squeue did not answer within 0.1 s$"):
        slurm.run_command(["squeue"])
    with pytest.raises(SlurmError, match=r"^squeue did not answer within 0.2 s$"):
        slurm.queue(limit_seconds=0.2)


def test_commands_hear_nothing_of_an_outer_job_and_read_no_keyboard(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM", "SBATCH", "SRUN", "SALLOC", "SQUEUE", "SCANCEL"):
        monkeypatch.setenv(f"{name}_X", "1")
    monkeypatch.setenv("SLURM_CONF", "/c")
    program("squeue", "env | grep -E '^S[A-Z]+_(CONF|X)=' | sort; cat")
    assert slurm.run_command(["squeue"]) == "SLURM_CONF=/c\n"


def test_the_jobs_of_others_are_asked_for_with_ones_own(program: Program) -> None:
    whose = ",".join(map(str, sorted({7, os.getuid(), 70000})))
    asked = f"--all --noheader --states=all --format=%A|%F|%K|%T|%r|%S|%E|%o --user={whose}"
    program("squeue", f"""[ "$*" = '{asked}' ] && echo '7|7|N/A|RUNNING|None|N/A|(null)|/a.sh'""")
    assert slurm.queue(users=[70000, 7]) == {"7": QueuedJob("7", "RUNNING", script="/a.sh")}


def test_the_accounting_tells_of_what_the_queue_has_forgotten(program: Program, tmp_path: Path) -> None:
    rows = "12|CANCELLED by 1000\\nodd line\\n13|COMPLETED\\n"
    program("sacct", f"echo $* > {tmp_path}/asked; printf '{rows}'")
    assert slurm.accounted(["12", "13"]) == {
        "12": QueuedJob("12", "CANCELLED"),
        "13": QueuedJob("13", "COMPLETED"),
    }
    asked = "--noheader --parsable2 --allocations --format=JobID,State --jobs=12,13"
    assert (tmp_path / "asked").read_text().strip() == asked
    assert slurm.accounted([]) == {}, "without a job all would be told"
    program("sacct", "exit 1")
    assert slurm.accounted(["12"]) == {}


def test_the_accounting_is_given_no_longer_than_a_glance(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float | None] = []

    def run_command(argv: list[str], *, limit_seconds: float | None = None) -> str:
        given.append(limit_seconds)
        return ""

    monkeypatch.setattr(slurm, "run_command", run_command)
    assert slurm.accounted(["12"]) == {} and given == [slurm.GLANCE_SECONDS]


def test_a_site_without_accounting_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.accounted(["12"]) == {} and not slurm.available()
    (tmp_path / "squeue").touch(mode=0o755)
    assert slurm.available()


@pytest.mark.parametrize(
    ("text", "seconds"), [("UNLIMITED", None), ("INFINITE", None), ("00:30:05", 1805), ("2-03:00:00", 183600)]
)
def test_a_partitions_time_limit_is_read_in_seconds(program: Program, text: str, seconds: int | None) -> None:
    line = f"PartitionName=a Default=YES MaxTime={text} MaxNodes=4 TotalNodes=9 State=UP Nodes=n1, n2"
    program("scontrol", f"[ $1 = --all ] && echo '{line}'")
    assert slurm.partitions(None) == slurm.partitions("a") == [slurm.Partition("a", "UP", seconds, 4)]


def test_without_a_default_partition_a_site_chooses_one_or_sbatch_refuses(program: Program) -> None:
    program("scontrol", "echo 'PartitionName=a Default=NO'; echo 'PartitionName=b MaxNodes=UNLIMITED'")
    assert slurm.partitions(None) == []
    check_limits(SiteConfig(time="9-00:00:00"))
    assert slurm.partitions("b,a") == [slurm.Partition(name, "UP", None, None) for name in "ba"]
