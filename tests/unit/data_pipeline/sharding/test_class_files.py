"""Files of class names, a line each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coatnet.config import UserError
from coatnet.runtime.class_names import read_class_names
from data_pipeline.corpus import Corpus
from data_pipeline.sharding import vocabulary
from data_pipeline.sharding.sharder import shard_corpus
from data_pipeline.sharding.sources import SourceOptions
from data_pipeline.sharding.vocabulary import (
    LabelColumns,
    Labels,
    number_labels,
    parse_labels,
    read_classes,
    read_hierarchy,
)


def test_a_blank_line_among_the_classes_moves_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("ant\r\nbee\n\n")
    assert read_classes(tmp_path / "classes.txt") == ["ant", "bee"]
    (tmp_path / "classes.txt").write_text("ant\n\nbee\n")
    with pytest.raises(UserError, match="class 1 is not text"):
        read_classes(tmp_path / "classes.txt")


def test_class_files_are_read_the_same_way_by_pack_and_import(tmp_path: Path) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_bytes("\ufeffant \r\nbée\r\n\r\n".encode())  # as editors on Windows leave it
    assert read_classes(classes) == read_class_names(classes) == ["ant", "bée"]
    classes.write_text("ant\ncrane\ncrane\n")
    assert read_class_names(classes) == ["ant", "crane", "crane"], (
        "ImageNet has a bird and a machine of this name"
    )
    with pytest.raises(UserError, match="'crane' comes more than once"):
        read_classes(classes)
    os.mkfifo(tmp_path / "pipe")
    for unfit, reason in (
        (b"ant\x1c\n", "U[+]001C"),
        (b"\xff\n", "is not UTF-8 text"),
        (b"", "class 0 is no"),
    ):
        classes.write_bytes(unfit)
        for read in (read_classes, read_class_names):
            with pytest.raises(UserError, match=reason):
                read(classes)
            with pytest.raises(UserError, match="is not a regular file"):
                read(tmp_path / "pipe")


def test_a_hierarchy_that_is_no_text_is_told_without_the_systems_number(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes(b"\xe9 \xe8\n")
    for name, reason in (("nowhere", "No such file"), ("pipe", "is not a reg"), ("latin", "is not UTF-8")):
        with pytest.raises(UserError, match=f"{name}: {reason}"):
            read_hierarchy(tmp_path / name, ["ant"])


def test_a_number_that_is_the_place_of_one_class_and_the_name_of_another_is_refused(
    image_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "table.csv").write_text(f"path,label\n{image_folder}/ant/000.jpg,1\n")
    options = SourceOptions(root=image_folder, classes=tmp_path / "classes.txt")
    for names in ("1\n2\n3\n", "000\n002\n001\n"):
        (tmp_path / "classes.txt").write_text(names)
        with pytest.raises(
            UserError, match=r"label 1 .* a number is the class's place, and place [01] is named"
        ):
            shard_corpus(tmp_path / "table.csv", tmp_path / "out", source_options=options, quiet=True)
    for number, names in enumerate(("0\n1\n2\n", "ant\n1\n", "ant\nbee\n", "²\nbee\n")):
        (tmp_path / "classes.txt").write_text(names)
        place = tmp_path / f"out-{number}"
        shard_corpus(tmp_path / "table.csv", place, source_options=options, quiet=True)
        corpus = Corpus.open(place)
        assert corpus.read(0, 0).label == 1 and corpus.classes == names.split()


def numbered(*cells: object, classes: list[str] | None = None) -> Labels:
    """Number the labels of samples, as a table's column holds them."""
    names, raw = [f"row-{number}" for number in range(len(cells))], LabelColumns()
    for cell in cells:
        raw.add(parse_labels(cell))
    return number_labels(raw, classes=classes, origin="here", names=names, multi=False)


