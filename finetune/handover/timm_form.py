"""The model as a state dict of timm's CoAtNet, where timm's architecture can hold it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import interpolate

from coatnet.checkpoint.timm import timm_arguments, to_timm
from coatnet.checkpoint.weights import write_tensors
from coatnet.config import UserError
from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model
from coatnet.runtime.run_directory import write_atomically
from finetune.classifier import Classifier
from finetune.handover.certificate import Answers

TENSORS, ARGUMENTS = "timm.safetensors", "timm.json"


def export_timm(classifier: Classifier, destination: Path) -> tuple[list[Path], Answers, dict[str, Any]]:
    """Write `timm.safetensors` and `timm.json`, the name and arguments for `timm.create_model`.

    timm resizes bias tables in another way, so they are written at the grid of the input's size.

    Raises:
        UserError: timm cannot hold the architecture, or cannot be imported to prove it.
    """
    config = replace(classifier.model.config, image_size=classifier.augment.image_size)
    name, arguments = timm_arguments(config)
    tensors = to_timm(_with_tables_for(config, classifier.model.state_dict()), config)
    path, described = destination / TENSORS, destination / ARGUMENTS
    timm = check_timm(config)
    write_tensors(tensors, path, described_by=described)
    write_atomically(described, description(config))
    peer = timm.create_model(name, **arguments)
    peer.load_state_dict(load_file(path))
    return [path, described], peer.eval(), {"create_model": name, "arguments": arguments}


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


def description(config: ModelConfig) -> str:
    """Return what `timm.json` says of a network."""
    name, arguments = timm_arguments(config)
    return json.dumps({"name": name, "arguments": arguments}, indent=2) + "\n"


def _with_tables_for(config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with every bias table resized as the model does it for this input size."""
    shapes = {name: each.shape for name, each in build_model(config, device="meta").state_dict().items()}
    resized = dict(state)
    for name, tensor in state.items():
        if tensor.shape != shapes[name]:
            side = tuple(shapes[name][1:])
            resized[name] = interpolate(tensor[None], size=side, mode="bilinear", align_corners=False)[0]
    return resized
