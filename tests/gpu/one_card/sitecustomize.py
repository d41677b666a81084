"""Lets ranks share one card, which NCCL refuses: gloo carries their words. Found on PYTHONPATH."""

from __future__ import annotations

from typing import Any

from torch import distributed

_start, _wait = distributed.init_process_group, distributed.barrier


def _over_gloo(backend: str, **options: Any) -> None:
    _start("gloo", **options)


def _without_device(group: Any = None, async_op: bool = False, device_ids: Any = None) -> Any:
    return _wait(group, async_op)


distributed.init_process_group, distributed.barrier = _over_gloo, _without_device
