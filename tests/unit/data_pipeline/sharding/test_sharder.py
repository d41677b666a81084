from __future__ import annotations

import errno
import io
import json
import os
import re
import tarfile
from pathlib import Path
from unittest.mock import Mock

import pytest
import webdataset
from PIL import Image

from coatnet.config import UserError
from data_pipeline.corpus import Corpus
from data_pipeline.decode.kernel import is_available
from data_pipeline.manifest import MANIFEST
from data_pipeline.sharding import collecting, direct_file, sharder
from data_pipeline.sharding.commit import REPORT
from data_pipeline.sharding.job import write_shard
from data_pipeline.sharding.listing import WHOLE_FILE, Item
from data_pipeline.sharding.options import OddPolicy, ShardOptions
from data_pipeline.sharding.sharder import shard_corpus
from data_pipeline.sharding.sources import SourceOptions
from data_pipeline.tools.verify import verify_shards

needs_kernel = pytest.mark.skipif(not is_available(), reason="no C kernel")


def shard(source: Path, destination: Path, **options) -> Corpus:
    shard_corpus(source, destination, options=ShardOptions(**{"shard_samples": 10, **options}), quiet=True)
    return Corpus.open(destination)


def everything(corpus: Corpus) -> list[tuple[bytes, int]]:
    records = [
        corpus.read(number, index) for number, count in enumerate(corpus.counts) for index in range(count)
    ]
    return [(bytes(record.payload), record.label) for record in records]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_the_shards_hold_every_image_once_with_its_label(image_folder: Path, tmp_path: Path) -> None:
    corpus = shard(image_folder, tmp_path / "out")
    expected = sorted(
        (path.read_bytes(), corpus.classes.index(path.parent.name)) for path in image_folder.rglob("*.jpg")
    )
    assert sorted(everything(corpus)) == expected
    assert corpus.counts.tolist() == [10] * 12
    assert verify_shards(corpus, tmp_path / "out", threads=1, done=lambda _: None) == []


def test_the_webdataset_library_and_tar_read_the_shards(shard_folder: Path) -> None:
    corpus = Corpus.open(shard_folder)
    path = str(shard_folder / corpus.manifest.shards[2].name)
    samples = list(webdataset.WebDataset(path, shardshuffle=False).decode("pil").to_tuple("jpg", "cls"))
    assert len(samples) == 15
    for index, (image, label) in enumerate(samples):
        record = corpus.read(2, index)
        assert (image.size, label) == ((record.width, record.height), record.label)
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == sorted(
        (member.name for member in members), key=lambda name: (name.split(".")[0], name.endswith("cls"))
    )
    assert {(member.mtime, member.uid, member.type) for member in members} == {(0, 0, tarfile.REGTYPE)}


