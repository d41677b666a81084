"""RandAugment's operations on batches of bytes. Each takes an amount per image and knows no magnitudes.

Shape: images uint8 (n, H, W, 3), amounts float64 (n,), both on one device → images of the same shape.
Every operation gives Pillow's result (ImageOps, ImageEnhance, Image.transform), where AutoAugment took them
from; the geometric ones calculate in integers, so that a GPU and a CPU see the same pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

FILL = 128  # gray where nothing is left of the image, as in the TensorFlow code of the lineage
_FIXED = 1 << 16  # Pillow's fixed-point coordinates


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to the whole range."""
    low = images.amin(dim=(1, 2)).double()[:, None, :]
    high = images.amax(dim=(1, 2)).double()[:, None, :]
    scale = low.new_full((), 255.0) / (high - low).clamp(min=1.0)  # 255.0 / … would multiply by a reciprocal
    levels = torch.arange(256, device=images.device, dtype=torch.float64)[None, :, None]
    stretched = (levels * scale - low * scale).clamp(0.0, 255.0).floor()
    return _look_up(torch.where(high > low, stretched, levels), images)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Flatten each channel's histogram."""
    flat = images.flatten(1, 2).long()
    histogram = torch.zeros(len(images), 256, 3, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(1, flat, torch.ones_like(flat))
    levels = torch.arange(256, device=images.device)[None, :, None]
    brightest = flat.amax(dim=1, keepdim=True)
    step = (flat.shape[1] - histogram.gather(1, brightest)) // 255
    before = histogram.cumsum(dim=1) - histogram
    flattened = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    return _look_up(torch.where(step > 0, flattened, levels), images)


def invert(images: Tensor, _: Tensor) -> Tensor:
    """Make the negative."""
    return 255 - images


def posterize(images: Tensor, amounts: Tensor) -> Tensor:
    """Keep the highest bits; amounts are how many."""
    dropped = 8 - amounts.long()
    mask = ((255 >> dropped) << dropped).to(torch.uint8)
    return images & mask[:, None, None, None]


def solarize(images: Tensor, amounts: Tensor) -> Tensor:
    """Invert what is at or above the threshold; from 256 on nothing."""
    return torch.where(images < _each(amounts), images, 255 - images)


def solarize_add(images: Tensor, amounts: Tensor) -> Tensor:
    """Brighten what is darker than 128; amounts are levels to add."""
    brightened = (images.short() + _each(amounts).short()).clamp(max=255).to(torch.uint8)
    return torch.where(images < 128, brightened, images)


def color(images: Tensor, amounts: Tensor) -> Tensor:
    """Move away from gray (0: gray, 1: as it is)."""
    return _blend(_gray(images)[..., None].expand_as(images), images, amounts)


def contrast(images: Tensor, amounts: Tensor) -> Tensor:
    """Move away from the image's mean gray (0: flat, 1: as it is)."""
    gray = _gray(images)
    pixels = gray.shape[1] * gray.shape[2]
    total = gray.long().sum(dim=(1, 2))
    mean = (2 * total + pixels) // (2 * pixels)  # rounded half up
    return _blend(_each(mean).expand_as(images), images, amounts)


def brightness(images: Tensor, amounts: Tensor) -> Tensor:
    """Move away from black (0: black, 1: as it is)."""
    return _blend(torch.zeros_like(images), images, amounts)


def sharpness(images: Tensor, amounts: Tensor) -> Tensor:
    """Move away from the smoothed image (0: smooth, 1: as it is); the border stays as it is."""
    if min(images.shape[1:3]) < 3:
        return images
    planes = images.permute(0, 3, 1, 2).flatten(0, 1)[:, None].float()
    sums = 9.0 * functional.avg_pool2d(planes, 3, stride=1) + 4.0 * planes[:, :, 1:-1, 1:-1]
    smooth = (2 * sums.round().int() + 13) // 26  # the kernel's weights: eight times 1 and 5, of 13
    smoothed = images.clone()
    inner = smooth[:, 0].unflatten(0, (len(images), 3)).permute(0, 2, 3, 1)
    smoothed[:, 1:-1, 1:-1] = inner.to(torch.uint8)
    return _blend(smoothed, images, amounts)


def rotate(images: Tensor, amounts: Tensor) -> Tensor:
    """Turn around the centre; amounts are degrees, counter-clockwise."""
    height, width = images.shape[1:3]
    radians = torch.deg2rad(-amounts)
    cosine, sine = radians.cos(), radians.sin()
    x, y = width / 2.0, height / 2.0
    rows = [cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y]
    return _affine(images, torch.stack(rows, dim=1))


def shear_x(images: Tensor, amounts: Tensor) -> Tensor:
    """Shift each row by `amounts` times its distance from the top."""
    return _affine(images, _matrices(amounts, column=1))


def shear_y(images: Tensor, amounts: Tensor) -> Tensor:
    """Shift each column by `amounts` times its distance from the left."""
    return _affine(images, _matrices(amounts, column=3))


def translate_x(images: Tensor, amounts: Tensor) -> Tensor:
    """Move to the left; amounts are shares of the width."""
    return _affine(images, _matrices(amounts * images.shape[2], column=2))


def translate_y(images: Tensor, amounts: Tensor) -> Tensor:
    """Move up; amounts are shares of the height."""
    return _affine(images, _matrices(amounts * images.shape[1], column=5))


def _each(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _look_up(table: Tensor, images: Tensor) -> Tensor:
    """Replace levels; table (n, 256, 3)."""
    return table.to(torch.uint8).gather(1, images.flatten(1, 2).long()).view_as(images)


def _gray(images: Tensor) -> Tensor:
    """Return Pillow's integer ITU-R 601 luma; (n, H, W)."""
    red, green, blue = images.int().unbind(dim=3)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _blend(start: Tensor, images: Tensor, amounts: Tensor) -> Tensor:
    """Go from `start` (amount 0) to the images (1) and beyond; rounded down as in Pillow."""
    first = start.float()
    mixed = first + _each(amounts).float() * (images.float() - first)
    return mixed.clamp(0.0, 255.0).to(torch.uint8)


def _matrices(amounts: Tensor, *, column: int) -> Tensor:
    matrices = torch.zeros(len(amounts), 6, dtype=torch.float64, device=amounts.device)
    matrices[:, ::4] = 1.0  # the identity; a copy of it from the host would wait for all that a GPU has to do
    matrices[:, column] = amounts
    return matrices


def _affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Take each pixel from where its matrix (a, b, c, d, e, f) points, the nearest one, as Pillow does."""
    height, width = images.shape[1:3]
    a, b, c, d, e, f = _fixed(matrices).unbind(dim=1)
    offset_x, offset_y = _fixed(_centred(matrices[:, 0:3])), _fixed(_centred(matrices[:, 3:6]))
    rows = torch.arange(height, device=images.device)[None, :, None]
    columns = torch.arange(width, device=images.device)[None, None, :]
    x = (_wide(offset_x) + _wide(a) * columns + _wide(b) * rows) >> 16
    y = (_wide(offset_y) + _wide(d) * columns + _wide(e) * rows) >> 16
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    source = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(1)
    pixels = images.flatten(1, 2).gather(1, source[..., None].expand(-1, -1, 3)).view_as(images)
    return torch.where(inside[..., None], pixels, FILL)


def _centred(row: Tensor) -> Tensor:
    """Return where the first pixel's centre points."""
    return row[:, 2] + row[:, 0] * 0.5 + row[:, 1] * 0.5


def _fixed(values: Tensor) -> Tensor:
    return (values * _FIXED + 0.5).floor().long()


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None]
