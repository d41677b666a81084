"""The kinds of sources, told apart by what is there. Each ends as a `Listing`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipeline.folder import list_image_folder
from data_pipeline.sharding.listing import WHOLE_FILE, Listing


def list_source(source: Path) -> Listing:
    """List a source's samples.

    Raises:
        UserError: there is nothing of a known kind, or it is malformed.
    """
    return list_folder(source)


def list_folder(folder: Path) -> Listing:
    """List an image folder, CLASS/…/file."""
    classes, files = list_image_folder(folder)
    return Listing(
        root=folder,
        classes=classes,
        files=[path for path, _, _ in files],
        file=np.arange(len(files)),
        offset=np.full(len(files), WHOLE_FILE),
        size=np.array([size for _, _, size in files], dtype=np.int64),
        label=np.array([label for _, label, _ in files], dtype=np.int64),
        source={"kind": "image folder", "path": str(folder)},
    )
