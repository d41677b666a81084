"""What earlier lives recorded, as far as a new one needs it. Weeks of records are millions of lines.

They are passed by one by one; those that say nothing new are not even parsed, and none of them is kept.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_POSITION = re.compile(rb'"samples_seen":\s*(\d+)')
_MOST_ACCOUNTS = 120


@dataclass
class Earlier:
    """The records of earlier lives.

    Attributes:
        reached: the furthest position that any of them recorded.
        ahead: records beyond the position where the new life begins.
        accounts: what the time account had come to, now and then.
    """

    reached: int = 0
    ahead: list[dict[str, Any]] = field(default_factory=list)
    accounts: list[dict[str, Any]] = field(default_factory=list)


def read_earlier(metrics: Path, *, after: int) -> Earlier:
    """Read the records of a run's earlier lives; the new one begins at position `after`."""
    found = Earlier()
    if not metrics.exists():
        return found
    with metrics.open("rb") as file:
        for line in file:
            position = _POSITION.search(line)
            samples_seen = int(position[1]) if position else 0
            accounting = b'"account/' in line
            if samples_seen <= after and not accounting:
                found.reached = max(found.reached, samples_seen)
                continue
            row = _parse(line)
            if row is None:
                continue
            found.reached = max(found.reached, samples_seen)
            if samples_seen > after:
                found.ahead.append(row)
            if accounting:
                found.accounts.append(row)
                if len(found.accounts) > 2 * _MOST_ACCOUNTS:
                    del found.accounts[1:-1:2]
    return found


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # torn
        return None
    return row if isinstance(row, dict) else None
