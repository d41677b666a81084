"""Find out what a path or URL is, and open it as a corpus."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from coatnet.config import UserError
from coatnet.config.plain_text import number_of
from coatnet.runtime.run_directory import RunDirectory
from data_pipeline.config import CacheConfig, DataConfig
from data_pipeline.corpus import Corpus
from data_pipeline.folder import FolderCorpus, is_image_folder
from data_pipeline.manifest import MANIFEST
from data_pipeline.record import SampleSource
from data_pipeline.remote.address import is_url
from data_pipeline.remote.remote_files import open_remote

if TYPE_CHECKING:
    from coatnet.runtime.ranks import Ranks  # loads torch


def open_corpus(path: str | Path, *, cache: CacheConfig | None = None) -> SampleSource:
    """Open a folder of shards, an image folder, or a remote folder of shards.

    Raises:
        UserError: there is nothing of the kind.
    """
    if not str(path):
        raise UserError("a corpus without a path; give data.train=SHARDS")
    if is_url(str(path)):
        manifest, files = open_remote(str(path), cache or CacheConfig())
        return Corpus(manifest, files)
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of shards or images")
    return FolderCorpus.open(folder) if is_image_folder(folder) else Corpus.open(folder)


def open_evaluation_corpus(data: DataConfig, *, classes: list[str]) -> SampleSource | None:
    """Open what a run is evaluated on, if there is anything.

    Args:
        data: the section that names it.
        classes: of the training data.

    Raises:
        UserError: it has other classes than the training data.
    """
    if data.evaluate is None:
        return None
    corpus = open_corpus(data.evaluate, cache=data.cache)
    _check_evaluated(corpus, path=data.evaluate, classes=classes)
    return corpus


def _check_evaluated(corpus: SampleSource, *, path: str, classes: list[str]) -> None:
    if corpus.classes != classes:
        remedy = "shard both with the same --classes"
        raise UserError(f"data.evaluate: {path} has other classes than data.train[0]; {remedy}")


def digests_here(data: DataConfig) -> dict[str, list[str]]:
    """Return what a config's corpora hold, by the key that leads to them, if this machine can read them.

    The others, remote ones too, are for the ranks to judge: their nodes may see what a login node does not.
    """
    places = {"data.train": [entry.path for entry in data.train], "data.evaluate": []}
    if data.evaluate is not None:
        places["data.evaluate"].append(data.evaluate)
    found = {}
    for key, paths in places.items():
        with suppress(UserError, OSError):
            if not any(map(is_url, paths)):
                found[key] = [open_corpus(path).digest for path in paths]
    return found


def check_here(data: DataConfig) -> None:
    """Check the shards of a config that this machine can read, by their manifests alone.

    What is not here yet, or only elsewhere, is for the ranks to judge, and so are image folders: to list one
    takes its time.

    Raises:
        UserError: a manifest is damaged, a file lies where a folder should, or corpora do not fit together.
    """
    *train, evaluated = (
        _shards_here(key, path)
        for key, path in [
            *((f"data.train[{number}]", entry.path) for number, entry in enumerate(data.train)),
            ("data.evaluate", data.evaluate),
        ]
    )
    first = train[0] if train else None
    if first is None:
        return
    for number, corpus in enumerate(train):
        if corpus is not None:
            _check_mixed(corpus, number=number, classes=first.classes)
    if evaluated is not None:
        _check_evaluated(evaluated, path=str(data.evaluate), classes=first.classes)


def _shards_here(key: str, path: str | None) -> Corpus | None:
    if not path or is_url(path):
        return None
    if os.path.exists(path) and not os.path.isdir(path):
        raise UserError(f"{key}: {path} is no folder; give one of shards or images")
    return Corpus.open(path) if os.path.isfile(Path(path, MANIFEST)) else None


def open_train_corpora(data: DataConfig) -> list[SampleSource]:
    """Open the corpora of the training mixture, in the config's order.

    Raises:
        UserError: there is none, or nothing at one's path.
    """
    if not data.train:
        raise UserError("data.train is empty; give data.train=SHARDS_OR_IMAGE_FOLDER")
    return [open_corpus(entry.path, cache=data.cache) for entry in data.train]


def common_classes(corpora: Sequence[SampleSource]) -> list[str]:
    """Return the vocabulary that the corpora of a mixture share.

    Raises:
        UserError: one has another vocabulary.
    """
    for number, corpus in enumerate(corpora[1:], start=1):
        _check_mixed(corpus, number=number, classes=corpora[0].classes)
    return corpora[0].classes


def _check_mixed(corpus: SampleSource, *, number: int, classes: list[str]) -> None:
    if corpus.classes != classes:
        own = number_of(len(corpus.classes), "class", "classes")
        raise UserError(
            f"data.train[{number}]: has {own}, not the {len(classes):,} of data.train[0]; a mixture "
            "needs one vocabulary"
        )


def check_same_everywhere(corpora: Sequence[SampleSource], ranks: Ranks, *, name: str) -> None:
    """Make sure that all ranks have opened the same corpora: nodes may have copies of their own.

    All ranks call this.

    Raises:
        UserError: on each of them, where one has others: samples would come twice, others never, in silence.
    """
    found = ranks.gather([os.uname().nodename, *(corpus.digest for corpus in corpora)])
    others = [(rank, node) for rank, (node, *digests) in enumerate(found) if digests != found[0][1:]]
    if others:
        rank, node = others[0]
        raise UserError(
            f"{name}: rank {rank} on {node} reads other data than rank 0 on {found[0][0]} "
            f"({number_of(len(others), 'such rank')}); give all nodes the same shards or images"
        )


def settle_corpora(corpora: Mapping[str, Sequence[SampleSource]], *, run: RunDirectory, ranks: Ranks) -> None:
    """Make sure that a run goes on with the images that it began with: by what they are, not where they lie.

    Args:
        corpora: by the key of the config that leads to them; all ranks call this.
        run: whose first start settles them.

    Raises:
        UserError: on each rank, where they are others, not the same on all ranks, or cannot be noted.
    """
    for name, found in corpora.items():
        check_same_everywhere(found, ranks, name=name)
    digests = {key: [one.digest for one in found] for key, found in corpora.items()}
    ranks.try_on_main(lambda: run.settle_corpora(digests), folder=run.path)
