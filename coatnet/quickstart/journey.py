"""The quickstart's steps, commands that a user could type; a finished step is not done again."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from coatnet.config import UserError
from coatnet.config.plain_text import json_text
from coatnet.config.shipped import find_config
from coatnet.quickstart.digits import write_digits
from coatnet.runtime.launch import gpu_count
from coatnet.runtime.run_directory import read_lines
from coatnet.runtime.whole_files import write_whole

# The pretraining is interrupted once this share of it is done.
_INTERRUPT_AT = 0.45
_POLL_SECONDS = 0.1
_STEPS = "steps.jsonl"


@dataclass(frozen=True)
class Step:
    """One finished step: how long it took and how many images went through."""

    title: str
    seconds: float
    images: int


class Journey:
    """Runs steps in order, remembers the finished ones in `steps.jsonl` beside the summary."""

    def __init__(self, directory: Path, *, quiet: bool) -> None:
        self.directory = directory
        self.quiet = quiet
        self.console = Console(stderr=True, quiet=quiet, emoji=False)
        self._log = directory / _STEPS
        self.steps = {row["title"]: Step(**row) for row in read_lines(self._log)}

    def step(self, title: str, work: Callable[[], int]) -> None:
        """Run `work`, which returns its image count, unless the step was finished before."""
        if title in self.steps:
            return
        self.console.rule(title, align="left")
        began = time.monotonic()
        images = work()
        finished = Step(title, round(time.monotonic() - began, 2), images)
        self.steps[title] = finished
        with self._log.open("a") as log:
            log.write(json_text(asdict(finished)) + "\n")

    def command(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Start `coatnet ARGUMENTS…`, showing the command as a user would type it, or copy it."""
        words = [str(argument) for argument in arguments]
        shown = escape(shlex.join(["coatnet", *words]))
        self.console.print(f"[dim]$ {shown}[/dim]", highlight=False, soft_wrap=True)
        environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2)), **os.environ}
        output = subprocess.DEVNULL if self.quiet else None
        return subprocess.Popen([sys.executable, "-m", "coatnet.cli", *words], env=environment, stdout=output)

    def run(self, *arguments: str | Path, until: Callable[[], bool] = lambda: False) -> None:
        """Run a command to its end, or until something is so, when it is told to stop.

        Raises:
            UserError: it failed; its own message is on stderr already.
        """
        process = self.command(*arguments)
        try:
            while process.poll() is None and not until():
                time.sleep(_POLL_SECONDS)
            if process.poll() is None:
                self.console.print("[yellow]sending SIGTERM, as a cluster would[/yellow]")
                process.send_signal(signal.SIGTERM)
            status = process.wait()
        except KeyboardInterrupt:
            process.wait()  # the terminal's Ctrl-C reached it as well: it saves and leaves
            raise
        if status != 0:
            raise UserError(
                f"`coatnet {arguments[0]}` failed with status {status}; the same command goes on from here"
            )


def run_quickstart(directory: Path, *, configs: Path, fresh: bool, quiet: bool) -> dict[str, Any]:
    """Go the whole way and return the summary, which is also written to `directory/summary.json`.

    Raises:
        UserError: a config is missing, a step failed, or `fresh` would delete what is no quickstart.
    """
    summary_file = directory / "summary.json"
    if fresh:
        _delete(directory)
    if summary_file.exists():
        with suppress(json.JSONDecodeError):  # an older version could be cut off while it wrote it
            return json.loads(summary_file.read_text())
    files = [find_config(configs / f"quickstart_{stage}.yaml") for stage in ("pretrain", "finetune")]
    for file in files:
        if not file.exists():
            raise UserError(f"{file} is missing; give the folder in which it lies by --configs")
    directory.mkdir(parents=True, exist_ok=True)
    journey = Journey(directory, quiet=quiet)
    _shard(journey)
    _pretrain(journey, config=files[0])
    _finetune(journey, config=files[1])
    return _summarise(journey, summary_file)


def _shard(journey: Journey) -> None:
    images, shards = journey.directory / "images", journey.directory / "shards"
    journey.step("write the digits as JPEG folders", lambda: write_digits(images))

    def shard_all() -> int:
        for corpus in ("pretrain", "finetune"):
            for split in ("train", "validation"):
                journey.run("shard", images / corpus / split, shards / corpus / split)
        return sum(1 for _ in images.rglob("*.jpg"))

    journey.step("shard", shard_all)


