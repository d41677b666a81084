"""The cache of remote shards on a disk that is full, or nearly."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from data_pipeline.remote import cache as remote_cache
from data_pipeline.remote.cache import Cache, part_path


def test_the_disk_has_room_for_what_others_are_fetching_and_what_a_killed_process_left_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Cache(tmp_path / "cache", limit_bytes=1 << 20)
    for name in ("old", "new"):
        kept.get(name, lambda path: path.write_bytes(b"x" * 1000), size=1000)  # type: ignore[arg-type, return-value]
    os.utime(tmp_path / "cache" / "old", (1, 1))
    here, fetched = tmp_path / "cache", part_path(tmp_path / "cache" / "fetched")
    for half, seconds in ((fetched, time.time()), (here / "left.part", 1.0)):
        half.write_bytes(b"half")
        os.utime(half, (seconds, seconds))
    monkeypatch.setattr(remote_cache, "_free_bytes", lambda _: 2000 if (here / "old").exists() else 3000)
    kept.get("next", lambda path: path.write_bytes(b"x"), size=1200)  # type: ignore[arg-type, return-value]
    assert {path.name for path in here.iterdir() if path.name[0] != "."} == {"new", "next", fetched.name}
    kept.get("fetched", fetched.rename, size=3004)  # 3000 are free, 4 are there
    assert (here / "fetched").read_bytes() == b"half"


def test_a_full_disk_is_met_by_giving_up_what_is_idle(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=1 << 20)
    for number in range(4):
        cache.get(f"{number}", lambda path: path.write_bytes(b"x" * 1000), size=1000)  # type: ignore[arg-type, return-value]
    tries = []

    def full_at_first(path: Path) -> None:
        tries.append(path)
        if len(tries) == 1:
            raise OSError(28, "No space left on device")
        path.write_bytes(b"y")

    assert cache.get("new", full_at_first, size=1).read_bytes() == b"y"
    assert sorted(path.name for path in (tmp_path / "cache").iterdir() if path.name[0] != ".") == ["new"]
