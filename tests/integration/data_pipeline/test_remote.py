"""Remote corpora against a real server that fails in every way, and against a real S3-compatible one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from functools import lru_cache
from itertools import chain, repeat
from pathlib import Path

import pytest
import xxhash
from far_corpora import FIRST, cache_config, everything
from fault_server import FaultServer, seconds_of
from waiting import PATIENCE_SECONDS, wait_until

from coatnet.config import UserError
from coatnet.runtime.endings import Unreachable
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.config import CacheConfig, CorpusConfig, DataConfig
from data_pipeline.corpus import Corpus
from data_pipeline.loader import TrainLoader
from data_pipeline.open_corpus import open_corpus, open_train_corpora
from data_pipeline.record import BadSampleError
from data_pipeline.remote import address
from data_pipeline.remote.cache import part_path
from data_pipeline.remote.download import Expected, download
from data_pipeline.remote.request import Patience, backoff_seconds

AUGMENT = AugmentConfig(image_size=16)
pytestmark = pytest.mark.usefixtures("short_pauses")


def shards_asked_for(server: FaultServer) -> dict[str, int]:
    """Return how often; the server's threads may be counting just now."""
    return {name: count for name, count in list(server.requests.items()) if name.endswith(".tar")}


def test_a_remote_corpus_reads_as_the_local_one_and_each_file_is_fetched_once(
    server: FaultServer, shards: Path, tmp_path: Path
) -> None:
    corpus = open_corpus(server.url, cache=cache_config(tmp_path))
    assert everything(corpus) == everything(Corpus.open(shards))
    assert everything(open_corpus(server.url, cache=cache_config(tmp_path))) == everything(corpus)
    assert {count for name, count in server.requests.items() if name.endswith(".tar")} == {1}


@pytest.mark.parametrize(
    "faults",
    [
        ["cut"],
        ["cut", "cut", "cut", "cut", "cut"],
        ["stall"],
        ["reset", "reset"],
        ["503", "503"],
        ["416"],
        ["long"],
        ["short"],
        ["flip"],
        ["cut", "changed"],
        ["cut", "503", "cut", "reset", "flip", "cut"],
    ],
    ids="-".join,
)
def test_equal_bytes_arrive_whatever_the_server_does(
    server: FaultServer, shards: Path, tmp_path: Path, faults: list[str]
) -> None:
    server.faults[FIRST] = list(faults)
    stall_seconds = 0.4 if "stall" in faults else PATIENCE_SECONDS
    corpus = open_corpus(server.url, cache=cache_config(tmp_path, attempts=5, stall_seconds=stall_seconds))
    assert [corpus.read(0, i).payload for i in range(10)] == [
        Corpus.open(shards).read(0, i).payload for i in range(10)
    ]
    assert server.faults[FIRST] == []
    if faults[0] == "cut":
        assert server.ranges[FIRST]  # the part that had come was not asked for again


def test_a_resumed_download_asks_only_for_the_rest(server: FaultServer, shards: Path, tmp_path: Path) -> None:
    server.faults[FIRST] = ["cut"]
    open_corpus(server.url, cache=cache_config(tmp_path)).read(0, 0)
    half = (shards / FIRST).stat().st_size // 2
    assert server.ranges[FIRST] == [f"bytes={half}-"]


@pytest.mark.parametrize("too_much", [b"", b"more"])
def test_an_index_that_had_arrived_when_the_process_was_killed_is_had(
    server: FaultServer, shards: Path, tmp_path: Path, too_much: bytes
) -> None:
    """Of an index the manifest tells no size: the server alone knows that nothing is missing."""
    content = (shards / "shard-000000.index.npy").read_bytes()
    target, expected = tmp_path / "index.npy", Expected(xxhash.xxh3_128_hexdigest(content))
    part_path(target).write_bytes(content + too_much)
    download(
        f"{server.url}/shard-000000.index.npy",
        target,
        expected,
        patience=Patience(pause=lambda seconds: None),
    )
    assert target.read_bytes() == content


@pytest.mark.parametrize("fault", ["stall", "drip"])
def test_a_stall_and_a_slow_drip_are_seen_in_time(server: FaultServer, tmp_path: Path, fault: str) -> None:
    server.faults[FIRST] = [fault]
    corpus = open_corpus(server.url, cache=cache_config(tmp_path, stall_seconds=0.5))
    assert seconds_of(lambda: corpus.read(0, 0)) < 5


def test_the_default_patience_sees_a_stall_within_ten_seconds() -> None:
    assert CacheConfig().stall_seconds < 10
    assert Patience().stall_seconds < 10


@pytest.mark.parametrize("fault", ["404", "flip", "short"])
def test_what_never_comes_is_named_and_substituted(server: FaultServer, tmp_path: Path, fault: str) -> None:
    server.faults["shard-000003.tar"] = [fault] * 50
    data = DataConfig(
        train=[CorpusConfig(server.url)], cache=cache_config(tmp_path, attempts=2), bad_sample_budget=0.5
    )
    loader = TrainLoader(open_train_corpora(data), data, AUGMENT, seed=0, global_batch=80)
    with closing(loader.from_sample(0)) as stream:
        batch = next(stream)
    assert len(batch) == 80
    assert len(batch.bad) == 10
    assert all("shard-000003.tar" in bad.name and "shard-000003.tar" in bad.reason for bad in batch.bad)
    assert server.requests["shard-000003.tar"] <= 2  # not once more for each sample


