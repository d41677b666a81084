"""A fragment: a contiguous piece of one whole tensor. Knows nothing of ranks or ZeRO stages."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

KINDS = ("weight", "exp_avg", "exp_avg_sq", "ema", "buffer")


@dataclass(frozen=True)
class Fragment:
    """Elements `start … start + len(data)` of the flattened tensor `name` of this `kind`.

    Shape: data is one-dimensional; `shape` is the whole tensor's.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    start: int
    data: Tensor

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind
        assert self.data.dim() == 1, (
            f"{self.name}: a fragment is one-dimensional, not {tuple(self.data.shape)}"
        )
