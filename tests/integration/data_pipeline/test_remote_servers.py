"""What servers, proxies and stores do that is neither an answer nor a mistake, and what becomes of it."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xxhash
from fault_server import FaultServer
from waiting import PATIENCE_SECONDS, wait_until

from coatnet.config import UserError
from coatnet.runtime.endings import Unreachable, endings_in_a_line
from data_pipeline.index import SAMPLE, ShardIndex, file_hash
from data_pipeline.manifest import Manifest, ShardEntry
from data_pipeline.record import BadSampleError
from data_pipeline.remote import address, remote_files
from data_pipeline.remote import cache as remote_cache
from data_pipeline.remote.cache import Cache, part_path
from data_pipeline.remote.download import Expected, download, fetch_bytes
from data_pipeline.remote.remote_files import RemoteFiles
from data_pipeline.remote.request import DownloadError, Patience

NAME = "shard-000000.tar"
CONTENT = bytes(range(256)) * 400
EXPECTED = Expected(xxhash.xxh3_128_hexdigest(CONTENT), len(CONTENT))
INDEX = ShardIndex(np.zeros(1, SAMPLE)).to_bytes()[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("served")
    (made / NAME).write_bytes(CONTENT)
    (made / "shard-000000.index.npy").write_bytes(INDEX)
    return made


@pytest.fixture
def server(folder: Path) -> Iterator[FaultServer]:
    with FaultServer(folder) as running:
        yield running


def fetch(url: str, target: Path, *, expected: Expected = EXPECTED, attempts: int = 3) -> list[float]:
    """Fetch, and return the pauses."""
    pauses: list[float] = []
    patience = Patience(stall_seconds=PATIENCE_SECONDS, attempts=attempts, pause=pauses.append)
    download(url, target, expected, patience=patience)
    assert target.read_bytes() == CONTENT
    assert not list(target.parent.glob(f"{target.name}.*")), "what it was made of is gone"
    return pauses


def files_of(server: FaultServer, folder: Path, **patience: object) -> RemoteFiles:
    """Return the files of a corpus of one shard, in a cache."""
    shard = ShardEntry(NAME, 1, len(CONTENT), EXPECTED.xxh3, file_hash(INDEX))
    cache = Cache(folder, limit_bytes=1 << 30)
    waits = {"stall_seconds": PATIENCE_SECONDS, "attempts": 3, "pause": lambda _: None, **patience}
    return RemoteFiles(server.url, Manifest(["a"], [shard]), cache, patience=Patience(**waits))  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_host_is_followed_also_in_the_middle_of_a_file(
    server: FaultServer, folder: Path, tmp_path: Path, status: int
) -> None:
    part_path(tmp_path / NAME).write_bytes(CONTENT[:1000])
    with FaultServer(folder) as other:
        place = other.url.replace("127.0.0.1", "localhost")
        server.faults[NAME] = [f"{status} Location: {place}/{NAME}?signature=hush"]
        fetch(f"{server.url}/{NAME}", tmp_path / NAME)
        assert other.ranges[NAME] == server.ranges[NAME] == ["bytes=1000-"]


def test_three_redirects_in_a_row_are_followed_and_no_more(server: FaultServer, tmp_path: Path) -> None:
    further = f"302 Location: {server.url}/{NAME}"
    server.faults[NAME] = [further] * 3
    assert not fetch(f"{server.url}/{NAME}", tmp_path / NAME)
    server.faults[NAME] = [further] * 4
    assert len(fetch(f"{server.url}/{NAME}", tmp_path / "again")) == 1


@pytest.mark.parametrize("place", ["SELF", "file:///etc/passwd", "ftp://127.0.0.1/x", "http://[::1/x"])
def test_a_redirect_in_a_circle_or_to_what_nobody_can_ask_ends(
    server: FaultServer, tmp_path: Path, place: str
) -> None:
    server.faults[NAME] = [f"302 Location: {place.replace('SELF', f'{server.url}/{NAME}?key=hush')}"] * 50
    with pytest.raises(Unreachable, match=r"no answer: [\w ]+, after 3 attempts") as raised:
        fetch(f"{server.url}/{NAME}?key=hush", tmp_path / NAME)
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize("expected", [EXPECTED, Expected(EXPECTED.xxh3)], ids=["size", "no size"])
@pytest.mark.parametrize("before", [0, 1000])
def test_what_a_server_compresses_unasked_arrives(
    server: FaultServer, tmp_path: Path, expected: Expected, before: int
) -> None:
    part_path(tmp_path / NAME).write_bytes(CONTENT[:before])
    server.faults[NAME] = ["gzip"] * 9
    fetch(f"{server.url}/{NAME}", tmp_path / NAME, expected=expected)


@pytest.mark.parametrize("expected", [EXPECTED, Expected(EXPECTED.xxh3)], ids=["size", "no size"])
@pytest.mark.parametrize("fault", ["piece", "whole piece"])
def test_a_server_that_sends_a_part_though_all_was_asked_for_is_asked_for_the_rest(
    server: FaultServer, tmp_path: Path, expected: Expected, fault: str
) -> None:
    server.faults[NAME] = [fault]
    fetch(f"{server.url}/{NAME}", tmp_path / NAME, expected=expected)
    assert server.ranges.get(NAME, []) == ([f"bytes={len(CONTENT) // 2}-"] if fault == "piece" else [])


def test_a_part_of_no_told_place_is_named_and_no_fault_of_the_cache(
    server: FaultServer, tmp_path: Path
) -> None:
    server.faults[NAME] = ["206"] * 9
    with pytest.raises(Unreachable, match=rf"{server.url}/{NAME}: asked for bytes from 0 on, got no range"):
        fetch(f"{server.url}/{NAME}", tmp_path / NAME)
    server.faults[NAME] = ["206 Content-Range: \x1b[2J/5"] * 9
    with pytest.raises(Unreachable, match=r"asked for bytes from 0 on, got \\x1b\[2J, after"):
        fetch(f"{server.url}/{NAME}", tmp_path / NAME)


def test_of_a_manifest_that_comes_in_part_nothing_is_believed(server: FaultServer) -> None:
    url, patience = f"{server.url}/{NAME}", Patience(attempts=9, pause=lambda _: None)
    server.faults[NAME] = ["piece", "whole piece"]
    assert fetch_bytes(url, limit=len(CONTENT), patience=patience) == CONTENT
    server.faults[NAME] = ["piece"] * 9
    with pytest.raises(
        DownloadError, match=rf"{url}: the server sends {len(CONTENT) // 2} of {len(CONTENT)} bytes"
    ):
        fetch_bytes(url, limit=len(CONTENT), patience=patience)


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 512])
def test_a_file_that_is_replaced_in_the_middle_of_its_transfer_is_refused(tmp_path: Path, size: int) -> None:
    """Also where both have the same ETag, so that the server goes on with the second one's rest."""
    served = tmp_path / "served"
    served.mkdir()
    (served / NAME).write_bytes(CONTENT)

    def replace(_: float) -> None:
        (served / NAME).write_bytes(bytes(size))

    with FaultServer(served) as server:
        server.faults[NAME] = ["cut"]
        files = files_of(server, tmp_path / "cache", pause=replace)
        with pytest.raises(BadSampleError, match=r"tar: (its content is not|the server has \d+ bytes, the)"):
            files.path(NAME)
    assert not list((tmp_path / "cache").rglob(f"*{NAME}"))


