"""A killed and resumed fine-tuning run ends with the very bits of one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bits import assert_same_tensors, newest
from far_corpora import Away
from waiting import PATIENCE_SECONDS, wait_until

from coatnet.checkpoint.reader import Checkpoint
from coatnet.runtime.lease import Lease
from coatnet.runtime.run_directory import read_lines
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.sharder import shard_corpus

ROOT = Path(__file__).parents[3]
Arguments = Command = Callable[..., list[str]]
Run = Callable[..., subprocess.CompletedProcess[str]]
OnRanks = Callable[..., list[Any]]


def last_checkpoint(directory: Path) -> Checkpoint:
    return newest(directory / "checkpoints")


def assert_equal_to_the_bit(first: Path, second: Path) -> None:
    one, other = last_checkpoint(first), last_checkpoint(second)
    assert one.step == other.step
    assert_same_tensors(one, other)
    for key in ("data", "evaluation", "figures"):
        assert one.facts[key] == other.facts[key]
    assert one.facts["progress"]["applied_steps"] == other.facts["progress"]["applied_steps"]


def start(words: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # bits depend on it
    command = [sys.executable, "-m", "coatnet.cli", *words]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)


def kill_after_a_checkpoint(words: list[str], directory: Path, *, steps: int) -> None:
    process = start(words)
    checkpoint = directory / "checkpoints" / f"step-{steps:08d}"
    wait_until(lambda: checkpoint.exists() or process.poll() is not None, what=str(checkpoint))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert any((directory / "checkpoints").glob("step-*")), "killed before the first checkpoint"


@pytest.mark.campaign
def test_a_killed_command_resumes_to_the_same_bits(
    trained: Path, command: Command, coatnet: Run, tmp_path: Path
) -> None:
    words = command(tmp_path / "killed")
    kill_after_a_checkpoint(words, tmp_path / "killed", steps=2)
    kill_after_a_checkpoint(words, tmp_path / "killed", steps=8)
    coatnet(*words)
    assert_equal_to_the_bit(trained, tmp_path / "killed")
    kinds = [row["kind"] for row in read_lines(tmp_path / "killed" / "events.jsonl")]
    assert kinds.count("start") == 1 and kinds.count("resume") == 2


@pytest.mark.slow
def test_a_run_killed_twice_resumes_to_the_same_bits(
    trained: Path, arguments: Arguments, on_ranks: OnRanks, tmp_path: Path
) -> None:
    words = arguments(tmp_path / "killed")
    # In the fifth step: the fourth's save has begun, and so the second's is committed.
    for life in ({"kill_after": 5, "dies": True}, {"kill_after": 5, "dies": True}, {}):
        on_ranks("finetune_run", world_size=1, arguments=words, **life)
    assert_equal_to_the_bit(trained, tmp_path / "killed")
    kinds = [row["kind"] for row in read_lines(tmp_path / "killed" / "events.jsonl")]
    assert kinds.count("start") == 1 and kinds.count("resume") == 2


@pytest.mark.slow
def test_a_run_stopped_by_sigterm_saves_and_goes_on_to_the_same_bits(
    trained: Path, arguments: Arguments, on_ranks: OnRanks, tmp_path: Path
) -> None:
    words = arguments(tmp_path / "stopped", save__every="6 steps")
    on_ranks("finetune_run", world_size=1, arguments=words, stop_after=3)
    assert (tmp_path / "stopped" / "stopped").exists() and last_checkpoint(tmp_path / "stopped").step == 4
    on_ranks("finetune_run", world_size=1, arguments=words)
    assert_equal_to_the_bit(trained, tmp_path / "stopped")


@pytest.mark.slow
def test_a_run_told_to_stop_while_it_evaluates_ends_after_the_next_step_and_goes_on_to_the_same_bits(
    trained: Path, arguments: Arguments, on_ranks: OnRanks, tmp_path: Path
) -> None:
    words = arguments(tmp_path / "stopped", save__every="50 steps")
    on_ranks("finetune_run", world_size=1, arguments=words, stop_in_evaluation=True)
    assert (tmp_path / "stopped" / "stopped").exists()
    stopped = last_checkpoint(tmp_path / "stopped")
    assert stopped.step == 7 and stopped.facts["evaluation"]["at"] == 6 * 16
    on_ranks("finetune_run", world_size=1, arguments=words)
    assert_equal_to_the_bit(trained, tmp_path / "stopped")


@pytest.mark.slow
def test_a_stop_does_not_wait_for_images_to_evaluate_and_the_next_life_judges_that_step_as_it_would_have_been(
    photos: Path, arguments: Arguments, command: Command, on_ranks: OnRanks, tmp_path: Path
) -> None:
    """The step is the last of a resolution, and the best so far."""
    shards, left, whole = tmp_path / "shards", tmp_path / "left", tmp_path / "whole"
    shard_corpus(photos / "validation", shards, options=ShardOptions(shard_samples=3), quiet=True)
    phases = "[{image_size: 32, share: 1}, {image_size: 64, share: 2}]"
    changes = {"train__phases": phases, "train__patience": "1", "train__duration": "18 steps"}
    changes |= {"evaluate__batch": "3", "save__keep_every_steps": "6"}
    with Away(shards, after=4) as server:
        changes["data__cache__directory"] = str(tmp_path / "cache")
        changes["data__evaluate"] = server.url
        words = command(left, **changes)
        process = start(words)
        wait_until(lambda: server.away.is_set() or process.poll() is not None, what="the first evaluation")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0 and (left / "stopped").exists()
        stopped = last_checkpoint(left)
        assert stopped.step == 6 and stopped.facts["progress"]["unevaluated"]
        server.back()
        on_ranks("finetune_run", world_size=1, arguments=words[1:])
    changes["data__evaluate"] = str(shards)
    on_ranks("finetune_run", world_size=1, arguments=arguments(whole, **changes))
    assert_equal_to_the_bit(whole, left)
    one, other = (Checkpoint(run / "checkpoints" / "step-00000006").facts for run in (whole, left))
    assert one["evaluation"]["image_size"] == 32 and one["progress"]["best_step"] == 6
    assert all(one[key] == other[key] for key in ("evaluation", "figures", "progress", "augment"))


@pytest.mark.slow
def test_a_disk_that_fills_up_costs_records_and_saves_but_not_the_run(
    trained: Path, arguments: Arguments, on_ranks: OnRanks, small_disk: Path
) -> None:
    run, ballast = small_disk / "run", small_disk / "ballast"
    words = arguments(run)
    full = {"fill_after": 6, "ballast": str(ballast), "committed": str(run / "checkpoints/step-00000004")}
    (ending,) = on_ranks("finetune_run", world_size=1, arguments=words, **full)
    assert "could not be saved" in ending and not (run / "done").exists()
    assert last_checkpoint(run).step == 4
    ballast.unlink()
    on_ranks("finetune_run", world_size=1, arguments=words)
    assert (run / "done").exists()
    assert_equal_to_the_bit(trained, run)


def test_a_second_start_hears_at_once_who_holds_the_run(
    command: Command, coatnet: Run, tmp_path: Path
) -> None:
    lease = Lease.acquire(tmp_path / "run")
    try:
        refused = coatnet(*command(tmp_path / "run"), check=False)
    finally:
        lease.release()
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert f"held by process {os.getpid()} on" in refused.stderr


@pytest.mark.campaign
def test_a_rank_that_is_suspended_for_longer_than_collectives_wait_is_waited_for(
    arguments: Arguments, on_ranks: OnRanks, tmp_path: Path
) -> None:
    words = arguments(tmp_path / "suspended")
    on_ranks("suspended_run", world_size=2, worker="finetune", arguments=words)
    assert (tmp_path / "suspended" / "done").exists()


@pytest.mark.slow
def test_a_rank_that_hangs_ends_all_with_their_stacks_written(
    arguments: Arguments, ask_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    words = arguments(tmp_path / "hanging")
    answers = ask_ranks("hanging_run", world_size=2, worker="finetune", arguments=words)
    assert all("error" in answer for answer in answers)
    stacks = [(tmp_path / "hanging" / "logs" / f"stacks-rank{rank}.txt").read_text() for rank in (0, 1)]
    assert "a_driver_that_hangs" in stacks[1] and "all stacks of process" in stacks[0]


@pytest.mark.slow
def test_a_rank_that_refuses_a_step_alone_ends_all_before_they_wait_for_each_other(
    arguments: Arguments, ask_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    words = arguments(tmp_path / "refused", train__global_batch="24")
    answers = ask_ranks("lone_refusal", world_size=3, worker="finetune", arguments=words)
    said = (
        "silent corruption: the gradients of ranks [1] differ from the others' in the step after 120 images"
    )
    assert said in answers[1]["result"]
    assert "error" in answers[0] and "error" in answers[2]  # they lost rank 1
    assert last_checkpoint(tmp_path / "refused").step == 4


@pytest.mark.slow
def test_two_ranks_killed_and_resumed_end_with_the_same_bits_with_and_without_zero(
    trained: Path, arguments: Arguments, on_ranks: OnRanks, tmp_path: Path
) -> None:
    def train(name: str, **changes: str) -> Path:
        words = arguments(tmp_path / name, **changes)
        for life in ({"kill_after": 7, "dies": True}, {}) if "killed" in name else ({},):
            on_ranks("finetune_run", world_size=2, arguments=words, **life)
        return tmp_path / name

    whole, sharded = train("whole"), train("whole-1", zero="1")
    assert_equal_to_the_bit(whole, train("killed"))
    assert_equal_to_the_bit(sharded, train("killed-1", zero="1"))
    one = last_checkpoint(trained)
    for other in map(last_checkpoint, (whole, sharded, train("whole-2", zero="2"))):
        # Batch norm cancels this bias: its gradient is rounding noise, which Adam scales up.
        for name in set(one.names("weight")) - {"stem.conv1.bias"}:
            assert torch.allclose(one.tensor("weight", name), other.tensor("weight", name), atol=1e-3), name


@pytest.mark.slow
@pytest.mark.parametrize("zero", ["0", pytest.param("2", marks=pytest.mark.campaign)])
def test_a_rank_that_waits_for_its_batch_in_vain_lets_the_others_save_and_they_go_on_to_the_same_bits(
    arguments: Arguments, on_ranks: OnRanks, tmp_path: Path, zero: str
) -> None:
    whole, left = (arguments(tmp_path / name, zero=zero) for name in ("whole", "left"))
    on_ranks("finetune_run", world_size=2, arguments=whole)
    on_ranks("finetune_run", world_size=2, arguments=left, leave_after=3)
    assert (tmp_path / "left" / "stopped").exists() and last_checkpoint(tmp_path / "left").step == 3
    on_ranks("finetune_run", world_size=2, arguments=left)
    assert_equal_to_the_bit(tmp_path / "whole", tmp_path / "left")


def test_a_finished_run_is_not_trained_again_and_another_config_is_refused(
    trained: Path, command: Command, coatnet: Run
) -> None:
    before = json.loads((trained / "summary.json").read_text())
    done = coatnet(*command(trained), check=False)
    assert done.returncode == 0
    assert json.loads((trained / "summary.json").read_text())["top1"] == before["top1"]
    refused = coatnet(*command(trained, optimizer__learning_rate="1e-3"), check=False)
    assert refused.returncode == 2
    assert "another config" in refused.stderr and refused.stderr.count("\n") == 1
    assert "--force" not in refused.stderr, "which this command does not have"
