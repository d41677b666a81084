"""Runs as their directories tell of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from coatnet.report.write import write_report
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.run_directory import RunDirectory, append_line


def make_run(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    run.create("seed: 1\nname: <b>bold</b>\n", digest="aa")
    for step in range(2000):
        append_line(run.metrics, {"samples_seen": step * 8, "train/loss": 2.0 / (step + 1), "odd": "nan"})
    append_line(run.metrics, {"samples_seen": 16000, "evaluate/top1": 0.75})
    run.record_event("start", host="n1")
    run.record_event("resume", host="n2")
    run.record_event("bad_sample", shard="train-0.tar", reason="<script>alert(1)</script>")
    account = TimeAccount(run.account, rank=0, life=1, age_seconds=100.0)
    account.shift(90.0, source="start", target="compute")
    account.shift(5.0, source="start", target="data_wait")
    account.flush(samples_seen=1)
    run.plan.write_text('{"train/loss": 0.002}')
    run.mark("done")
    return run


def save_checkpoint(run: RunDirectory, *, classes: list[str], **model: Any) -> None:
    """Leave of a checkpoint what a report reads of it."""
    (run.checkpoints / "step-00000001").mkdir()
    facts = {"model": {"name": "coatnet_0", "num_classes": len(classes), **model}, "classes": classes}
    sealed = {"xxh3": "0", "body": json.dumps({"facts": facts})}
    (run.checkpoints / "step-00000001" / "manifest.json").write_text(json.dumps(sealed))


def told(run: RunDirectory) -> str:
    """Return what the run's report says."""
    return write_report(run.path).with_suffix(".md").read_text()
