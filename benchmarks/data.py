"""The data pipeline beside its peers, in one run on the same photographs.

    python benchmarks/data.py                 the table; several minutes
    python benchmarks/data.py --quick --json  the keys that matter, within a minute
    python benchmarks/data.py --keep          and write benchmarks/results/data.json

(a) decode + crop + flip, by benchmarks/decode.py. (b) reading hot samples in random order, and seeking.
(c) writing. (d) knowing the first sample after a resume, and reading a manifest. (e) the loader, end to
end; and what normalisation and mixing cost where a CPU does them.
Reading and writing count CPU seconds, per core, whoever else uses the machine; ours verifies a checksum of
every sample on reading, which no peer does, and hashes every byte twice on writing (MosaicML's writer: once).
The peers are those that are installed; benchmarks/data.md says how to have them all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import data_peers
import decode as decode_benchmark
import decode_peers
import numpy as np
import torch
from data_peers import Reader
from in_turn import least_cpu_seconds

from coatnet.runtime.environment import code_commit
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.config import CorpusConfig, DataConfig
from data_pipeline.corpus import Corpus
from data_pipeline.device import augmented
from data_pipeline.loader import TrainLoader
from data_pipeline.manifest import Manifest, ShardEntry, parse_manifest
from data_pipeline.open_corpus import open_train_corpora
from data_pipeline.order import Order
from data_pipeline.shard_files import LocalFiles
from data_pipeline.sharding.direct_file import DirectFile
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.sharder import shard_corpus
from data_pipeline.steps import Steps

RESULTS = Path(__file__).parent / "results" / "data.json"
SHARD_BYTES = 100_000_000
GLOBAL_BATCH = 4096
SAMPLES_PER_SHARD = 9000  # 1 GB shards of 110 KB: what a JFT-like corpus would use
USUAL_SAMPLES_PER_SHARD = 1200  # of `coatnet shard`, 128 MB: the most shards that a manifest may have to name
STREAMING_SAMPLES = 14_000_000  # at 300 million its order takes minutes, and gigabytes


def main() -> None:
    """Run everything and print it."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("--quick", action="store_true", help="fewer images and rounds: within a minute")
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--keep", action="store_true", help=f"write {RESULTS.name}")
    chosen = arguments.parse_args()
    result = measure(quick=chosen.quick)
    if chosen.keep:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    if chosen.json:
        print(json.dumps(result, indent=2))
    else:
        print_table(result)


def measure(*, quick: bool) -> dict[str, Any]:
    """Return all figures; the first six sum it up."""
    images, rounds = (400, 3) if quick else (1000, 5)
    decoding = decode_benchmark.measure(count=40 if quick else 100, rounds=2 if quick else 5)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = _write_images(folder / "images", images, distinct=40 if quick else 200)
        writing = measure_writing(folder / "images", folder, rounds=rounds)
        shards = folder / "shards"
        reading = measure_reading(folder, shards, sorted((folder / "images").rglob("*.jpg")), rounds=rounds)
        loading = measure_loader(shards, seconds=2.0 if quick else 6.0)
    order: dict[str, Any] = {
        f"{samples // 10**6}m": measure_order(samples) for samples in (14_000_000, 300_000_000)
    }
    if not quick and data_peers.versions()["mosaicml-streaming"]:
        order["mosaicml_streaming_14m_seconds"] = round(_timed(_streaming_resume), 2)
    return {
        "decode_vs_pillow": decoding["decode_vs_pillow"],
        "decode_tiled_vs_pillow": decoding["decode_tiled_vs_pillow"],
        "read_gb_per_s": reading["ours_gb_per_s"],
        "write_gb_per_s": writing["ours_gb_per_s"],
        "seek_ms": reading["ours_seek_ms"],
        "order_300m_seconds": order["300m"]["seconds"],
        "decoding": decoding,
        "reading": reading,
        "writing": writing,
        "order": order,
        "manifest": {f"{n // 10**6}m": measure_manifest(n) for n in (14_000_000, 300_000_000)},
        "loading": loading,
        "transforming": measure_transform(rounds=rounds),
        "photographs": source,
        "machine": _machine(),
    }


def measure_writing(images: Path, folder: Path, *, rounds: int) -> dict[str, Any]:
    """Write the same files by the sharder and by webdataset's ShardWriter, in turn; leaves our shards."""
    shards = folder / "shards"
    paths = sorted(images.rglob("*.jpg"))
    total = sum(path.stat().st_size for path in paths) / 1e9
    options = ShardOptions(shard_bytes=SHARD_BYTES, check="header", workers=1)

    def ours() -> None:
        shutil.rmtree(shards, ignore_errors=True)
        shard_corpus(images, shards, options=options, quiet=True)

    def copy() -> None:
        with (folder / "copy").open("wb", buffering=0) as file:
            for path in paths:
                file.write(path.read_bytes())

    def copy_past_cache() -> None:
        with closing(DirectFile(folder / "copy")) as file:
            for path in paths:
                file.append(path.read_bytes())
            file.sync()

    works = {"ours": ours, **data_peers.writers(folder / "peers", paths, shard_bytes=SHARD_BYTES)}
    works |= {"copy": copy, "copy_past_cache": copy_past_cache}
    seconds = least_cpu_seconds(works, rounds=rounds)
    (folder / "copy").unlink()
    shutil.rmtree(folder / "peers", ignore_errors=True)  # none, where no peer is installed
    return {f"{name}_gb_per_s": round(total / best, 3) for name, best in seconds.items()}


