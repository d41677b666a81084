"""Manifests as others may write them: one line says what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coatnet.config import UserError
from data_pipeline.manifest import Manifest, ShardEntry, parse_manifest

ENTRY = {"name": "a.tar", "samples": 2, "bytes": 4096, "xxh3": "0" * 32, "index_xxh3": "1" * 32}


def written(shards: list[dict[str, Any]], **fields: Any) -> bytes:
    """Write a manifest, some of its fields replaced."""
    values = json.loads(Manifest(["ant"], [ShardEntry(**ENTRY)]).to_json())
    return json.dumps({**values, "shards": shards, **fields}).encode()


def test_a_manifest_is_read_as_it_was_written() -> None:
    entries = [ShardEntry(**ENTRY), ShardEntry(**{**ENTRY, "name": "b.tar", "labels_xxh3": "2" * 32})]
    manifest = Manifest(["ant", "café"], entries, "multi", {"ant": "insect"}, {"kind": "tars"}, {"odd": 1})
    assert parse_manifest(manifest.to_json().encode(), origin="here") == manifest
    assert manifest.samples == 4


@pytest.mark.parametrize("number", [1.0, "2", None, -1, 1 << 63])
@pytest.mark.parametrize("field", ["samples", "bytes"])
def test_a_number_that_counts_nothing_is_refused(field: str, number: object) -> None:
    with pytest.raises(UserError, match="here: is not understood: "):
        parse_manifest(written([{**ENTRY, field: number}], samples=2), origin="here")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "here: is not JSON: Expecting value"),
        (b"[]", "is not a manifest of shards"),
        (b'{"format": "coatnet-shards", "version": 1}', "here: is not understood: KeyError 'classes'"),
        (b"[" * 100_000, "here: is not JSON: (maximum recursion|Stack overflow)"),
        (written([ENTRY, ENTRY], samples=4), "here: names a shard more than once"),
        (written([ENTRY], samples=3), "its shards hold 2 samples, it says 3"),
        (written([], samples=0), "here: holds no samples"),
        (written([ENTRY], label_kind="several"), "label_kind is 'several'; allowed: single, multi"),
        (written([ENTRY], version=2), "has version 2; this program reads 1"),
        (written([ENTRY], format="x"), "is not a manifest of shards"),
        (written([ENTRY], classes=["ant", "a\tb"]), r"here: class 1 holds the control character U\+0009"),
        (written([ENTRY], source=3), "here: is not understood: TypeError"),
        (written([ENTRY], hierarchy=[1]), "here: is not understood: TypeError"),
        (written([ENTRY], counts=None), "here: is not understood: TypeError"),
        (written([{**ENTRY, "name": "../a.tar"}]), r"shard name '\.\./a\.tar'; allowed: up to 200"),
        (written([{**ENTRY, "name": "a" * 201}]), "allowed: up to 200 letters"),
    ],
)
def test_a_garbled_or_hostile_manifest_is_refused_in_a_line(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_manifest(content, origin="here")