@pytest.mark.slow
def test_equal_sources_give_equal_bytes_whatever_the_number_of_processes(
    image_folder: Path, tmp_path: Path
) -> None:
    shard(image_folder, tmp_path / "one")
    shard(image_folder, tmp_path / "two", workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.parametrize("tile_jpeg", [False, pytest.param(True, marks=needs_kernel)])
def test_shards_are_equal_whether_a_record_fits_into_a_piece_or_not(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tile_jpeg: bool
) -> None:
    shard(image_folder, tmp_path / "whole", tile_jpeg=tile_jpeg)
    for piece_bytes in (4096, 12288, 32768):
        monkeypatch.setattr(direct_file, "_PIECE_BYTES", piece_bytes)
        pieces = tmp_path / f"pieces-{piece_bytes}"
        shard(image_folder, pieces, tile_jpeg=tile_jpeg)
        assert files(pieces) == files(tmp_path / "whole"), piece_bytes


@pytest.mark.parametrize("behind", [b"", b"\0", bytes(5000)])
def test_a_file_that_changed_since_it_was_listed_is_read_whole(tmp_path: Path, behind: bytes) -> None:
    path = tmp_path / "image.jpg"
    Image.new("RGB", (40, 30), "red").save(path)
    listed = Item("image.jpg", str(path), WHOLE_FILE, path.stat().st_size, label=0)
    path.write_bytes(path.read_bytes() + behind)
    target = tmp_path / "shard-000000.tar"
    assert (
        write_shard(target, first=0, items=[listed], options=ShardOptions(), multi=False).entry.samples == 1
    )
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        written = tar.extractfile(tar.getmembers()[0])
        assert written is not None and written.read() == path.read_bytes()


def test_images_are_mixed_at_write_time(image_folder: Path, tmp_path: Path) -> None:
    labels = [label for _, label in everything(shard(image_folder, tmp_path / "shuffled"))]
    assert labels != sorted(labels)
    labels = [label for _, label in everything(shard(image_folder, tmp_path / "plain", shuffle=False))]
    assert labels == sorted(labels)


def test_a_second_call_changes_nothing_and_other_options_are_refused(
    image_folder: Path, tmp_path: Path
) -> None:
    shard(image_folder, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    shard(image_folder, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    with pytest.raises(UserError, match="another source or other options"):
        shard(image_folder, tmp_path / "out", seed=1)


def test_an_interrupted_sharding_goes_on_and_ends_equal(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(image_folder, tmp_path / "whole")
    real, calls = sharder.write_shard, []

    def stops_after_five(path, **given):
        calls.append(path)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(path, **given)

    monkeypatch.setattr(sharder, "write_shard", stops_after_five)
    with pytest.raises(KeyboardInterrupt):
        shard(image_folder, tmp_path / "cut")
    assert not (tmp_path / "cut" / MANIFEST).exists()
    (tmp_path / "cut" / ".shard-000005.tar.1.tmp").write_bytes(b"half a shard")
    (tmp_path / "cut" / "shard-000000.tar").unlink()
    os.truncate(tmp_path / "cut" / "shard-000001.tar", 1000)
    (tmp_path / "cut" / "shard-000002.index.npy").unlink()
    begun = Mock(wraps=collecting.progress)
    monkeypatch.setattr(collecting, "progress", begun)
    shard(image_folder, tmp_path / "cut")
    assert begun.call_args.args[0] == 120 and begun.call_args.kwargs["done"] == 20  # no part of the rate
    assert len(calls) == 6 + 3 + 7, "what was lost or cut short meanwhile is written again"
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_labels_that_were_lost_meanwhile_are_written_again(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several, place = SourceOptions(multi_label=True), tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(collecting, "commit", Mock(side_effect=KeyboardInterrupt))
        shard_corpus(image_folder, place, source_options=several, quiet=True)
    (place / "shard-000000.labels.npy").unlink()
    shard_corpus(image_folder, place, source_options=several, quiet=True)
    assert Corpus.open(place).class_counts().tolist() == [40, 40, 40]


def test_a_name_in_no_encoding_is_no_obstacle_to_going_on(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images" / "ant").mkdir(parents=True)
    image = (image_folder / "ant" / "000.jpg").read_bytes()
    (tmp_path / "images" / "ant" / "caf\udce9.png").write_bytes(image)  # in Latin-1, and odd: reported
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(collecting, "commit", Mock(side_effect=KeyboardInterrupt))
        shard(tmp_path / "images", tmp_path / "out")
    shard(tmp_path / "images", tmp_path / "out")
    assert b'"name": "ant/caf\xe9.png"' in (tmp_path / "out" / REPORT).read_bytes()


def test_the_beginning_of_another_sharding_is_not_mixed_in(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(collecting, "commit", stops)
    with pytest.raises(KeyboardInterrupt):
        shard(image_folder, tmp_path / "out")
    with pytest.raises(UserError, match="holds the beginning of a sharding"):
        shard(image_folder, tmp_path / "out", seed=1)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_half_written_and_the_same_call_goes_on(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real, written = os.write, []

    def fills_up(descriptor: int, piece: memoryview) -> int:
        written.append(len(piece))
        if len(written) > 5:
            raise OSError(code, os.strerror(code))
        return real(descriptor, piece)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="the disk is full; finished shards"):
        patch.setattr(direct_file.os, "write", fills_up)
        shard(image_folder, tmp_path / "out")
    tars = [path.name for path in (tmp_path / "out").glob("*.tar")]
    assert len(tars) == 5
    assert not list((tmp_path / "out").glob(".*.tmp"))
    shard(image_folder, tmp_path / "out")
    shard(image_folder, tmp_path / "whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_held_out_share_depends_on_names_alone(image_folder: Path, tmp_path: Path) -> None:
    made = shard_corpus(image_folder, tmp_path / "a", options=ShardOptions(validation=0.25), quiet=True)
    train, held_out = Corpus.open(tmp_path / "a" / "train"), Corpus.open(tmp_path / "a" / "validation")
    assert train.samples + held_out.samples == 120
    assert 15 <= held_out.samples <= 45
    assert made["validation"].digest() == held_out.digest
    shard_corpus(
        image_folder, tmp_path / "b", options=ShardOptions(validation=0.25, seed=9, shuffle=False), quiet=True
    )
    other = Corpus.open(tmp_path / "b" / "validation")
    assert sorted(everything(other)) == sorted(everything(held_out))


def make(folder: Path, **contents: bytes) -> Path:
    for name, content in contents.items():
        path = folder / "only" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def jpeg(**options) -> bytes:
    buffer = io.BytesIO()
    Image.new(options.pop("mode", "RGB"), (40, 30), 3).save(buffer, options.pop("format", "JPEG"), **options)
    return buffer.getvalue()


def test_an_unreadable_image_is_named_counted_and_skipped_within_the_budget(tmp_path: Path) -> None:
    source = make(tmp_path / "in", good=jpeg(), broken=jpeg()[:200], text=b"no image at all")
    with pytest.raises(UserError, match=r"2 of 3 images cannot be used.*only/.*\.jpg: .*--bad-budget"):
        shard(source, tmp_path / "strict")
    corpus = shard(source, tmp_path / "out", bad_budget=0.7)
    assert corpus.manifest.counts == {"written": 1, "skipped": 2, "odd": 2, "duplicates": 0}
    report = [json.loads(line) for line in (tmp_path / "out" / "report.jsonl").read_text().splitlines()]
    assert {(entry["name"], entry["action"]) for entry in report} == {
        ("only/broken.jpg", "skip"),
        ("only/text.jpg", "skip"),
    }


@pytest.mark.parametrize("source", ["", "table.csv"])
def test_a_pipe_in_the_place_of_an_image_is_named_and_not_waited_for(tmp_path: Path, source: str) -> None:
    images = make(tmp_path / "images", good=jpeg())
    os.mkfifo(images / "only" / "pipe.jpg")
    (images / "table.csv").write_text("path,label\nonly/pipe.jpg,a\nonly/good.jpg,a\n")
    counts = shard(images / source, tmp_path / "out").manifest.counts
    assert (counts["written"], counts["skipped"]) == (1, 1)


def test_policies_go_by_content(tmp_path: Path) -> None:
    source = make(
        tmp_path / "in",
        png=jpeg(format="PNG"),
        gray=jpeg(mode="L"),
        cmyk=jpeg(mode="CMYK"),
        progressive=jpeg(progressive=True),
    )
    corpus = shard(source, tmp_path / "keep")
    with tarfile.open(tmp_path / "keep" / "shard-000000.tar") as tar:
        assert sorted(name.rsplit(".", 1)[1] for name in tar.getnames() if "cls" not in name) == [
            *["jpg"] * 3,
            "png",
        ]
    report = (tmp_path / "keep" / "report.jsonl").read_text()
    for kind in ("renamed", "gray", "cmyk", "progressive"):
        assert kind in report
    corpus = shard(source, tmp_path / "other", policy=OddPolicy(cmyk="convert", gray="skip"), bad_budget=0.5)
    assert corpus.samples == 3
    assert {Image.open(io.BytesIO(payload)).mode for payload, _ in everything(corpus)} == {"RGB"}
    with pytest.raises(UserError, match=r"only/cmyk\.jpg: cmyk \(its policy is stop\)"):
        shard(source, tmp_path / "stop", policy=OddPolicy(cmyk="stop"))


def loose(folder: Path, *names: str, suffix: str = "") -> Path:
    """Make an image folder of one class with files beside it."""
    make(folder, a=b"")
    for name in names:
        (folder / f"{name}{suffix}").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "No such file"),
        (lambda folder: folder.mkdir(), "holds nothing; expected a folder per class"),
        (lambda folder: make(folder, a=b"").joinpath("empty").mkdir(), "empty: a class without a file"),
        (lambda folder: make(folder, a=b"", b=b"x"), "cannot be used"),
        (
            lambda folder: loose(folder, "b.JPG", "a.heic", "notes.txt"),
            r"2 images lie .*: a\.heic, b\.JPG; move",
        ),
        (
            lambda folder: loose(folder, *"abcdefg", suffix=".png"),
            r"7 images lie .*: a\.png, .*, e\.png, …; move",
        ),
        (lambda folder: make(folder / "train", a=b"").parent, "its folders are parts of a data set: train;"),
        (lambda folder: loose(folder, "b.tar"), r"b\.tar: beside it lies only/a\.jpg"),
    ],
)
def test_a_malformed_source_is_one_clear_error(tmp_path: Path, prepare, message: str) -> None:
    prepare(tmp_path / "in")
    with pytest.raises(UserError, match=message):
        shard(tmp_path / "in", tmp_path / "out")


def test_hostile_file_names_become_harmless_keys(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "only"
    folder.mkdir(parents=True)
    for name in ("a b;rm -rf.jpg", "nämé 你好.jpg", "x" * 200 + ".jpg", "two.dots.jpg", "new\nline.jpg"):
        (folder / name).write_bytes(jpeg())
    corpus = shard(tmp_path / "in", tmp_path / "out")
    assert corpus.samples == 5
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        assert all(re.fullmatch(r"[A-Za-z0-9_-]+\.(jpg|cls)", name) for name in tar.getnames())
    shard_file = str(tmp_path / "out" / "shard-000000.tar")
    assert len(list(webdataset.WebDataset(shard_file, shardshuffle=False))) == 5


def test_a_shard_is_on_the_disk_before_it_has_its_name_and_its_name_before_it_counts_as_done(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut loses what was not synced: the journal must never vouch for it."""
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        calls.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> Path:
        calls.append(f"name {target.name}")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    shard_corpus(image_folder, tmp_path / "shards", options=ShardOptions(shard_samples=60), quiet=True)

    def content(name: str) -> int:
        return calls.index(f"sync .{name}.{os.getpid()}.tmp")

    def committed(name: str, *, folder: str = "shards") -> int:
        """Return when a file's name was on the disk, its content before."""
        return calls.index(f"sync {folder}", calls.index(f"name {name}", content(name)))

    for shard in ("shard-000000", "shard-000001"):
        assert max(committed(f"{shard}.tar"), committed(f"{shard}.index.npy")) < content(f"{shard}.json")
        assert committed(f"{shard}.json", folder=".sharding") < content("manifest.json")
    assert committed("manifest.json")
