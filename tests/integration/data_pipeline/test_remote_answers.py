"""An answer that never ends to begin is given up as one that never comes: bytes alone are no progress."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_server import FaultServer
from waiting import PATIENCE_SECONDS

from coatnet.runtime.endings import Unreachable
from data_pipeline.remote import request
from data_pipeline.remote.download import fetch_bytes
from data_pipeline.remote.request import Patience

NAME, CONTENT = "manifest.json", b"some bytes" * 1000
STALL_SECONDS = 0.5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / NAME).write_bytes(CONTENT)
    return tmp_path


def fetch(server: FaultServer, faults: list[str]) -> tuple[bytes, list[float]]:
    """Return what comes, and the pauses before it did."""
    pauses: list[float] = []
    server.faults[NAME] = faults
    patience = Patience(stall_seconds=STALL_SECONDS, attempts=2, pause=pauses.append)
    return fetch_bytes(f"{server.url}/{NAME}", limit=len(CONTENT), patience=patience), pauses


@pytest.mark.parametrize("fault", ["slow head", "slow chunk"])
def test_a_header_that_comes_byte_by_byte_is_given_up_after_the_time_of_a_stall(
    folder: Path, fault: str
) -> None:
    with FaultServer(folder) as server:
        content, pauses = fetch(server, [fault])
    assert content == CONTENT
    assert len(pauses) == 1, "the first answer was given up"


def test_the_same_holds_by_tls(
    folder: Path, own_certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pem, certificate = own_certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    request._pool.cache_clear()  # certificates are read with its first connection
    with FaultServer(folder, certificate=pem) as server:
        content, pauses = fetch(server, ["slow head"])
    assert content == CONTENT and len(pauses) == 1


def test_a_proxy_that_drips_its_consent_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "_CONNECT_SECONDS", STALL_SECONDS)
    with FaultServer(folder) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        proxy.faults["443"] = ["slow head"] * 2  # what is asked for, nowhere.invalid:443, is no path
        patience = Patience(stall_seconds=PATIENCE_SECONDS, attempts=2, pause=lambda _: None)
        with pytest.raises(Unreachable, match="no answer: "):
            fetch_bytes("https://nowhere.invalid/x", limit=1, patience=patience)
        assert not proxy.faults["443"]
