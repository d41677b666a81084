"""Triton's part of the depthwise convolution; `coatnet.model.gpu.depthwise` imports it at its first call.

With TRITON_INTERPRET=1 the same code runs on a CPU, which is how it is tested where there is no GPU.

A tile is flat, COLUMNS × BLOCK channels long: with two dimensions Triton gives bf16 maps and fp32 sums
different layouts and moves every row through shared memory. Rows are loaded one ahead of their use.
"""

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
    return (
        _row(base, row, column, channel, there, HEIGHT, WIDTH, CHANNELS, -1),
        _row(base, row, column, channel, there, HEIGHT, WIDTH, CHANNELS, 0),
        _row(base, row, column, channel, there, HEIGHT, WIDTH, CHANNELS, 1),
    )


@triton.jit
def _tap(taps, channel, CHANNELS: tl.constexpr, NUMBER: tl.constexpr):
    return tl.load(taps + NUMBER * CHANNELS + channel, mask=channel < CHANNELS, other=0.0)


@triton.jit
def _taps(taps, channel, CHANNELS: tl.constexpr):
    """Load the nine, row by row."""
    return (
        _tap(taps, channel, CHANNELS, 0), _tap(taps, channel, CHANNELS, 1), _tap(taps, channel, CHANNELS, 2),
        _tap(taps, channel, CHANNELS, 3), _tap(taps, channel, CHANNELS, 4), _tap(taps, channel, CHANNELS, 5),
        _tap(taps, channel, CHANNELS, 6), _tap(taps, channel, CHANNELS, 7), _tap(taps, channel, CHANNELS, 8),
    )  # fmt: skip


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
    t00, t01, t02, t10, t11, t12, t20, t21, t22 = _taps(taps, channel, CHANNELS)
    known = (column < WIDTH) & (channel < CHANNELS)
    above = tl.zeros((COLUMNS * BLOCK,), dtype=tl.float32)  # output row `row - 1`, complete after this row
    here = tl.zeros((COLUMNS * BLOCK,), dtype=tl.float32)
    next_left, next_middle, next_right = _three(x, 0, column, channel, True, HEIGHT, WIDTH, CHANNELS)
    for row in range(HEIGHT + 1):
        left = next_left.to(tl.float32)
        middle = next_middle.to(tl.float32)
        right = next_right.to(tl.float32)
        next_left, next_middle, next_right = _three(
            x, row + 1, column, channel, True, HEIGHT, WIDTH, CHANNELS
        )
        above = above + left * t20 + middle * t21 + right * t22
        where = ((row - 1) * WIDTH + column) * CHANNELS + channel
        tl.store(y + where, above.to(y.dtype.element_ty), mask=known & (row > 0))
        above = here + left * t10 + middle * t11 + right * t12
        here = left * t00 + middle * t01 + right * t02


@triton.jit
def backward(
    down, x, taps, down_x, parts, batch,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    IMAGES: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Both gradients over one strip of IMAGES images; `parts` is (strips, 9, channels).

    d[i, j] is the output's gradient i − 1 rows below and j − 1 columns right of the input's element; it came
    there by the tap (2 − i, 2 − j). So nine values give the map's gradient and, times x, the weights'.
    """
    flat = tl.arange(0, COLUMNS * BLOCK)
    channel = tl.program_id(0) * BLOCK + flat % BLOCK
    column = tl.program_id(1) * COLUMNS + flat // BLOCK
    known = (column < WIDTH) & (channel < CHANNELS)
    t00, t01, t02, t10, t11, t12, t20, t21, t22 = _taps(taps, channel, CHANNELS)
    zero = tl.zeros((COLUMNS * BLOCK,), dtype=tl.float32)
    s00, s01, s02 = zero, zero, zero
    s10, s11, s12 = zero, zero, zero
    s20, s21, s22 = zero, zero, zero
    for number in range(IMAGES):
        image = tl.program_id(2) * IMAGES + number
        there = image < batch
        offset = image.to(tl.int64) * HEIGHT * WIDTH * CHANNELS
        d00, d01, d02 = zero, zero, zero
        d10 = _row(down + offset, 0, column, channel, there, HEIGHT, WIDTH, CHANNELS, -1).to(tl.float32)
        d11 = _row(down + offset, 0, column, channel, there, HEIGHT, WIDTH, CHANNELS, 0).to(tl.float32)
        d12 = _row(down + offset, 0, column, channel, there, HEIGHT, WIDTH, CHANNELS, 1).to(tl.float32)
        next_left, next_middle, next_right = _three(
            down + offset, 1, column, channel, there, HEIGHT, WIDTH, CHANNELS
        )
        next_x = _row(x + offset, 0, column, channel, there, HEIGHT, WIDTH, CHANNELS, 0)
        for row in range(HEIGHT):
            d20 = next_left.to(tl.float32)
            d21 = next_middle.to(tl.float32)
            d22 = next_right.to(tl.float32)
            value = next_x.to(tl.float32)
            next_left, next_middle, next_right = _three(
                down + offset, row + 2, column, channel, there, HEIGHT, WIDTH, CHANNELS
            )
            next_x = _row(x + offset, row + 1, column, channel, there, HEIGHT, WIDTH, CHANNELS, 0)
            total = d00 * t22 + d01 * t21 + d02 * t20
            total += d10 * t12 + d11 * t11 + d12 * t10
            total += d20 * t02 + d21 * t01 + d22 * t00
            where = (row * WIDTH + column) * CHANNELS + channel
            tl.store(down_x + offset + where, total.to(down_x.dtype.element_ty), mask=known & there)
            s22 += d00 * value
            s21 += d01 * value
            s20 += d02 * value
            s12 += d10 * value
            s11 += d11 * value
            s10 += d12 * value
            s02 += d20 * value
            s01 += d21 * value
            s00 += d22 * value
            d00, d01, d02 = d10, d11, d12
            d10, d11, d12 = d20, d21, d22
    strip = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    parts += strip.to(tl.int64) * 9 * CHANNELS
    _store_sum(parts, s00, CHANNELS, COLUMNS, BLOCK, 0)
    _store_sum(parts, s01, CHANNELS, COLUMNS, BLOCK, 1)
    _store_sum(parts, s02, CHANNELS, COLUMNS, BLOCK, 2)
    _store_sum(parts, s10, CHANNELS, COLUMNS, BLOCK, 3)
    _store_sum(parts, s11, CHANNELS, COLUMNS, BLOCK, 4)
    _store_sum(parts, s12, CHANNELS, COLUMNS, BLOCK, 5)
    _store_sum(parts, s20, CHANNELS, COLUMNS, BLOCK, 6)
    _store_sum(parts, s21, CHANNELS, COLUMNS, BLOCK, 7)
    _store_sum(parts, s22, CHANNELS, COLUMNS, BLOCK, 8)


@triton.jit
def _store_sum(
    parts, sums,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, NUMBER: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.sum(tl.reshape(sums, (COLUMNS, BLOCK)), axis=0)
    tl.store(parts + NUMBER * CHANNELS + channel, total, mask=channel < CHANNELS)
