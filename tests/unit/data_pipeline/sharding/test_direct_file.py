"""Files written past the page cache: every byte arrives, whatever the parts' sizes and the file system."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.sharding import direct_file
from data_pipeline.sharding.direct_file import DirectFile

PIECE = 8192


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few kilobytes fill several pieces."""
    monkeypatch.setattr(direct_file, "_PIECE_BYTES", PIECE)


def write(path: Path, sizes: list[int]) -> bytes:
    """Write parts of these sizes and return what they are together."""
    whole = np.random.default_rng(sum(sizes)).bytes(sum(sizes))
    with closing(DirectFile(path)) as file:
        for end, size in zip(np.cumsum(sizes).tolist(), sizes, strict=True):
            file.append(whole[end - size : end])
        file.sync()
        assert file.position == len(whole)
    return whole


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.sampled_from([0, 1, 511, 512, 4095, 4096, 4097, 8191, 8192, 8193, 20000]), max_size=9)
)
def test_parts_of_any_size_become_one_file(tmp_path: Path, sizes: list[int]) -> None:
    whole = write(tmp_path / "file", sizes)
    assert (tmp_path / "file").read_bytes() == whole


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.sampled_from([0, 1, 511, 4095, 4096, 8191, 8192, 8193, 20000]), max_size=9))
def test_what_is_filled_in_place_and_what_is_copied_become_one_file(tmp_path: Path, sizes: list[int]) -> None:
    whole = b""
    with closing(DirectFile(tmp_path / "file")) as file:
        for number, size in enumerate(sizes):
            part = bytes([number + 1]) * size
            whole += part
            room = file.room(size + 1)
            if room is None:
                assert size + 1 > PIECE - PIECE % 4096 - 4096, "a piece may keep a broken block at most"
                file.append(part)
            else:
                assert len(room) == size + 1
                room[:size] = part
                room[size:] = b"\xff"  # given back
                file.take(size)
        file.sync()
    assert (tmp_path / "file").read_bytes() == whole


@pytest.mark.parametrize("refusing", ["open", "write"])
def test_a_file_system_that_knows_no_other_way_is_written_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    direct = [0]

    def refuses(real: Callable[..., int]) -> Callable[..., int]:
        def call(what: str | int, *arguments: object) -> int:
            flags = (
                arguments[0]
                if refusing == "open"
                else direct_file.fcntl.fcntl(what, direct_file.fcntl.F_GETFL)
            )
            if isinstance(flags, int) and flags & direct_file._DIRECT:
                direct[0] += 1
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return real(what, *arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(direct_file.os, refusing, refuses(getattr(os, refusing)))
        whole = write(tmp_path / "file", [5000] * 9)
    assert (tmp_path / "file").read_bytes() == whole
    assert direct[0] == (1 if direct_file._DIRECT else 0)


def test_a_disk_that_takes_less_than_asked_gets_the_rest_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(direct_file.os, "write", lambda descriptor, piece: real(descriptor, piece[:1000]))
        whole = write(tmp_path / "file", [5000] * 5)
    assert (tmp_path / "file").read_bytes() == whole


def test_a_file_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere/file"):
        DirectFile(tmp_path / "nowhere" / "file")


def test_a_closed_file_holds_no_descriptor(tmp_path: Path) -> None:
    held = len(os.listdir("/proc/self/fd"))
    write(tmp_path / "file", [5000] * 9)
    assert len(os.listdir("/proc/self/fd")) == held
