"""Works beside each other on a machine that others use, too."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


def least_cpu_seconds(works: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Return each work's least CPU seconds, the works taking turns so that all meet the same neighbours."""
    least = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            began = time.process_time()
            work()
            least[name] = min(least[name], time.process_time() - began)
    return least
