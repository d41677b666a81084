"""Keep off stderr what Pillow and libtiff say of images there: each image's verdict says what matters."""

from __future__ import annotations

import ctypes
import functools
import logging
import warnings

from PIL import _imaging


@functools.cache
def hush_pillow() -> None:
    """Silence this process's Pillow. Filters that others set later, as pytest does for each test, win."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    # Pillow silences libtiff's warnings and leaves its errors, which name no file, to C's stderr.
    codecs = ctypes.CDLL(_imaging.__file__)
    if hasattr(codecs, "TIFFSetErrorHandler"):  # not in a Pillow without libtiff, or with one of its own
        codecs.TIFFSetErrorHandler(None)
