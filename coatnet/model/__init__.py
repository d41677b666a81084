"""The CoAtNet family. `family`, `config` and `cost` import no torch; the rest is loaded on demand."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coatnet.model.config import ModelConfig, NormConfig
    from coatnet.model.network import CoAtNet, build_model
    from coatnet.model.norm import commit_statistics, defer_statistics

_HOMES = {
    "ModelConfig": "config",
    "NormConfig": "config",
    "CoAtNet": "network",
    "build_model": "network",
    "commit_statistics": "norm",
    "defer_statistics": "norm",
}
__all__ = ["CoAtNet", "ModelConfig", "NormConfig", "build_model", "commit_statistics", "defer_statistics"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
