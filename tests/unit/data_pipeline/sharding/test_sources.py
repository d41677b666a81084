from __future__ import annotations

import base64
import csv
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import webdataset

from coatnet.config import UserError
from data_pipeline.corpus import Corpus
from data_pipeline.sharding import collecting
from data_pipeline.sharding.in_place import index_in_place
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.sharder import shard_corpus
from data_pipeline.sharding.sources import SourceOptions
from data_pipeline.sharding.workers import run_jobs
from data_pipeline.tar_format import TarError, walk_members
from data_pipeline.tools.verify import verify_shards


@pytest.fixture(scope="session")
def pictures(image_folder: Path) -> list[tuple[str, bytes]]:
    """(class, bytes) of six images of each class."""
    return [
        (folder.name, path.read_bytes())
        for folder in sorted(image_folder.iterdir())
        for path in sorted(folder.iterdir())[:6]
    ]


def packed(source: Path, tmp_path: Path, **options) -> Corpus:
    destination = tmp_path / "packed"
    shard_corpus(
        source,
        destination,
        options=ShardOptions(shard_samples=5),
        source_options=SourceOptions(**options),
        quiet=True,
    )
    return Corpus.open(destination)


def contents(corpus: Corpus) -> set[tuple[str, bytes]]:
    records = [corpus.read(s, i) for s, count in enumerate(corpus.counts) for i in range(count)]
    return {(corpus.classes[record.label], record.payload) for record in records}


def weights(corpus: Corpus) -> dict[bytes, dict[str, float]]:
    found = {}
    for shard, count in enumerate(corpus.counts):
        for index in range(count):
            record = corpus.read(shard, index)
            assert record.labels is not None
            found[record.payload] = {
                corpus.classes[label]: round(weight, 6) for label, weight in record.labels.tolist()
            }
    return found


def test_a_csv_of_paths_is_packed(pictures: list[tuple[str, bytes]], tmp_path: Path) -> None:
    with (tmp_path / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for number, (name, content) in enumerate(pictures):
            (tmp_path / f"{number}.jpg").write_bytes(content)
            rows.writerow([f"{number}.jpg", name])
    assert contents(packed(tmp_path / "table.csv", tmp_path)) == set(pictures)


@pytest.mark.parametrize("name", ["T.CSV", "t.Tsv", "t.JSONL"])
def test_the_ending_of_a_tables_name_may_be_of_any_case(
    pictures: list[tuple[str, bytes]], tmp_path: Path, name: str
) -> None:
    label, content = pictures[0]
    (tmp_path / "a.jpg").write_bytes(content)
    line = json.dumps({"path": "a.jpg", "label": label})
    cells = ("path", "label"), ("a.jpg", label)
    between = "," if name == "T.CSV" else "\t"
    text = line if name == "t.JSONL" else "\r\n".join(between.join(row) for row in cells)
    (tmp_path / name).write_text(text)
    assert contents(packed(tmp_path / name, tmp_path)) == {pictures[0]}


def test_a_csv_may_hold_photographs_of_any_size(pictures: list[tuple[str, bytes]], tmp_path: Path) -> None:
    label, content = pictures[0]
    large = content + bytes(200_000)  # behind the end of the image
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["bytes", "label"], [base64.b64encode(large).decode(), label]])
    assert contents(packed(tmp_path / "table.csv", tmp_path)) == {(label, large)}


