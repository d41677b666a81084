"""What is asked from SLURM: a site's file gives the defaults, the command line the rest. Asks no queue."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coatnet.config import ConfigError, UserError, from_dict, load_config, to_dict
from coatnet.config.checks import at_least_one, at_least_zero, one_of

SITE_VARIABLE = "COATNET_SITE"
_BY_ENVIRONMENT = ("account", "partition", "qos", "constraint", "reservation")
_SECONDS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
# Days with hours, minutes and seconds as far as given; or the clock's last two or three numbers.
_WITH_DAYS = re.compile(r"(?P<days>\d+)-(?P<hours>\d{1,2})(?::(?P<minutes>\d{2})(?::(?P<seconds>\d{2}))?)?")
_CLOCK = re.compile(r"(?:(?P<hours>\d{1,3}):)?(?P<minutes>\d{1,3}):(?P<seconds>\d{2})")


@dataclass
class ContainerConfig:
    """Where the ranks run. The batch script itself always stays outside, where SLURM's commands are.

    Attributes:
        runtime: "none", "pyxis" or "apptainer".
        image: as the runtime names it.
        mounts: as "/data:/data:ro"; the run directory and the working directory are mounted in any case.
        command: the command's name inside.
    """

    runtime: str = "none"
    image: str = ""
    mounts: list[str] = field(default_factory=list)
    command: str = "coatnet"

    def __post_init__(self) -> None:
        one_of("runtime", self.runtime, ("none", "pyxis", "apptainer"))


@dataclass
class PreflightConfig:
    """What every node must pass before the first step, and after every crash.

    Attributes:
        enabled: whether nodes are checked.
        timeout_seconds: of all checks of a node together.
        shared_memory_bytes: free in /dev/shm.
        open_files: that a process may have; runs of thousands of ranks ask for more.
        free_space_bytes: in the run directory.
        clock_skew_seconds: between a node's clock and the others'.
        bandwidth_bytes_per_second: of a 16-MiB all-reduce; 0 records it and judges nothing.
        commands: a site's own checks, a list of words each; status 0 passes.
    """

    enabled: bool = True
    timeout_seconds: int = 120
    shared_memory_bytes: int = 1 << 30
    open_files: int = 4096
    free_space_bytes: int = 10 << 30
    clock_skew_seconds: float = 2.0
    bandwidth_bytes_per_second: float = 0.0
    commands: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("timeout_seconds", "shared_memory_bytes", "open_files", "free_space_bytes",
                     "clock_skew_seconds", "bandwidth_bytes_per_second"):  # fmt: skip
            at_least_zero(name, getattr(self, name))


@dataclass
class SiteConfig:
    """One submission's resources and habits. A site file holds what rarely changes.

    Attributes:
        partition: as sbatch takes it; so are account, qos and constraint; null for SLURM's own choice.
        account: who pays.
        qos: quality of service.
        constraint: features that nodes must have.
        exclude: nodes to leave out, as "fake[3-4]".
        nodes: how many compute.
        gpus_per_node: asked for on each; 0 for none.
        tasks_per_node: ranks of a node; null for one per GPU.
        cpus_per_task: cores of a rank, which decode its images too.
        memory: of a node, as "200G"; "0" takes all of it, null what SLURM gives.
        time: limit of one life, as "D-HH:MM:SS" or "HH:MM:SS", in quotes; a run takes as many lives as it
            needs.
        spares: nodes held ready beside those that compute.
        hardware: profile of `coatnet plan`, by which each run is given a plan to be compared with.
        continuation: "requeue"; "chain" where the site forbids requeueing; "none" to stop at the limit.
        retries: in place, when a rank crashes, within one life.
        lives_without_progress: so many in a row without a new checkpoint, and the run is held.
        warning_seconds: before the limit the run is told to save; at least twice what a step and a save take.
        modules: to load, as [cuda/12.6].
        setup_script: that the batch script sources; `. /etc/profile` there brings what login shells have.
        environment: names of variables that jobs inherit beside PATH, HOME, USER and LANG.
        secrets_file: NAME=value lines, mode 0600; read on the node, printed nowhere.
        sbatch: further options of sbatch, as ["--mail-type=FAIL"].
        srun: further options of srun, as ["--cpu-bind=cores"].
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    nodes: int = 1
    gpus_per_node: int = 8
    tasks_per_node: int | None = None
    cpus_per_task: int = 8
    memory: str | None = None
    time: str = "1-00:00:00"
    spares: int = 0
    hardware: str | None = None
    continuation: str = "requeue"
    retries: int = 2
    lives_without_progress: int = 3
    warning_seconds: int = 300
    modules: list[str] = field(default_factory=list)
    setup_script: str | None = None
    environment: list[str] = field(default_factory=list)
    secrets_file: str | None = None
    sbatch: list[str] = field(default_factory=list)
    srun: list[str] = field(default_factory=list)
    container: ContainerConfig = field(default_factory=ContainerConfig)
    preflight: PreflightConfig = field(default_factory=PreflightConfig)

    def __post_init__(self) -> None:
        one_of("continuation", self.continuation, ("requeue", "chain", "none"))
        for name in ("nodes", "cpus_per_task", "lives_without_progress", "warning_seconds"):
            at_least_one(name, getattr(self, name))
        for name in ("gpus_per_node", "spares", "retries"):
            at_least_zero(name, getattr(self, name))
        if self.tasks_per_node is not None:
            at_least_one("tasks_per_node", self.tasks_per_node)
        limit = time_seconds(self.time)
        if self.warning_seconds >= limit:
            raise ValueError(
                f"warning_seconds is {self.warning_seconds}, as long as the time limit {self.time}; "
                "the job would be told to stop at once"
            )

    def updated(
        self, given: Mapping[str, Any], *, image: str | None, sbatch: Sequence[str], srun: Sequence[str]
    ) -> SiteConfig:
        """Return a copy with the command line's values, those that were given.

        Raises:
            ConfigError: the result is out of range, or there is an image and nothing to run it by.
        """
        changes = {name: value for name, value in given.items() if value is not None}
        changes.update(sbatch=[*self.sbatch, *sbatch], srun=[*self.srun, *srun])
        if image and self.container.runtime == "none":
            raise ConfigError(
                f"--container {image}: container.runtime is none, so the run would begin outside of it; "
                "set it to pyxis or apptainer in the site file, or by --set"
            )
        if image:
            changes["container"] = {"image": image}
        return self.with_keys(changes, origin="command line")

    def with_keys(self, changes: Mapping[str, Any], *, origin: str) -> SiteConfig:
        """Return a copy with some keys of a site file changed, sections key by key.

        Raises:
            ConfigError: an unknown key, or a value out of range.
        """
        values = to_dict(self)
        for key, value in changes.items():
            known = values.get(key)
            values[key] = (
                {**known, **value} if isinstance(known, dict) and isinstance(value, Mapping) else value
            )
        return from_dict(SiteConfig, values, origin=origin)

    @property
    def ranks_per_node(self) -> int:
        """Return the number of ranks on a node: one per GPU unless said otherwise."""
        return self.tasks_per_node or max(self.gpus_per_node, 1)

    @property
    def world_size(self) -> int:
        """Return the number of ranks, spares aside."""
        return self.nodes * self.ranks_per_node

    @property
    def time_limit_seconds(self) -> int:
        """Return the time limit of one life."""
        return time_seconds(self.time)


