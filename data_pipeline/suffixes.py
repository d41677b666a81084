"""What the endings of file names claim. Content decides what an image is; a name says where one may be."""

from __future__ import annotations

_OF_FORMAT = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "PNG": ("png",),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp", "dib"),
    "TIFF": ("tif", "tiff"),
    "AVIF": ("avif",),
}
SUFFIX_OF = {name: suffixes[0] for name, suffixes in _OF_FORMAT.items()}
FORMAT_OF = {suffix: name for name, suffixes in _OF_FORMAT.items() for suffix in suffixes}
# Those of images that cannot be used as well: they are named, and not overlooked.
_OTHERS = "ppm pgm pbm pnm apng tga exr jp2 j2k jxl heic heif dng cr2 nef arw image img"
_IMAGES = {*FORMAT_OF, *_OTHERS.split()}


def suffix_of(name: str) -> str:
    """Return what follows the last dot, in small letters; all of the name where there is none."""
    return name.rpartition(".")[2].lower()


def is_image_name(name: str) -> bool:
    """Say whether a file's name is that of an image."""
    return suffix_of(name) in _IMAGES
