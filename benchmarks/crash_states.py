"""Crash a save everywhere: record its real system calls, replay prefixes with unsynced writes lost or torn.

    python benchmarks/crash_states.py --states 20000 --seed 0 --json

A state keeps what was fsynced, and of the rest a random part: file contents whole, gone or cut in the middle,
names (creations, renames, removals) each persisted or not. In every state the store must open the newest
checkpoint that was promised, or a newer one, byte for byte. Needs strace.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

_SAVE = """
import sys
from pathlib import Path
import torch
from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.retention import Retention
from coatnet.checkpoint.store import CheckpointStore
from coatnet.runtime.ranks import Ranks
store = CheckpointStore(Path(sys.argv[1]), ranks=Ranks(), retention=Retention(last=2))
for step in map(int, sys.argv[2:]):
    data = torch.full((64,), float(step))
    pieces = [Fragment("weight", name, (64,), 0, data) for name in ("a", "b")]
    store.save(step=step, samples_seen=step, fragments=pieces, facts={"step": step}, wait=True)
store.close()
"""
_CALL = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)")
_FD = re.compile(r"^\d+<((?:[^>\\]|\\.)*)>")
_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')
_TRACED = "openat,write,fsync,mkdir,rename,unlink,unlinkat,rmdir"


@dataclass(frozen=True)
class Call:
    """One system call on the store's directory."""

    name: str
    path: str
    target: str = ""
    data: bytes = b""


@dataclass
class File:
    """A file's bytes as written and as they were at its last fsync."""

    written: bytes = b""
    synced: bytes = b""


@dataclass
class Outcome:
    """What a campaign saw."""

    states: int = 0
    unrecoverable: int = 0
    wrong: list[str] = field(default_factory=list)


def record(directory: Path, *, steps: list[int], prologue: str = "") -> list[Call]:
    """Save `steps` in a child process under strace and return its calls on `directory`."""
    log = directory.with_suffix(".strace")
    command = ["strace", "-f", "-y", "-xx", "-s", "1000000", "-e", f"trace={_TRACED}", "-o", str(log)]
    command += [sys.executable, "-c", prologue + _SAVE, str(directory), *map(str, steps)]
    subprocess.run(command, check=True, capture_output=True)
    calls = [call for line in log.read_text().splitlines() if (call := _parse(line, str(directory)))]
    log.unlink()
    return calls


def _parse(line: str, root: str) -> Call | None:
    found = _CALL.match(line)
    if not found or int(found[3]) < 0:
        return None
    name, arguments = found[1], found[2]
    texts = [_bytes(text) for text in _TEXT.findall(arguments)]
    held = _FD.match(arguments)
    at = _bytes(held[1]).decode() if held else ""
    if name in ("write", "fsync"):
        path, data = at, texts[0] if texts else b""
        return Call(name, path, data=data[: int(found[3])]) if path.startswith(root) else None
    paths = [
        str(Path(at) / text.decode(errors="replace")) if at else text.decode(errors="replace")
        for text in texts
    ]
    if not paths or not paths[0].startswith(root):
        return None
    if name == "openat":
        return Call("create", paths[0]) if "O_CREAT" in arguments else None
    if name in ("unlink", "unlinkat", "rmdir"):
        return Call("remove", paths[0])
    return Call(name, paths[0], target=paths[1] if len(paths) > 1 else "")


def _bytes(text: str) -> bytes:
    return re.sub(rb"\\x([0-9a-f]{2})", lambda hit: bytes([int(hit[1], 16)]), text.encode())


