"""What a run takes beside its steps: images to decode, the start, evaluations, saves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.planning.hardware import Hardware
from cluster.planning.recipe_view import RecipeView

_PHOTO_BYTES = 110e3  # a photograph of ImageNet, by which hardware files count the decoder's rate
# A tiny image takes its share of Python all the same: 32 px in benchmarks/plan.md.
_LEAST_SHARE = 0.05


@dataclass(frozen=True)
class RunTime:
    """Seconds of the whole run by what they go into."""

    start: float
    steps: float
    evaluation: float
    saves: float

    @property
    def seconds(self) -> float:
        """Return the sum."""
        return self.start + self.steps + self.evaluation + self.saves


def sample_bytes(recipe: RecipeView) -> float:
    """Return what an image takes: of this corpus, or of ImageNet where nobody can tell."""
    return _PHOTO_BYTES if recipe.sample_bytes is None else recipe.sample_bytes


def decode_seconds(recipe: RecipeView, *, hardware: Hardware) -> float:
    """Return what an image of this corpus takes of a core; by its bytes, which the decoder's time follows."""
    return max(_LEAST_SHARE, sample_bytes(recipe) / _PHOTO_BYTES) / hardware.decode_images_per_core_second


def predict_run(
    recipe: RecipeView,
    *,
    hardware: Hardware,
    world_size: int,
    step_seconds: Mapping[int, float],
    forward_seconds: float,
    save_seconds: float,
) -> RunTime | None:
    """Return the whole run's time, None for one whose length depends on an unknown epoch.

    Args:
        step_seconds: by the global batch.
        forward_seconds: of one image on one rank.
        save_seconds: from the last step to the last checkpoint; earlier ones are written in the background.
    """
    if not recipe.total_samples:
        return None
    every = recipe.evaluate_every or recipe.total_samples
    # one at the end, too, where the last step is none that is due
    evaluations = math.ceil(recipe.total_samples / every)
    images = math.ceil(recipe.evaluation_samples / world_size)
    return RunTime(
        start=hardware.start_seconds,
        steps=sum(steps * step_seconds[batch] for batch, steps in recipe.stretches),
        evaluation=evaluations * images * forward_seconds,
        saves=save_seconds,
    )
