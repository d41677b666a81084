from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.tools import shard_facts
from data_pipeline.tools.shard_facts import Spread

SHARES = [0.0, 0.05, 0.5, 0.95, 1.0]


@given(parts=st.lists(st.lists(st.integers(0, 2**31), max_size=30), min_size=1, max_size=6).filter(any))
@settings(max_examples=60, deadline=None)
def test_quantiles_of_parts_are_those_of_the_whole(parts: list[list[int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_facts, "_COUNTED_AT_ONCE", 20)
        spread = Spread()
        for part in parts:
            spread.add(np.array(part, dtype=np.uint32))
        found = [*spread.quantiles().values()]
    whole = np.concatenate([np.array(part, dtype=np.int64) for part in parts])
    assert found == pytest.approx(np.quantile(whole, SHARES), abs=1.0)
    assert [found[0], found[-1]] == [whole.min(), whole.max()]
