"""Strict configs: dataclass schema ← YAML (`extends:` a base) ← dotlist. Imports no torch.

A section's dataclass lives with its owner and checks itself in `__post_init__` by raising ValueError; this
module adds the key's path. Interpolations are refused: a config may come from anyone, and `${oc.env:...}`
would copy secrets into the run directory.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import hashlib
import json
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf, ValueNode
from omegaconf.errors import (
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)
from yaml import YAMLError

from coatnet.config.errors import ConfigError
from coatnet.config.home import with_home
from coatnet.config.owners import refuse_anothers
from coatnet.config.shipped import find_config, shipped_as

T = TypeVar("T")
_ITEMS: dict[Any, str] = {str: "text", int: "a whole number", float: "a number"}
_MAX_EXTENDS = 8
_SIMILAR = 0.65  # from where on two keys are one, misspelled: "trian" is, "epochs" is no "phases"
_SHOWN = 200  # characters of an override in a message
# What a YAML file or an override that is none can raise: numbers of 5,000 digits are a ValueError.
_UNREADABLE = (YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError)
_DEFAULTS: dict[type, DictConfig] = {}  # what `_defaults` has made
_hints = functools.cache(typing.get_type_hints)  # compiles every annotation
_GREATEST = 2**63 - 1  # what numpy, torch and JSON's readers take


def load_config(schema: type[T], path: Path | str | None = None, *, overrides: Sequence[str] = ()) -> T:
    """Read a config into an instance of `schema`.

    Args:
        schema: a dataclass; nested sections are dataclasses too.
        path: a YAML file, whose `extends: other.yaml` (relative to itself) is read first; None for defaults.
            In both places `configs/…` that is not there is what came with the code.
        overrides: dotlist items, `train.micro_batch=32`; they win.

    Raises:
        ConfigError: unknown key (with the nearest name), wrong type, value out of range, missing file.
    """
    try:
        merged = _merged(schema, _layers(path))
    except ConfigError:
        if path is not None:
            refuse_anothers(schema, path, takes=lambda other: bool(_merged(other, _layers(path))))
        raise
    _lay_over(merged, _override_layers(overrides), schema=schema)
    try:
        return _instantiate(merged, prefix="", origin=str(path or "overrides"))
    except (ConfigError, MissingMandatoryValue):
        # Told first, but looked for only now: that takes a sixth of the whole.
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise ConfigError(f"{path or 'the config'}: {missing[0]} must be given") from None
        raise


def to_yaml(config: Any) -> str:
    """Render a config instance as YAML in field order; `load_config` reads it back unchanged."""
    return OmegaConf.to_yaml(to_dict(config))


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config instance as plain containers, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(schema: type[T], values: Mapping[str, Any], *, origin: str) -> T:
    """Rebuild an instance of `schema` from `to_dict`'s result, as strictly as from a file.

    Raises:
        ConfigError: as `load_config` does; what others exported is read by this, too.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{origin}: expected keys and values, not {str(values)[:_SHOWN]!a}")
    try:
        layer = OmegaConf.create(dict(values))
    except _UNREADABLE as error:
        raise ConfigError(f"{origin}: {_reason(error)}") from None
    _check_texts(layer, origin)
    merged = _defaults(schema)
    _merge(merged, layer, origin)
    return _instantiate(merged, prefix="", origin=origin)


def config_digest(config: Any, *, without: Iterable[str] = ()) -> str:
    """Return 16 hex digits that change when any value changes, top-level sections in `without` aside."""
    values = to_dict(config)
    for section in without:
        values.pop(section, None)
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _defaults(schema: type) -> DictConfig:
    """Return a schema's defaults to merge into: a copy, which is much quicker than making them anew."""
    if schema not in _DEFAULTS:
        _DEFAULTS[schema] = OmegaConf.structured(schema)
    return copy.deepcopy(_DEFAULTS[schema])


