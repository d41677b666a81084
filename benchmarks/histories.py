"""Random configurations with random histories, each compared with the run of it that nobody disturbed.

    python benchmarks/histories.py --trials 40 --seed 1 --json

A trial draws what a config can say of a tiny run of either stage and takes it to its end twice: once alone,
once through kill -9 (of a rank, all or the launcher; at random or in a save), SIGTERM, a full disk, a flipped
bit in the newest checkpoint, other threads, and a config that `--force` takes over. All facts and tensors of
the last checkpoint, the summary, the counts and each recorded loss must be equal to the bit; where a trial
changes its ranks and ZeRO stage, losses within 1e-5. Each sample comes once, the account adds up to 1 %, and
report and status work. Expected: `failed` []. Needs root, for disks that fill up. Lives are forked, as in
kills.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import kills
import psutil
from histories_drawn import Trial, draw, write_corpora
from histories_left import Disturbed, compare
from patience import until
from warm import warm_up

import coatnet.training.recorder
import finetune.launch
import pretrain.launch
from coatnet.runtime.endings import endings_in_a_line
from coatnet.runtime.metrics_log import MetricsLog
from coatnet.runtime.stop import held_signals

_LIFE_SECONDS, _POLL_SECONDS = 300.0, 0.002


def main() -> int:
    """Run the trials and print what came of them; the exit status is 0 when nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first trial")
    parser.add_argument("--keep", type=Path, help="a folder for what has failed")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    coatnet.training.recorder._RECORD_SECONDS = 0.0  # each step is recorded, so that each can be compared
    MetricsLog.figure = MetricsLog.images = lambda self, *given, **named: None  # type: ignore[method-assign,assignment]
    found: dict[str, Any] = {"trials": options.trials, "interruptions": 0, "failed": []}
    with tempfile.TemporaryDirectory(prefix="histories-") as name:
        data = Path(name) / "data"
        warm_up()
        write_corpora(data)
        for number in range(options.first, options.first + options.trials):
            trial = draw(random.Random(f"{options.seed}-{number}"), data)
            why = attempt(trial, Path(name) / f"{number}", keep=options.keep)
            found["interruptions"] += len(trial.struck)
            found["failed"] += [{"trial": number, "why": why}] if why else []
            if not options.json:
                print(f"{number} {trial.stage} {why or 'equal'}: {', '.join(trial.struck)}", flush=True)
    print(json.dumps(found) if options.json else "\n".join(f"{key:26} {found[key]}" for key in found))
    return 1 if found["failed"] else 0


def attempt(trial: Trial, folder: Path, *, keep: Path | None) -> str:
    """Take a trial both ways and return what has failed."""
    alone, disk = folder / "alone", folder / "disk"
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)], check=True)
    try:
        if status := finish(start(trial, alone, {})):
            raise Disturbed(f"undisturbed it ends with {status}: {words_of(alone)}")
        undergo(trial, disk / "run")
        for run in sorted(path.parent.relative_to(alone) for path in alone.glob("**/identity.json")):
            compare(trial, alone / run, disk / "run" / run)
    except Disturbed as error:
        if keep is not None:
            shutil.copytree(folder, keep / folder.name, dirs_exist_ok=True)
        return f"{error} ({trial.stage} {trial.history} {json.dumps(trial.settings)})"
    finally:
        subprocess.run(["umount", str(disk)], check=True)
        shutil.rmtree(folder)
    return ""


def start(trial: Trial, run: Path, changes: dict[str, Any], *, force: bool = False) -> kills.Forked:
    """Start a life."""
    config = run.parent / "empty.yaml"
    config.write_text("{}\n")
    given = {**trial.settings, **changes, "run.directory": str(run)}
    words = [f"{key}={json.dumps(value)}" for key, value in given.items()]

    def work() -> int:
        with held_signals(), endings_in_a_line():
            if trial.stage == "finetune":
                return finetune.launch.launch(str(config), words)
            return pretrain.launch.launch(str(config), words, force=force)

    return kills.start_forked(work, run)


