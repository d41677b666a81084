"""The smallest stage that the loop can train: one weight, learning from its positions alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from coatnet.model.config import ModelConfig
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory
from coatnet.runtime.stop import StopFlag, Stopped
from coatnet.training.calendar import Calendar, Phase
from coatnet.training.recorder import LEAVE, StepResult
from coatnet.training.run import TrainingRun
from coatnet.training.schedule import LearningRate
from coatnet.training.sections import SaveConfig
from coatnet.training.sharded_state import ShardedState
from coatnet.training.state import RunState
from coatnet.training.verdict import Verdict
from data_pipeline.batch import Batch

BATCH, TOTAL = 8, 64
SAVE = SaveConfig(every="2 steps", last=100)


class Positions:
    """A stream of the positions themselves; the batch at `away` does not come, and `waits` is called."""

    def __init__(self, *, away: int | None, waits: Callable[[], None]) -> None:
        self._away, self._waits = away, waits

    def state(self) -> dict[str, Any]:
        return {"order": "as it is"}

    def check(self, saved: dict[str, Any]) -> None:
        assert saved == self.state()

    def follow(self, position: RunState, *, meanwhile: Callable[[], None]) -> Iterator[Batch]:
        while True:
            while position.samples_seen == self._away:
                self._waits()
                meanwhile()
            yield self._batch(torch.arange(position.samples_seen, position.samples_seen + BATCH))

    def next_excluded(self, position: int) -> float:
        return math.inf

    def blank(self, *, image_size: int, samples: int) -> Batch:
        return self._batch(torch.zeros(samples, dtype=torch.int64), image_size=image_size)

    def excuses(self) -> dict[str, str]:
        return {}

    @staticmethod
    def _batch(positions: torch.Tensor, *, image_size: int = 4) -> Batch:
        images = torch.zeros(len(positions), image_size, image_size, 3, dtype=torch.uint8)
        return Batch(images, positions, positions, positions)


class TinyRun(TrainingRun[RunState, StepResult]):
    """A run of eight steps that notes what the loop asks of it.

    Args:
        happens: by the number of a step: what befalls it; by the negative one: what befalls its evaluation.
        away: where a batch does not come, and a stop is asked for meanwhile.
    """

    kind, state_type, zero_stage = "tiny", RunState, 0

    def __init__(
        self,
        folder: Path,
        *,
        save: SaveConfig = SAVE,
        happens: dict[Any, Any] | None = None,
        away: int | None = None,
    ) -> None:
        super().__init__(RunDirectory(folder), ranks=Ranks(), stop=StopFlag())
        self.run.checkpoints.mkdir(parents=True, exist_ok=True)
        self.happens, self.noted = happens or {}, list[str]()
        self.stream = Positions(away=away, waits=self.ask_to_stop)
        self.calendar = Calendar(
            phases=[Phase(0, TOTAL, BATCH, 4)],
            epoch_samples=TOTAL,
            evaluate_samples=3 * BATCH,
            save_samples=None if "minutes" in save.every else 2 * BATCH,
            learning_rate=LearningRate(0.1, 0.0, 0, TOTAL),
        )
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(self.model.weight)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        engine = SimpleNamespace(module=self.model, optimizer=self.optimizer)
        self.tensors = ShardedState(engine, stage=0, ranks=self.ranks, ema_decay=None)
        self.equip(
            tensors=self.tensors,
            save=save,
            lease=None,
            model=ModelConfig(),
            precision="fp32",
            augmented=lambda batch: batch.images,
            begins_with=" small",
        )

    def ask_to_stop(self) -> None:
        self._stop.request("SIGTERM")

    def take(self, state: RunState, batch: Any, *, wish: int, refused: bool = False) -> StepResult:
        happening = self.happens.get(state.step + 1)
        if callable(happening):
            happening(self)
        refused = refused or happening in ("refused", "left")
        label = self.label(state.samples_seen)
        self.noted.append(f"step {state.step + 1}{' redone' * (label == 'redone')}")
        with self.account.measure(label):
            loss = ((self.model.weight[0, 0] - batch.positions.float() / TOTAL) ** 2).mean()
            if not refused:
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.tensors.applied_steps += 1
        return StepResult(
            samples=BATCH,
            losses=[loss.item()],
            gradient_norm=math.inf if refused else 1.0,
            learning_rate=0.1,
            applied=not refused,
            wishes=[wish, LEAVE * (happening == "left")],
        )

    def judge(self, state: RunState, result: StepResult) -> Verdict:
        if self.happens.get(state.step) == "spike":
            self.happens.pop(state.step)
            return Verdict("spike", score=12.5, rollback=True, step=state.step, samples=range(0))
        return super().judge(state, result)

    def keep_for_replay(self, state: RunState, result: StepResult, verdict: Verdict) -> None:
        self.noted.append(f"keep {verdict.event} {state.step} {sorted(state.figures)}")

    def roll_back(self, state: RunState, verdict: Verdict) -> int:
        reached = state.samples_seen
        state.become(self.checkpoints.restore(before=verdict.step))
        self._redone_until = max(self._redone_until, reached)
        return state.samples_seen - reached

    def measure(self, state: RunState) -> None:
        with self.patience("evaluation"):
            self.noted.append(f"evaluate {state.step}")
            if self.happens.get(-state.step) == "stop":
                self.ask_to_stop()
                raise Stopped
        state.figures = {"top1": self.happens.get("top1", {}).get(state.step, 0.5)}
        self.recorder.evaluation(state, state.figures)

    def save(self, state: RunState, *, wait: bool, **facts: Any) -> None:
        self.noted.append(f"save {state.step}{' and wait' * wait}")
        super().save(state, wait=wait, **facts)

    def summary(self, state: RunState) -> dict[str, Any]:
        return {"steps": state.step, **state.figures}
