"""Operators for GPUs: Triton kernels behind torch.library, so that torch.compile leaves them whole."""

from importlib.util import find_spec

HAS_TRITON = find_spec("triton") is not None  # it comes with torch's CUDA builds


def ceil_div(count: int, size: int) -> int:
    """Return how many programs of `size` it takes for `count`, the last of which may have less to do."""
    return -(-count // size)
