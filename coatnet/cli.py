"""The `coatnet` command. It finds subcommands through the entry points of the group `coatnet.commands` and
knows none of them: `inspect.model = "package.module:function"` becomes `coatnet inspect model`.

A subcommand is a plain function with typer annotations. Its module must import nothing heavy at the top,
since `coatnet --help` reads every docstring.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, NoReturn

import typer
import typer.main
from typer.core import TyperGroup

from coatnet.config.errors import UserError

_GROUP = "coatnet.commands"
_HELP = "Pretrain, fine-tune and hand on CoAtNets. Example: coatnet pretrain configs/quickstart_pretrain.yaml"
_GROUP_HELP = {"inspect": "Look inside models, shards, checkpoints and the sample order."}
_EXIT_USER_ERROR = 2
_EXIT_INTERRUPTED = 130


class _EntryPointGroup(TyperGroup):
    """A group whose commands are entry points, imported when they are asked for."""

    prefix = ""
    points: ClassVar[dict[str, EntryPoint]] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        rest = (name[len(self.prefix) :] for name in self.points if name.startswith(self.prefix))
        return sorted({name.split(".")[0] for name in rest})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        full = self.prefix + cmd_name
        if full in self.points:
            return _command(cmd_name, self.points[full].load())
        if any(name.startswith(f"{full}.") for name in self.points):
            return _group(cmd_name, prefix=f"{full}.", points=self.points, help=_GROUP_HELP.get(full, ""))
        return None


def _typer() -> typer.Typer:
    return typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


def _command(name: str, function: Any) -> Any:
    app = _typer()
    app.command(name)(function)
    return typer.main.get_command(app)


def _group(name: str, *, prefix: str, points: dict[str, EntryPoint], help: str) -> Any:
    kind = type("EntryPointGroup", (_EntryPointGroup,), {"prefix": prefix, "points": points})
    app = _typer()
    app.callback(cls=kind, help=help, no_args_is_help=True)(lambda: None)
    group = typer.main.get_command(app)
    group.name = name
    return group


def main() -> NoReturn:
    """Run the command line: a user's mistake is one line on stderr and exit status 2."""
    points = {point.name: point for point in entry_points(group=_GROUP)}
    try:
        _group("coatnet", prefix="", points=points, help=_HELP).main(prog_name="coatnet")
    except UserError as error:
        if os.environ.get("COATNET_TRACEBACK"):
            raise
        _fail(str(error))
    except OSError as error:  # a file or folder that cannot be made, read or written
        if os.environ.get("COATNET_TRACEBACK") or error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(_EXIT_INTERRUPTED)
    sys.exit(0)


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(_EXIT_USER_ERROR)


if __name__ == "__main__":
    main()