def _merged(schema: type, layers: Sequence[tuple[DictConfig, str]]) -> DictConfig:
    """Return the defaults with layers over them, of which nothing but keys and types is checked."""
    merged = _defaults(schema)
    _lay_over(merged, layers, schema=schema)
    return merged


def _lay_over(merged: DictConfig, layers: Sequence[tuple[DictConfig, str]], *, schema: type) -> None:
    for layer, origin in layers:
        _check_texts(layer, origin)
        _write_out(layer, schema, prefix="", origin=origin)
        _merge(merged, layer, origin)


def _layers(path: Path | str | None) -> list[tuple[DictConfig, str]]:
    layers: list[tuple[DictConfig, str]] = []
    current = find_config(Path(path)) if path is not None else None
    while current is not None:
        if len(layers) == _MAX_EXTENDS:
            raise ConfigError(f"{path}: more than {_MAX_EXTENDS} files extend each other (a circle?)")
        layer = _read(current)
        base = layer.pop("extends", None)
        layers.insert(0, (layer, str(current)))
        folder = current.parent
        current = None if base is None else find_config(Path(with_home(str(base))), beside=folder)
    return layers


def _read(path: Path) -> DictConfig:
    if path.is_dir():
        held = ", ".join(sorted(found.name for found in path.glob("*.yaml")))
        raise ConfigError(f"{path}: is a folder; give a YAML file{f' of it: {held}' if held else ''}")
    if path.exists() and not path.is_file():  # a device might never end
        raise ConfigError(f"{path}: is a pipe or device; give a YAML file")
    try:
        layer = OmegaConf.load(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file{_nearest_file(path)}") from None
    except _UNREADABLE as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {_reason(error)}") from None
    if not isinstance(layer, DictConfig):
        raise ConfigError(f"{path}: a config is a mapping of sections, this file holds a list")
    return layer


def _nearest_file(path: Path) -> str:
    """Name the most similar file beside the missing one, or what came with the code under its name."""
    siblings = [str(path.parent / found.name) for found in find_config(path.parent).glob("*.yaml")]
    near = difflib.get_close_matches(str(path), siblings, n=1) or shipped_as(path.stem)
    return f"; did you mean {near[0]}?" if near else ""


def _override_layers(overrides: Sequence[str]) -> list[tuple[DictConfig, str]]:
    layers = []
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override {item!r}: expected key.sub=value")
        if not value.strip():  # YAML reads it as null, by which a run would begin from scratch, say
            raise ConfigError(
                f"override {item!r}: nothing stands behind the =; null says that nothing is meant"
            )
        item.encode()  # raises of bytes that are not UTF-8: `coatnet.commands` says so
        try:
            layers.append((OmegaConf.from_dotlist([item]), f"override {item!r}"))
        except _UNREADABLE as error:
            raise ConfigError(f"override {item[:_SHOWN]!r}: {_reason(error)}") from None
    return layers


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())


def _write_out(layer: DictConfig, schema: type, *, prefix: str, origin: str) -> None:
    """Write `a` and `[a, b]` out as `[{path: a}, {path: b}]`: lists of sections that name a `shorthand`.

    Raises:
        ConfigError: something else stands where a section, or a list of them, belongs.
    """
    for name, hint in _hints(schema).items():
        value = layer._get_node(name)
        if value is None or value._is_none() or value._is_missing():
            continue
        kinds = [kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)]
        for kind in kinds:
            key, place = getattr(kind, "shorthand", None), f"{prefix}{name}"
            first = dataclasses.fields(kind)[0].name
            if typing.get_origin(hint) is not list:
                if not isinstance(value, DictConfig):
                    raise ConfigError(
                        f"{origin}: {place} is {value}; allowed: keys below it, as {place}.{first}"
                    )
                _write_out(value, typing.cast(type, kind), prefix=f"{place}.", origin=origin)
            elif key:
                items = value if isinstance(value, ListConfig) else [layer[name]]
                layer[name] = [{key: one} if isinstance(one, str) else one for one in items]
            elif not isinstance(value, ListConfig):
                raise ConfigError(f"{origin}: {place} is {value}; allowed: a list, as [{{{first}: …}}]")


