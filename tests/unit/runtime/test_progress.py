"""The line that a person reads: what is done, how fast, how long it will take."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from coatnet.runtime.progress import clock, progress


def test_work_that_is_given_up_is_taken_off_again(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(20, "pretrain", "images", done=8) as bar:
        bar.advance(10)
        bar.advance(-14)  # rolled back to before this life
        bar.note("loss 1.0")
    said = capsys.readouterr().err
    assert said.startswith("pretrain: 4/20, – left") and said.endswith("loss 1.0\n")


def test_after_a_slow_start_the_rate_is_the_present_one_and_the_time_that_is_left_follows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("coatnet.runtime.progress.time.monotonic", lambda: now)
    lines: list[str] = []
    with progress(10_000, "pretrain", "images") as bar:
        # In ten seconds each; the one is an evaluation.
        for images in [10] * 6 + [100] * 30 + [0] + [100] * 3:
            now += 10.0
            bar.advance(images)
            lines += capsys.readouterr().err.splitlines()
        now += 0.1
        bar.advance(1)
    last = capsys.readouterr().err
    assert lines[5] == "pretrain: 60/10,000, 2:45:40 left, 1 images/s"
    assert lines[35] == "pretrain: 3,060/10,000, 11:57 left, 10 images/s"  # by the mean of all, 13:36
    assert lines[36] == "pretrain: 3,060/10,000, 12:36 left, 0 images/s"
    assert lines[39] == "pretrain: 3,360/10,000, 11:54 left, 10 images/s"
    assert last == "pretrain: 3,361/10,000, 11:54 left, 10 images/s\n", "a moment is no interval"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7.4, "0:07"), (3723, "1:02:03"), (86399, "23:59:59"), (1_040_523, "12 d 1:02:03"), (float("inf"), "–")],
)
def test_a_length_of_time_is_written_as_people_read_it_weeks_too(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize("plain", [True, False])
def test_a_terminal_gets_a_bar_that_stays_within_its_width_and_lines_where_colours_are_not_wanted(
    plain: bool,
) -> None:
    program = """
from coatnet.runtime.progress import progress
with progress(2000, "[/no]mark", "images") as bar:
    for step in range(20):
        bar.note("loss 0.123 and more that has no room here")
        bar.advance(100)
"""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", **({"NO_COLOR": "1"} if plain else {})}
    with subprocess.Popen([sys.executable, "-c", program], stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            shown += part
    os.close(ours)
    assert process.returncode == 0
    text = shown.decode()
    if plain:
        assert "\x1b" not in text and text.count("\n") == 1
    else:
        lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text))
        assert max(len(line) for line in lines) <= 60 and "2000/2000" in text.replace(" ", "")
        assert "[/no]mark" in text
