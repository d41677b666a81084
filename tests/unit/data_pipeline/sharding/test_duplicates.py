"""Images of equal bytes in a source, of which one is packed."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.sharding import duplicates
from data_pipeline.sharding.listing import WHOLE_FILE, Listing
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.sharder import shard_corpus


def test_equal_bytes_are_kept_once(image_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("x", "y"):
        (source / name).mkdir(parents=True)
    for number, path in enumerate(sorted(image_folder.rglob("*.jpg"))[:6]):
        (source / "x" / f"{number}.jpg").write_bytes(path.read_bytes())
    (source / "x" / "again.jpg").write_bytes((source / "x" / "3.jpg").read_bytes())
    (source / "y" / "5.jpg").write_bytes((source / "x" / "5.jpg").read_bytes())
    (source / "y" / "own.jpg").write_bytes(sorted(image_folder.rglob("*.jpg"))[9].read_bytes())
    made = shard_corpus(source, tmp_path / "out", options=ShardOptions(deduplicate=True), quiet=True)["all"]
    assert made.samples == 7 and made.counts["duplicates"] == 2
    report = [json.loads(line) for line in (tmp_path / "out" / "report.jsonl").read_text().splitlines()]
    named = {entry["name"]: entry["detail"] for entry in report if "duplicate" in entry["kinds"]}
    assert named == {"x/again.jpg": "equals x/3.jpg", "y/5.jpg": "equals x/5.jpg, of another label"}
    options = ShardOptions(deduplicate=True, validation=0.5)
    parts = shard_corpus(source, tmp_path / "parts", options=options, quiet=True)
    assert [manifest.counts["duplicates"] for manifest in parts.values()] == [2, 0]


def test_of_millions_of_images_few_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all have others of their size, and a pool of threads keeps what it was given until the end."""
    monkeypatch.setattr(duplicates, "read_item", lambda item: item.name[-3:].encode())
    count, told = 1500, list[int]()
    listing = Listing(
        root=Path(),
        classes=["ant"],
        files=[f"{number // 1000}-{number % 1000:03d}" for number in range(count)],
        file=np.arange(count),
        offset=np.full(count, WHOLE_FILE),
        size=np.full(count, 3),
        label=np.zeros(count, np.int64),
    )
    suspects = duplicates.of_equal_size(listing)
    tracemalloc.start()
    kept, dropped = duplicates.without_duplicates(listing, suspects, done=told.append)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kept.tolist() == list(range(1000)) and len(dropped) == 500 and sum(told) == count
    assert dropped[7].detail == "equals 0-007"
    assert peak_bytes < 1_900_000
