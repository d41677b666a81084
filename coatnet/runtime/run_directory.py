"""A run directory: its files, its markers and its events. Imports no torch: a login node reads it too."""

from __future__ import annotations

import errno
import heapq
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from coatnet.config import UserError, load_config, to_dict
from coatnet.config.plain_text import is_number, json_text
from coatnet.runtime.whole_files import name_file, write_whole

_MOST_TOLD = 4  # keys
_ABSENT = object()
IDENTITY = "identity.json"
# Of shards, and of an exported model: who reads the run would find these instead.
_MANIFEST, _MODEL = "manifest.json", "model.safetensors"
_MASKING = (_MANIFEST, _MODEL)
CHECKPOINT_PREFIX = "step-"  # of its directory; the number follows
MARKERS = ("attempt", "stopped", "done", "cancelled", "held")


class RunDirectory:
    """The paths of one run, and small atomic writes into it."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.identity = self.path / IDENTITY
        self.metrics = self.path / "metrics.jsonl"
        self.events = self.path / "events.jsonl"
        self.account = self.path / "account"
        self.summary = self.path / "summary.json"
        self.plan = self.path / "plan.json"
        self.group_images = self.path / "group_images.json"
        self.corpora = self.path / "corpora.json"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.logs = self.path / "logs"
        self.lost_records = 0

    @property
    def has_begun(self) -> bool:
        """True once a step was recorded or saved: before, nothing binds the run to its config."""
        recorded = self.metrics.exists() and self.metrics.stat().st_size > 0
        return recorded or bool(self.find_checkpoints())

    def find_checkpoints(self) -> list[Path]:
        """Return where the committed checkpoints lie, the newest first.

        Raises:
            OSError: what lies there cannot be told; glob would find nothing.
        """
        try:
            names = os.listdir(self.checkpoints)
        except (FileNotFoundError, NotADirectoryError):
            return []
        prefix = CHECKPOINT_PREFIX
        found = {
            name.removeprefix(prefix): self.checkpoints / name for name in names if name.startswith(prefix)
        }
        return [found[step] for step in sorted(filter(str.isdecimal, found), key=int, reverse=True)]

    @property
    def settled_group_images(self) -> int | None:
        """How many images batch norm has taken together since pretraining's first start, None before."""
        if not self.has_begun or not self.group_images.exists():
            return None
        return int(self.group_images.read_text())

    def check_config(self, config: Any, *, force: bool | None = None) -> None:
        """Check that what lies here, if anything, is a run of this config.

        Args:
            config: a root schema, whose `run_digest` tells what must not change under a run.
            force: take another's over; None where the command has no such option.

        Raises:
            UserError: it is of another config, or of none that is known, or something else lies here.
        """
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise UserError(f"run.directory is {self.path}, which is no folder; choose another")
        if other := next((name for name in _MASKING if (self.path / name).exists()), None):
            raise UserError(f"{self.path}: holds {other}, which is no run's; choose another run.directory")
        if not self.identity.exists():
            if self.find_checkpoints():
                raise UserError(
                    f"{self.path}: holds checkpoints but no {IDENTITY}; restore it, or choose another folder"
                )
            return
        digest = config.run_digest()
        known = _read_object(self.identity).get("digest")
        if known == digest or not self.has_begun or force:
            return
        try:  # it may differ by nothing but keys of a newer version, at their defaults
            if load_config(type(config), self.config).run_digest() == digest:
                return
        except UserError:  # a key that is no more
            pass
        remedy = "or choose another run.directory" if force is None else "choose another, or give --force"
        raise UserError(
            f"{self.path}: holds a run with another config{self._differences(config)}; "
            f"compare {self.config}, {remedy}"
        )

    def check_corpora(self, digests: Mapping[str, Sequence[str]]) -> None:
        """Check that the images are those that this run began with, wherever they lie by now.

        Args:
            digests: of the corpora, by the key of the config that leads to them.

        Raises:
            UserError: they are others.
        """
        known = _read_object(self.corpora) if self.has_begun and self.corpora.exists() else {}
        other = next((key for key in digests if known.get(key, digests[key]) != digests[key]), None)
        if other is not None:
            raise UserError(
                f"{other}: holds other images than {self.path} began with; give those, or choose another "
                "run.directory"
            )

    def settle_corpora(self, digests: Mapping[str, Sequence[str]]) -> None:
        """Do the same, and at the first start note them."""
        self.check_corpora(digests)
        text = json.dumps(digests) + "\n"
        if not self.corpora.exists() or self.corpora.read_text(errors="replace") != text:
            write_atomically(self.corpora, text)

    def create(self, config_yaml: str, *, digest: str) -> None:
        """Make the directory, or find it as it is, and write the config that its run goes by from now on."""
        for folder in (self.path, self.tensorboard, self.checkpoints, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.config, config_yaml)
        write_atomically(self.identity, json.dumps({"digest": digest}) + "\n")

    def _differences(self, config: Any) -> str:
        """Name the keys in which a config differs from this run's, beside the directory itself."""
        import yaml

        try:
            before = dict(_leaves(yaml.safe_load(self.config.read_text())))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            return ""
        now = dict(_leaves(to_dict(config)))
        keys = [key for key in {**before, **now} if before.get(key, _ABSENT) != now.get(key, _ABSENT)]
        told = [
            f"{key} ({f'there {before[key]}' if key in before else 'new'})"
            for key in keys
            if key != "run.directory"
        ]
        more = f" and {len(told) - _MOST_TOLD} more" if len(told) > _MOST_TOLD else ""
        return f", which differs in {', '.join(told[:_MOST_TOLD])}{more}" if told else ""

    def record_event(self, kind: str, *, writer: int | str = 0, **fields: Any) -> None:
        """Record a restart, a bad sample, a skipped step, an alarm.

        Args:
            kind: what happened.
            writer: a rank, or what else writes; each has a file of its own, since of the lines that two hosts
                append to one file at once NFS may lose some.
        """
        self.append(self.events_of(writer), {"time": time.time(), "kind": kind, **fields})

    def events_of(self, writer: int | str) -> Path:
        """Return a writer's file: events.jsonl is rank 0's, which is all that most runs have."""
        if writer == 0:
            return self.events
        name = f"rank-{writer:05d}" if isinstance(writer, int) else writer
        return self.path / "events" / f"{name}.jsonl"

    def read_events(self) -> list[dict[str, Any]]:
        """Return the events of all writers, in the order in which they happened."""
        files = (self.events, *sorted(self.path.glob("events/*.jsonl")))
        # A file's own order stays, whatever was done to its writer's clock. One file is open at a time: a
        # thousand ranks that refused a step left more than a process may have.
        return list(heapq.merge(*[list(read_lines(file)) for file in files], key=_time))

    def append(self, path: Path, record: dict[str, Any]) -> None:
        """Append a record to one of the run's logs; a full disk does not end a run, what it costs counts."""
        try:
            path.parent.mkdir(exist_ok=True)
            append_line(path, record)
        except OSError as error:
            name_file(error, path)
            self.lose_record(error)

    def lose_record(self, error: OSError) -> None:
        """Count something that could not be written, and say so the first time."""
        if self.lost_records == 0:
            print(
                f"warning: cannot write what happens: {error}; the run goes on", file=sys.stderr, flush=True
            )
        self.lost_records += 1

    def mark(self, name: str, **fields: Any) -> None:
        """Write a marker file whole or not at all."""
        assert name in MARKERS, name
        write_atomically(self.path / name, json_text({"time": time.time(), **fields}) + "\n")

    def marker(self, name: str) -> dict[str, Any] | None:
        """Return a marker's fields (none if a person made it by `touch`), or None where it is absent."""
        assert name in MARKERS, name
        try:
            return _read_object(self.path / name)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def clear(self, name: str) -> None:
        """Remove a marker if it is there."""
        assert name in MARKERS, name
        (self.path / name).unlink(missing_ok=True)


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Go through a config's keys with their paths; lists are values."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def _time(event: dict[str, Any]) -> float:
    value = event.get("time")
    return float(value) if is_number(value) else 0.0


