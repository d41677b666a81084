"""What one node finds out about itself, each finding with its number."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cluster import node_check
from cluster.job import Job
from cluster.launch import Attempt
from cluster.preflight import PreflightError, judge, unfit_nodes
from cluster.site import PreflightConfig, SiteConfig


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
    found = check({**limits, "shards": [str(shards)], "commands": [["true"]]}, tmp_path, monkeypatch)
    assert found["failures"] == []
    assert found["facts"]["interface"] == "lo" and found["facts"]["read_bytes"] == (1 << 20) + 2
    assert {"open_files", "shared_memory_bytes", "free_space_bytes"} <= set(found["facts"])


def test_a_node_without_a_limit_of_open_files_has_enough(
    limits: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, resource.RLIM_INFINITY))
    assert node_check.check_open_files({**limits, "open_files": 4096}, {}) is None
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 4096))
    assert node_check.check_open_files({**limits, "open_files": 4096}, {}) is None
    assert node_check.check_open_files({**limits, "open_files": 4097}, {}) is not None


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
    """Ranks of three nodes as node n1 sees them; only their clocks are made up, and a second per message.

    With `sent_off`, as on a GPU, messages take their time when a number is read, and not before.
    """

    device = "cpu"

    def __init__(self, *, ahead_seconds: float, sent_off: bool = False) -> None:
        self._ahead_seconds, self._sent_off = ahead_seconds, sent_off
        self.clock, self.due, self.reduced = 0.0, 0.0, list[int]()

    def barrier(self, *, timeout_seconds: float) -> None: ...

    def gather(self, mine: float) -> list[float]:
        return [mine - self._ahead_seconds, mine, mine - self._ahead_seconds]

    def all_reduce_sum(self, tensor: Any) -> None:
        self.due += 1.0 if self.reduced else 60.0  # the first one makes connections
        self.reduced.append(tensor.nbytes)
        if not self._sent_off:
            self.wait()

    def wait(self) -> None:
        self.clock, self.due = self.clock + self.due, 0.0


class Reading(TorchDispatchMode):
    """Lets those who read a tensor's number wait for what was sent off."""

    def __init__(self, together: Together) -> None:
        super().__init__()
        self._together = together

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            self._together.wait()
        return function(*args, **(kwargs or {}))


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


@pytest.mark.parametrize("sent_off", [False, True])
def test_the_nodes_are_timed_together_by_messages_of_sixteen_mib(
    limits: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent_off: bool
) -> None:
    together = Together(ahead_seconds=0.0, sent_off=sent_off)
    monkeypatch.setattr("coatnet.runtime.ranks.Ranks.start", lambda: together)
    watch = SimpleNamespace(time=time.time, monotonic=lambda: together.clock)
    monkeypatch.setattr(node_check, "time", watch)
    with Reading(together):
        found = check(limits, tmp_path, monkeypatch, SLURM_NTASKS="3")
    assert found["failures"] == [] and together.reduced == [16 << 20] * 4
    assert found["facts"]["all_reduce_bytes_per_second"] == pytest.approx(16 << 20)
    slow = {**limits, "bandwidth_bytes_per_second": 32 << 20}
    with Reading(together):
        (failure,) = check(slow, tmp_path, monkeypatch, SLURM_NTASKS="3")["failures"]
    assert failure == "all-reduce bandwidth: 16 MiB, 32 MiB needed"


def test_only_all_nodes_in_one_and_the_same_way_are_nobodys_fault(tmp_path: Path) -> None:
    write_result(tmp_path, "n1", "fan is dead", "disk is full")
    write_result(tmp_path, "n2", "no interface")
    (tmp_path / "life-001.try-1.preflight-1.log").write_text("a warning\n")
    found = judge(["n1", "n2"], results=tmp_path, logs=tmp_path, label="life-001.try-1")
    assert found == {"n1": "fan is dead; disk is full", "n2": "no interface"}


@pytest.fixture
def srun(tmp_path: Path, program: Callable[[str, str], None]) -> Callable[[str], None]:
    """Return what makes srun from shell; `$results` is where the nodes write."""
    (tmp_path / "logs").mkdir()
    return lambda text: program("srun", f"for results; do :; done\n{text}")


def checked(folder: Path, *, nodes: int = 1, **limits: Any) -> dict[str, str]:
    site = SiteConfig(nodes=nodes, gpus_per_node=4, preflight=PreflightConfig(**limits))
    job = Job("run", str(folder), ["pretrain"], site=site, shards=["/shards"], code=str(folder))
    return unfit_nodes(job, ["n1"], attempt=Attempt("7", 1, 2), environment=dict(os.environ))


def test_every_node_is_held_to_the_sites_limits_and_to_what_the_job_needs(
    srun: Callable[[str], None], tmp_path: Path
) -> None:
    tell = f'(echo "$MASTER_ADDR $COATNET_ATTEMPT"; pwd; cat) > {tmp_path}/told'
    srun(f"""{tell}; echo '{{"failures": []}}' > $results/n1.json""")
    assert checked(tmp_path, commands=[["true"]], open_files=4000) == {}
    told = json.loads((tmp_path / "preflight" / "life-001.try-2.json").read_text())
    site = asdict(PreflightConfig(commands=[["true"]], open_files=4000))
    limits = {**site, "devices": 4, "directory": str(tmp_path), "shards": ["/shards"]}
    assert told == {"limits": limits, "n1": {"failures": []}}
    assert len(list((tmp_path / "preflight").iterdir())) == 1, "of each start one file stays"
    assert (tmp_path / "told").read_text() == f"n1 7.1.2\n{tmp_path}\n"
    assert checked(tmp_path, enabled=False) == {}


def test_the_node_of_the_first_rank_must_let_it_meet_thousands(
    srun: Callable[[str], None], tmp_path: Path
) -> None:
    srun("""echo '{"failures": []}' > $results/n1.json""")
    assert checked(tmp_path, nodes=1024, open_files=4000) == {}
    told = json.loads((tmp_path / "preflight" / "life-001.try-2.json").read_text())
    assert told["limits"]["open_files"] == 1024 * 4 + 1024


def test_checks_that_hang_are_ended_whether_they_listen_or_not(
    srun: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.preflight._KILL_SECONDS", 0.05)
    (tmp_path / "logs" / "life-001.try-2.preflight-0.log").write_text(f"{'x' * 300}\n")
    for deaf in ("", "trap '' TERM; "):
        srun(f"{deaf}while :; do sleep 0.05; done")
        assert checked(tmp_path, timeout_seconds=0) == {"n1": f"did not answer the preflight: {'x' * 200}"}
