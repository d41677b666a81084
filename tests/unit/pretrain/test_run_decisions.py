"""What a pretraining run makes of a step: when it goes back, what it keeps, measures and refuses to save."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory
from coatnet.training.run import TrainingRun
from coatnet.training.verdict import Verdict
from pretrain import run as run_module
from pretrain.evaluation import Findings
from pretrain.health import Health
from pretrain.run import PretrainRun
from pretrain.sections import GuardConfig, TuneConfig
from pretrain.state import State, digest_of_range
from pretrain.trainer import PretrainResult

ROLLBACK = Verdict("rollback", score=20.0, rollback=True, step=5, samples=range(32, 48))


def stand_in(**parts: Any) -> Any:
    """Return what stands for a run of one rank, whose `done` notes what is asked of it."""
    done = list[Any]()
    return SimpleNamespace(
        done=done,
        ranks=Ranks(),
        config=SimpleNamespace(guard=GuardConfig(spike_steps=2)),
        recorder=SimpleNamespace(
            alarm=lambda text: done.append(text),
            evaluation=lambda state, figures, **found: done.append((figures, found)),
        ),
        patience=lambda name: nullcontext(),
        save=lambda state, wait: done.append(f"save {state.step}{' and wait' * wait}"),
        **parts,
    )


def result(*, applied: bool = True) -> PretrainResult:
    return PretrainResult(
        samples=8, losses=[9.0], seconds=[0.1], gradient_norm=1.0, learning_rate=0.1, applied=applied,
        digest=0, wishes=[0],
    )  # fmt: skip


def judging(verdict: Verdict, *, reached: bool, spiking: int) -> tuple[Any, State, list[int]]:
    asked = list[int]()

    def judge(result: Any, state: State) -> Verdict:
        state.spiking = spiking
        return verdict

    def reach_before(step: int) -> bool:
        asked.append(step)
        return reached

    guard = SimpleNamespace(judge=judge, has_got_used=lambda spiking: spiking >= 4)
    run = stand_in(guard=guard, checkpoints=SimpleNamespace(reach_before=reach_before))
    return run, State(step=6), asked


def test_a_spike_is_gone_back_from_where_there_is_a_checkpoint_from_before_its_first_step() -> None:
    run, state, asked = judging(ROLLBACK, reached=True, spiking=2)
    assert PretrainRun.judge(run, state, result()) is ROLLBACK
    assert asked == [5] and run.done == []


@pytest.mark.parametrize(("spiking", "alarms"), [(2, 1), (3, 0)])
def test_where_there_is_none_the_run_goes_on_and_says_so_at_the_first_of_several(
    spiking: int, alarms: int
) -> None:
    run, state, _ = judging(ROLLBACK, reached=False, spiking=spiking)
    verdict = PretrainRun.judge(run, state, result())
    assert (verdict.event, verdict.rollback, verdict.score) == ("spike", False, 20.0)
    assert len(run.done) == alarms


@pytest.mark.parametrize(("before", "after", "alarms"), [(4, 0, 1), (4, 5, 0), (3, 0, 0)])
def test_that_a_level_is_usual_by_now_is_said_when_its_steps_spike_no_more(
    before: int, after: int, alarms: int
) -> None:
    run, state, _ = judging(Verdict(), reached=True, spiking=after)
    state.spiking = before
    PretrainRun.judge(run, state, result())
    assert len(run.done) == alarms


def test_a_rollback_notes_last_what_it_leaves_out_beside_what_earlier_ones_did(tmp_path: Path) -> None:
    noted, order = tmp_path / "exclusions.json", list[str]()
    noted.write_text(json.dumps({"ranges": [[0, 8]]}))

    def restore(before: int) -> State:
        order.append(f"restore before {before}, {len(json.loads(noted.read_text())['ranges'])} noted")
        return State(step=4, samples_seen=32)

    run = stand_in(
        stream=SimpleNamespace(exclude=lambda samples: order.append(f"exclude {samples}")),
        checkpoints=SimpleNamespace(restore=restore),
        guard=SimpleNamespace(rolled_back=lambda: order.append("counted")),
        _exclusions=noted,
        _redone_until=64,
    )
    state = State(step=6, samples_seen=48)
    assert PretrainRun.roll_back(run, state, ROLLBACK) == -16
    assert order == ["exclude range(32, 48)", "restore before 5, 1 noted", "counted"]
    assert json.loads(noted.read_text()) == {"ranges": [[0, 8], [32, 48]]}
    assert (state.step, state.samples_seen, run._redone_until) == (4, 32, 64)
    PretrainRun.roll_back(run, State(step=12, samples_seen=96), ROLLBACK)
    assert run._redone_until == 96


@pytest.mark.parametrize(
    ("known", "applied", "refused", "done"),
    [
        (0, True, 0, ["bundle"]),
        (0, False, 1, ["save 6 and wait", "bundle"]),
        (0, False, 2, []),
        (2, True, 0, ["bundle"]),
        (3, True, 0, []),
    ],
    ids=["taken", "refused", "the second in a row", "room for one", "enough"],
)
def test_the_first_few_bad_steps_are_kept_and_a_refused_one_with_the_weights_that_it_saw(
    tmp_path: Path, known: int, applied: bool, refused: int, done: list[str]
) -> None:
    for number in range(known):
        (tmp_path / "replays" / f"step-{number:08d}").mkdir(parents=True)
    run = stand_in(
        run=SimpleNamespace(path=tmp_path),
        checkpoints=SimpleNamespace(newest_path=lambda: tmp_path),
        _bundle=lambda state, result, event: event,
        _write_bundle=lambda bundle, checkpoint: run.done.append("bundle"),
    )
    run.config.guard.replays = 3
    state = State(step=6, skipped_in_a_row=refused)
    PretrainRun.keep_for_replay(run, state, result(applied=applied), Verdict("skipped_step"))
    assert run.done == done


@pytest.mark.parametrize(("every", "compared"), [(0, 0), (100, 1)])
def test_weights_are_compared_before_each_save_where_they_ever_are(
    monkeypatch: pytest.MonkeyPatch, every: int, compared: int
) -> None:
    done = list[str]()
    run = object.__new__(PretrainRun)
    run.config = cast(Any, SimpleNamespace(guard=GuardConfig(digest_every=every)))
    run.account = cast(Any, SimpleNamespace(measure=lambda name: nullcontext()))
    monkeypatch.setattr(run, "_require_equal_weights", lambda state: done.append("compared"), raising=False)
    monkeypatch.setattr(TrainingRun, "save", lambda run, state, **facts: done.append("saved"))
    run.save(State(), wait=True)
    assert done == ["compared"] * compared + ["saved"]


@pytest.mark.parametrize(("step", "done"), [(99, []), (100, ["compared at 100"]), (101, [])])
def test_weights_are_compared_between_saves_after_so_many_steps(
    monkeypatch: pytest.MonkeyPatch, step: int, done: list[str]
) -> None:
    monkeypatch.setattr(TrainingRun, "look_after", lambda run, state, result: None)
    found, before = list[str](), {"before_step": lambda step: None}
    run = object.__new__(PretrainRun)
    run.health = Health(GuardConfig(digest_every=100), ranks=Ranks(), stage=1)
    run._exposed = cast(Any, SimpleNamespace(settle=lambda: None))
    run._activations = cast(Any, SimpleNamespace(after_step=dict, **before))
    run.profiler = cast(Any, SimpleNamespace(after_step=lambda step: None, **before))
    run.recorder = cast(Any, SimpleNamespace(occasional=lambda state, values: None))
    run.engine = cast(Any, SimpleNamespace(update_norm=lambda lr: 1.0))
    monkeypatch.setattr(
        run, "_require_equal_weights", lambda state: found.append(f"compared at {state.step}"), raising=False
    )
    run.look_after(State(step=step), result())
    assert found == done


def test_a_hang_and_a_start_have_the_bounds_that_the_config_gives_to_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Begun(Exception):
        pass

    def begin(run: Any, folder: RunDirectory, **given: Any) -> None:
        raise Begun(given)

    monkeypatch.setattr(TrainingRun, "__init__", begin)
    config: Any = SimpleNamespace(guard=GuardConfig(hang_seconds=7.0, start_seconds=90.0))
    with pytest.raises(Begun) as begun:
        PretrainRun(config, run=RunDirectory(tmp_path), lease=None, digest="")
    assert begun.value.args == ({"hang_seconds": 7.0, "start_seconds": 90.0},)


def test_an_evaluation_has_the_figures_of_all_corpora_and_the_unreadable_images_of_all_ranks() -> None:
    class Two(Ranks):
        def gather(self, value: Any) -> list[Any]:
            return [value, [{"name": "of the other rank"}]]

    found = [
        Findings({"top1": 0.5}, [{"name": "a"}], cast(Any, "counts")),
        Findings({"knn": 0.25}, [{"name": "b"}]),
    ]
    judges = [SimpleNamespace(measure=lambda engine, one=one: one) for one in found]
    run = stand_in(_judges=judges, engine=None, _classes=["x", "y"])
    run.ranks, state = Two(), State()
    PretrainRun.measure(run, state)
    assert state.figures == {"top1": 0.5, "knn": 0.25}
    ((figures, told),) = run.done
    assert figures == state.figures and told["confusion"] == "counts" and told["classes"] == ["x", "y"]
    assert [sample["name"] for sample in told["bad"]] == ["a", "b", "of the other rank"]


def test_a_step_is_taken_at_the_rate_of_its_end_by_the_guard_of_its_phase() -> None:
    told, state = dict[str, Any](), State(samples_seen=32, losses=[1.0], phase_begin=0)
    batch = SimpleNamespace(step_samples=lambda world_size: 16)
    run = stand_in(
        calendar=SimpleNamespace(
            phase_at=lambda position: SimpleNamespace(begin=position), learning_rate=lambda position: position
        ),
        guard=SimpleNamespace(veto=lambda state: ("veto", list(state.losses))),
        trainer=SimpleNamespace(step=lambda batch, **how: told.update(how)),
        label=lambda position: f"label of {position}",
    )
    PretrainRun.take(run, state, cast(Any, batch), wish=3, refused=True)
    assert state.phase_begin == 32
    assert told == {
        "samples_seen": 32,
        "learning_rate": 48,
        "wish": 3,
        "veto": ("veto", []),
        "label": "label of 32",
        "refused": True,
    }


@pytest.mark.parametrize(("digest", "once"), [(digest_of_range(32), True), (digest_of_range(31), False)])
def test_the_summary_says_whether_every_sample_came_once(digest: int, once: bool) -> None:
    state = State(samples_seen=32, step=4, applied_steps=3, trained_digest=digest, figures={"top1": 0.5})
    assert PretrainRun.summary(stand_in(), state) == {
        "top1": 0.5,
        "samples": 32,
        "steps": 4,
        "applied_steps": 3,
        "every_sample_once": once,
    }


@pytest.mark.parametrize(("micro_batch", "samples"), [(None, 32), (4, 4)])
def test_the_rehearsal_takes_the_largest_images_and_as_many_as_ever_go_at_once(
    monkeypatch: pytest.MonkeyPatch, micro_batch: int | None, samples: int
) -> None:
    phases = [SimpleNamespace(image_size=size, global_batch=batch) for size, batch in ((32, 64), (64, 32))]
    run = stand_in(calendar=SimpleNamespace(phases=phases), trainer=SimpleNamespace(micro_batch=micro_batch))
    run.ranks, run.config.tune = Ranks(world_size=2), TuneConfig()
    tried = list[dict[str, int]]()
    monkeypatch.setattr(run_module, "rehearse", lambda trainer, **how: tried.append(how))
    PretrainRun.rehearse(run)
    assert tried == [{"image_size": 64, "samples": samples}]


def test_a_bundle_tells_the_position_and_the_updates_before_its_step() -> None:
    run = stand_in(
        calendar=SimpleNamespace(phase_at=lambda position: SimpleNamespace(global_batch=position)),
        trainer=SimpleNamespace(micro_batch=64),
        stream=SimpleNamespace(state=lambda: {"order": 1}),
    )
    for applied, updates in ((True, 4), (False, 5)):
        state = State(step=6, samples_seen=48, applied_steps=5)
        bundle = PretrainRun._bundle(run, state, result(applied=applied), event="spike")
        assert (bundle.step, bundle.samples_seen, bundle.samples) == (6, 40, 8)
        assert (bundle.applied_steps, bundle.applied, bundle.micro_batch) == (updates, applied, 40)


def test_a_disk_that_takes_no_bundle_ends_no_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*given: Any, **options: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr(run_module, "write_bundle", full)
    run = stand_in(run=SimpleNamespace(path=tmp_path, config=tmp_path))
    PretrainRun._write_bundle(run, cast(Any, SimpleNamespace(step=6)), tmp_path)
    assert run.done == ["no replay bundle of step 6: no room"]


def test_what_earlier_lives_left_out_stays_out_and_counts_as_their_rollbacks(tmp_path: Path) -> None:
    left_out = list[range]()
    run = stand_in(_exclusions=tmp_path / "exclusions.json", stream=SimpleNamespace(exclude=left_out.append))
    assert PretrainRun._read_exclusions(run) == 0
    run._exclusions.write_text(json.dumps({"ranges": [[0, 8], [32, 48]]}))
    assert PretrainRun._read_exclusions(run) == 2 and left_out == [range(8), range(32, 48)]
