"""Every figure against a value worked out by hand, or by another library."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from coatnet.checkpoint.classes import evaluation_columns, match_classes
from coatnet.config import UserError
from coatnet.runtime.drawing import make_figure
from finetune.evaluation.figures import (
    confusion,
    confusion_table,
    figures,
    most_confused,
    per_class,
    wilson_interval,
)
from finetune.evaluation.judging import full_report
from finetune.evaluation.measure import top_classes
from finetune.evaluation.predictions import Predictions, join
from finetune.evaluation.sources import real_accuracy
from finetune.evaluation.write import write_reports
from finetune.launch import summarise


def predictions(label: list[int], top: list[list[int]], confidence: list[float]) -> Predictions:
    count = len(label)
    return Predictions(
        np.arange(count),
        np.ones(count, dtype=np.float64),
        label=np.array(label),
        top=np.array(top),
        confidence=np.array(confidence),
    )


FOUR = predictions([0, 0, 1, 2], [[0, 1], [1, 0], [1, 2], [0, 1]], [0.95, 0.55, 0.95, 0.55])


def test_figures_of_four_samples() -> None:
    found = figures(FOUR, classes=3)
    assert (found["top1"], found["top5"], found["samples"], found["non_finite"]) == (0.5, 0.75, 4, 0)
    assert found["balanced_top1"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert found["ece"] == pytest.approx((0.05 * 2 + 0.55 * 2) / 4)
    assert [row["guessed"] for row in per_class(FOUR, names=["a", "b", "c"])] == [2, 2, 0]
    pairs = confusion(FOUR, classes=3)
    assert confusion_table(pairs, classes=3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert most_confused(pairs, names=["a", "b", "c"], limit=1) == [
        {"class": "a", "taken_for": "b", "count": 1}
    ]


@pytest.mark.slow
def test_of_many_classes_the_pairs_that_occur_are_told_and_no_table_is_made(tmp_path: Path) -> None:
    classes, generator = 21_841, np.random.default_rng(0)
    label, guess = generator.integers(classes, size=(2, 5000))
    label[:3], guess[:3] = 7, 9
    many = predictions(label.tolist(), guess[:, None].tolist(), [0.5] * 5000)
    names = [f"class {number}" for number in range(classes)]
    report = full_report(many, names=names, with_confusion=True)
    write_reports([{**report, "image_size": 32}], tmp_path)
    assert len(report["confusion"]) <= 5000, "the whole table has 477 million entries"
    assert report["most_confused"][0] == {"class": "class 7", "taken_for": "class 9", "count": 3}
    lines = (tmp_path / "confusion-32.csv").read_text().splitlines()
    assert lines[0] == "class,taken_for,count" and "class 7,class 9,3" in lines
    assert sum(int(line.rsplit(",", 1)[1]) for line in lines[1:]) == 5000


def test_a_class_named_class_keeps_its_column_of_the_confusion(tmp_path: Path) -> None:
    report = full_report(FOUR, names=["ant", "class", "bee"], with_confusion=True)
    write_reports([{**report, "image_size": 32}], tmp_path / "new" / "folder")
    assert (tmp_path / "new/folder/confusion-32.csv").read_text().splitlines()[:2] == [
        "class,ant,class,bee",
        "ant,1,1,0",
    ]
    (plain,) = json.loads((tmp_path / "new/folder/evaluation.json").read_text())
    assert plain.keys() == {*report, "image_size"} - {"confusion"} and plain["top1"] == report["top1"]
    lines = (tmp_path / "new/folder/classes-32.csv").read_text().splitlines()
    assert lines[:2] == ["class,samples,top1,guessed", f"ant,2,0.5,{report['per_class'][0]['guessed']}"]


def test_an_evaluation_without_a_finite_guess_is_written_as_any_other(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    none = predictions([0, 1], [[-1, -1], [-1, -1]], [0.0, 0.0])
    report = full_report(none, names=["a", "b"], with_confusion=True)
    assert (report["top1"], report["non_finite"], report["most_confused"]) == (0.0, 2, [])
    write_reports([{**report, "image_size": 32}], tmp_path)
    assert (tmp_path / "confusion-32.csv").read_text().splitlines() == ["class,a,b", "a,0,0", "b,0,0"]
    assert min(Image.open(tmp_path / "confusion-32.png").size) > 300 and not recwarn.list


def figures_of(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return where the figures come that are drawn from now on."""
    drawn: list[Any] = []

    def figure(**options: Any) -> Any:
        drawn.append(make_figure(**options))
        return drawn[-1]

    monkeypatch.setattr("finetune.evaluation.write.make_figure", figure)
    return drawn


