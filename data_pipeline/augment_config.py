"""The `augment` section: what happens to an image between its bytes and the model. Knows no loader."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from coatnet.config.checks import at_least_one, one_of, up_to, within

INTERPOLATIONS = ("bicubic", "bilinear")
EVALUATE_RESIZES = ("center_crop", "whole")
ORIENTATIONS = ("ignore", "apply")
MAX_RANDAUGMENT_MAGNITUDE = 30
_MOST_OPERATIONS = 16


@dataclass
class AugmentConfig:
    """Crops, augmentation and normalisation, for training and evaluation.

    The defaults are the inception crop and the flip of CoAtNet's lineage; RandAugment, mixup and the rest are
    off until a recipe asks for them.

    Attributes:
        image_size: side of the square that the model sees, in pixels; a multiple of 32.
        interpolation: "bicubic" or "bilinear", antialiased either way.
        crop_area: least and greatest share of the image's area that a training crop covers.
        crop_ratio: least and greatest width / height of a training crop.
        flip: mirror training images, each with probability 1/2.
        randaugment_n: operations per image; 0 turns RandAugment off.
        randaugment_m: magnitude from 0 to 30, 10 being the strongest level of AutoAugment's tables.
        mixup: alpha of Beta(alpha, alpha); 0 turns mixup off.
        cutmix: the same for cutmix; with both on, each image takes one of them by a fair coin.
        erasing: probability that a rectangle of the image is replaced by the mean colour.
        mean: of red, green and blue, in units of 0 to 1, taken off each pixel.
        std: by which the difference is divided, alike.
        evaluate_resize: "center_crop" keeps the central square of `evaluate_crop` times the shorter side,
            "whole" squeezes the whole image into the square.
        evaluate_crop: share of the shorter side; for "center_crop" alone.
        exif_orientation: "ignore" (ImageNet's convention, and what its published accuracies used) or "apply".
    """

    image_size: int = 224
    interpolation: str = "bicubic"
    crop_area: list[float] = field(default_factory=lambda: [0.08, 1.0])
    crop_ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    flip: bool = True
    randaugment_n: int = 0
    randaugment_m: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    evaluate_resize: str = "center_crop"
    evaluate_crop: float = 0.875
    exif_orientation: str = "ignore"

    def __post_init__(self) -> None:
        at_least_one("image_size", self.image_size)
        one_of("interpolation", self.interpolation, INTERPOLATIONS)
        one_of("evaluate_resize", self.evaluate_resize, EVALUATE_RESIZES)
        one_of("exif_orientation", self.exif_orientation, ORIENTATIONS)
        _interval("crop_area", self.crop_area, most=1.0)
        _interval("crop_ratio", self.crop_ratio, most=math.inf)
        within("randaugment_n", self.randaugment_n, least=0, most=_MOST_OPERATIONS)
        within("randaugment_m", self.randaugment_m, least=0, most=MAX_RANDAUGMENT_MAGNITUDE)
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            if not (alpha == 0.0 or 0.01 <= alpha <= 100.0):
                raise ValueError(f"{name} is {alpha}; allowed: 0 (off), or an alpha from 0.01 to 100")
        within("erasing", self.erasing, least=0, most=1)
        up_to("evaluate_crop", self.evaluate_crop, most=1)
        for name, least, most in (("mean", 0, 1), ("std", 0.001, 100)):
            values = getattr(self, name)
            if len(values) != 3 or not all(least <= value <= most for value in values):
                raise ValueError(f"{name} is {values}; allowed: three numbers from {least} to {most}")


def _interval(name: str, value: list[float], *, most: float) -> None:
    if len(value) != 2 or not 0.0 < value[0] <= value[1] <= most:
        bound = "" if math.isinf(most) else f" ≤ {most:g}"
        raise ValueError(f"{name} is {value}; allowed: [least, greatest] with 0 < least ≤ greatest{bound}")
