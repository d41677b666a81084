"""Which operators a step calls around the network, counted by who calls them. Runs on forked ranks."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from cluster.planning.operators import weight

_NORMS = {
    "get_grad_norm_direct",
    "scaled_global_norm",
    "is_invalid_grad_norm",
    "has_overflow",
    "check_overflow",
}


def calls_around(step: Callable[[], Any]) -> dict[str, float]:
    """Return how many operators a step's hooks, norms, update and statistics call."""
    with _Callers() as callers:
        step()
    return dict(callers.calls)


class _Callers(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        deepspeed, others, frame = [], set(), sys._getframe(1)
        while frame is not None:
            name = frame.f_code.co_name
            deepspeed.append(name) if "/deepspeed/" in frame.f_code.co_filename else others.add(name)
            frame = frame.f_back  # type: ignore[assignment]
        self.calls[_phase(deepspeed, others)] += weight(func.__name__)
        return func(*args, **(kwargs or {}))


def _phase(deepspeed: list[str], others: set[str]) -> str:
    """Name what is under way by the functions that called, the innermost of DeepSpeed's first."""
    if "commit_statistics" in others:
        return "statistics"
    if "backward" in deepspeed:  # what autograd itself calls belongs to the network
        return "hooks" if deepspeed[0] != "backward" and "_record" not in others else "network"
    if "step" in deepspeed:
        return "norms" if _NORMS & set(deepspeed) else "update"
    return "network"
