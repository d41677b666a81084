"""The manifest of a corpus: its shards, classes and source, in one JSON file. Opens no shard."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from operator import index
from pathlib import Path
from typing import Any

from coatnet.config import UserError
from coatnet.config.plain_text import check_class_names
from data_pipeline.index import index_path, labels_path

MANIFEST = "manifest.json"
FORMAT = "coatnet-shards"
VERSION = 1
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_KINDS = ("single", "multi")


@dataclass(frozen=True)
class ShardEntry:
    """A shard: its file's name, what it holds, and the hashes of it, its index and its labels."""

    name: str
    samples: int
    bytes: int
    xxh3: str
    index_xxh3: str
    labels_xxh3: str | None = None

    def __post_init__(self) -> None:
        if not _SAFE_NAME.fullmatch(self.name):
            raise ValueError(
                f"shard name {self.name!r}; allowed: up to 200 letters, digits, '.', '_' and '-'"
            )
        if not all(0 <= index(number) < 1 << 63 for number in (self.samples, self.bytes)):
            raise ValueError(f"shard {self.name}: {self.samples} samples in {self.bytes} bytes")

    @property
    def files(self) -> dict[str, str]:
        """The hashes of its files by their names, in the order in which a reader needs them."""
        path = Path(self.name)
        labels = {} if self.labels_xxh3 is None else {labels_path(path).name: self.labels_xxh3}
        return {index_path(path).name: self.index_xxh3, **labels, self.name: self.xxh3}


@dataclass(frozen=True)
class Manifest:
    """What a corpus consists of.

    Attributes:
        label_kind: "single", or "multi" for several weighted labels per sample.
        hierarchy: parent of a class by name, where the source knows one (as in WordNet).
        source: where it came from and how it was made; for people, and to refuse mixing two jobs.
        counts: "written", "skipped", "duplicates", … of the sharding.
    """

    classes: list[str]
    shards: list[ShardEntry]
    label_kind: str = "single"
    hierarchy: dict[str, str] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    def digest(self) -> str:
        """Return 16 hex digits that name the content: the shards with their hashes, and the classes."""
        content = [self.classes, self.label_kind, [list(vars(shard).values()) for shard in self.shards]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Render the manifest, one shard a line."""
        values = {"format": FORMAT, "version": VERSION, "samples": self.samples, **asdict(self)}
        shards = values.pop("shards")
        for shard in shards:
            if shard["labels_xxh3"] is None:
                del shard["labels_xxh3"]
        head = json.dumps(values, indent=1, ensure_ascii=False)
        lines = ",\n  ".join(json.dumps(shard, ensure_ascii=False) for shard in shards)
        return f'{head[:-2]},\n "shards": [\n  {lines}\n ]\n}}\n'


def parse_manifest(content: bytes, *, origin: str) -> Manifest:
    """Read a manifest.

    Raises:
        UserError: it is none, of another version, or inconsistent.
    """
    try:
        values = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin}: is not JSON: {error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{origin}: is not a manifest of shards (format {FORMAT!r})")
    if values.get("version") != VERSION:
        raise UserError(f"{origin}: has version {values.get('version')}; this program reads {VERSION}")
    try:
        manifest = Manifest(
            classes=[str(name) for name in values["classes"]],
            shards=[ShardEntry(**shard) for shard in values["shards"]],
            label_kind=values["label_kind"],
            hierarchy=dict(values.get("hierarchy", {})),
            source=dict(values.get("source", {})),
            counts=dict(values.get("counts", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{origin}: is not understood: {type(error).__name__} {error}") from None
    check_class_names(manifest.classes, origin=origin)
    if manifest.samples != values.get("samples"):
        raise UserError(
            f"{origin}: its shards hold {manifest.samples} samples, it says {values.get('samples')}"
        )
    if len({shard.name for shard in manifest.shards}) < len(manifest.shards):
        raise UserError(f"{origin}: names a shard more than once")
    if not manifest.samples:
        raise UserError(f"{origin}: holds no samples")
    if manifest.label_kind not in _KINDS:
        raise UserError(f"{origin}: label_kind is {manifest.label_kind!r}; allowed: {', '.join(_KINDS)}")
    return manifest
