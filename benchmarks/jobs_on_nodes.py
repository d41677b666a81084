"""Jobs (node_job.py) that run on virtual nodes and do what they are told."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from virtual_nodes import ANSWER, Command, Node

ROOT = Path(__file__).resolve().parents[1]
_JOB = Path(__file__).with_name("node_job.py")


def start(node: Node, run: Path) -> Command:
    """Start a job and wait until it obeys."""
    node.run("mkdir", "-p", run)
    job = node.start("env", f"PYTHONPATH={ROOT}", sys.executable, "-u", _JOB, run)
    hear(job)
    return job


def hear(job: Command) -> str:
    """Return the next thing that a job says."""
    while not (line := job.read()).startswith(ANSWER):
        pass
    return line.removeprefix(ANSWER)


def ask(job: Command, word: str, answer: str = "") -> str:
    """Say a word to a job and return its answer.

    Raises:
        RuntimeError: it is another one than must come.
    """
    job.tell(word)
    said = hear(job)
    if not said.startswith(answer):
        raise RuntimeError(f"{word}: {said}")
    return said


def last_saved(job: Command) -> int:
    """Return the newest step that a job has promised so far."""
    while not job.lines.empty():
        job.read()
    said = f"{ANSWER}saved "
    return max((int(line.removeprefix(said)) for line in job.output if line.startswith(said)), default=0)


def end(*jobs: Command) -> None:
    """End jobs at once, so that they release nothing."""
    for job in jobs:
        job.send(signal.SIGKILL)
        job.wait()


def say(text: str) -> None:
    """Tell whoever watches."""
    print(text, file=sys.stderr, flush=True)