def test_of_many_resolutions_so_many_are_named_in_the_plot_as_find_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, report = figures_of(monkeypatch), full_report(FOUR, names=["a", "b", "c"], with_confusion=False)
    sizes = [32 * number for number in range(1, 25)]
    report |= {"label_kind": "single", "model": "runs/mine", "data": "photos"}
    del report["confusion"]
    write_reports([{**report, "image_size": px, "gmacs": px**2 / 1e4} for px in sizes], tmp_path)
    drawn[-1].draw_without_rendering()  # at its own resolution again, not at the file's
    by_size, by_cost = drawn[-1].axes
    for texts in (by_size.get_xticklabels(), by_cost.texts):
        shown = [text for text in texts if text.get_visible()]
        assert 4 <= len(shown) < 24 and shown[-1] is texts[-1]
        boxes = [text.get_window_extent() for text in shown]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_an_interval_is_drawn_where_it_is_though_the_share_lie_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, report = figures_of(monkeypatch), full_report(FOUR, names=["a", "b", "c"], with_confusion=False)
    report |= {"label_kind": "multi", "model": "runs/mine", "data": "photos", "gmacs": 1.0}
    del report["confusion"]
    report |= {"map": 0.4, "map_interval": (0.1, 0.2)}
    write_reports([{**report, "image_size": px} for px in (32, 64)], tmp_path)
    for axes in drawn[-1].axes:
        assert axes.lines[0].get_ydata().tolist() == [40.0, 40.0]
        bars = [bar[:, 1].tolist() for bar in axes.collections[0].get_segments()]
        assert bars == [pytest.approx([10.0, 20.0])] * 2


