"""Every way in which a run is interrupted, mostly by the command that a user types."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from interrupted import Command, begun, going_on, start, stepping, told_to_stop
from waiting import PATIENCE_SECONDS

from coatnet.runtime.run_directory import RunDirectory

from tiny_runs import arguments, assert_bit_equal, kinds, last

OnRanks = Callable[..., list[Any]]
LONG = ("train.duration=100000 steps", "save.every=90000 steps", "evaluate.every=90000 steps")
pytestmark = pytest.mark.slow


@pytest.fixture
def long_run(place: Path, tmp_path: Path) -> Iterator[tuple[RunDirectory, Command]]:
    """A run that has taken a step and would go on for hours."""
    run = RunDirectory(tmp_path / "run")
    with going_on(*arguments(place, str(run.path), *LONG)) as command:
        stepping(command, run)
        yield run, command


@pytest.fixture
def run(undisturbed: Path, tmp_path: Path) -> RunDirectory:
    """A copy of the undisturbed run that does not know of its end."""
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(undisturbed, run.path)
    run.clear("done")
    return run


def ranks_of(command: Command) -> list[psutil.Process]:
    """Return the processes of the ranks, in their order."""
    found = {int(one.environ()["RANK"]): one for one in psutil.Process(command.pid).children()}
    return [found[rank] for rank in sorted(found)]


def test_a_signal_while_torch_loads_ends_the_run_before_its_first_step(place: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    command = start(*arguments(place, str(run.path), *LONG))
    begun(command, lambda: len(psutil.Process(command.pid).children()) == 2)
    assert "SIGUSR1: asking 2 ranks to end" in told_to_stop(command, run, by=signal.SIGUSR1)
    assert not run.has_begun


def test_ctrl_c_twice_saves_once_and_until_then_a_second_start_hears_who_holds_the_run(
    place: Path, long_run: tuple[RunDirectory, Command]
) -> None:
    run, command = long_run
    second = start(*arguments(place, str(run.path), *LONG))
    assert second.stderr is not None
    said = second.stderr.read().decode()
    _, status, usage = os.wait4(second.pid, 0)
    second.returncode = os.waitstatus_to_exitcode(status)
    assert second.returncode == 2 and f"held by process {ranks_of(command)[0].pid} on" in said
    assert usage.ru_utime + usage.ru_stime < 4  # within five seconds even on one slow core: it loads no torch

    command.send_signal(signal.SIGINT)
    errors = told_to_stop(command, run, by=signal.SIGINT)
    assert run.marker("done") is None
    (saved,) = run.checkpoints.glob("step-*")
    assert f"stopped and saved after {last(run.path).samples_seen:,} images" in errors


def test_a_killed_rank_ends_the_run_and_is_named(long_run: tuple[RunDirectory, Command]) -> None:
    run, command = long_run
    ranks = ranks_of(command)
    ranks[1].kill()
    errors = command.communicate(timeout=PATIENCE_SECONDS)[1].decode()
    assert command.returncode == 128 + signal.SIGKILL
    assert "rank 1 was killed by SIGKILL" in errors
    assert not any(one.is_running() for one in ranks)


def test_no_rank_outlives_a_killed_launcher(long_run: tuple[RunDirectory, Command]) -> None:
    run, command = long_run
    ranks = ranks_of(command)
    command.kill()
    # A container's first process may wait for nobody.
    _, alive = psutil.wait_procs(ranks, timeout=PATIENCE_SECONDS)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def test_a_rank_that_is_suspended_for_longer_than_collectives_wait_goes_on_to_the_same_bits(
    place: Path, tmp_path: Path, undisturbed: Path, on_ranks: OnRanks
) -> None:
    run = tmp_path / "run"
    on_ranks("suspended_run", world_size=2, worker="pretrain", arguments=arguments(place, str(run)))
    assert_bit_equal(last(run), last(undisturbed))


def test_a_run_whose_newest_checkpoint_is_broken_goes_on_from_the_one_before_loudly(
    run: RunDirectory, place: Path, undisturbed: Path, on_ranks: OnRanks
) -> None:
    *_, newest = sorted(run.checkpoints.glob("step-*"))
    file = newest / "rank-00001.safetensors"  # which its rank alone reads
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)
    on_ranks("pretrain_run", world_size=2, arguments=arguments(place, str(run.path)))
    alarms = [one["text"] for one in run.read_events() if one["kind"] == "alarm"]
    assert len(alarms) == 1 and newest.name in alarms[0] and "going back to an older" in alarms[0]
    resumed = [one for one in run.read_events() if one["kind"] == "resume"]
    assert resumed[-1]["step"] == 12 and run.marker("done") is not None
    assert_bit_equal(last(run.path), last(undisturbed))


def test_another_config_under_a_run_is_refused_unless_it_is_forced(
    run: RunDirectory, place: Path, on_ranks: OnRanks
) -> None:
    changed = arguments(place, str(run.path), "optimizer.learning_rate=0.1", "train.duration=18 steps")
    for answer in on_ranks("failing_run", world_size=2, arguments=changed):
        assert "--force" in answer and str(run.path) in answer
    on_ranks("pretrain_run", world_size=2, arguments=[*changed, "--force"])
    assert last(run.path).step == 18 and run.marker("done") is not None


def test_the_same_images_by_another_name_are_the_same_run_and_others_are_not(
    run: RunDirectory, tmp_path: Path, place: Path, undisturbed: Path, on_ranks: OnRanks
) -> None:
    (tmp_path / "linked").symlink_to(place / "images")
    shutil.copytree(place / "images", tmp_path / "others")
    (tmp_path / "others" / "class0" / "000.jpg").unlink()
    for checkpoint in run.checkpoints.glob("step-*"):  # else they would tell
        shutil.rmtree(checkpoint)
    others = arguments(place, str(run.path), f"data.train={tmp_path / 'others'}")
    for answer in on_ranks("failing_run", world_size=2, arguments=others):
        assert answer.startswith(f"data.train: holds other images than {run.path} began with")
    on_ranks(
        "pretrain_run",
        world_size=2,
        arguments=arguments(place, str(run.path), f"data.train={tmp_path / 'linked'}"),
    )
    assert run.marker("done") is not None
    assert_bit_equal(last(run.path), last(undisturbed))


def test_a_disk_that_fills_up_costs_records_and_saves_but_not_the_run(
    place: Path, undisturbed: Path, on_ranks: OnRanks, small_disk: Path
) -> None:
    run, ballast = RunDirectory(small_disk / "run"), small_disk / "ballast"
    given = arguments(place, str(run.path))
    options = {"fill_after": 6, "ballast": str(ballast), "committed": str(run.checkpoints / "step-00000004")}
    endings = on_ranks("pretrain_run", world_size=2, arguments=given, **options)
    assert all("could not be saved" in ending for ending in endings)
    assert last(run.path).step == 4 and run.marker("done") is None
    ballast.unlink()
    on_ranks("pretrain_run", world_size=2, arguments=given)
    assert run.marker("done") is not None and kinds(run.path).count("resume") == 1
    assert_bit_equal(last(run.path), last(undisturbed))


def test_a_run_that_is_stopped_where_no_checkpoint_finds_room_does_not_say_that_it_saved(
    place: Path, small_disk: Path
) -> None:
    run = RunDirectory(small_disk / "run")
    with going_on(*arguments(place, str(run.path), *LONG)) as command:
        stepping(command, run)
        disk = os.statvfs(small_disk)
        (small_disk / "ballast").write_bytes(bytes(disk.f_bavail * disk.f_frsize - (128 << 10)))
        errors = told_to_stop(command, run, by=signal.SIGTERM)
    assert "checkpoint not saved" in errors and "and saved after" not in errors
    assert "the same command goes on from the last checkpoint" in errors


def test_a_rank_that_can_write_nothing_any_more_says_so_and_nobody_waits_for_its_file(
    place: Path, tmp_path: Path, undisturbed: Path, on_ranks: OnRanks
) -> None:
    run = RunDirectory(tmp_path / "run")
    given = arguments(place, str(run.path))
    lost = {"stale_after": 6, "committed": str(run.checkpoints / "step-00000004")}
    endings = on_ranks("pretrain_run", world_size=2, arguments=given, **lost)  # waiting would take 600 s
    assert all("could not be saved" in ending for ending in endings)
    alarms = [one["text"] for one in run.read_events() if one["kind"] == "alarm"]
    assert len(alarms) == 3 and all("Stale file handle" in text for text in alarms)
    assert last(run.path).step == 4 and run.marker("done") is None
    on_ranks("pretrain_run", world_size=2, arguments=given)
    assert run.marker("done") is not None
    assert_bit_equal(last(run.path), last(undisturbed))
