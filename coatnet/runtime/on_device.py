"""The host's numbers on their way to a device. Knows no rank."""

from __future__ import annotations

from torch import Tensor, device


def on_device(tensor: Tensor, where: device) -> Tensor:
    """Return the tensor on a device, without waiting for what the device still has to do.

    A copy from ordinary memory to a GPU waits for all of that; one from pinned memory takes its turn, and
    torch keeps the memory until then.
    """
    if where.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(where, non_blocking=True)
    return tensor.to(where)