def load_site(path: Path | None, *, overrides: Sequence[str] = ()) -> SiteConfig:
    """Read the site file: `path`, else `$COATNET_SITE`, else ~/.config/coatnet/site.yaml, else defaults.

    Raises:
        ConfigError: a key is unknown or a value out of range.
    """
    return load_config(SiteConfig, path or _default_path(), overrides=overrides)


def unheeded_settings(site: SiteConfig) -> str:
    """Return which of sbatch's settings by the environment the user may count on: none steers a run's job."""
    told = []
    for option in _BY_ENVIRONMENT:
        name = f"SBATCH_{option.upper()}"
        is_given = getattr(site, option, None) or any(one.startswith(f"--{option}=") for one in site.sbatch)
        if os.environ.get(name) and not is_given:
            own = f"--{option}" if hasattr(site, option) else f"--sbatch=--{option}=NAME"
            told.append(
                f"{name} of your environment is not heeded; give {own}, or write it into the site file"
            )
    return "; ".join(told)


def _default_path() -> Path | None:
    if os.environ.get(SITE_VARIABLE):
        return Path(os.environ[SITE_VARIABLE])
    own = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # who has no home has no file
    path = Path(own, "coatnet", "site.yaml")
    return path if path.is_file() else None


def time_seconds(text: str) -> int:
    """Read SLURM's `D-HH:MM:SS`, `D-HH:MM`, `D-HH`, `HH:MM:SS` or `MM:SS`.

    A bare number is refused: YAML reads an unquoted 12:00:00 as 43200, which SLURM would take for minutes.

    Raises:
        ValueError: another form.
    """
    found = _WITH_DAYS.fullmatch(text) or _CLOCK.fullmatch(text)
    if not found:
        hint = '; in YAML put it in quotes: "12:00:00"' if text.isdecimal() else ""
        raise ValueError(f"time is {text!r}; write D-HH:MM:SS or HH:MM:SS{hint}")
    parts = found.groupdict()
    return sum(int(parts.get(name) or 0) * size for name, size in _SECONDS.items())


def read_secrets(path: Path) -> dict[str, str]:
    """Read NAME=value lines of a file that only its owner can read.

    Raises:
        UserError: the file is missing, open to others, or a line is none; no value is ever printed.
    """
    if not path.is_file():
        raise UserError(f"secrets_file {path}: no such file")
    if path.stat().st_mode & 0o077:
        raise UserError(f"secrets_file {path} can be read by others; run: chmod 600 {path}")
    secrets = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name.strip()):
            raise UserError(f"secrets_file {path}, line {number}: expected NAME=value")
        secrets[name.strip()] = value.strip()
    return secrets
