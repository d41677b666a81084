"""A small corpus, and a server of it that can do everything wrong."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fault_server import FaultServer
from PIL import Image

from data_pipeline.remote import request
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.sharder import shard_corpus


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight shards of ten images of about 20 kB."""
    root = tmp_path_factory.mktemp("remote")
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / "images" / name).mkdir(parents=True)
        for number in range(40):
            pixels = draw.integers(0, 255, (100, 120, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / name / f"{number}.jpg", quality=90)
    shard_corpus(root / "images", root / "shards", options=ShardOptions(shard_samples=10), quiet=True)
    return root / "shards"


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let who asks again do so soon."""
    monkeypatch.setattr(request, "_FIRST_BACKOFF_SECONDS", 0.01)


@pytest.fixture
def own_certificate(tmp_path: Path) -> tuple[Path, Path]:
    """Return files of a key with its certificate, for a server, and of the certificate, for who trusts it."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    pem, certificate = tmp_path / "both.pem", tmp_path / "certificate.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-days", "2"]
    words += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(pem), "-out", str(certificate)]
    subprocess.run(["openssl", *words], check=True, capture_output=True)
    pem.write_text(pem.read_text() + certificate.read_text())
    return pem, certificate


@pytest.fixture
def server(shards: Path) -> Iterator[FaultServer]:
    with FaultServer(shards) as running:
        yield running
