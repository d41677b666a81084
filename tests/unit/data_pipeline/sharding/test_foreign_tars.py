"""Tars as other programs leave them: an image is taken by its own label, or the tar refused in a line."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from coatnet.config import UserError
from data_pipeline.corpus import Corpus
from data_pipeline.manifest import Manifest
from data_pipeline.sharding.commit import REPORT
from data_pipeline.sharding.in_place import index_in_place
from data_pipeline.sharding.sharder import shard_corpus
from data_pipeline.sharding.sources import SourceOptions
from data_pipeline.tools.verify import verify_shards

Work = Callable[[Path], Manifest]


@pytest.fixture
def images(image_folder: Path) -> list[bytes]:
    """Images that all differ."""
    return [path.read_bytes() for path in sorted(image_folder.rglob("*.jpg"))]


@pytest.fixture(params=["in place", "packed"])
def work(request: pytest.FixtureRequest, tmp_path: Path) -> Work:
    """Return what makes a corpus of a folder of tars, in either way."""
    if request.param == "in place":
        return partial(index_in_place, quiet=True)
    return lambda folder: shard_corpus(folder, tmp_path / "packed", quiet=True)["all"]


def tars_of(folder: Path, members: Sequence[tuple[str, bytes]], *, name: str = "a.tar") -> Path:
    """Add a tar to a folder."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / name, "w") as tar:
        for path, content in members:
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return folder


def labels(corpus: Corpus) -> list[str]:
    """Return the class of each image, in order."""
    places = [(shard, index) for shard, count in enumerate(corpus.counts) for index in range(count)]
    return [corpus.classes[corpus.read(*place).label] for place in places]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_whose_image_would_be_left_out_is_refused(
    tmp_path: Path, images: list[bytes], work: Work, kind: bytes
) -> None:
    folder = tars_of(tmp_path / "tars", [("cat/0.jpg", images[0])])
    with tarfile.open(folder / "a.tar", "a") as tar:
        link = tarfile.TarInfo("dog/1.jpg")
        link.type, link.linkname = kind, "cat/0.jpg"
        tar.addfile(link)
    with pytest.raises(UserError, match=r"'dog/1\.jpg' is a link.*`tar --dereference --hard-dereference`"):
        work(folder)


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_a_file_with_holes_that_its_tar_left_out_is_refused(
    tmp_path: Path, images: list[bytes], work: Work, format: str
) -> None:
    (tmp_path / "cat").mkdir()
    for number, image in enumerate(images[:3]):
        (tmp_path / "cat" / f"{number}.jpg").write_bytes(image)
    with (tmp_path / "cat" / "1.jpg").open("r+b") as file:
        file.truncate(1 << 20)
    (tmp_path / "tars").mkdir()
    command = ["tar", "--sparse", f"--format={format}", "--sort=name", "-cf", "tars/a.tar", "cat"]
    if subprocess.run(command, cwd=tmp_path, check=False).returncode:
        pytest.skip("there is no GNU tar")
    with pytest.raises(UserError, match=r"'cat/1\.jpg' is sparse.* without `--sparse`"):
        work(tmp_path / "tars")


@pytest.mark.parametrize(
    "names", [("2020.01.02.jpg", "2020.01.03.jpg"), ("1.jpg", "1.png"), ("1.5.jpg", "1.7.JPG")]
)
def test_images_of_a_folder_that_share_a_stem_are_not_left_out_in_silence(
    tmp_path: Path, images: list[bytes], work: Work, names: tuple[str, str]
) -> None:
    members = [(f"cat/{name}", image) for name, image in zip(names, images, strict=False)]
    folder = tars_of(tmp_path / "tars", members)
    with pytest.raises(UserError, match=rf"a\.tar: cat/{names[0]} and cat/{names[1]}: .*left out.*unpack"):
        work(folder)


def test_of_the_images_of_one_labelled_sample_the_plainest_is_taken(
    tmp_path: Path, images: list[bytes], work: Work
) -> None:
    folder = tars_of(tmp_path / "tars", [("0.cls", b"0"), ("0.jpg", images[0]), ("0.mask.png", b"no image")])
    assert work(folder).samples == 1


@pytest.mark.parametrize("suffix", ["cls", "json"])
def test_a_label_apart_from_its_image_does_not_give_way_to_the_folder(
    tmp_path: Path, images: list[bytes], work: Work, suffix: str
) -> None:
    """As in a tar of a folder of labelled samples that nobody sorted."""
    members = [("train/0.jpg", images[0]), ("train/1.jpg", images[1])]
    members += [(f"train/{number}.{suffix}", b"%d" % number) for number in range(2)]
    with pytest.raises(UserError, match=r"a\.tar: train/0 has its label apart from its image.*--sort=name"):
        work(tars_of(tmp_path / "tars", members))


