"""The part of a training config that a plan needs, whichever application it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.recipe import lookup
from coatnet.config import Duration, UserError, from_dict
from coatnet.model.config import ModelConfig


@dataclass(frozen=True)
class RecipeView:
    """What decides memory and speed.

    Args:
        micro_batch: None if the whole share of a rank goes at once.
        epoch_samples: of the training corpora, None if their manifests are not readable from here.
        total_samples: of the run, None if that depends on an unknown epoch.
    """

    model: ModelConfig
    image_size: int
    global_batch: int
    micro_batch: int | None
    precision: str
    zero_stage: int
    overlap: bool
    bucket_elements: int
    checkpointing: tuple[str, ...]
    ema: bool
    compiled: bool
    epoch_samples: int | None
    total_samples: int | None
    shards: int | None


def view(config: Mapping[str, Any], *, origin: str, epoch_samples: int | None = None) -> RecipeView:
    """Read a config that was resolved against its schema.

    Args:
        epoch_samples: instead of the corpora's manifests.

    Raises:
        UserError: the config names no model.
    """
    model = lookup(config, "model")
    if model is None:
        raise UserError(f"{origin}: model is null; give model.name=… to plan what a checkpoint decides")
    corpora = [_manifest(item) for item in lookup(config, "data.train") or []]
    known = [corpus for corpus in corpora if corpus is not None]
    if epoch_samples is None and corpora and len(known) == len(corpora):
        epoch_samples = sum(corpus["samples"] for corpus in known)
    model = dict(model)
    if known and "classes" in known[0]:
        model["num_classes"] = len(known[0]["classes"])
    global_batch = int(lookup(config, "train.global_batch"))
    zero = lookup(config, "zero")
    sections = zero if isinstance(zero, Mapping) else {"stage": zero or 0}
    precision = str(lookup(config, "precision"))
    return RecipeView(
        model=from_dict(ModelConfig, model, origin=origin),
        image_size=int(lookup(config, "augment.image_size")),
        global_batch=global_batch,
        micro_batch=lookup(config, "train.micro_batch"),
        # fine-tuning's bf16 is autocast: its weights stay in fp32
        precision="autocast" if precision == "bf16" and not isinstance(zero, Mapping) else precision,
        zero_stage=int(sections["stage"]),
        overlap=bool(sections.get("overlap_communication", False)),
        bucket_elements=int(sections.get("bucket_elements", 200_000_000)),
        checkpointing=tuple(lookup(config, "train.activation_checkpointing") or ()),
        ema=bool(lookup(config, "ema")),
        compiled=bool(lookup(config, "compile")),
        epoch_samples=epoch_samples,
        total_samples=_total(str(lookup(config, "train.duration")), epoch_samples, global_batch),
        shards=sum(len(corpus["shards"]) for corpus in known)
        if known and len(known) == len(corpora)
        else None,
    )


def _total(duration: str, epoch_samples: int | None, global_batch: int) -> int | None:
    parsed = Duration.parse(duration)
    if parsed.is_time or (parsed.unit == "epochs" and epoch_samples is None):
        return None
    return parsed.in_samples(epoch_samples=epoch_samples or 0, global_batch=global_batch)


def _manifest(corpus: Any) -> dict[str, Any] | None:
    """Return a local corpus's manifest, None for one that is not readable from here."""
    path = Path(str(corpus["path"] if isinstance(corpus, Mapping) else corpus)) / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        return {**manifest, "samples": int(manifest["samples"]), "shards": list(manifest["shards"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None
