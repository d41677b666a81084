"""Judges one image's bytes: what is odd about it, and what the policy does with it. Writes nothing."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

from coatnet.config import UserError
from data_pipeline.decode import DecodeError, ImageInfo, check_image, decode_image, probe
from data_pipeline.index import Flag
from data_pipeline.sharding.options import OddPolicy, ShardOptions
from data_pipeline.suffixes import FORMAT_OF, SUFFIX_OF, suffix_of
from data_pipeline.tile import tile_jpeg

_FLAGS = {
    "progressive": Flag.PROGRESSIVE,
    "gray": Flag.GRAY,
    "cmyk": Flag.FOUR_CHANNELS,
    "animated": Flag.ANIMATED,
    "deep": Flag.DEEP,
    "damaged": Flag.DAMAGED,
    "renamed": Flag.RENAMED,
}
_QUALITY = 95


class Judged(NamedTuple):
    """An image as it will be written, or None in `info` where it is skipped.

    Attributes:
        kinds: everything odd about it, by the names of the policy.
        detail: the decoder's words, if any.
    """

    payload: bytes | memoryview
    info: ImageInfo | None
    flags: int = 0
    kinds: Sequence[str] = ()
    detail: str = ""
    action: str = "keep"

    @property
    def suffix(self) -> str:
        """The extension that its content deserves."""
        assert self.info is not None
        return SUFFIX_OF[self.info.format]


def judge(payload: bytes | memoryview, *, name: str, options: ShardOptions) -> Judged:
    """Judge an image.

    Raises:
        UserError: the policy for one of its kinds is "stop".
    """
    kinds: list[str] = []
    detail = ""
    info: ImageInfo | None = None
    try:
        info = probe(payload)
        kinds = _odd_kinds(info, name)
        if options.check == "decode":
            verdict = check_image(payload)
            if verdict is not None:
                kinds.append(verdict.kind)
                detail = verdict.detail
    except DecodeError as error:
        kinds.append(error.kind)
        detail = error.detail
    action = _action(kinds, options.policy)
    if action == "stop":
        raise UserError(f"{name}: {', '.join(kinds)}{': ' if detail else ''}{detail} (its policy is stop)")
    if action == "skip":
        return Judged(payload, None, kinds=kinds, detail=detail, action=action)
    assert info is not None
    flags = sum(_FLAGS.get(kind, 0) for kind in set(kinds)) if kinds else 0
    if action == "convert":
        try:
            payload = _convert(bytes(payload))
        except DecodeError as error:
            return Judged(payload, None, kinds=[*kinds, error.kind], detail=error.detail, action="skip")
        info, flags = probe(payload), int(Flag.CONVERTED)
    if options.tile_jpeg and info.format == "JPEG":
        tiled = tile_jpeg(payload)
        if tiled is not None:
            payload, flags = tiled, flags | int(Flag.TILED)
    return Judged(payload, info, flags=flags, kinds=kinds, detail=detail, action=action)


def _odd_kinds(info: ImageInfo, name: str) -> list[str]:
    found = {
        "progressive": info.progressive,
        "gray": info.components <= 2,
        "cmyk": info.components == 4 and info.format == "JPEG",
        "animated": info.animated,
        "deep": info.bits > 8,
        "oriented": info.orientation != 1,
        "renamed": FORMAT_OF.get(suffix_of(name), info.format) != info.format,
    }
    return [kind for kind, is_so in found.items() if is_so]


def _action(kinds: list[str], policy: OddPolicy) -> str:
    """Return the strictest action for any of the kinds; "box" cannot happen for a whole image."""
    if not kinds:
        return "keep"
    actions = {getattr(policy, kind, "skip") for kind in kinds}
    return next((action for action in ("stop", "skip", "convert") if action in actions), "keep")


def _convert(payload: bytes) -> bytes:
    image = decode_image(payload, orientation="apply")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()
