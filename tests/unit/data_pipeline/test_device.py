"""Device transforms: a pure function of images, keys and config; partners only inside a group."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_pipeline.augment_config import AugmentConfig
from data_pipeline.batch import Batch, Tail
from data_pipeline.counter import uniforms
from data_pipeline.device import TrainTransform, as_pictures, augmented, normalise
from data_pipeline.erasing import erase
from data_pipeline.mixing import draw_mixing

CLASSES = 7


def batch(count: int, *, side: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)
    keys = torch.randint(-(2**62), 2**62, (count,), generator=generator)
    return images, torch.arange(count) % CLASSES, keys


def transformed(
    augment: AugmentConfig, images: torch.Tensor, labels: torch.Tensor, keys: torch.Tensor, *, group: int
) -> tuple[torch.Tensor, torch.Tensor]:
    classes = max(CLASSES, int(labels.max()) + 1) if labels.ndim == 1 else CLASSES
    return augmented(images, labels, keys, augment, num_classes=classes, group_images=group)


def everything(**changes: float) -> AugmentConfig:
    return AugmentConfig(**{"randaugment_n": 2, "randaugment_m": 15.0, "erasing": 0.5, **changes})  # type: ignore[arg-type]


def test_normalised_pixels_are_those_of_the_formula_in_channels_last() -> None:
    images, _, _ = batch(4)
    config = AugmentConfig()
    pixels = normalise(images, mean=config.mean, std=config.std)
    wanted = (images.double() / 255 - torch.tensor(config.mean)) / torch.tensor(config.std)
    torch.testing.assert_close(pixels, wanted.permute(0, 3, 1, 2).float(), atol=1e-6, rtol=1e-5)
    assert pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_a_split_at_group_borders_changes_nothing(mixing: dict[str, float]) -> None:
    images, labels, keys = batch(24)
    augment = everything(**mixing)
    whole = transformed(augment, images, labels, keys, group=4)
    for size in (4, 8, 12):
        parts = [
            transformed(augment, images[rows], labels[rows], keys[rows], group=4)
            for rows in (slice(i, i + size) for i in range(0, 24, size))
        ]
        for position in (0, 1):
            assert torch.equal(torch.cat([part[position] for part in parts]), whole[position])


def test_other_keys_give_other_pixels() -> None:
    images, labels, keys = batch(8)
    augment = everything(mixup=0.8)
    first, _ = transformed(augment, images, labels, keys, group=8)
    second, _ = transformed(augment, images, labels, keys + 1, group=8)
    assert not torch.equal(first, second)


def test_mixed_targets_are_shares_of_the_two_labels_and_pixels_agree_with_them() -> None:
    count = 16
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 32, 20, 3).contiguous()
    keys = torch.arange(count) * 7919
    config = AugmentConfig(cutmix=1.0, mean=[0.0] * 3, std=[1.0 / 255] * 3)
    pixels, targets = transformed(config, images, torch.arange(count), keys, group=count)
    assert torch.allclose(targets.sum(dim=1), torch.ones(count))
    for index in range(count):
        for label in range(count):
            share = (pixels[index] == label).float().mean()
            assert targets[index, label] == pytest.approx(share.item(), abs=1e-6)


def test_mixup_blends_pixels_by_the_targets_shares() -> None:
    count = 8
    images = (
        (torch.arange(count, dtype=torch.uint8) * 20)[:, None, None, None].expand(-1, 4, 4, 3).contiguous()
    )
    config = AugmentConfig(mixup=0.8, mean=[0.0] * 3, std=[1.0 / 255] * 3)
    keys = torch.arange(count)
    pixels, targets = transformed(config, images, torch.arange(count), keys, group=count)
    levels = torch.arange(count, dtype=torch.float32) * 20
    torch.testing.assert_close(pixels[:, 0, 0, 0], targets @ levels, atol=1e-3, rtol=1e-4)


def test_every_image_gives_once_and_takes_once_within_its_group() -> None:
    keys = np.arange(30, dtype=np.int64)
    mixing = draw_mixing(keys, AugmentConfig(mixup=0.2), group_images=8, height=8, width=8)
    assert sorted(mixing.partners.tolist()) == list(range(30))
    assert (mixing.partners // 8 == np.arange(30) // 8).all()
    assert (mixing.partners != np.arange(30)).all()


def test_mixup_draws_each_images_share_from_its_beta_distribution() -> None:
    keys = np.arange(20_000, dtype=np.int64)
    mixing = draw_mixing(keys, AugmentConfig(mixup=0.2), group_images=2, height=8, width=8)
    assert mixing.keep.mean() == pytest.approx(0.5, abs=0.01)
    assert mixing.keep.var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.005)
    assert (mixing.blend == mixing.keep).all() and not mixing.boxes.any()


def test_cutmix_cuts_rectangles_of_a_uniform_area_around_a_uniform_centre() -> None:
    keys, height, width = np.arange(20_000, dtype=np.int64), 400, 800
    mixing = draw_mixing(keys, AugmentConfig(cutmix=1.0), group_images=2, height=height, width=width)
    left, top, right, bottom = mixing.boxes.T
    # A side of √u cut off at the border keeps √u - u/4 of the image's, and u is uniform: 1/2 - 1/5 + 1/48.
    assert 1 - mixing.keep.mean() == pytest.approx(0.3208, abs=0.01)
    assert ((right - left) / width).mean() == pytest.approx(2 / 3 - 1 / 8, abs=0.01)
    for before, behind, side in ((left, width - right, width), (top, height - bottom, height)):
        assert before.min() == behind.min() == 0 and before.max() < side
        assert before.mean() == pytest.approx(behind.mean(), rel=0.05)
    assert (mixing.blend == 1).all()


def test_mixup_and_cutmix_together_take_half_of_the_images_each() -> None:
    keys = np.arange(20_000, dtype=np.int64)
    mixing = draw_mixing(keys, AugmentConfig(mixup=0.2, cutmix=1.0), group_images=2, height=400, width=400)
    cut = mixing.boxes.any(axis=1)
    assert cut.mean() == pytest.approx(0.5, abs=0.02) and (mixing.blend[cut] == 1).all()
    assert (mixing.blend < 1)[~cut].mean() > 0.95
    assert mixing.keep[~cut].var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.01)


def test_mixing_refuses_groups_of_one() -> None:
    images, labels, keys = batch(2)
    with pytest.raises(ValueError, match="groups of 2 images or more, not 1"):
        transformed(AugmentConfig(mixup=0.8), images, labels, keys, group=1)


def test_multi_hot_labels_stay_multi_hot_without_mixing_and_blend_with_it() -> None:
    images, _, keys = batch(6)
    labels = (torch.arange(6 * CLASSES).view(6, CLASSES) % 3 == 0).float()
    _, kept = transformed(AugmentConfig(), images, labels, keys, group=6)
    assert torch.equal(kept, labels)
    _, mixed = transformed(AugmentConfig(mixup=0.8), images, labels, keys, group=6)
    assert mixed.shape == labels.shape and mixed.min() >= 0 and mixed.max() <= 1


def test_erasing_clears_one_rectangle_in_the_asked_share_of_images() -> None:
    count, side = 2000, 32
    result = erase(torch.ones(count, 3, side, side), np.arange(count, dtype=np.int64), probability=0.25)
    erased = (result[:, 0] == 0).flatten(1).sum(dim=1)
    hit = erased > 0
    assert hit.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert erased[hit].min() >= 0.015 * side**2 and erased.max() <= 0.36 * side**2
    rows, columns = (result[:, 0] == 0).any(dim=2).sum(dim=1), (result[:, 0] == 0).any(dim=1).sum(dim=1)
    assert torch.equal(rows * columns, erased), "the erased pixels are no rectangle"


def test_an_erased_rectangle_is_what_its_definition_makes_of_the_draws() -> None:
    """Zhong et al., with timm's shares, and shapes uniform in the logarithm; cut off where it is too long."""
    keys, height, width = np.arange(400, dtype=np.int64), 20, 32
    result = erase(torch.ones(len(keys), 3, height, width), keys, probability=0.9)
    for image, (coin, size, shape, down, across) in zip(
        result, uniforms(keys, "erasing", count=5).tolist(), strict=True
    ):
        area, ratio = height * width * (0.02 + (1 / 3 - 0.02) * size), 0.3 ** (1 - 2 * shape)
        high = min(max(round((area * ratio) ** 0.5), 1), height)
        wide = min(max(round((area / ratio) ** 0.5), 1), width)
        top, left = int(down * (height - high + 1)), int(across * (width - wide + 1))
        expected = torch.ones(3, height, width)
        if coin < 0.9:
            expected[:, top : top + high, left : left + wide] = 0
        assert torch.equal(image, expected)


