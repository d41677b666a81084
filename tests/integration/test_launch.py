"""The local launcher with real gloo ranks: they talk, stop together, and none outlives the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from waiting import PATIENCE_SECONDS, wait_until

from coatnet.config import UserError
from coatnet.runtime.launch import _forward_to, run_ranks

PROGRAMS = Path(__file__).parent / "programs"
LAUNCH = """
import sys
from coatnet.runtime.launch import run_ranks
sys.exit(run_ranks(sys.argv[1], sys.argv[2:], ranks=2))
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROGRAMS), "OMP_NUM_THREADS": "1"}


def launch(task: str, directory: Path, *, program: str = "alone") -> subprocess.Popen[bytes]:
    """Start two ranks of a program of programs/: `talk` loads torch, `alone` does not."""
    command = [sys.executable, "-c", LAUNCH, program, task, str(directory)]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE)


def wait_for(paths: list[Path]) -> None:
    def are_there() -> bool:
        return all(path.exists() and (path.name.startswith("ready") or path.read_text()) for path in paths)

    wait_until(are_there, what=f"all of {paths}")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_mistake_that_all_ranks_meet_is_said_once_by_the_first(tmp_path: Path) -> None:
    process = launch("refused", tmp_path)
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2
    assert b"error: what both ranks met" in said and b"rank 1" not in said


BEHIND = """
import os, signal
from coatnet.config import UserError
from coatnet.runtime.endings import endings_in_a_line
with endings_in_a_line():
    if os.environ["RANK"] == "0":
        signal.pause()
    raise UserError("what rank 0 would meet with as well")
"""


def test_a_mistake_is_told_although_the_first_rank_has_not_come_to_it_in_time(tmp_path: Path) -> None:
    (tmp_path / "behind.py").write_text(BEHIND)
    program = "import sys\nfrom pathlib import Path\nfrom coatnet.runtime.launch import launch_run\n"
    program += "sys.exit(launch_run('behind', [], directory=Path(sys.argv[1]), ranks=2))"
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == ["error: what rank 0 would meet with as well"]


CRASHING = """
import atexit, os, sys
from pathlib import Path
from coatnet.runtime.endings import run_rank
from coatnet.runtime.launch import launch_run
atexit.register(os.abort)  # as gloo's threads do in their destructors, now and then
def main(arguments):
    if arguments == ["exit"]:
        sys.exit(3)
    Path("/proc/self/mem").read_bytes()
if __name__ == "__main__":
    if "RANK" in os.environ:
        launch_run("crashing", sys.argv[1:], directory=Path("run"), ranks=None)
    run_rank(main)
"""


@pytest.mark.parametrize("started", [{}, {"RANK": "1", "WORLD_SIZE": "2"}], ids=["by us", "by torchrun"])
@pytest.mark.parametrize(
    ("words", "status", "said"), [([], 1, "OSError: [Errno 5] Input/output error"), (["exit"], 3, "")]
)
def test_a_crash_keeps_its_status_and_its_words_whatever_libraries_do_at_the_end(
    tmp_path: Path, words: list[str], status: int, said: str, started: dict[str, str]
) -> None:
    """By both SLURM's batch script tells a broken machine from a mistake, which it does not try again."""
    (tmp_path / "crashing.py").write_text(CRASHING)
    done = subprocess.run(
        [sys.executable, "-m", "crashing", *words],
        env={**ENVIRONMENT, "PYTHONPATH": str(tmp_path), **started},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == status and said in done.stderr


def test_what_one_rank_alone_met_with_is_said_in_a_line_and_its_peers_write_no_stacks(tmp_path: Path) -> None:
    process = launch("lacking", tmp_path, program="talk")
    said = process.communicate(timeout=PATIENCE_SECONDS)[1].decode().splitlines()
    assert process.returncode == 2 and "error: out of memory on rank 1" in said
    assert all(line.startswith("error: ") for line in said)
    assert sum("rank 0 lost another rank" in line for line in said) == 1


@pytest.mark.parametrize(
    ("names", "second"),
    [(("RANK", "WORLD_SIZE"), ""), (("SLURM_PROCID", "SLURM_NTASKS"), "error: what every rank met\n")],
)
def test_of_what_all_ranks_met_the_first_speaks_and_under_srun_each_in_its_log(
    tmp_path: Path, names: tuple[str, str], second: str
) -> None:
    task = "from coatnet.runtime.launch import launch_run\nfrom pathlib import Path\nimport sys\n"
    task += "launch_run('alone', sys.argv[1:], directory=Path(sys.argv[2]), ranks=None)"
    place = {"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "1"} if "SLURM_PROCID" in names else {}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", task, "mistaken", str(tmp_path)],
            env={**ENVIRONMENT, **place, **dict(zip(names, (str(rank), "2"), strict=True))},
            stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]
    said = [one.communicate(timeout=PATIENCE_SECONDS)[1].decode() for one in tasks]
    assert said == ["error: what every rank met\n", second]
    assert [one.returncode for one in tasks] == [2, 2]


