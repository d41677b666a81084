"""What a save asks of the file system, counted by strace: so many ranks save twice, the second is counted.

All ranks are stores in one process, with a key-value store and a lease as in a run. A file system of
thousands of clients (NFS, Lustre) feels operations on names, not bytes.

    .venv/bin/python benchmarks/save_operations.py --ranks 1024
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed import HashStore

from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.store import CheckpointStore
from coatnet.config import UserError
from coatnet.runtime.lease import Lease
from coatnet.runtime.ranks import Ranks

# What changes or looks up names, and fsync; reading and writing an open file is no matter of names.
_CALLS = (
    "openat,mkdir,rename,renameat,renameat2,unlink,unlinkat,rmdir,stat,lstat,newfstatat,statx,fsync,"
    "getdents64,statfs"
)
_CALL = re.compile(r"(?:\[pid +\d+\] )?(?:\d+ +)?(\w+)\((.*)")
_COUNTED_STEP = 2


@dataclass(frozen=True)
class Linked(Ranks):
    """A rank beside others of the same process, none of which asks for a collective."""

    def broadcast(self, value: Any) -> Any:
        return value


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--ranks", type=int, default=1024)
    options.add_argument("--inside", type=Path, help="a folder to save in, as the process that is counted")
    given = options.parse_args()
    if given.inside:
        save_twice(given.inside, ranks=given.ranks)
    else:
        print(json.dumps({"ranks": given.ranks, **counted(given.ranks)}, indent=2))


def counted(ranks: int) -> dict[str, int]:
    """Return the number of calls by name.

    Raises:
        UserError: there is no strace.
    """
    with tempfile.TemporaryDirectory() as folder:
        place, log = Path(folder) / "run", Path(folder) / "calls"
        place.mkdir()
        again = [sys.executable, __file__, "--ranks", str(ranks), "--inside", str(place)]
        try:
            subprocess.run(
                ["strace", "-f", "-y", "-qq", "-e", f"trace={_CALLS}", "-o", str(log), *again], check=True
            )
        except FileNotFoundError:
            raise UserError("no strace here; `apt-get install strace` brings it") from None
        calls: Counter[str] = Counter()
        begun = False
        for line in log.read_text().splitlines():
            begun = begun or "counted-from-here" in line
            found = _CALL.match(line)
            of_an_open_file = found and "stat" in found[1] and '>, ""' in found[2]
            if begun and found and not of_an_open_file and str(place / "checkpoints") in found[2]:
                calls[_kind(found[1], found[2])] += 1
    return {**dict(sorted(calls.items())), "all": sum(calls.values())}


def _kind(name: str, given: str) -> str:
    if name == "openat":
        return "create" if "O_CREAT" in given else "open"
    if "stat" in name and name != "statfs":
        return "stat"
    plainly = {"unlinkat": "unlink", "renameat": "rename", "renameat2": "rename", "getdents64": "list"}
    return plainly.get(name, name)


def save_twice(run: Path, *, ranks: int) -> None:
    """Save as all ranks, in the order in which a rank's writer comes to it; the main rank last."""
    mailbox, lease = HashStore(), Lease.acquire(run)
    stores = [
        CheckpointStore(run / "checkpoints", ranks=Linked(rank, ranks, mailbox=mailbox), lease=lease)
        for rank in range(ranks)
    ]
    for step in (1, _COUNTED_STEP):
        if step == _COUNTED_STEP:
            (run / "counted-from-here").touch()
        for rank in reversed(range(ranks)):
            piece = Fragment("weight", "w", (ranks,), rank, torch.full((1,), float(step)))
            stores[rank].save(step=step, samples_seen=step, fragments=[piece], facts={}, wait=True)
    assert stores[0].steps() == [1, _COUNTED_STEP]


if __name__ == "__main__":
    main()
