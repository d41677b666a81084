"""What the demo shows of an image: the guesses, the square that the model saw, and where it looked.

Source: Selvaraju et al., "Grad-CAM", arXiv 1610.02391, equations 1 and 2, on the last stage's map.
"""

from __future__ import annotations

import base64
import io
import time
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from coatnet.config import UserError
from data_pipeline.decode import DecodeError
from finetune.classifier import Classifier
from finetune.demo.server import Answer
from finetune.prediction import guesses, load_square, prepare

_TOP = 5


def make_answer(classifier: Classifier) -> Answer:
    """Return the function from an image's bytes to what the page shows."""

    def answer(payload: bytes) -> dict[str, Any]:
        began = time.monotonic()
        try:
            square = load_square(payload, classifier)
        except DecodeError as error:
            raise UserError(f"not an image that can be shown: {error}") from None
        logits, heat = grad_cam(classifier, square)
        return {
            "guesses": guesses(logits, classifier, top=_TOP),
            "seen": _data_url(Image.fromarray(square.numpy())),
            "overlay": _data_url(_coloured(heat, side=square.shape[0])),
            "seconds": time.monotonic() - began,
        }

    return answer


def grad_cam(classifier: Classifier, square: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits, and how much each place of the last map speaks for the first guess, from 0 to 1.

    Shape: square uint8 (side, side, 3) → (K,), (side/32, side/32).
    """
    with torch.no_grad():
        trunk = classifier.model.trunk(prepare(square[None], classifier))
    trunk.requires_grad_(True)
    with torch.enable_grad():
        logits = classifier.model.head(trunk)[0].float()
        (gradient,) = torch.autograd.grad(logits.max(), trunk)
    weights = gradient.mean(dim=(1, 2), keepdim=True)
    heat = (weights * trunk).sum(dim=-1).relu()[0].detach().float().cpu()
    return logits.detach().cpu(), heat / heat.max().clamp(min=torch.finfo(torch.float32).tiny)


def _coloured(heat: Tensor, *, side: int) -> Image.Image:
    """Return a picture of the map whose opacity is the heat. Shape: (h, w) → side × side, RGBA."""
    small = Image.fromarray((heat.numpy() * 255).astype(np.uint8))
    level = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    pixels = colormaps["inferno"](level, bytes=True)  # rises in brightness: it is read without colours, too
    pixels[..., 3] = 255 * np.sqrt(level)
    return Image.fromarray(pixels)


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
