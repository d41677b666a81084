"""Durations in the unit a person thinks in: "300 epochs", "10000 steps", "4096 images", "30 minutes".

`samples_seen` is the only clock of a run, so every duration but a wall-clock one becomes a number of samples.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_SAMPLE_UNITS = {"image": "images", "images": "images", "sample": "images", "samples": "images"}
_COUNT_UNITS = {"epoch": "epochs", "epochs": "epochs", "step": "steps", "steps": "steps", **_SAMPLE_UNITS}
_SECONDS = {"second": 1, "seconds": 1, "minute": 60, "minutes": 60, "hour": 3600, "hours": 3600}
_LONGEST = 1e15  # in any unit: positions are whole numbers that 64 bits hold
_FORM = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([a-z]+)\s*")


@dataclass(frozen=True)
class Duration:
    """A length of training (`unit` epochs, steps or images) or of time (`unit` seconds)."""

    value: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read "90 epochs" and the like.

        Raises:
            ValueError: not a number followed by a known unit, or far too large a one.
        """
        found = _FORM.fullmatch(text.lower())
        if found:
            number, unit = float(found[1].replace("_", "")), found[2]
            if number > _LONGEST:
                raise ValueError(f"{text!r} is too long; allowed: up to {_LONGEST:.0e}")
            if unit in _COUNT_UNITS:
                return cls(number, _COUNT_UNITS[unit])
            if unit in _SECONDS:
                return cls(number * _SECONDS[unit], "seconds")
        raise ValueError(
            f"{text!r} is not a duration; write for example '90 epochs', '10000 steps', "
            "'4096 images' or '30 minutes'"
        )

    @property
    def is_time(self) -> bool:
        """True for a wall-clock duration."""
        return self.unit == "seconds"

    def in_samples(self, *, epoch_samples: int, global_batch: int, whole_steps: bool = True) -> int:
        """Convert to samples, rounded to the nearest whole step; a step is `global_batch` samples.

        Raises:
            ValueError: a wall-clock duration has no length in samples.
        """
        if self.is_time:
            raise ValueError(f"{self.value:g} seconds have no length in samples; use epochs, steps or images")
        unit_samples = {"epochs": epoch_samples, "steps": global_batch, "images": 1}[self.unit]
        unit = global_batch if whole_steps else 1
        return round(self.value * unit_samples / unit) * unit