def _pretrain(journey: Journey, *, config: Path) -> None:
    run = journey.directory / "pretrain"
    shards = journey.directory / "shards" / "pretrain"
    alone = gpu_count() == 1  # for two ranks NCCL wants two
    arguments: tuple[str | Path, ...] = (
        "pretrain",
        config,
        f"run.directory={run}",
        f"data.train={shards / 'train'}",
        f"data.evaluate={shards / 'validation'}",
        *(["launch.ranks=1"] if alone else []),
    )

    def until_interrupted() -> int:
        if (run / "stopped").exists():
            return _samples_seen(run)  # it was interrupted before, by someone else
        began = time.time()  # what a killed attempt left in the metrics is not this one's progress
        journey.run(*arguments, until=lambda: _progress(run, since=began) >= _INTERRUPT_AT)
        return _samples_seen(run)

    def to_the_end() -> int:
        before = _samples_seen(run)
        journey.run(*arguments)
        return _samples_seen(run) - before

    ranks = "1 rank" if alone else "2 ranks"
    journey.step(f"pretrain on 0–4 at 32 px, {ranks}, ZeRO-1, until SIGTERM", until_interrupted)
    journey.step("pretrain, resumed to the end", to_the_end)


def _finetune(journey: Journey, *, config: Path) -> None:
    root, shards = journey.directory, journey.directory / "shards" / "finetune"

    def train(run: Path, init: str) -> int:
        journey.run(
            "finetune",
            config,
            f"run.directory={run}",
            f"init={init}",
            f"data.train={shards / 'train'}",
            f"data.evaluate={shards / 'validation'}",
        )
        return _samples_seen(run)

    def evaluate() -> int:
        journey.run("evaluate", root / "finetune", shards / "validation")
        return sum(1 for _ in (root / "images" / "finetune" / "validation").rglob("*.jpg"))

    def export() -> int:
        journey.run("export", root / "finetune", root / "export")
        journey.run("report", root / "pretrain")
        return 0

    journey.step("fine-tune on 5–9 at 64 px", lambda: train(root / "finetune", str(root / "pretrain")))
    journey.step("the same from scratch", lambda: train(root / "scratch", "null"))
    journey.step("evaluate", evaluate)
    journey.step("export safetensors, write the report", export)


def _summarise(journey: Journey, summary_file: Path) -> dict[str, Any]:
    root = journey.directory
    summary = {
        "finetuned_top1": _result(root / "finetune")["top1"],
        "scratch_top1": _result(root / "scratch")["top1"],
        "resumed": any(row.get("kind") == "resume" for row in read_lines(root / "pretrain" / "events.jsonl")),
        "seconds": round(sum(step.seconds for step in journey.steps.values()), 1),
        "steps": [asdict(step) for step in journey.steps.values()],
        "paths": {
            "TensorBoard logs": f"tensorboard --logdir {root}",
            "report": str(root / "pretrain" / "report.html"),
            "checkpoints": str(root / "pretrain" / "checkpoints"),
            "exported model": str(root / "export"),
        },
    }
    write_whole(summary_file, (json_text(summary, indent=2) + "\n").encode())
    return summary


def _delete(directory: Path) -> None:
    """Delete an earlier quickstart, and nothing that is none: DIRECTORY may be anything, one's home too."""
    if not directory.exists():
        return
    if any(directory.iterdir()) and not (directory / _STEPS).exists():
        raise UserError(
            f"{directory}: --fresh deletes a quickstart alone, and this folder holds something else"
        )
    shutil.rmtree(directory)


def _samples_seen(run: Path) -> int:
    return max((int(row.get("samples_seen", 0)) for row in read_lines(run / "metrics.jsonl")), default=0)


def _progress(run: Path, *, since: float) -> float:
    rows = [row for row in read_lines(run / "metrics.jsonl") if float(row.get("time", 0.0)) >= since]
    return max((float(row.get("progress", 0.0)) for row in rows), default=0.0)


def _result(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())