@pytest.mark.parametrize(
    ("task", "status", "said"),
    [("crash", 3, b"rank 1 ended with status 3"), ("killed", 137, b"rank 1 was killed by SIGKILL")],
)
def test_the_others_end_within_five_seconds_of_a_ranks_death(
    tmp_path: Path, task: str, status: int, said: bytes
) -> None:
    process = launch(task, tmp_path)
    wait_for([tmp_path / "pid0", tmp_path / "pid1"])
    wait_until(lambda: not alive(int((tmp_path / "pid1").read_text())), what="the death of rank 1")
    began = time.monotonic()
    assert process.wait(timeout=PATIENCE_SECONDS) == status
    assert time.monotonic() - began < 5
    assert process.stderr is not None and said in process.stderr.read()
    assert not alive(int((tmp_path / "pid0").read_text()))


def test_ranks_talk_to_each_other_and_a_signal_reaches_all_which_leave_cleanly(tmp_path: Path) -> None:
    process = launch("stop", tmp_path, program="talk")
    wait_for([tmp_path / "ready0", tmp_path / "ready1"])
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=PATIENCE_SECONDS) == 0
    assert {(tmp_path / f"stopped{rank}").read_text() for rank in (0, 1)} <= {"SIGTERM", "None"}


def test_a_signal_that_comes_while_the_ranks_start_reaches_all_of_them(tmp_path: Path) -> None:
    early = "import os, signal\nfrom coatnet.runtime.stop import held_signals\nwith held_signals():\n"
    early += " os.kill(os.getpid(), signal.SIGUSR1)\n" + LAUNCH.replace("\n", "\n ")
    command = [sys.executable, "-c", early, "alone", "stop", str(tmp_path)]
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"SIGUSR1: asking 2 ranks to end" in done.stderr
    assert [(tmp_path / f"stopped{rank}").read_text() for rank in (0, 1)] == ["SIGUSR1"] * 2


def test_a_second_signal_is_answered_and_not_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    patient = "import signal, time; signal.signal(signal.SIGINT, lambda *_: print(flush=True))\n"
    program = [sys.executable, "-c", patient + "print(flush=True); time.sleep(1000)"]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as rank:
        assert rank.stdout is not None
        rank.stdout.readline()
        forward = _forward_to([rank])
        forward(signal.SIGINT, None)
        rank.stdout.readline()
        forward(signal.SIGINT, None)
        rank.kill()
        assert rank.stdout.read() == b""
    said = capfd.readouterr().err  # among what threads of earlier tests may say
    assert said.count("SIGINT: asking the rank to end, which saves what was reached\n") == 1
    assert said.count("SIGINT again: ") == 1 and f"kill -9 {os.getpid()}" in said


def test_a_folder_that_takes_no_logs_is_a_users_mistake_and_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file.*choose another run\.directory"):
        run_ranks("talk", [], ranks=2, log_directory=tmp_path / "file" / "logs")


def test_ranks_do_not_outlive_a_launcher_that_was_killed(tmp_path: Path) -> None:
    process = launch("wait", tmp_path)
    wait_for([tmp_path / "pid0", tmp_path / "pid1"])
    pids = [int((tmp_path / f"pid{rank}").read_text()) for rank in (0, 1)]
    process.kill()
    process.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids), what="the end of ranks without a launcher")


INTERRUPTED = """
import signal, sys
from coatnet.runtime.launch import run_ranks
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with none
try:
    run_ranks("alone", sys.argv[1:], ranks=2, heeding=False)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_an_interruption_ends_ranks_that_heed_none_without_a_word(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, "patient", str(tmp_path)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE)
    wait_for([tmp_path / f"ready{rank}" for rank in range(2)])
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=PATIENCE_SECONDS)[1] == b"" and process.returncode == 130
    assert not any(alive(int((tmp_path / f"pid{rank}").read_text())) for rank in range(2))
