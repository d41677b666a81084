"""Whole runs: stopped, killed, moved to other numbers of ranks, rolled back, started with another config."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coatnet.model import rows
from coatnet.runtime.lives import read_lives
from coatnet.runtime.run_directory import RunDirectory, read_lines
from data_pipeline.decode import backend_name

from tiny_runs import STEPS, arguments, assert_bit_equal, kinds, last

ROOT = Path(__file__).parents[3]
OnRanks = Callable[..., list[Any]]
pytestmark = pytest.mark.slow


def test_a_run_says_by_what_its_pixels_and_its_norms_were_computed(undisturbed: Path) -> None:
    environment = json.loads((undisturbed / "environment.json").read_text())
    assert environment["decoder"] == backend_name()
    assert environment["network"] == rows.name(device_type="cpu")


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_a_compiled_run_counts_its_compiling_as_such_and_as_no_hang(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["compile=true", "train.duration=4 steps", "launch.ranks=1", "guard.hang_seconds=1"]
    command = [sys.executable, "-m", "coatnet.cli", "pretrain", *arguments(place, str(run), *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    (life,) = read_lives(run / "account")
    assert life.seconds["compile"] > 1 and life.seconds["compute"] > 0
    assert sum(life.seconds.values()) == pytest.approx(life.ended - life.began, rel=0.01)


def test_two_one_three_two_ranks_see_the_same_samples_and_losses(
    place: Path, undisturbed: Path, on_ranks: OnRanks
) -> None:
    given = arguments(place, "elastic")
    for world_size, steps in ((2, 4), (1, 4), (3, 4), (2, 0)):
        on_ranks("pretrain_run", world_size=world_size, arguments=given, stop_after=steps)
    elastic, unbroken = (last(run).facts["progress"] for run in (place / "elastic", undisturbed))
    assert elastic["trained_digest"] == unbroken["trained_digest"]
    assert elastic["step"] == unbroken["step"] == STEPS
    assert json.loads((place / "elastic/summary.json").read_text())["every_sample_once"] is True
    np.testing.assert_allclose(elastic["losses"], unbroken["losses"], rtol=1e-5)


def test_a_run_that_changes_its_stage_in_the_middle_ends_where_it_would_have(
    place: Path, undisturbed: Path, on_ranks: OnRanks
) -> None:
    given = arguments(place, "restaged")
    on_ranks("pretrain_run", world_size=2, arguments=given, stop_after=6)
    on_ranks("pretrain_run", world_size=2, arguments=[*given, "zero.stage=2"])
    losses = last(place / "restaged").facts["progress"]["losses"]
    np.testing.assert_allclose(losses, last(undisturbed).facts["progress"]["losses"], rtol=1e-5)


def test_growing_images_and_weighed_classes_end_in_the_same_bits_after_a_stop_and_under_the_profiler(
    place: Path, on_ranks: OnRanks
) -> None:
    """Both lives trace what they take of the window, which neither reaches the end of."""
    grown = (
        "train.phases=[{image_size: 32}, {image_size: 64}]",
        "loss.class_weights=balanced",
        "train.duration=8 steps",
    )
    on_ranks("pretrain_run", world_size=2, arguments=arguments(place, "grown", *grown))
    stopped = RunDirectory(place / "stopped")
    given = arguments(place, "stopped", *grown, "profile.steps=4..60")
    on_ranks("pretrain_run", world_size=2, arguments=given, stop_after=5)  # amid the second resolution
    assert stopped.marker("stopped") is not None and stopped.marker("done") is None
    reached = last(stopped.path).step
    assert reached in (5, 6)  # the other rank may have heard of it in time
    on_ranks("pretrain_run", world_size=2, arguments=given)
    assert stopped.marker("stopped") is None and stopped.marker("done") is not None
    assert kinds(stopped.path).count("resume") == 1
    assert_bit_equal(last(stopped.path), last(place / "grown"))
    traced = {(4, reached, 0), (4, reached, 1), (reached + 1, 8, 0), (reached + 1, 8, 1)}
    names = {f"steps-{begin}-{end}-rank{rank}.json" for begin, end, rank in traced}
    assert {path.name for path in (stopped.logs / "profile").iterdir()} == names
    assert json.loads((stopped.path / "summary.json").read_text())["every_sample_once"] is True


def test_a_spike_rolls_back_and_its_samples_are_left_out_from_then_on(place: Path, on_ranks: OnRanks) -> None:
    guard = ["guard.spike=rollback", "guard.spike_window=4", "guard.spike_score=2000", "guard.spike_steps=1"]
    options = arguments(place, "spiky", *guard, "save.every=1 steps")
    on_ranks("pretrain_run", world_size=2, arguments=options, spike_at=8 * 24)
    run = place / "spiky"
    rolled_back = [one for one in RunDirectory(run).read_events() if one["kind"] == "rollback"]
    assert sorted(one["rank"] for one in rolled_back) == [0, 1] and (run / "done").exists()
    assert json.loads((run / "exclusions.json").read_text())["ranges"] == [[8 * 24, 9 * 24]]
    assert last(run).facts["data"]["excluded"]
    (life,) = read_lives(run / "account")
    assert life.seconds["redone"] > 0  # the spike's step, once more

    # The loss was a fault of the machine: the same step on another comes out otherwise.
    bundle, images = run / "replays" / "step-00000009", place / "images"
    written = (bundle / "config.yaml").read_text()
    (bundle / "config.yaml").write_text(written.replace(str(images), str(place / "elsewhere")))
    given = {"folder": str(bundle), "overrides": [f"data.train={images}"]}
    found = on_ranks("replay_bundle", world_size=1, **given)[0]
    assert found["reproduced"] is False and found["event"] == "rollback"
    assert found["positions"] == [8 * 24, 9 * 24] and found["checkpoint_step"] == 8
    again = float(found["steps"][-1]["loss"])
    assert again == pytest.approx(float(found["observed"]["loss"]) / 100, rel=1e-4)
    losses = [sample["loss"] for sample in found["worst_samples"]]
    assert losses == sorted(losses, reverse=True) and "class" in found["worst_samples"][0]["name"]


def test_a_spike_before_the_first_checkpoint_is_told_and_survived(
    place: Path, tmp_path: Path, on_ranks: OnRanks
) -> None:
    guard = ["guard.spike=rollback", "guard.spike_window=4", "guard.spike_score=2000"]
    early = [*guard, "save.every=100 steps", "train.duration=8 steps"]
    options = arguments(place, str(tmp_path / "run"), *early)
    on_ranks("pretrain_run", world_size=2, arguments=options, spike_at=4 * 24, spike_steps=2)
    run = RunDirectory(tmp_path / "run")
    alarms = [one["text"] for one in run.read_events() if one["kind"] == "alarm"]
    assert len(alarms) == 2 and "loss spike of step 5" in alarms[0] and run.marker("done") is not None
    assert (
        "the 2 steps from step 5 on spiked, and are what counts as usual" in alarms[1]
    )  # half of the window
    assert kinds(run.path).count("spike") == 4 and "rollback" not in kinds(run.path)  # two steps of two ranks


@pytest.mark.parametrize(
    ("options", "saved", "spike"),
    [
        (["data.tail=mask", "train.duration=4 epochs"], 120, (168, 180)),
        pytest.param(
            ["train.batch_changes=[{at: 6 steps, global_batch: 48}]", "train.duration=14 steps"],
            144,
            (240, 288),
            marks=pytest.mark.campaign,
        ),
    ],
    ids=["a masked tail", "a larger batch"],
)
def test_a_rollback_goes_back_over_a_change_of_ranks_stage_and_batch_to_the_same_losses(
    place: Path, tmp_path: Path, on_ranks: OnRanks, options: list[str], saved: int, spike: tuple[int, int]
) -> None:
    guard = ["guard.spike=rollback", "guard.spike_window=4", "guard.spike_score=2000"]
    guard += ["schedule.warmup=2 steps", f"save.every={saved} samples"]
    runs = [tmp_path / name for name in ("alone", "moved")]
    alone, moved = (arguments(place, str(run), *guard, *options) for run in runs)
    on_ranks("pretrain_run", world_size=1, arguments=alone, spike_at=spike[0])
    on_ranks("pretrain_run", world_size=2, arguments=moved, stop_after=5)
    assert last(runs[1]).step == 6  # of two ranks at stage 1, before the batch grew
    on_ranks("pretrain_run", world_size=1, arguments=[*moved, "zero.stage=3"], spike_at=spike[0])
    for run in runs:
        assert json.loads((run / "exclusions.json").read_text())["ranges"] == [list(spike)]
        assert json.loads((run / "summary.json").read_text())["every_sample_once"] is True
    one, other = (last(run).facts["progress"] for run in runs)
    for fact in ("step", "samples_seen", "trained_digest"):
        assert one[fact] == other[fact], fact
    np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-5)


def test_a_kill_in_the_middle_of_a_rollback_changes_nothing(
    place: Path, ask_ranks: Callable[..., Any], on_ranks: OnRanks
) -> None:
    guard = ["guard.spike=rollback", "guard.spike_window=4", "guard.spike_score=2000", "guard.spike_steps=2"]
    more = [*guard, "save.every=1 steps", "train.duration=12 steps"]
    given = arguments(place, "rolled_back", *more)
    on_ranks("pretrain_run", world_size=2, arguments=given, spike_at=7 * 24, spike_steps=2)
    given = arguments(place, "killed_rolling_back", *more)
    spike = {"spike_at": 7 * 24, "spike_steps": 2}
    died = ask_ranks("pretrain_run", world_size=2, arguments=given, kill_in_rollback=True, **spike)[0]
    assert died == {"error": "died"}
    on_ranks("pretrain_run", world_size=2, arguments=given, **spike)
    rolled_back, killed = place / "rolled_back", place / "killed_rolling_back"
    assert (killed / "exclusions.json").read_text() == (rolled_back / "exclusions.json").read_text()
    assert json.loads((killed / "exclusions.json").read_text())["ranges"] == [[7 * 24, 9 * 24]]
    assert_bit_equal(last(killed), last(rolled_back))


def test_a_refused_step_is_kept_and_comes_out_alike_on_one_device(place: Path, on_ranks: OnRanks) -> None:
    options = arguments(place, "wild", "guard.max_skipped=3")
    for error in on_ranks("failing_run", world_size=2, arguments=options, rate=1e30):
        assert "3 steps in a row were refused" in error
    run = place / "wild"
    (bundle,) = sorted((run / "replays").iterdir())
    found = on_ranks("replay_bundle", world_size=1, folder=str(bundle))[0]
    assert found["reproduced"] is True and found["event"] == "skipped_step"
    assert found["world_size"] == 2
    assert found["observed"]["gradient_norm"] == found["steps"][-1]["gradient_norm"] == "inf"
    assert len(found["steps"]) == 1 and found["step"] == found["checkpoint_step"]


def test_a_refused_step_after_which_is_evaluated_is_saved_with_what_was_found(
    place: Path, tmp_path: Path, on_ranks: OnRanks
) -> None:
    options = arguments(place, str(tmp_path / "run"), "train.duration=2 steps")
    assert on_ranks("failing_run", world_size=2, arguments=options, rate=1e30) == ["finished"] * 2
    progress = last(tmp_path / "run").facts["progress"]
    assert (progress["step"], progress["applied_steps"]) == (2, 1)
    (found,) = [row for row in read_lines(tmp_path / "run/metrics.jsonl") if "evaluate/top1" in row]
    assert progress["figures"]["top1"] == found["evaluate/top1"]


def test_a_step_of_one_rank_comes_out_to_the_bit_when_it_is_taken_again(
    place: Path, tmp_path: Path, on_ranks: OnRanks
) -> None:
    # Whatever lies above the median counts as a spike; a bundle begins at the checkpoint before.
    touchy = ["guard.spike_window=2", "guard.spike_score=0.001", "guard.replays=2", "train.duration=8 steps"]
    on_ranks("pretrain_run", world_size=1, arguments=arguments(place, str(tmp_path / "run"), *touchy))
    spikes = [one["step"] for one in RunDirectory(tmp_path / "run").read_events() if one["kind"] == "spike"]
    *_, bundle = sorted((tmp_path / "run" / "replays").iterdir())
    able = [
        f"step-{step:08d}" for step in spikes if step > 4
    ]  # before the first save there is nothing to go by
    assert [one.name for one in sorted(bundle.parent.iterdir())] == able[:2] and len(able) > 2
    (found,) = on_ranks("replay_bundle", world_size=1, folder=str(bundle))
    assert found["event"] == "spike" and found["reproduced"] is True
    assert found["equal_bits"] is True
    assert found["observed"]["loss"] == found["steps"][-1]["loss"]


# At stage 3 and with statistics over ranks a common pass needs all ranks.
@pytest.mark.parametrize("passes", [("zero.stage=1", "norm.sync=all"), ("zero.stage=3",)])
def test_a_rank_that_runs_out_of_memory_alone_leaves_nobody_waiting(
    place: Path, tmp_path: Path, on_ranks: OnRanks, passes: tuple[str, ...]
) -> None:
    tune = ["tune.micro_batch=auto", "augment.image_size=64", "train.global_batch=128"]
    short = ["train.micro_batch=null", "train.duration=1 steps", *tune, *passes]
    options = arguments(place, str(tmp_path / "tuned"), *short)
    assert on_ranks("tuned_run", world_size=2, arguments=options, spare_bytes=25 << 20) == ["finished"] * 2
    (tuned,) = [one for one in read_lines(tmp_path / "tuned/events.jsonl") if one["kind"] == "tuned"]
    assert 4 <= tuned["micro_batch"] < 64

    options = arguments(place, str(tmp_path / "untunable"), *short)
    for error in on_ranks("tuned_run", world_size=2, arguments=options, spare_bytes=1 << 20):
        assert re.search(r"out of memory on rank 1 \(.* GiB .*\) with train.micro_batch=4 at 64 px", error)


def test_a_batch_that_grows_during_the_run_sees_every_sample_once(place: Path, on_ranks: OnRanks) -> None:
    growing = (
        "train.batch_changes=[{at: 4 steps, global_batch: 48}]",
        f"evaluate.transfer={place / 'images'}",
        "data.evaluate=null",
    )
    on_ranks("pretrain_run", world_size=2, arguments=arguments(place, "growing", *growing))
    summary = json.loads((place / "growing/summary.json").read_text())
    assert summary["every_sample_once"] is True
    assert (summary["samples"], summary["steps"]) == (STEPS * 24, 4 + 6)
    assert summary["transfer_top1"] > 0.5  # classes that differ in brightness: by chance a third
    seldom = [row for row in read_lines(place / "growing/metrics.jsonl") if "train/loss" not in row]
    (norm,) = [row for row in seldom if "train/update_norm" in row]
    assert norm["samples_seen"] == 24, "of the first step, then of each fiftieth"
    assert 0 < norm["train/update_norm"] < 1
    (stages,) = [row for row in seldom if "activations/S1/mean" in row]
    assert stages["samples_seen"] == 24
    assert min(stages[f"activations/S{number}/deviation"] for number in range(1, 5)) > 0


@pytest.mark.parametrize(("world_size", "named"), [(3, [1]), (2, [])], ids=["a majority", "no majority"])
def test_a_flipped_bit_in_one_ranks_weights_is_found_and_the_rank_named_where_a_majority_tells(
    on_ranks: OnRanks, world_size: int, named: list[int]
) -> None:
    for before, after in on_ranks("flipped_bit", world_size=world_size, stage=1):
        assert before is None and after == named


@pytest.mark.parametrize("stage", [0, pytest.param(2, marks=pytest.mark.campaign)])
def test_weights_that_ranks_do_not_agree_on_are_never_saved_and_the_next_start_leaves_no_trace_of_them(
    place: Path, undisturbed: Path, ask_ranks: Callable[..., Any], on_ranks: OnRanks, stage: int
) -> None:
    run = place / f"flipped{stage}"
    given = arguments(place, run.name, f"zero.stage={stage}")
    answers = ask_ranks("pretrain_run", world_size=3, arguments=given, flip_after=8)
    assert "silent corruption: the weights of ranks [1] differ" in answers[1]["result"]
    assert "error" in answers[0] and "error" in answers[2]  # they lost rank 1
    (found,) = [one for one in RunDirectory(run).read_events() if one["kind"] == "silent_corruption"]
    assert (found["step"], found["ranks"]) == (8, [1])
    own, wrong, other = found["digests"]
    assert own == other != wrong
    assert last(run).step == 4
    on_ranks("pretrain_run", world_size=2, arguments=given)
    for rank in range(2):  # the main one alone reads how far the life before came
        own = json.loads((run / "account" / f"rank-{rank:05d}.jsonl").read_text())
        assert own["seconds"]["redone"] > 0
    losses = last(run).facts["progress"]["losses"]
    np.testing.assert_allclose(losses, last(undisturbed).facts["progress"]["losses"], rtol=1e-5)


def test_a_step_that_one_rank_alone_refuses_ends_the_run_and_is_in_no_checkpoint(
    place: Path, ask_ranks: Callable[..., Any]
) -> None:
    run = place / "refused by one"
    words = arguments(place, run.name, "zero.stage=0")
    answers = ask_ranks("lone_refusal", world_size=3, worker="pretrain", arguments=words)
    said = (
        "silent corruption: the gradients of ranks [1] differ from the others' in the step after 120 images"
    )
    assert said in answers[1]["result"]
    assert "error" in answers[0] and "error" in answers[2]  # they lost rank 1
    assert last(run).step == 4


def test_a_step_of_many_ranks_costs_two_collectives_of_ours_and_a_save_few_files(
    place: Path, tmp_path: Path, on_ranks: OnRanks
) -> None:
    ranks = 4
    found = {}
    for saves, steps in ((1, 2), (2, 6)):
        run = tmp_path / f"{steps}"
        cut = [f"train.global_batch={2 * ranks}", "train.micro_batch=2", "norm.group_images=2"]
        more = [f"train.duration={steps} steps", f"save.every={steps // saves} steps", "save.last=9"]
        given = [*arguments(place, str(run), *cut, *more), "data.evaluate=null"]
        found[steps] = on_ranks("counted_run", world_size=ranks, arguments=given, folder=str(run / "check"))
    for short, long in zip(found[2], found[6], strict=True):
        calls = {key: count - short["calls"].get(key, 0) for key, count in long["calls"].items()}
        assert {key: count for key, count in calls.items() if count} == {
            "all_reduce_sum of table": 4,
            "all_reduce_sum of commit_statistics": 4,
            "gather of differing_weights": 1,  # before each save
            "barrier of patience": 1,  # after it
        }
        assert long["bytes"]["all_reduce_sum of table"] == 48 * ranks
    first, others = (
        [
            sum(long["files"].values()) - sum(short["files"].values())
            for short, long in zip(*pair, strict=True)
        ]
        for pair in ((found[2][:1], found[6][:1]), (found[2][1:], found[6][1:]))
    )
    assert set(others) == {3}  # the save's folder, a file, and the folder synced
    assert first[0] <= 20 + 2 * ranks


def test_a_rank_that_hangs_right_after_a_save_ends_all_with_their_stacks_written(
    place: Path, ask_ranks: Callable[..., Any]
) -> None:
    bounds = ["guard.hang_seconds=3", "guard.start_seconds=80"]  # 8 s for each of the first twenty steps
    options = [*arguments(place, "hanging"), *bounds]
    answers = ask_ranks("hanging_run", world_size=2, worker="pretrain", arguments=options)
    assert all("error" in answer for answer in answers)
    stacks = [(place / "hanging" / "logs" / f"stacks-rank{rank}.txt").read_text() for rank in (0, 1)]
    assert "a_driver_that_hangs" in stacks[1]
    for text in stacks:
        waited = re.search(r"no step for (\d+) s; all stacks of process", text)
        assert waited and int(waited[1]) < 80
    assert last(place / "hanging").step == 4 and not (place / "hanging" / "done").exists()


@pytest.mark.timeout(600)
@pytest.mark.skipif(find_spec("sklearn") is None, reason="scikit-learn (extra `quickstart`) holds the digits")
def test_five_random_kills_of_a_rank_of_the_quickstart_leave_no_trace(tmp_path: Path) -> None:
    program = ROOT / "tests/integration/programs/quickstart_kills.py"
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path), "PYTHONPATH": path}
    command = [sys.executable, str(program), "3", "5", "5"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.pop("median_recovery_seconds") is not None
    assert result.pop("account_error") < 0.01 and result.pop("lives") >= 6
    assert result == {
        "kills": 5,
        "unrecoverable": 0,
        "bit_equal": True,
        "samples_lost": 0,
        "samples_doubled": 0,
    }