@pytest.mark.parametrize("suffix", ["cls", "LABEL.txt"])
def test_of_a_labelled_sample_without_the_name_of_an_image_the_content_decides_and_nothing_is_left_out(
    tmp_path: Path, images: list[bytes], work: Work, suffix: str
) -> None:
    members = [("0.jpg", images[0]), ("0.cls", b"0"), ("1", images[1]), (f"1.{suffix}", b"1")]
    members += [(f"2.{suffix}", b"1"), ("2.orig", images[2]), ("3.txt", b"no sample")]
    assert work(tars_of(tmp_path / "tars", members)).counts["written"] == 3
    folder = tars_of(tmp_path / "more", [*members, (f"4.{suffix}", b"2")])
    made = index_in_place(folder, quiet=True)
    assert (made.counts["written"], made.counts["skipped"], len(made.classes)) == (3, 1, 3)
    assert f'"4.{suffix}", "kinds": ["not_an_image"]' in (folder / REPORT).read_text()
    assert verify_shards(Corpus.open(folder), folder, threads=1, done=lambda count: None) == []


@pytest.mark.parametrize("text", [b"[" * 60_000, b"1" + b"0" * 5000], ids=["deep", "long"])
def test_a_label_that_no_parser_takes_is_one_line(
    tmp_path: Path, images: list[bytes], work: Work, text: bytes
) -> None:
    with pytest.raises(UserError, match=r"a\.tar: 0\.json: (maximum recursion|Stack overflow|Exceeds)"):
        work(tars_of(tmp_path / "tars", [("0.jpg", images[0]), ("0.json", text)]))


@pytest.mark.parametrize(
    "names",
    [
        ("data/train/cat/0.jpg", "data/val/cat/1.jpg"),
        ("./Training/cat/0.jpg", "./test/dog/1.jpg"),
        ("train/0.jpg", "train/0.cls", "validation/1.jpg", "validation/1.cls"),
    ],
)
def test_training_and_validation_in_one_tar_do_not_become_one_corpus(
    tmp_path: Path, images: list[bytes], work: Work, names: tuple[str, ...]
) -> None:
    contents = {".jpg": iter(images), ".cls": iter([b"0", b"1"])}
    folder = tars_of(tmp_path / "tars", [(name, next(contents[name[-4:]])) for name in names])
    with pytest.raises(UserError, match=r"parts of a data set, \w+, \w+; choose one by --only FOLDER/"):
        work(folder)
    chosen = SourceOptions(only=names[0].partition("0.jpg")[0])
    assert index_in_place(folder, source_options=chosen, quiet=True).samples == 1


def test_tars_of_training_and_validation_side_by_side_do_not_become_one_corpus(
    tmp_path: Path, images: list[bytes], work: Work
) -> None:
    """As a hub keeps ImageNet: imagenet1k-train-0000.tar beside imagenet1k-validation-00.tar."""
    folder = tars_of(tmp_path / "tars", [("cat/0.jpg", images[0])], name="some1k-train-0000.tar")
    tars_of(folder, [("cat/1.jpg", images[1])], name="latest-0001.tar")
    assert work(folder).samples == 2
    tars_of(folder, [("cat/2.jpg", images[2])], name="some1k-validation-00.tar")
    with pytest.raises(UserError, match="parts of a data set, train, validation; keep each in a folder"):
        work(folder)


def test_classes_that_are_called_like_parts_of_a_data_set_are_classes(
    tmp_path: Path, images: list[bytes], work: Work
) -> None:
    members = [("vehicles/train/0.jpg", images[0]), ("vehicles/test/1.jpg", images[1])]
    assert work(tars_of(tmp_path / "tars", members)).classes == ["test", "train"]


def test_a_json_that_names_no_class_leaves_it_to_the_folder(
    tmp_path: Path, images: list[bytes], work: Work
) -> None:
    """As where a downloader keeps what it found beside each image."""
    members = [("cat/0.jpg", images[0]), ("cat/0.json", b'{"caption": "a dog"}'), ("dog/1.jpg", images[1])]
    assert work(tars_of(tmp_path / "tars", members)).classes == ["cat", "dog"]


def test_a_json_may_be_the_label_itself(tmp_path: Path, images: list[bytes], work: Work) -> None:
    members = [
        ("a/0.jpg", images[0]),
        ("a/0.json", b'"cat"'),
        ("a/1.jpg", images[1]),
        ("a/1.json", b'["dog"]'),
    ]
    assert work(tars_of(tmp_path / "tars", members)).classes == ["cat", "dog"]


