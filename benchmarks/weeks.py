"""What weeks of a run on many ranks leave behind, and what it costs to go on from it or to look at it.

Writes the history of a run with the run's own writers, without training, then times what reads it: the
start of the next life, `coatnet status`, `coatnet report`, TensorBoard's loader.

    .venv/bin/python benchmarks/weeks.py --steps 1000000 --restarts 2000 --ranks 1024 --bad 100000
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.history import History
from cluster.status import read_status
from coatnet.report.write import write_report
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.lives import CLASSES, gather_earlier, read_lives
from coatnet.runtime.metrics_log import MetricsLog
from coatnet.runtime.run_directory import RunDirectory
from coatnet.training.earlier import read_earlier
from coatnet.training.recorder import FLUSH_RECORDS, seconds_between_records

_BATCH = 4096
_PASSED_TO_THE_BOARD = 2000  # records; the rest are as large


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=1_000_000)
    options.add_argument("--step-seconds", type=float, default=1.0)
    options.add_argument("--restarts", type=int, default=2000)
    options.add_argument("--ranks", type=int, default=1024)
    options.add_argument("--bad", type=int, default=100_000)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder) / "run")
        run.path.mkdir()
        run.config.write_text("seed: 1\n")
        print(json.dumps(drive(run, **vars(given)), indent=2))


def drive(run: RunDirectory, *, steps: int, step_seconds: float, restarts: int, ranks: int, bad: int) -> Any:
    """Write a history and time its readers. Units: seconds of CPU, MB."""
    records = write_metrics(run, steps=steps, step_seconds=step_seconds)
    write_events(run, restarts=restarts, bad=bad, steps=steps)
    write_accounts(run, lives=restarts, ranks=ranks, seconds=steps * step_seconds / restarts)
    end = steps * _BATCH
    scale = records / min(records, _PASSED_TO_THE_BOARD)
    found: dict[str, Any] = {
        "records": records,
        "metrics_mb": _megabytes(run.metrics),
        "tensorboard_mb": scale * _megabytes(run.tensorboard),
        "events_mb": _megabytes(run.events),
        "account_mb": _megabytes(run.account),
    }
    found["tensorboard_seconds"] = scale * _cpu_seconds(EventAccumulator(str(run.tensorboard)).Reload)
    for name, read in (
        ("resume_metrics", lambda: read_earlier(run.metrics, after=end - _BATCH * 600)),
        ("resume_account", lambda: gather_earlier(run.account) and read_lives(run.account)),
        ("status", lambda: read_status(run.path, queue=None)),
        ("report", lambda: write_report(run.path)),
    ):
        found[f"{name}_seconds"] = _cpu_seconds(read)
    found["page_mb"] = _megabytes(run.path / "report.html")
    found["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {name: round(value, 2) for name, value in found.items()}


def write_metrics(run: RunDirectory, *, steps: int, step_seconds: float) -> int:
    """Write the records that a run of this length makes, and return their number."""
    log, records, recorded_at = MetricsLog(run, enabled=True), 0, 0.0
    with run.metrics.open("a") as file:
        for step in range(1, steps + 1):
            now = step * step_seconds
            if now - recorded_at < seconds_between_records(now):
                continue
            recorded_at, records = now, records + 1
            rows = [dict.fromkeys(_NAMES, 1.2345678 + step * 7919 % 1000 / 1000)]
            if records % FLUSH_RECORDS == 0:
                rows.append({f"account/{name}": round(now / len(CLASSES), 3) for name in CLASSES})
            for values in rows:
                if records <= _PASSED_TO_THE_BOARD:
                    log.scalars(values, samples_seen=step * _BATCH)
                else:
                    row = {"time": 1.7e9 + now, "samples_seen": step * _BATCH, **values}
                    file.write(json.dumps(row, separators=(",", ":")) + "\n")
            if records == _PASSED_TO_THE_BOARD:
                log.close()  # what it wrote stands before the rest
    log.close()
    return records


def write_events(run: RunDirectory, *, restarts: int, bad: int, steps: int) -> None:
    """Write what restarts, bad samples and spikes leave."""
    history, nodes = History(run.path), [f"node{number:03d}" for number in range(128)]
    for life in range(1, restarts + 1):
        history.note("begin", life=life, job_id="7", nodes=nodes, step=life)
        history.note("end", life=life, outcome="", reason="", tries=1, excluded={})
        at = steps * (life - 1) // restarts
        run.record_event("resume", life=life, samples_seen=at * _BATCH, step=at, world_size=1024, stage=1)
    for number in range(bad):
        run.record_event(
            "bad_sample",
            rank=0,
            name=f"shard-{number % 5000:05d}:{number:08d}",
            reason="truncated",
            taken="x",
        )


def write_accounts(run: RunDirectory, *, lives: int, ranks: int, seconds: float) -> None:
    """Write what the lives leave: all but the last as the next one keeps them, the last by rank."""
    for life in range(1, lives + 1):
        last = life == lives
        if last:
            assert gather_earlier(run.account)
        account = TimeAccount(run.account, rank=0, life=life, anew=last)
        account._began = 1.7e9 + life * seconds
        account._epoch_of_clock += account._began - time.time() + seconds
        account._seconds = dict.fromkeys(CLASSES, seconds / len(CLASSES))
        account.flush(samples_seen=life * _BATCH)
    for rank in range(1, ranks):
        shutil.copyfile(run.account / "rank-00000.jsonl", run.account / f"rank-{rank:05d}.jsonl")


_NAMES = (
    *("train/loss", "train/loss_max", "train/gradient_norm", "train/learning_rate", "train/global_batch"),
    *("images_per_second", "step_seconds", "data_wait_share", "skipped_steps", "bad_samples", "memory_gib"),
    *("mfu", "progress"),
)


def _cpu_seconds(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _megabytes(path: Path) -> float:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


if __name__ == "__main__":
    main()