def test_a_file_that_is_replaced_by_the_right_one_meanwhile_is_fetched_from_its_beginning(
    tmp_path: Path,
) -> None:
    (tmp_path / NAME).write_bytes(bytes(len(CONTENT) + 512))
    patience = Patience(attempts=2, pause=lambda _: (tmp_path / NAME).write_bytes(CONTENT) and None)
    with FaultServer(tmp_path) as server:
        server.faults[NAME] = ["cut"]
        download(f"{server.url}/{NAME}", tmp_path / "got", Expected(EXPECTED.xxh3), patience=patience)
        assert server.requests[NAME] == 2, "nothing was put together of two files"
    assert (tmp_path / "got").read_bytes() == CONTENT


@pytest.mark.parametrize("etag", ['"{}"', 'W/"{}"'])
def test_what_had_come_is_kept_whatever_a_server_promises_of_its_bytes(
    server: FaultServer, tmp_path: Path, etag: str
) -> None:
    server.etag, server.faults[NAME] = etag, ["cut"] * 4
    assert len(fetch(f"{server.url}/{NAME}", tmp_path / NAME, attempts=2)) == 4


@pytest.mark.parametrize(
    ("number", "kept"), [(errno.ENOSPC, False), (errno.EDQUOT, False), (errno.EIO, True)]
)
def test_what_fits_no_more_gives_its_room_back_and_what_fails_otherwise_is_gone_on_with(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kept: bool
) -> None:
    def fail_in_the_middle(*_: object) -> Iterator[bytes]:
        yield CONTENT[:1000]
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr("data_pipeline.remote.download.chunks", fail_in_the_middle)
        with pytest.raises(OSError, match=os.strerror(number)):
            fetch(f"{server.url}/{NAME}", tmp_path / NAME)
    assert part_path(tmp_path / NAME).exists() == kept
    fetch(f"{server.url}/{NAME}", tmp_path / NAME)
    assert server.ranges.get(NAME, []) == ["bytes=1000-"] * kept


