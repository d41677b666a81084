"""The order of samples, their keys, crops and draws as recorded: what a checkpoint's position means.

A run that is resumed under a newer version must go on where it was. Whoever changes one of these numbers
raises `_STATE_VERSION` of data_pipeline/loader.py, so that older checkpoints are refused, and records anew.
"""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from coatnet.config import UserError
from data_pipeline import loader, randaugment
from data_pipeline.assemble import Assembler
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.config import CorpusConfig, DataConfig
from data_pipeline.counter import betas, uniforms
from data_pipeline.crops import random_resized_boxes
from data_pipeline.erasing import erase
from data_pipeline.filling import BatchFiller
from data_pipeline.manifest import Manifest, ShardEntry
from data_pipeline.mixing import draw_mixing
from data_pipeline.mixture import Mixture
from data_pipeline.order import Order, Places, PositionOrder
from data_pipeline.permutation import derive_key, derive_keys, permute, shuffled
from data_pipeline.record import BadSampleError, Record
from data_pipeline.steps import Steps
from data_pipeline.training_order import make_order

COUNTS = np.random.Generator(np.random.PCG64(0)).integers(0, 200, 1000)  # numpy keeps PCG64's stream

KEY = 14449598599937053476
SHUFFLED = [6, 0, 7, 2, 5, 3, 4, 1]
PERMUTED = {
    1: [0],
    2: [0, 1],
    7: [5, 1, 2, 3, 6, 4, 0],
    16: [5, 14, 13, 3, 6, 4, 15, 0, 2, 12, 9, 11, 10, 8, 1, 7],
    20: [19, 7, 6, 5, 16, 4, 18, 9, 2, 17, 12, 1, 0, 8, 11, 14, 13, 15, 10, 3],
}
SUBSTITUTES = [(1, 25), (0, 23), (1, 40), (0, 29), (0, 61)]
MIXED, SHARED = "d3f56fa7bdc52510", "62b0c4dbd2dbd797"
ONE, NARROW, TWO = "f6f3ffde8c82eb82", "5e68492d9a060d7f", "6dce92a94ba12c91"
KEYS = [7853966626531964278, 5647633184453445789, 2724018429111831673, 8256683489222519666]
UNIFORM = [
    [0.9273649092856614, 0.8078167503954516],
    [0.4115403334339369, 0.826420723694594],
    [0.7733864956848389, 0.8422087549147113],
    [0.8227480886854427, 0.31788286672480215],
]
BETA = [0.7180813892700703, 0.13572491198277728, 0.498550314342815, 0.47148340259983895]
# Draws whose first try is refused narrowly, by alpha.
REFUSED = {
    0.2: [1.5049854128345631e-05, 0.9991666903255306, 0.9274068313492565],
    0.8: [0.9360923878918583, 0.1281880352368582, 0.10520998988168179],
    3.0: [0.7264684325452606, 0.4708445886364751, 0.14967837875692688],
}
BOXES = [[74, 8, 500, 369], [20, 18, 324, 301], [933, 0, 1066, 100], [6, 8, 31, 31]]
PARTNERS, BLEND = [3, 0, 1, 2, 5, 6, 7, 4], [1.0, 1.0, 0.12359426, 0.71808139, 0.12444879, 1.0, 1.0, 1.0]
RECTANGLES = {0: [0, 154, 59, 224], 1: [1, 72, 31, 108], 5: [132, 66, 186, 130]}
ERASED = [33, 72, 0, 60, 84, 54, 78, 0]  # pixels
OPERATIONS = [
    "shear_x equalize",
    "sharpness translate_x",
    "contrast translate_y",
    "contrast rotate",
    "sharpness rotate",
    "contrast invert",
    "color shear_y",
    "solarize brightness",
]
FLIPS = [False, False, True, False]


def digest(*arrays: np.ndarray) -> str:
    rows = np.stack([np.asarray(array).astype("<i8") for array in arrays])
    return hashlib.sha256(rows.tobytes()).hexdigest()[:16]


def places_of(order: PositionOrder, positions: np.ndarray) -> str:
    places = order.locate(positions)
    return digest(places.corpus, places.epoch, places.shard, places.index)


def test_the_numbers_are_those_of_the_version_that_a_checkpoint_names() -> None:
    assert loader._STATE_VERSION == 1


def test_a_corpus_that_a_checkpoint_names_is_known_again() -> None:
    shards = [
        ShardEntry("shard-000000.tar", 3, 10_240, "00" * 16, "11" * 16),
        ShardEntry("shard-000001.tar", 2, 10_240, "22" * 16, "33" * 16, "44" * 16),
    ]
    assert Manifest(["ant", "bée"], shards).digest() == "73a52f4dcd13be8e"
    assert (
        Manifest(["ant", "bée"], shards, label_kind="multi", source={"path": "x"}).digest()
        == "eeed7fb56b46e049"
    )


def test_keys_and_permutations_are_as_recorded() -> None:
    assert derive_key(7, 1, 2) == KEY
    assert shuffled(8, derive_key(7, 1)).tolist() == SHUFFLED
    for size, expected in PERMUTED.items():
        points = np.arange(size)
        assert permute(points, np.full(size, size), derive_keys(3, np.zeros(size, int))).tolist() == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "fd9d23e5bf20aeb9"),
        ({"lanes": 12, "window": 1}, "f55e74d172666bdf"),
        ({"lanes": 7, "window": 3}, "b0cbca17c993e421"),
        ({"lanes": 120}, "b1bd6af68c74e186"),
        ({"window": 8}, "129ca3bbd19a963e"),
        ({"lanes": 1}, "b7fab5178a595fd1"),
        ({"epoch_samples": 90_000}, "728b3880bd195788"),
    ],
)
def test_a_corpus_is_gone_through_as_recorded(options: dict[str, Any], expected: str) -> None:
    order = Order(COUNTS, seed=11, **options)
    positions = np.concatenate([np.arange(5000), np.arange(2 * order.samples - 500, 2 * order.samples + 500)])
    assert places_of(order, positions) == expected


