"""A tiny model with class names, as a checkpointed run would export it, and images to show it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coatnet.checkpoint.weights import Weights, export_safetensors
from coatnet.config import to_dict
from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model
from data_pipeline.augment_config import AugmentConfig

CLASSES = ["amber", "blue", "green"]


@pytest.fixture(scope="session")
def tiny() -> ModelConfig:
    return ModelConfig(depths=[1, 1, 1, 1, 1], widths=[8, 8, 16, 32, 32], num_classes=3, image_size=64)


@pytest.fixture(scope="session")
def jpeg() -> Callable[..., bytes]:
    """Return the bytes of a JPEG of noise."""

    def make(seed: int = 0, *, width: int = 80, height: int = 64) -> bytes:
        rng = np.random.default_rng(seed)
        pixels = rng.integers(0, 256, size=(height // 8, width // 8, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=92)
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def exported(tiny: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose answers differ from image to image, in the native form."""
    model = build_model(tiny, seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0 if "logits" not in name else 20.0)
    facts = {
        "augment": to_dict(AugmentConfig(image_size=64, evaluate_resize="whole")),
        "samples_seen": 640,
        "evaluation": {"top1": 0.5, "at": 640, "image_size": 64},
    }
    weights = Weights(tiny, dict(model.state_dict()), CLASSES, facts)
    return export_safetensors(weights, tmp_path_factory.mktemp("models") / "exported")


@pytest.fixture(scope="session")
def photos(jpeg: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLASS/NUMBER.jpg, 23 images: no batch size divides them."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(23):
        path = folder / CLASSES[number % 3] / f"{number:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(number, width=64 + 8 * (number % 4)))
    return folder
