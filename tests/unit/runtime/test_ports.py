"""The port on which ranks meet."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from coatnet.runtime import launch


def test_ranks_meet_on_a_port_that_no_connection_is_given_and_nobody_listens_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    port = launch.free_port()
    assert port < given or given <= launch._FIRST_PORT
    monkeypatch.setattr(launch, "_FIRST_PORT", given - 2)  # two to choose from, of which one is taken
    with socket.create_server(("127.0.0.1", given - 2)):
        assert {launch.free_port() for _ in range(20)} == {given - 1}


def test_where_connections_are_given_all_ports_ranks_meet_on_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "range").write_text("1024\t65535\n")
    monkeypatch.setattr(launch, "_GIVEN_PORTS", tmp_path / "range")
    with socket.create_server(("127.0.0.1", launch.free_port())):
        pass
