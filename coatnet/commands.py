"""What `coatnet` can do. Finds subcommands through the entry points of the group `coatnet.commands` and knows
none of them: `inspect.model = "package.module:function"` becomes `coatnet inspect model`.

A subcommand is a plain function with typer annotations. Its module must import nothing heavy at the top,
since `coatnet --help` reads every docstring.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Sequence
from importlib import metadata
from importlib.metadata import EntryPoint, entry_points
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import typer
import typer.main
from typer.core import TyperGroup

from coatnet.config.errors import UserError
from coatnet.config.home import with_home
from coatnet.config.plain_text import one_line

_FULL = (errno.ENOSPC, errno.EDQUOT)  # told by a write, which knows no name
_GROUP = "coatnet.commands"
# Of `--option=~/x` and `key=~/x` no shell makes a path; `key=~` is YAML's null.
_HOMELY = re.compile(r"(?:--[\w-]+=)+(?=~(?:/|$))|[\w.]+=(?=~/)")
_HELP = "Pretrain, fine-tune and export CoAtNets. Example: coatnet pretrain configs/quickstart_pretrain.yaml"
_GROUP_HELP = {"inspect": "Look inside models, shards, checkpoints and the sample order."}


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
        if cmd_name.startswith("-") or ctx.resilient_parsing:  # a shell asks how a line could go on
            return None
        known = self.list_commands(ctx)
        near = difflib.get_close_matches(cmd_name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise UserError(f"{ctx.command_path} has no command {cmd_name}; {hint}")


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its status.

    Raises:
        UserError: an argument is blank, as "$NAME" is where NAME is not set: it would name this folder; or
            one begins with `~` where there is no home.
    """
    for before, word in pairwise(["", *arguments]):
        if not word.strip() and not before.startswith("-"):
            raise UserError("an argument is empty; a variable of the shell may not be set")
    points = {point.name: point for point in entry_points(group=_GROUP)}
    group = _group("coatnet", prefix="", points=points, help=_HELP)
    words = [_written_out(word) for word in arguments]
    status = group.main(args=words, prog_name="coatnet", standalone_mode=False)
    return status if isinstance(status, int) else 0


def _written_out(word: str) -> str:
    """Return a word with the home directory for a `~` behind `=`."""
    found = _HOMELY.match(word)
    return word if found is None else found.group() + with_home(word[found.end() :])


def in_a_line(error: Exception) -> str | None:
    """Return what a user is told of an error, or None where it is a mistake of the program."""
    if isinstance(error, UserError):
        return one_line(str(error))
    if isinstance(error, OSError):  # a file or folder that cannot be made, read or written
        if error.filename is None:
            return error.strerror if error.errno in _FULL else None
        return one_line(f"{error.filename}: {error.strerror}")
    if isinstance(error, UnicodeEncodeError):  # Python's stand-in for bytes of a name that are no UTF-8
        before, bad = error.object[: error.start].split("/")[-1][-40:], error.object[error.start : error.end]
        return one_line(f"…{before}{bad}…: a name that is not UTF-8; rename the file or folder")
    if not hasattr(error, "format_message"):  # a usage error; typer brings click's classes or its own
        return None
    said = one_line(error.format_message()).rstrip(".")
    option = str(getattr(error, "option_name", None) or "")
    if "." in option:
        return (
            f"no option {option}; config keys go without dashes, {option.lstrip('-').partition('=')[0]}=VALUE"
        )
    context = getattr(error, "ctx", None)
    where = f"; see `{context.command_path} --help`" if context is not None else ""
    return f"{said[:1].lower()}{said[1:]}{where}"


def _typer(*, completion: bool = False) -> typer.Typer:
    return typer.Typer(
        add_completion=completion,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _command(name: str, function: Any) -> Any:
    app = _typer()
    app.command(name)(function)
    return typer.main.get_command(app)


def _group(name: str, *, prefix: str, points: dict[str, EntryPoint], help: str) -> Any:
    kind = type("EntryPointGroup", (_EntryPointGroup,), {"prefix": prefix, "points": points})
    app = _typer(completion=not prefix)
    app.callback(cls=kind, help=help, invoke_without_command=True)(_show_help if prefix else _begin)
    group = typer.main.get_command(app)
    group.name = name
    return group


def _begin(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Answer where no command was given."""
    if version:
        print(f"coatnet {metadata.version('coatnet')}")
        raise typer.Exit
    _show_help(context)


def _show_help(context: typer.Context) -> None:
    """Show the help page where no command was given."""
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")
        raise typer.Exit(2)
