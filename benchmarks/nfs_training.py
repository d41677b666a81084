"""A real training over two nodes and NFS, whose nodes and server lose their power."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from jobs_on_nodes import ROOT, say
from nfs_machines import MOUNT, Cluster
from nfs_trials import Table
from virtual_nodes import Command, Node

_PATIENCE_SECONDS = 900.0
_START_SECONDS = 300  # a run notices a lost node by the silence in which there is no step
_DIGEST = """
import hashlib, json, sys
from pathlib import Path
from coatnet.checkpoint.store import CheckpointStore
from coatnet.runtime.ranks import Ranks
run = Path(sys.argv[1])
newest, digest = CheckpointStore(run / "checkpoints", ranks=Ranks()).newest(), hashlib.sha256()
for kind in ("weight", "exp_avg", "exp_avg_sq", "ema", "buffer"):
    for name in sorted(newest.names(kind)):
        digest.update(newest.tensor(kind, name).numpy().tobytes())
once = json.loads((run / "summary.json").read_text())["every_sample_once"]
print(newest.samples_seen, "every sample once:", once, digest.hexdigest())
"""


def train(cluster: Cluster, folder: Path, table: Table) -> None:
    """Train on both nodes, cut a node's power, begin again, cut the server's, and compare the bits."""
    from kills import CONFIG, arguments_of, write_images

    write_images(folder / "images")
    (folder / "config.yaml").write_text(CONFIG)
    undisturbed, run = folder / "undisturbed", MOUNT / "training"
    command(folder, "-m", "coatnet.cli", "shard", folder / "images", folder / "shards")
    command(folder, "-m", "coatnet.cli", "pretrain", *arguments_of(folder, undisturbed))
    cluster.server.run("cp", "-r", folder / "config.yaml", folder / "shards", MOUNT)

    def begin() -> list[Command]:
        place: dict[str, object] = {
            "WORLD_SIZE": 2,
            "LOCAL_RANK": 0,
            "LOCAL_WORLD_SIZE": 1,
            "MASTER_PORT": 29500,
        }
        place |= {"MASTER_ADDR": cluster.nodes[0].name, "GLOO_SOCKET_IFNAME": "eth0"}
        words = [sys.executable, "-m", "coatnet.cli", "pretrain", *arguments_of(MOUNT, run)]
        words.append(f"guard.start_seconds={_START_SECONDS}")
        return [
            node.start(
                "env", f"PYTHONPATH={ROOT}", f"RANK={rank}", *(f"{k}={v}" for k, v in place.items()), *words
            )
            for rank, node in enumerate(cluster.nodes)
        ]

    say("training: both nodes begin")
    ranks = begin()
    until_saved(cluster.server, run, step=24)
    say("training: a node loses its power")
    cluster.nodes[1].cut_power()
    began = time.monotonic()
    ranks[0].wait(_PATIENCE_SECONDS)
    table.survivor_ended_after_seconds = round(time.monotonic() - began, 2)
    say(f"training: the other has ended with {ranks[0].status} after {table.survivor_ended_after_seconds} s")
    cluster.nodes[1] = cluster.boot(1)

    ranks = begin()
    until_saved(cluster.server, run, step=40)
    say("training: the server loses its power")
    cluster.cut_server()
    statuses = [rank.wait(_PATIENCE_SECONDS) for rank in ranks]
    if any(statuses):
        say("\n".join(line for rank in ranks for line in rank.output[-30:]))
    found = cluster.nodes[0].run("env", f"PYTHONPATH={ROOT}", sys.executable, "-c", _DIGEST, run)
    expected = command(folder, "-c", _DIGEST, undisturbed)
    table.trainings_with_other_bits += any(statuses) or found.splitlines()[-1] != expected.splitlines()[-1]


def command(folder: Path, *words: str | Path) -> str:
    """Run Python on this machine and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = (sys.executable, *words)
    return subprocess.run(
        words, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def until_saved(server: Node, run: Path, *, step: int) -> None:
    """Wait until a run has saved a step, or a later one."""
    last = f"ls {run}/checkpoints 2>/dev/null | tail -n 1"
    wait = f'until [ "$({last})" \\> step-{step - 1:08d} ]; do sleep 0.5; done'
    server.run("sh", "-c", wait, seconds=_PATIENCE_SECONDS)
