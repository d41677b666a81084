"""Image files, read without trust in what lies under their names."""

from __future__ import annotations

import os
from pathlib import Path

from coatnet.runtime.regular_files import open_regular
from data_pipeline.decode.errors import check_bytes


def read_image_file(path: Path) -> bytes:
    """Read a regular file that is not too large for an image.

    Raises:
        OSError, DecodeError: it cannot be read, is a pipe or a device, or is too large.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        check_bytes(size)
        return file.read(size)
