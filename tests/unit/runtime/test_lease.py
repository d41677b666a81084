"""One job at a time holds a run directory; who was thought dead can no longer commit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coatnet.runtime.lease import Lease, LeaseHeld, LeaseLost

HOLDER = """
import sys
from pathlib import Path
from coatnet.runtime.lease import Lease
Lease.acquire(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def hold(directory: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_job_hears_within_five_seconds_who_holds_the_run(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    try:
        began = time.monotonic()
        with pytest.raises(LeaseHeld, match=f"process {holder.pid} on"):
            Lease.acquire(tmp_path)
        assert time.monotonic() - began < 5
    finally:
        holder.kill()
        holder.wait()


def test_a_killed_holder_is_succeeded_at_once_with_the_next_epoch(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lease = Lease.acquire(tmp_path)
    assert lease.epoch == 2
    lease.release()


def test_a_released_lease_is_free_and_epochs_only_grow(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        lease = Lease.acquire(tmp_path)
        assert lease.epoch == epoch
        lease.release()


def test_a_holder_on_another_host_that_beats_is_respected_and_a_silent_one_is_not(tmp_path: Path) -> None:
    other = {"epoch": 7, "token": "t", "host": "far", "boot": "elsewhere", "pid": 1, "started": "1"}
    (tmp_path / "lease.json").write_text(json.dumps({**other, "beat": 1, "released": False}))
    beater = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import json, pathlib, sys, time\n"
            "path = pathlib.Path(sys.argv[1]); record = json.loads(path.read_text())\n"
            "for beat in range(2, 100):\n"
            "    record['beat'] = beat; temporary = path.with_suffix('.tmp')\n"
            "    temporary.write_text(json.dumps(record)); temporary.replace(path); time.sleep(0.2)\n",
            str(tmp_path / "lease.json"),
        ]
    )
    try:
        with pytest.raises(LeaseHeld, match="far"):
            Lease.acquire(tmp_path)
    finally:
        beater.kill()
        beater.wait()
    lease = Lease.acquire(tmp_path)
    assert lease.epoch == 8
    lease.release()


def test_a_job_that_lost_its_lease_notices_before_it_commits(tmp_path: Path) -> None:
    lease = Lease.acquire(tmp_path)
    lease.check()
    record = json.loads((tmp_path / "lease.json").read_text())
    (tmp_path / "lease.json").write_text(
        json.dumps({**record, "epoch": 2, "token": "other", "pid": os.getpid()})
    )
    with pytest.raises(LeaseLost):
        lease.check()
    lease.release()
    assert json.loads((tmp_path / "lease.json").read_text())["token"] == "other"


@pytest.mark.parametrize(
    ("holder", "ours", "taken"),
    [
        ("7.1.1", "7.2.1", True),  # the next life
        ("7.1.1", "7.1.2", True),  # the next try
        ("7.2.1", "9.3.1", True),  # the successor in a chain
        ("7.2.1", "7.1.3", False),  # a life that was held for dead
        ("7.1.1", "7.1.1", False),
        ("", "7.1.1", False),  # started by hand
        ("7.1.1", "", False),
        ("garbage", "7.1.1", False),
    ],
)
def test_a_later_start_of_a_run_fences_an_earlier_one_that_still_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: str, ours: str, taken: bool
) -> None:
    monkeypatch.setenv("COATNET_ATTEMPT", holder)
    first = Lease.acquire(tmp_path)
    monkeypatch.setenv("COATNET_ATTEMPT", ours)
    try:
        if not taken:
            with pytest.raises(LeaseHeld):
                Lease.acquire(tmp_path)
            return
        second = Lease.acquire(tmp_path)
        with pytest.raises(LeaseLost):
            first.check()
        second.release()
    finally:
        first.release()