def test_a_tables_paths_may_hold_any_character_and_be_written_in_any_way(
    pictures: list[tuple[str, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        "com,ma",
        'quo"te',
        "ünï 😀",
        "new\nline",
        "semi;colon",
        "back\\slash",
        "[b]",
        "..x",
        "x..",
        "-rf",
        "x" * 150,
    ]
    wanted = set()
    (tmp_path / "sub").mkdir()
    with (tmp_path / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for number, (name, (label, content)) in enumerate(zip(names, pictures, strict=False)):
            written = [f"{name}.jpg", f"./{name}.jpg", f"sub//{name}.jpg", f"{tmp_path}/sub/./{name}.jpg"]
            place = tmp_path / written[number % 4]
            place.write_bytes(content)
            rows.writerow([written[number % 4], label])
            wanted.add((label, content))
    shard_corpus(tmp_path / "table.csv", tmp_path / "out")
    assert contents(Corpus.open(tmp_path / "out")) == wanted
    assert "list table.csv: 11, " in capsys.readouterr().err


def test_an_image_column_may_name_a_file_instead_of_holding_it(
    pictures: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    """As of a Hugging Face data set that was saved without its files."""
    label, content = pictures[0]
    (tmp_path / "a.jpg").write_bytes(content)
    row = {"image": {"bytes": None, "path": "a.jpg"}, "label": label}
    (tmp_path / "table.jsonl").write_text(json.dumps(row))
    assert contents(packed(tmp_path / "table.jsonl", tmp_path)) == {pictures[0]}


def test_json_lines_with_bytes_and_weighted_labels_are_packed(
    pictures: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    lines = [
        {"bytes": base64.b64encode(content).decode(), "labels": [[name, 0.75], ["animal", 0.25]]}
        for name, content in pictures
    ]
    text = "\r\n".join(map(json.dumps, lines))
    (tmp_path / "table.jsonl").write_bytes(text.encode("utf-8-sig"))  # as Windows writes it
    corpus = packed(tmp_path / "table.jsonl", tmp_path)
    assert corpus.classes == ["animal", "ant", "bee", "cat"]
    assert weights(corpus) == {content: {name: 0.75, "animal": 0.25} for name, content in pictures}
    path = str(tmp_path / "packed" / corpus.manifest.shards[0].name)
    sample = next(iter(webdataset.WebDataset(path, shardshuffle=False)))
    assert {label for label, _ in json.loads(sample["json"])["labels"]} >= {0}
    assert not (tmp_path / "packed" / ".payloads").exists()


def test_a_parquet_with_an_image_column_is_packed(pictures: list[tuple[str, bytes]], tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "image": [
                {"bytes": content, "path": f"{number}.jpg"} for number, (_, content) in enumerate(pictures)
            ],
            "label": [["ant", "bee", "cat"].index(name) for name, _ in pictures],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "table.parquet", row_group_size=4)
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
    corpus = packed(tmp_path / "table.parquet", tmp_path, classes=tmp_path / "classes.txt")
    assert contents(corpus) == set(pictures)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime = len(content), 1_700_000_000
    tar.addfile(member, io.BytesIO(content))


def foreign_tars(folder: Path, pictures: list[tuple[str, bytes]], *, format: int) -> Path:
    """Write tars as others do: members in another order, extra members, long names, any tar dialect."""
    folder.mkdir()
    for part in range(2):
        with tarfile.open(folder / f"part-{part}.tar", "w", format=format) as tar:
            for number, (name, content) in list(enumerate(pictures))[part::2]:
                key = f"{'deep/' * 30}{number:04d}" if number % 3 else f"{number:04d}"
                label = ["ant", "bee", "cat"].index(name)
                add(tar, f"{key}.json", b'{"caption": "hello"}')
                add(tar, f"{key}.cls", b"%d" % label)
                add(tar, f"{key}.jpeg", content)
    (folder.parent / "classes.txt").write_text("ant\nbee\ncat\n")
    return folder


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_others_are_indexed_where_they_lie_and_stay_untouched(
    pictures: list[tuple[str, bytes]], tmp_path: Path, format: int
) -> None:
    folder = foreign_tars(tmp_path / "tars", pictures, format=format)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    classes = SourceOptions(classes=tmp_path / "classes.txt")
    manifest = index_in_place(folder, source_options=classes, quiet=True)
    assert manifest.samples == len(pictures)
    assert {path.name: path.read_bytes() for path in folder.glob("*.tar")} == before
    corpus = Corpus.open(folder)
    assert contents(corpus) == set(pictures)
    assert verify_shards(corpus, folder, threads=1, done=lambda _: None) == []
    assert index_in_place(folder, source_options=classes, quiet=True) == manifest
    assert "0000.jpeg" in corpus.name(0, 0) or "deep/" in corpus.name(0, 0)


def test_captions_and_skipped_images_in_tars_of_others_are_no_damage(
    pictures: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for number, (_, content) in enumerate(pictures):
            add(tar, f"{number:04d}.jpg", b"no image" if number == 2 else content)
            add(tar, f"{number:04d}.txt", b"a caption")
            add(tar, f"{number:04d}.cls", b"%d" % (number % 2))
    manifest = index_in_place(folder, options=ShardOptions(bad_budget=0.5), quiet=True)
    assert manifest.samples == len(pictures) - 1
    assert verify_shards(Corpus.open(folder), folder, threads=1, done=lambda _: None) == []


def test_tars_of_others_are_packed_anew(pictures: list[tuple[str, bytes]], tmp_path: Path) -> None:
    folder = foreign_tars(tmp_path / "tars", pictures, format=tarfile.USTAR_FORMAT)
    corpus = packed(folder, tmp_path, classes=tmp_path / "classes.txt")
    assert contents(corpus) == set(pictures)


def test_a_tar_of_one_tar_per_class_is_packed_with_its_hierarchy(
    pictures: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "whole.tar", "w") as outer:
        for name in ("ant", "bee", "cat"):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for number, (_, content) in enumerate(p for p in pictures if p[0] == name):
                    add(inner, f"{name}_{number}.JPEG", content)
            add(outer, f"{name}.tar", buffer.getvalue())
    (tmp_path / "is_a.txt").write_text(
        "insect ant\ninsect bee\nanimal insect\nmammal cat\nanimal mammal\nx y\n"
    )
    corpus = packed(tmp_path / "whole.tar", tmp_path, hierarchy=tmp_path / "is_a.txt")
    assert contents(corpus) == set(pictures)
    assert corpus.manifest.hierarchy == {
        "ant": "insect",
        "bee": "insect",
        "insect": "animal",
        "cat": "mammal",
        "mammal": "animal",
    }


def test_no_suffix_of_an_image_in_a_tar_is_overlooked(
    pictures: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        for suffix, (name, content) in zip(("jfif", "JPE", "Jpeg"), pictures, strict=False):
            add(tar, f"{name}/{suffix}.mask.png", b"no image")
            add(tar, f"{name}/{suffix}.{suffix}", content)
        add(tar, "ant/phone.heic", b"....ftypheic")
        add(tar, "ant/scan.pgm", b"P5 1 1 255 x")
    options = ShardOptions(bad_budget=0.5)
    made = shard_corpus(tmp_path / "odd.tar", tmp_path / "out", options=options, quiet=True)["all"]
    assert (made.counts["written"], made.counts["skipped"]) == (3, 2)


def test_a_folder_keeps_the_numbers_of_a_given_vocabulary(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("dog\ncat\nbee\nant\n")
    corpus = packed(image_folder, tmp_path, classes=tmp_path / "classes.txt")
    assert corpus.classes == ["dog", "cat", "bee", "ant"]
    assert corpus.class_counts().tolist() == [0, 40, 40, 40]
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(UserError, match="ant: is none of the 2 classes"):
        packed(image_folder, tmp_path, classes=tmp_path / "classes.txt")


def test_an_option_of_another_kind_of_source_is_refused(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--only chooses members of tars"):
        packed(image_folder, tmp_path, only="train/")
    with pytest.raises(UserError, match="--root is for a table's paths"):
        packed(image_folder, tmp_path, root=tmp_path)
    with pytest.raises(UserError, match="--in-place moves nothing"):
        index_in_place(tmp_path, options=ShardOptions(deduplicate=True), quiet=True)


def test_tars_in_place_have_a_hierarchy_too(pictures: list[tuple[str, bytes]], tmp_path: Path) -> None:
    folder = foreign_tars(tmp_path / "tars", pictures, format=tarfile.USTAR_FORMAT)
    (tmp_path / "is_a.txt").write_text("insect ant\n")
    options = SourceOptions(classes=tmp_path / "classes.txt", hierarchy=tmp_path / "is_a.txt")
    assert index_in_place(folder, source_options=options, quiet=True).hierarchy == {"ant": "insect"}


def test_images_in_a_tar_within_a_tar_cannot_stay_in_place_and_are_not_left_out(
    pictures: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    buffer, folder = io.BytesIO(), tmp_path / "tars"
    folder.mkdir()
    with tarfile.open(fileobj=buffer, mode="w") as inner:
        add(inner, "0.jpg", pictures[0][1])
    with tarfile.open(folder / "mixed.tar", "w") as outer:
        add(outer, "ant.tar", buffer.getvalue())
        add(outer, "bee/1.jpg", pictures[7][1])
    with pytest.raises(UserError, match="1 of 2 images lie in tars within tars"):
        index_in_place(folder, quiet=True)
    assert not (folder / "manifest.json").exists()


def test_a_tar_of_folders_is_packed_by_split(pictures: list[tuple[str, bytes]], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for number, (name, content) in enumerate(pictures):
            add(tar, f"{'train' if number % 2 else 'test'}/{name}/{number}.jpg", content)
    assert contents(packed(tmp_path / "images.tar", tmp_path, only="train/")) == set(pictures[1::2])


def test_damage_in_a_tar_of_others_is_named_and_loses_nothing_silently(
    pictures: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    folder = foreign_tars(tmp_path / "tars", pictures, format=tarfile.USTAR_FORMAT)
    path = folder / "part-0.tar"
    whole = path.read_bytes()
    starts = [member.start for member in walk_members(path)]
    for start in starts:
        broken = bytearray(whole)
        broken[start + 20] ^= 1
        path.write_bytes(broken)
        with pytest.raises(TarError, match=f"byte {start}"):
            list(walk_members(path))
        path.write_bytes(whole[:start])
        with pytest.raises(TarError, match=f"byte {start}"):
            list(walk_members(path))
    with pytest.raises(UserError, match=r"part-0\.tar: .* mend or remove it"):
        index_in_place(folder, quiet=True)


def test_a_second_table_leaves_alone_what_the_first_ones_workers_are_reading(
    pictures: list[tuple[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def table(name: str, rows: list[tuple[str, bytes]]) -> Path:
        lines = [{"bytes": base64.b64encode(content).decode(), "label": label} for label, content in rows]
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)))
        return tmp_path / name

    def interrupted(*given: Any, **options: Any) -> Iterator[Any]:
        for result in run_jobs(*given, **options):
            with pytest.raises(UserError, match="another process is sharding into it"):
                packed(second, tmp_path)
            yield result

    first, second = table("first.jsonl", pictures), table("second.jsonl", pictures[:3])
    monkeypatch.setattr(collecting, "run_jobs", interrupted)
    assert contents(packed(first, tmp_path)) == set(pictures)


def test_names_that_look_like_numbers_stay_names_beside_others(
    pictures: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    renamed = [({"ant": "2", "bee": "1"}.get(name, name), content) for name, content in pictures]
    lines = [{"bytes": base64.b64encode(content).decode(), "label": name} for name, content in renamed]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert contents(packed(tmp_path / "table.jsonl", tmp_path)) == set(renamed)


def test_a_label_that_is_no_class_is_named(pictures: list[tuple[str, bytes]], tmp_path: Path) -> None:
    folder = foreign_tars(tmp_path / "tars", pictures, format=tarfile.USTAR_FORMAT)
    (tmp_path / "two.txt").write_text("ant\nbee\n")
    with pytest.raises(UserError, match="has the label 2, which is none of 2 classes"):
        packed(folder, tmp_path, classes=tmp_path / "two.txt")
