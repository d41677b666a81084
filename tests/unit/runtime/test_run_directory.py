"""A run directory belongs to one config, and its small files are whole or absent."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from coatnet.config import UserError, config_digest, to_yaml
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.lease import Lease
from coatnet.runtime.metrics_log import MetricsLog
from coatnet.runtime.run_directory import RunDirectory, append_line, read_lines, write_atomically


@dataclass
class _Recipe:
    """A root schema."""

    seed: int = 0
    optimizer: dict[str, float] = field(default_factory=dict)
    run: dict[str, str] = field(default_factory=dict)

    def run_digest(self) -> str:
        return config_digest(self, without=["run"])


def begin(run: RunDirectory, config: Any) -> None:
    run.check_config(config)
    run.create(to_yaml(config), digest=config.run_digest())


def test_the_second_start_finds_the_first_ones_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    begin(run, _Recipe(seed=1))
    append_line(run.metrics, {"step": 1})
    begin(run, _Recipe(seed=1))
    assert run.config.read_text() == to_yaml(_Recipe(seed=1))


def test_whoever_may_read_a_runs_weights_may_read_its_curves(tmp_path: Path) -> None:
    """As a colleague who wants its report: the umask alone decides."""
    run, before = RunDirectory(tmp_path / "run"), os.umask(0o022)
    try:
        begin(run, _Recipe(seed=1))
        append_line(run.metrics, {"step": 1})
        Lease.acquire(run.path).release()
        TimeAccount(run.account, rank=0, life=1).flush(samples_seen=0)
    finally:
        os.umask(before)
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(files) > 3 and {path.stat().st_mode & 0o777 for path in files} == {0o644}


def test_another_config_is_refused_unless_it_is_forced(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    begin(run, _Recipe(seed=1))
    append_line(run.metrics, {"step": 1})
    with pytest.raises(UserError, match=r"another config.*--force"):
        run.check_config(_Recipe(seed=2), force=False)
    with pytest.raises(UserError, match=r"another config.*or choose another run\.directory$"):
        run.check_config(_Recipe(seed=2))
    run.check_config(_Recipe(seed=2), force=True)


def test_a_refusal_names_the_keys_that_differ_and_what_they_were(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    begin(run, _Recipe(optimizer={"learning_rate": 0.1, "clip": 1.0}, run={"directory": "a"}))
    append_line(run.metrics, {"step": 1})
    now = _Recipe(optimizer={"learning_rate": 0.2, "clip": 1.0, "eps": 1e-8}, run={"directory": "b"})
    with pytest.raises(
        UserError, match=r"differs in optimizer\.learning_rate \(there 0\.1\), optimizer\.eps \(new\);"
    ):
        run.check_config(now)
    many = _Recipe(seed=5, optimizer={f"key{number}": 1.0 for number in range(4)}, run={"directory": "b"})
    with pytest.raises(
        UserError, match=r"differs in seed \(there 0\), .*, optimizer\.key0 \(new\) and 3 more;"
    ):
        run.check_config(many)
    for damaged in (b"optimizer: [", b"\xff\xfe\xff"):
        run.config.write_bytes(damaged)
        with pytest.raises(UserError, match="another config; compare"):
            run.check_config(now)
    run.config.unlink()
    with pytest.raises(UserError, match="another config; compare"):
        run.check_config(now)


@dataclass
class _Newer:
    """A schema that has had `added` since the run began."""

    seed: int = 0
    added: str = "as before"

    def run_digest(self) -> str:
        return config_digest(self)


def test_a_run_that_began_before_a_key_was_there_goes_on_at_the_keys_default(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create("seed: 3\n", digest="of an older version")
    append_line(run.metrics, {"step": 1})
    run.check_config(_Newer(seed=3))
    for other in (_Newer(seed=4), _Newer(seed=3, added="otherwise")):
        with pytest.raises(UserError, match="another config"):
            run.check_config(other)
    run.config.write_text("seed: 3\ngone: 1\n")
    with pytest.raises(UserError, match="another config"):
        run.check_config(_Newer(seed=3))


def test_a_mistake_that_was_refused_before_the_first_step_may_be_mended_in_place(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    begin(run, _Recipe(seed=1))
    begin(run, _Recipe(seed=2))
    assert run.config.read_text() == to_yaml(_Recipe(seed=2))
    (run.checkpoints / "step-00000004").mkdir()
    with pytest.raises(UserError, match="another config"):
        begin(run, _Recipe(seed=1))


@pytest.mark.parametrize("content", ["", "[]", '{"digest": '])
def test_where_the_identity_is_damaged_the_config_beside_it_tells_whose_the_directory_is(
    tmp_path: Path, content: str
) -> None:
    run = RunDirectory(tmp_path / "run")
    begin(run, _Recipe(seed=1))
    append_line(run.metrics, {"step": 1})
    run.identity.write_text(content)
    run.check_config(_Recipe(seed=1))  # config.yaml tells that it is this one
    with pytest.raises(UserError, match="another config"):
        run.check_config(_Recipe(seed=2))


def test_the_images_of_batch_norm_are_settled_once_a_run_has_begun(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.settled_group_images is None
    run.group_images.write_text("6")
    run.metrics.touch()  # a record for which there was no room
    assert not run.has_begun and run.settled_group_images is None
    append_line(run.metrics, {"step": 1})
    assert run.has_begun and run.settled_group_images == 6
    run.group_images.unlink()
    assert run.settled_group_images is None


def test_a_run_goes_on_with_the_images_that_it_began_with_wherever_they_lie(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    begin(run, _Recipe())
    run.settle_corpora({"data.train": ["a", "b"]})
    run.settle_corpora({"data.train": ["a"], "data.evaluate": ["c"]})  # nothing was trained on yet
    append_line(run.metrics, {"step": 1})
    run.settle_corpora({"data.train": ["a"], "data.evaluate": ["c"]})
    for others in ({"data.train": ["b"]}, {"data.train": ["a"], "data.evaluate": []}):
        with pytest.raises(UserError, match=rf"{[*others][-1]}: holds other images than .*run began with"):
            run.settle_corpora(others)
    run.check_corpora({"data.train": ["a"]})
    for unknown in (b"\xff{", b"[]"):
        run.corpora.write_bytes(unknown)
        run.check_corpora({"data.train": ["b"]})
    run.corpora.unlink()  # as of a run from before they were noted
    run.settle_corpora({"data.train": ["b"]})
    with pytest.raises(UserError, match="other images"):
        run.check_corpora({"data.train": ["a"]})


def test_checkpoints_without_an_identity_are_never_started_over(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints" / "step-00000004").mkdir(parents=True)
    with pytest.raises(UserError, match="checkpoints but no identity"):
        begin(RunDirectory(tmp_path / "run"), _Recipe())


def test_a_marker_carries_fields_and_one_made_by_hand_is_empty(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.marker("held") is None
    run.mark("held", reason="three lives without a step")
    assert (run.marker("held") or {})["reason"] == "three lives without a step"
    for content in (b"", b"because \xe9", b'["because"]'):
        (tmp_path / "cancelled").write_bytes(content)
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
    assert [event["kind"] for event in run.read_events()] == ["bad_sample", "without a time", "bad_sample"]


@pytest.mark.parametrize("torn", [b'{"loss": 0.', b'{"loss": ' + b"9" * 5000 + b"}", b"\0\xff\xfe", b"[1]\n"])
def test_a_line_that_is_no_record_is_left_out(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"loss": 1})
    with path.open("ab") as file:
        file.write(torn)
    append_line(path, {"loss": 2})
    assert list(read_lines(path)) == [{"loss": 1}, {"loss": 2}]


def test_a_line_for_which_there_was_half_the_room_counts_as_lost_and_takes_no_other_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path)
    run.append(run.metrics, {"loss": 1})
    room = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (run.metrics.stat().st_size + 5, room[1]))
    try:
        run.append(run.metrics, {"loss": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, room)
    run.append(run.metrics, {"loss": 3})
    assert list(read_lines(run.metrics)) == [{"loss": 1}, {"loss": 3}] and run.lost_records == 1
    assert "the run goes on" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_costs_records_that_are_counted_and_ends_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path)
    run.events.symlink_to("/dev/full")
    run.record_event("alarm", text="one")
    run.record_event("alarm", text="two")
    assert run.lost_records == 2 and capsys.readouterr().err.count("left on device: '") == 1
    MetricsLog(run, enabled=True).scalars({"train/loss": 1.0}, samples_seen=1)
    assert next(iter(read_lines(run.metrics)))["lost_records"] == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_the_thread_of_a_tensorboard_on_a_full_disk_ends_without_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    MetricsLog(RunDirectory(tmp_path), enabled=True)
    with Path("/dev/full").open("wb", buffering=0) as full:
        board = writer._AsyncWriter(writer.RecordWriter(full))
        board.write(b"a record")
        board._worker.join()
        with pytest.raises(OSError, match="No space left"):
            board.write(b"another")
    assert told == []
    another = threading.Thread(target=lambda: Path("/dev/full").write_text("a word"))
    another.start()
    another.join()
    assert len(told) == 1


def test_a_tensorboard_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.tensorboard.write_text("in the way of its folder")
    log = MetricsLog(run, enabled=True)
    log.scalars({"train/loss": 1.0}, samples_seen=1)
    log.flush()
    log.close()
    assert run.lost_records == 1 and len(list(read_lines(run.metrics))) == 1


def test_a_file_that_finds_no_room_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*summary\.json'"):
        write_atomically(tmp_path / "summary.json", "{}")
    assert list(tmp_path.iterdir()) == []


def test_the_events_of_more_ranks_than_files_may_be_open_are_read(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for rank in range(200):
        run.record_event("skipped_step", writer=rank, rank=rank)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 50, hard))
    try:
        found = run.read_events()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [event["rank"] for event in found] == list(range(200))
