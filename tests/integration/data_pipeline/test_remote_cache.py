"""The cache of a remote corpus on a node's disk: its limit, its damages, and a disk that is full."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import xxhash
from far_corpora import FIRST, cache_config, everything
from fault_server import FaultServer
from waiting import wait_until

from coatnet.config import UserError
from data_pipeline.corpus import Corpus
from data_pipeline.open_corpus import open_corpus
from data_pipeline.record import BadSampleError
from data_pipeline.remote import cache as remote_cache
from data_pipeline.remote import remote_files

pytestmark = pytest.mark.usefixtures("short_pauses")


def test_the_cache_stays_below_its_limit_and_still_serves(
    server: FaultServer, shards: Path, tmp_path: Path
) -> None:
    size = max(path.stat().st_size for path in shards.glob("*.tar"))
    limit = 3 * size + (2 << 20)
    corpus = open_corpus(server.url, cache=cache_config(tmp_path, limit=str(limit)))
    draw = np.random.default_rng(0)
    for _ in range(60):
        corpus.read(int(draw.integers(8)), int(draw.integers(10)))
        used = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
        assert used <= limit


def test_shards_that_left_the_cache_do_not_fill_the_disk_unseen(
    server: FaultServer, shards: Path, tmp_path: Path
) -> None:
    """A removed file takes its room until it is closed; one that is still read is not closed for that."""
    limit = (1 << 20) + 2 * max(path.stat().st_size for path in shards.glob("*.tar"))
    corpus = open_corpus(server.url, cache=cache_config(tmp_path, limit=str(limit)))
    for shard in (0, 1, 2, 3, 4):
        for _ in range(100):
            corpus.read(0, 0)
            corpus.read(shard, 1)
    corpus.read(5, 0)
    links = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the server's threads close theirs
            links.append(os.readlink(path))
    removed = [link for link in links if str(tmp_path) in link and link.endswith("(deleted)")]
    assert {Path(link).name.partition(".")[0] for link in removed} == {"shard-000000"}
    assert server.requests[FIRST] == 1


def test_a_copy_that_was_damaged_in_the_cache_is_fetched_again_and_costs_no_sample(
    server: FaultServer, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = cache_config(tmp_path)
    first, good = open_corpus(server.url, cache=config), everything(Corpus.open(shards))
    assert everything(first) == good
    for name in (FIRST, "shard-000001.index.npy"):
        (copy,) = (tmp_path / "cache").rglob(name)
        content = bytearray(copy.read_bytes())
        content[len(content) // 2] ^= 1
        copy.write_bytes(content)
    (cut_short,) = (tmp_path / "cache").rglob("shard-000002.tar")
    os.truncate(cut_short, 5000)
    assert everything(first) == good, "one that has the files open"
    assert everything(open_corpus(server.url, cache=config)) == good
    fetched = {
        name: count for name, count in server.requests.items() if count > 1 and name != "manifest.json"
    }
    assert fetched == {FIRST: 2, "shard-000001.index.npy": 2, "shard-000002.tar": 2}
    assert capsys.readouterr().err.count("was damaged") == 3


def test_a_lost_index_costs_no_look_at_its_shards_copy_for_each_of_its_samples(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = open_corpus(server.url, cache=cache_config(tmp_path))
    corpus.read(0, 0)
    (index,) = (tmp_path / "cache").rglob("shard-000000.index.npy")
    index.unlink()
    server.faults[index.name] = ["404"]
    looked_at = []
    monkeypatch.setattr(remote_files, "size_and_hash", looked_at.append)
    corpus = open_corpus(server.url, cache=cache_config(tmp_path))
    for number in range(10):
        with pytest.raises(BadSampleError, match=r"index\.npy.* 404"):
            corpus.read(0, number)
    assert not looked_at and server.requests[index.name] == 2


def test_a_sample_that_its_shard_has_damaged_is_bad_and_its_shard_not_fetched_again(
    shards: Path, tmp_path: Path
) -> None:
    """The manifest vouches for the shard's bytes, and the index for the sample's: they can disagree."""
    served = tmp_path / "served"
    shutil.copytree(shards, served)
    content = bytearray((served / FIRST).read_bytes())
    content[1000] ^= 1
    (served / FIRST).write_bytes(content)
    manifest = json.loads((served / "manifest.json").read_text())
    manifest["shards"][0]["xxh3"] = xxhash.xxh3_128_hexdigest(content)
    (served / "manifest.json").write_text(json.dumps(manifest))
    with FaultServer(served) as server:
        corpus = open_corpus(server.url, cache=cache_config(tmp_path))
        with pytest.raises(BadSampleError, match="fails its checksum"):
            corpus.read(0, 0)
        assert server.requests[FIRST] == 1


@pytest.mark.parametrize("full_for", [3, 1000])
def test_a_disk_that_is_full_costs_no_sample(
    server: FaultServer, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_for: int
) -> None:
    """Other ranks may give room back; if they do not, the run stops, since no sample is to blame."""
    corpus = open_corpus(server.url, cache=cache_config(tmp_path))
    asked = itertools.count()
    monkeypatch.setattr(remote_cache, "_free_bytes", lambda _: 0 if next(asked) < full_for else 1 << 40)
    monkeypatch.setattr(remote_files, "backoff_seconds", lambda _: 0.0)
    if full_for < 1000:
        assert bytes(corpus.read(0, 0).payload) == bytes(Corpus.open(shards).read(0, 0).payload)
        return
    with pytest.raises(UserError, match=r"no room on the disk of data\.cache\.directory, .*/cache, "):
        corpus.read(0, 0)
    assert set(server.requests) == {"manifest.json"}  # no transfer that has no room


def test_for_what_is_fetched_ahead_nothing_leaves_a_full_disk(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies there may be needed sooner."""
    corpus = open_corpus(server.url, cache=cache_config(tmp_path))
    corpus.read(0, 0)
    asked: list[str] = []

    def find_no_room(url: str, *_: object, **__: object) -> None:
        asked.append(url)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(remote_files, "_FETCHERS", 1)
    monkeypatch.setattr(remote_files, "download", find_no_room)
    corpus.prepare([1, 2])
    wait_until(lambda: f"{server.url}/shard-000002.tar" in asked, what="the last of them")
    assert list(tmp_path.rglob(FIRST)) and len(asked) == 4