def finish(launcher: kills.Forked) -> int:
    """Wait for a life's end.

    Raises:
        Disturbed: it does not come.
    """
    try:
        return launcher.wait(_LIFE_SECONDS)
    except subprocess.TimeoutExpired:
        for one in psutil.Process(launcher.pid).children(recursive=True):
            one.kill()
        launcher.kill()
        launcher.wait()
        raise Disturbed("a life does not end") from None


def undergo(trial: Trial, run: Path) -> None:
    """Take a run through its history and to its end.

    Raises:
        Disturbed: it does not get there.
    """
    changes: dict[str, Any] = {}
    for what in [*trial.history, "nothing"]:
        if what == "flipped bit":
            flip_bit(run, trial.chance)
        elif what == "changes":
            changes |= trial.chance.choice(trial.changes)
        elif what == "force":  # another config, and the same result
            changes["data.decoder"] = "kernel"
        else:
            launcher = start(trial, run, changes, force="data.decoder" in changes)
            struck = what != "nothing" and strike(trial, what, run, launcher)
            if (status := finish(launcher)) and not struck:
                raise Disturbed(
                    f"a life with {what} ends with {status}: {(run / 'log.txt').read_text()[-300:]}"
                )
            (run.parent / "ballast").unlink(missing_ok=True)
    if not list(run.glob("**/done")):
        raise Disturbed("it does not come to its end")


def strike(trial: Trial, what: str, run: Path, launcher: kills.Forked) -> bool:
    """Let something happen to a life, once it has come so far; tell whether it has."""
    chance, began, before = trial.chance, time.monotonic(), steps_of(run)
    more = chance.choice((0, 1, 1, 2, 3, 5, 8))
    while launcher.poll() is None and steps_of(run) < before + more:
        if time.monotonic() - began > _LIFE_SECONDS:
            break
        time.sleep(_POLL_SECONDS)
    while "save" in what and launcher.poll() is None and not saves_of(run):
        time.sleep(_POLL_SECONDS)
    time.sleep(chance.uniform(0.0, 0.02 if "save" in what else 0.3 if more else 3.0))
    if launcher.poll() is not None:
        return False
    trial.struck.append(what)
    if what == "SIGTERM":
        launcher.terminate()
    elif what == "full disk":
        with suppress(OSError), (run.parent / "ballast").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    else:
        ranks = [one.pid for one in psutil.Process(launcher.pid).children()]
        victims = ranks if ranks and what != "launcher" else [launcher.pid]
        for one in [chance.choice(victims)] if what.startswith("a rank") else victims:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        finish(launcher)
        until(lambda: not any(map(psutil.pid_exists, ranks)), what=f"the end of ranks {ranks}")
    return True


def words_of(run: Path) -> str:
    """Return a run's last words."""
    return (run / "log.txt").read_text()[-300:]


def steps_of(run: Path) -> int:
    """Return how many steps all lives have recorded."""
    files = chain(run.glob("metrics.jsonl"), run.glob("seed-*/metrics.jsonl"))
    return sum(file.read_bytes().count(b'train/loss"') for file in files)


def saves_of(run: Path) -> list[Path]:
    """Return the saves that are under way."""
    return [*run.glob("checkpoints/.step-*.tmp"), *run.glob("seed-*/checkpoints/.step-*.tmp")]


def flip_bit(run: Path, chance: random.Random) -> None:
    """Flip a bit of the newest checkpoint where there is an older one for another life to go back to."""
    for checkpoints in run.glob("**/checkpoints"):
        steps = sorted(checkpoints.glob("step-*"))
        if len(steps) > 1 and not (checkpoints.parent / "done").exists():
            file = chance.choice(sorted(one for one in steps[-1].iterdir() if one.stat().st_size))
            content = bytearray(file.read_bytes())
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            file.write_bytes(content)


if __name__ == "__main__":
    sys.exit(main())
