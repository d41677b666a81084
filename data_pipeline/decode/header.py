"""What an image's header says, by content and never by name; nothing is decoded and nothing allocated.

Formats are a closed table: Pillow would otherwise start Ghostscript for a PostScript file.
"""

from __future__ import annotations

import io
import struct
from typing import NamedTuple

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from data_pipeline.decode.errors import DecodeError, check_bytes, check_size
from data_pipeline.decode.hush import hush_pillow
from data_pipeline.decode.jpeg_header import check_effort, is_jpeg, read_jpeg_header
from data_pipeline.decode.png_chunks import check_chunks, is_png
from data_pipeline.index import FORMATS

_ORIENTATION_TAG = 0x0112
_TIFF_BITS_TAG = 258
_PNG_BITS_AT = 24
_RECOGNISED_ONLY = (
    (b"\x1f\x8b", "gzip data"),
    (b"%PDF", "a PDF file"),
    (b"\x00\x00\x00\x0cjP", "JPEG 2000"),
    (b"version https://git-lfs", "a Git LFS pointer"),
    (b"\x00\x05\x16\x07", "a macOS AppleDouble file"),
)


class ImageInfo(NamedTuple):
    """A header's facts.

    Attributes:
        format: a name in `FORMATS`.
        width, height: of the stored pixels, whatever the orientation says.
        components: channels as stored (1 gray, 3 colour, 4 CMYK or alpha); a palette has 1 or 3.
        bits: per channel as stored.
        progressive: a progressive JPEG.
        orientation: EXIF's, 1 to 8; invalid values read as 1, and so does a TIFF's, which comes upright.
        animated: more than one frame; the first one is decoded.
        restart_interval: a JPEG's MCUs between restart markers, 0 for none.
    """

    format: str
    width: int
    height: int
    components: int
    bits: int = 8
    progressive: bool = False
    orientation: int = 1
    animated: bool = False
    restart_interval: int = 0


def probe(payload: bytes | memoryview) -> ImageInfo:
    """Read an image's header.

    Raises:
        DecodeError: no known image, a header that makes no sense, or one that asks for too much.
    """
    check_bytes(len(payload))
    if is_jpeg(payload):
        return _probe_jpeg(payload)
    payload = bytes(payload)
    if is_png(payload):
        check_chunks(payload)
    size = _announced_size(payload)
    if size is not None:
        check_size(width=size[0], height=size[1])
    with open_with_pillow(payload) as image:
        check_size(width=image.width, height=image.height)
        try:
            return ImageInfo(
                format=str(image.format),
                width=image.width,
                height=image.height,
                components=_components(image),
                bits=_bits(image, payload),
                orientation=_orientation(image),
                animated=bool(getattr(image, "is_animated", False)),
            )
        except Exception as error:  # tags and palettes of untrusted bytes, as below
            raise DecodeError("corrupt", f"{type(error).__name__}: {error}") from None


def open_with_pillow(payload: bytes) -> Image.Image:
    """Open one of the known formats.

    Raises:
        DecodeError: Pillow knows no such file, or its header is broken.
    """
    hush_pillow()
    try:
        return Image.open(io.BytesIO(payload), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise DecodeError("not_an_image", _describe(payload)) from None
    except Image.DecompressionBombError as error:
        raise DecodeError("limit", str(error)) from None
    except Exception as error:  # untrusted bytes make Pillow's parsers raise nearly anything
        raise DecodeError("corrupt", f"{type(error).__name__}: {error}") from None


def _probe_jpeg(payload: bytes | memoryview) -> ImageInfo:
    header = read_jpeg_header(payload)
    check_size(width=header.width, height=header.height)
    if not header.supported:
        raise DecodeError("unsupported", f"JPEG of process {header.coding:#x} with {header.bits} bits")
    check_effort(header, payload)
    return ImageInfo(
        format="JPEG",
        width=header.width,
        height=header.height,
        components=header.components,
        bits=header.bits,
        progressive=header.progressive,
        orientation=header.orientation,
        restart_interval=header.restart_interval,
    )


def _announced_size(payload: bytes) -> tuple[int, int] | None:
    """Return the size that some formats announce in their first bytes: Pillow allocates some at opening."""
    head = payload[:30]
    if is_png(payload) and len(head) >= 24:
        width, height = struct.unpack(">II", head[16:24])
    elif head[:6] in (b"GIF87a", b"GIF89a") and len(head) >= 10:
        width, height = struct.unpack("<HH", head[6:10])
    elif head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) == 30:
        width = 1 + int.from_bytes(head[24:27], "little")
        height = 1 + int.from_bytes(head[27:30], "little")
    elif head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8 " and len(head) == 30:
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", head[26:30]))
    elif head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8L" and len(head) >= 25:
        bits = int.from_bytes(head[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        return None
    return width, height


def _components(image: Image.Image) -> int:
    if image.mode != "P":
        return len(image.getbands())
    red, green, blue = (bytes(image.getpalette("RGB") or [])[channel::3] for channel in range(3))
    return 1 if red == green == blue else 3


def _bits(image: Image.Image, payload: bytes) -> int:
    """Return the bits of a channel; Pillow's mode does not tell them of colour images, which it cuts to 8."""
    if image.format == "PNG" and image.mode in ("RGB", "RGBA", "LA"):
        return payload[_PNG_BITS_AT]
    if isinstance(image, TiffImageFile) and image.mode in ("RGB", "RGBA", "LA"):
        found = image.tag_v2.get(_TIFF_BITS_TAG, 8)
        return int(max(found) if isinstance(found, tuple) else found)
    return {"1": 1, "I;16": 16, "I;16B": 16, "I": 32, "F": 32}.get(image.mode, 8)


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block is no reason to lose the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _describe(payload: bytes) -> str:
    for start, name in _RECOGNISED_ONLY:
        if payload.startswith(start):
            return f"the bytes are {name}"
    if payload[4:8] == b"ftyp":
        return f"an ISO media file of brand {payload[8:12].decode('latin-1')!r}"
    if payload.lstrip()[:1] == b"<":
        return "the bytes are a web page or other markup"
    return f"begins with {payload[:8].hex(' ')}"
