"""How a source is sharded, checked field by field. Knows no source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from coatnet.config.checks import at_least_zero, below_one, one_of, within

_UNUSABLE = ("skip", "stop")
_USABLE = ("keep", "convert", "skip", "stop")
# Below, a unit was forgotten: 100 would be an image a shard, in millions of files.
_LEAST_SHARD_BYTES = 100_000


@dataclass(frozen=True)
class OddPolicy:
    """What is done with each kind of odd image; kinds go by content, never by the file's name.

    keep: the bytes stay, the index flags them. convert: decoded and written anew as JPEG of quality 95.
    skip: left out, named in the report, counted against the budget. stop: an error.
    """

    not_an_image: str = "skip"
    unsupported: str = "skip"
    limit: str = "skip"
    truncated: str = "skip"
    corrupt: str = "skip"
    damaged: str = "keep"
    renamed: str = "keep"
    gray: str = "keep"
    cmyk: str = "keep"
    deep: str = "keep"
    animated: str = "keep"
    oriented: str = "keep"
    progressive: str = "keep"

    @classmethod
    def parse(cls, items: Iterable[str]) -> OddPolicy:
        """Read items of KIND=ACTION; the other kinds keep theirs.

        Raises:
            ValueError: one is none, or there is no such kind, or not that action for it.
        """
        chosen, kinds = dict[str, str](), [entry.name for entry in fields(cls)]
        for item in items:
            kind, equals, chosen[kind] = item.partition("=")
            if not equals:
                raise ValueError(f"policy {item!r}: expected KIND=ACTION, such as cmyk=convert")
            if kind not in kinds:
                raise ValueError(f"--policy is of {kind!r}; allowed: {', '.join(kinds)}")
        return cls(**chosen)

    def __post_init__(self) -> None:
        for entry in fields(self):
            action = getattr(self, entry.name)
            one_of(entry.name, action, _UNUSABLE if entry.default == "skip" else _USABLE)


@dataclass(frozen=True)
class ShardOptions:
    """How a source is sharded.

    Attributes:
        shard_bytes: a shard's size, about; `shard_samples` wins where given.
        shuffle: write in one global random order.
        seed: of the shuffle.
        check: "decode" every image (at reduced size), or only its "header".
        validation: share of the samples, chosen by the hash of their names, that becomes a corpus of its own.
        deduplicate: keep the first of several samples with equal bytes.
        tile_jpeg: rewrite JPEGs without loss so that regions can be decoded alone.
        bad_budget: share of the images that may be skipped before sharding stops.
        workers: processes; 0 for one per core, or a single one where there is little to do.
    """

    shard_bytes: int = 128_000_000
    shard_samples: int | None = None
    shuffle: bool = True
    seed: int = 0
    check: str = "decode"
    validation: float = 0.0
    deduplicate: bool = False
    tile_jpeg: bool = False
    bad_budget: float = 0.01
    workers: int = 0
    policy: OddPolicy = field(default_factory=OddPolicy)

    def __post_init__(self) -> None:
        if self.shard_bytes < _LEAST_SHARD_BYTES:
            raise ValueError(
                f"--shard-size is {self.shard_bytes} bytes; allowed: 100 kB or more, such as '100 MB'; "
                "smaller shards are asked for by --shard-samples"
            )
        if self.shard_samples is not None and self.shard_samples < 1:
            raise ValueError("--shard-samples is below 1; allowed: 1 or more")
        one_of("check", self.check, ("decode", "header"))
        below_one("--validation", self.validation)
        within("--bad-budget", self.bad_budget, least=0, most=1)
        at_least_zero("--workers", self.workers)

    def what_counts(self) -> dict[str, Any]:
        """Return the options that decide the shards' content; the number of workers does not."""
        values = asdict(self)
        del values["workers"], values["bad_budget"]
        return values
