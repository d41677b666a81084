"""The lives of a run: one line in lives.jsonl when a life starts and one when it ends. Knows no SLURM.

A life is one start of the batch script. One that was killed has no last line, which is why progress is
compared between beginnings: only a checkpoint that became complete counts.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from cluster.job import JOB_FILES
from coatnet.config.plain_text import is_number
from coatnet.runtime.run_directory import append_line, parse_lines

LIVES_FILE = "lives.jsonl"
SUPERVISOR = "supervisor"  # under this name the batch script records events
_FIELDS: dict[str, dict[str, type]] = {
    "begin": {"life": int, "job_id": str, "nodes": list, "step": int},
    "end": {"life": int, "outcome": str, "reason": str, "tries": int, "excluded": dict},
    "submitted": {"job_id": str, "lives": int},
    "successor": {"job_id": str},
}
# A status asks one history many times, and that of thousands of lives on many nodes takes a while to read.
_PARSED: dict[Path, tuple[tuple[int, int, int], list[dict[str, Any]]]] = {}


@dataclass
class Life:
    """One life as the history tells it.

    Args:
        outcome: empty while it runs, and for ever if it was killed.
        step: newest committed step when it began, -1 for none.
    """

    number: int
    job_id: str
    nodes: list[str]
    step: int
    started: float
    ended: float | None = None
    outcome: str = ""
    reason: str = ""
    tries: int = 0
    excluded: dict[str, str] = field(default_factory=dict)


def was_submitted(directory: Path) -> bool:
    """Return whether this is the directory of a run that was submitted, or of an array's task.

    A command that was killed while it submitted leaves a job file at most.
    """
    return (directory / LIVES_FILE).exists() or any(directory.glob(JOB_FILES))


class History:
    """Append-only; torn last lines (a kill while writing) are passed over.

    Args:
        directory: the run directory, or an array task's own.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / LIVES_FILE

    def begin(self, *, job_id: str, nodes: list[str], step: int) -> Life:
        """Record that a life begins and return it."""
        life = Life(len(self.lives()) + 1, job_id, nodes, step, time.time())
        self._append({"event": "begin", "life": life.number, "job_id": job_id, "nodes": nodes, "step": step})
        return life

    def end(self, life: Life, *, outcome: str, reason: str, tries: int, excluded: dict[str, str]) -> None:
        """Record how a life ended; `excluded` names nodes that shall not be had again, with the reason."""
        self._append(
            {"event": "end", "life": life.number, "outcome": outcome, "reason": reason, "tries": tries,
             "excluded": excluded}
        )  # fmt: skip

    def note(self, event: str, **fields: Any) -> None:
        """Record something else: a submission, a successor."""
        self._append({"event": event, **fields})

    def events(self) -> list[dict[str, Any]]:
        """Return everything recorded, oldest first; what is no record of ours is passed over."""
        try:
            with self._path.open(errors="replace") as file:
                found = os.fstat(file.fileno())  # of what was opened: over NFS a name alone tells of the past
                state = (found.st_ino, found.st_size, found.st_mtime_ns)
                if self._path not in _PARSED or _PARSED[self._path][0] != state:
                    _PARSED[self._path] = state, [entry for entry in parse_lines(file) if _is_whole(entry)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return _PARSED[self._path][1]

    def lives(self) -> list[Life]:
        """Return the lives, oldest first."""
        lives: dict[int, Life] = {}
        for entry in self.events():
            if entry["event"] == "begin":
                number = entry["life"]
                lives[number] = Life(
                    number, str(entry["job_id"]), list(entry["nodes"]), entry["step"], entry["time"]
                )
            elif entry["event"] == "end" and entry["life"] in lives:
                life = lives[entry["life"]]
                life.ended, life.outcome, life.reason = entry["time"], entry["outcome"], entry["reason"]
                life.tries, life.excluded = entry["tries"], dict(entry["excluded"])
        return list(lives.values())

    def lives_without_progress(self, *, step: int) -> int:
        """Count the last lives in a row that began at `step`, since the last submission."""
        since = self.lives()[self._lives_at_submission() or 0 :]
        return sum(1 for _ in takewhile(lambda life: life.step == step, reversed(since)))

    def has_submission(self, folder: str) -> bool:
        """Return whether the submission of a folder below `submissions` is recorded."""
        return any(entry["event"] == "submitted" and entry.get("folder") == folder for entry in self.events())

    def continuation(self) -> str:
        """Return how the last submission goes on; empty where it was of code that did not record that."""
        told = [entry.get("continuation", "") for entry in self.events() if entry["event"] == "submitted"]
        return str(told[-1]) if told else ""

    def awaits_a_life(self) -> bool:
        """Return whether the run was submitted and no life has begun since."""
        return self._lives_at_submission() == len(self.lives())

    def excluded(self) -> dict[str, str]:
        """Return every node that was excluded so far, with the reason."""
        return {node: reason for life in self.lives() for node, reason in life.excluded.items()}

    def job_ids(self) -> list[str]:
        """Return every job of this run, oldest first: submitted ones, successors and those that lived."""
        found = [str(entry["job_id"]) for entry in self.events() if entry.get("job_id")]
        return list(dict.fromkeys(found))

    def _lives_at_submission(self) -> int | None:
        """Return how many lives there were at the last submission; None if there was none."""
        submitted = [entry["lives"] for entry in self.events() if entry["event"] == "submitted"]
        return submitted[-1] if submitted else None

    def _append(self, entry: dict[str, Any]) -> None:
        append_line(self._path, {"time": time.time(), **entry}, durable=True)


def _is_whole(entry: dict[str, Any]) -> bool:
    fields = {"event": str, **_FIELDS.get(str(entry.get("event")), {})}
    return is_number(entry.get("time")) and all(
        isinstance(entry.get(name), kind) for name, kind in fields.items()
    )
