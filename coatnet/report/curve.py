"""One curve of a page, small however long the run was: weeks of records are millions of points."""

from __future__ import annotations

Point = tuple[int, float]
_MOST_STRETCHES = 300


class Curve:
    """Keeps of each stretch its lowest and highest point, so that no spike is lost, in memory of fixed size.

    Stretches are equally wide; when they are too many, two become one.
    """

    def __init__(self) -> None:
        self._width, self._end = 1, 0  # of a stretch; of the last one
        self._stretches: list[list[Point]] = []  # lowest and highest
        self._first: Point | None = None
        self._last: Point = (-1, 0.0)

    def add(self, position: int, value: float) -> None:
        """Add a point. Those from its position on are given up: a later life took these steps again."""
        if position <= self._last[0]:
            self._forget(position)
        point = self._last = (position, value)
        if position < self._end:
            stretch = self._stretches[-1]
            if value < stretch[0][1]:
                stretch[0] = point
            elif value > stretch[1][1]:
                stretch[1] = point
            return
        self._first = self._first or point
        self._stretches.append([point, point])
        if len(self._stretches) > _MOST_STRETCHES:
            self._widen()
        self._end = (position // self._width + 1) * self._width

    def points(self) -> list[Point]:
        """Return what is kept, in order of position."""
        ends = [] if self._first is None else [self._first, self._last]
        return sorted({*ends, *(point for stretch in self._stretches for point in stretch)})

    def _forget(self, position: int) -> None:
        while self._stretches and max(self._stretches[-1])[0] >= position:
            kept = [point for point in self._stretches.pop() if point[0] < position]
            if kept:
                self._stretches.append(kept * 2)
        last = max(self._stretches[-1]) if self._stretches else None
        self._first = self._first if last else None
        self._end = (last[0] // self._width + 1) * self._width if last else 0

    def _widen(self) -> None:
        while len(self._stretches) > _MOST_STRETCHES // 2:
            self._width *= 2
            wider: list[list[Point]] = []
            for low, high in self._stretches:
                if wider and wider[-1][0][0] // self._width == low[0] // self._width:
                    wider[-1] = [min(wider[-1][0], low, key=_value), max(wider[-1][1], high, key=_value)]
                else:
                    wider.append([low, high])
            self._stretches = wider


def _value(point: Point) -> float:
    return point[1]