def test_an_answer_without_an_end_does_not_fill_the_disk(server: FaultServer, tmp_path: Path) -> None:
    server.faults[NAME] = ["endless"] * 9
    with pytest.raises(DownloadError, match="tar: longer than 200000 bytes"):
        fetch_bytes(f"{server.url}/{NAME}", limit=200_000, patience=Patience(attempts=1))
    with pytest.raises(DownloadError, match=f"the server sends more than {len(CONTENT)} bytes"):
        fetch(f"{server.url}/{NAME}", tmp_path / NAME)
    assert not part_path(tmp_path / NAME).exists()


@pytest.mark.parametrize("status", ["429", "503"])
def test_a_store_may_say_by_a_date_when_to_come_again_and_nonsense_is_no_date(
    server: FaultServer, tmp_path: Path, status: str
) -> None:
    asked = formatdate(time.time() + 3600, usegmt=True), "\xb2", "soon", "9" * 5000, "-5"
    server.faults[NAME] = [f"{status} Retry-After: {after}" for after in asked] + [status]
    pauses = fetch(f"{server.url}/{NAME}", tmp_path / NAME, attempts=9)
    assert [pause > 20 for pause in pauses] == [True, False, False, False, False, False]


def test_a_file_that_is_another_one_time_and_again_is_given_up_though_bytes_keep_coming(
    server: FaultServer, tmp_path: Path
) -> None:
    server.faults[NAME] = ["cut", "flip"] * 50
    with pytest.raises(DownloadError, match="its content is not what the manifest says"):
        fetch(f"{server.url}/{NAME}", tmp_path / NAME)
    assert server.requests[NAME] == 8


@pytest.mark.parametrize("status", [401, 403])
def test_the_word_of_a_store_for_its_refusal_is_passed_on(
    server: FaultServer, tmp_path: Path, status: int
) -> None:
    server.faults[NAME] = [f"{status} <Error><Code>RequestTimeTooSkewed</Code></Error>"] * 50
    with pytest.raises(DownloadError, match=rf"the server answers {status} \(RequestTimeTooSkewed\)$"):
        fetch(f"{server.url}/{NAME}", tmp_path / NAME, attempts=40)
    assert server.requests[NAME] == 4, "no nine minutes for credentials that are wrong"


def test_the_proxy_of_the_environment_is_asked_but_for_hosts_that_need_none(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url.replace("//", "//me:hush@"))
    fetch(f"http://nowhere.invalid/{NAME}", tmp_path / NAME)
    assert server.requests[NAME] == 1
    monkeypatch.setenv("http_proxy", "127.0.0.1:9")
    for direct in ("127.0.0.1", "x.org, 127.0.0.0/8", server.url.removeprefix("http://")):
        monkeypatch.setenv("no_proxy", direct)
        fetch(f"{server.url}/{NAME}", tmp_path / "direct")
    monkeypatch.setenv("no_proxy", "10.0.0.0/8,::1,x.org")
    with pytest.raises(Unreachable, match="no answer: ProxyError"):
        fetch(f"{server.url}/{NAME}", tmp_path / "neither")