def test_long_names_are_shortened_in_pictures_and_whole_in_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    drawn = figures_of(monkeypatch)
    names = [letter * 200 for letter in "nv$"]
    report = full_report(FOUR, names=names, with_confusion=True)
    report |= {"label_kind": "single", "gmacs": 1.0, "model": f"runs/{'n' * 200}", "data": "v" * 200}
    better = {"top1": 0.75, "top1_interval": (0.5, 1.0), "image_size": 64, "gmacs": 4.0}
    write_reports([{**report, **better}, {**report, "image_size": 32}], tmp_path)
    assert not recwarn.list and len(drawn) == 3
    matrix = [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert drawn[0].axes[0].images[0].get_array().tolist() == matrix
    axes = drawn[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("taken for", "class")
    assert [cell.get_color() for cell in axes.texts[:3]] == ["white", "white", "black"]
    cells = [(*cell.get_position(), cell.get_text()) for cell in axes.texts]
    assert cells == [(column, row, str(matrix[row][column])) for row in range(3) for column in range(3)]
    low, high = (100 * end for end in report["top1_interval"])
    for axes, places in zip(drawn[2].axes, ([32, 64], [1, 4]), strict=True):
        assert axes.lines[0].get_xydata().tolist() == [[places[0], 50], [places[1], 75]]
        bars = axes.collections[0].get_segments()
        assert bars[0] == pytest.approx(np.array([[places[0], low], [places[0], high]]))
        assert bars[1] == pytest.approx(np.array([[places[1], 50], [places[1], 100]]))
    assert [(one.get_text(), one.xy) for one in drawn[2].axes[1].texts] == [
        ("32 px", (1.0, 50)),
        ("64 px", (4.0, 75)),
    ]
    for picture in drawn:
        picture.draw_without_rendering()
        drawn_on = picture.get_tightbbox()
        assert drawn_on.x0 >= 0 and drawn_on.x1 <= picture.get_figwidth()
    assert names[0] in (tmp_path / "confusion-32.csv").read_text()


@pytest.mark.slow  # by the import of scipy.stats
def test_wilson_intervals_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for hits, count in ((0, 7), (1, 7), (3, 7), (6, 7), (7, 7), (612, 1000)):
        theirs = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
        assert wilson_interval(hits, count) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_a_sample_that_two_ranks_predicted_is_an_error_and_their_order_does_not_matter() -> None:
    parts = [FOUR.select(np.array([2, 3])), FOUR.select(np.array([0, 1]))]
    assert figures(join(parts), classes=3) == figures(FOUR, classes=3)
    assert join(parts).index.tolist() == [0, 1, 2, 3] and join(parts).top.tolist() == FOUR.top.tolist()
    with pytest.raises(ValueError, match="more than once"):
        join([*parts, parts[0]])


def test_equal_logits_are_ordered_by_class_and_non_finite_ones_count_as_wrong() -> None:
    assert top_classes(torch.zeros(1, 4), count=3).tolist() == [[0, 1, 2]]
    logits = torch.randint(12, (300, 20), generator=torch.Generator().manual_seed(0)).double()
    whole = logits.sort(dim=1, descending=True, stable=True).indices
    for count in (1, 5, 20, 30):
        assert torch.equal(top_classes(logits, count=count), whole[:, :count])
        assert torch.equal(top_classes(logits[:0], count=count), whole[:0, :count])
    lost = predictions([0], [[-1, -1]], [0.0])
    found = figures(lost, classes=2)
    assert (found["top1"], found["non_finite"]) == (0.0, 1)
    assert confusion(lost, classes=2).tolist() == []
    rows = per_class(lost, names=["a", "b"])
    assert [(row["samples"], row["top1"], row["guessed"]) for row in rows] == [(1, 0.0, 0), (0, None, 0)]


def test_classes_match_by_wordnet_id_by_name_and_by_number() -> None:
    known = ["n01440764 tench", "n01443537", "dog"]
    assert match_classes(known, ["n01443537 goldfish", "dog", "cat"]) == [1, 2, None]
    assert match_classes(known, ["0", "2", "10"]) == [None, None, None]
    assert evaluation_columns(known, ["0", "2"], origin="x") == [0, 2]
    assert match_classes(known, ["n014407645"]) == [None], "nine digits are another id"
    assert evaluation_columns(known, ["dog", "n01440764"], origin="x") == [2, 0]
    assert evaluation_columns(known, known, origin="x") is None
    eleven = sorted(map(str, range(11)))  # as a folder lists them: 0, 1, 10, 2 …
    assert evaluation_columns([f"n{n:08d}" for n in range(11)], eleven, origin="x") == [
        0,
        1,
        10,
        *range(2, 10),
    ]
    assert evaluation_columns(None, eleven, origin="x") == [0, 1, 10, *range(2, 10)], "imported without names"
    assert evaluation_columns(None, [*map(str, range(10))], origin="x") is None
    assert evaluation_columns(None, ["ant", "bee"], origin="x") is None
    assert evaluation_columns(None, ["7", "8"], origin="x") is None, "these are names"
    with pytest.raises(UserError, match="'cat' is not among them"):
        evaluation_columns(known, ["dog", "cat"], origin="x")


def test_real_labels_accept_any_of_an_images_labels_and_leave_out_images_without() -> None:
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in (2, 1, 3, 4)]
    real = [[1, 5], [0], [], [2]]
    classes = [f"class {number}" for number in range(6)]
    assert real_accuracy(FOUR, names=names, classes=classes, real=real, origin="x") == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="validation set"):
        real_accuracy(FOUR, names=["cat.jpg"] * 4, classes=classes, real=real, origin="x")
    for wrong in (classes[:5], [str(number) for number in range(21_843)]):
        with pytest.raises(UserError, match=r"count 1,000 classes of ImageNet-1K"):
            real_accuracy(FOUR, names=names, classes=wrong, real=real, origin="x")


def test_real_labels_count_classes_by_their_wordnet_ids_whatever_the_models_order() -> None:
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in (1, 2, 3, 4)]
    by_id, turned = ["n01440764", "n01443537", "n01484850"], ["n01484850", "n01443537", "n01440764"]
    guessed = [[0], [1], [1], [0]]  # of FOUR, among the classes in their own order
    assert real_accuracy(FOUR, names=names, classes=by_id, real=guessed, origin="x") == 1.0
    assert real_accuracy(FOUR, names=names, classes=turned, real=[[2], [1], [1], [2]], origin="x") == 1.0


def test_a_class_that_the_model_knows_twice_is_not_guessed_at() -> None:
    known = ["n01440764 tench", "n01443537", "n01440764 another"]
    with pytest.raises(UserError, match="knows two classes as 'n01440764'"):
        match_classes(known, ["n01440764"])
    assert match_classes(known, ["n01443537"]) == [1], "no matter where nobody asks for it"


def test_seeds_are_summarised_by_mean_and_deviation() -> None:
    runs = [{"top1": t, "top5": 1.0, "best_top1": t, "seconds": 2.0, "samples": 10} for t in (0.5, 0.7)]
    summary = summarise(runs)
    assert summary["top1"] == pytest.approx(0.6)
    assert summary["deviation"]["top1"] == pytest.approx(0.1414, abs=1e-4)
