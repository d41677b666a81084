"""The GPU kernels, compiled for an A100 and an H100 without either: no spills, and shared memory suffices."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("triton") is None, reason="needs triton, of which there is no build here"),
]


@pytest.fixture(scope="module")
def code(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("kernel_code")


@pytest.mark.parametrize("arch", [80, 90])
def test_no_kernel_spills_or_asks_for_more_shared_memory_than_there_is(code: ModuleType, arch: int) -> None:
    maps = ("depthwise 28²×1536", "fused MBConv 28²×1536", "norm 28²×1536", "squeeze, excite 28²×1536")
    cases = (*maps, "attention 196×128")  # heads of CoAtNet-6 and -7
    launches = [launch for case in cases for launch in code.CASES[case]()]
    rows = [code.describe(launch, arch) for launch in launches]
    assert [row["kernel"] for row in rows] == [
        "convolve", "backward", "forward", "backward", "moments", "sums", "sums",
        "forward", "query_gradient", "key_value_gradient", "bias_gradient",
    ]  # fmt: skip
    assert not [row for row in rows if row["spilled_bytes"]]
    assert max(row["shared_bytes"] for row in rows) <= code.SHARED_LIMIT[arch]
    # Nine taps are nine multiplications, in an element's own loop: the count is of the right instructions.
    assert rows[0]["float"] == pytest.approx(9, abs=1)
