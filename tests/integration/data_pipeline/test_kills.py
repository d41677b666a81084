"""kill -9 while writing and while reading: what was complete stays, nothing doubles, nothing is lost."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from data_pipeline.augment_config import AugmentConfig
from data_pipeline.config import CorpusConfig, DataConfig
from data_pipeline.corpus import Corpus
from data_pipeline.loader import TrainLoader
from data_pipeline.open_corpus import open_train_corpora
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.sharder import shard_corpus

KILLS = 4
OPTIONS = ["--shard-samples", "20", "--json"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills") / "images"
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(300):
            pixels = draw.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.jpg")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.mark.slow
def test_sharding_killed_again_and_again_ends_with_the_same_bytes(images: Path, tmp_path: Path) -> None:
    shard_corpus(images, tmp_path / "whole", options=ShardOptions(shard_samples=20), quiet=True)
    target = tmp_path / "killed"
    command = [sys.executable, "-m", "coatnet.cli", "shard", str(images), str(target), *OPTIONS]
    draw = random.Random(0)
    killed = 0
    while killed < KILLS:
        done = len(list(target.glob("*.tar")))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wanted = done + draw.randrange(1, 4)
        while process.poll() is None and len(list(target.glob("*.tar"))) < wanted:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.02)  # a random moment within a shard's work
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:  # it was quicker: from the beginning
            shutil.rmtree(target)
            killed = 0
            continue
        killed += 1
        finished = files(target)
        assert all(
            finished[name] == content
            for name, content in files(tmp_path / "whole").items()
            if name.endswith(".tar") and name in finished
        )
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
    assert files(target) == files(tmp_path / "whole")
    assert not [path.name for path in target.iterdir() if path.name.startswith(".")]
    assert Corpus.open(target).samples == 600


def test_workers_end_with_a_killed_parent(images: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    arguments = ["shard", str(images), str(target), "--shard-samples", "1", "--workers", "2"]
    process = subprocess.Popen([sys.executable, "-m", "coatnet.cli", *arguments], stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(target.glob("*.tar")):
        time.sleep(0.005)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]


READER = """
import hashlib, sys
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.config import CorpusConfig, DataConfig
from data_pipeline.loader import TrainLoader
from data_pipeline.open_corpus import open_train_corpora
data = DataConfig(train=[CorpusConfig(sys.argv[1])], threads=2)
loader = TrainLoader(open_train_corpora(data), data, AugmentConfig(image_size=16), seed=3, global_batch=48)
for step, batch in enumerate(loader.from_sample(int(sys.argv[2])), start=int(sys.argv[2]) // 48):
    print(step, hashlib.md5(batch.images.numpy().tobytes()).hexdigest(), flush=True)
"""


@pytest.mark.slow
def test_reading_killed_at_any_step_goes_on_as_if_nothing_had_been(images: Path, tmp_path: Path) -> None:
    shard_corpus(images, tmp_path / "shards", options=ShardOptions(shard_samples=20), quiet=True)
    data = DataConfig(train=[CorpusConfig(str(tmp_path / "shards"))])
    loader = TrainLoader(
        open_train_corpora(data), data, AugmentConfig(image_size=16), seed=3, global_batch=48
    )
    with closing(loader.from_sample(0)) as stream:
        expected = [hashlib.md5(next(stream).images.numpy().tobytes()).hexdigest() for _ in range(8)]
    seen: list[str] = []
    while len(seen) < 8:
        command = [sys.executable, "-c", READER, str(tmp_path / "shards"), str(48 * len(seen))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(4):
                step, digest = process.stdout.readline().split()
                assert int(step) == len(seen)
                seen.append(digest)
            process.kill()
    assert seen == expected
