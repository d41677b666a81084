"""Every odd image of the collection beside the repository meets what its manifest expects."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.decode import DecodeError, backend_name, check_image, decode_batch, probe

COLLECTION = Path(__file__).parents[3] / "../shared/data/odd_images.tar"
pytestmark = [
    pytest.mark.skipif(not COLLECTION.exists(), reason="needs ../shared/data/odd_images.tar"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Pillow on broken EXIF
]

# What a verdict may be: None stands for "decoded". "damaged" comes with pixels.
PIXELS = {None, "damaged"}
REFUSED = {"not_an_image", "unsupported", "limit", "truncated", "corrupt"}
ALLOWED: dict[str, set[str | None]] = {
    "ok": PIXELS,
    "ok_convert": PIXELS,
    "ok_warn": PIXELS,
    "sniff": {None},
    "reject": REFUSED,
    # What Pillow repairs in silence is seen by the kernel alone.
    "reject_or_warn": REFUSED | ({"damaged"} if backend_name() == "kernel" else PIXELS),
    "reject_limit": REFUSED,
    "limit_policy": {"limit"},
    "policy": REFUSED | PIXELS,
    "no_crash": REFUSED | PIXELS,
}
# Rounding in CMYK. Of 16-bit images the manifest has the means of a conversion that clips instead of scaling.
MEAN_TOLERANCE = 1.5


def collection() -> list[tuple[dict[str, Any], bytes]]:
    with tarfile.open(COLLECTION) as tar:
        contents = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        manifest = contents["manifest.jsonl"]
        assert manifest is not None
        lines = [json.loads(line) for line in manifest.read().decode().splitlines()]
        return [(line, _read(contents[line["path"]])) for line in lines]


def _read(stream: io.BufferedReader | None) -> bytes:
    assert stream is not None
    return stream.read()


def outcome(payload: bytes) -> tuple[str | None, np.ndarray | None]:
    try:
        info = probe(payload)
    except DecodeError as error:
        return error.kind, None
    found = check_image(payload)
    out = np.zeros((1, min(info.height, 128), min(info.width, 128), 3), np.uint8)
    box = np.array([[0, 0, info.width, info.height]])
    (verdict,) = decode_batch([payload], box, np.array([False]), out)
    assert (found and found.kind) == (verdict and verdict.kind)
    return (verdict.kind if verdict else None), (out[0] if verdict is None or verdict.usable else None)


@pytest.mark.slow
def test_every_odd_image_meets_its_expectation() -> None:
    images = collection()
    assert len(images) > 250
    wrong = []
    for line, payload in images:
        kind, pixels = outcome(payload)
        mean = line.get("rgb_mean", {}).get("pillow")
        if kind not in ALLOWED[line["expect"]]:
            wrong.append((line["path"], line["odd"], line["expect"], kind))
        elif line["expect"] in {"ok", "sniff"} and pixels is not None and mean:
            off = np.abs(pixels.mean(axis=(0, 1)) - mean).max()
            if off > MEAN_TOLERANCE and "16-bit" not in line["odd"]:
                wrong.append((line["path"], line["odd"], "mean", off))
    assert not wrong
