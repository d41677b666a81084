"""Tars as sources: WebDataset shards of other writers, tars of folders, and tars of one tar per class."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from coatnet.config import UserError
from coatnet.config.plain_text import number_of
from data_pipeline.folder import check_parts
from data_pipeline.sharding.listing import Listing, ListingMaker
from data_pipeline.sharding.vocabulary import RawLabels, parse_labels
from data_pipeline.suffixes import is_image_name
from data_pipeline.tar_format import Member, TarError, walk_members

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_LABEL_SUFFIXES = ("cls", "json", "cls.txt", "label", "label.txt")
_PLAIN_LABELS = {"cls", "cls.txt", "label", "label.txt"}  # a json may be about anything
_JSON_LABELS = ("labels", "label", "cls", "class", "classes")
_WORD = re.compile("[a-z]+")
_MAX_LABEL_BYTES = 1 << 16


@dataclass
class TarSample:
    """Members of equal key, side by side: what the `webdataset` library calls a sample."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)

    @property
    def image(self) -> Member | None:
        """The member that holds the image, by its suffix; what it really is, its content says later.

        Of several it is the one of the plainest suffix: `jpg` and not `mask.png`. Of none it is what lies
        beside a label, or the label itself, which then counts as an image that cannot be used.
        """
        if images := self.plainest_images:
            return images[0]
        if _PLAIN_LABELS.isdisjoint(self.members):
            return None
        return max(self.members.items(), key=lambda member: member[0] not in _LABEL_SUFFIXES)[1]

    @property
    def plainest_images(self) -> list[Member]:
        """The members whose suffixes are those of images, with as few dots as any of them."""
        found = [suffix for suffix in self.members if is_image_name(suffix)]
        fewest = min((suffix.count(".") for suffix in found), default=0)
        return [self.members[suffix] for suffix in found if suffix.count(".") == fewest]

    @property
    def has_label(self) -> bool:
        """Whether there is a member of a label's suffix, whatever it holds."""
        return not self.members.keys().isdisjoint(_LABEL_SUFFIXES)

    @property
    def start(self) -> int:
        return min(member.start for member in self.members.values())

    @property
    def end(self) -> int:
        return max(member.end for member in self.members.values())


def tars_in(folder: Path) -> list[Path]:
    """Return a folder's tars, in order of their names; hidden ones are left out.

    Raises:
        UserError: it holds compressed ones, or folders of images or tars beside tars: they would be left out;
            or by their names some are for training and some are not.
    """
    paths = sorted(path for path in folder.glob("*") if not _is_hidden(path.name))
    tars = [path for path in paths if path.name.lower().endswith(".tar")]
    compressed = [path for path in paths if path.name.lower().endswith(_COMPRESSED)]
    if compressed:
        raise UserError(f"{compressed[0]}: is compressed; uncompress it, or take it out of the folder")
    deeper = next(_images_and_tars_below(folder), None) if tars else None
    if deeper is not None:
        raise UserError(
            f"{tars[0]}: beside it lies {deeper}, which would be left out; keep tars apart from folders of "
            "images or other tars"
        )
    words = (word for tar in tars for word in _WORD.findall(tar.stem.lower()))
    check_parts(words, origin=str(folder), remedy="keep each in a folder of its own")
    return tars


def _images_and_tars_below(folder: Path) -> Iterator[str]:
    """Yield the images and tars in a folder's folders, hidden ones left out."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        if Path(place) != folder:
            for name in sorted(files):
                if (is_image_name(name) or name.lower().endswith(".tar")) and not _is_hidden(name):
                    yield os.path.relpath(f"{place}/{name}", folder)


def list_tars(
    tars: list[Path], *, classes: list[str] | None, only: str, multi: bool, done: Callable[[int], None]
) -> Listing:
    """List the samples of tars, to be packed anew.

    A label is looked for in the sample's `cls` or `json` member; then in the name of the inner tar, for a tar
    of tars; then in the folder that the image lies in.

    Args:
        only: take only members whose name begins so, such as "train/".
        multi: make a corpus of several labels per image, even if each has just one.
        done: is told of so many more samples listed.

    Raises:
        UserError: a tar is damaged, a sample has no label or would be lost beside another, or some are for
            training and some are not.
    """
    made, places = ListingMaker(done, files=map(str, tars)), set[str]()
    for path in tars:
        places |= _add_tar(path, made, only=only)
    if not len(made):
        raise UserError(
            f"{tars[0]}: no images in {number_of(len(tars), 'tar')}" + (f" below {only!r}" if only else "")
        )
    folders = (folder for place in places for folder in place.lower().split("/"))
    check_parts(folders, origin=str(tars[0]), remedy="choose one by --only FOLDER/")
    source = {"kind": "tars", "path": str(tars[0] if len(tars) == 1 else tars[0].parent)}
    return made.finish(classes=classes, multi=multi, origin=str(tars[0].parent), source=source)


def _add_tar(path: Path, made: ListingMaker, *, only: str) -> set[str]:
    """Add a tar's samples, and return the folders that they lie in, without those that are their classes."""
    places, apart, of_folders = set[str](), set[str](), set[str]()
    for sample, inner in _walk(path):
        image = sample.image
        if sample.has_label and not sample.plainest_images:
            apart.add(sample.key)
        if image is None or not sample.key.startswith(only):
            continue
        place, labels = sample.key.rpartition("/")[0], own_labels(path, sample)
        if labels is None:
            of_folders.add(sample.key)
            labels = label_of_place(path, sample, inner)
            place = place.rpartition("/")[0]  # above the class
        places.add(place)
        name = f"{inner}/{image.name}" if inner else image.name
        made.add(name, str(path), labels, offset=image.data, size=image.size)
    if lost := sorted(apart & of_folders):
        raise UserError(
            f"{path}: {lost[0]} has its label apart from its image, which would be of its folder's class; "
            "`tar --sort=name` puts them side by side"
        )
    return places


