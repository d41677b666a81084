"""Cut the power of a machine that saves, again and again, and look whether what was promised is on its disk.

    python benchmarks/power_cuts.py --cuts 20 --seed 1 --file-system xfs --json

A virtual node (virtual_nodes.py) has a disk of its own with a real file system and saves without end; its
kernel is gone from one moment to the next; the next one mounts the disk, reads every checkpoint back and goes
on saving. What the kernel had handed to the disk is there afterwards, nothing else; what a disk may do
to writes that it was not asked to flush is for crash_states.py.

Expected: promised_lost 0, broken_checkpoints 0, not_gone_on 0. Needs root and, from Debian, user-mode-linux,
uml-utilities, kmod and the file system's mkfs (xfsprogs, btrfs-progs).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs_on_nodes import ask, hear, last_saved, say, start
from virtual_nodes import Node, Switch, missing

_DISK_BYTES = 1 << 30
_MOST_SECONDS = 3.0  # of saving before a cut
_PLACE = Path("/mnt/disk")


@dataclass
class Table:
    """What was found."""

    file_system: str
    cuts: int = 0
    checkpoints: int = 0
    promised_lost: int = 0
    broken_checkpoints: int = 0
    not_gone_on: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Cut the power and print the table; the exit status is 0 when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cuts", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file-system", default="ext4", choices=("ext4", "xfs", "btrfs"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    make = f"mkfs.{options.file_system}"
    if (reason := missing() or (None if shutil.which(make) else f"no {make} here")) is not None:
        sys.exit(reason)
    with tempfile.TemporaryDirectory(prefix="power-") as folder:
        disk = Path(folder) / "disk"
        with disk.open("wb") as file:
            file.truncate(_DISK_BYTES)
        subprocess.run([make, "-q", str(disk)], check=True)
        table = campaign(
            disk, file_system=options.file_system, cuts=options.cuts, chance=random.Random(options.seed)
        )
    result = asdict(table)
    print(json.dumps(result) if options.json else "\n".join(f"{key:20} {result[key]}" for key in result))
    return int(bool(table.promised_lost or table.broken_checkpoints or table.not_gone_on))


def campaign(disk: Path, *, file_system: str, cuts: int, chance: random.Random) -> Table:
    """Let one life after the other save and lose its power; a last one only reads."""
    table, switch, promised = Table(file_system), Switch(disk.parent), 0
    try:
        for life in range(1, cuts + 2):
            node = Node(1, switch=switch, disk=disk)
            node.run("mkdir", _PLACE)
            node.run("mount", "-t", file_system, "/dev/ubda", _PLACE)
            job = start(node, _PLACE / "run")
            table.not_gone_on += not ask(job, f"acquire {life}").startswith("acquired")
            steps = ask(job, "steps").split()
            table.promised_lost += bool(promised) and str(promised) not in steps
            table.broken_checkpoints += ask(job, "verify").startswith("failed")
            table.checkpoints = len(steps)
            if life <= cuts:
                job.tell("endless")
                table.not_gone_on += not hear(job).startswith("saved")
                time.sleep(chance.uniform(0.0, _MOST_SECONDS))
                table.cuts += 1
            node.cut_power()
            promised = last_saved(job)
            say(f"life {life}: {len(steps)} checkpoints found, {promised} promised at its end")
    finally:
        switch.close()
    return table


if __name__ == "__main__":
    sys.exit(main())
