"""The `data` section: which corpora in which proportions, and how they are read. Knows no loader."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import ClassVar

from coatnet.config.checks import above_zero, at_least_zero, folder, one_of, within

TAILS = ("continue", "drop", "mask")
DECODERS = ("auto", "kernel", "pillow")
_SOMEWHERE = "."
_SIZE = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]+)?)\s*([kmgt]i?)?b?\s*", re.IGNORECASE)
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_UNITS |= {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


def parse_bytes(text: str) -> int:
    """Read "256 MB", "1GiB" or "4096" as a number of bytes.

    Raises:
        ValueError: not a number followed by a known unit.
    """
    found = _SIZE.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not a size; write for example '256 MB', '1 GiB' or '4096'")
    return int(float(found[1]) * _UNITS[(found[2] or "").lower()])


@dataclass
class CorpusConfig:
    """One corpus of the training mixture.

    Attributes:
        path: a folder of shards, an image folder (CLASS/file), or a URL (http, https, s3) of a
            folder that holds `manifest.json`.
        weight: share of the samples, relative to the other corpora's weights.
    """

    shorthand: ClassVar[str] = "path"  # `data.train=a` means `data.train=[{path: a}]`

    path: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        folder("path", self.path, allowed="a folder or a URL")
        above_zero("weight", self.weight)


@dataclass
class CacheConfig:
    """Where shards of remote corpora are kept, once per node.

    Attributes:
        directory: shared by a user's ranks on a node; null is `coatnet-shards-UID` in the system's temporary
            folder.
        limit: as in "64 GB", or null for half of the directory's disk; the least recently used shards leave
            when the cache grows beyond it.
        ahead_shards: how many shards are fetched before they are needed, per rank.
        stall_seconds: a transfer without a byte for this long (at most 600) is given up and resumed.
        attempts: in a row, with jittered back-off, without an answer or a new byte before the run ends, to be
            started again: nine minutes and more.
    """

    directory: str | None = None
    limit: str | None = None
    ahead_shards: int = 8
    stall_seconds: float = 8.0
    attempts: int = 40

    def __post_init__(self) -> None:
        folder("directory", self.directory, allowed="a folder, or null")
        try:
            limit = parse_bytes("1" if self.limit is None else self.limit)
        except ValueError as error:
            raise ValueError(f"limit: {error}") from None
        if not limit:
            raise ValueError(f"limit is {self.limit!r}; allowed: above 0")
        at_least_zero("ahead_shards", self.ahead_shards)
        within("stall_seconds", self.stall_seconds, least=0.1, most=600)
        within("attempts", self.attempts, least=1, most=1000)


@dataclass
class DataConfig:
    """What is read, and how.

    Attributes:
        train: a corpus, as in `data.train=shards/train`, or the list of a mixture, of paths or of
            [{path: a, weight: 2}, {path: b}].
        evaluate: path or URL of the corpus for evaluation; null for none.
        threads: decoding threads per rank; the result does not depend on it.
        prefetch: batches prepared ahead.
        lanes: parallel streams that the corpus is cut into; lower automatically for corpora of few shards.
        window: shards of a lane whose samples are shuffled together.
        tail: at the end of an epoch "continue" fills the last step from the next epoch, "drop" leaves out
            what does not fill a step, "mask" fills it up with samples that have no weight in the loss. No
            sample counts twice in an epoch.
        bad_sample_budget: share of the samples read that may be bad before the run stops.
        decoder: of JPEGs: "kernel" (the C extension), "pillow", or "auto" for the faster one that is
            installed. They differ in the last bits of pixels, so a run keeps the one that it began with.
    """

    train: list[CorpusConfig] = field(default_factory=list)
    evaluate: str | None = None
    threads: int = 2
    prefetch: int = 3
    lanes: int = 240
    window: int = 4
    tail: str = "continue"
    bad_sample_budget: float = 0.001
    decoder: str = "auto"
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        folder("evaluate", self.evaluate, allowed="a folder or a URL, or null")
        for name, most in (("threads", 1024), ("prefetch", 1024), ("lanes", 10**6), ("window", 10**6)):
            within(name, getattr(self, name), least=1, most=most)
        one_of("tail", self.tail, TAILS)
        one_of("decoder", self.decoder, DECODERS)
        within("bad_sample_budget", self.bad_sample_budget, least=0, most=1)

    def without_places(self) -> DataConfig:
        """Return the section without where corpora lie: what they hold tells runs apart."""
        train = [replace(corpus, path=_SOMEWHERE) for corpus in self.train]
        return replace(self, train=train, evaluate=self.evaluate and _SOMEWHERE)

    def digests_here(self) -> dict[str, list[str]]:
        """Return what the corpora hold that can be read on this machine, by the key that leads to them."""
        from data_pipeline.open_corpus import digests_here  # which reads this section

        return digests_here(self)

    def check_here(self) -> None:
        """Check the shards that this machine can read, by their manifests alone.

        Raises:
            UserError: one is damaged, or they do not fit together.
        """
        from data_pipeline.open_corpus import check_here

        check_here(self)
