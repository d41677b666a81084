"""Runs that were started by hand, as `coatnet status` tells them: by their markers and their lease."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from cluster.status import find_runs, read_status
from coatnet.runtime.lease import Lease
from coatnet.runtime.lives import CLASSES, LifeAccount
from coatnet.runtime.run_directory import RunDirectory, write_atomically


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "runs" / "first")
    run.create("seed: 1\n", digest="aa")
    rows = [
        {"time": 1e4 * n, "samples_seen": 100 * n, "progress": n / 10, "images_per_second": 50.0 + n}
        for n in (1, 2, 3)
    ]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_a_run_is_running_while_its_lease_is_held_and_tells_how_it_goes_on_afterwards(
    run: RunDirectory,
) -> None:
    lease = Lease.acquire(run.path)
    found = read_status(run.path, queue=None)
    assert (found.state, found.images_per_second, found.total_samples) == ("running", 52.0, 1000)
    assert found.remaining_seconds == pytest.approx(700 / 52)
    lease.release()
    found = read_status(run.path, queue=None)
    assert found.state == "interrupted" and "the same command goes on" in found.detail


def test_of_a_run_that_noted_no_rate_none_is_told(run: RunDirectory) -> None:
    run.metrics.write_text(json.dumps({"time": 1.0, "samples_seen": 8, "progress": 0.1}) + "\n")
    found = read_status(run.path, queue=None)
    assert (found.samples_seen, found.total_samples, found.images_per_second) == (8, 80, None)


def test_the_error_by_which_it_ended_is_told_until_it_goes_on(run: RunDirectory) -> None:
    run.record_event("start", life=1)
    run.record_event("ended", writer=1, rank=1, reason="shards/train: No such file")
    run.record_event("bad_sample", writer=2)
    run.append(run.events_of(2), {"kind": "resume", "time": "torn"})
    found = read_status(run.path, queue={})
    assert (found.state, found.next_action) == ("failed", ""), "there is nothing to submit"
    assert found.detail == "shards/train: No such file; mend that, then the same command goes on"
    run.record_event("resume", life=2)
    assert read_status(run.path, queue=None).state == "interrupted"


def test_its_account_tells_its_lives_and_what_was_lost_of_them(run: RunDirectory) -> None:
    run.account.mkdir()
    seconds = {**dict.fromkeys(CLASSES, 0.0), "compute": 30.0, "start": 10.0}
    lives = [LifeAccount(1, 100.0, 140.0, 8, seconds), LifeAccount(2, 200.0, 240.0, 16, seconds)]
    (run.account / "earlier.jsonl").write_text("".join(json.dumps(asdict(one)) + "\n" for one in lives))
    found = read_status(run.path, queue=None)
    assert (found.lives, found.lost_seconds) == (2, 240 - 100 - 2 * 30)


@pytest.mark.parametrize("marker", ["stopped", "done", "cancelled"])
def test_a_run_that_ended_is_in_the_state_of_its_marker(run: RunDirectory, marker: str) -> None:
    write_atomically(run.path / marker, "{}\n")
    assert read_status(run.path, queue={}).state == marker


def test_runs_by_hand_are_found_by_themselves_below_a_folder_and_by_seed(run: RunDirectory) -> None:
    seed = RunDirectory(run.path.parent / "several" / "seed-0")
    seed.create("seed: 0\n", digest="bb")
    assert find_runs([run.path]) == [run.path]
    assert find_runs([run.path.parent]) == [run.path, seed.path]
