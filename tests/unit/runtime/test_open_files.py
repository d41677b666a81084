"""How many files a rank may open: what the system allows, and not what it begins with."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from coatnet.runtime.ranks import allow_open_files


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_rank_may_open_as_many_files_as_its_node_allows(limits: tuple[int, int]) -> None:
    soft, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    allow_open_files()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


def test_a_limit_that_cannot_be_raised_stays(
    limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1, 1 << 62))
    allow_open_files()
    monkeypatch.undo()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits
