"""RandAugment's operations against Pillow, and its choices as a pure function of the keys."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from data_pipeline import randaugment_ops as ops
from data_pipeline.counter import uniforms
from data_pipeline.randaugment import NAMES, OPERATIONS, _apply, randaugment

FILL = (128, 128, 128)


def photographs(count: int = 6, *, height: int = 45, width: int = 60) -> np.ndarray:
    """Smooth colour fields with noise, of different ranges; the last one is flat, as skies and scans are."""
    generator = np.random.default_rng(5)
    rows, columns = np.mgrid[0:height, 0:width]
    images = []
    for index in range(count - 1):
        waves = [np.sin(rows / (5 + channel + index)) * np.cos(columns / (7 + index)) for channel in range(3)]
        low, high = 20 * index, 255 - 15 * index
        field = (
            (np.stack(waves, axis=-1) + 1) / 2 * (high - low)
            + low
            + generator.normal(0, 4, (height, width, 3))
        )
        images.append(field.clip(0, 255).astype(np.uint8))
    return np.stack([*images, np.full((height, width, 3), 77, np.uint8)])


def affine(*matrix: float) -> Callable[[Image.Image], Image.Image]:
    def apply(image: Image.Image) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=FILL)

    return apply


def solarize_add(image: Image.Image, amount: int) -> Image.Image:
    return image.point([min(level + amount, 255) if level < 128 else level for level in range(256)] * 3)


def reference(name: str, amount: float, image: Image.Image) -> Image.Image:
    width, height = image.size
    return {
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
        "posterize": lambda: ImageOps.posterize(image, int(amount)),
        "solarize": lambda: ImageOps.solarize(image, int(amount)),
        "solarize_add": lambda: solarize_add(image, int(amount)),
        "color": lambda: ImageEnhance.Color(image).enhance(amount),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(amount),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(amount),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(amount),
        "rotate": lambda: image.rotate(amount, fillcolor=FILL),
        "shear_x": lambda: affine(1, amount, 0, 0, 1, 0)(image),
        "shear_y": lambda: affine(1, 0, 0, amount, 1, 0)(image),
        "translate_x": lambda: affine(1, 0, amount * width, 0, 1, 0)(image),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, amount * height)(image),
    }[name]()


AMOUNTS = {
    "posterize": (1, 4, 8),
    "solarize": (0, 110, 255, 256),
    "solarize_add": (0, 44, 165),
    "rotate": (-45.0, 17.3, 30.0),
    "shear_x": (-0.45, 0.15),
    "shear_y": (-0.45, 0.15),
    "translate_x": (-0.31, 0.125),
    "translate_y": (-0.31, 0.125),
    **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), (0.1, 0.55, 1.0, 1.9, 2.8)),
    **dict.fromkeys(("autocontrast", "equalize", "invert"), (0.0,)),
}


@pytest.mark.parametrize(("name", "amount"), [(name, one) for name in OPERATIONS for one in AMOUNTS[name]])
def test_an_operation_gives_pillows_pixels(name: str, amount: float) -> None:
    images = photographs()
    amounts = torch.full((len(images),), float(amount), dtype=torch.float64)
    result = getattr(ops, name)(torch.from_numpy(images), amounts).numpy()
    for image, got in zip(images, result, strict=True):
        wanted = np.asarray(reference(name, amount, Image.fromarray(image)))
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_treats_every_image_alone(name: str) -> None:
    images = torch.from_numpy(photographs())
    amounts = torch.linspace(1.0, 2.0, len(images), dtype=torch.float64)
    together = getattr(ops, name)(images, amounts)
    for index in range(len(images)):
        alone = getattr(ops, name)(images[index : index + 1], amounts[index : index + 1])
        assert torch.equal(alone[0], together[index])


def test_a_batch_split_changes_nothing() -> None:
    images, keys = torch.from_numpy(photographs(24)), np.arange(24, dtype=np.int64) * 104729 - 55
    whole = randaugment(images, keys, n=2, m=15.0)
    parts = [
        randaugment(images[rows], keys[rows], n=2, m=15.0)
        for rows in (slice(0, 7), slice(7, 8), slice(8, 24))
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(whole, images)
    assert torch.equal(images, torch.from_numpy(photographs(24))), "the input was changed"


def test_every_operation_is_drawn_as_often_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = dict.fromkeys(NAMES, 0)

    def count(name: str, images: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        counts[name] += len(images)
        return images

    monkeypatch.setattr("data_pipeline.randaugment._apply", count)
    total = 16_000
    randaugment(torch.zeros(total, 1, 1, 3, dtype=torch.uint8), np.arange(total), n=1, m=10.0)
    assert len(counts) == 16
    expected = total / 16
    assert all(abs(seen - expected) < 5 * expected**0.5 for seen in counts.values()), counts


def test_magnitudes_are_the_lineages() -> None:
    signs = np.array([-1.0, 1.0])
    amounts = {name: amount(1.5, signs).tolist() for name, (_, amount) in OPERATIONS.items()}
    assert amounts["rotate"] == [-45.0, 45.0]
    assert amounts["shear_x"] == pytest.approx([-0.45, 0.45])
    assert [share * 224 for share in amounts["translate_y"]] == pytest.approx([-150.0, 150.0])
    assert amounts["color"] == pytest.approx([2.8, 2.8])
    assert amounts["posterize"] == [6.0, 6.0]
    assert amounts["solarize"] == [256.0, 256.0]
    assert amounts["solarize_add"] == [165.0, 165.0]


def test_cutout_paints_one_gray_square() -> None:
    images = torch.zeros(16, 224, 224, 3, dtype=torch.uint8)
    draws = np.random.default_rng(0).random((16, 4))
    result = _apply("cutout", images, draws, level=1.0)
    painted = (result[..., 0] == 128).sum(dim=(1, 2))
    assert painted.max() == 80 * 80 and painted.min() >= 40 * 40
    assert set(result.unique().tolist()) == {0, 128}


def one_operation_of_the_lineage(image: Image.Image, draws: np.ndarray, m: float) -> Image.Image:
    """Follow tensorflow/tpu's autoaugment.py, its distances as shares of 224 pixels."""
    operation, coin, across, down = draws.tolist()
    name, level, sign = NAMES[int(operation * 16)], m / 10, -1 if coin < 0.5 else 1
    if name == "cutout":
        x, y = int(across * image.width), int(down * image.height)
        half_width, half_height = int(level * 40 * image.width / 224), int(level * 40 * image.height / 224)
        cut = image.copy()
        cut.paste(FILL, (x - half_width, y - half_height, x + half_width, y + half_height))
        return cut
    amount = {
        "rotate": sign * level * 30,
        "posterize": max(1, min(8, int(level * 4))),  # its shift by eight bits is undefined
        "solarize": min(256, int(level * 256)),
        "solarize_add": min(255, int(level * 110)),
        **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), level * 1.8 + 0.1),
        **dict.fromkeys(("shear_x", "shear_y"), sign * level * 0.3),
        **dict.fromkeys(("translate_x", "translate_y"), sign * level * 100 / 224),
    }.get(name, 0.0)
    return reference(name, amount, image)


@pytest.mark.parametrize("m", [1.0, 9.0, 17.0, 30.0])
def test_an_image_meets_what_its_key_draws_layer_after_layer(m: float) -> None:
    count = 96
    images, keys = np.resize(photographs(), (count, 45, 60, 3)), np.arange(count, dtype=np.int64) * 7919 - 99
    layers = [uniforms(keys, f"randaugment {layer}", count=4) for layer in range(2)]
    for name, number in zip(NAMES, range(16), strict=True):
        assert (np.floor(layers[0][:, 0] * 16) == number).any(), name
    result = randaugment(torch.from_numpy(images), keys, n=2, m=m).numpy()
    for row, got in enumerate(result):
        wanted = Image.fromarray(images[row])
        for draws in layers:
            wanted = one_operation_of_the_lineage(wanted, draws[row], m)
        np.testing.assert_array_equal(got, np.asarray(wanted))
