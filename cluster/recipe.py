"""A training config as the application that owns it understands it, without knowing any application.

Packages declare their root schemas as entry points of the group `coatnet.schemas` (`pretrain =
"pretrain.config:PretrainConfig"`), so a typo is refused before the queue and the plan sees every default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from coatnet.config import UserError, load_config, to_dict, to_yaml

_GROUP = "coatnet.schemas"


def schema_names() -> list[str]:
    """Return the commands that read a config."""
    return sorted(point.name for point in entry_points(group=_GROUP))


def read_recipe(command: str, path: Path, *, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Return a command's config with its defaults, as plain containers and as YAML.

    Raises:
        ConfigError: the config is wrong.
        UserError: the command reads no config.
    """
    points = {point.name: point for point in entry_points(group=_GROUP)}
    if command not in points:
        raise UserError(f"{command} reads no config; those that do: {', '.join(points) or 'none installed'}")
    config = load_config(points[command].load(), path, overrides=overrides)
    return to_dict(config), to_yaml(config)


def find_command(path: Path, *, overrides: Sequence[str]) -> str:
    """Return whose config this is: of the command whose schema takes it, its folder's name being tried first.

    Raises:
        ConfigError: no schema takes it; the error is that of the first.
    """
    names = sorted(schema_names(), key=lambda name: (name != path.resolve().parent.name, name != "pretrain"))
    trouble: UserError | None = None
    for name in names:
        try:
            read_recipe(name, path, overrides=overrides)
        except UserError as error:
            trouble = trouble or error
        else:
            return name
    raise trouble or UserError(f"{path}: no installed command reads a config")


def lookup(config: Mapping[str, Any], key: str) -> Any:
    """Return `config["a"]["b"]` for "a.b", None where a section is missing."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def is_pretraining(config: Mapping[str, Any]) -> bool:
    """Return whether ZeRO is a section of its own; fine-tuning knows its stage alone."""
    return isinstance(lookup(config, "zero"), Mapping)


def mixes_images(config: Mapping[str, Any]) -> bool:
    """Return whether mixup or cutmix makes images of two."""
    return any((lookup(config, f"augment.{name}") or 0) > 0 for name in ("mixup", "cutmix"))
