"""A trained model ready to classify: weights, class names and preprocessing, which belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coatnet.checkpoint.classes import check_class_count
from coatnet.checkpoint.weights import LOGITS, load_tensors, load_weights
from coatnet.config import UserError, from_dict
from coatnet.config.plain_text import check_class_names
from coatnet.model.network import CoAtNet, build_model
from coatnet.runtime.ranks import Ranks
from coatnet.training.losses import probabilities
from coatnet.training.sections import LOSS_NAMES
from data_pipeline.augment_config import AugmentConfig
from finetune.choices import WEIGHTS

_MAX_PX = 4096


@dataclass(frozen=True)
class Classifier:
    """A model in evaluation mode and what it needs.

    Attributes:
        classes: None where the weights came without names.
        augment: its image size, resize and normalisation; augmentation itself is not used.
        facts: what the checkpoint says of its origin.
        loss: that the weights were trained by, "softmax" or "sigmoid"; None where they do not tell.
    """

    model: CoAtNet
    classes: list[str] | None
    augment: AugmentConfig
    device: torch.device
    title: str
    facts: Mapping[str, Any]
    loss: str | None = None

    @property
    def names(self) -> list[str]:
        """Class names, or the classes' numbers where there are none."""
        return self.classes or [str(number) for number in range(self.model.config.num_classes)]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of each class; those of a model for several labels do not add up to 1.

        Shape: (…, K) → the same, float64.
        """
        return probabilities(logits.double(), self.loss or "softmax")

    def at(self, px: int, *, resize: str | None = None) -> Classifier:
        """Return the same model for images of another size.

        Raises:
            UserError: the size is no multiple of 32, or the resize is unknown.
        """
        if not 32 <= px <= _MAX_PX or px % 32:
            raise UserError(f"{self.title}: {px} px; allowed: multiples of 32 up to {_MAX_PX:,}")
        try:
            resized = replace(
                self.augment, image_size=px, evaluate_resize=resize or self.augment.evaluate_resize
            )
        except ValueError as error:
            raise UserError(f"--resize: {error}") from None
        return replace(self, augment=resized)


@torch.inference_mode(False)  # a caller's inference mode would make the weights inference tensors
def open_classifier(
    path: str,
    *,
    weights: str = "auto",
    px: int | None = None,
    resize: str | None = None,
    device: torch.device | None = None,
) -> Classifier:
    """Load a run, a checkpoint or an exported directory; `weights` is one of `WEIGHTS`.

    Raises:
        UserError: there is no such model, or it is damaged or not what it claims to be.
    """
    loaded = load_weights(path, ema=WEIGHTS[weights])
    if loaded.classes is not None:
        check_class_names(loaded.classes, origin=path)
        check_class_count(loaded.classes, loaded.model.num_classes, origin=path)
    if not loaded.tensors.keys() >= set(LOGITS):
        raise UserError(f"{path}: holds no last layer ({LOGITS[0]}) to classify by; fine-tune it first")
    where = device or Ranks.single().device
    model = build_model(loaded.model, device="meta")
    load_tensors(model, loaded.tensors, device=where, origin=path)
    loss = loaded.facts.get("loss")
    if loss not in (None, *LOSS_NAMES):
        raise UserError(f"{path}: loss is {str(loss)[:60]!a}; allowed: {', '.join(LOSS_NAMES)}")
    saved = loaded.facts.get("augment")
    augment = (
        AugmentConfig(image_size=loaded.model.image_size)
        if saved is None
        else from_dict(AugmentConfig, saved, origin=f"{path}: augment")
    )
    classifier = Classifier(
        model=model.eval(),
        classes=loaded.classes,
        augment=augment,
        device=where,
        title=f"{loaded.model.name} · {Path(path).name}",
        facts=loaded.facts,
        loss=loss,
    )
    return classifier.at(px or augment.image_size, resize=resize)