def _check_texts(node: DictConfig | ListConfig, origin: str) -> None:
    """Refuse interpolations, and write `~/…` out in place, which no shell does behind a `key=`.

    Raises:
        ConfigError: there is an interpolation.
        UserError: there is no home.
    """
    keys: list[Any] = list(node.keys()) if isinstance(node, DictConfig) else list(range(len(node)))
    for key in keys:
        if OmegaConf.is_interpolation(node, key):
            raise ConfigError(f"{origin}: {key}: interpolations (${{...}}) are not allowed in configs")
        child = node._get_node(key)
        if isinstance(child, DictConfig | ListConfig) and not child._is_none() and not child._is_missing():
            _check_texts(child, origin)
        elif (
            isinstance(child, ValueNode) and isinstance(text := child._value(), str) and text.startswith("~/")
        ):
            node[key] = with_home(text)


def _merge(merged: DictConfig, layer: DictConfig | dict[str, Any], origin: str) -> None:
    """Merge in place: OmegaConf.merge would copy all sections for each layer."""
    try:
        merged.merge_with(layer)
    except ConfigKeyError as error:
        raise ConfigError(f"{origin}: {_unknown_key(error)}") from None
    except OmegaConfBaseException as error:
        place = f"{error.full_key}: " if error.full_key else ""
        value = error.value._value() if isinstance(error.value, ValueNode) else error.value
        if isinstance(error, ValidationError) and value is None:
            raise ConfigError(f"{origin}: {error.full_key} is null; it needs a value") from None
        raise ConfigError(f"{origin}: {place}{str(error.msg).splitlines()[0]}") from None


def _unknown_key(error: ConfigKeyError) -> str:
    full_key = str(error.full_key)
    parent = error.parent_node
    names = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
    prefix, _, leaf = full_key.rpartition(".")
    near = difflib.get_close_matches(leaf, names, n=1, cutoff=_SIMILAR)
    if near:
        return f"unknown key {full_key}; did you mean {prefix}{'.' if prefix else ''}{near[0]}?"
    return f"unknown key {full_key}; known: {', '.join(names)}"


def _instantiate(node: Any, *, prefix: str, origin: str) -> Any:
    """Build the dataclasses from the leaves up, so that a failing check is reported with its path."""
    if isinstance(node, ListConfig):
        wanted = _ITEMS.get(node._metadata.element_type)
        for number, item in enumerate(node):
            if wanted and isinstance(item, ListConfig | DictConfig):  # OmegaConf refuses all others
                raise ConfigError(f"{origin}: {prefix}[{number}] is {item}; allowed: {wanted}")
        return [_instantiate(item, prefix=f"{prefix}[{i}]", origin=origin) for i, item in enumerate(node)]
    if not isinstance(node, DictConfig) or node._is_none():
        # Such a number compares with nothing, so no check would refuse it.
        if isinstance(node, float) and not math.isfinite(node):
            raise ConfigError(f"{origin}: {prefix} is {node}; allowed: finite numbers")
        if isinstance(node, int) and abs(node) > _GREATEST:
            raise ConfigError(f"{origin}: {prefix} is {node}; allowed: whole numbers below 2^63")
        return None if isinstance(node, DictConfig) else node
    names = [str(key) for key in node]
    values = {
        name: _instantiate(node[name], prefix=f"{prefix}.{name}" if prefix else name, origin=origin)
        for name in names
    }
    kind = OmegaConf.get_type(node)
    if not dataclasses.is_dataclass(kind):
        return values
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigError(f"{origin}: {_placed(str(error), names, prefix=prefix)}") from None


def _placed(message: str, names: Sequence[str], *, prefix: str) -> str:
    """Put a section's path before what it says, in one word with the key that it begins with."""
    first = message.partition(" ")[0].rstrip(":")
    if not prefix or first.partition(".")[0].partition("[")[0] in names:
        return f"{prefix}.{message}" if prefix else message
    return f"{prefix}: {message}"
