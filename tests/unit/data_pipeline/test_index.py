from __future__ import annotations

import gc
import io
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.index import FORMATS, LABEL, SAMPLE, DamagedIndex, Flag, ShardIndex, file_hash, parse_array


def saved(array: NDArray[np.generic], **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def some(dtype: np.dtype, length: int) -> NDArray[np.void]:
    return np.frombuffer(np.random.default_rng(length).bytes(length * dtype.itemsize), dtype)


@pytest.mark.parametrize("length", [0, 1, 1000])
def test_an_index_is_read_as_numpy_reads_it(length: int) -> None:
    samples, labels = ShardIndex(some(SAMPLE, length), some(LABEL, length)).to_bytes()
    assert labels is not None
    for content, dtype in ((samples, SAMPLE), (labels, LABEL)):
        found = parse_array(content, dtype=dtype, origin="here", xxh3=file_hash(content))
        assert found.dtype == dtype and found.tobytes() == np.load(io.BytesIO(content)).tobytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        saved(some(LABEL, 5)),
        saved(some(SAMPLE, 6).reshape(2, 3)),
        saved(some(SAMPLE, 6).reshape(2, 3).T),
        saved(np.array([{}, []], dtype=object), allow_pickle=True),
        saved(some(SAMPLE, 5)).replace(b"NUMPY\x01", b"NUMPY\x02"),
        saved(some(SAMPLE, 5)).replace(b"(5,)", b"(-5,)"),
        saved(some(SAMPLE, 5)).replace(b"(5,)", b"(6,)"),
        saved(some(SAMPLE, 5)).replace(b"(5,),", b"(999999999999999999,),"),
        saved(some(SAMPLE, 5))[:-1],
    ],
)
def test_what_is_no_index_is_refused(content: bytes) -> None:
    with pytest.raises(
        DamagedIndex, match=r"^here: (is not an index of this version|holds fewer than the \d+)"
    ):
        parse_array(content, dtype=SAMPLE, origin="here", xxh3=file_hash(content))


def test_indexes_are_read_by_several_threads_whenever_garbage_is_collected() -> None:
    """numpy's own way ends in a SystemError of CPython's here, as it did in a training now and then."""
    content, before = saved(some(SAMPLE, 10)), gc.get_threshold()

    def let_others_run(*_: object) -> None:
        time.sleep(0)

    gc.callbacks.append(let_others_run)
    gc.set_threshold(20)
    try:
        with ThreadPoolExecutor(8) as pool:
            read = partial(parse_array, content, dtype=SAMPLE, origin="here", xxh3=file_hash(content))
            assert {len(found) for found in pool.map(lambda _: read(), range(160))} == {10}
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(let_others_run)


def test_records_formats_and_flags_are_those_of_the_indexes_that_are_written_already() -> None:
    """They are a file format: a new one needs a new version of the manifest."""
    assert SAMPLE.itemsize == 48 and LABEL.itemsize == 8
    assert [(name, kind) for name, kind, *_ in SAMPLE.descr] == [
        *(("offset", "<u8"), ("checksum", "<u8"), ("bytes", "<u4"), ("image_at", "<u4")),
        *(("image_bytes", "<u4"), ("width", "<u4"), ("height", "<u4"), ("label", "<i4")),
        *(("labels", "<u2"), ("flags", "<u2"), ("orientation", "|u1"), ("format", "|u1")),
        ("reserved", "<u2"),
    ]
    assert FORMATS == ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
    names = [
        "PROGRESSIVE",
        "GRAY",
        "FOUR_CHANNELS",
        "ANIMATED",
        "DEEP",
        "DAMAGED",
        "RENAMED",
        "TILED",
        "CONVERTED",
    ]
    assert {str(flag.name): int(flag) for flag in Flag} == {name: 1 << bit for bit, name in enumerate(names)}
