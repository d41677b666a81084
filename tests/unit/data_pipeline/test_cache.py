"""The cache of remote shards on a disk that is full, or nearly."""

from __future__ import annotations

import errno
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


def test_a_cache_is_made_where_nothing_was_and_is_none_of_other_users_business(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Cache(tmp_path / "of" / "mine", limit_bytes=1)
    finally:
        os.umask(before)
    assert (tmp_path / "of" / "mine").stat().st_mode & 0o777 == 0o750


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


@pytest.mark.parametrize(("number", "ahead"), [(errno.ENOSPC, True), (errno.EIO, False)])
def test_nothing_is_given_up_for_what_is_fetched_ahead_or_for_a_disk_that_fails(
    tmp_path: Path, number: int, ahead: bool
) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=1 << 20)
    cache.get("idle", lambda path: path.write_bytes(b"x"), size=1)  # type: ignore[arg-type, return-value]
    tries = []

    def fail(path: Path) -> None:
        tries.append(path)
        raise OSError(number, "")

    with pytest.raises(OSError):
        cache.get("new", fail, size=1, ahead=ahead)
    assert (tmp_path / "cache" / "idle").exists() and len(tries) == 1


def test_files_leave_only_when_the_limit_is_passed_by_one_byte(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=2000)
    for name, size in (("a", 1000), ("b", 1000), ("c", 1)):
        cache.get(name, lambda path, size=size: path.write_bytes(b"x" * size), size=size)  # type: ignore[arg-type, misc, return-value]
        os.utime(tmp_path / "cache" / name, (ord(name), ord(name)))
        assert (tmp_path / "cache" / "a").exists() == (name != "c")
    assert (tmp_path / "cache" / "b").exists()
