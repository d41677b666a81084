"""The batch script as a pure function of a job. It asks nothing and starts nothing.

Only restricted names and paths enter it (names.py); what a user writes freely, such as overrides and data
paths, stays in job.json and reaches the ranks as argv.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from cluster.job import Job
from cluster.names import MODULE, NAME, VALUE, VARIABLE, check, check_options, check_path
from coatnet.config import UserError
from coatnet.config.plain_text import number_of

# sbatch's option: the site's key
_PLAIN_OPTIONS = {
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint",
    "exclude": "exclude", "mem": "memory",
}  # fmt: skip
_OWN_GPUS = ("--gres=gpu", "--gpus")  # how a site may ask for them instead, as by --gres=gpu:a100:8
# A function of login shells, which no job inherits by its name; what defines it may make the path anew.
_MODULES = "type module > /dev/null 2>&1 || { path=$PATH; . /etc/profile; PATH=$path; }"
BASE_ENVIRONMENT = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "SLURM_CONF")


def render_script(job: Job, *, job_file: Path) -> str:
    """Return the text of the batch script.

    Raises:
        UserError: a name, a path or an option holds characters that SLURM or a shell would read.
    """
    header = [f"#SBATCH {option}" for option in sbatch_options(job)]
    return "\n".join(["#!/bin/bash", *header, "", *_body(job, job_file=job_file)]) + "\n"


def sbatch_options(job: Job) -> list[str]:
    """Return the job's own options followed by those that the site passes through."""
    site = job.site
    logs = check_path(Path(job.directory), what="run directory") / "logs"
    options = [
        f"--job-name={check(job.name, NAME, what='job name')}",
        f"--nodes={site.nodes + site.spares}",
        f"--ntasks-per-node={site.ranks_per_node}",
        f"--cpus-per-task={site.cpus_per_task}",
        f"--time={check(site.time, VALUE, what='time')}",
    ]
    if site.gpus_per_node and not any(option.startswith(_OWN_GPUS) for option in site.sbatch):
        options.append(f"--gpus-per-node={site.gpus_per_node}")
    for name, key in _PLAIN_OPTIONS.items():
        value = getattr(site, key)
        if value:
            if any(option.startswith(f"--{name}=") for option in site.sbatch):
                raise UserError(f"sbatch: --{name} is given, and so is {key}, {value}; give one of them")
            options.append(f"--{name}={check(value, VALUE, what=key)}")
    if job.array:
        options.append(f"--array=0-{job.array - 1}")
    options += [
        f"--output={logs}/job-{'%A_%a' if job.array else '%j'}.log",
        "--open-mode=append",  # a requeued job would empty its log
        f"--signal=B:USR1@{site.warning_seconds}",
        "--requeue" if site.continuation == "requeue" else "--no-requeue",
        f"--export={','.join(_exported(job))}",
    ]
    return options + check_options(site.sbatch, what="sbatch")


def _exported(job: Job) -> list[str]:
    names = [
        *BASE_ENVIRONMENT,
        *(check(name, VARIABLE, what="environment variable") for name in job.site.environment),
    ]
    return list(dict.fromkeys(names))


def _body(job: Job, *, job_file: Path) -> list[str]:
    site = job.site
    command = check(job.command[0], NAME, what="command")
    shape = f"{number_of(site.nodes, 'node')} × {number_of(site.ranks_per_node, 'rank')}"
    if site.spares:
        shape += f", {number_of(site.spares, 'spare')}"
    lines = [
        f"# coatnet {command}: {shape}; continued by {site.continuation}.",
        "# Rendered by `coatnet submit`: submit again rather than edit. The ranks' command is in job.json.",
        *([_MODULES] if site.modules else []),
        "set -e",  # and not -u, which ends what modules and conda source where a variable is not set
        "umask 027",
        "trap '' USR1  # until the supervisor listens, a warning ends nobody",
    ]
    lines += [f"module load {check(name, MODULE, what='module')}" for name in site.modules]
    if site.setup_script:
        lines.append(f"source {_quoted(Path(site.setup_script), what='setup_script')}")
    code = _quoted(Path(job.code), what="code")
    lines += [f"export PYTHONPATH={code}", f"cd {code}"]
    python = _quoted(Path(job.python), what="python")
    # `exec` makes the supervisor the batch shell's process, which is the one that SLURM warns with USR1.
    lines.append(f"exec {python} -m cluster.supervisor {_quoted(job_file, what='job file')}")
    return lines


def _quoted(path: Path, *, what: str) -> str:
    return shlex.quote(str(check_path(path, what=what)))
