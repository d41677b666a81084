"""Rectangles of images as masks, on any device. Draws nothing."""

from __future__ import annotations

import torch
from torch import Tensor


def inside(boxes: Tensor, *, height: int, width: int) -> Tensor:
    """Say which pixels of each image lie in its box.

    Shape: boxes (n, 4), right and bottom exclusive, as (left, top, right, bottom) → (n, height, width).
    """
    left, top, right, bottom = boxes.T[:, :, None]
    rows = torch.arange(height, device=boxes.device)[None, :]
    columns = torch.arange(width, device=boxes.device)[None, :]
    in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return in_rows[:, :, None] & in_columns[:, None, :]