def test_numbers_are_places_also_of_classes_that_have_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    found = numbered(10, "2", "7")
    assert found.classes == [str(number) for number in range(11)]
    assert found.label.tolist() == [10, 2, 7] and found.rows is None
    for label in (-1, "-1", 1_000_000):
        with pytest.raises(UserError, match=rf"here: labels from .*{int(label):,}.*; allowed: 0 to 999,999"):
            numbered(label, 0)
    assert numbered("-1", "cat").classes == ["-1", "cat"], "among names it is one"
    monkeypatch.setattr(vocabulary, "_MAX_CLASSES", 1000)  # a million take a second
    assert numbered(999).label.tolist() == [999]
    with pytest.raises(UserError, match=r"allowed: 0 to 999$"):
        numbered(1000)


def test_numbers_that_are_written_differently_are_different_classes_under_their_own_names() -> None:
    found = numbered("01", "1", "007", 0)
    assert found.classes == ["0", "007", "01", "1"] and found.label.tolist() == [2, 3, 1, 0]
    found = numbered("010", "002")
    assert found.classes == ["002", "010"] and found.label.tolist() == [1, 0]


def test_a_label_that_comes_several_times_is_one_unless_its_weights_differ() -> None:
    found = numbered("dog;cat;dog", "cat;cat", ["1", 1], [["cat", 0.5], ["cat", 0.5]])
    assert found.rows is not None and found.first is not None
    assert [found.classes[label] for label in found.rows["label"]] == ["dog", "cat", "cat", "1", "cat"]
    assert found.first.tolist() == [0, 2, 3, 4, 5]
    for cell in ("a;b;a:0.5", [["a", 1], "b", ["a", 0.5]]):
        with pytest.raises(ValueError, match=r"'a' has the weights 1 and 0\.5; allowed: one"):
            parse_labels(cell)


@pytest.mark.parametrize("cell", [{"a": 1.01}, [["a", 5]], [{"label": "a", "weight": 2}]])
def test_a_weight_above_one_is_refused_however_it_is_written(cell: object) -> None:
    with pytest.raises(ValueError, match=r"'a' has the weight .*; allowed: 0 to 1"):
        parse_labels(cell)


def test_of_a_label_that_is_no_class_the_sample_is_named() -> None:
    with pytest.raises(UserError, match="here: row-1 has the label 'cow', which is none of 2 classes"):
        numbered("cat", "dog;cow", "cow", classes=["cat", "dog"])


def test_a_label_that_is_written_as_a_mapping_may_go_without_its_weight() -> None:
    found = numbered([{"label": "cat"}], [{"label": "ant", "weight": 1}])
    assert found.classes == ["ant", "cat"] and found.label.tolist() == [1, 0] and found.rows is None


def test_a_number_and_its_text_are_one_class_among_names() -> None:
    found = numbered("cat", 1, ["1"], "1")
    assert found.classes == ["1", "cat"] and found.label.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("cell", ["cat;dog", ["cat", "dog"], "cat:0.5", {"cat": 0.5}])
def test_no_label_and_no_weight_is_lost_to_a_single_one(cell: object) -> None:
    found = numbered("ant", cell)
    assert found.rows is not None and found.first is not None
    assert found.rows["weight"].tolist() == ([1.0, 0.5] if "0.5" in str(cell) else [1.0, 1.0, 1.0])
    assert [found.classes[label] for label in found.rows["label"]] == sorted(found.classes)
    assert found.first.tolist() == [0, 1, len(found.rows)]


@pytest.mark.parametrize("cell", ["12:30", "cat;16:9", "score: 1.01"])
def test_what_looks_like_a_time_or_a_ratio_is_not_taken_for_a_weight_in_silence(cell: str) -> None:
    text = cell.split(";")[-1]
    with pytest.raises(
        ValueError, match=rf"'{text}' is read as .* allowed: 0 to 1, and {text}:1 for a class"
    ):
        parse_labels(cell)


def test_a_class_may_be_named_like_a_time_or_a_ratio_where_its_weight_is_given() -> None:
    found = numbered("12:30:1", "16:9:1.0", "a:b", "C:", "-1:-1", "x:nan", "x:inf")
    assert found.classes == ["-1:-1", "12:30", "16:9", "C:", "a:b", "x:inf", "x:nan"] and found.rows is None
    assert parse_labels("12:1; 7:0") == [(12, 1.0), (7, 0.0)]
