"""timm without torchvision: its models need none of it, but importing timm does.

The stand-in lives only in benchmarks and tests; nothing that is installed imports timm.
"""

from __future__ import annotations

import enum
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

_MODULES = ("", ".transforms", ".transforms.functional", ".ops", ".ops.misc", ".datasets", ".models")


class _Interpolation(enum.Enum):
    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class _StandIn(types.ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Interpolation if name == "InterpolationMode" else type(name, (), {})


def import_timm() -> Any:
    """Import timm, with a stand-in for torchvision where it is not installed.

    Raises:
        ImportError: timm itself is not installed.
    """
    if importlib.util.find_spec("timm") is None:
        raise ImportError("timm is not installed")
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        for suffix in _MODULES:
            name = f"torchvision{suffix}"
            module = _StandIn(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
            module.__path__ = []
            sys.modules[name] = module
            parent, _, own = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], own, module)
    import timm

    return timm
