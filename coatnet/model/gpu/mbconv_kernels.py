"""Triton's part of the fused middle of MBConv; `coatnet.model.gpu.mbconv` imports it at its first call.

With TRITON_INTERPRET=1 the same code runs on a CPU, which is how it is tested where there is no GPU.

A program walks down a strip of an image, COLUMNS wide and BLOCK channels deep. Every column is a tensor of
its own in a tuple, so that a neighbour is another name and not another load: GELU is computed once for an
element and for the strip's two edges, where a tile of columns × channels would need it three times. No sum
crosses threads: no shared memory, no barriers. Sums are in fp32.
benchmarks/kernel_code.py counts the instructions.
"""

# mypy: disable-error-code="assignment"
# Tuples grow while Triton unrolls a loop.

from __future__ import annotations

import triton
import triton.language as tl

from coatnet.model.gpu.depthwise_kernels import nine
from coatnet.model.gpu.gelu_kernels import sigmoid, slope


@triton.jit
def _inside(column, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """Say whether a strip's own column is one of the map's: known before, where strips leave nothing over."""
    if WIDTH % COLUMNS == 0:
        return True
    return column < WIDTH


@triton.jit
def _row(
    base, row, first, known, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Load a row of the strip, with EDGE columns more on either side; zeros outside of the map."""
    # Once: what is added for a column is a constant in its instruction.
    start = base + row * (WIDTH * CHANNELS)
    known = known & (row < HEIGHT)
    values = ()
    for number in tl.static_range(-EDGE, COLUMNS + EDGE):
        inside = known & _inside(first + number, WIDTH, COLUMNS)
        if number == -1:
            inside = known & (first > 0)
        if number == COLUMNS:
            inside = known & (first + COLUMNS < WIDTH)
        values += (tl.load(start + number * CHANNELS, mask=inside, other=0.0),)
    return values


@triton.jit
def _activated(values, first, scale, shift, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """Normalise and activate a row and its edges; the convolution's zeros lie around the activated map."""
    found = ()
    for number in tl.static_range(COLUMNS + 2):
        n = values[number].to(tl.float32) * scale + shift
        active = n * sigmoid(n)
        if number == 0:
            active = tl.where(first > 0, active, 0.0)
        if number > COLUMNS or WIDTH % COLUMNS != 0:
            active = tl.where(first + number - 1 < WIDTH, active, 0.0)
        found += (active,)
    return found


@triton.jit
def _across(total, values, taps, number: tl.constexpr, FIRST: tl.constexpr):
    """Add what three neighbours of a row give by three taps."""
    total += values[number] * taps[FIRST]
    total += values[number + 1] * taps[FIRST + 1]
    return total + values[number + 2] * taps[FIRST + 2]


@triton.jit
def forward(
    e, scale, shift, taps, y, parts, group,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Convolve GELU(e·scale + shift); `parts` gets each strip's mean and sum of squared deviations.

    Shape: scale, shift (groups, channels); parts (strips, 2, channels).
    """
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first = tl.program_id(1) * COLUMNS
    image = tl.program_id(2).to(tl.int64)
    known = channel < CHANNELS
    start = (image * HEIGHT * WIDTH + first) * CHANNELS + channel
    e, y = e + start, y + start
    own = image // group * CHANNELS + channel
    factor = tl.load(scale + own, mask=known, other=0.0)
    offset = tl.load(shift + own, mask=known, other=0.0)
    t = nine(taps, channel, CHANNELS)
    zero = tl.zeros((BLOCK,), dtype=tl.float32)
    total, squares, pivot = zero, zero, zero
    values = _row(e, 0, first, known, HEIGHT, WIDTH, CHANNELS, COLUMNS, 1)
    values = _activated(values, first, factor, offset, WIDTH, COLUMNS)
    above, here = (), ()  # the output rows `row - 1`, complete after this row, and `row`
    for number in tl.static_range(COLUMNS):
        above += (_across(zero, values, t, number, 3),)
        here += (_across(zero, values, t, number, 0),)
    ahead = _row(e, 1, first, known, HEIGHT, WIDTH, CHANNELS, COLUMNS, 1)
    for row in range(1, HEIGHT + 1):
        values = _activated(ahead, first, factor, offset, WIDTH, COLUMNS)
        ahead = _row(e, row + 1, first, known, HEIGHT, WIDTH, CHANNELS, COLUMNS, 1)
        # The row below the map has no taps: that is fewer zeros than in its values.
        last = [tl.where(row < HEIGHT, tap, 0.0) for tap in t[6:]]
        to = y + (row - 1) * (WIDTH * CHANNELS)
        next_above, next_here = (), ()
        for number in tl.static_range(COLUMNS):
            inside = _inside(first + number, WIDTH, COLUMNS)
            done = _across(above[number], values, last, number, 0)
            tl.store(to + number * CHANNELS, done.to(y.dtype.element_ty), mask=known & inside)
            if number == 0:
                # Deviations from any one value: with plain squares a mean far from 0 costs all digits.
                pivot = tl.where(row == 1, done, pivot)
            deviation = tl.where(inside, done - pivot, 0.0)
            total += deviation
            squares += deviation * deviation
            next_above += (_across(here[number], values, t, number, 3),)
            next_here += (_across(zero, values, t, number, 0),)
        above, here = next_above, next_here
    count = (HEIGHT * tl.minimum(COLUMNS, WIDTH - first)).to(tl.float32)
    parts += (image * tl.num_programs(1) + tl.program_id(1)) * 2 * CHANNELS + channel
    tl.store(parts, pivot + total / count, mask=known)
    tl.store(parts + CHANNELS, squares - total * total / count, mask=known)


@triton.jit
def backward(
    down, e, mean, scale, shift, taps, down_n, parts, group,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    IMAGES: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of n = e·scale + shift, and over IMAGES images of a group the sums of all others.

    Shape: parts (strips, 11, channels): nine taps, Σ down_n and Σ down_n·(e − mean).
    """
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first = tl.program_id(1) * COLUMNS
    known = channel < CHANNELS
    turns = (group + IMAGES - 1) // IMAGES
    own = tl.program_id(2) // turns * CHANNELS + channel
    centre = tl.load(mean + own, mask=known, other=0.0)
    factor = tl.load(scale + own, mask=known, other=0.0)
    offset = tl.load(shift + own, mask=known, other=0.0)
    t = nine(taps, channel, CHANNELS)
    zero = tl.zeros((BLOCK,), dtype=tl.float32)
    sums = (zero,) * 9
    shifts, scales = zero, zero
    for turn in range(IMAGES):
        place = tl.program_id(2) % turns * IMAGES + turn
        there = known & (place < group)
        image = (tl.program_id(2) // turns * group + place).to(tl.int64)
        start = (image * HEIGHT * WIDTH + first) * CHANNELS + channel
        here = _row(down + start, 0, first, there, HEIGHT, WIDTH, CHANNELS, COLUMNS, 1)
        above, middle = (zero,) * (COLUMNS + 2), [one.to(tl.float32) for one in here]
        ahead = _row(down + start, 1, first, there, HEIGHT, WIDTH, CHANNELS, COLUMNS, 1)
        ahead_e = _row(e + start, 0, first, there, HEIGHT, WIDTH, CHANNELS, COLUMNS, 0)
        for row in range(HEIGHT):
            below = [one.to(tl.float32) for one in ahead]
            values = ahead_e
            ahead = _row(down + start, row + 2, first, there, HEIGHT, WIDTH, CHANNELS, COLUMNS, 1)
            ahead_e = _row(e + start, row + 1, first, there, HEIGHT, WIDTH, CHANNELS, COLUMNS, 0)
            to = down_n + start + row * (WIDTH * CHANNELS)
            window = (below, middle, above)
            for number in tl.static_range(COLUMNS):
                inside = _inside(first + number, WIDTH, COLUMNS)
                value = values[number].to(tl.float32)
                n = value * factor + offset
                sigma = sigmoid(n)
                active = tl.where(inside, n * sigma, 0.0)
                pull, new = zero, ()
                # The output below and right of an element had it by the first tap.
                for tap in tl.static_range(9):
                    other = window[tap // 3][number + 2 - tap % 3]
                    pull += other * t[tap]
                    new += (sums[tap] + other * active,)
                sums = new
                pull = tl.where(inside, pull * slope(n, sigma), 0.0)
                tl.store(to + number * CHANNELS, pull.to(down_n.dtype.element_ty), mask=there & inside)
                shifts += pull
                scales += pull * (value - centre)
            above, middle = middle, below
    strip = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    parts += strip.to(tl.int64) * 11 * CHANNELS + channel
    for tap in tl.static_range(9):
        tl.store(parts + tap * CHANNELS, sums[tap], mask=known)
    tl.store(parts + 9 * CHANNELS, shifts, mask=known)
    tl.store(parts + 10 * CHANNELS, scales, mask=known)