def _read_object(path: Path) -> dict[str, Any]:
    """Read a small JSON file that a person may have changed; what is no object is an empty one."""
    try:
        fields = json.loads(path.read_text(errors="replace"))
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def keep_out_of_runs(folder: Path) -> None:
    """Check that what is to be written into a folder does not come among a run's files, which it would mask.

    Raises:
        UserError: it would.
    """
    if os.path.isdir(RunDirectory(folder).checkpoints):  # not where nobody may look
        raise UserError(f"{folder}: holds a run; give a folder of its own")


def keep_shards_out(folder: Path) -> None:
    """Check that shards, with the manifest of theirs, do not come among the files of a run or of a model.

    Raises:
        UserError: they would.
    """
    keep_out_of_runs(folder)
    if os.path.isfile(folder / _MODEL):
        raise UserError(f"{folder}: holds an exported model; give a folder of its own")


def keep_models_out(folder: Path) -> None:
    """Check that a model does not come among the files of a run, of a checkpoint or of shards.

    Raises:
        UserError: it would.
    """
    keep_out_of_runs(folder)
    if os.path.isfile(folder / _MANIFEST):
        raise UserError(f"{folder}: holds shards or a checkpoint ({_MANIFEST}); give a folder of its own")


def cannot_write(error: OSError, *, folder: Path) -> UserError:
    """Return what a user is told of a run directory that takes no files."""
    what = f"{error.filename or folder}: {error.strerror}"
    return UserError(f"{what}; make room or a way in, or choose another run.directory")


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file wholly or not at all."""
    write_whole(path, text.encode())


def append_line(path: Path, record: dict[str, Any], *, durable: bool = False) -> None:
    """Append one JSON line in a single write, so that two writers never mix.

    A line that a full disk tore is ended first: what follows would be lost with it.

    Args:
        path: the file.
        record: plain containers.
        durable: whether it is to survive a power cut once it is written.

    Raises:
        OSError: it could not be written as a whole.
    """
    line = (json_text(record, separators=(",", ":")) + "\n").encode()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read a file of JSON lines; what is no record, as a last line still under way, is left out."""
    try:
        file = path.open(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return
    with file:
        yield from parse_lines(file)


def parse_lines(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Read lines of JSON; what is no record is left out."""
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # also a number of thousands of digits
            continue
        if isinstance(record, dict):
            yield record
