"""The lossless rewrite of JPEGs that lets the kernel decode a region alone. Knows nothing of shards.

A sequential JPEG's bits can only be read from the start: a crop at the bottom costs nearly the whole image.
Restart markers make the bits between two of them readable by themselves; Huffman tables that are optimal for
the image pay for the markers. Any decoder reads the result, and to the same pixels.
"""

from __future__ import annotations

from data_pipeline.decode import kernel

# In pixels: 8 MCUs of a photograph with halved chroma; 64 costs 2 % of size more for 3 % of speed.
TILE_WIDTH = 128


def tile_jpeg(payload: kernel.Payload) -> bytes | None:
    """Rewrite a JPEG with restart markers, read back and compared; None for what has to stay as it is.

    That is what is no sequential JPEG in gray or YCbCr, is damaged or too large. Segments before the scan
    (EXIF, ICC, quantisation) are copied; what follows the image's end is dropped.
    """
    tiled = kernel.tile(payload, tile_width=TILE_WIDTH)
    return tiled if isinstance(tiled, bytes) else None
