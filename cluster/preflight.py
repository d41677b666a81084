"""Before the first step and after every crash: which nodes are fit. Runs node_check on each of them by srun.

A node is excluded with its reason when it fails a check of its own or does not answer; a collective that
fails while every node is sound on its own is nobody's fault and only reported.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.job import Job
from cluster.launch import Attempt, check_command, rank_environment
from cluster.progress import last_line
from coatnet.runtime.whole_files import write_whole

_KILL_SECONDS = 5.0
_MOST_CHARACTERS = 200
_FILES_OF_A_RANK = 1024  # shards, libraries, devices


class PreflightError(Exception):
    """What fails is no node's fault: the site, the config or the container."""


def unfit_nodes(
    job: Job, nodes: Sequence[str], *, attempt: Attempt, environment: Mapping[str, str]
) -> dict[str, str]:
    """Check `nodes` at once and return those that are unfit, each with a reason.

    Args:
        environment: the batch script's; srun needs SLURM's own variables.

    Raises:
        PreflightError: what fails is no node's fault.
    """
    if not job.site.preflight.enabled or not nodes:
        return {}
    directory = Path(job.directory)
    results, logs = directory / "preflight" / attempt.label, directory / "logs"
    results.mkdir(parents=True, exist_ok=True)
    (results / "limits.json").write_text(json.dumps(_limits(job)))
    output = f"{logs}/{attempt.label}.preflight-%t.log"
    process = subprocess.Popen(
        check_command(job, nodes=nodes, results=results, output=output),
        env=rank_environment(job, attempt=attempt, nodes=nodes, given=environment, secrets={}),
        cwd=job.code, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    _wait(process, seconds=job.site.preflight.timeout_seconds)
    try:
        return judge(nodes, results=results, logs=logs, label=attempt.label)
    finally:
        _gather(results)


def _gather(results: Path) -> None:
    """Make one file of what the nodes found: hundreds of them would leave hundreds at every start."""
    with suppress(OSError, ValueError):  # on a full disk they stay as they are
        found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
        write_whole(results.with_name(f"{results.name}.json"), json.dumps(found, indent=1).encode())
        shutil.rmtree(results)


def _limits(job: Job) -> dict[str, Any]:
    """Return what node_check holds a node to: the site's limits, and what the job needs."""
    site = job.site
    needed = {"devices": site.gpus_per_node, "directory": job.directory, "shards": job.shards}
    # the first rank, through which all of them meet, has a connection to each
    open_files = max(site.preflight.open_files, site.world_size + _FILES_OF_A_RANK)
    return {**dataclasses.asdict(site.preflight), **needed, "open_files": open_files}


def judge(nodes: Sequence[str], *, results: Path, logs: Path, label: str) -> dict[str, str]:
    """Return the unfit nodes: those with a failure of their own, and those without a word.

    Args:
        nodes: in the order of their tasks.
        results: where each node writes what it found.
        logs: where `label`.preflight-TASK.log is; its last words are those of a node without a result.

    Raises:
        PreflightError: several nodes fail in one and the same way, so other nodes would not help.
    """
    silent = "did not answer the preflight"
    unfit = {}
    for node in nodes:
        try:
            found = json.loads((results / f"{node}.json").read_text())
        except (OSError, ValueError):
            unfit[node] = silent
            continue
        if found["failures"]:
            unfit[node] = "; ".join(found["failures"])
    alike = len(unfit) == len(nodes) > 1 and len(set(unfit.values())) == 1
    for task, node in enumerate(nodes):
        # A container that does not start is told by SLURM's own lines.
        words = last_line(logs / f"{label}.preflight-{task}.log") if unfit.get(node) == silent else ""
        if words:
            unfit[node] = f"{silent}: {words[:_MOST_CHARACTERS]}"
    if alike:
        raise PreflightError(f"all {len(nodes)} nodes: {unfit[nodes[0]]}")
    return unfit


def _wait(process: subprocess.Popen[bytes], *, seconds: float) -> None:
    try:
        process.wait(timeout=seconds)
        return
    except subprocess.TimeoutExpired:
        process.terminate()  # srun ends the tasks that still hang
    try:
        process.wait(timeout=_KILL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
