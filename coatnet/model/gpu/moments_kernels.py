"""Triton's part of a batch norm's moments; `coatnet.model.gpu.moments` imports it at its first call.

With TRITON_INTERPRET=1 the same code runs on a CPU, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def moments(
    x, parts, rows,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, TURN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Find ROWS rows' mean and squared deviations. Shape: parts (groups, programs, 2, channels)."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = channel < CHANNELS
    first = tl.program_id(1) * ROWS
    end = tl.minimum(first + ROWS, rows)
    x += (tl.program_id(2).to(tl.int64) * rows + first) * CHANNELS + channel
    # Deviations from any one value: with plain squares a mean far from 0 costs all digits.
    pivot = tl.load(x, mask=known, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    squares = total
    for row in range(0, ROWS, TURN):
        start = x + row * CHANNELS
        for number in tl.static_range(TURN):
            inside = known & (first + row + number < end)
            value = tl.load(start + number * CHANNELS, mask=inside, other=0.0).to(tl.float32)
            deviation = tl.where(inside, value - pivot, 0.0)
            total += deviation
            squares += deviation * deviation
    count = (end - first).to(tl.float32)
    parts += (tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * 2 * CHANNELS + channel
    tl.store(parts, pivot + total / count, mask=known)
    tl.store(parts + CHANNELS, squares - total * total / count, mask=known)
