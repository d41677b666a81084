"""A training config as the application that owns it understands it, without knowing any application.

Packages declare their root schemas as entry points of the group `coatnet.schemas` (`pretrain =
"pretrain.config:PretrainConfig"`), so a typo is refused before the queue and the plan sees every default.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from coatnet.config import UserError, load_config
from coatnet.config.owners import schemas

_COMMANDS = "coatnet.commands"


def schema_names() -> list[str]:
    """Return the commands that read a config."""
    return sorted(schemas())


def check_command(name: str) -> None:
    """Refuse what is no command of coatnet.

    Raises:
        UserError: it is none.
    """
    if name not in _commands():
        raise UserError(f"command is {name!r}; allowed: {', '.join(sorted(_commands()))}")


# Every question to the installed packages reads all their files: a pipeline would ask for each of its stages.
@functools.cache
def _commands() -> frozenset[str]:
    return frozenset(point.name.partition(".")[0] for point in entry_points(group=_COMMANDS))


def read_recipe(command: str | None, path: Path, *, overrides: Sequence[str]) -> Any:
    """Return a config with its defaults, as its owner's dataclass.

    Args:
        command: whose config it is; None takes the first schema that fits, that of its folder's name being
            tried first.

    Raises:
        ConfigError: the config is wrong; where no schema takes it, the error is that of the first.
        UserError: the command reads no config.
    """
    names = [command] if command else sorted(schema_names(), key=lambda name: _unlikely(name, path))
    trouble: UserError | None = None
    for name in names:
        if name not in schemas():
            raise UserError(
                f"{name} reads no config; those that do: {', '.join(schemas()) or 'none installed'}"
            )
        try:
            return load_config(schemas()[name].load(), path, overrides=overrides)
        except UserError as error:
            trouble = trouble or error
    raise trouble or UserError(f"{path}: no installed command reads a config")


def _unlikely(name: str, path: Path) -> tuple[bool, bool]:
    return name != path.resolve().parent.name, name != "pretrain"


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
