"""Triton's part of squeeze-and-excite; `coatnet.model.gpu.excite` imports it at its first call.

With TRITON_INTERPRET=1 the same code runs on a CPU, which is how it is tested where there is no GPU.
"""

# mypy: disable-error-code="assignment"
# Tuples grow while Triton unrolls a loop.

from __future__ import annotations

import triton
import triton.language as tl

from coatnet.model.gpu.gelu_kernels import sigmoid, slope


@triton.jit
def _load(base, pixel, known, end, EVEN: tl.constexpr, CHANNELS: tl.constexpr, TURN: tl.constexpr):
    """Load TURN pixels, zeros from the last one on."""
    start = base + pixel * CHANNELS  # once: what is added for a pixel is a constant in its instruction
    values = ()
    for number in tl.static_range(TURN):
        inside = known if EVEN else known & (pixel + number < end)
        values += (tl.load(start + number * CHANNELS, mask=inside, other=0.0),)
    return values


@triton.jit
def sums(
    weights, y, mean, scale, shift, parts,
    WEIGHTED: tl.constexpr, ALL: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
    TURN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum over PIXELS of an image's ALL, by the weights if there are any, what `excite.gelu_sums` says.

    Shape: mean, scale, shift (images, channels); parts (images, programs, 3, channels).
    """
    even: tl.constexpr = ALL % PIXELS == 0 and PIXELS % TURN == 0
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = channel < CHANNELS
    image = tl.program_id(2).to(tl.int64)
    own = image * CHANNELS + channel
    centre = tl.load(mean + own, mask=known, other=0.0)
    factor = tl.load(scale + own, mask=known, other=0.0)
    offset = tl.load(shift + own, mask=known, other=0.0)
    y += image * ALL * CHANNELS + channel
    weights += image * ALL * CHANNELS + channel
    values = tl.zeros((BLOCK,), dtype=tl.float32)
    shifts, scales = values, values
    first = tl.program_id(1) * PIXELS
    end = tl.minimum(first + PIXELS, ALL)
    for pixel in range(first, first + PIXELS, TURN):
        own_y = _load(y, pixel, known, end, even, CHANNELS, TURN)
        own_weights = own_y
        if WEIGHTED:
            own_weights = _load(weights, pixel, known, end, even, CHANNELS, TURN)
        for number in tl.static_range(TURN):
            value = own_y[number].to(tl.float32)
            n = value * factor + offset
            sigma = sigmoid(n)
            active, pull = n * sigma, slope(n, sigma)
            if WEIGHTED:
                weight = own_weights[number].to(tl.float32)  # 0 from the last pixel on
                active, pull = active * weight, pull * weight
            elif not even:
                inside = pixel + number < end
                active, pull = tl.where(inside, active, 0.0), tl.where(inside, pull, 0.0)
            values += active
            shifts += pull
            scales += pull * (value - centre)
    parts += (image * tl.num_programs(1) + tl.program_id(1)) * 3 * CHANNELS + channel
    tl.store(parts, values, mask=known)
    tl.store(parts + CHANNELS, shifts, mask=known)
    tl.store(parts + 2 * CHANNELS, scales, mask=known)
