"""Files of others are read in the memory that they take, not in that which they might."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from coatnet.checkpoint.format import read_json, write_json
from data_pipeline.decode.image_file import read_image_file


@pytest.mark.parametrize("read", [read_json, read_image_file])
def test_a_small_file_takes_little_memory_to_read(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "small"
    write_json(path, {"step": 1})
    tracemalloc.start()
    read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20, "a node whose memory is promised in full, or limited, would have refused it"
