"""Load DeepSpeed so that it builds nothing at run time and prints nothing of its own."""

from __future__ import annotations

import os
import warnings
from typing import Any


def load_deepspeed(*, extensions: str | None = None) -> Any:
    """Import DeepSpeed and return it.

    Its shared-memory communication for CPUs would be compiled in the first start (91 s here), and a kill
    during the build leaves a lock that hangs every later start; gloo does the same work.

    Args:
        extensions: folder for operators that a GPU still needs built; one per run for the same reason.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if extensions is not None:
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", extensions)
    import deepspeed

    _import_muon(torch)
    # Nothing fits that would have to be built: asked what is, DeepSpeed runs compilers and asks cards,
    # and without CUDA's own compiler prints seven warnings.
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.logger.setLevel("ERROR")
    warnings.filterwarnings("ignore", message=".*(all_gather_into_tensor|reduce_scatter_tensor).*deprecated")
    return deepspeed


def _import_muon(torch: Any) -> None:
    """Import the optimizer that DeepSpeed only compares types with, without compiling its functions.

    Its `torch.compile` decorators load the whole inductor: 2 of the 6 seconds that a start takes.
    """
    compile_function = torch.compile
    torch.compile = lambda function=None, **_: function or (lambda inner: inner)
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        torch.compile = compile_function
