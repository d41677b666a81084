"""The part of a training config that a plan needs, whichever application it belongs to."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.planning.memory import Layout
from cluster.recipe import is_pretraining, lookup, mixes_images
from coatnet.checkpoint.inspection import check_architecture, described_model, is_bare
from coatnet.config import Duration, UserError, from_dict
from coatnet.model.config import ModelConfig


@dataclass(frozen=True)
class RecipeView:
    """What decides memory and speed.

    Args:
        micro_batch: None if the whole share of a rank goes at once.
        tunes: the run takes the largest micro-batch that fits instead.
        layout: what the config says of it, on one rank.
        total_samples: of the run, None if that depends on an unknown epoch.
        group_images: of batch norm, None for the micro-batch.
        mixed: mixup or cutmix mixes images of a group.
        is_pretraining: ZeRO is a section of its own, with stage 3, and activations can be checkpointed.
        sample_bytes: of one image in the training corpora, None if unknown.
        evaluation_samples: of one evaluation, 0 for none or unknown ones.
        evaluate_every: how often, in images; None for the end alone.
        kept: checkpoints that stay in the end.
        frozen: parts that do not learn.
        batch_changes: later global batches, each behind the image from which on it holds, None if that
            depends on an unknown epoch.
    """

    model: ModelConfig
    image_size: int
    global_batch: int
    micro_batch: int | None
    tunes: bool
    layout: Layout
    total_samples: int | None
    shards: int | None
    group_images: int | None
    mixed: bool
    is_pretraining: bool
    sample_bytes: float | None
    evaluation_samples: int
    evaluate_every: int | None
    kept: int
    frozen: tuple[str, ...]
    batch_changes: tuple[tuple[int | None, int], ...]

    def laid_out(self, **changes: Any) -> RecipeView:
        """Return the recipe with changes to its layout."""
        return replace(self, layout=replace(self.layout, **changes))

    @property
    def stretches(self) -> list[tuple[int, int]]:
        """Return the global batches of the run, each with its steps; nothing for one of unknown length."""
        return _stretches(self.global_batch, self.batch_changes, self.total_samples)

    @property
    def stage_key(self) -> str:
        """Return the config's key of ZeRO's stage."""
        return "zero.stage" if self.is_pretraining else "zero"

    @property
    def is_ddp(self) -> bool:
        """Return whether torch's own data parallelism trains, as fine-tuning without ZeRO does."""
        return not self.is_pretraining and self.layout.zero_stage == 0

    @property
    def highest_stage(self) -> int:
        """Return the most that ZeRO can shard here."""
        return 3 if self.is_pretraining else 2


def view(config: Mapping[str, Any], *, origin: str, epoch_samples: int | None = None) -> RecipeView:
    """Read a config that was resolved against its schema.

    Args:
        epoch_samples: instead of what the corpora's manifests say.

    Raises:
        UserError: the config names no model, or its checkpoint is not to be read or holds another one.
    """
    corpora = _corpora(config)
    epoch = corpora.samples if epoch_samples is None else epoch_samples
    global_batch = int(lookup(config, "train.global_batch"))

    def samples(duration: Any) -> int | None:
        return _samples(str(duration), epoch, global_batch)

    total = samples(lookup(config, "train.duration"))
    changes = tuple(
        (samples(change["at"]), int(change["global_batch"]))
        for change in lookup(config, "train.batch_changes") or ()
    )
    stretches = _stretches(global_batch, changes, total)
    sizes = [int(phase["image_size"]) for phase in lookup(config, "train.phases") or []]
    return RecipeView(
        model=_model(config, origin=origin, classes=corpora.classes),
        image_size=max(sizes, default=int(lookup(config, "augment.image_size"))),
        global_batch=global_batch,
        micro_batch=lookup(config, "train.micro_batch"),
        tunes=lookup(config, "tune.micro_batch") == "auto",
        layout=_layout(config),
        total_samples=total,
        shards=corpora.shards,
        group_images=lookup(config, "norm.group_images"),
        mixed=mixes_images(config),
        is_pretraining=is_pretraining(config),
        sample_bytes=corpora.sample_bytes,
        evaluation_samples=_evaluation_samples(config),
        evaluate_every=samples(lookup(config, "evaluate.every")),
        kept=_kept(lookup(config, "save"), steps=sum(steps for _, steps in stretches)),
        frozen=tuple(lookup(config, "freeze") or ()),
        batch_changes=changes,
    )


