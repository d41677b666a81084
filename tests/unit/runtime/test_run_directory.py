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


def test_each_writer_of_events_has_its_own_file_and_readers_see_them_in_order(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    writers = [0, 3, "supervisor", 0, 3]
    for number, writer in enumerate(writers):
        run.record_event("step", writer=writer, number=number)
    assert [event["number"] for event in run.read_events()] == [0, 1, 2, 3, 4]
    files = {"events.jsonl": [0, 3], "events/rank-00003.jsonl": [1, 4], "events/supervisor.jsonl": [2]}
    assert {name: [row["number"] for row in read_lines(tmp_path / name)] for name in files} == files


def test_events_of_a_run_that_had_one_file_for_all_are_read(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    append_line(run.events, {"time": 1.0, "kind": "bad_sample", "rank": 3})
    append_line(run.events, {"kind": "without a time"})
    run.record_event("bad_sample", writer=3)
    assert [event["kind"] for event in run.read_events()] == ["without a time", "bad_sample", "bad_sample"]


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"loss": 1})
    with path.open("a") as file:
        file.write('{"loss": 0.')
    assert list(read_lines(path)) == [{"loss": 1}]
