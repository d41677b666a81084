"""Curves and charts of a report: what is kept of many points, and what can be read off."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the test tree is no package; its modules import each other

from reported_runs import make_run

from coatnet.report.blocks import Chart, Fold
from coatnet.report.chart import _round_ticks, line_chart, number_text, stacked_bar, timeline
from coatnet.report.curve import Curve
from coatnet.report.curves import curves
from coatnet.report.record import read_run
from coatnet.runtime.run_directory import RunDirectory, append_line


def test_two_thousand_lives_are_drawn_as_far_as_they_can_be_seen_apart() -> None:
    lives = [(100.0 * life, 100.0 * life + 80.0, {"start": 20.0, "compute": 60.0}) for life in range(2000)]
    drawn = timeline(lives)
    assert len(drawn) < 100_000 and drawn.count("compute") == 334
    assert "lives 1 to 6, compute: 360.0 s" in drawn and "lives 1999 to 2000, start: 40.0 s" in drawn
    widths = [float(width) for width in re.findall(r' width="([0-9.]+)"', drawn)]
    assert sum(widths) == pytest.approx(800, rel=0.01)
    few = timeline(lives[:3])
    assert "life 2, start: 20.0 s" in few and few.count("<rect") == 6
    marked = line_chart({"loss": [(0, 1.0), (2000, 2.0)]}, marks=range(1, 2000))
    assert 300 < marked.count('class="mark"') < 460


def test_a_curve_keeps_its_ends_and_its_spikes_and_what_a_later_life_took_again_replaces_the_former() -> None:
    curve = Curve()
    for position in range(0, 1_000_000, 7):
        curve.add(position, {350_000: 0.5, 700_000: 9.0}.get(position, 1.0 + position % 3))
    points = curve.points()
    assert len(points) < 700 and points == sorted(points)
    assert (
        points[0] == (0, 1.0) and points[-1][0] == 999_999 and {(350_000, 0.5), (700_000, 9.0)} <= {*points}
    )
    assert sum(position < 500_000 for position, _ in points) == pytest.approx(len(points) / 2, rel=0.1)
    curve.add(500_000, 2.0)
    assert curve.points()[-1] == (500_000, 2.0) and max(value for _, value in curve.points()) == 3.0

    short = Curve()
    for position, value in ((8, 1.0), (16, 2.0), (24, 3.0), (16, 5.0)):
        short.add(position, value)
    assert short.points() == [(8, 1.0), (16, 5.0)]


@pytest.mark.parametrize("stride", [1, 3, 40])
def test_a_curve_of_few_points_is_all_of_them_and_going_back_gives_up_what_came_behind(stride: int) -> None:
    rng, curve, taken, longest = random.Random(stride), Curve(), [], 0
    points = curve.points()
    assert points == []
    for _ in range(2_000):
        back = max(0, len(taken) - (rng.randrange(60) if rng.random() < 0.02 else 0))
        before, point = points, (back * stride, float(rng.randrange(50)))
        taken[back:] = [point]
        curve.add(*point)
        points = curve.points()
        assert points[0] == taken[0] and points[-1] == point and len(points) <= 602
        assert {*points} <= {*taken}
        if (longest := max(longest, len(taken))) <= 300:
            assert points == taken
        elif before[-1][0] >= point[0]:
            lost = {one for one in before if one[0] < point[0]} - {*points}
            assert len(lost) <= 1, "the new point may stand out more than one of its stretch"


def test_a_curve_that_stands_alone_under_a_common_title_says_which_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    append_line(run.metrics, {"samples_seen": 16000, "evaluate/map": 0.5})
    charts = {chart.title for chart in curves(read_run(run.path)) if isinstance(chart, Chart)}
    assert {"top-1", "mAP"} <= charts
    text = run.metrics.read_text().replace("evaluate/top1", "evaluate/transfer_top1")
    run.metrics.write_text(text)
    charts = {chart.title for chart in curves(read_run(run.path)) if isinstance(chart, Chart)}
    assert "top-1, transfer" in charts and "top-1" not in charts
    append_line(run.metrics, {"samples_seen": 16000, "evaluate/ema_top1": 0.5, "train/loss_max": 1.0})
    found = [chart for chart in curves(read_run(run.path)) if isinstance(chart, Chart)]
    said = [pair for chart in found for pair in chart.last]
    assert {("top-1, average", "0.5"), ("top-1, transfer", "0.75"), ("mAP", "0.5")} <= {*said}
    assert [chart.title for chart in found] == ["loss", "top-1", "mAP"]


def test_the_four_stages_share_a_chart_in_which_a_line_marks_each_later_life(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create("seed: 1\n", digest="aa")
    for kind, begin in (("start", 0), ("resume", 40), ("resume", 56)):
        run.record_event(kind, samples_seen=begin, world_size=1)
    names = [f"activations/S{number}/{what}" for what in ("deviation", "largest") for number in range(1, 5)]
    for position in (8, 64):
        append_line(run.metrics, {"samples_seen": position, **dict.fromkeys(names, float(position))})
    found = [chart for chart in curves(read_run(run.path)) if isinstance(chart, Chart)]
    assert [chart.title for chart in found] == [
        "deviation of the stages' outputs",
        "largest magnitude of the stages' outputs",
    ]
    for chart in found:
        assert [label.rpartition(" ")[2] for label, _ in chart.last] == ["S1", "S2", "S3", "S4"]
        assert chart.svg.count('class="mark"') == 2
    hidden = {"account/start": 1.0, "progress": 0.5, "evaluate/samples": 8, "evaluate/ema_samples": 8}
    for number in reversed(range(4)):
        append_line(run.metrics, {"samples_seen": 64, f"own/{number}": 1.0, **hidden})
    shown = curves(read_run(run.path))
    assert [one.title for one in shown[2:]] == [f"own/{number}" for number in range(4)]
    assert shown[-1].last == [("own/3", "1")] and "<circle" in shown[-1].svg
    append_line(run.metrics, {"samples_seen": 64, "own/4": 1.0, "own/5": 2.0})
    *again, rest = curves(read_run(run.path))
    assert again == shown and isinstance(rest, Fold) and rest.title == "2 more"
    assert [chart.last for chart in rest.blocks] == [[("own/4", "1")], [("own/5", "2")]]


@pytest.mark.parametrize(
    "points",
    [[(0, 1.0)], [(0, 1.0), (1, 1.0)], [(0, float("nan")), (1, 2.0)], [(0, 2.1e-14), (1, 4.9e-14)]],
)
def test_a_chart_of_few_or_equal_or_missing_or_tiny_points_is_drawn(
    points: list[tuple[float, float]],
) -> None:
    assert "nan" not in line_chart({"x": points})


def test_what_is_written_along_the_axes_can_be_told_apart() -> None:
    def texts(points: list[tuple[float, float]]) -> list[str]:
        return re.findall(r">([0-9.,kMG]+)</text>", line_chart({"x": points}))

    assert texts([(24, 0.5)]).count("24") == 1
    close = texts([(24, 1.0966), (48, 1.0987)])
    assert len(set(close)) == len(close) and "1.0985" in close
    assert texts([(0, 1_000_100.0), (1, 1_000_300.0)])[0] == "1,000,100"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (1234, "1,234"), (9_999.4, "9,999"), (19_100, "19.1k"), (2.5e6, "2.5M"), (-3e9, "-3G")),
        *((999_499, "999k"), (999_999, "1M"), (999_999_999, "1G")),
        *((0.0125, "0.0125"), (2.0, "2"), (99.44, "99.4"), (100.4, "100"), (-0.5, "-0.5")),
    ],
)
def test_numbers_on_an_axis_are_short(value: float, text: str) -> None:
    assert number_text(value) == text


def test_curves_marks_and_values_of_a_chart_stand_where_the_axes_say() -> None:
    """The plot is 390 × 158 units: from (58, 28), below the legend, to (448, 186)."""
    drawn = line_chart(
        {"a<b": [(100, 1.0), (150, float("nan")), (200, 3.0)], "one": [(150, 2.0)]}, marks=[100, 125, 200]
    )
    assert re.findall(r'<polyline class="(\w+)" points="([^"]+)"', drawn) == [
        ("c0", "58.0,186.0 448.0,28.0"),
        ("c1", "253.0,107.0"),
    ]
    assert re.findall(r'<circle class="d1" cx="253.0" cy="107.0"', drawn)
    assert re.findall(r'class="mark" d="([^"]+)"', drawn) == ["M156 28V186"]
    heights = re.findall(r'class="grid" d="M58 ([0-9.]+)H448"', drawn)
    texts = re.findall(r'<text x="([0-9.]+)" y="([0-9.]+)"(?: text-anchor="(\w+)")?>([^<]+)<', drawn)
    values = [(str(float(y) - 3.5), text) for x, y, anchor, text in texts if (x, anchor) == ("52", "end")]
    assert values == [*zip(heights, ("1", "1.5", "2", "2.5", "3"), strict=True)]
    assert heights == ["186.0", "146.5", "107.0", "67.5", "28.0"]
    assert texts[5:] == [
        *(("58.0", "201", "start", "100"), ("253.0", "201", "middle", "150"), ("448.0", "201", "end", "200")),
        ("230.0", "216", "middle", "images seen"),
        *(("77", "15.5", "", "a&lt;b"), ("130", "15.5", "", "one")),
    ]
    assert re.findall(r'class="c[01]" d="([^"]+)"', drawn) == ["M58 12h14", "M111 12h14"]
    alone = line_chart({"x": [(0, 0.0), (8, 1.0)]})
    assert "58.0,186.0 448.0,12.0" in alone and ">x<" not in alone, "no legend of a single curve"


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (-3, 7, [-4, -2, 0, 2, 4, 6, 8]),
        (99, 351, [0, 100, 200, 300, 400]),
        (100, 350, [100, 150, 200, 250, 300, 350]),
        (0.013, 0.014, [0.013, 0.0132, 0.0134, 0.0136, 0.0138, 0.014]),
        (-1, -1, [-1.1, -1.05, -1, -0.95, -0.9]),
        (0, 0, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_the_lines_of_a_grid_enclose_what_is_drawn(low: float, high: float, ticks: list[float]) -> None:
    assert _round_ticks(low, high) == ticks


def test_a_bar_is_cut_by_the_shares_and_a_life_by_its_own() -> None:
    def pieces(bar: str) -> list[tuple[str, float, float, str]]:
        found = re.findall(r'class="f(\d)" x="([0-9.]+)" width="([0-9.]+)".*?<title>(.*?)</title>', bar)
        return [(colour, float(left), float(width), title) for colour, left, width, title in found]

    bar = stacked_bar({"start": 90.0, "idle": 0.0, "compute": 270.0})
    assert pieces(bar) == [("0", 0, 250, "start: 25.0%"), ("2", 250, 750, "compute: 75.0%")]
    assert "compute <b>75.0%</b> <i>4:30</i>" in re.sub("</span>", "", bar) and "idle" not in bar
    assert stacked_bar({"start": 0.0}) == "" == timeline([])
    lives = timeline(
        [(100.0, 110.0, {"start": 3.0, "compute": 1.0}), (130.0, 140.0, {"start": 0.0, "compute": 8.0})]
    )
    assert pieces(lives) == [
        ("0", 0, 187.5, "life 1, start: 3.0 s"),
        ("1", 187.5, 62.5, "life 1, compute: 1.0 s"),
        ("1", 750, 250, "life 2, compute: 8.0 s"),
    ]


@pytest.mark.parametrize(("turns", "thin"), [(60, False), (61, True)])
def test_a_curve_that_turns_often_is_drawn_thinner(turns: int, thin: bool) -> None:
    drawn = line_chart({"x": [(place, float(place % 2)) for place in range(turns + 2)]})
    assert ('class="c0 thin"' in drawn) is thin
