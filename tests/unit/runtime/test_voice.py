"""What cannot be said ends no run: the reader may go away, the disk of a log may be full."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TALKS = """
import os, sys
from coatnet.runtime.voice import heedless_voice, say_from_a_handler
with heedless_voice():
    for _ in range(3):
        print("a word", file=sys.stderr, flush=True)
        print("another", flush=True)
        say_from_a_handler("a third")
    os.write(1, b"a library")
os._exit(7)
"""


def test_a_reader_that_went_away_ends_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", TALKS], stdout=writing, stderr=writing, timeout=60)
    os.close(writing)
    assert done.returncode == 7


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_under_the_log_ends_nothing() -> None:
    program = TALKS.replace('os.write(1, b"a library")', "pass")
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=full, timeout=60)
    assert done.returncode == 7


# As a shell or SLURM starts it, whatever stands in the environment of these tests.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_under_the_log_does_not_change_the_status_either() -> None:
    program = TALKS.replace('os.write(1, b"a library")', "pass").replace("os._exit(7)", "sys.exit(7)")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=BUFFERED, stdout=full, stderr=full, timeout=60)
    assert done.returncode == 7


RANK = """
import os, signal, sys, time
from pathlib import Path
place = Path(sys.argv[1])
asked = []
for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda *_: asked.append(1))
(place / f"ready-{os.environ['RANK']}").touch()
while not asked:
    time.sleep(0.01)
(place / "saved").touch()
"""


LAUNCHER = """
import sys
from pathlib import Path
from coatnet.runtime.launch import launch_run
place = Path(sys.argv[1])
sys.exit(launch_run("rank", [str(place)], directory=place / "run", ranks=2))
"""


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command that starts two ranks, which end when they are asked to."""
    (tmp_path / "rank.py").write_text(RANK)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parents[3]}")
    return [sys.executable, "-c", LAUNCHER, str(tmp_path)]


def test_a_run_saves_when_its_terminal_goes_away(launcher: list[str], tmp_path: Path) -> None:
    process, terminal = pty.fork()
    if process == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.execv(launcher[0], launcher)
    while len(list(tmp_path.glob("ready-*"))) < 2:
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
    os.close(terminal)
    assert os.waitpid(process, 0)[1] == 0
    assert (tmp_path / "saved").exists()


def test_a_run_saves_on_ctrl_c_although_tee_has_ended_by_it(launcher: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(launcher, stderr=subprocess.PIPE)
    assert process.stderr is not None and b"starting 2 ranks" in process.stderr.readline()
    while len(list(tmp_path.glob("ready-*"))) < 2:
        assert process.poll() is None
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert (tmp_path / "saved").exists()
