"""Crops and counter-based randomness: pure functions of size and key, with the distributions they promise."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.augment_config import AugmentConfig
from data_pipeline.counter import betas, uniforms
from data_pipeline.crops import evaluation_boxes, random_resized_boxes

SIDES = st.integers(1, 5000)


@settings(max_examples=100, deadline=None)
@given(width=SIDES, height=SIDES, key=st.integers(-(2**63), 2**63 - 1))
def test_a_crop_lies_within_its_image(width: int, height: int, key: int) -> None:
    boxes, _ = random_resized_boxes(np.array([width]), np.array([height]), np.array([key]), AugmentConfig())
    left, top, right, bottom = boxes[0].tolist()
    assert 0 <= left < right <= width and 0 <= top < bottom <= height


@settings(max_examples=100, deadline=None)
@given(width=SIDES, height=SIDES, share=st.sampled_from([0.5, 0.875, 1.0]))
def test_evaluation_takes_a_central_square_or_the_whole(width: int, height: int, share: float) -> None:
    widths, heights = np.array([width]), np.array([height])
    augment = AugmentConfig(evaluate_crop=share)
    left, top, right, bottom = evaluation_boxes(widths, heights, augment)[0].tolist()
    assert right - left == bottom - top == max(round(share * min(width, height)), 1)
    assert abs(left - (width - right)) <= 1 and abs(top - (height - bottom)) <= 1
    whole = evaluation_boxes(widths, heights, AugmentConfig(evaluate_resize="whole"))
    assert whole[0].tolist() == [0, 0, width, height]


def test_crops_depend_on_nothing_but_size_and_key() -> None:
    generator = np.random.default_rng(0)
    widths, heights = generator.integers(50, 600, 100), generator.integers(50, 600, 100)
    keys = generator.integers(-(2**62), 2**62, 100)
    boxes, flips = random_resized_boxes(widths, heights, keys, AugmentConfig())
    turned = generator.permutation(100)
    again, flips_again = random_resized_boxes(widths[turned], heights[turned], keys[turned], AugmentConfig())
    np.testing.assert_array_equal(again, boxes[turned])
    np.testing.assert_array_equal(flips_again, flips[turned])


def one_crop_as_torchvision_draws_it(width: int, height: int, source: random.Random) -> tuple[int, int]:
    for _ in range(10):
        area = width * height * source.uniform(0.08, 1.0)
        ratio = math.exp(source.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return w, h
    raise AssertionError("ten tries failed on an ordinary image")


def test_crops_are_distributed_as_torchvisions() -> None:
    count, source = 10_000, random.Random(1)
    widths, heights = np.full(count, 500), np.full(count, 375)
    boxes, flips = random_resized_boxes(widths, heights, np.arange(count), AugmentConfig())
    found = np.stack([boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]], axis=1)
    wanted = np.array([one_crop_as_torchvision_draws_it(500, 375, source) for _ in range(count)])
    levels = np.linspace(0.05, 0.95, 10)
    np.testing.assert_allclose(
        np.quantile(found, levels, axis=0), np.quantile(wanted, levels, axis=0), rtol=0.03
    )
    assert flips.mean() == pytest.approx(0.5, abs=0.02)
    spare_left = boxes[:, 0] / np.maximum(500 - found[:, 0], 1)
    assert spare_left.mean() == pytest.approx(0.5, abs=0.02)


def crop_of_draws(width: int, height: int, draws: list[float], config: AugmentConfig) -> list[int]:
    """Do as torchvision's RandomResizedCrop.get_params, given its random numbers."""
    (least, greatest), (low, high) = config.crop_area, config.crop_ratio
    for size, shape in zip(draws[:10], draws[10:20], strict=True):
        area = width * height * (least + (greatest - least) * size)
        ratio = math.exp(math.log(low) + (math.log(high) - math.log(low)) * shape)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draws[20] * (width - w + 1)), int(draws[21] * (height - h + 1))
            return [left, top, left + w, top + h]
    w = round(height * high) if width / height > high else width
    h = round(width / low) if width / height < low else height
    left, top = (width - w) // 2, (height - h) // 2
    return [left, top, left + w, top + h]


@pytest.mark.parametrize(("area", "ratio"), [([0.08, 1.0], [3 / 4, 4 / 3]), ([0.9, 1.0], [0.5, 0.8])])
def test_a_crop_is_what_torchvision_makes_of_the_same_draws_however_small_the_image(
    area: list[float], ratio: list[float]
) -> None:
    config, keys = AugmentConfig(crop_area=area, crop_ratio=ratio), np.arange(900, dtype=np.int64) - 450
    widths, heights = keys % 30 // 5 * 7 % 11 + 1, keys % 5 * 3 + 1
    widths[::9] *= 100
    boxes, flips = random_resized_boxes(widths, heights, keys, config)
    draws = uniforms(keys, "crop", count=23)
    for row in zip(widths.tolist(), heights.tolist(), draws.tolist(), boxes.tolist(), strict=True):
        assert row[3] == crop_of_draws(*row[:3], config), row[:2]
    assert flips.tolist() == (draws[:, 22] < 0.5).tolist()


def test_no_flip_means_none() -> None:
    size = np.full(100, 64)
    assert not random_resized_boxes(size, size, np.arange(100), AugmentConfig(flip=False))[1].any()


def test_an_image_too_long_for_any_ratio_gives_its_largest_central_crop() -> None:
    boxes, _ = random_resized_boxes(
        np.array([3000, 3]), np.array([3, 3000]), np.array([1, 2]), AugmentConfig()
    )
    assert boxes.tolist() == [[1498, 0, 1502, 3], [0, 1498, 3, 1502]]


def test_streams_and_keys_are_independent() -> None:
    keys = np.arange(50_000, dtype=np.int64)
    first, second = uniforms(keys, "first", count=2), uniforms(keys, "second", count=1)
    columns = np.stack([first[:, 0], first[:, 1], second[:, 0], np.roll(first[:, 0], 1)])
    correlations = np.corrcoef(columns) - np.eye(4)
    assert np.abs(correlations).max() < 0.02
    assert columns.mean(axis=1) == pytest.approx([0.5] * 4, abs=0.01)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_betas_have_their_mean_and_variance(alpha: float) -> None:
    draws = betas(np.arange(40_000, dtype=np.int64), "mixup", alpha=alpha)
    assert draws.min() >= 0.0 and draws.max() <= 1.0
    assert draws.mean() == pytest.approx(0.5, abs=0.01)
    assert draws.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.04)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_size", 0, "image_size is 0; allowed: 1 or more"),
        ("interpolation", "nearest", "interpolation is 'nearest'; allowed: bicubic, bilinear"),
        ("crop_area", [0.5, 0.2], r"crop_area is \[0.5, 0.2\]; allowed"),
        ("randaugment_m", 31.0, "randaugment_m is 31.0; allowed: 0 to 30"),
        ("mixup", -0.1, "mixup is -0.1; allowed: 0"),
        ("erasing", 1.5, "erasing is 1.5; allowed: 0 to 1"),
        ("evaluate_resize", "crop", "evaluate_resize is 'crop'; allowed: center_crop, whole"),
        ("std", [1.0, 0.0, 1.0], "std is .* from 0.001 to 100"),
    ],
)
def test_a_wrong_setting_is_named(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**{field: value})  # type: ignore[arg-type]
