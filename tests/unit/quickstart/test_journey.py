"""The quickstart's interruption, also when an earlier quickstart was cut off at any moment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from coatnet.config import UserError
from coatnet.quickstart.journey import Journey, _pretrain, run_quickstart

# Stands in for `coatnet pretrain`: it can only be stopped cleanly once it has recorded a step.
PRETRAINING = """
import json, signal, sys, time
from pathlib import Path
run = Path(sys.argv[1])
run.mkdir(parents=True, exist_ok=True)

def record(progress):
    with (run / "metrics.jsonl").open("a") as file:
        row = {"time": time.time(), "samples_seen": int(1000 * progress), "progress": progress}
        file.write(json.dumps(row) + "\\n")

def stop(number, frame):
    (run / "stopped").touch()
    sys.exit(0)

if (run / "stopped").exists():
    (run / "stopped").unlink()
    record(1.0)
    sys.exit(0)
time.sleep(0.1)  # imports: a signal would kill it
signal.signal(signal.SIGTERM, stop)
record(0.5)
time.sleep(30)
"""


@pytest.fixture
def journey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journey:
    def command(self: Journey, *arguments: object) -> subprocess.Popen[bytes]:
        started.append(arguments)
        return subprocess.Popen([sys.executable, "-c", PRETRAINING, str(tmp_path / "pretrain")])

    started: list[object] = []
    monkeypatch.setattr(Journey, "command", command)
    monkeypatch.setattr("coatnet.quickstart.journey._POLL_SECONDS", 0.01)
    found = Journey(tmp_path, quiet=True)
    found.started = started  # type: ignore[attr-defined]
    return found


def test_pretraining_is_interrupted_in_the_middle_and_resumed(journey: Journey) -> None:
    _pretrain(journey, config=Path("config.yaml"))
    assert [step.images for step in journey.steps.values()] == [500, 500]


def test_what_a_killed_attempt_recorded_does_not_bring_the_signal_too_early(journey: Journey) -> None:
    run = journey.directory / "pretrain"
    run.mkdir()
    (run / "metrics.jsonl").write_text(json.dumps({"time": 5.0, "samples_seen": 700, "progress": 0.7}) + "\n")
    _pretrain(journey, config=Path("config.yaml"))
    assert len(journey.steps) == 2


def test_a_run_that_was_stopped_by_hand_is_not_interrupted_again(journey: Journey) -> None:
    run = journey.directory / "pretrain"
    run.mkdir()
    (run / "metrics.jsonl").write_text(json.dumps({"time": 5.0, "samples_seen": 200, "progress": 0.2}) + "\n")
    (run / "stopped").touch()
    _pretrain(journey, config=Path("config.yaml"))
    assert len(journey.started) == 1  # type: ignore[attr-defined]
    assert [step.images for step in journey.steps.values()] == [200, 800]


@pytest.mark.parametrize(("gpus", "said"), [(0, "2 ranks"), (1, "1 rank"), (8, "2 ranks")])
def test_two_ranks_pretrain_except_on_a_single_gpu_which_they_cannot_share(
    journey: Journey, monkeypatch: pytest.MonkeyPatch, gpus: int, said: str
) -> None:
    monkeypatch.setattr("coatnet.quickstart.journey.gpu_count", lambda: gpus)
    _pretrain(journey, config=Path("config.yaml"))
    first, *_ = journey.steps
    assert f", {said}, " in first
    for arguments in journey.started:  # type: ignore[attr-defined]
        assert ("launch.ranks=1" in arguments) == (gpus == 1)


def test_fresh_deletes_a_quickstart_and_nothing_else(tmp_path: Path) -> None:
    photos, old = tmp_path / "photos", tmp_path / "old"
    for folder, name in ((photos, "cat.jpg"), (old, "steps.jsonl")):
        folder.mkdir()
        (folder / name).touch()
    with pytest.raises(UserError, match="holds something else"):
        run_quickstart(photos, configs=tmp_path, fresh=True, quiet=True)
    assert (photos / "cat.jpg").exists()
    with pytest.raises(UserError, match="is missing"):
        run_quickstart(old, configs=tmp_path, fresh=True, quiet=True)
    assert not old.exists()


def test_what_a_power_cut_left_of_the_records_is_passed_over(tmp_path: Path) -> None:
    done = {"title": "shard", "seconds": 1.0, "images": 7}
    (tmp_path / "steps.jsonl").write_text(json.dumps(done) + '\n{"title": "pret')
    (tmp_path / "summary.json").touch()
    assert list(Journey(tmp_path, quiet=True).steps) == ["shard"]
    with pytest.raises(UserError, match="is missing"):
        run_quickstart(tmp_path, configs=tmp_path, fresh=False, quiet=True)
