"""The model as a state dict of timm's CoAtNet, where timm's architecture can hold it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coatnet.config import UserError
from finetune.classifier import Classifier
from finetune.handover.certificate import Answers


def export_timm(classifier: Classifier, destination: Path) -> tuple[list[Path], Answers, dict[str, Any]]:
    """Write `timm.safetensors`."""
    raise UserError("--format timm: not available")
