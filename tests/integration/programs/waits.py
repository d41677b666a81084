"""Take a stage's training on the host's GPU and print where each step waits for the device.

python benchmarks/host_gpu python tests/integration/programs/waits.py STAGE CONFIG key=value…
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from coatnet.runtime.launch import free_port
from coatnet.runtime.rendezvous import local_variables
from coatnet.training.run import TrainingRun

ROOT = Path(__file__).parents[3]
# Whose result the host reads, or whose shape depends on values.
READING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "_unique2"}
COPYING = {"_to_copy", "copy_"}


class Waits(TorchDispatchMode):
    """Counts what a GPU would be waited for, by the file of ours or the library that asked."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.backward = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        found = function(*args, **options)
        name = function.overloadpacket.__name__
        self.backward |= "backward" in name
        if waits(name, args, options, found):
            self.found[_who_asked()] += 1
        return found


def waits(name: str, args: Any, options: dict[str, Any], found: Any) -> bool:
    """Tell whether an operator makes the host wait for a GPU."""
    if name in COPYING:
        source, target = (args[0], found) if name == "_to_copy" else (args[1], args[0])
        if source.device == target.device:
            return False
        to_gpu_in_turn = target.is_cuda and options.get("non_blocking") and hasattr(source, "pinned")
        return not to_gpu_in_turn
    if name == "lift_fresh":  # of numbers, by way of ordinary memory
        return bool(args[0].is_cuda)
    if name in ("index", "index_put", "index_put_") and args[0].is_cuda:
        indices = [index for index in args[1] if index is not None]
        return any(index.dtype == torch.bool or not index.is_cuda for index in indices)
    return name in READING and args[0].is_cuda


def _who_asked() -> str:
    frame: Any = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/deepspeed/" in file:
            return "DeepSpeed"
        if file.startswith(str(ROOT)) and "site-packages" not in file:
            return f"{Path(file).relative_to(ROOT)}: {frame.f_code.co_name}"
        frame = frame.f_back
    return "unknown"


def pin(tensor: Tensor, *_: Any) -> Tensor:
    """Stand in for pinned memory, which the host's GPU has none of."""
    copy = tensor.clone()
    copy.pinned = True  # type: ignore[attr-defined]
    return copy


def main() -> None:
    """Train, and print a line of JSON for each step."""
    stage, *arguments = sys.argv[1:]
    os.environ.update(local_variables(0, ranks=1, port=free_port()))
    torch.Tensor.pin_memory = pin  # type: ignore[method-assign, assignment]
    step = TrainingRun.step

    def counted(self: Any, state: Any, batch: Any) -> Any:
        with Waits() as seen:
            result = step(self, state, batch)
        assert seen.backward
        print(json.dumps(seen.found))
        return result

    TrainingRun.step = counted  # type: ignore[method-assign]
    importlib.import_module(f"{stage}.worker").main(arguments)


if __name__ == "__main__":
    main()
