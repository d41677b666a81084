"""Triton's part of the depthwise convolution; `coatnet.model.gpu.depthwise` imports it at its first call.

With TRITON_INTERPRET=1 the same code runs on a CPU, which is how it is tested where there is no GPU.

A tile is flat, COLUMNS × BLOCK channels long: with two dimensions Triton gives bf16 maps and fp32 sums
different layouts and moves every row through shared memory. Rows are loaded one ahead of their use.
"""

# mypy: disable-error-code="assignment"
# Tuples grow while Triton unrolls a loop.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _row(
    base, row, column, channel, there,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Load a row of the strip, shifted by some columns; zeros outside of the map."""
    at = column + SHIFT
    inside = (at >= 0) & (at < WIDTH) & (channel < CHANNELS) & (there & (row >= 0) & (row < HEIGHT))
    return tl.load(base + ((row * WIDTH + at) * CHANNELS + channel), mask=inside, other=0.0)


@triton.jit
def _three(
    base, row, column, channel, there,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Load a row as it is left of, at and right of the strip's columns."""
    values = ()
    for shift in tl.static_range(-1, 2):
        values += (_row(base, row, column, channel, there, HEIGHT, WIDTH, CHANNELS, shift),)
    return values


@triton.jit
def nine(taps, channel, CHANNELS: tl.constexpr):
    """Load the filter: a tuple of nine taps, row by row. Shape: taps (9, channels)."""
    values = ()
    for number in tl.static_range(9):
        values += (tl.load(taps + number * CHANNELS + channel, mask=channel < CHANNELS, other=0.0),)
    return values


@triton.jit
def convolve(
    x, taps, y,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One strip of COLUMNS × BLOCK channels of an image, from the top to the bottom."""
    flat = tl.arange(0, COLUMNS * BLOCK)
    channel = tl.program_id(0) * BLOCK + flat % BLOCK
    column = tl.program_id(1) * COLUMNS + flat // BLOCK
    image = tl.program_id(2).to(tl.int64) * HEIGHT * WIDTH * CHANNELS
    x += image
    y += image
    t = nine(taps, channel, CHANNELS)
    known = (column < WIDTH) & (channel < CHANNELS)
    above = tl.zeros((COLUMNS * BLOCK,), dtype=tl.float32)  # output row `row - 1`, complete after this row
    here = tl.zeros((COLUMNS * BLOCK,), dtype=tl.float32)
    ahead = _three(x, 0, column, channel, True, HEIGHT, WIDTH, CHANNELS)
    for row in range(HEIGHT + 1):
        left, middle, right = [one.to(tl.float32) for one in ahead]
        ahead = _three(x, row + 1, column, channel, True, HEIGHT, WIDTH, CHANNELS)
        above = above + left * t[6] + middle * t[7] + right * t[8]
        where = ((row - 1) * WIDTH + column) * CHANNELS + channel
        tl.store(y + where, above.to(y.dtype.element_ty), mask=known & (row > 0))
        above = here + left * t[3] + middle * t[4] + right * t[5]
        here = left * t[0] + middle * t[1] + right * t[2]


@triton.jit
def _turned(row, t, LAST: tl.constexpr):
    """Add what a row of the output's gradient gives by three taps, the last one first."""
    return row[0] * t[LAST] + row[1] * t[LAST - 1] + row[2] * t[LAST - 2]


@triton.jit
def backward(
    down, x, taps, down_x, parts, batch,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    IMAGES: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Both gradients over one strip of IMAGES images; `parts` is (strips, 9, channels).

    The output's gradient i − 1 rows below and j − 1 columns right of the input's element came there by the
    tap (2 − i, 2 − j). So nine values give the map's gradient and, times x, the weights'.
    """
    flat = tl.arange(0, COLUMNS * BLOCK)
    channel = tl.program_id(0) * BLOCK + flat % BLOCK
    column = tl.program_id(1) * COLUMNS + flat // BLOCK
    known = (column < WIDTH) & (channel < CHANNELS)
    t = nine(taps, channel, CHANNELS)
    zero = tl.zeros((COLUMNS * BLOCK,), dtype=tl.float32)
    sums = (zero,) * 9
    for number in range(IMAGES):
        image = tl.program_id(2) * IMAGES + number
        there = image < batch
        offset = image.to(tl.int64) * HEIGHT * WIDTH * CHANNELS
        first = _three(down + offset, 0, column, channel, there, HEIGHT, WIDTH, CHANNELS)
        above, middle = (zero,) * 3, [one.to(tl.float32) for one in first]
        ahead = _three(down + offset, 1, column, channel, there, HEIGHT, WIDTH, CHANNELS)
        ahead_x = _row(x + offset, 0, column, channel, there, HEIGHT, WIDTH, CHANNELS, 0)
        for row in range(HEIGHT):
            below = [one.to(tl.float32) for one in ahead]
            value = ahead_x.to(tl.float32)
            ahead = _three(down + offset, row + 2, column, channel, there, HEIGHT, WIDTH, CHANNELS)
            ahead_x = _row(x + offset, row + 1, column, channel, there, HEIGHT, WIDTH, CHANNELS, 0)
            total = _turned(above, t, 8)
            total += _turned(middle, t, 5)
            total += _turned(below, t, 2)
            where = (row * WIDTH + column) * CHANNELS + channel
            tl.store(down_x + offset + where, total.to(down_x.dtype.element_ty), mask=known & there)
            window, new = (below, middle, above), ()
            for tap in tl.static_range(9):
                new += (sums[tap] + window[tap // 3][2 - tap % 3] * value,)
            sums = new
            above, middle = middle, below
    strip = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    parts += strip.to(tl.int64) * 9 * CHANNELS + own
    for tap in tl.static_range(9):
        total = tl.sum(tl.reshape(sums[tap], (COLUMNS, BLOCK)), axis=0)
        tl.store(parts + tap * CHANNELS, total, mask=own < CHANNELS)
