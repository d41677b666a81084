"""Measures how many images a second this machine's loader delivers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from data_pipeline.augment_config import AugmentConfig
from data_pipeline.config import DataConfig
from data_pipeline.decode import backend_name
from data_pipeline.loader import TrainLoader
from data_pipeline.record import SampleSource

_BATCH = 64


def measure_throughput(
    corpus: SampleSource,
    data: DataConfig,
    augment: AugmentConfig,
    *,
    seconds: float,
    thread_counts: Sequence[int],
) -> list[dict[str, Any]]:
    """Run the training stream with each number of threads for a while, after one batch to warm up."""
    results = []
    for threads in thread_counts:
        loader = TrainLoader([corpus], replace(data, threads=threads), augment, seed=0, global_batch=_BATCH)
        stream = loader.from_sample(0)
        next(stream)
        images, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            images += len(next(stream))
        rate = images / (time.perf_counter() - began)
        stream.close()
        results.append({"threads": threads, "images_per_second": rate, "decoder": backend_name(data.decoder)})
    return results
