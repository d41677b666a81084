"""The copy of the code that a job's ranks are started with."""

from __future__ import annotations

from importlib.util import cache_from_source
from pathlib import Path

import pytest

from cluster import snapshot
from cluster.snapshot import snapshot_code


def test_the_copy_is_compiled_so_that_no_rank_has_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "PACKAGES", ("coatnet.doctor",))
    snapshot_code(tmp_path / "code-1")
    sources = list((tmp_path / "code-1").rglob("*.py"))
    assert sources and [path.name for path in tmp_path.iterdir()] == ["code-1"]
    for source in sources:
        compiled, found = Path(cache_from_source(str(source))).read_bytes(), source.stat()
        valid_for = [int.from_bytes(compiled[at : at + 4], "little") for at in (8, 12)]
        assert valid_for == [int(found.st_mtime), found.st_size], "else it is compiled anew"