def walk_samples(members: Iterator[Member]) -> Iterator[TarSample]:
    """Group neighbouring members by key: the name up to the first dot of its last part."""
    current: TarSample | None = None
    for member in members:
        if _is_hidden(member.name):
            continue
        folder, slash, base = member.name.rpartition("/")
        stem, _, suffix = base.partition(".")
        key, suffix = f"{folder}{slash}{stem}", suffix.lower()
        if current is None or current.key != key or suffix in current.members:
            if current is not None:
                yield current
            current = TarSample(key)
        current.members[suffix] = member
    if current is not None:
        yield current


def own_labels(path: Path, sample: TarSample) -> RawLabels | None:
    """Return the labels that a sample holds; None where it holds none.

    Raises:
        UserError: its label cannot be read.
    """
    for suffix in _LABEL_SUFFIXES:
        member = sample.members.get(suffix)
        if member is not None:
            found = _read_label(path, member, suffix)
            if found is not None:
                return found
    return None


def label_of_place(path: Path, sample: TarSample, inner: str) -> RawLabels:
    """Return the label that the inner tar or the folder gives to an image.

    Raises:
        UserError: there is neither, or images share a stem: without a label they are no parts of one sample.
    """
    first, *others = sample.plainest_images
    if others:
        raise UserError(
            f"{path}: {first.name} and {others[0].name}: equal up to the first dot, hence one sample, and an "
            "image would be left out; rename them, or unpack the tar and shard its folder"
        )
    folder = PurePosixPath(sample.key).parent.name
    if inner or folder:
        return [(inner or folder, 1.0)]
    raise UserError(
        f"{path}: {sample.key} has no label: beside it neither a cls member, nor a json one with "
        f"{' or '.join(_JSON_LABELS)}, and it lies in no folder"
    )


def _is_hidden(name: str) -> bool:
    """Say whether a file or a folder above it is hidden: macOS and notebooks leave such beside real ones."""
    return any(part.startswith(".") and part.strip(".") for part in name.split("/"))


def _walk(path: Path) -> Iterator[tuple[TarSample, str]]:
    """Yield (sample, name of the inner tar or "") of a tar, or of the tars in it."""
    try:
        plain: list[Member] = []
        for member in walk_members(path):
            if _is_packed(member, (".tar",)):
                inner = PurePosixPath(member.name).stem
                within = _unpacked(path, walk_members(path, offset=member.data, size=member.size))
                yield from ((sample, inner) for sample in walk_samples(within))
            else:
                plain.append(member)
        yield from ((sample, "") for sample in walk_samples(_unpacked(path, plain)))
    except TarError as error:
        raise UserError(f"{error}; mend or remove it") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _is_packed(member: Member, suffixes: tuple[str, ...]) -> bool:
    return member.name.lower().endswith(suffixes) and not _is_hidden(member.name)


def _unpacked(path: Path, members: Iterable[Member]) -> Iterator[Member]:
    """Yield the members as they are.

    Raises:
        UserError: one holds others, which would be left out.
    """
    for member in members:
        if _is_packed(member, (".tar", *_COMPRESSED)):
            raise UserError(
                f"{path}: what {member.name} holds would be left out: it is compressed, or a tar within a "
                "tar within a tar; unpack it"
            )
        yield member


def _read_label(path: Path, member: Member, suffix: str) -> RawLabels | None:
    """Read a label member; None for a JSON of something else."""
    where = f"{path}: {member.name}"
    if member.size > _MAX_LABEL_BYTES:
        raise UserError(f"{where}: {member.size} bytes is not a label")
    with path.open("rb") as file:
        file.seek(member.data)
        content = file.read(member.size)
    try:
        text = content.decode("utf-8-sig").strip()
        if suffix != "json":
            return parse_labels(text)
        values = json.loads(text)
        if not isinstance(values, dict):
            return parse_labels(values)
        name = next((name for name in _JSON_LABELS if name in values), None)
        return None if name is None else parse_labels(values[name])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {error}") from None
