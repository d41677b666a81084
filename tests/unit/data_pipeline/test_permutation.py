from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.permutation import derive_key, derive_keys, permute, shuffled


@given(size=st.integers(1, 3000), key=st.integers(0, 2**63))
@settings(max_examples=60, deadline=None)
def test_every_key_gives_a_permutation(size: int, key: int) -> None:
    images = permute(np.arange(size), np.full(size, size), derive_keys(key, np.zeros(size, np.int64)))
    assert sorted(images.tolist()) == list(range(size))


@given(key=st.integers(0, 2**63), count=st.integers(0, 500))
@settings(max_examples=30, deadline=None)
def test_a_shuffle_holds_everything_once(key: int, count: int) -> None:
    assert sorted(shuffled(count, key).tolist()) == list(range(count))


@pytest.mark.parametrize("size", [2, 3, 5, 8, 11, 30])
def test_pairs_of_images_are_uniform_over_keys(size: int) -> None:
    keys = derive_keys(7, np.arange(20_000))
    first = permute(np.zeros(len(keys), np.int64), np.full(len(keys), size), keys)
    last = permute(np.full(len(keys), size - 1), np.full(len(keys), size), keys)
    observed = np.bincount(first * size + last, minlength=size * size)
    pairs = ~np.eye(size, dtype=bool).ravel()
    expected = len(keys) / pairs.sum()
    chi_square = ((observed[pairs] - expected) ** 2 / expected).sum()
    degrees = pairs.sum() - 1
    assert observed[~pairs].sum() == 0
    assert chi_square < degrees + 6 * np.sqrt(2 * degrees)


def test_a_point_outside_its_domain_is_refused() -> None:
    keys = derive_keys(1, np.arange(2))
    with pytest.raises(AssertionError, match="outside its domain"):
        permute(np.array([0, 5]), np.array([1, 5]), keys)


def test_a_point_of_a_huge_domain_needs_no_table() -> None:
    size = 10**12
    images = permute(np.arange(1000), np.full(1000, size), derive_keys(1, np.zeros(1000, np.int64)))
    assert len(set(images.tolist())) == 1000
    assert images.max() < size


def test_keys_depend_on_the_whole_path() -> None:
    keys = {derive_key(1), derive_key(1, 2), derive_key(1, 2, 3), derive_key(1, 3, 2), derive_key(2, 2, 3)}
    assert len(keys) == 5