@pytest.mark.parametrize("filled", [False, True])
def test_a_model_takes_rows_of_a_batch_as_if_they_were_all_of_it_and_a_tails_weights_with_them(
    filled: bool,
) -> None:
    images, labels, keys = batch(24)
    tail = Tail(10, torch.arange(24.0)) if filled else None
    whole, rows = Batch(images, labels, torch.arange(24), keys, tail=tail), slice(8, 16)
    augment, device = everything(mixup=0.8), torch.device("cpu")
    transform = TrainTransform(augment, device=device, num_classes=CLASSES, group_images=4)
    pixels, targets, taken, weights = transform(whole, rows)
    expected = augmented(images[rows], labels[rows], keys[rows], augment, num_classes=CLASSES, group_images=4)
    assert torch.equal(pixels, expected[0]) and torch.equal(targets, expected[1])
    assert torch.equal(taken, keys[rows])
    assert weights is None if tail is None else torch.equal(weights, tail.weights[rows])


def test_pictures_are_the_first_sixteen_of_what_a_model_takes_in_whole_groups() -> None:
    images, labels, keys = batch(24)
    augment = AugmentConfig(mixup=0.8)
    whole = Batch(images, labels, torch.arange(24), keys)
    for group, count in ((4, 16), (12, 24)):
        transform = TrainTransform(
            augment, device=torch.device("cpu"), num_classes=CLASSES, group_images=group
        )
        pixels, *_ = transform(whole, slice(0, count))
        found = transform.pictures(whole)
        assert found.shape == (16, 24, 24, 3) and 0 <= found.min() < found.max() <= 1
        assert torch.equal(found, as_pictures(pixels[:16], augment))


def test_pictures_of_what_was_not_augmented_are_the_images() -> None:
    images, labels, keys = batch(3)
    transform = TrainTransform(
        AugmentConfig(), device=torch.device("cpu"), num_classes=CLASSES, group_images=1
    )
    found = transform.pictures(Batch(images, labels, torch.arange(3), keys))
    torch.testing.assert_close(found, images / 255, atol=1e-6, rtol=0)
