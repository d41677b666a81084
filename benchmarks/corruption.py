"""Damage shards at random and count what is accepted without a word.

    python benchmarks/corruption.py --trials 30000

Each trial flips a bit (in a tar header, in a payload, or anywhere), cuts the shard, replaces it by another or
removes it; then every sample is read. "accepted" counts the trials in which the reader handed on content that
was never written, or nothing was noticed. The webdataset library reads some of the same files; a replaced
shard is a valid one to it, since it knows no manifest.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from data_pipeline.corpus import Corpus
from data_pipeline.record import BadSampleError
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.sharder import shard_corpus
from data_pipeline.tools.verify import verify_shards

KINDS = ("header bit", "payload bit", "any bit", "cut", "replaced", "vanished")
PEER_EVERY = 50


def main() -> None:
    """Run the campaign and print the counts."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("--trials", type=int, default=30_000)
    arguments.add_argument("--seed", type=int, default=0)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(campaign(Path(temporary), trials=chosen.trials, seed=chosen.seed), indent=2))


def campaign(folder: Path, *, trials: int, seed: int) -> dict[str, object]:
    """Damage one shard again and again."""
    shards = _make_shards(folder)
    whole = Corpus.open(shards)
    path = shards / whole.manifest.shards[0].name
    original, other = path.read_bytes(), (shards / whole.manifest.shards[1].name).read_bytes()
    starts = [int(offset) for offset in whole.index(0).samples["offset"]]
    written = [bytes(whole.read(0, index).payload) for index in range(len(starts))]
    draw = random.Random(seed)
    accepted = dict.fromkeys(KINDS, 0)
    peer_wrong = peer_trials = 0
    began = time.monotonic()
    for trial in range(trials):
        kind = KINDS[trial % len(KINDS)]
        broken = _damage(kind, original, other, starts, draw)
        if broken is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(broken)
        accepted[kind] += broken != original and _accepts(shards, written, broken, original)
        if trial % PEER_EVERY < len(KINDS) and broken not in (None, original):
            peer_trials += 1
            peer_wrong += _peer_accepts(path, written)
    return {
        "trials": trials,
        "accepted": accepted,
        "webdataset_trials": peer_trials,
        "webdataset_accepted": peer_wrong,
        "seconds": round(time.monotonic() - began, 1),
    }


def _damage(kind: str, original: bytes, other: bytes, starts: list[int], draw: random.Random) -> bytes | None:
    if kind == "vanished":
        return None
    if kind == "replaced":
        return other[: len(original)].ljust(len(original), b"\0")
    if kind == "cut":
        return original[: draw.choice([*starts, draw.randrange(len(original))])]
    at = {
        "header bit": draw.choice(starts) + draw.randrange(512),
        "payload bit": draw.choice(starts) + 512 + draw.randrange(400),
        "any bit": draw.randrange(len(original)),
    }[kind]
    broken = bytearray(original)
    broken[at] ^= 1 << draw.randrange(8)
    return bytes(broken)


def _accepts(shards: Path, written: list[bytes], broken: bytes | None, original: bytes) -> bool:
    """Say whether a reading went through as if nothing were wrong, or handed on wrong content."""
    corpus = Corpus.open(shards)
    refused = 0
    for index, payload in enumerate(written):
        try:
            if corpus.read(0, index).payload != payload:
                return True
        except BadSampleError:
            refused += 1
    if refused:
        return False
    # all samples are whole: the damage lies behind them, where only the shard's own hash sees it
    assert broken is not None and broken[:-1024] == original[:-1024]
    return not verify_shards(corpus, shards, threads=1, done=lambda _: None)


def _peer_accepts(path: Path, written: list[bytes]) -> bool:
    """Say whether webdataset reads to the end without an error, and yet not what was written."""
    try:
        read = [sample["jpg"] for sample in webdataset.WebDataset(str(path), shardshuffle=False)]
    except Exception:  # any error at all counts as noticed
        return False
    return read != written


def _make_shards(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    (folder / "images" / "a").mkdir(parents=True)
    for number in range(16):
        pixels = draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / "a" / f"{number}.jpg", quality=70)
    shard_corpus(folder / "images", folder / "shards", options=ShardOptions(shard_samples=8), quiet=True)
    return folder / "shards"


if __name__ == "__main__":
    main()
