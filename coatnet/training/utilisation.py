"""Model FLOPs utilisation, where the device's peak is known. Knows no run."""

from __future__ import annotations

import torch

from coatnet.model.config import ModelConfig
from coatnet.model.cost import model_cost

# Dense bf16 peaks by datasheet, in FLOP/s.
_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
_FLOPS_PER_MAC = 2
_PASSES = 3  # forward, and twice as much backward


def flops_per_image(model: ModelConfig, image_size: int) -> float:
    """Return the floating-point operations of training on one image, recomputation not counted."""
    return _FLOPS_PER_MAC * _PASSES * model_cost(model, image_size).macs


def peak_flops() -> float | None:
    """Return this rank's peak, or None for a device that is not in the table."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in _PEAKS.items() if key in name), None)