def test_a_server_that_is_away_is_no_fault_of_a_sample_and_the_run_may_start_again(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server.faults[NAME] = ["503"] * 2 + ["reset"] * 50
    files = files_of(server, tmp_path)
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    with endings_in_a_line():
        files.path(NAME)
    assert left == [1]
    assert f"error: {server.url}/{NAME}: no answer: " in capfd.readouterr().err
    server.faults[NAME] = ["404"]
    with pytest.raises(BadSampleError, match="the server answers 404"):
        files_of(server, tmp_path).path(NAME)


def test_a_file_that_was_missing_is_asked_for_again_after_a_minute(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(remote_files, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    server.faults[NAME] = ["404"]
    files = files_of(server, tmp_path)
    for seconds in (0.0, 59.0):
        clock[0] += seconds
        with pytest.raises(BadSampleError, match="the server answers 404"):
            files.path(NAME)
    assert server.requests[NAME] == 1
    clock[0] += 2.0
    assert files.path(NAME).read_bytes() == CONTENT


def test_a_store_that_is_asked_ahead_survives_what_one_request_meets(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_pipeline.remote.remote_files._FETCHERS", 1)
    server.faults["shard-000000.index.npy"] = ["503"] * 3
    files = files_of(server, tmp_path)
    files.prepare(["shard-000000.index.npy", NAME])
    wait_until(lambda: list(tmp_path.rglob(NAME)), what=NAME)
    assert server.requests == {"shard-000000.index.npy": 3, NAME: 1}


def test_credentials_that_cannot_be_had_just_now_are_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: FaultServer
) -> None:
    exceptions = pytest.importorskip("botocore.exceptions")
    answers = [exceptions.CredentialRetrievalError(provider="p", error_msg="hush"), f"{server.url}/{NAME}"]

    def sign(*_: object, **__: object) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(address, "_s3_client", lambda: SimpleNamespace(generate_presigned_url=sign))
    assert len(fetch("s3://bucket/x", tmp_path / NAME)) == 1
    answers[:] = [exceptions.CredentialRetrievalError(provider="p", error_msg="hush")] * 3
    with pytest.raises(Unreachable, match=r"could not be signed: CredentialRetrievalError, after 3"):
        fetch("s3://bucket/x", tmp_path / "other")


@pytest.mark.parametrize(
    ("variable", "value", "url", "message"),
    [
        ("AWS_PROFILE", "nobody", "s3://bucket/x", r"cannot be signed: The config profile \(nobody\)"),
        ("AWS_ENDPOINT_URL", "nonsense", "s3://bucket/x", "cannot be signed: Invalid endpoint: nonsense"),
        ("AWS_EC2_METADATA_DISABLED", "true", "s3://no bucket/x", "'no bucket' is not the name of a bucket"),
    ],
)
def test_a_mistake_in_the_configuration_of_s3_is_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, url: str, message: str
) -> None:
    pytest.importorskip("boto3")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv(variable, value)
    address._s3_client.cache_clear()
    try:
        with pytest.raises(UserError, match=message):
            address.to_http(url)
    finally:
        address._s3_client.cache_clear()


def test_a_cache_that_is_cleared_away_in_the_middle_of_a_file_costs_no_sample(
    server: FaultServer, tmp_path: Path
) -> None:
    server.faults[NAME] = ["cut", "cut"]
    cleared = []

    def clear(_: float) -> None:
        if len(cleared) < 2:
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        cleared.append(_)

    assert files_of(server, tmp_path / "cache", pause=clear).path(NAME).read_bytes() == CONTENT


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EROFS, errno.EACCES])
def test_a_cache_that_keeps_failing_stops_the_run_and_blames_no_sample(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:  # as a file system without locks does
        raise OSError(number, os.strerror(number))

    pauses: list[float] = []
    monkeypatch.setattr(remote_cache.fcntl, "flock", fail)
    with pytest.raises(UserError, match=rf"data\.cache\.directory, {tmp_path}: {os.strerror(number)}; give"):
        files_of(server, tmp_path, pause=pauses.append).path(NAME)
    assert len(pauses) == 7, "for three quarters of a minute"


def test_two_nodes_may_share_a_cache_where_neither_sees_the_other_s_locks(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_cache.fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename=threading.current_thread().name))
    arrived, both = [], threading.Barrier(2, timeout=PATIENCE_SECONDS)

    def read(files: RemoteFiles) -> None:
        both.wait()
        arrived.append(files.path(NAME).read_bytes())

    for _ in range(5):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        nodes = [
            threading.Thread(target=read, args=[files_of(server, tmp_path / "cache")], name=f"node-{number}")
            for number in (1, 2)
        ]
        for node in nodes:
            node.start()
        for node in nodes:
            node.join()
    assert arrived == [CONTENT] * 10


def test_all_who_wait_for_a_file_of_a_server_that_is_away_end_with_the_first_and_say_what_for(
    server: FaultServer, tmp_path: Path
) -> None:
    server.faults[NAME] = ["503"] * 99
    said: list[str] = []
    files = files_of(server, tmp_path / "cache", pause=lambda _: said.append(files.fetching))
    with ThreadPoolExecutor(4) as readers:
        endings = [reader.exception() for reader in [readers.submit(files.path, NAME) for _ in range(4)]]
    assert [type(ending) for ending in endings] == [Unreachable] * 4
    assert len({str(ending) for ending in endings}) == 1 and server.requests[NAME] == 3
    assert said == [f"{server.url}/{NAME}: the server answers 503"] * 2 and files.fetching == ""
