"""Charts as inline SVG: no script, no font, no request, so that a page can be kept for years."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 460, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 30
_TICKS = 4


def line_chart(series: dict[str, Sequence[tuple[float, float]]], *, x_label: str = "images seen") -> str:
    """Draw up to four curves over one axis, with a legend where there is more than one."""
    points = [point for curve in series.values() for point in curve if math.isfinite(point[1])]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = _padded(min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1)
        up = (y - y_low) / ((y_high - y_low) or 1)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(", ".join(series))}">']
    for number in range(_TICKS + 1):
        value = y_low + (y_high - y_low) * number / _TICKS
        _, y = place(x_low, value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{number_text(value)}</text>')
    for share in (0.0, 0.5, 1.0):
        value = x_low + (x_high - x_low) * share
        x, _ = place(value, y_low)
        anchor = {0.0: "start", 0.5: "middle", 1.0: "end"}[share]
        y_text = _HEIGHT - _BOTTOM + 15
        parts.append(f'<text x="{x:.1f}" y="{y_text}" text-anchor="{anchor}">{number_text(value)}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 2}" text-anchor="middle">{escape(x_label)}</text>')
    for number, (name, curve) in enumerate(series.items()):
        placed = [place(x, y) for x, y in curve if math.isfinite(y)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        if len(placed) == 1:
            parts.append(
                f'<circle class="c{number} dot" cx="{placed[0][0]:.1f}" cy="{placed[0][1]:.1f}" r="3"/>'
            )
        parts.append(f'<polyline class="c{number}" points="{path}"/>')
        if len(series) > 1:
            y = _TOP + 4 + 14 * number
            parts.append(f'<path class="c{number}" d="M{_WIDTH - 120} {y}h14"/>')
            parts.append(f'<text x="{_WIDTH - 102}" y="{y + 3.5}">{escape(name)}</text>')
    parts.append("</svg>")
    return "".join(parts)


def stacked_bar(parts_by_name: dict[str, float]) -> str:
    """Draw shares of a whole as one bar with a legend below."""
    total = sum(parts_by_name.values())
    if total <= 0:
        return ""
    pieces, legend, left = [], [], 0.0
    for number, (name, value) in enumerate(parts_by_name.items()):
        share = value / total
        pieces.append(
            f'<rect class="f{number}" x="{left * 1000:.1f}" width="{share * 1000:.1f}" y="0" height="26">'
            f"<title>{escape(name)}: {share:.1%}</title></rect>"
        )
        legend.append(f'<li><span class="key f{number}"></span>{escape(name)} <b>{share:.1%}</b></li>')
        left += share
    bar = f'<svg class="bar" viewBox="0 0 1000 26" preserveAspectRatio="none">{"".join(pieces)}</svg>'
    return f'{bar}<ul class="legend">{"".join(legend)}</ul>'


def number_text(value: float) -> str:
    """Write a number for an axis: 1.2M, 340k, 0.013."""
    size = abs(value)
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            divisor = 1e3 if suffix == "k" else limit
            return f"{value / divisor:.3g}{suffix}"
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _padded(low: float, high: float) -> tuple[float, float]:
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        return low - margin, high + margin
    margin = (high - low) * 0.05
    return (low if low == 0 else low - margin), high + margin
