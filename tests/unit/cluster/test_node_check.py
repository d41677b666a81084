"""What one node finds out about itself, each finding with its number."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import node_check
from cluster.preflight import PreflightError, judge


@pytest.fixture
def limits(tmp_path: Path) -> dict[str, Any]:
    return {
        "devices": 0, "shared_memory_bytes": 1, "open_files": 1, "free_space_bytes": 1,
        "clock_skew_seconds": 2.0,
        "bandwidth_bytes_per_second": 0.0, "directory": str(tmp_path), "shards": [], "commands": [],
        "timeout_seconds": 5,
    }  # fmt: skip


def check(limits: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, **environment: str) -> Any:
    """Run the program as srun would, alone on its node, and return what it wrote."""
    (folder / "limits.json").write_text(json.dumps(limits))
    values = {"SLURMD_NODENAME": "n1", "SLURM_NTASKS": "1", "MASTER_ADDR": "127.0.0.1", **environment}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(sys, "argv", ["node_check", str(folder)])
    assert node_check.main() == 0
    return json.loads((folder / "n1.json").read_text())


def test_a_sound_node_has_facts_and_no_failures(
    limits: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "manifest.json").write_text("{}")
    (shards / "train-000000.tar").write_bytes(bytes(2 << 20))
    found = check({**limits, "shards": [str(shards)]}, tmp_path, monkeypatch)
    assert found["failures"] == []
    assert found["facts"]["interface"] == "lo" and found["facts"]["read_bytes"] == (1 << 20) + 2
    assert {"open_files", "shared_memory_bytes", "free_space_bytes"} <= set(found["facts"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"open_files": 10**12}, "open files allowed, 1000000000000 needed"),
        ({"shared_memory_bytes": 10**18}, "/dev/shm: "),
        ({"free_space_bytes": 10**18}, "MiB needed"),
        ({"directory": "/nowhere/run"}, "cannot write to /nowhere/run"),
        ({"shards": ["/", "/nowhere/shards"]}, "cannot read /nowhere/shards"),
        ({"commands": [["sh", "-c", "echo fan is dead; exit 3"]]}, "sh ended with status 3: fan is dead"),
        ({"commands": [["no-such-program"]]}, "FileNotFoundError"),
        ({"devices": 8}, "0 GPUs visible, 8 asked for"),
    ],
)
def test_each_fault_is_named(
    limits: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    message: str,
) -> None:
    if "devices" in change:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("needs a machine without GPUs")
    (failure,) = check({**limits, **change}, tmp_path, monkeypatch)["failures"]
    assert message in failure


def test_a_node_without_a_way_to_the_first_one_says_so(
    limits: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (failure,) = check(limits, tmp_path, monkeypatch, MASTER_ADDR="no-such-host.invalid")["failures"]
    assert "no route to the first node no-such-host.invalid" in failure


def write_result(folder: Path, node: str, *failures: str) -> None:
    (folder / f"{node}.json").write_text(json.dumps({"node": node, "failures": failures, "facts": {}}))


def test_a_silent_node_and_a_failing_one_are_unfit(tmp_path: Path) -> None:
    write_result(tmp_path, "n1")
    write_result(tmp_path, "n2", "GPU 3 computes a matrix product wrongly")
    found = judge(["n1", "n2", "n3"], results=tmp_path, logs=tmp_path, label="life-001.try-1")
    assert found == {"n2": "GPU 3 computes a matrix product wrongly", "n3": "did not answer the preflight"}


def test_a_fault_that_all_nodes_share_is_no_nodes(tmp_path: Path) -> None:
    for node in ("n1", "n2"):
        write_result(tmp_path, node, "cannot read /data")
    with pytest.raises(PreflightError, match="all 2 nodes: cannot read /data"):
        judge(["n1", "n2"], results=tmp_path, logs=tmp_path, label="life-001.try-1")


class Together:
    """Ranks of three nodes as node n1 sees them; only their clocks are made up."""

    device = "cpu"

    def __init__(self, *, ahead_seconds: float) -> None:
        self._ahead_seconds = ahead_seconds

    def barrier(self, *, timeout_seconds: float) -> None: ...

    def gather(self, mine: float) -> list[float]:
        return [mine, mine - self._ahead_seconds, mine - self._ahead_seconds]

    def all_reduce_sum(self, tensor: Any) -> None: ...


@pytest.mark.parametrize(("ahead", "message"), [(0.5, None), (7.0, "+7.0 s off"), (-7.0, "-7.0 s off")])
def test_a_clock_that_is_off_the_other_nodes_is_named(
    limits: dict[str, Any], monkeypatch: pytest.MonkeyPatch, ahead: float, message: str | None
) -> None:
    monkeypatch.setattr("coatnet.runtime.ranks.Ranks.start", lambda: Together(ahead_seconds=ahead))
    facts: dict[str, Any] = {}
    found = node_check.check_together(limits, facts)
    assert found is None if message is None else message in str(found)
    assert facts["clock_skew_seconds"] == pytest.approx(ahead, abs=0.01)
    slow = node_check.check_together(
        {**limits, "bandwidth_bytes_per_second": 1e18, "clock_skew_seconds": 60}, {}
    )
    assert slow is not None and slow.startswith("all-reduce bandwidth: ")


def test_what_a_silent_node_said_last_is_told(tmp_path: Path) -> None:
    (tmp_path / "life-001.try-1.preflight-0.log").write_text("warning\nNo such image: coatnet.sif\n\n")
    (tmp_path / "n2.json").write_text(json.dumps({"failures": []}))
    found = judge(["n1", "n2"], results=tmp_path, logs=tmp_path, label="life-001.try-1")
    assert found == {"n1": "did not answer the preflight: No such image: coatnet.sif"}
    with pytest.raises(PreflightError, match="all 2 nodes: did not answer the preflight: No such image"):
        judge(["n1", "n3"], results=tmp_path, logs=tmp_path, label="life-001.try-1")
