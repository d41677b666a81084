"""What a new life reads of the records of earlier ones."""

from __future__ import annotations

from pathlib import Path

from coatnet.runtime.run_directory import append_line
from coatnet.training.earlier import read_earlier


def test_a_run_without_records_has_nothing_to_remember(tmp_path: Path) -> None:
    found = read_earlier(tmp_path / "metrics.jsonl", after=0)
    assert (found.reached, found.ahead, found.accounts) == (0, [], [])


def test_what_lies_ahead_and_the_account_are_remembered_and_torn_lines_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3, 4):
        append_line(file, {"samples_seen": 8 * step, "train/loss": 1 / step})
        append_line(file, {"samples_seen": 8 * step, "account/idle": float(step)})
    append_line(file, {"samples_seen": 16, "train/loss": 9.0})  # a life that went back
    with file.open("a") as torn:
        torn.write('{"samples_seen": 24, "train/loss": 7.0')
    found = read_earlier(file, after=16)
    assert found.reached == 32
    assert [row["samples_seen"] for row in found.ahead if "train/loss" in row] == [24, 32]
    assert [row["account/idle"] for row in found.accounts] == [1.0, 2.0, 3.0, 4.0]


def test_the_accounts_of_a_long_run_are_thinned_from_its_first_to_its_last(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f'{{"samples_seen":{at},"account/idle":{at}}}\n' for at in range(10_000)))
    accounts = read_earlier(file, after=20_000).accounts
    assert len(accounts) <= 240 and accounts[0]["account/idle"] == 0 and accounts[-1]["account/idle"] == 9999
