"""The model in timm's own form, where timm can hold it: a folder as the repositories of its hub are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from coatnet.checkpoint.inspection import CONFIG, TENSORS
from coatnet.checkpoint.timm import timm_arguments, to_timm
from coatnet.checkpoint.weights import write_tensors
from coatnet.config import UserError
from coatnet.config.plain_text import json_text
from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model
from coatnet.runtime.run_directory import write_atomically
from data_pipeline.augment_config import AugmentConfig
from finetune.classifier import Classifier
from finetune.handover.certificate import Answers

_FOLDER = "timm"


def export_timm(classifier: Classifier, destination: Path) -> tuple[list[Path], Answers, dict[str, Any]]:
    """Write the folder `timm`, which `timm.create_model("local-dir:…/timm", pretrained=True)` opens.

    timm resizes bias tables in another way, so they are written at the grid of the input's size.

    Raises:
        UserError: timm cannot hold the architecture, or cannot be imported to prove it.
    """
    config = replace(classifier.model.config, image_size=classifier.augment.image_size)
    timm = check_timm(config)
    folder = destination / _FOLDER
    folder.mkdir(exist_ok=True)
    described = describe_to_timm(config, classifier.augment, classes=classifier.classes)
    state = _with_tables_for(config, classifier.model.state_dict())
    write_tensors(to_timm(state, config), folder / TENSORS, described_by=folder / CONFIG)
    write_atomically(folder / CONFIG, json_text(described, indent=2) + "\n")
    peer = timm.create_model(f"local-dir:{folder}", pretrained=True)
    name, arguments = timm_arguments(config)
    return [folder / TENSORS, folder / CONFIG], peer.eval(), {"create_model": name, "arguments": arguments}


def check_timm(config: ModelConfig) -> ModuleType:
    """Return timm, which is to prove a network's export.

    Raises:
        UserError: it cannot hold the architecture, or it or what it needs cannot be imported.
    """
    timm_arguments(config)
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # the latter by a torchvision of another build than torch
        raise UserError(
            f"--format timm is proved by timm, which cannot be imported here ({error}); it needs a "
            f"torchvision built for torch {torch.__version__}: install the one from where that torch came"
        ) from None
    return timm


def describe_to_timm(
    config: ModelConfig, augment: AugmentConfig, *, classes: list[str] | None
) -> dict[str, Any]:
    """Return what `config.json` tells timm of a network: its arguments, class names and preprocessing."""
    name, arguments = timm_arguments(config)
    whole = augment.evaluate_resize == "whole"
    return {
        "architecture": name,
        "num_classes": arguments.pop("num_classes"),
        **({} if classes is None else {"label_names": classes}),
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, config.image_size, config.image_size],
            "fixed_input_size": True,
            "pool_size": [config.image_size // 32, config.image_size // 32],
            "interpolation": augment.interpolation,
            "crop_mode": "squash" if whole else "center",
            "crop_pct": 1.0 if whole else augment.evaluate_crop,
            "mean": augment.mean,
            "std": augment.std,
            "first_conv": "stem.conv1",
            "classifier": "head.fc",
        },
    }


def _with_tables_for(config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with every bias table resized as the model does it for this input size."""
    shapes = {name: each.shape for name, each in build_model(config, device="meta").state_dict().items()}
    resized = dict(state)
    for name, tensor in state.items():
        if tensor.shape != shapes[name]:
            side = tuple(shapes[name][1:])
            resized[name] = interpolate(tensor[None], size=side, mode="bilinear", align_corners=False)[0]
    return resized
