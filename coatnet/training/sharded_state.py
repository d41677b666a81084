"""A training's tensors as a checkpoint holds them, at any ZeRO stage: weights, moments, average, buffers.

Knows neither DeepSpeed nor accelerate by name: an engine is what has `module` and `optimizer`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.reader import Checkpoint
from coatnet.model.norm import commit_statistics, forget_statistics
from coatnet.runtime.ranks import Ranks
from coatnet.training.ema import Ema
from coatnet.training.pieces import Piece, create_moments, own_pieces, publish, set_step_count


class ShardedState:
    """This rank's part of a training's state, and the moving average of that part.

    Args:
        engine: a DeepSpeed engine; at stage 0 anything with a `module` and torch's AdamW as `optimizer`.
        stage: ZeRO's; 0 for replicas.
        ranks: who shares the state.
        ema_decay: None is off.

    Attributes:
        applied_steps: that changed the weights; whoever takes steps counts them.
    """

    def __init__(self, engine: Any, *, stage: int, ranks: Ranks, ema_decay: float | None) -> None:
        self._engine, self._stage, self._ranks = engine, stage, ranks
        self.applied_steps = 0
        self._persistent = frozenset(engine.module.state_dict())
        create_moments(engine, stage=stage)
        self.ema = Ema(ema_decay, self._averaged()) if ema_decay is not None else None

    @cached_property
    def pieces(self) -> list[Piece]:
        """This rank's part of all learning parameters and their moments."""
        return own_pieces(
            self._engine, stage=self._stage, rank=self._ranks.rank, world_size=self._ranks.world_size
        )

    def settle_statistics(self, *, applied: bool, from_scratch: bool = True) -> None:
        """Commit the batch norms' statistics of a step, on all ranks, or forget those of a refused one.

        Fresh ones forget their start quickly; those of a checkpoint that a run began with are worth keeping.
        """
        module, step = self._engine.module, self.applied_steps if from_scratch else None
        if applied:
            commit_statistics(module, self._ranks.all_reduce_sum, step=step)
        else:
            forget_statistics(module)

    def update_ema(self) -> None:
        """Move the average after an applied step, when the ranks agree on the buffers."""
        if self.ema is not None:
            self.ema.update(self._averaged(), step=self.applied_steps)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Put the average, where there is one, in place inside the block; the weights come back bit-equal."""
        if self.ema is None:
            yield
            return
        with self.ema.in_place_of(self._averaged()):
            self._publish()
            yield
        self._publish()

    def fragments(self) -> Iterator[Fragment]:
        """Yield what this rank has to save; every element of the state comes from exactly one rank."""
        for piece in self.pieces:
            for kind, data in piece.values.items():
                yield Fragment(kind, piece.name, piece.shape, piece.start, data)
            if self.ema is not None:
                average = self.ema.tensors[_key(piece)]
                yield Fragment("ema", piece.name, piece.shape, piece.start, average)
        if self._ranks.is_main:
            for name, parameter in self._frozen():
                yield Fragment("weight", name, tuple(parameter.shape), 0, parameter.detach().reshape(-1))
            for name, buffer in self._buffers():
                yield Fragment("buffer", name, tuple(buffer.shape), 0, buffer.reshape(-1))
                if self.ema is not None and buffer.is_floating_point():
                    average = self.ema.tensors[name].reshape(-1)
                    yield Fragment("ema", name, tuple(buffer.shape), 0, average)

    @torch.no_grad()
    def load(self, checkpoint: Checkpoint, *, applied_steps: int) -> None:
        """Take over a checkpoint written at any world size and stage."""
        self.applied_steps = applied_steps
        saved = set(checkpoint.names("buffer"))
        with checkpoint.held_open():
            for piece in self._held_pieces():
                for kind, data in piece.values.items():
                    data.copy_(checkpoint.read(kind, piece.name, piece.start, piece.start + len(data)))
            for name, parameter in self._frozen():
                parameter.copy_(checkpoint.read("weight", name).reshape(parameter.shape))
            for name, buffer in self._buffers():
                if name in saved:
                    buffer.copy_(checkpoint.read("buffer", name).reshape(buffer.shape))
            set_step_count(self._engine, stage=self._stage, steps=applied_steps)
            self._publish()
            if self.ema is not None:
                self._load_ema(checkpoint, self.ema)

    def _load_ema(self, checkpoint: Checkpoint, ema: Ema) -> None:
        """Read the average; where the run had none until now, it starts at the weights."""
        for name, tensor in self._averaged().items():
            ema.tensors[name].copy_(tensor)
        saved = set(checkpoint.names("ema"))
        if not saved:
            return
        for piece in self.pieces:
            average = ema.tensors[_key(piece)]
            average.copy_(checkpoint.read("ema", piece.name, piece.start, piece.start + len(average)))
        for name, _ in self._buffers():
            if name in saved:
                average = ema.tensors[name]
                average.copy_(checkpoint.read("ema", name).reshape(average.shape))

    def _averaged(self) -> dict[str, Tensor]:
        """What the moving average follows: this rank's pieces, and the buffers (running statistics)."""
        tensors = {_key(piece): piece.weight for piece in self.pieces}
        return tensors | {name: buffer for name, buffer in self._buffers() if buffer.is_floating_point()}

    def _frozen(self) -> list[tuple[str, Tensor]]:
        """The parameters that do not learn; whole on every rank, since no optimizer shards them."""
        named = self._engine.module.named_parameters()
        return [(name, parameter) for name, parameter in named if not parameter.requires_grad]

    def _buffers(self) -> list[tuple[str, Tensor]]:
        """The buffers that belong to the state: running statistics, not the sums under way."""
        named = self._engine.module.named_buffers()
        return [(name, buffer) for name, buffer in named if name in self._persistent]

    def _held_pieces(self) -> list[Piece]:
        """What this rank has to fill on loading: at stage 0 it holds, and updates, more than it saves."""
        return own_pieces(self._engine, stage=0, rank=0, world_size=1) if self._stage == 0 else self.pieces

    def _publish(self) -> None:
        publish(self._engine, stage=self._stage, pieces=self.pieces, world_size=self._ranks.world_size)


def _key(piece: Piece) -> str:
    return f"{piece.name}@{piece.start}"
