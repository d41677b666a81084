"""The lives of a run by their accounts of time: each is one start, averaged over its ranks. Imports no torch.

A new life puts the means of those before it into `earlier.jsonl`, and the ranks begin their files anew: 2,000
lives of 1,024 ranks were a gigabyte to read at every start.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from coatnet.config.plain_text import is_number
from coatnet.runtime.run_directory import read_lines, write_atomically

CLASSES = (
    "start",
    "compile",
    "data_wait",
    "compute",
    "communication",
    "checkpoint",
    "evaluation",
    "redone",
    "idle",
)
LINE_BYTES = 512
_EARLIER = "earlier.jsonl"


@dataclass(frozen=True)
class LifeAccount:
    """One life of a run, averaged over its ranks.

    Units: `began` and `ended` in seconds of the epoch; `ended` is when its last totals were written.
    """

    life: int
    began: float
    ended: float
    samples_seen: int
    seconds: dict[str, float]


def read_lives(folder: Path, *, most_ranks: int | None = None) -> list[LifeAccount]:
    """Return the lives of a run, oldest first.

    Args:
        folder: of the ranks' accounts.
        most_ranks: so many of them, spread evenly, stand for all in the last life; None reads each.

    Only one at a time holds a run. One that seems to begin before the end of the last, since a clock was set
    back or is another host's, is taken to follow at once.
    """
    lives: list[LifeAccount] = []
    for found in _means(folder, most_ranks=most_ranks):
        back = lives[-1].ended - found.began if lives else 0.0
        if back > 0:
            found = replace(found, began=found.began + back, ended=found.ended + back)
        lives.append(found)
    return lives


def _means(folder: Path, *, most_ranks: int | None = None) -> list[LifeAccount]:
    """Return each life's mean over its ranks, by its own clock, in order."""
    known = {row["life"]: row for row in read_lines(folder / _EARLIER) if _is_whole(row)}
    rows: dict[int, list[dict[str, Any]]] = {life: [row] for life, row in known.items()}
    files = sorted(folder.glob("rank-*.jsonl"))
    for file in files[:: -(-len(files) // most_ranks) or 1] if most_ranks else files:
        content = file.read_bytes()
        for begin in range(0, len(content), LINE_BYTES):
            try:
                row = json.loads(content[begin : begin + LINE_BYTES])
            except ValueError:
                continue  # torn by a crash of the machine
            if _is_whole(row) and row["life"] not in known:
                rows.setdefault(row["life"], []).append(row)
    return [
        LifeAccount(
            life=life,
            began=sum(row["began"] for row in ranks) / len(ranks),
            ended=sum(row["ended"] for row in ranks) / len(ranks),
            samples_seen=max(row["samples_seen"] for row in ranks),
            seconds={name: sum(row["seconds"][name] for row in ranks) / len(ranks) for name in CLASSES},
        )
        for life, ranks in sorted(rows.items())
    ]


def gather_earlier(folder: Path) -> bool:
    """Keep the means of the lives so far in one file; False where they remain in the ranks' alone."""
    lives = _means(folder)
    try:
        if lives:
            text = "".join(json.dumps(asdict(life), separators=(",", ":")) + "\n" for life in lives)
            write_atomically(folder / _EARLIER, text)
    except OSError:  # a full disk
        return False
    return True


def _is_whole(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("seconds"), dict):
        return False
    seconds = row["seconds"]
    numbers = [row.get("began"), row.get("ended"), row.get("samples_seen"), *seconds.values()]
    whole = isinstance(row.get("life"), int) and all(map(is_number, numbers))
    return whole and set(seconds) == set(CLASSES)


def between_seconds(lives: list[LifeAccount]) -> float:
    """Return the time between lives: in a queue, or after the last totals of one that was killed."""
    return sum(later.began - earlier.ended for earlier, later in pairwise(lives))


def add_up(lives: list[LifeAccount]) -> dict[str, float]:
    """Add up a run's lives; the classes cover the wall time from its first start to its last totals.

    Units: seconds. What lies between lives is `idle`.
    """
    sums = {name: sum(one.seconds[name] for one in lives) for name in CLASSES}
    sums["idle"] += between_seconds(lives)
    return sums
