"""What a long run must not do: eat memory, descriptors or /dev/shm."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from PIL import Image

from data_pipeline.augment_config import AugmentConfig
from data_pipeline.config import CorpusConfig, DataConfig
from data_pipeline.loader import TrainLoader
from data_pipeline.open_corpus import open_train_corpora
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.sharder import shard_corpus

BATCHES, WARM = 10_000, 1_000
ALLOWED_BYTES = 4_000_000  # a leak of one image of 8 pixels per batch would be 2 MB, of a record 10 MB


@pytest.mark.campaign
def test_ten_thousand_batches_leave_memory_descriptors_and_shared_memory_as_they_were(tmp_path: Path) -> None:
    for number in range(30):
        path = tmp_path / "images" / f"class-{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 30), 50 + number).convert("RGB").save(path)
    shard_corpus(tmp_path / "images", tmp_path / "shards", options=ShardOptions(shard_samples=3), quiet=True)
    data = DataConfig(train=[CorpusConfig(str(tmp_path / "shards"))], threads=2)
    loader = TrainLoader(open_train_corpora(data), data, AugmentConfig(image_size=8), seed=0, global_batch=4)
    process = psutil.Process()
    with closing(loader.from_sample(0)) as stream:
        for _ in range(WARM):
            next(stream)
        memory, descriptors = process.memory_info().rss, process.num_fds()
        shared, threads = set(os.listdir("/dev/shm")), threading.active_count()
        for _ in range(BATCHES):
            next(stream)
        own = {name for name in set(os.listdir("/dev/shm")) - shared if _is_open(process, name)}
        assert process.memory_info().rss - memory < ALLOWED_BYTES
        assert process.num_fds() == descriptors
        assert threading.active_count() == threads
        assert not own


def _is_open(process: psutil.Process, name: str) -> bool:
    """Say whether this process maps a file of /dev/shm; others come and go there."""
    return any(name in mapped.path for mapped in process.memory_maps())
