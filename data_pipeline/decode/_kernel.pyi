from collections.abc import Sequence
from typing import Any

def decode_batch(
    payloads: Sequence[bytes],
    boxes: Any,
    flips: Any,
    out: Any,
    height: int,
    width: int,
    bicubic: int,
    max_pixels: int,
    allow_simd: bool,
    /,
) -> bytes: ...
def check(payload: bytes, max_pixels: int, /) -> int: ...
def tile(payload: bytes, tile_width: int, max_pixels: int, /) -> bytes | int: ...
def simd() -> str: ...
