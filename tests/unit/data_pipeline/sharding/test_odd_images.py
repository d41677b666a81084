"""Every odd image of the collection is treated as its manifest's line expects, and named in the report."""

from __future__ import annotations

import json
import resource
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.decode import backend_name
from data_pipeline.sharding.inspection import Judged, judge
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.sharder import shard_corpus

ARCHIVE = Path(__file__).parents[4] / "../shared/data/odd_images.tar"
pytestmark = pytest.mark.skipif(not ARCHIVE.exists(), reason=f"the collection {ARCHIVE.name} is not here")

KEPT = {"ok", "ok_convert", "ok_warn", "sniff"}
REFUSED = {"reject", "reject_limit", "limit_policy"}
EITHER = {"reject_or_warn", "policy", "no_crash"}
MEMORY_BYTES = 6 << 30  # a 44-byte GIF of the collection asks for 13 GB


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    with tarfile.open(ARCHIVE) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # older Pythons lack it
        tar.extractall(folder)
    return folder


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_every_expectation_is_met(odd: Path) -> None:
    failures = []
    for line in lines(odd):
        judged: Judged = judge((odd / line["path"]).read_bytes(), name=line["path"], options=ShardOptions())
        kept, expect = judged.info is not None, line["expect"]
        assert expect in KEPT | REFUSED | EITHER
        if (expect in KEPT and not kept) or (expect in REFUSED and kept):
            failures.append(f"{line['path']} ({line['odd']}): {expect}, but {judged.kinds} {judged.detail}")
        # What Pillow repairs in silence is seen by the kernel alone.
        if expect == "reject_or_warn" and kept and not judged.kinds and backend_name() == "kernel":
            failures.append(f"{line['path']} ({line['odd']}): kept without a word")
        if expect == "sniff" and "renamed" not in judged.kinds:
            failures.append(f"{line['path']}: its wrong name was not noticed")
        if kept and line["width"] and judged.info and expect in KEPT:
            assert (judged.info.width, judged.info.height) == (line["width"], line["height"]), line["path"]
    assert not failures, "\n".join(failures)


def test_all_are_sharded_in_one_go_and_each_skipped_one_is_named(odd: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (odd / "files").rename(tmp_path / "images" / "odd")
    try:
        made = shard_corpus(
            tmp_path / "images", tmp_path / "out", options=ShardOptions(bad_budget=1.0), quiet=True
        )["all"]
        visible = [path for path in (tmp_path / "images" / "odd").iterdir() if path.name[0] != "."]
    finally:
        (tmp_path / "images" / "odd").rename(odd / "files")
    report = [json.loads(line) for line in (tmp_path / "out" / "report.jsonl").read_text().splitlines()]
    assert made.counts["written"] + made.counts["skipped"] == len(visible)
    assert sum(entry["action"] == "skip" for entry in report) == made.counts["skipped"]
    assert all(entry["kinds"] and entry["name"] for entry in report)