def crash(calls: list[Call], base: Path, state: Path, *, root: str, chance: random.Random) -> int:
    """Build in `state` what a crash after some call may leave behind; return how many calls were made."""
    shutil.copytree(base, state)
    cut = chance.randrange(len(calls) + 1)
    files: dict[str, File] = {}
    pending: list[Call] = []
    durable: list[Call] = []
    for call in calls[:cut]:
        if call.name == "write":
            files.setdefault(call.path, File()).written += call.data
        elif call.name == "fsync":
            if call.path in files:
                files[call.path].synced = files[call.path].written
            durable += [one for one in pending if _parents(one) & {call.path}]
            pending = [one for one in pending if not _parents(one) & {call.path}]
            pending, durable = _with_own_entry(call.path, pending, durable)
        else:
            pending.append(call)
            if call.name == "rename":
                moved = {path: file for path, file in files.items() if path.startswith(call.path)}
                for path in moved:
                    files[call.target + path[len(call.path) :]] = files.pop(path)
    lucky = chance.random()
    kept = [one for one in pending if chance.random() < lucky]
    order = {id(call): number for number, call in enumerate(calls)}
    for call in sorted([*durable, *kept], key=lambda one: order[id(one)]):
        _apply(call, state, root)
    for path, file in files.items():
        place = _inside(path, state, root)
        if place.is_file():
            place.write_bytes(_survived(file, chance))
    return cut


def _with_own_entry(path: str, pending: list[Call], durable: list[Call]) -> tuple[list[Call], list[Call]]:
    """An fsynced new file brings its own name along, as every journalling file system does."""
    own = [one for one in pending if one.name == "create" and one.path == path]
    return [one for one in pending if one not in own], [*durable, *own]


def _parents(call: Call) -> set[str]:
    return {str(Path(path).parent) for path in (call.path, call.target) if path}


def _survived(file: File, chance: random.Random) -> bytes:
    lost = file.written[len(file.synced) :]
    kept = chance.choice([0, len(lost) // 2, len(lost)])
    return file.synced + lost[:kept]


def _inside(path: str, state: Path, root: str) -> Path:
    return state / Path(path).relative_to(root)


def _apply(call: Call, state: Path, root: str) -> None:
    """Do it again; what it builds on may not have survived."""
    place = _inside(call.path, state, root)
    try:
        if call.name == "create":
            place.touch()
        elif call.name == "mkdir":
            place.mkdir()
        elif call.name == "rename":
            place.rename(_inside(call.target, state, root))
        elif place.is_dir():
            place.rmdir()
        else:
            place.unlink()
    except OSError:
        return


def campaign(states: int, *, seed: int, prologue: str = "") -> Outcome:
    """Try `states` crashes of a save that also deletes the oldest checkpoint.

    Args:
        states, seed: how many, and where chance begins.
        prologue: code that the saving child runs first (the test breaks the store with it).
    """
    from coatnet.checkpoint.store import CheckpointStore
    from coatnet.config import UserError
    from coatnet.runtime.ranks import Ranks

    chance, outcome = random.Random(seed), Outcome()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as scratch:
        base, live = Path(scratch) / "base", Path(scratch) / "live"
        record(base, steps=[1, 2])
        shutil.copytree(base, live)
        calls = record(live, steps=[3], prologue=prologue)
        renamed = next(i for i, call in enumerate(calls) if call.target.endswith("step-00000003"))
        promised_from = next(
            i
            for i, call in enumerate(calls)
            if i > renamed and call.name == "fsync" and call.path == str(live)
        )
        for number in range(states):
            state = Path(scratch) / f"state{number}"
            cut = crash(calls, base, state, root=str(live), chance=chance)
            least = 3 if cut > promised_from else 2
            try:
                newest = CheckpointStore(state, ranks=Ranks(), alarm=lambda text: None).newest()
                good = newest is not None and newest.step >= least
                good = good and bool((newest.tensor("weight", "b") == float(newest.step)).all())  # type: ignore
            except UserError:
                good = False
            outcome.states += 1
            if not good:
                outcome.unrecoverable += 1
                outcome.wrong.append(f"state {number}: after call {cut} of {len(calls)}")
            shutil.rmtree(state)
    return outcome


def main() -> None:
    """Run a campaign and print its outcome."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--states", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    outcome = campaign(options.states, seed=options.seed)
    found = {"states": outcome.states, "unrecoverable": outcome.unrecoverable, "wrong": outcome.wrong[:10]}
    print(
        json.dumps(found)
        if options.json
        else f"{outcome.states} states, {outcome.unrecoverable} unrecoverable"
    )
    sys.exit(1 if outcome.unrecoverable else 0)


if __name__ == "__main__":
    main()
