"""A store that stops answering under a run: the rank that waits for data is waited for, and nobody hangs."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from far_corpora import Away
from fault_server import FaultServer
from interrupted import begun, going_on, stepping, told_to_stop
from psutil import Process
from waiting import PATIENCE_SECONDS

from coatnet.checkpoint.reader import Checkpoint
from coatnet.runtime.lives import read_lives
from coatnet.runtime.run_directory import RunDirectory
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.sharder import shard_corpus

from tiny_runs import STEPS, arguments, assert_bit_equal, evaluations, last

pytestmark = pytest.mark.slow
OnRanks = Callable[..., list[Any]]
LATE = 17  # shards are asked for until the store is away: the first step has come by then
SLOW_ORDER = ["data.lanes=2", "data.window=1", "data.prefetch=1", "data.cache.ahead_shards=0"]
SLOW_ORDER += ["train.global_batch=8"]
HANG_SECONDS, AWAY = 5.0, 6  # a transfer stalls for two seconds, so often


class LateOutage(FaultServer):
    """Stalls with the shard that is asked for as the so-and-so-manieth."""

    def next_fault(self, name: str, ranged: str | None) -> str:
        if name.endswith(".tar") and name not in self.requests and len(self.shards) == LATE - 1:
            self.faults[name] = ["stall"] * AWAY
        return super().next_fault(name, ranged)

    @property
    def shards(self) -> list[str]:
        return [name for name in self.requests if name.endswith(".tar")]


@pytest.fixture(scope="module")
def shards(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("far") / "shards"
    shard_corpus(place / "images", folder, options=ShardOptions(shard_samples=2), quiet=True)
    return folder


def test_a_run_waits_for_a_store_for_longer_than_a_hang_may_take(
    place: Path, shards: Path, tmp_path: Path, on_ranks: OnRanks
) -> None:
    bounds = [f"guard.hang_seconds={HANG_SECONDS}", "guard.start_seconds=50", "data.cache.stall_seconds=2"]
    run = tmp_path / "run"
    with LateOutage(shards) as server:
        far = [f"data.train={server.url}", f"data.cache.directory={tmp_path / 'cache'}", "data.evaluate=null"]
        words = arguments(place, str(run), *far, *SLOW_ORDER, *bounds)
        on_ranks("pretrain_run", world_size=2, arguments=words)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == STEPS and summary["every_sample_once"]
    told = [event["text"] for event in RunDirectory(run).read_events() if "text" in event]
    assert len(told) == 1 and f"waits for its batch: {server.url}/" in told[0], told
    (life,) = read_lives(run / "account")
    assert life.seconds["data_wait"] > HANG_SECONDS  # mean of the ranks, of which one may wait for the other


def stopped(server: Away, run: RunDirectory, given: list[str], *, steps: bool) -> str:
    """Start a run, press Ctrl-C when its store is away, and return what it says."""
    with going_on(*given) as command:
        begun(command, server.away.is_set)
        if steps:
            stepping(command, run)
        return told_to_stop(command, run, by=signal.SIGINT)


@pytest.mark.parametrize(
    ("ranks", "stage", "spike"),
    [
        pytest.param(1, 1, "record", marks=pytest.mark.campaign),
        (2, 1, "record"),
        pytest.param(2, 3, "skip", marks=pytest.mark.campaign),
    ],
)
def test_a_stop_is_not_kept_waiting_by_a_store_that_is_away_and_the_run_goes_on_to_the_same_bits(
    place: Path, shards: Path, tmp_path: Path, on_ranks: OnRanks, ranks: int, stage: int, spike: str
) -> None:
    """Its patience is nine minutes. With guard.spike=skip all ranks ask each other about a step's loss."""
    more = [*SLOW_ORDER, f"guard.spike={spike}", f"launch.ranks={ranks}", f"zero.stage={stage}"]
    run, undisturbed = RunDirectory(tmp_path / "run"), tmp_path / "undisturbed"
    with Away(shards, after=LATE) as server:
        far = [f"data.train={server.url}", f"data.cache.directory={tmp_path / 'cache'}", "data.evaluate=null"]
        given = arguments(place, str(run.path), *far, *more)
        assert "stopped and saved after" in stopped(server, run, given, steps=True)
        server.back()
        on_ranks("pretrain_run", world_size=ranks, arguments=given)
    near = [f"data.train={shards}", "data.evaluate=null"]
    on_ranks("pretrain_run", world_size=ranks, arguments=arguments(place, str(undisturbed), *near, *more))
    assert_bit_equal(last(run.path), last(undisturbed))
    assert json.loads(run.summary.read_text())["every_sample_once"]


