"""Triton's part of relative attention; `coatnet.model.gpu.attention` imports it at its first call.

With TRITON_INTERPRET=1 the same code runs on a CPU, which is how it is tested where there is no GPU.

Maps are (B, N, heads, D), as the projections leave them. Scores are in powers of two: `scale` holds log2(e).
Softmax's sums and all others are in fp32; no sum crosses programs, so that the bits are the same every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load(base, row, N: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr):
    """Load rows of one head of one image. Shape: (rows, D)."""
    dim = tl.arange(0, D)
    return tl.load(base + row[:, None] * (HEADS * D) + dim[None, :], mask=(row < N)[:, None], other=0.0)


@triton.jit
def _bias(bias, row, column, N: tl.constexpr):
    """Load a tile of a head's bias in powers of two, −∞ beyond the last column. Shape: (rows, columns)."""
    inside = (row < N)[:, None] & (column < N)[None, :]
    own = tl.load(bias + row[:, None] * N + column[None, :], mask=inside, other=0.0)
    return tl.where((column < N)[None, :], own * _LOG2_E, float("-inf"))


@triton.jit
def _scores(q, k, bias, row, column, scale, N: tl.constexpr):
    """Return the scores in powers of two. Shape: (rows, columns)."""
    return tl.dot(q, tl.trans(k)) * scale + _bias(bias, row, column, N)


@triton.jit
def forward(
    q, k, v, bias, y, sums, scale,
    N: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """ROWS queries of one head of one image; `sums` keeps log2 of the softmax's denominator."""
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    offset = image * N * HEADS * D + head * D
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    own = _load(q + offset, row, N, HEADS, D)
    largest = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    mixed = tl.zeros((ROWS, D), dtype=tl.float32)
    for start in range(0, N, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        keys = _load(k + offset, column, N, HEADS, D)
        scores = _scores(own, keys, bias + head * N * N, row, column, scale, N)
        new = tl.maximum(largest, tl.max(scores, axis=1))
        shares = tl.exp2(scores - new[:, None])
        shrink = tl.exp2(largest - new)
        total = total * shrink + tl.sum(shares, axis=1)
        values = _load(v + offset, column, N, HEADS, D)
        mixed = mixed * shrink[:, None] + tl.dot(shares.to(values.dtype), values)
        largest = new
    where = offset + row[:, None] * (HEADS * D) + tl.arange(0, D)[None, :]
    tl.store(y + where, (mixed / total[:, None]).to(y.dtype.element_ty), mask=(row < N)[:, None])
    tl.store(sums + (image * HEADS + head) * N + row, largest + tl.log2(total), mask=row < N)


@triton.jit
def query_gradient(
    q, k, v, bias, y, down, sums, dots, down_q, scale,
    N: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient of ROWS queries; `dots` keeps each row's sum of output times gradient for the others."""
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    offset = image * N * HEADS * D + head * D
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    own = _load(q + offset, row, N, HEADS, D)
    own_down = _load(down + offset, row, N, HEADS, D)
    own_y = _load(y + offset, row, N, HEADS, D)
    dot = tl.sum(own_down.to(tl.float32) * own_y.to(tl.float32), axis=1)
    at = (image * HEADS + head) * N + row
    tl.store(dots + at, dot, mask=row < N)
    own_sum = tl.load(sums + at, mask=row < N, other=0.0)
    gradient = tl.zeros((ROWS, D), dtype=tl.float32)
    for start in range(0, N, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        keys = _load(k + offset, column, N, HEADS, D)
        values = _load(v + offset, column, N, HEADS, D)
        scores = _scores(own, keys, bias + head * N * N, row, column, scale, N)
        shares = tl.exp2(scores - own_sum[:, None])
        pulls = shares * (tl.dot(own_down, tl.trans(values)) - dot[:, None])
        gradient += tl.dot(pulls.to(keys.dtype), keys)
    where = offset + row[:, None] * (HEADS * D) + tl.arange(0, D)[None, :]
    gradient = gradient * (scale / _LOG2_E)
    tl.store(down_q + where, gradient.to(down_q.dtype.element_ty), mask=(row < N)[:, None])


@triton.jit
def key_value_gradient(
    q, k, v, bias, down, sums, dots, down_k, down_v, scale,
    N: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradients of COLUMNS keys and values of one head of one image."""
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    offset = image * N * HEADS * D + head * D
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    keys = _load(k + offset, column, N, HEADS, D)
    values = _load(v + offset, column, N, HEADS, D)
    key_gradient = tl.zeros((COLUMNS, D), dtype=tl.float32)
    value_gradient = tl.zeros((COLUMNS, D), dtype=tl.float32)
    for start in range(0, N, ROWS):
        row = start + tl.arange(0, ROWS)
        queries = _load(q + offset, row, N, HEADS, D)
        downs = _load(down + offset, row, N, HEADS, D)
        at = (image * HEADS + head) * N + row
        row_sum = tl.load(sums + at, mask=row < N, other=0.0)
        dot = tl.load(dots + at, mask=row < N, other=0.0)
        scores = _scores(queries, keys, bias + head * N * N, row, column, scale, N)
        shares = tl.exp2(scores - row_sum[:, None])
        value_gradient += tl.dot(tl.trans(shares.to(downs.dtype)), downs)
        pulls = shares * (tl.dot(downs, tl.trans(values)) - dot[:, None])
        key_gradient += tl.dot(tl.trans(pulls.to(queries.dtype)), queries)
    where = offset + column[:, None] * (HEADS * D) + tl.arange(0, D)[None, :]
    known = (column < N)[:, None]
    key_gradient = key_gradient * (scale / _LOG2_E)
    tl.store(down_k + where, key_gradient.to(down_k.dtype.element_ty), mask=known)
    tl.store(down_v + where, value_gradient.to(down_v.dtype.element_ty), mask=known)


@triton.jit
def bias_gradient(
    q, k, v, bias, down, sums, dots, parts, batch, scale,
    N: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    IMAGES: tl.constexpr,
):  # fmt: skip
    """A tile of the bias's gradient, summed over IMAGES images; `parts` is (batch / IMAGES, heads, N, N)."""
    across: tl.constexpr = (N + COLUMNS - 1) // COLUMNS
    row = tl.program_id(0) // across * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    head = tl.program_id(1)
    own = _bias(bias + head * N * N, row, column, N)
    gradient = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for number in range(IMAGES):
        image = (tl.program_id(2) * IMAGES + number).to(tl.int64)
        known = (row < N) & (image < batch)
        offset = image * N * HEADS * D + head * D
        # Rows beyond the map or the batch: no gradient comes in, so none goes out.
        some = tl.where(known, row, N)
        column_here = tl.where(image < batch, column, N)
        queries = _load(q + offset, some, N, HEADS, D)
        downs = _load(down + offset, some, N, HEADS, D)
        keys = _load(k + offset, column_here, N, HEADS, D)
        values = _load(v + offset, column_here, N, HEADS, D)
        at = (image * HEADS + head) * N + row
        row_sum = tl.load(sums + at, mask=known, other=0.0)
        dot = tl.load(dots + at, mask=known, other=0.0)
        scores = tl.dot(queries, tl.trans(keys)) * scale + own
        shares = tl.where(known[:, None], tl.exp2(scores - row_sum[:, None]), 0.0)
        gradient += shares * (tl.dot(downs, tl.trans(values)) - dot[:, None])
    inside = (row < N)[:, None] & (column < N)[None, :]
    where = (tl.program_id(2) * HEADS + head).to(tl.int64) * N * N + row[:, None] * N + column[None, :]
    tl.store(parts + where, gradient, mask=inside)
