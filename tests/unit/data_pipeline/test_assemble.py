"""What a training sees of an image: the crop that its key draws, as the image is shown, flipped or not."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.augment_config import AugmentConfig
from data_pipeline.config import CorpusConfig, DataConfig
from data_pipeline.crops import random_resized_boxes
from data_pipeline.decode import decode_batch, kernel
from data_pipeline.evaluate_loader import EvaluateLoader
from data_pipeline.loader import TrainLoader
from data_pipeline.open_corpus import open_train_corpora

_TURN = 6  # EXIF's: a quarter to the left, so that width and height change places


@pytest.fixture
def turned(tmp_path: Path) -> Path:
    """Forty wide images; EXIF says of every other one that it stands."""
    (tmp_path / "images" / "ant").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(40):
        coarse = Image.fromarray(draw.integers(0, 255, (3, 6, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = _TURN if number % 2 else 1
        image = coarse.resize((60 + number, 24), Image.Resampling.BICUBIC)
        image.save(tmp_path / "images" / "ant" / f"{number:02d}.jpg", quality=95, exif=exif)
    return tmp_path / "images"


@pytest.mark.parametrize("orientation", ["ignore", "apply"])
@pytest.mark.parametrize("flip", [True, False])
def test_a_training_image_is_its_keys_crop_of_the_image_as_it_is_shown(
    turned: Path, orientation: str, flip: bool
) -> None:
    augment = AugmentConfig(image_size=16, exif_orientation=orientation, flip=flip, interpolation="bilinear")
    data = DataConfig(train=[CorpusConfig(str(turned))], decoder="pillow")
    loader = TrainLoader(open_train_corpora(data), data, augment, seed=3, global_batch=40)
    with closing(loader.from_sample(0)) as stream:
        batch = next(stream)
    files = [turned / loader.name(position) for position in batch.positions.tolist()]
    sizes = np.array([Image.open(file).size for file in files])
    stands = np.array([int(file.stem) % 2 == 1 for file in files]) & (orientation == "apply")
    sizes[stands] = sizes[stands][:, ::-1]
    boxes, flips = random_resized_boxes(sizes[:, 0], sizes[:, 1], batch.keys.numpy(), augment)
    assert 0 < flips.sum() < 40 if flip else not flips.any()
    expected = np.empty((40, 16, 16, 3), dtype=np.uint8)
    decode_batch(
        [file.read_bytes() for file in files],
        boxes,
        flips,
        expected,
        backend="pillow",
        interpolation="bilinear",
        orientation=orientation,
    )
    assert np.array_equal(batch.images.numpy(), expected)


def damaged(payload: bytes) -> bytes:
    """Flip bits of a JPEG's scan until it decodes to pixels, under protest."""
    box, flip, out = np.array([[0, 0, 64, 48]]), np.array([False]), np.empty((1, 16, 16, 3), np.uint8)
    for byte in range(payload.index(b"\xff\xda") + 20, len(payload)):
        broken = bytearray(payload)
        broken[byte] ^= 0x10
        (verdict,) = decode_batch([bytes(broken)], box, flip, out)
        if verdict is not None and verdict.usable:
            return bytes(broken)
    raise AssertionError("no bit of it matters")


@pytest.mark.skipif(not kernel.is_available(), reason="Pillow tells no damage")
def test_an_image_that_decodes_with_damage_is_used_and_one_that_does_not_is_bad(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "ant" / f"{number}.jpg", restart_marker_blocks=4)
    for number, broken in ((1, damaged), (2, lambda payload: payload[: len(payload) // 2])):
        file = tmp_path / "ant" / f"{number}.jpg"
        file.write_bytes(broken(file.read_bytes()))
    augment, data = AugmentConfig(image_size=16), DataConfig(train=[CorpusConfig(str(tmp_path))])
    (corpus,) = open_train_corpora(data)
    with closing(TrainLoader([corpus], data, augment, seed=0, global_batch=4).from_sample(0)) as stream:
        assert [sample.name for sample in next(stream).bad] == ["ant/2.jpg"]
    (evaluated,) = EvaluateLoader(corpus, augment, batch=4)
    assert evaluated.positions.tolist() == [0, 1, 3] and evaluated.bad[0].reason.startswith("truncated")