@pytest.mark.parametrize("deeper", ["more/b.TAR", "more/still/b.jpg"])
def test_what_lies_in_folders_beside_tars_is_refused_unless_it_is_hidden(
    tmp_path: Path, images: list[bytes], work: Work, deeper: str
) -> None:
    folder = tars_of(tmp_path / "tars", [("cat/0.jpg", images[0])])
    for hidden in (".cache/b.tar", "more/.b.jpg", "more/notes.txt"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        (folder / hidden).write_bytes(b"left out")
    assert work(folder).samples == 1
    (folder / deeper).parent.mkdir(exist_ok=True)
    (folder / deeper).write_bytes(b"not to be left out")
    with pytest.raises(UserError, match=f"a\\.tar: beside it lies {deeper}, which would be left out"):
        work(folder)


def test_suffixes_may_be_of_any_case_and_labels_begin_with_a_mark_of_their_encoding(
    tmp_path: Path, images: list[bytes], work: Work
) -> None:
    members = [("train/0.JPG", images[0]), ("train/0.CLS", b"\xef\xbb\xbfcat\r\n")]
    members += [("train/1.Jpg", images[1]), ("train/1.Json", b'\xef\xbb\xbf{"label": "dog"}')]
    folder = tars_of(tmp_path / "tars", members, name="A.TAR")
    manifest = work(folder)
    place = folder if "in_place" in manifest.source else tmp_path / "packed"
    assert sorted(labels(Corpus.open(place))) == manifest.classes == ["cat", "dog"]


def test_hidden_files_and_folders_of_a_tar_are_no_classes(
    tmp_path: Path, images: list[bytes], work: Work
) -> None:
    members = [("./cat/0.jpg", images[0]), ("./cat/.ipynb_checkpoints/0-checkpoint.jpg", images[1])]
    folder = tars_of(tmp_path / "tars", [*members, ("./._dog.tar", b"of a Mac"), ("./dog/._1.jpg", b"too")])
    (folder / "._a.tar").write_bytes(b"beside it")
    manifest = work(folder)
    assert manifest.classes == ["cat"] and manifest.samples == 1


def test_a_tar_whose_name_no_manifest_takes_is_refused_before_it_is_read(
    tmp_path: Path, images: list[bytes]
) -> None:
    folder = tars_of(tmp_path / "tars", [("cat/0.jpg", images[0])], name="my shard.tar")
    with pytest.raises(UserError, match=r"shard name 'my shard\.tar'; allowed: .*; rename it"):
        index_in_place(folder, quiet=True)


def test_what_is_compressed_is_named_as_such(tmp_path: Path, images: list[bytes], work: Work) -> None:
    folder = tars_of(tmp_path / "tars", [("cat/0.jpg", images[0])])
    content = (folder / "a.tar").read_bytes()
    (folder / "a.tar").write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match=r"no readable tar.*is it compressed\?"):
        work(folder)
    (folder / "a.tar").rename(folder / "a.TAR.GZ")
    (folder / "b.tar").write_bytes(content)  # beside one that can be read it would be left out
    with pytest.raises(UserError, match=r"a\.TAR\.GZ: is compressed; uncompress it"):
        work(folder)


@pytest.mark.parametrize("name", ["dog.tar.gz", "a/dog.TGZ", "cat.tar/dog.tar", "cat.tar/dog.tar.xz"])
def test_what_is_packed_deeper_than_a_tar_in_a_tar_is_not_left_out_in_silence(
    tmp_path: Path, images: list[bytes], name: str
) -> None:
    outer, _, inner = name.rpartition("/")
    cats = [("0.jpg", images[0])] + [(inner, b"packed")] * (outer == "cat.tar")
    cat = (tars_of(tmp_path / "cats", cats) / "a.tar").read_bytes()
    members = [("cat.tar", cat)] + [(name, b"packed")] * (outer != "cat.tar") + [("._dog.tgz", b"of macOS")]
    folder = tars_of(tmp_path / "tars", members)
    with pytest.raises(UserError, match=rf"a\.tar: what \S*{inner} holds would be left out.*; unpack it"):
        shard_corpus(folder / "a.tar", tmp_path / "out", quiet=True)


def test_a_compressed_tar_beside_folders_of_images_is_not_left_out_in_silence(
    image_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "ant").symlink_to(image_folder / "ant")
    (tmp_path / "images" / "bee.tgz").write_bytes(b"gzip")
    with pytest.raises(UserError, match=r"bee\.tgz: is compressed"):
        shard_corpus(tmp_path / "images", tmp_path / "packed", quiet=True)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_what_is_called_a_tar_and_is_no_file_is_refused_and_not_waited_for(
    tmp_path: Path, work: Work, make: Callable[[Path], None]
) -> None:
    (tmp_path / "tars").mkdir()
    make(tmp_path / "tars" / "a.tar")
    with pytest.raises(UserError, match=r"a\.tar: is not a regular file"):
        work(tmp_path / "tars")


def test_an_image_with_more_beside_it_than_an_index_can_hold_is_refused_in_place(
    tmp_path: Path, images: list[bytes]
) -> None:
    folder = tars_of(tmp_path / "tars", [("0.cls", b"0")])
    film = tarfile.TarInfo("0.film")
    film.size = 1 << 32
    with (folder / "a.tar").open("r+b") as tar:  # with a hole, which takes no room
        tar.seek(1024)
        tar.write(film.tobuf())
        tar.seek(film.size, os.SEEK_CUR)
        image = tarfile.TarInfo("0.jpg")
        image.size = len(images[0])
        tar.write(image.tobuf() + images[0] + bytes(-len(images[0]) % 512 + 1024))
    with pytest.raises(UserError, match=r"belongs to 0\.jpg takes more than 4 GiB; give a DESTINATION"):
        index_in_place(folder, quiet=True)
    assert shard_corpus(folder, tmp_path / "out", quiet=True)["all"].samples == 1
