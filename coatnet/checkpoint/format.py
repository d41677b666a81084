"""What lies on disk: one safetensors file per rank and one manifest. Pure bytes and JSON; never a pickle.

docs/checkpoint-format.md describes it for people who read it with other tools.
"""

from __future__ import annotations

import builtins
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
import xxhash

from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.inspection import MAX_MANIFEST_BYTES
from coatnet.config import UserError
from coatnet.config.plain_text import json_text
from coatnet.runtime.regular_files import read_regular
from coatnet.runtime.whole_files import write_whole

FORMAT = 1
T = TypeVar("T", "Piece", "RankFile", "Manifest")
_DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
TORCH_DTYPES = {name: dtype for dtype, name in _DTYPES.items()}


class CheckpointError(UserError):
    """A checkpoint is damaged, incomplete, or of another kind."""


@dataclass(frozen=True)
class Piece:
    """Where one fragment lies: a byte range of a rank's file, with its own checksum."""

    kind: str
    name: str
    shape: tuple[int, ...]
    start: int
    count: int
    dtype: str
    offset: int
    bytes: int
    xxh3: str


@dataclass(frozen=True)
class RankFile:
    """One rank's file: its size, the checksum of its header, and its pieces, which cover the rest."""

    name: str
    bytes: int
    header_bytes: int
    header_xxh3: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Manifest:
    """What makes a directory a checkpoint. `facts` is the application's own JSON."""

    step: int
    samples_seen: int
    world_size: int
    epoch: int
    files: tuple[RankFile, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


_TYPES: dict[type, tuple[type, ...]] = {
    record: tuple(getattr(builtins, str(one.type).partition("[")[0]) for one in fields(record))
    for record in (Piece, RankFile, Manifest)
}


def write_rank_file(path: Path, fragments: Sequence[Fragment]) -> RankFile:
    """Write fragments that lie in host memory as a safetensors file; fsync it; tell what the manifest holds.

    Raises:
        OSError: the file system refused; the caller removes what was written.
    """
    head = _head(fragments)
    pieces, offset = [], len(head)
    with path.open("xb", buffering=0) as file:
        _write_all(file.fileno(), memoryview(head))
        for fragment in fragments:
            data = fragment.data.view(torch.uint8).numpy().data
            _write_all(file.fileno(), data)
            pieces.append(
                Piece(
                    kind=fragment.kind,
                    name=fragment.name,
                    shape=tuple(fragment.shape),
                    start=fragment.start,
                    count=fragment.data.numel(),
                    dtype=_DTYPES[fragment.data.dtype],
                    offset=offset,
                    bytes=len(data),
                    xxh3=xxhash.xxh3_64_hexdigest(data),
                )
            )
            offset += len(data)
        os.fsync(file.fileno())
    return RankFile(path.name, offset, len(head), xxhash.xxh3_64_hexdigest(head), tuple(pieces))


def _head(fragments: Sequence[Fragment]) -> bytes:
    """Return what a safetensors file begins with: its header's length, and the header, padded to 8 bytes."""
    header: dict[str, Any] = {}
    position = 0
    for fragment in fragments:
        header[f"{fragment.kind}/{fragment.name}/{fragment.start}"] = {
            "dtype": _DTYPES[fragment.data.dtype],
            "shape": [fragment.data.numel()],
            "data_offsets": [position, position + fragment.data.nbytes],
        }
        position += fragment.data.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document that carries its own checksum, and fsync it."""
    with path.open("xb", buffering=0) as file:
        _write_all(file.fileno(), memoryview(_sealed(value)))
        os.fsync(file.fileno())


def replace_facts(manifest: Path, facts: dict[str, Any]) -> None:
    """Let a manifest tell other facts of the same files, from one moment to the next.

    Raises:
        CheckpointError: it cannot be read.
        OSError: it could not be written, and tells what it told.
    """
    write_whole(manifest, _sealed({**read_json(manifest), "facts": facts}))


def _sealed(value: Any) -> bytes:
    text = json_text(value, separators=(",", ":"), sort_keys=True)
    return json.dumps({"xxh3": xxhash.xxh3_64_hexdigest(text.encode()), "body": text}).encode()


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote.

    Raises:
        CheckpointError: missing, cut short, or changed.
    """
    try:
        sealed = json.loads(read_regular(path, most=MAX_MANIFEST_BYTES))
        text = sealed["body"]
        if xxhash.xxh3_64_hexdigest(text.encode()) != sealed["xxh3"]:
            raise CheckpointError(f"{path}: its checksum does not match, it was changed or damaged")
        return json.loads(text)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a sealed JSON document ({error})") from None


def rank_file_from_json(value: dict[str, Any]) -> RankFile:
    """Rebuild a RankFile from the JSON of its fields.

    Raises:
        KeyError, TypeError, ValueError: it is none, or a piece lies outside of its tensor or its file.
    """
    pieces = tuple(_typed(Piece(**{**piece, "shape": tuple(piece["shape"])})) for piece in value["pieces"])
    file = _typed(RankFile(**{**value, "pieces": pieces}))
    for piece in pieces:
        if not all(type(length) is int and length >= 0 for length in piece.shape):
            raise ValueError(f"{piece.kind} {piece.name} has the shape {piece.shape}")
        size = piece.count * TORCH_DTYPES[piece.dtype].itemsize
        in_tensor = 0 <= piece.start <= piece.start + piece.count <= math.prod(piece.shape)
        if not in_tensor or piece.bytes != size or not 0 <= piece.offset <= file.bytes - size:
            raise ValueError(f"{piece.kind} {piece.name} lies outside of its tensor or of {file.name}")
    return file


def manifest_to_json(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest as what JSON knows; `asdict` would copy each value of a million pieces."""
    files = [{**vars(file), "pieces": [vars(piece) for piece in file.pieces]} for file in manifest.files]
    return {**vars(manifest), "files": files}


def manifest_from_json(value: dict[str, Any], *, origin: Path) -> Manifest:
    """Rebuild what `manifest_to_json` took apart.

    Raises:
        CheckpointError: of another format version, or not a manifest.
    """
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else None
        raise CheckpointError(f"{origin}: checkpoint format {found}, this version reads format {FORMAT}")
    try:
        files = tuple(rank_file_from_json(one) for one in value["files"])
        return _typed(Manifest(**{**value, "files": files}))
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{origin}: not a manifest ({error})") from None


def _typed(record: T) -> T:
    """Return a record of what others wrote if each field is of the type that is written at it.

    Raises:
        TypeError: one is not.
    """
    values, types = vars(record), _TYPES[type(record)]
    if tuple(map(type, values.values())) != types:  # at once: a checkpoint of many ranks has a million pieces
        wrong = (one for one, kind in zip(values.items(), types, strict=True) if type(one[1]) is not kind)
        raise TypeError("{} is {!r:.100}".format(*next(wrong)))
    return record


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
