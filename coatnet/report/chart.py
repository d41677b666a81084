"""Charts as inline SVG: no script, no font, no request, so that a page can be kept for years."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from itertools import pairwise

from coatnet.config.plain_text import one_line
from coatnet.runtime.progress import clock

_WIDTH, _HEIGHT = 460, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 34
_LEGEND_HEIGHT, _LETTER_WIDTH = 16, 6.2
_MOST_STEPS = 5
_MANY_TURNS = 60  # which a stroke of the usual width would melt into one band
_SEEN_APART = 1 / 300  # of a bar's length; 2,000 lives in nine colours each were a page of 3 MB
_Life = tuple[float, float, dict[str, float]]  # begin, end, seconds by class
_Place = Callable[[float, float], tuple[float, float]]  # from what is drawn to where


def line_chart(series: dict[str, Sequence[tuple[float, float]]], *, marks: Sequence[float] = ()) -> str:
    """Draw up to four curves over the images seen, with a legend where there is more than one.

    Args:
        series: (x, y) by name.
        marks: places on the x axis that get a thin line, such as restarts.
    """
    points = [point for curve in series.values() for point in curve if math.isfinite(point[1])]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_low, x_high = min(xs), max(xs)
    ticks = _round_ticks(min(ys), max(ys))
    y_low, y_high = ticks[0], ticks[-1]
    top = _TOP + (_LEGEND_HEIGHT if len(series) > 1 else 0)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (y - y_low) / (y_high - y_low)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - top - _BOTTOM),
        )

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{as_markup(", ".join(series))}">']
    parts += _axes(place, ticks, x_low=x_low, x_high=x_high)
    drawn = {round(place(mark, y_low)[0]) for mark in marks if x_low < mark < x_high}
    parts += [f'<path class="mark" d="M{x} {top}V{_HEIGHT - _BOTTOM}"/>' for x in sorted(drawn)]
    begin = float(_LEFT)
    for number, (name, curve) in enumerate(series.items()):
        parts += _curve([place(x, y) for x, y in curve if math.isfinite(y)], number)
        if len(series) > 1:
            parts.append(f'<path class="c{number}" d="M{begin:.0f} {_TOP}h14"/>')
            parts.append(f'<text x="{begin + 19:.0f}" y="{_TOP + 3.5}">{as_markup(name)}</text>')
            begin += len(name) * _LETTER_WIDTH + 34
    parts.append("</svg>")
    return "".join(parts)


def _axes(place: _Place, ticks: Sequence[float], *, x_low: float, x_high: float) -> Iterator[str]:
    """Draw the lines of the grid with their values, and three values of the images seen, or the only one."""
    for value, text in zip(ticks, _told_apart(ticks), strict=True):
        _, y = place(x_low, value)
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>'
    places = [(x_low, "start"), ((x_low + x_high) / 2, "middle"), (x_high, "end")]
    for value, anchor in places if x_high > x_low else places[1:2]:
        x, _ = place(value, ticks[0])
        y_text = _HEIGHT - _BOTTOM + 15
        yield f'<text x="{x:.1f}" y="{y_text}" text-anchor="{anchor}">{number_text(value)}</text>'
    yield f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 4}" text-anchor="middle">images seen</text>'


def _curve(placed: Sequence[tuple[float, float]], number: int) -> Iterator[str]:
    """Draw a curve; one of a single point would not be seen."""
    if len(placed) == 1:
        yield f'<circle class="d{number}" cx="{placed[0][0]:.1f}" cy="{placed[0][1]:.1f}" r="3"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    rises = [later > y for (_, y), (_, later) in pairwise(placed)]
    thin = " thin" if sum(rise != later for rise, later in pairwise(rises)) > _MANY_TURNS else ""
    yield f'<polyline class="c{number}{thin}" points="{path}"/>'


def stacked_bar(parts_by_name: dict[str, float]) -> str:
    """Draw shares of a whole as one bar with a legend below.

    Args:
        parts_by_name: in seconds.
    """
    total = sum(parts_by_name.values())
    if total <= 0:
        return ""
    pieces, legend, left = [], [], 0.0
    for number, (name, value) in enumerate(parts_by_name.items()):
        if value <= 0:
            continue
        share = value / total
        pieces.append(_piece(left, share, colour=number, title=f"{name}: {share:.1%}"))
        key = f'<span class="key f{number}"></span>{as_markup(name)}'
        legend.append(f"<li>{key} <b>{share:.1%}</b> <i>{clock(value)}</i></li>")
        left += share
    said = ", ".join(f"{name} {value / total:.1%}" for name, value in parts_by_name.items() if value > 0)
    return f'{_bar(pieces, said=said)}<ul class="legend">{"".join(legend)}</ul>'


def timeline(lives: Sequence[_Life]) -> str:
    """Draw lives along the wall time, each cut by the classes of its seconds; gaps stay empty.

    Args:
        lives: begin and end on one clock, and seconds by class, in the order of `stacked_bar`'s colours.
    """
    if not lives:
        return ""
    first, last = lives[0][0], max(end for _, end, _ in lives)
    span = max(last - first, 1e-9)
    pieces = []
    for group in _seen_apart(lives, least=span * _SEEN_APART):
        numbers = [number for number, _ in group]
        name = f"life {numbers[0]}" if len(numbers) == 1 else f"lives {numbers[0]} to {numbers[-1]}"
        lasted = sum(end - begin for _, (begin, end, _) in group)
        seconds = {each: sum(life[2][each] for _, life in group) for each in group[0][1][2]}
        left, own = (group[0][1][0] - first) / span, max(sum(seconds.values()), 1e-9)
        for colour, (each, value) in enumerate(seconds.items()):
            if value > 0:
                share = value / own * lasted / span
                pieces.append(_piece(left, share, colour=colour, title=f"{name}, {each}: {value:,.1f} s"))
                left += share
    return _bar(pieces, said="lives along the wall time")


def _seen_apart(lives: Sequence[_Life], *, least: float) -> list[list[tuple[int, _Life]]]:
    """Number the lives from 1, and put those together that are too short to be seen apart."""
    groups: list[list[tuple[int, _Life]]] = []
    for number, life in enumerate(lives, start=1):
        if groups and life[1] - groups[-1][0][1][0] < least:
            groups[-1].append((number, life))
        else:
            groups.append([(number, life)])
    return groups


def _piece(left: float, share: float, *, colour: int, title: str) -> str:
    return (
        f'<rect class="f{colour}" x="{left * 1000:.2f}" width="{share * 1000:.2f}" y="0" height="26">'
        f"<title>{as_markup(title)}</title></rect>"
    )


def _bar(pieces: Sequence[str], *, said: str) -> str:
    spoken = f'role="img" aria-label="{as_markup(said)}"'
    return (
        f'<svg class="bar" viewBox="0 0 1000 26" preserveAspectRatio="none" {spoken}>{"".join(pieces)}</svg>'
    )


def as_markup(text: str) -> str:
    """Return a text of anyone's as one line of markup, with no character in it that acts."""
    return escape(one_line(text))


def number_text(value: float) -> str:
    """Write a finite number for an axis: 1.2M, 340k, 0.013."""
    if abs(value) >= 1e4:
        value = float(f"{value:.3g}")  # 999,999 is a million, not 1,000 thousands
    size = abs(value)
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            divisor = 1e3 if suffix == "k" else limit
            return f"{value / divisor:.3g}{suffix}"
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _told_apart(ticks: Sequence[float]) -> list[str]:
    """Write equally distant numbers, with as many digits as their distance needs."""
    texts = [number_text(value) for value in ticks]
    if len(set(texts)) == len(ticks):
        return texts
    decimals = max(0, -math.floor(math.log10(ticks[1] - ticks[0])))
    return [f"{value:,.{decimals}f}" for value in ticks]


def _round_ticks(low: float, high: float) -> list[float]:
    """Return places for grid lines: multiples of 1, 2 or 5 of a power of ten that enclose a range."""
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / _MOST_STEPS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = 3 - math.floor(math.log10(step))  # what a product of floats has beyond is noise
    return [round(number * step, digits) for number in range(first, last + 1)]
