"""A pretraining run: its parts, and what they do together. Knows no command line."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from coatnet.config import to_dict
from coatnet.config.plain_text import json_number
from coatnet.runtime.lease import Lease
from coatnet.runtime.run_directory import RunDirectory, write_atomically
from coatnet.training.distrust import distrust
from coatnet.training.run import TrainingRun
from coatnet.training.verdict import Verdict
from data_pipeline.batch import Batch
from data_pipeline.first_look import check_best
from data_pipeline.open_corpus import (
    check_same_everywhere,
    open_corpus,
    open_evaluation_corpus,
    settle_corpora,
)
from data_pipeline.stream import Stream
from pretrain.activations import ActivationStatistics
from pretrain.assembly import assemble, on_compilation
from pretrain.batches import settle_group_images
from pretrain.bundles import Bundle, find_bundles, write_bundle
from pretrain.config import PretrainConfig
from pretrain.engine.exposed import ExposedCommunication
from pretrain.evaluation import Evaluator
from pretrain.guard import Guard
from pretrain.health import Health
from pretrain.profiler import StepProfiler
from pretrain.state import State, digest_of_range
from pretrain.trainer import PretrainResult
from pretrain.transfer import TransferProbe
from pretrain.tune import largest_micro_batch, rehearse

_UPDATE_NORM_STEPS = 50


class PretrainRun(TrainingRun[State, PretrainResult]):
    """A pretraining run."""

    kind = "pretrain"
    state_type = State
    stream: Stream

    def __init__(
        self, config: PretrainConfig, *, run: RunDirectory, lease: Lease | None, digest: str, **parts: Any
    ) -> None:
        """Open the corpora, build the model and its engine.

        Raises:
            UserError: corpora, batches or model do not fit together.
        """
        hang_seconds, start_seconds = config.guard.hang_seconds, config.guard.start_seconds
        super().__init__(run, hang_seconds=hang_seconds, start_seconds=start_seconds, **parts)
        ranks = self.ranks
        self.config, self.zero_stage = config, config.zero.stage
        group_images = settle_group_images(config, ranks=ranks, run=run)
        assembly = assemble(config, ranks=ranks, account=self.account, group_images=group_images)
        self.engine, self.trainer = assembly.engine, assembly.trainer
        self.calendar, self.stream = assembly.calendar, assembly.stream
        settle_corpora({"data.train": assembly.corpora}, run=run, ranks=ranks)
        self._group_images = group_images
        self._exposed = ExposedCommunication(self.account)
        self._activations = ActivationStatistics(assembly.model)
        self._classes = assembly.classes
        self.equip(
            tensors=self.engine.state,
            save=config.save,
            lease=lease,
            model=assembly.model_config,
            precision=config.precision,
            augmented=self.trainer.transform.pictures,
            classes=assembly.classes,
            augment=to_dict(config.augment),
            norm=to_dict(config.norm),
            group_images=group_images,
            loss=config.loss.name,
            config_digest=digest,
        )
        self._judges = self._open_judges()
        self.profiler = StepProfiler(
            config.profile.window,
            folder=run.logs / "profile",
            ranks=ranks,
            patience=partial(self.patience, "idle"),
            alarm=self.recorder.alarm,
        )
        self._exclusions = run.path / "exclusions.json"
        self.guard = Guard(config.guard, rollbacks=self._read_exclusions())
        self.health = Health(config.guard, ranks=ranks, stage=config.zero.stage)
        if config.compile:
            on_compilation(self.watchdog.hold, self.watchdog.release)

    def _open_judges(self) -> list[Evaluator | TransferProbe]:
        """Open the corpora that are evaluated on."""
        config, judges = self.config, list[Evaluator | TransferProbe]()
        parts: dict[str, Any] = {"ranks": self.ranks, "way_out": self.way_out}
        evaluated = open_evaluation_corpus(config.data, classes=self._classes)
        check_best(config, evaluated, averaged=bool(config.ema))
        if evaluated is not None:
            check_same_everywhere([evaluated], self.ranks, name="data.evaluate")
            judges.append(Evaluator(evaluated, config, **parts))
        if config.evaluate.transfer:
            judges.append(TransferProbe(open_corpus(config.evaluate.transfer), config, **parts))
        return judges

    def resume(self) -> State:
        """Return the state to go on from, with the engine in it."""
        state = super().resume()
        if self.ranks.device_type == "cuda" and not self.config.compile:
            self.ranks.say("compile=true makes a step several times quicker on a GPU")
        self._activations.before_step(state.step + 1)
        self.profiler.before_step(state.step + 1)
        return state

    def take(self, state: State, batch: Batch, *, wish: int, refused: bool = False) -> PretrainResult:
        """Train on this rank's share of a step; with `refused` so that no gradient is finite."""
        before = state.samples_seen
        state.enter_phase(self.calendar.phase_at(before).begin)
        return self.trainer.step(
            batch,
            samples_seen=before,
            learning_rate=self.calendar.learning_rate(before + batch.step_samples(self.ranks.world_size)),
            wish=wish,
            veto=self.guard.veto(state),
            label=self.label(before),
            refused=refused,
        )

    def judge(self, state: State, result: PretrainResult) -> Verdict:
        """Say what to make of the step that led to `state`.

        A spike before the first checkpoint is survived: there is nothing to go back to.
        """
        spiking = state.spiking
        verdict = self.guard.judge(result, state)
        if state.spiking == 0 and self.guard.has_got_used(spiking):
            self.recorder.alarm(
                f"the {spiking} steps from step {state.spike_step} on spiked, and are what counts as usual "
                f"from now on: loss {result.loss:.4g}"
            )
        if not verdict.rollback:
            return verdict
        with self.patience("checkpoint"):
            if self.checkpoints.reach_before(verdict.step):
                return verdict
        if state.spiking == self.config.guard.spike_steps:  # the first of them
            self.recorder.alarm(
                f"no checkpoint from before the loss spike of step {verdict.step}; the run goes on"
            )
        return Verdict("spike", score=verdict.score)

    def measure(self, state: State) -> None:
        """Measure the evaluation corpus and that of the transfer, if there are any."""
        if not self._judges:
            return
        with self.patience("evaluation"):
            found = [judge.measure(self.engine) for judge in self._judges]
            own_bad = [sample for one in found for sample in one.bad]
            bad = [sample for own in self.ranks.gather(own_bad) for sample in own]
        state.figures = {name: figure for one in found for name, figure in one.figures.items()}
        confusion = found[0].confusion  # of the transfer there is none
        self.recorder.evaluation(state, state.figures, bad=bad, confusion=confusion, classes=self._classes)

    def save(self, state: State, *, wait: bool, **facts: Any) -> None:
        """Save what all ranks agree on, in the background or until it is done.

        Raises:
            Distrusted: the ranks' weights differ.
        """
        if self.config.guard.digest_every:
            with self.account.measure("checkpoint"):
                self._require_equal_weights(state)
        super().save(state, wait=wait, **facts)

    def look_after(self, state: State, result: PretrainResult) -> None:
        """Do what is done at every step without touching its result.

        Raises:
            Distrusted: the ranks' weights differ.
        """
        self._exposed.settle()
        if state.step == 1 or state.step % _UPDATE_NORM_STEPS == 0:
            norm = self.engine.update_norm(lr=result.learning_rate)
            self.recorder.occasional(state, {"train/update_norm": norm})
        self.recorder.occasional(state, self._activations.after_step())
        self._activations.before_step(state.step + 1)
        self.profiler.after_step(state.step)
        self.profiler.before_step(state.step + 1)
        super().look_after(state, result)
        for slow in self.health.after_step(state.step, result.seconds):
            self.recorder.event("straggler", step=state.step, **slow)
        if self.health.compares_weights_at(state.step):
            self._require_equal_weights(state)

    def _require_equal_weights(self, state: State) -> None:
        """End where the ranks' weights differ: nothing is ever saved that they did not agree on."""
        found = self.health.differing_weights(self.engine.module)
        if found is not None:
            self.recorder.event("silent_corruption", step=state.step, **found)
            distrust(found["ranks"], what="weights", when=f"at step {state.step}", ranks=self.ranks)

    def keep_for_replay(self, state: State, result: PretrainResult, verdict: Verdict) -> None:
        """Write a bundle of a bad step, the first of several in a row, as long as there are few.

        A refused step has changed nothing: the weights are saved now, and it can be taken again exactly. For
        one that was taken the newest checkpoint from before it must do.
        """
        assert verdict.event is not None
        known = self.ranks.broadcast(find_bundles(self.run.path) if self.ranks.is_main else None)
        if len(known) >= self.config.guard.replays or state.skipped_in_a_row > 1:
            return
        if not result.applied:
            self.save(state, wait=True)
        with self.patience("checkpoint"):  # without hard links files are copied
            checkpoint = self.checkpoints.newest_path() if self.ranks.is_main else None
            if checkpoint is not None:
                self._write_bundle(self._bundle(state, result, event=verdict.event), checkpoint)

    def _bundle(self, state: State, result: PretrainResult, *, event: str) -> Bundle:
        begin = state.samples_seen - result.samples
        share = self.calendar.phase_at(begin).global_batch // self.ranks.world_size
        return Bundle(
            event=event,
            step=state.step,
            samples_seen=begin,
            samples=result.samples,
            applied_steps=state.applied_steps - result.applied,
            applied=result.applied,
            loss=json_number(result.loss),
            gradient_norm=json_number(result.gradient_norm),
            micro_batch=min(self.trainer.micro_batch or share, share),
            world_size=self.ranks.world_size,
            data=self.stream.state(),
        )

    def _write_bundle(self, bundle: Bundle, checkpoint: Path) -> None:
        try:
            folder = write_bundle(self.run.path, bundle, config=self.run.config, checkpoint=checkpoint)
        except OSError as error:  # a full disk must not end a run that can go on
            self.recorder.alarm(f"no replay bundle of step {bundle.step}: {error}")
            return
        self.recorder.event("replay_bundle", step=bundle.step, folder=str(folder))

    def roll_back(self, state: State, verdict: Verdict) -> int:
        """Go back to before a spike and leave its samples out from now on; return the way, below zero."""
        reached = state.samples_seen
        self.stream.exclude(verdict.samples)
        with self.patience("checkpoint"):
            state.become(self.checkpoints.restore(before=verdict.step))
        self._redone_until = max(self._redone_until, reached)
        self.guard.rolled_back()
        # Last: a run that is killed before comes to the same spike again, and not from behind it.
        if self.ranks.is_main:
            known = _read_ranges(self._exclusions)
            ranges = [*known, [verdict.samples.start, verdict.samples.stop]]
            write_atomically(self._exclusions, json.dumps({"ranges": ranges}) + "\n")
        return state.samples_seen - reached

    def close(self, state: State | None) -> None:
        """Finish what is under way."""
        if state is not None:
            self.profiler.close(state.step)
        super().close(state)

    def summary(self, state: State) -> dict[str, Any]:
        """Return what summary.json says of a run that reached its end."""
        return {
            **state.figures,
            "samples": state.samples_seen,
            "steps": state.step,
            "applied_steps": state.applied_steps,
            "every_sample_once": state.trained_digest == digest_of_range(state.samples_seen),
        }

    def rehearse(self) -> None:
        """Find out-of-memory and bad shapes before data are touched, or the largest micro-batch."""
        size = max(phase.image_size for phase in self.calendar.phases)
        shares = [phase.global_batch // self.ranks.world_size for phase in self.calendar.phases]
        if self.config.tune.micro_batch == "auto":
            self.trainer.micro_batch = largest_micro_batch(
                self.trainer, image_size=size, shares=shares, group_images=self._group_images
            )
            self.recorder.event("tuned", micro_batch=self.trainer.micro_batch)
            self.ranks.say(f"tune.micro_batch: train.micro_batch={self.trainer.micro_batch} fits")
        else:
            rehearse(self.trainer, image_size=size, samples=self.trainer.micro_batch or max(shares))

    def _read_exclusions(self) -> int:
        ranges = self.ranks.broadcast(_read_ranges(self._exclusions) if self.ranks.is_main else None)
        for begin, end in ranges:
            self.stream.exclude(range(begin, end))
        return len(ranges)


def _read_ranges(path: Path) -> list[list[int]]:
    return json.loads(path.read_text())["ranges"] if path.exists() else []
