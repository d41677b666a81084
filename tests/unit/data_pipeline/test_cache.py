"""The cache of remote shards on a disk that is full, or nearly."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from data_pipeline.remote import cache as remote_cache
from data_pipeline.remote.cache import Cache, part_path


def fetch(cache: Cache, name: str, *, size: int = 1000) -> None:
    def write(path: Path) -> None:
        path.write_bytes(b"x" * size)

    cache.get(name, write, size=size)


def test_the_disk_has_room_for_what_others_are_fetching_and_what_a_killed_process_left_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Cache(tmp_path / "cache", limit_bytes=1 << 20)
    for name in ("old", "new"):
        fetch(kept, name)
    os.utime(tmp_path / "cache" / "old", (1, 1))
    here, fetched = tmp_path / "cache", part_path(tmp_path / "cache" / "fetched")
    for half, seconds in ((fetched, time.time()), (here / "left.part", 1.0)):
        (here / f".{half.name.partition('.')[0]}.lock").touch()
        half.write_bytes(b"half")
        os.utime(half, (seconds, seconds))
    monkeypatch.setattr(remote_cache, "_free_bytes", lambda _: 2000 if (here / "old").exists() else 3000)
    fetch(kept, "next", size=1200)
    assert {path.name for path in here.iterdir() if path.name[0] != "."} == {"new", "next", fetched.name}
    kept.get("fetched", fetched.rename, size=3004)  # type: ignore[arg-type]  # 3000 are free, 4 are there
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
        fetch(cache, f"{number}")
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
    fetch(cache, "idle", size=1)
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
        fetch(cache, name, size=size)
        os.utime(tmp_path / "cache" / name, (ord(name), ord(name)))
        assert (tmp_path / "cache" / "a").exists() == (name != "c")
    assert (tmp_path / "cache" / "b").exists()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Each look through a folder, which takes long where it is large."""
    found: list[Path] = []
    real = os.walk

    def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        found.append(folder)
        return real(folder)

    monkeypatch.setattr(remote_cache.os, "walk", walk)
    return found


def held_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name[0] != ".")


def test_those_who_share_a_cache_look_through_it_once_and_keep_its_limit_together(
    tmp_path: Path, looks: list[Path]
) -> None:
    one, other = (Cache(tmp_path / "cache", limit_bytes=20_000) for _ in range(2))
    for number in range(10):
        fetch(one, f"a{number}")
        fetch(other, f"b{number}")
    assert len(looks) == 1 and held_bytes(tmp_path / "cache") == 20_000
    fetch(other, "c")
    assert len(looks) == 2 and held_bytes(tmp_path / "cache") == 19_000, "a little more room than for one"


def test_a_second_fetch_at_the_same_moment_looks_through_nothing(
    tmp_path: Path, looks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_cache.time, "time", lambda: 1_800_000_000.0006)  # not to be rounded up
    cache = Cache(tmp_path / "cache", limit_bytes=10_000)
    for name in ("a", "b"):
        fetch(cache, name)
    assert len(looks) == 1


def test_a_full_cache_is_not_looked_through_for_each_file(tmp_path: Path, looks: list[Path]) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=100_000)
    for number in range(200):
        fetch(cache, f"{number}")
        assert held_bytes(tmp_path / "cache") <= 100_000
    assert held_bytes(tmp_path / "cache") > 96_000 and len(looks) < 1 + 100 / 3


@pytest.mark.parametrize("seconds", [61.0, -5.0])
def test_what_others_fetched_into_a_cache_is_found_within_a_minute_or_where_the_clock_was_set_back(
    tmp_path: Path, looks: list[Path], monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    cache, now = Cache(tmp_path / "cache", limit_bytes=10_000), time.time()
    monkeypatch.setattr(remote_cache.time, "time", lambda: now)
    fetch(cache, "a")
    for name, size in (
        ("of others", 9_000),
        (".of others.lock", 0),
    ):  # where nobody sees the ledger of another
        (tmp_path / "cache" / name).write_bytes(bytes(size))
    now += 59.0
    fetch(cache, "b")
    assert len(looks) == 1 and held_bytes(tmp_path / "cache") == 11_000
    now += seconds - 59.0
    fetch(cache, "c")
    assert len(looks) == 2 and held_bytes(tmp_path / "cache") <= 10_000


@pytest.mark.parametrize("text", [b"", b"nonsense", b"nan 5", b"1 2 3", b"9e99 0"])
def test_a_ledger_that_says_nothing_is_written_anew(tmp_path: Path, looks: list[Path], text: bytes) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=10_000)
    for name, times in (("a", 1), ("b", 2), ("c", 2)):
        if name == "b":
            (tmp_path / "cache" / ".cache.lock").write_bytes(text)
        fetch(cache, name)
        assert len(looks) == times


def test_where_a_disk_has_no_room_for_a_ledger_the_cache_is_looked_through_each_time(
    tmp_path: Path, looks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_cache.os, "pwrite", Mock(side_effect=OSError(errno.ENOSPC, "")))
    cache = Cache(tmp_path / "cache", limit_bytes=2000)
    for name in "abc":
        fetch(cache, name)
    assert len(looks) == 3 and held_bytes(tmp_path / "cache") <= 2000


def test_files_that_others_remove_meanwhile_are_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, real = Cache(tmp_path / "cache", limit_bytes=2100), os.walk
    for name in "ab":
        fetch(cache, name)
        os.utime(tmp_path / "cache" / name, (ord(name), ord(name)))

    def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for place, folders, names in real(folder):
            yield place, folders, ["gone before it is looked at", *names]
        (tmp_path / "cache" / "a").unlink()

    monkeypatch.setattr(remote_cache.os, "walk", walk)
    fetch(cache, "c")
    assert held_bytes(tmp_path / "cache") == 2000


def test_half_of_a_disk_is_the_limit_where_none_is_given(tmp_path: Path) -> None:
    assert Cache(tmp_path, limit_bytes=None).limit_bytes == shutil.disk_usage(tmp_path).total // 2


def test_files_that_the_cache_has_not_fetched_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    """As where `data.cache.directory` is a folder that one has other things in, too."""
    cache = Cache(tmp_path, limit_bytes=10_000)
    mine = [tmp_path / "cache.tar", tmp_path / "a-1.txt", tmp_path / "thesis" / "left.part"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(9_000))
        os.utime(path, (1, 1))
    for name in "abc":
        fetch(cache, f"digest/{name}", size=4_000)
    assert all(path.exists() for path in mine)
    assert sorted(path.name for path in (tmp_path / "digest").glob("[a-z]")) == ["b", "c"]
