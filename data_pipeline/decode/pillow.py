"""Decoding with Pillow: the reference, the fallback, and the way of everything that is no common JPEG."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from data_pipeline.decode.errors import DecodeError
from data_pipeline.decode.header import open_with_pillow, probe

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_Pixels = NDArray[np.uint8]


def decode_rgb(payload: bytes, *, orientation: str = "ignore") -> Image.Image:
    """Decode a whole image (the first frame of an animation) to 8-bit RGB.

    Alpha is dropped, 16 bits are cut to 8, palettes, gray and CMYK are converted.

    Raises:
        DecodeError: the bytes are no image, ask for too much, or end early.
    """
    probe(payload)
    with open_with_pillow(payload) as image:
        try:
            image.load()
            upright = ImageOps.exif_transpose(image) if orientation == "apply" else image
            return _to_rgb(upright)
        except DecodeError:
            raise
        except Exception as error:  # untrusted bytes make Pillow's codecs raise nearly anything
            kind = "truncated" if "truncated" in str(error) else "corrupt"
            raise DecodeError(kind, f"{type(error).__name__}: {error}") from None


def decode_into(
    payload: bytes,
    box: tuple[int, int, int, int],
    out: _Pixels,
    *,
    flip: bool,
    interpolation: str,
    orientation: str,
) -> None:
    """Decode, crop, resize with antialiasing, flip, and write one image.

    Shape: out (height, width, 3).

    Raises:
        DecodeError: as in `decode_rgb`, or the box does not lie within the image.
    """
    image = decode_rgb(payload, orientation=orientation)
    left, top, right, bottom = box
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
        raise DecodeError("box", f"crop {box} does not lie within {image.width}×{image.height} pixels")
    resized = image.crop(box).resize((out.shape[1], out.shape[0]), _RESAMPLING[interpolation])
    pixels = np.asarray(resized)
    out[:] = pixels[:, ::-1] if flip else pixels


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):  # 32-bit samples: their range is a convention of the file's author
        raise DecodeError("unsupported", f"{image.mode} samples of 32 bits have no agreed range")
    if image.mode == "P":
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
