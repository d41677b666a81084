"""What a run directory tells: metrics, events, time account, config, environment."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from coatnet.config import UserError
from coatnet.config.plain_text import is_number
from coatnet.report.curve import Curve
from coatnet.runtime.lives import LifeAccount, add_up, between_seconds, read_lives
from coatnet.runtime.run_directory import MARKERS, RunDirectory, read_lines

_BEGINNINGS = ("start", "resume")  # a supervisor's "life" is one that ended


@dataclass
class RunRecord:
    """Everything that the report shows, in plain containers.

    Units: series hold (samples_seen, value) pairs.
    """

    name: str
    series: dict[str, list[tuple[int, float]]]
    events: list[dict[str, Any]]
    life_accounts: list[LifeAccount]
    config_text: str
    environment: dict[str, Any]
    summary: dict[str, Any]
    plan: dict[str, Any]
    markers: dict[str, Any]
    facts: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config as plain containers."""
        try:
            found = yaml.safe_load(self.config_text)
        except yaml.YAMLError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def samples_seen(self) -> int:
        """How far the run is."""
        return max((points[-1][0] for points in self.series.values()), default=0)

    @property
    def state(self) -> str:
        """The strongest marker; where there is none, whether the last life ended by an error."""
        found = [name for name in ("done", "cancelled", "held", "stopped") if name in self.markers]
        return found[0] if found else "ended by an error" if self.error else "running or interrupted"

    @property
    def error(self) -> str | None:
        """By what error the last life ended, None where it did not, or goes on."""
        own = [event for event in self.events if event.get("kind") in (*_BEGINNINGS, "ended")]
        return str(own[-1].get("reason")) if own and own[-1]["kind"] == "ended" else None

    @property
    def lives(self) -> list[dict[str, Any]]:
        """Starts and resumes, oldest first; of lives that came to their first step."""
        return [event for event in self.events if event.get("kind") in _BEGINNINGS]

    @property
    def life_count(self) -> int:
        """How often it was started; a life that ended before its first step has an account and no event."""
        return max(len(self.lives), len(self.life_accounts))

    @property
    def counts(self) -> Counter[str]:
        """Events of each kind."""
        return Counter(str(event.get("kind")) for event in self.events)

    @cached_property
    def account(self) -> dict[str, float]:
        """Seconds of each class, averaged over ranks."""
        return add_up(self.life_accounts)

    @property
    def seconds(self) -> float:
        """Wall time since the first start, the time between lives included."""
        return sum(self.account.values())

    @property
    def between_seconds(self) -> float:
        """Time between lives, part of the account's idle."""
        return between_seconds(self.life_accounts)


def read_run(path: Path) -> RunRecord:
    """Read a run directory.

    Raises:
        UserError: it is none.
    """
    run = RunDirectory(path)
    if not run.config.exists():
        raise UserError(f"{path}: not a run directory (it has no config.yaml)")
    markers = {name: run.marker(name) for name in MARKERS}
    return RunRecord(
        name=path.resolve().name,
        series=_series(run.metrics),
        events=run.read_events(),
        life_accounts=read_lives(run.account),
        config_text=run.config.read_text(errors="replace"),
        environment=_read_json(run.environment),
        summary=_read_json(run.summary),
        plan=_read_json(run.plan),
        markers={name: value for name, value in markers.items() if value is not None},
        facts=_newest_facts(run),
    )


def _series(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Collect numbers by name. Where a life began behind its predecessor's end, its records replace those."""
    curves: dict[str, Curve] = defaultdict(Curve)
    for row in read_lines(path):
        position = row.get("samples_seen", 0)
        if not (is_number(position) and position >= 0):
            continue
        for name, value in row.items():
            if is_number(value) and name not in ("time", "samples_seen"):
                curves[name].add(int(position), float(value))
    return {name: curve.points() for name, curve in curves.items()}


def _newest_facts(run: RunDirectory) -> dict[str, Any]:
    """Return what the newest checkpoint says of itself; its bytes are not verified for a report."""
    for folder in run.find_checkpoints():
        try:
            body = json.loads(_read_json(folder / "manifest.json")["body"])
            return {**body["facts"], "checkpoint": folder.name}
        except (KeyError, TypeError, json.JSONDecodeError):
            continue
    return {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # no text, no JSON, or a number of thousands of digits
        return {}
    return found if isinstance(found, dict) else {}
