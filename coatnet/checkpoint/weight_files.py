"""Files of weights, looked at before they are trusted: pickles by name, safetensors by their header.

Imports no torch. Whose weights they are is a question of `inspection`.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coatnet.config import UserError
from coatnet.runtime.regular_files import open_regular

_PICKLES = (".pth", ".pth.tar", ".pt", ".bin", ".pkl", ".ckpt")
_MAX_HEADER_BYTES = 4 << 20  # CoAtNet-7's 1,052 tensors take 0.2 MiB
_MAX_DIMENSIONS, _MAX_NUMBER = 8, 1 << 62
# As safetensors names them, but for those that no weights have.
_ELEMENT_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}


def is_pickle(path: Path) -> bool:
    """Tell by its name whether a file is read by unpickling."""
    return path.name.lower().endswith(_PICKLES)


def refuse_pickle(path: Path) -> None:
    """Refuse a file that is read by unpickling.

    Raises:
        UserError: it is one.
    """
    if is_pickle(path):
        raise UserError(
            f"{path}: a pickle can run any program when it is read; convert it to safetensors, or let "
            "`coatnet import --trust-pickle` take it over, which reads tensors alone"
        )


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in a .safetensors file: as what, from which byte of the file on."""

    dtype: str
    shape: list[int]
    offset: int


def check_safetensors(path: Path) -> dict[str, list[int]]:
    """Check a .safetensors file as `stored_tensors` does, and return its tensors' shapes."""
    return {name: one.shape for name, one in stored_tensors(path).items()}


def stored_tensors(path: Path) -> dict[str, Stored]:
    """Check the header of a .safetensors file, and return what it says of its tensors.

    Raises:
        UserError: too short, a header that claims too much, or not safetensors at all (a renamed pickle).
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            header_bytes = int.from_bytes(file.read(8), "little")
            if size < 10 or header_bytes > size - 8:
                raise UserError(f"{path}: not a safetensors file")
            if header_bytes > _MAX_HEADER_BYTES:
                raise UserError(
                    f"{path}: not a valid safetensors file (a header of {header_bytes:,} bytes; allowed: "
                    f"{_MAX_HEADER_BYTES:,})"
                )
            header = file.read(header_bytes)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if not header.startswith(b"{"):
        raise UserError(f"{path}: not a safetensors file")
    try:
        tensors = json.loads(header, object_pairs_hook=_each_once)
        tensors.pop("__metadata__", None)
        spans = [(*each["data_offsets"], each["dtype"], each["shape"]) for each in tensors.values()]
        if not all(_is_sound(*span) for span in spans):
            raise ValueError("offsets or shapes that no tensor has")
        position = 0
        for start, end in sorted(span[:2] for span in spans):
            if start != position:
                raise ValueError("tensors that overlap, or leave a gap")
            position = end
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: not a valid safetensors file (its header is damaged)") from None
    if position != size - 8 - header_bytes:
        claimed = "more" if position > size - 8 - header_bytes else "less"
        raise UserError(f"{path}: not a valid safetensors file (its header claims {claimed} than there is)")
    begin = 8 + header_bytes
    return {
        name: Stored(each["dtype"], each["shape"], begin + each["data_offsets"][0])
        for name, each in tensors.items()
    }


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _is_sound(start: Any, end: Any, dtype: Any, shape: list[Any]) -> bool:
    """Tell whether a tensor's bytes are as many as its shape asks for; bounds come before any product."""
    numbers = [start, end, *shape]
    if dtype not in _ELEMENT_BYTES or len(numbers) > 2 + _MAX_DIMENSIONS:
        return False
    if not all(type(each) is int and 0 <= each < _MAX_NUMBER for each in numbers):
        return False
    return end - start == math.prod(shape) * _ELEMENT_BYTES[dtype]
