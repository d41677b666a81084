"""What may stand in a batch script or a SLURM option; all else travels in JSON files, never in a shell.

SLURM expands `%` in log paths, splits options at white space and prints every option to other users, so names
and paths that it sees are restricted instead of quoted.
"""

from __future__ import annotations

import re
from pathlib import Path

from coatnet.config import UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PATH = re.compile(r"/[A-Za-z0-9._/+@=~-]{0,4000}")
_OPTION = re.compile(r"--[a-z][a-z0-9-]*(=[A-Za-z0-9._/+@=:,\[\]*&|()-]{0,1000})?")
_VALUE = re.compile(r"[A-Za-z0-9._+@=:,\[\]*&|()-]{1,200}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_MODULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+/-]{0,127}")

# Options that the machine of supervisor.py depends on; a site may not take them over.
_OWN_OPTIONS = {
    "--wrap", "--parsable", "--output", "--error", "--open-mode", "--signal", "--requeue", "--no-requeue",
    "--export", "--export-file", "--array", "--dependency", "--kill-on-invalid-dep", "--kill-on-bad-exit",
    "--chdir", "--ntasks", "--nodes", "--ntasks-per-node", "--job-name", "--comment", "--input",
    "--time", "--partition", "--exclude", "--cpus-per-task", "--wait", "--test-only", "--clusters",
    "--propagate", "--bcast", "--multi-prog", "--task-prolog", "--task-epilog", "--prolog", "--epilog",
}  # fmt: skip


def check_name(name: str, *, what: str) -> str:
    """Return `name` if it is safe everywhere: letters, digits, `.`, `_`, `-`, at most 64.

    Raises:
        UserError: it is not.
    """
    return _check(name, form=_NAME, what=what, allowed="letters, digits, '.', '_' and '-', at most 64")


def check_path(path: Path, *, what: str) -> Path:
    """Return the absolute `path` if SLURM takes it literally.

    Raises:
        UserError: a space, a quote, `%` or another character that SLURM or a shell would read.
    """
    text = str(path.absolute())
    return Path(_check(text, form=_PATH, what=what, allowed="letters, digits and . _ / + @ = ~ -"))


def check_value(value: str, *, what: str) -> str:
    """Return the value of a SLURM option (a partition, a constraint, a node list) if it is plain.

    Raises:
        UserError: it is not.
    """
    return _check(value, form=_VALUE, what=what, allowed="letters, digits and . _ + @ = : , [ ] * & | ( ) -")


def check_variable(name: str) -> str:
    """Return the name of an environment variable.

    Raises:
        UserError: it is none.
    """
    return _check(name, form=_VARIABLE, what="environment variable", allowed="letters, digits and '_'")


def check_module(name: str) -> str:
    """Return the name of an environment module, `cuda/12.6`.

    Raises:
        UserError: it is none.
    """
    return _check(name, form=_MODULE, what="module", allowed="letters, digits and . _ + / -")


def check_options(options: list[str], *, what: str) -> list[str]:
    """Return SLURM options to pass through if each is one plain `--name[=value]` and not the machine's.

    Raises:
        UserError: it is not.
    """
    for option in options:
        _check(option, form=_OPTION, what=what, allowed="--name or --name=value without spaces or quotes")
        name = option.partition("=")[0]
        if name in _OWN_OPTIONS:
            raise UserError(f"{what}: {name} is set by coatnet itself; see docs/slurm.md for its own option")
    return options


def _check(text: str, *, form: re.Pattern[str], what: str, allowed: str) -> str:
    if not form.fullmatch(text):
        raise UserError(f"{what} is {text[:200]!r}; allowed: {allowed}")
    return text
