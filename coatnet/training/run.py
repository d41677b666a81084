"""A training run's parts, and what they do together: how it begins, is judged, saved and ended.

Both stages derive theirs; `coatnet.training.loop` calls it. Knows no data, and no engine by name.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Generic, TypeVar

import torch

from coatnet.config import to_dict
from coatnet.config.plain_text import json_text, number_of
from coatnet.model.config import ModelConfig
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.data_wait import DataWait
from coatnet.runtime.lease import Lease
from coatnet.runtime.lives import read_lives
from coatnet.runtime.metrics_log import MetricsLog
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory, write_atomically
from coatnet.runtime.stop import StopFlag, Stopped
from coatnet.runtime.watchdog import Watchdog
from coatnet.training.calendar import Calendar
from coatnet.training.checkpoints import Checkpoints, State, Stream
from coatnet.training.continuity import LossContinuity
from coatnet.training.earlier import read_earlier
from coatnet.training.recorder import LEAVE, SAVE, STOP, Recorder, StepResult
from coatnet.training.sections import SaveConfig
from coatnet.training.sharded_state import ShardedState
from coatnet.training.utilisation import flops_per_image, peak_flops
from coatnet.training.verdict import Verdict, too_many_refused
from coatnet.training.way_out import WayOut

_MAX_REFUSED_IN_A_ROW = 10
_ANSWER_SECONDS = 5.0
_BEFORE_A_STOP = {  # what may take long, by the account's classes
    "start": "the start",
    "compile": "the compilation under way",
    "compute": "the step under way",
    "redone": "the step under way",
    "communication": "the step under way",
    "evaluation": "the evaluation under way",
    "checkpoint": "the save under way",
}
Result = TypeVar("Result", bound=StepResult)


class TrainingRun(Generic[State, Result]):
    """Everything that the loop calls.

    A stage sets `kind`, `state_type` and `zero_stage`, makes `calendar` and `stream`, calls `equip`, and
    defines `take`, `measure` and `summary`.

    Attributes:
        kind: of the checkpoints.
        account, recorder, checkpoints, watchdog, way_out: of the run.
    """

    kind: str
    state_type: type[State]
    zero_stage: int
    calendar: Calendar
    stream: Stream

    def __init__(
        self,
        run: RunDirectory,
        *,
        ranks: Ranks,
        stop: StopFlag,
        hang_seconds: float | None = None,
        start_seconds: float | None = None,
    ) -> None:
        """Open the account and the watchdog.

        Args:
            run, ranks: whose training it is.
            stop: tells that this rank is to stop.
            hang_seconds: the least time without a step that counts as a hang; None for ten minutes, and
                without bound for one rank alone, for which nobody waits.
            start_seconds: the same until the first step is done; None for an hour.
        """
        usual = (600.0, 3600.0) if ranks.distributed else (math.inf, math.inf)
        self.run, self.ranks, self._stop = run, ranks, stop
        self._redone_until = 0
        self._answered: set[str] = set()
        self.account = TimeAccount.of_run(run, ranks=ranks)
        self.watchdog = Watchdog(
            run.logs / f"stacks-rank{ranks.rank}.txt",
            hang_seconds=hang_seconds or usual[0],
            start_seconds=start_seconds or usual[1],
            data_wait=DataWait(ranks, self.excuses, stop=stop),
            say=lambda text: self.recorder.alarm(text),
            look=self._answer,
        )
        self.way_out = WayOut(ranks, is_told=self.is_told, breathe=self.watchdog.breathe)

    def _answer(self) -> None:
        """Say what a stop that was asked for waits for, once that takes long; the same is said once."""
        what = _BEFORE_A_STOP.get(self.account.counting)
        late = time.monotonic() - self._stop.asked_at > _ANSWER_SECONDS
        if late and what is not None and what not in self._answered:
            self._answered.add(what)
            self.ranks.say(f"{self._stop.reason}: the run will end after {what}")

    def is_told(self) -> bool:
        """Return whether this rank was told to stop."""
        return self._stop.requested

    def excuses(self) -> dict[str, str]:
        """Return what excuses that no step gets done; nothing once this rank was told to stop after one."""
        return {} if self.is_told() else self.stream.excuses()

    def equip(
        self,
        *,
        tensors: ShardedState,
        save: SaveConfig,
        lease: Lease | None,
        model: ModelConfig,
        precision: str,
        augmented: Callable[[Any], torch.Tensor],
        begins_with: str = "",
        frozen: Sequence[str] = (),
        **facts: Any,
    ) -> None:
        """Make the recorder and the checkpoints.

        Args:
            tensors: what is saved.
            save: when, and which checkpoints stay.
            lease: of the run, on the main rank.
            model: what is trained.
            precision: of its passes.
            augmented: pictures of what the model sees of a batch.
            begins_with: what is said of a start besides.
            frozen: parts of the model that do not learn.
            facts: what stands in each checkpoint besides.
        """
        self._begins_with = begins_with
        self._continuity = LossContinuity(precision=precision, device_type=self.ranks.device_type)
        self.recorder = Recorder(
            self.run,
            ranks=self.ranks,
            account=self.account,
            metrics=MetricsLog(self.run, enabled=self.ranks.is_main),
            total=self.calendar.total,
            augmented=augmented,
            flops_per_image=lambda begin: flops_per_image(
                model, self.calendar.phase_at(begin).image_size, frozen=frozen
            ),
            peak_flops=peak_flops(precision),
        )
        self.checkpoints = Checkpoints(
            self.run.checkpoints,
            save,
            tensors=tensors,
            stream=self.stream,
            ranks=self.ranks,
            lease=lease,
            account=self.account,
            facts={"kind": self.kind, "model": to_dict(model), **facts},
            alarm=self.recorder.alarm,
            state_type=self.state_type,
        )

    def resume(self) -> State:
        """Return the state to go on from, with the engine in it."""
        self.watchdog.start()
        self.ranks.wait_patiently()
        self.rehearse()
        state = self.checkpoints.resume()
        kind = "start" if state is None else "resume"
        state = state or self.state_type()
        if self.ranks.is_main:
            earlier = read_earlier(self.run.metrics, after=state.samples_seen)
            lives = read_lives(self.run.account)
            self._redone_until = max([earlier.reached, *(life.samples_seen for life in lives)])
            self._continuity.remember(earlier.ahead, until=self.stream.next_excluded(state.samples_seen))
            self.recorder.remember(earlier, lives)
        self._redone_until = self.ranks.broadcast(self._redone_until)
        self.recorder.event(
            kind,
            life=self.account.life,
            samples_seen=state.samples_seen,
            step=state.step,
            world_size=self.ranks.world_size,
            stage=self.zero_stage,
        )
        place = f"starts{self._begins_with}" if kind == "start" else f"resumes after step {state.step:,}"
        ranks = number_of(self.ranks.world_size, "rank")
        self.ranks.say(
            f"{self.run.path} {place}: {ranks} on {self.ranks.device_type}, ZeRO {self.zero_stage}, "
            f"{state.samples_seen:,} of {self.calendar.total:,} images seen"
        )
        self.account.started()
        return state

    def stoppable(self) -> AbstractContextManager[None]:
        """Let a stop end the block at once; where others may wait for this rank in it, behind it."""
        return self._stop.at_once() if self.ranks.world_size == 1 else nullcontext()

    def batches(self, state: State) -> Iterator[Any]:
        """Yield the batches from `state` on, none where its own evaluation is still to take place.

        None for one that does not come, where a stop was asked for.
        """
        try:
            if not (state.unevaluated or self.is_finished(state)):
                yield from self.stream.follow(state, meanwhile=self._stop.check)
        except Stopped:
            yield None

    def rehearse(self) -> None:
        """Find what would fail in a step before data are touched."""

    @contextmanager
    def patience(self, name: str) -> Iterator[None]:
        """Do what is no step and counts to class `name`; all ranks do it, and wait patiently for the last.

        No rank begins the next step while another is still at it: that step has the bound of any other.
        """
        with self.watchdog.patience(), self.account.measure(name):
            yield
            self.ranks.barrier()

    def label(self, samples_seen: int) -> str:
        """Name the account's class for a step: work that an earlier life did already counts as redone."""
        return "redone" if samples_seen < self._redone_until else "compute"

    def step(self, state: State, batch: Any) -> Result:
        """Train on this rank's share of a step and move the state on, where no rank asks for LEAVE."""
        wish = STOP * self.is_told() + SAVE * self.checkpoints.time_is_up
        result = self.take(state, batch, wish=wish)
        if not result.asks_for(LEAVE):
            state.image_size = self.calendar.phase_at(state.samples_seen).image_size
            state.advance(**result.counts())
        return result

    def leave(self, state: State) -> Result | None:
        """Take part in the step that the others are in by now, such that all refuse it; None if alone.

        With blank images: this rank's own do not come.
        """
        if self.ranks.world_size == 1:
            return None
        phase = self.calendar.phase_at(state.samples_seen)
        samples = phase.global_batch // self.ranks.world_size
        blank = self.stream.blank(image_size=phase.image_size, samples=samples)
        return self.take(state, blank, wish=LEAVE, refused=True)

    def take(self, state: State, batch: Any, *, wish: int, refused: bool = False) -> Result:
        """Train on this rank's share of a step; with `refused` so that no gradient is finite.

        `wish`: bits told to all ranks.
        """
        raise NotImplementedError

    def judge(self, state: State, result: Result) -> Verdict:
        """Say what to make of the step that led to `state`."""
        if result.applied:
            return Verdict()
        most, limit = _MAX_REFUSED_IN_A_ROW, "the most that are allowed"
        return Verdict("skipped_step", ends=too_many_refused(state, result, most=most, limit=limit))

    def keep_for_replay(self, state: State, result: Result, verdict: Verdict) -> None:
        """Keep what is needed to take a step again that was not in order."""

    def roll_back(self, state: State, verdict: Verdict) -> int:
        """Go back to before the steps that are not trusted; return the way in samples, below zero."""
        raise NotImplementedError

    def look_after(self, state: State, result: Result) -> None:
        """Do what is done at every step without touching its result."""
        self.watchdog.beat()
        self.checkpoints.store.raise_errors()
        compared = self._continuity.compare(samples_seen=state.samples_seen, loss=result.loss)
        if compared is not None:
            self.recorder.event("loss_continuity", **compared)
            self.ranks.say(
                f"the loss {'goes on' if compared['continuous'] else 'DOES NOT go on'} as recorded before: "
                f"{compared['loss']:.6g}, was {compared['recorded']:.6g}"
            )

    def evaluate(self, state: State) -> None:
        """Measure the weights of `state`, unless a stop comes while images do not."""
        state.unevaluated = True
        with suppress(Stopped):
            self.measure(state)
            state.unevaluated = False

    def make_up_for(self, state: State) -> None:
        """Do the evaluation that the life before has left, and let its checkpoint tell what it finds."""
        if state.unevaluated:
            self.evaluate(state)
            self.save(state, wait=True)

    def measure(self, state: State) -> None:
        """Measure the evaluation corpus, if there is one, with `patience`.

        Raises:
            Stopped: all ranks have taken the way out.
        """
        raise NotImplementedError

    def save_due(self, state: State, *, before: int) -> bool:
        """Tell whether the step from `before` to `state` is one to save after; the best so far is, too."""
        due = self.calendar.save_due(before=before, after=state.samples_seen)
        if due or not state.figures:
            return due
        with self.patience("checkpoint"):  # a save may be under way
            return self.checkpoints.store.would_be_best(state.figures)

    def save(self, state: State, *, wait: bool, **facts: Any) -> None:
        """Save, in the background or until it is done; `facts` travel with it."""
        with self.patience("checkpoint"):
            self.checkpoints.save(state, wait=wait, **facts)
        self.recorder.record_next()

    def is_finished(self, state: State) -> bool:
        """True at the end of the run."""
        return state.samples_seen >= self.calendar.total and not state.unevaluated

    def summary(self, state: State) -> dict[str, Any]:
        """Return what summary.json says of a run that reached its end."""
        raise NotImplementedError

    def close(self, state: State | None) -> None:
        """Finish what is under way."""
        self.watchdog.hold()
        self.checkpoints.store.close()
        if state is not None:
            self.recorder.flush(state)
        self.recorder.close()
        self.account.close()

    def finish(self, state: State) -> None:
        """Leave a marker, and the summary of a run that reached its end.

        Raises:
            UserError: the last checkpoint could not be saved.
            LeaseLost: another job has taken the run over since then.
        """
        self.checkpoints.store.check_lease()
        finished = self.is_finished(state)
        if finished:
            self.checkpoints.require(state)
        if self.ranks.is_main and finished:
            write_atomically(self.run.summary, json_text(self.summary(state), indent=2) + "\n")
            self.run.mark("done", samples_seen=state.samples_seen)
            total = self.calendar.total
            early = f" of {total:,}, since evaluations brought nothing better"
            self.ranks.say(
                f"done after {state.samples_seen:,} images{early if state.samples_seen < total else ''}; "
                f"`coatnet report {self.run.path}` shows it"
            )
        elif self.ranks.is_main:
            self.run.mark("stopped", samples_seen=state.samples_seen, reason=self._stop.reason)
            seen = f"after {state.samples_seen:,} images"
            self.ranks.say(
                f"stopped and saved {seen}; the same command goes on from there"
                if self.checkpoints.holds(state)
                else f"stopped {seen}; the same command goes on from the last checkpoint, if any"
            )
        self.ranks.barrier()
        self.watchdog.stop()
