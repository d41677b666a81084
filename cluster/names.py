"""What may stand in a batch script or a SLURM option; all else travels in JSON files, never in a shell.

SLURM expands `%` in log paths, splits options at white space and prints every option to other users, so names
and paths that it sees are restricted instead of quoted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from coatnet.config import UserError


@dataclass(frozen=True)
class Form:
    """What a text may be: as a pattern, and as a person reads it."""

    pattern: str
    allowed: str


NAME = Form(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "letters, digits, '.', '_' and '-', at most 64")
# A partition, a constraint, a list of nodes.
VALUE = Form(r"[A-Za-z0-9._+@=:,\[\]*&|()-]{1,200}", "letters, digits and . _ + @ = : , [ ] * & | ( ) -")
VARIABLE = Form(r"[A-Za-z_][A-Za-z0-9_]{0,127}", "letters, digits and '_'")
MODULE = Form(r"[A-Za-z0-9][A-Za-z0-9._+/-]{0,127}", "letters, digits and . _ + / -")
_PATH = Form(r"/[A-Za-z0-9._/+@=~-]{0,4000}", "letters, digits and . _ / + @ = ~ -")
_OPTION = Form(
    r"--[a-z][a-z0-9-]*(=[A-Za-z0-9._/+@=:,\[\]*&|()-]{0,1000})?",
    "--name or --name=value without spaces or quotes",
)

# Options that the machine of supervisor.py depends on; a site may not take them over.
_OWN_OPTIONS = {
    "--wrap", "--parsable", "--output", "--error", "--open-mode", "--signal", "--requeue", "--no-requeue",
    "--export", "--export-file", "--array", "--dependency", "--kill-on-invalid-dep", "--kill-on-bad-exit",
    "--chdir", "--ntasks", "--nodes", "--ntasks-per-node", "--job-name", "--comment", "--input",
    "--time", "--partition", "--exclude", "--cpus-per-task", "--wait", "--test-only", "--clusters",
    "--propagate", "--bcast", "--multi-prog", "--task-prolog", "--task-epilog", "--prolog", "--epilog",
}  # fmt: skip


def check(text: str, form: Form, *, what: str) -> str:
    """Return a text if it has the form.

    Raises:
        UserError: it has not.
    """
    if not re.fullmatch(form.pattern, text):
        raise UserError(f"{what} is {text[:200]!r}; allowed: {form.allowed}")
    return text


def check_path(path: Path, *, what: str) -> Path:
    """Return the absolute `path` if SLURM takes it literally.

    Raises:
        UserError: a space, a quote, `%` or another character that SLURM or a shell would read.
    """
    return Path(check(str(path.absolute()), _PATH, what=what))


def check_options(options: list[str], *, what: str) -> list[str]:
    """Return SLURM options to pass through if each is one plain `--name[=value]` and not the machine's.

    Raises:
        UserError: it is not.
    """
    for option in options:
        check(option, _OPTION, what=what)
        name = option.partition("=")[0]
        if name in _OWN_OPTIONS:
            raise UserError(f"{what}: {name} is set by coatnet itself; see docs/slurm.md for its own option")
    return options
