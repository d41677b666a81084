"""The table of `coatnet status`, as a person reads it."""

from __future__ import annotations

import pytest

from cluster.status import RunStatus
from cluster.tables import duration, print_status


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "–"),
        (0.0, "0 s"),
        (40.4, "40 s"),
        (75, "1 min 15 s"),
        (3600, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (172799, "47 h 59 min"),
        (172800, "2 d 00 h"),
        (273600, "3 d 04 h"),
    ],
)
def test_a_time_is_said_in_its_two_largest_units(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


def test_every_run_has_a_line_and_what_it_has_to_say_stands_below(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        RunStatus("runs/a", "running", "", "7", ["n1"], 2, 1200, 30_000, 60_000, 1234.5, 7500.0, 40.0),
        RunStatus("runs/b", "failed", "boom [/b]", next_action="submit again"),
        RunStatus("runs/c", "requeued", "", samples_seen=500, last_error="life 1: n1 was lost"),
        RunStatus("runs/e", "pending", "Priority", expected_start="2026-11-28T09:41:58"),
        RunStatus("runs/d", "done", "all is well", samples_seen=70, total_samples=60),
    ]
    for width, bar in (("120", "━━━━━━━━━━━━ "), ("80", ""), ("40", "")):
        monkeypatch.setenv("COLUMNS", width)
        print_status(runs, silence="no squeue")
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()]
        assert lines == [
            "run state job life step progress images/s left lost",
            f"runs/a running 7 2 1,200 {bar}50.0% 1,234 2 h 05 min 40 s",
            "runs/b failed – – – – – – –",
            "runs/c requeued – – – 500 images – – –",
            "runs/e pending – – – – – – –",
            f"runs/d done – – – {bar}116.7% – – –",
            "runs/b, failed: boom [/b]; submit again",
            "runs/c, requeued: life 1: n1 was lost",
            "runs/e, pending: Priority; expected to begin 2026-11-28 09:41",
            "states are read from the run directories alone: no squeue",
        ]


def test_what_others_named_or_wrote_commands_no_terminal_and_breaks_no_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_status([RunStatus("runs/a\nb\x1b[31m", "failed", "boom\nbang\x1b]0;title\x07")])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[1].startswith(r"runs/a\nb\x1b[31m  failed")
    assert lines[2:] == [r" runs/a\nb\x1b[31m, failed: boom\nbang\x1b]0;title\x07"]


def test_where_no_runs_are_found_it_is_said_how_to_name_them(capsys: pytest.CaptureFixture[str]) -> None:
    print_status([])
    assert capsys.readouterr().out == "no runs found; give their directories, or folders of them\n"