def test_a_stop_that_one_rank_alone_is_told_is_not_kept_waiting_by_another_whose_images_do_not_come(
    place: Path, shards: Path, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    with Away(shards, after=LATE) as server:
        far = [f"data.train={server.url}", f"data.cache.directory={tmp_path / 'cache'}", "data.evaluate=null"]
        soon = ["guard.hang_seconds=3", "guard.start_seconds=80"]  # what keeps ranks is asked after a second
        with going_on(*arguments(place, str(run.path), *far, *SLOW_ORDER, *soon)) as command:
            begun(command, server.away.is_set)
            stepping(command, run)
            (told,) = (one for one in Process(command.pid).children() if one.environ()["RANK"] == "1")
            told.terminate()
            errors = command.communicate(timeout=PATIENCE_SECONDS)[1].decode()
    assert command.returncode == 0 and "stopped and saved after" in errors, errors
    stopped = run.marker("stopped")
    assert stopped is not None and stopped["reason"] == "SIGTERM" and run.find_checkpoints()


@pytest.mark.parametrize("after", [0, 1], ids=["the manifest", "the first shard"])
def test_so_it_is_where_the_store_was_away_from_the_start(
    place: Path, shards: Path, tmp_path: Path, after: int
) -> None:
    run = RunDirectory(tmp_path / "run")
    with Away(shards, after=after) as server:
        far = [f"data.train={server.url}", f"data.cache.directory={tmp_path / 'cache'}", "launch.ranks=1"]
        errors = stopped(server, run, arguments(place, str(run.path), *far, *SLOW_ORDER), steps=False)
    assert "the same command goes on" in errors and not any(run.checkpoints.glob("step-*"))


@pytest.mark.parametrize(
    ("ranks", "stage", "every"),
    [
        pytest.param(1, 1, 6, marks=pytest.mark.campaign),
        (2, 1, STEPS),
        pytest.param(2, 3, 6, marks=pytest.mark.campaign),
    ],
    ids=["alone", "at the end", "where passes are collective"],
)
def test_so_it_is_in_an_evaluation_which_the_next_life_does_with_the_same_figures(
    place: Path, shards: Path, tmp_path: Path, on_ranks: OnRanks, ranks: int, stage: int, every: int
) -> None:
    run, undisturbed = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "undisturbed")
    more = [f"evaluate.every={every} steps", "evaluate.batch=4", "save.best=ema_top1", "save.every=5 steps"]
    more += [f"evaluate.transfer={shards}", f"launch.ranks={ranks}", f"zero.stage={stage}"]
    with Away(shards, after=6) as server:
        far = [f"data.evaluate={server.url}", f"data.cache.directory={tmp_path / 'cache'}"]
        given = arguments(place, str(run.path), *more, *far)
        assert f"stopped and saved after {every * 24:,} images" in stopped(server, run, given, steps=True)
        assert not evaluations(run) and last(run.path).facts["progress"]["unevaluated"]
        server.back()
        on_ranks("pretrain_run", world_size=ranks, arguments=given)
    near = arguments(place, str(undisturbed.path), *more, f"data.evaluate={shards}")
    on_ranks("pretrain_run", world_size=ranks, arguments=near)
    assert_bit_equal(last(run.path), last(undisturbed.path))
    assert evaluations(run) == evaluations(undisturbed)
    best = max(evaluations(run), key=lambda row: row["evaluate/ema_top1"])
    judged = Checkpoint(run.checkpoints / f"step-{best['samples_seen'] // 24:08d}").facts
    assert judged["figures"]["ema_top1"] == best["evaluate/ema_top1"]
    assert judged["progress"]["figures"] == judged["figures"] and not judged["progress"]["unevaluated"]
    assert run.summary.read_text() == undisturbed.summary.read_text()