def test_a_mixture_is_gone_through_as_recorded() -> None:
    mixture = Mixture([Order(COUNTS, seed=1), Order([30] * 5, seed=2), Order([7], seed=3)], [5, 2, 1], seed=4)
    assert places_of(mixture, np.arange(123_000, 126_000)) == MIXED
    assert mixture.quotas.tolist() == [625, 250, 125]
    thirds = Mixture([Order(COUNTS, seed=1), Order([7], seed=2)], [2, 1], seed=4)
    assert thirds.quotas.tolist() == [668, 334]
    shares = [Steps(mixture, 960, rank, 3).positions(777) for rank in range(3)]
    assert digest(np.concatenate(shares)) == SHARED


@pytest.mark.parametrize(
    ("corpora", "options", "expected"),
    [
        (1, {}, ONE),
        (1, {"tail": "drop"}, ONE),
        (1, {"tail": "mask"}, ONE),
        (1, {"lanes": 12, "window": 2}, NARROW),
        (2, {}, TWO),
    ],
)
def test_a_run_goes_through_its_corpora_as_recorded(
    corpora: int, options: dict[str, Any], expected: str
) -> None:
    counts = [COUNTS, np.array([30] * 5)][:corpora]
    opened: Any = [SimpleNamespace(counts=each, samples=int(each.sum())) for each in counts]
    entries = [CorpusConfig(path="of the test", weight=weight) for weight in (3.0, 1.0)[:corpora]]
    order = make_order(opened, DataConfig(train=entries, **options), seed=11, global_batch=960)
    positions = np.arange(98_000, 101_000)  # before the shortest epoch's end
    assert places_of(order, positions) == expected


def test_a_samples_key_is_as_recorded_in_every_epoch_and_corpus() -> None:
    corpora: list[Any] = [SimpleNamespace(counts=np.array([3, 4])), SimpleNamespace(counts=np.array([5]))]
    assembler = Assembler(AugmentConfig(), training=True, num_classes=0, decoder="auto")
    numbers = np.array(
        [[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 0], [2, 3, 0, 4]]
    )  # corpus, epoch, shard, index
    filler = BatchFiller(corpora, assembler, seed=9)
    batch = filler.plan(np.arange(4), Places(*numbers))
    assert batch.keys.tolist() == KEYS


class Lost:
    """A corpus of which nothing can be read; it keeps what was asked for."""

    counts, samples = np.array([100, 60]), 160

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def read(self, shard: int, index: int) -> Record:
        self.asked.append((shard, index))
        raise BadSampleError("lost")

    def name(self, shard: int, index: int) -> str:
        return f"{shard}[{index}]"


def test_a_bad_samples_substitutes_are_as_recorded() -> None:
    corpus: Any = Lost()
    assembler = Assembler(AugmentConfig(), training=True, num_classes=0, decoder="auto")
    place = Places(*np.array([[0], [0], [1], [5]]))
    batch = BatchFiller([corpus], assembler, seed=9).plan(np.array([77]), place)
    with pytest.raises(UserError, match="substitutes are bad as well"):
        batch.fill(0, 1)
    assert corpus.asked[0] == (1, 5) and corpus.asked[1:6] == SUBSTITUTES
    assert len(corpus.asked) == 1 + 16


def test_draws_and_crops_are_as_recorded() -> None:
    keys = np.array([0, 1, -5, 2**62])
    assert uniforms(keys, "crop", count=2).tolist() == UNIFORM
    assert betas(keys, "mixup", alpha=0.8) == pytest.approx(BETA, rel=1e-9)  # log and cos are the platform's
    for alpha, places in ((0.2, [33, 135, 144]), (0.8, [135, 149, 162]), (3.0, [135, 181, 232])):
        assert betas(np.array(places), "mixup", alpha=alpha) == pytest.approx(REFUSED[alpha], rel=1e-9)
    widths, heights = np.array([500, 375, 2000, 40]), np.array([375, 500, 100, 40])
    boxes, flips = random_resized_boxes(widths, heights, keys, AugmentConfig())
    assert (boxes.tolist(), flips.tolist()) == (BOXES, FLIPS)


def test_what_a_batch_draws_on_the_device_is_as_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = np.arange(-3, 5) * 2**40
    both = AugmentConfig(mixup=0.8, cutmix=1.0)
    mixing = draw_mixing(keys, both, group_images=4, height=224, width=192)
    assert mixing.partners.tolist() == PARTNERS and mixing.blend == pytest.approx(BLEND, rel=1e-7)
    assert {number: mixing.boxes[number].tolist() for number in RECTANGLES} == RECTANGLES
    erased = erase(torch.ones(8, 1, 16, 16), keys, probability=0.7)
    assert (erased == 0).sum((1, 2, 3)).tolist() == ERASED
    met: list[str] = [""] * len(keys)

    def note(name: str, images: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        for number in images[:, 0, 0, 0].tolist():
            met[number] += f"{name} "
        return images

    monkeypatch.setattr(randaugment, "_apply", note)
    numbers = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 1, 1, 3)
    randaugment.randaugment(numbers, keys, n=2, m=15.0)
    assert [names.strip() for names in met] == OPERATIONS
