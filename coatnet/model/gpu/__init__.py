"""Operators for GPUs: Triton kernels behind torch.library, so that torch.compile leaves them whole."""

from importlib.util import find_spec

import torch
from torch import Tensor

HAS_TRITON = find_spec("triton") is not None  # it comes with torch's CUDA builds


def at_least_fp32(x: Tensor) -> Tensor:
    """Widen bf16 and fp16; leave float64, the tests' reference, as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def ceil_div(count: int, size: int) -> int:
    """Return how many programs of `size` it takes for `count`, the last of which may have less to do."""
    return -(-count // size)
