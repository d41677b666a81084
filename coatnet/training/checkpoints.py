"""Saving and resuming a run: the engine's fragments and the facts that belong to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from coatnet.checkpoint.reader import Checkpoint
from coatnet.checkpoint.retention import Retention
from coatnet.checkpoint.store import CheckpointStore
from coatnet.config import Duration, UserError
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.lease import Lease
from coatnet.runtime.ranks import Ranks
from coatnet.training.sections import SaveConfig
from coatnet.training.sharded_state import ShardedState
from coatnet.training.state import RunState

State = TypeVar("State", bound=RunState)


class Stream(Protocol):
    """What gives samples."""

    def state(self) -> dict[str, Any]:
        """Return what identifies their order."""

    def check(self, saved: dict[str, Any]) -> None:
        """Refuse another order."""

    def follow(self, position: Any, *, meanwhile: Callable[[], None]) -> Iterator[Any]:
        """Yield the batches from a position to the end, wherever it is set in between.

        `meanwhile` is called while one does not come, and may raise.
        """

    def next_excluded(self, position: int) -> float:
        """Return the first position from this one on whose sample was left out; infinite where none is."""

    def blank(self, *, image_size: int, samples: int) -> Any:
        """Return a batch of black images."""

    def excuses(self) -> dict[str, str]:
        """Return what there is to say of data that do not come, for `coatnet.runtime.data_wait`."""


class Checkpoints(Generic[State]):
    """One run's checkpoints.

    Args:
        directory, save: where they lie; when one falls due by the clock, and which stay.
        tensors, stream: whose state they hold.
        ranks, lease, account: of the run.
        facts: what stands in each of them.
        alarm: called with a line for everything that went wrong and was survived.
        state_type: what progress is read into.

    Attributes:
        store: of the checkpoints.
    """

    def __init__(
        self,
        directory: Path,
        save: SaveConfig,
        *,
        tensors: ShardedState,
        stream: Stream,
        ranks: Ranks,
        lease: Lease | None,
        account: TimeAccount,
        facts: dict[str, Any],
        alarm: Callable[[str], None],
        state_type: type[State],
    ) -> None:
        self.store = CheckpointStore(
            directory,
            ranks=ranks,
            lease=lease,
            retention=Retention(save.last, save.keep_every_steps, save.best),
            alarm=alarm,
        )
        self._tensors, self._stream, self._state_type = tensors, stream, state_type
        self._ranks, self._account, self._facts = ranks, account, facts
        every = Duration.parse(save.every)
        self._every_seconds = every.value if every.is_time else None
        self._saved_at = time.monotonic()
        self._progress: dict[str, Any] = {}  # of the newest

    @property
    def time_is_up(self) -> bool:
        """True when a save by the clock is due; rank 0's clock decides for all."""
        age = time.monotonic() - self._saved_at
        return self._ranks.is_main and self._every_seconds is not None and age >= self._every_seconds

    def save(self, state: State, *, wait: bool = False, **facts: Any) -> None:
        """Take a snapshot and write it in the background, or wait for it. `facts` travel with it.

        Where only an evaluation came since the last one, that one tells what it found.

        Raises:
            LeaseLost: another job has taken over the run.
        """
        with self._account.measure("checkpoint"):
            progress = asdict(state)
            if self._progress != progress:
                facts |= {**self._facts, "data": self._stream.state(), "progress": progress}
                facts["figures"] = state.figures
                if self._progress.get("step") == state.step:
                    self.store.amend(state.step, facts)
                else:
                    fragments, seen = self._tensors.fragments(), state.samples_seen
                    self.store.save(step=state.step, samples_seen=seen, fragments=fragments, facts=facts)
                self._progress = progress
            if wait:
                self.store.wait()
        self._saved_at = time.monotonic()

    def resume(self) -> State | None:
        """Load the newest whole checkpoint and return its state, or None where there is none yet."""
        with self._account.measure("checkpoint"):
            checkpoint = self.store.newest()
            return None if checkpoint is None else self._load(checkpoint)

    def reach_before(self, step: int) -> bool:
        """Tell whether there is a checkpoint of a step below `step`; all ranks ask."""
        self.store.wait()
        return bool(
            self._ranks.broadcast(self._ranks.is_main and min(self.store.steps(), default=step) < step)
        )

    def restore(self, *, before: int) -> State:
        """Go back to the newest checkpoint of a step below `before`, and give up those after it.

        Raises:
            UserError: there is none.
        """
        with self._account.measure("checkpoint"):
            self.store.wait()
            checkpoint = self.store.newest(before=before)
            if checkpoint is None:
                raise UserError(
                    f"{self.store.directory}: no checkpoint from before step {before} to go back to"
                )
            if self._ranks.is_main:
                self.store.abandon(after=checkpoint.step)
            self._ranks.barrier()
            return self._load(checkpoint)

    def newest_path(self) -> Path | None:
        """Return where the newest committed checkpoint lies, once the save under way is done."""
        self.store.wait()
        steps = self.store.steps()
        return self.store.path(steps[-1]) if steps else None

    def holds(self, state: State) -> bool:
        """Tell whether a state is saved: a full disk may have kept it from that."""
        return state.step in self.store.steps()

    def require(self, state: State) -> None:
        """Make sure that a state is saved before its run is called done; all ranks ask.

        Raises:
            UserError: it could not be.
        """
        if not self._ranks.broadcast(self._ranks.is_main and self.holds(state)):
            raise UserError(
                f"{self.store.directory}: the last checkpoint, of step {state.step}, could not be saved; "
                "events.jsonl says why. Make room and give the same command again"
            )

    def _load(self, checkpoint: Checkpoint) -> State:
        facts = checkpoint.facts
        if facts.get("kind") != self._facts["kind"]:
            raise UserError(
                f"{checkpoint.directory}: was written by {facts.get('kind')}, not by {self._facts['kind']}; "
                "choose another run.directory"
            )
        group, former = (one.get("group_images") for one in (self._facts, facts))
        if group != former:
            raise UserError(f"norm.group_images is {group}, but the run began with {former}; give that")
        self._stream.check(facts["data"])
        try:
            state = self._state_type(**facts["progress"])
        except TypeError as error:
            raise UserError(f"{checkpoint.directory}: was written by another version ({error})") from None
        self._tensors.load(checkpoint, applied_steps=state.applied_steps)
        self._progress = asdict(state)
        return state
