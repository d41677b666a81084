"""Checkpoints and leases on a real NFS: a kernel's server, two kernels' clients, and power cuts.

    python benchmarks/nfs.py --rounds 10 --seed 1 --json
    python benchmarks/nfs.py --options vers=4.2,actimeo=60 --rounds 3

Three virtual machines (virtual_nodes.py): a server with a disk of its own (ext4, exported `sync`) and two
nodes that mount it. In each round a job is taken over from the other node: while it saves, while it is frozen
right before its rename, while its node is cut off the network; the power of a node that saves without end is
cut; the power of the server is cut and it boots again.
`--training` adds a real run of one rank on each node: the power of one is cut, both begin again, the server's
power is cut; the weights must be those of a run on this machine that nobody disturbed.

Expected: everything 0 but the rounds and the seconds. Needs root and, from Debian, user-mode-linux,
uml-utilities, kmod, nfs-kernel-server and nfs-common.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jobs_on_nodes import say
from nfs_machines import MOUNT, Cluster, missing
from nfs_training import train
from nfs_trials import TRIALS, Table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rounds and print the table; the exit status is 0 when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--options", default="vers=4.2,hard", help="of the mount (see nfs(5))")
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if (reason := missing()) is not None:
        sys.exit(reason)
    with tempfile.TemporaryDirectory(prefix="nfs-") as folder:
        table = campaign(
            Path(folder),
            rounds=options.rounds,
            seed=options.seed,
            options=options.options,
            with_training=options.training,
        )
    result = asdict(table)
    print(json.dumps(result) if options.json else "\n".join(f"{key:34} {result[key]}" for key in result))
    return int(table.bad())


def campaign(
    folder: Path,
    *,
    rounds: int,
    seed: int,
    options: str,
    with_training: bool = False,
) -> Table:
    """Run all trials `rounds` times, each on run directories of its own."""
    chance, table = random.Random(seed), Table()
    cluster = Cluster(folder, options=options)
    try:
        for number in range(rounds):
            for trial in TRIALS:
                say(f"round {number + 1}: {trial.__name__}")
                trial(cluster, MOUNT / f"{trial.__name__}-{number}", table, chance)
            table.rounds += 1
        if with_training:
            train(cluster, folder, table)
    finally:
        cluster.close()
    return table


if __name__ == "__main__":
    sys.exit(main())
