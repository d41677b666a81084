"""A gradient stays until the stream beside the backward pass has reduced it. Knows no model."""

from __future__ import annotations

from typing import Any

import torch


def keep_until_reduced(optimizer: Any) -> None:
    """Let DeepSpeed's stages 1 and 2 tell torch's allocator which stream still reads a gradient.

    One that is larger than a bucket is reduced where it lies, with `overlap_comm` on a stream of its own, and
    stage 2 drops it at once where other ranks own it: the backward pass would write its next tensors there.
    DeepSpeed 0.19.8 tells the stream only of optimizers on the host.
    """
    beside = getattr(optimizer, "overlap_comm", False) and hasattr(optimizer, "_record_gradient_stream")
    if beside and torch.cuda.is_available():
        optimizer._record_gradient_stream = lambda gradient, stream: gradient.record_stream(stream)