def _layout(config: Mapping[str, Any]) -> Layout:
    """Return what the config says of the layout; whether its kernels can fuse, the hardware says."""
    pretrains, precision = is_pretraining(config), str(lookup(config, "precision"))
    sharding = lookup(config, "zero") if pretrains else {"stage": lookup(config, "zero") or 0}
    return Layout(
        world_size=1,
        zero_stage=int(sharding["stage"]),
        micro_batch=1,
        # fine-tuning's bf16 is autocast: its weights stay in fp32
        precision="autocast" if precision == "bf16" and not pretrains else precision,
        checkpointing=tuple(lookup(config, "train.activation_checkpointing") or ()),
        ema=bool(lookup(config, "ema")),
        bucket_elements=int(sharding.get("bucket_elements", 200_000_000)),
        compiled=bool(lookup(config, "compile")),
        fused=bool(lookup(config, "train.fused_mbconv")),
        sync=str(lookup(config, "norm.sync") or "none"),
        overlap=bool(sharding.get("overlap_communication", False)),
        draws=bool(lookup(config, "data.evaluate")),
    )


@dataclass(frozen=True)
class _Corpora:
    """What the manifests of the training corpora say; None where one of them is not readable from here."""

    samples: int | None
    shards: int | None
    sample_bytes: float | None
    classes: int | None


def _corpora(config: Mapping[str, Any]) -> _Corpora:
    found = [_corpus(item) for item in lookup(config, "data.train") or []]
    known = [corpus for corpus in found if corpus is not None]
    whole = known if len(known) == len(found) else []
    return _Corpora(
        samples=sum(corpus["samples"] for corpus in whole) if whole else None,
        shards=sum(len(corpus["shards"]) for corpus in whole) if whole else None,
        sample_bytes=_sample_bytes(known),
        classes=len(known[0]["classes"]) if known and "classes" in known[0] else None,
    )


def _sample_bytes(corpora: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean size of an image, where all corpora tell their shards' sizes."""
    shards = [shard for corpus in corpora for shard in corpus["shards"]]
    samples = sum(corpus["samples"] for corpus in corpora)
    if not samples or not all(isinstance(shard, Mapping) and "bytes" in shard for shard in shards):
        return None
    return sum(float(shard["bytes"]) for shard in shards) / samples


def _evaluation_samples(config: Mapping[str, Any]) -> int:
    """Return how many images an evaluation goes through; of the average besides, in pretraining."""
    given = lookup(config, "data.evaluate")
    corpus = _corpus(given) if given else None
    passes = 2 if is_pretraining(config) and lookup(config, "ema") else 1
    return passes * int(corpus["samples"]) if corpus else 0


def _stretches(
    global_batch: int, changes: Sequence[tuple[int | None, int]], total: int | None
) -> list[tuple[int, int]]:
    ends, batches = [*(at for at, _ in changes), total], [global_batch, *(batch for _, batch in changes)]
    begin, found = 0, []
    for end, batch in zip(ends, batches, strict=True):
        if end is None:
            return []
        steps = round((end - begin) / batch)
        if steps > 0:
            found.append((batch, steps))
            begin += steps * batch
    return found


def _kept(save: Mapping[str, Any], *, steps: int) -> int:
    """Return how many checkpoints stay: the newest, the best, and those of every so many steps."""
    every = save["keep_every_steps"]
    return int(save["last"]) + bool(save["best"]) + (steps // every if every else 0)


def _samples(duration: str, epoch_samples: int | None, global_batch: int) -> int | None:
    parsed = Duration.parse(duration)
    if parsed.is_time or (parsed.unit == "epochs" and epoch_samples is None):
        return None
    return parsed.in_samples(epoch_samples=epoch_samples or 0, global_batch=global_batch)


def _model(config: Mapping[str, Any], *, origin: str, classes: int | None) -> ModelConfig:
    """Return the model that the config names, or that the checkpoint describes from which it starts.

    It has as many classes as the corpus, where that is known.
    """
    named, init = lookup(config, "model"), lookup(config, "init")
    model = None if named is None else from_dict(ModelConfig, named, origin=origin)
    if init is not None and (model is None or not is_bare(Path(init))):
        found = described_model(Path(init))
        if model is not None:
            check_architecture(model, found, origin=str(init))
        model = found
    if model is None:
        raise UserError(f"{origin}: model and init are null; give one of them")
    return model if classes is None else replace(model, num_classes=classes)


def _corpus(corpus: Any) -> dict[str, Any] | None:
    """Return a local corpus's manifest, None for one that is not readable from here.

    Of an image folder, CLASS/…/file, classes, files and their bytes are counted.
    """
    folder = Path(str(corpus["path"] if isinstance(corpus, Mapping) else corpus))
    try:
        if not (path := folder / "manifest.json").exists():
            classes = sorted(one.name for one in folder.iterdir() if one.is_dir() and one.name[0] != ".")
            files = (one for name in classes for one in (folder / name).rglob("*") if one.name[0] != ".")
            sizes = [size for one in files if (size := _file_bytes(one)) is not None]
            whole = {"samples": len(sizes), "classes": classes, "shards": [{"bytes": sum(sizes)}]}
            return whole if sizes else None
        manifest = json.loads(path.read_text())
        return {**manifest, "samples": int(manifest["samples"]), "shards": list(manifest["shards"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _file_bytes(path: Path) -> int | None:
    """Return a file's size, None for what is none."""
    try:
        found = path.stat()
    except OSError:  # a link to nothing
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
