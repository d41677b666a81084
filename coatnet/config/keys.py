"""A schema as YAML: every key with its default and, above it, what its dataclass's docstring says of it.

The text is a config itself: `coatnet pretrain --keys > my.yaml` makes one to begin with. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Iterator
from typing import Any

import typer

_WIDTH = 78  # characters
_ATTRIBUTE = re.compile(r"    (\w+): (.*)")


def keys_option(find_schema: Callable[[], type]) -> Any:
    """Return the option `--keys` of a command whose config has the schema that `find_schema` imports."""

    def show(wanted: bool) -> None:
        if wanted:
            print(annotated_yaml(find_schema()), end="")
            raise typer.Exit

    words = "Print every key with its meaning and default, as YAML, and end."
    return typer.Option("--keys", is_eager=True, callback=show, help=words)


def annotated_yaml(schema: type) -> str:
    """Return a schema's keys in order, each below its meaning, as a config of its defaults."""
    return "\n".join(_lines(schema, _defaults(schema), indent="")) + "\n"


def meanings(schema: type) -> dict[str, str]:
    """Return what a dataclass says of its fields under `Attributes:`, those that it inherits included."""
    found: dict[str, str] = {}
    for kind in reversed(schema.__mro__):
        name, doc = None, inspect.cleandoc(kind.__dict__.get("__doc__") or "")
        for line in doc.partition("Attributes:\n")[2].splitlines():
            entry = _ATTRIBUTE.fullmatch(line)
            if entry:
                name = entry[1]
                found[name] = entry[2]
            elif name and line.startswith(" " * 8):
                found[name] += f" {line.strip()}"
            elif line.strip():
                break  # another part of the docstring
    return found


def sections(schema: type) -> dict[str, type]:
    """Return the fields that are dataclasses, may be one, or are lists of them."""
    found: dict[str, type] = {}
    for name, hint in typing.get_type_hints(schema).items():
        for kind in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(kind):
                found[name] = typing.cast(type, kind)
    return found


def _lines(schema: type, values: dict[str, Any], *, indent: str) -> Iterator[str]:
    nested, told = sections(schema), meanings(schema)
    for name, value in values.items():
        kind = nested.get(name)
        yield from _comment(told.get(name) or (_summary(kind) if kind else ""), indent=indent)
        if kind is not None and isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from _lines(kind, value, indent=f"{indent}  ")
            continue
        if kind is not None:  # none of it, or a list of none: the keys of one stand as comments
            yield from _lines(kind, _defaults(kind), indent=f"{indent}#   ")
        yield f"{indent}{name}: {_value(value)}"


def _value(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def _defaults(schema: type) -> dict[str, Any]:
    """Return a schema's defaults as plain containers, without asking it whether they make sense together."""
    found: dict[str, Any] = {}
    for one in dataclasses.fields(schema):
        value = one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
        found[one.name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
    return found


def _summary(schema: type) -> str:
    text = inspect.cleandoc(schema.__doc__ or "").partition("\n\nAttributes:")[0]
    return " ".join(text.split())


def _comment(text: str, *, indent: str) -> list[str]:
    start = f"{indent}# "
    text = text[:1].upper() + text[1:]
    return textwrap.wrap(text, _WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False)