def test_a_missing_manifest_and_other_schemes_are_refused(server: FaultServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere/manifest\.json: the server answers 404"):
        open_corpus(f"{server.url}/nowhere", cache=cache_config(tmp_path))
    for url in ("ftp://host/x", "pipe://cat", "file:///etc", "gopher://x/y"):
        with pytest.raises(UserError, match="allowed: a folder or a URL of http, https, s3"):
            open_corpus(url)


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once_and_ones_own_is_taken(
    shards: Path, tmp_path: Path, own_certificate: tuple[Path, Path]
) -> None:
    pem, certificate = own_certificate
    script = (
        "import sys\n"
        "from data_pipeline.config import CacheConfig\n"
        "from data_pipeline.open_corpus import open_corpus\n"
        "print(open_corpus(sys.argv[1], cache=CacheConfig(directory=sys.argv[2])).samples)\n"
    )
    with FaultServer(shards, certificate=pem) as server:
        with pytest.raises(UserError, match=r"manifest\.json: its certificate is not trusted: self.signed"):
            open_corpus(server.url, cache=cache_config(tmp_path, attempts=1000))
        command = [sys.executable, "-c", script, server.url, str(tmp_path / "cache")]
        trusting = {**os.environ, "SSL_CERT_FILE": str(certificate)}
        assert subprocess.run(command, env=trusting, capture_output=True, text=True).stdout == "80\n"


def test_secrets_in_a_url_stay_out_of_messages(server: FaultServer, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        open_corpus(f"{server.url}/nowhere?token=hush", cache=cache_config(tmp_path))
    assert "hush" not in str(raised.value)
    for url in ("https://me:hush@host/shards", "ftp://me:hush@host/x?key=hush", "http://[hush"):
        with pytest.raises(
            UserError, match=r"host/shards: a name or|ftp://host/x; allowed|Invalid IPv6"
        ) as raised:
            open_corpus(url)
        assert "hush" not in str(raised.value)


@pytest.mark.parametrize("tail", ["continue", "mask"])
def test_the_stream_is_prefetched_in_its_order(server: FaultServer, tmp_path: Path, tail: str) -> None:
    data = DataConfig(
        train=[CorpusConfig(server.url)],
        cache=cache_config(tmp_path, ahead_shards=8),
        window=1,
        lanes=1,
        tail=tail,
    )
    loader = TrainLoader(open_train_corpora(data), data, AUGMENT, seed=0, global_batch=6)
    with closing(loader.from_sample(0)) as stream:
        next(stream)
        wait_until(lambda: len(shards_asked_for(server)) >= 8, what="eight shards")
    assert shards_asked_for(server) == {f"shard-{number:06d}.tar": 1 for number in range(8)}


def test_ranks_of_a_node_share_one_download(server: FaultServer, tmp_path: Path) -> None:
    script = (
        "import sys, json\n"
        "from data_pipeline.config import CacheConfig\n"
        "from data_pipeline.open_corpus import open_corpus\n"
        "corpus = open_corpus(sys.argv[1], cache=CacheConfig(directory=sys.argv[2]))\n"
        "print(sum(len(corpus.read(s, 0).payload) for s in range(8)))\n"
    )
    command = [sys.executable, "-c", script, server.url, str(tmp_path / "cache")]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert len({rank.communicate(timeout=PATIENCE_SECONDS)[0] for rank in ranks}) == 1
    assert {count for name, count in server.requests.items() if name.endswith(".tar")} == {1}


def test_a_download_killed_at_any_moment_is_resumed(
    server: FaultServer, shards: Path, tmp_path: Path
) -> None:
    script = (
        "import sys\n"
        "from data_pipeline.config import CacheConfig\n"
        "from data_pipeline.open_corpus import open_corpus\n"
        "cache = CacheConfig(directory=sys.argv[2], stall_seconds=float(sys.argv[3]))\n"
        "open_corpus(sys.argv[1], cache=cache).read(0, 0)\n"
    )
    server.faults[FIRST] = ["stall"]
    command = [sys.executable, "-c", script, server.url, str(tmp_path / "cache"), str(PATIENCE_SECONDS)]
    process = subprocess.Popen(command)
    half = (shards / FIRST).stat().st_size // 2

    def half_is_there() -> bool:
        parts = list((tmp_path / "cache").rglob("*.tar.*.part"))  # an index comes before it, and goes at once
        return bool(parts) and parts[0].stat().st_size >= half

    wait_until(half_is_there, what="half a shard")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    corpus = open_corpus(server.url, cache=cache_config(tmp_path))
    assert corpus.read(0, 3).payload == Corpus.open(shards).read(0, 3).payload
    assert server.ranges[FIRST] == [f"bytes={half}-"]


def test_a_server_that_ignores_ranges_is_served_from_the_beginning(
    server: FaultServer, tmp_path: Path
) -> None:
    content = (server.folder / FIRST).read_bytes()

    target = tmp_path / "file"
    part_path(target).write_bytes(content[:1000])
    server.faults[FIRST] = ["changed"]
    expected = Expected(xxhash.xxh3_128_hexdigest(content), len(content))
    download(f"{server.url}/{FIRST}", target, expected, patience=Patience(stall_seconds=PATIENCE_SECONDS))
    assert target.read_bytes() == content


def test_pauses_grow_with_jitter_and_end(server: FaultServer, tmp_path: Path) -> None:
    pauses: list[float] = []
    server.faults[FIRST] = ["503"] * 20
    patience = Patience(stall_seconds=PATIENCE_SECONDS, attempts=8, pause=pauses.append)
    with pytest.raises(Unreachable, match=r"answers 503, after 8 attempts without progress"):
        download(f"{server.url}/{FIRST}", tmp_path / "x", Expected("0" * 32, 5), patience=patience)
    assert len(pauses) == 7
    assert pauses[-1] > 5 * pauses[0]
    assert len({backoff_seconds(4) for _ in range(20)}) == 20
    assert all(10 <= backoff_seconds(40) <= 20 for _ in range(20))


def test_what_a_server_asks_for_is_waited_and_more_so_that_ranks_do_not_return_in_step(
    server: FaultServer, tmp_path: Path
) -> None:
    pauses: list[float] = []
    server.faults[FIRST] = ["503 Retry-After: 2"] * 4
    patience = Patience(stall_seconds=PATIENCE_SECONDS, attempts=4, pause=pauses.append)
    with pytest.raises(Unreachable):
        download(f"{server.url}/{FIRST}", tmp_path / "x", Expected("0" * 32, 5), patience=patience)
    assert len(set(pauses)) == len(pauses) == 3 and all(2 < pause < 5 for pause in pauses)


def test_an_s3_corpus_reads_as_the_local_one(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3 = pytest.importorskip("boto3")
    moto_server = pytest.importorskip("moto.server")

    s3 = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    s3.start()
    host, port = s3.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    address._s3_client.cache_clear()
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket="corpus")
        for path in shards.iterdir():
            client.upload_file(str(path), "corpus", f"deep/train set/{path.name}")
        corpus = open_corpus("s3://corpus/deep/train set", cache=cache_config(tmp_path))
        assert everything(corpus) == everything(Corpus.open(shards))
        client.delete_object(Bucket="corpus", Key="deep/train set/shard-000005.tar")
        lossy = open_corpus("s3://corpus/deep/train set", cache=cache_config(tmp_path / "other"))
        with pytest.raises(BadSampleError, match=r"s3://corpus/.*shard-000005\.tar: the server answers 404"):
            lossy.read(5, 0)
        with pytest.raises(UserError, match=r"answers 40[34]"):
            open_corpus("s3://no-such-bucket/x", cache=cache_config(tmp_path, attempts=1))
    finally:
        address._s3_client.cache_clear()
        s3.stop()


@pytest.mark.parametrize("status", [400, 403])
def test_credentials_that_expire_meanwhile_are_read_anew_and_cost_no_sample(
    server: FaultServer, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """As where somebody renews a file of temporary ones every few hours."""
    signed: list[str] = []

    class Client:
        def __init__(self, credentials: str) -> None:
            self.credentials = credentials

        def generate_presigned_url(self, _: str, *, Params: dict[str, str], ExpiresIn: int) -> str:
            signed.append(self.credentials)
            return f"{server.url}/{Params['Key']}"

    clients = map(Client, chain(["old"], repeat("new")))
    monkeypatch.setattr(address, "_s3_client", lru_cache(lambda: next(clients)))
    expired = f"{status} <Error><Code>ExpiredToken</Code></Error>"
    server.faults[FIRST] = ["cut", expired]
    corpus = open_corpus("s3://bucket", cache=cache_config(tmp_path, attempts=3))
    assert everything(corpus) == everything(Corpus.open(shards))
    assert signed == sorted(signed, reverse=True) and {"old", "new"} == {*signed}, "for all that follow"
    assert server.requests[FIRST] == 3 and len(set(server.ranges[FIRST])) == 1, "gone on with"
    server.faults[FIRST] = [expired] * 50
    with pytest.raises(Unreachable, match=rf"answers {status} \(ExpiredToken\), after 3 attempts"):
        open_corpus("s3://bucket", cache=cache_config(tmp_path / "other", attempts=3)).read(0, 0)


def test_the_state_of_a_remote_stream_is_the_local_one(
    server: FaultServer, shards: Path, tmp_path: Path
) -> None:
    remote = DataConfig(train=[CorpusConfig(server.url)], cache=cache_config(tmp_path))
    local = DataConfig(train=[CorpusConfig(str(shards))])
    states = [
        TrainLoader(open_train_corpora(data), data, AUGMENT, seed=1, global_batch=8).state()
        for data in (remote, local)
    ]
    assert json.dumps(states[0]) == json.dumps(states[1])
