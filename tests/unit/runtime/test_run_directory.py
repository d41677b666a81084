"""A run directory belongs to one config, and its small files are whole or absent."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from coatnet.config import UserError
from coatnet.runtime.run_directory import RunDirectory, append_line, read_lines


def test_the_second_start_finds_the_first_ones_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    assert run.create_or_resume("seed: 1\n", digest="aa") is False
    assert run.create_or_resume("seed: 1\n", digest="aa") is True


def test_another_config_is_refused_unless_it_is_forced(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create_or_resume("seed: 1\n", digest="aa")
    append_line(run.metrics, {"step": 1})
    with pytest.raises(UserError, match=r"another config.*--force"):
        run.create_or_resume("seed: 2\n", digest="bb")
    assert run.config.read_text() == "seed: 1\n"
    assert run.create_or_resume("seed: 2\n", digest="bb", force=True) is True


def test_a_mistake_that_was_refused_before_the_first_step_may_be_mended_in_place(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create_or_resume("data: misspelled\n", digest="aa")
    run.create_or_resume("data: right\n", digest="bb")
    assert run.config.read_text() == "data: right\n"
    (run.checkpoints / "step-00000004").mkdir()
    with pytest.raises(UserError, match="another config"):
        run.create_or_resume("data: misspelled\n", digest="aa")


def test_checkpoints_without_an_identity_are_never_started_over(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints" / "step-00000004").mkdir(parents=True)
    with pytest.raises(UserError, match="not starting anew"):
        RunDirectory(tmp_path / "run").create_or_resume("seed: 1\n", digest="aa")


def test_a_marker_carries_fields_and_one_made_by_hand_is_empty(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.marker("held") is None
    run.mark("held", reason="three lives without a step")
    assert (run.marker("held") or {})["reason"] == "three lives without a step"
    (tmp_path / "cancelled").touch()
    assert run.marker("cancelled") == {}
    run.clear("held")
    assert run.marker("held") is None


def _append(path: str, writer: int) -> None:
    for number in range(200):
        append_line(Path(path), {"writer": writer, "number": number, "text": "x" * 200})


def test_lines_of_several_processes_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append, args=(str(path), writer)) for writer in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    rows = list(read_lines(path))
    assert len(rows) == 600
    for writer in range(3):
        assert [row["number"] for row in rows if row["writer"] == writer] == list(range(200))


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"loss": 1})
    with path.open("a") as file:
        file.write('{"loss": 0.')
    assert list(read_lines(path)) == [{"loss": 1}]