def measure_reading(folder: Path, shards: Path, paths: list[Path], *, rounds: int) -> dict[str, Any]:
    """Read all samples once, in random order or, where that is not for a library, in its own; seek one."""
    corpus = Corpus.open(shards)
    places = [(shard, index) for shard, count in enumerate(corpus.counts) for index in range(count)]
    order = np.random.default_rng(0).permutation(len(places)).tolist()
    total = sum(len(corpus.read(*place).payload) for place in places) / 1e9
    readers = {
        "ours": Reader(read=lambda number: corpus.read(*places[number]).payload),
        **data_peers.readers(folder / "peers", shards, corpus, paths),
    }
    seconds = least_cpu_seconds(
        {name: partial(_read_all, reader, order) for name, reader in readers.items()}, rounds=rounds
    )
    last = int(corpus.counts[0]) - 1
    seeks = {name: _seek_seconds(reader, last) for name, reader in readers.items()}
    shutil.rmtree(folder / "peers", ignore_errors=True)  # none, where no peer is installed
    return {
        **{f"{name}_gb_per_s": round(total / best, 2) for name, best in seconds.items()},
        **{f"{name}_seek_ms": round(1000 * value, 4) for name, value in seeks.items()},
    }


def measure_order(samples: int) -> dict[str, Any]:
    """Know a rank's first samples after a resume in the middle of a corpus."""
    counts = np.random.default_rng(0).integers(
        SAMPLES_PER_SHARD // 2, SAMPLES_PER_SHARD * 3 // 2, samples // SAMPLES_PER_SHARD
    )

    def resume() -> None:
        order = Order(counts, seed=1)
        order.locate(Steps(order, GLOBAL_BATCH, 17, 64).positions(samples * 7 // 3))

    seconds = min(_timed(resume) for _ in range(5))
    tracemalloc.start()
    resume()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"seconds": round(seconds, 4), "megabytes": round(peak / 1e6, 2), "shards": len(counts)}


def measure_manifest(samples: int) -> dict[str, Any]:
    """Open a corpus of shards of the usual size by its manifest, as every rank does at a start."""
    count = samples // USUAL_SAMPLES_PER_SHARD
    shards = [
        ShardEntry(f"shard-{n:06d}.tar", USUAL_SAMPLES_PER_SHARD, SHARD_BYTES, f"{n:032x}", f"{n:032x}")
        for n in range(count)
    ]
    content = Manifest([f"class-{n}" for n in range(21_841)], shards).to_json().encode()

    def open_it() -> Corpus:
        return Corpus(parse_manifest(content, origin="manifest.json"), LocalFiles(Path()))

    began = time.process_time()
    open_it()
    seconds = time.process_time() - began
    tracemalloc.start()
    corpus = open_it()
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {
        "seconds": round(seconds, 2),
        "megabytes": round(kept / 1e6, 1),
        "text_megabytes": round(len(content) / 1e6, 1),
        "shards": len(corpus.counts),
    }


def measure_loader(shards: Path, *, seconds: float) -> dict[str, Any]:
    """Run the training stream to batches of 224 px, and time its first batch after a resume."""
    found: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
    for threads in (1, 2):
        data = DataConfig(train=[CorpusConfig(str(shards))], threads=threads)
        began, used = time.perf_counter(), time.process_time()
        loader = TrainLoader(open_train_corpora(data), data, AugmentConfig(), seed=0, global_batch=64)
        with closing(loader.from_sample(12_345 * 64)) as stream:
            next(stream)
            found["first_batch_seconds"] = round(time.perf_counter() - began, 3)
            found["first_batch_cpu_seconds"] = round(time.process_time() - used, 3)
            began, used, images = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - began < seconds:
                images += len(next(stream))
            wall, cpu = time.perf_counter() - began, time.process_time() - used
        found[f"{threads}_threads_images_per_s"] = round(images / wall, 1)
        found[f"{threads}_threads_images_per_cpu_s"] = round(images / cpu, 1)
    return found


def measure_transform(*, rounds: int) -> dict[str, Any]:
    """Transform batches of 224 px on the CPU, where there is no device to do it; µs per image and core."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3), dtype=np.uint8))
    labels, keys = torch.arange(64) % 10, torch.arange(64)
    configs = {
        "normalise": AugmentConfig(),
        "normalise_erasing": AugmentConfig(erasing=0.25),
        "normalise_mixup": AugmentConfig(mixup=0.8),
        "normalise_mixup_cutmix": AugmentConfig(mixup=0.8, cutmix=1.0),
        "normalise_randaugment_2_15": AugmentConfig(randaugment_n=2, randaugment_m=15.0),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    works: dict[str, Callable[[], object]] = {
        name: partial(augmented, images, labels, keys, augment, num_classes=10, group_images=16)
        for name, augment in configs.items()
    }
    seconds = least_cpu_seconds(works, rounds=rounds)
    torch.set_num_threads(threads)
    return {f"{name}_us": round(1e6 * best / len(images), 1) for name, best in seconds.items()}


def print_table(result: dict[str, Any]) -> None:
    """Print all figures beside what is to be reached, the peers below ours."""
    rates, reading, writing = (
        result["decoding"]["images_per_second"],
        result["reading"],
        result["writing"],
    )
    order, loading = result["order"], result["loading"]
    times = {name: round(rate / rates["pillow"], 2) for name, rate in rates.items()}
    rows = [
        ("decode + crop + flip, any JPEG, times Pillow", result["decode_vs_pillow"], "≥ 2.4"),
        ("the same from tiled JPEGs", result["decode_tiled_vs_pillow"], "≥ 3"),
        *((f"    {name}", value, "") for name, value in times.items() if not name.startswith("ours")),
        ("rewriting to tiles, images/s per core", result["decoding"]["tile_images_per_second"], "≥ 200"),
        ("read hot samples, random order, GB/s per core", result["read_gb_per_s"], "≥ 5"),
        *_peers(reading, "_gb_per_s"),
        ("seek to a shard's last sample, ms", result["seek_ms"], "< 0.1"),
        *_peers(reading, "_seek_ms"),
        ("write, GB/s per core", result["write_gb_per_s"], "≥ 1.2"),
        *_peers(writing, "_gb_per_s"),
        ("order known after resume, 14 M samples, s", order["14m"]["seconds"], ""),
        ("    mosaicml_streaming", order.get("mosaicml_streaming_14m_seconds", "–"), ""),
        ("order known after resume, 300 M samples, s", result["order_300m_seconds"], "< 0.1"),
        ("    memory for it, MB", order["300m"]["megabytes"], "< 10"),
        ("manifest read, 300 M samples, CPU s", result["manifest"]["300m"]["seconds"], ""),
        ("    memory for it, MB", result["manifest"]["300m"]["megabytes"], ""),
        ("first batch after resume, warm cache, s", loading["first_batch_seconds"], "< 1"),
        ("    CPU seconds of it", loading["first_batch_cpu_seconds"], ""),
        ("loader, 2 threads, images/s", loading["2_threads_images_per_s"], ""),
        ("    per CPU second", loading["2_threads_images_per_cpu_s"], ""),
        *((f"on a CPU, {name}", value, "") for name, value in result["transforming"].items()),
    ]
    print(f"{result['photographs']}; {result['machine']['processor']}, load {result['machine']['load']}")
    for name, value, wanted in rows:
        print(f"{name:<58} {value!s:>9}  {wanted}")
    absent = [name for name, found in data_peers.versions().items() if found is None]
    print(f"not installed: {', '.join([*absent, *decode_peers.missing()]) or 'none'}")


def _peers(figures: dict[str, Any], suffix: str) -> list[tuple[str, Any, str]]:
    return [
        (f"    {name.removesuffix(suffix)}", value, "")
        for name, value in figures.items()
        if name.endswith(suffix) and not name.startswith("ours")
    ]


def _write_images(folder: Path, count: int, *, distinct: int) -> str:
    payloads, source = decode_benchmark.photographs(distinct)
    for number in range(count):
        path = folder / f"class-{number % 10}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(payloads[number % distinct])
    return f"{distinct} photographs ({source}), {sum(map(len, payloads)) / distinct / 1000:.0f} kB"


def _read_all(reader: Reader, order: list[int]) -> None:
    if reader.walk is not None:
        reader.walk()
        return
    assert reader.read is not None
    for number in order:
        reader.read(number)


def _seek_seconds(reader: Reader, number: int) -> float:
    """Return the median time to the shard's last sample; without random access a walk goes up to it."""
    if reader.read is None:
        assert reader.walk_to is not None
        return statistics.median(_timed(partial(reader.walk_to, number)) for _ in range(3))
    return statistics.median(_timed(partial(reader.read, number)) for _ in range(200))


def _streaming_resume() -> None:
    data_peers.streaming_order(STREAMING_SAMPLES, SAMPLES_PER_SHARD, seen=STREAMING_SAMPLES // 3)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _machine() -> dict[str, Any]:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": names[0].partition(":")[2].strip() if names else platform.machine(),
        "load": round(os.getloadavg()[0], 1),
        "date": date.today().isoformat(),
        "commit": code_commit(),
        "versions": {"python": platform.python_version(), **data_peers.versions()},
    }


if __name__ == "__main__":
    main()
