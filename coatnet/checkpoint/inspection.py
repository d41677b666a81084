"""A first look at files that others made, before anything heavy is imported or any of them is trusted.

A command that is given a bad file says so within a second. Imports no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from coatnet.checkpoint.classes import check_class_count
from coatnet.checkpoint.weight_files import check_safetensors, is_pickle, refuse_pickle
from coatnet.config import UserError, from_dict
from coatnet.config.plain_text import check_class_names
from coatnet.model.config import PARTS, ModelConfig, stage_names
from coatnet.model.cost import model_cost
from coatnet.model.operations import operations
from coatnet.runtime.class_names import read_class_names
from coatnet.runtime.regular_files import open_regular, read_regular
from coatnet.runtime.run_directory import RunDirectory

TENSORS = "model.safetensors"
CONFIG = "config.json"
MANIFEST = "manifest.json"
TIMM_LOGITS, OWN_LOGITS = "head.fc.weight", "head.logits.weight"
_NOT_ARCHITECTURE = ("num_classes", "image_size", "stochastic_depth")
_MAX_CONFIG_BYTES = 8 << 20
MAX_MANIFEST_BYTES = 1 << 30
_PIECE_BYTES = 195  # of the manifest, for each piece of a tensor; tests/unit/checkpoint/test_manifest_size.py
_MOST_CLASSES = 1_000_000
# A table of relative biases, in timm's form (offsets, heads) or in ours (heads, rows, columns).
_TABLE = re.compile(
    r"stages\.(?P<timm>\d)\..*\.relative_position_bias_table|stages\.S(?P<own>\d)\..*\.attention\.bias\.table"
)
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
T = TypeVar("T")


@dataclass(frozen=True)
class Description:
    """What a model's files say of it.

    Attributes:
        classes: their names, if there are any.
        is_averaged: whether the average of the weights is there, or all that there is.
        facts: what else is said of its origin.
    """

    model: ModelConfig
    classes: list[str] | None
    is_averaged: bool
    facts: dict[str, Any]


def unwrapped(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return what is given by name without the prefixes of data parallelism and of torch.compile."""
    return {_WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}


def read_description(file: Path) -> Description:
    """Check an exported model's tensors and read what the `config.json` beside them says of it.

    Raises:
        UserError: one is not what it should be, or they do not belong together.
    """
    shapes = check_safetensors(file)
    described = _read_exported_config(file.parent / CONFIG)
    check_fit(described.model, shapes, origin=file.parent)
    return described


def _read_exported_config(config: Path) -> Description:
    try:
        described = json.loads(read_regular(config, most=_MAX_CONFIG_BYTES))
        model, classes = described["model"], described.get("classes")
        facts = described.get("facts", {})
    except FileNotFoundError:
        raise UserError(f"{config}: no such file; it must lie beside {TENSORS}") from None
    except OSError as error:
        raise UserError(f"{config}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        remedy = "" if timm_description(config.parent) is None else "; `coatnet import` takes timm's over"
        raise UserError(f"{config}: does not describe a model of this project{remedy}") from None
    checked = from_dict(ModelConfig, model, origin=str(config))
    if classes is not None:
        if not isinstance(classes, list):
            raise UserError(f"{config}: classes is not a list of names")
        check_class_names(classes, origin=str(config.parent))
        check_class_count(classes, checked.num_classes, origin=str(config.parent))
    return Description(checked, classes, True, facts if isinstance(facts, dict) else {})


def is_bare(path: Path) -> bool:
    """Tell whether a file of tensors lies without a `config.json` of ours, as timm's do."""
    if path.suffix != ".safetensors":
        return False
    return not (path.parent / CONFIG).exists() or timm_description(path.parent) is not None


def timm_description(folder: Path) -> dict[str, Any] | None:
    """Return what a folder's `config.json`, in the form of timm's hub, says; None if there is no such."""
    try:
        described = json.loads(read_regular(folder / CONFIG, most=_MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return described if isinstance(described, dict) and "architecture" in described else None


def described_model(path: Path) -> ModelConfig:
    """Return the config of the model that a run, a checkpoint or an exported directory holds.

    Raises:
        UserError: nothing of the kind lies there, or it says nothing of its model.
    """
    found = check_model(path)
    if found is None:
        raise UserError(f"{path}: no checkpoint there describes its model")
    return found.model


def checkpoints_of(path: Path) -> list[Path]:
    """Return a checkpoint that lies at a path, or those of a run that does, the newest first.

    Raises:
        UserError: there is none.
    """
    if (path / MANIFEST).exists():
        if any(path.glob("*.tar")):
            raise UserError(
                f"{path}: a folder of shards, no model; give a run, a checkpoint or an exported model"
            )
        return [path]
    if not (path / "checkpoints").is_dir():
        raise UserError(f"{path}: neither a run directory, a checkpoint, nor an exported model")
    found = RunDirectory(path).find_checkpoints()
    if not found:
        raise UserError(f"{path}: the run has no checkpoint yet")
    return found


def _describe(checkpoints: list[Path]) -> Description | None:
    """Return what the first checkpoint that can be read says of itself, by its manifest alone."""
    for manifest in (checkpoint / MANIFEST for checkpoint in checkpoints):
        try:
            body = json.loads(json.loads(read_regular(manifest, most=MAX_MANIFEST_BYTES))["body"])
            model = from_dict(ModelConfig, body["facts"]["model"], origin=str(manifest))
            kinds = {piece["kind"] for file in body["files"] for piece in file["pieces"]}
            return Description(model, body["facts"].get("classes"), "ema" in kinds, body["facts"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError):
            continue  # whoever reads the tensors says what is wrong with it
    return None


def check_manifest_size(model: ModelConfig, *, ranks: int, stage: int, averaged: bool) -> None:
    """Refuse to train what would be saved and not be read: at stage 3 each rank has a piece of each tensor.

    Up to stage 2 a rank holds a range of the line of all of them, and the manifest stays small.

    Args:
        model: what is to be trained.
        ranks: who save it.
        stage: ZeRO's.
        averaged: an average of the weights is saved beside them and AdamW's two moments.

    Raises:
        UserError: the manifest would be larger than what is read.
    """
    if stage < 3:
        return
    layers = operations(model, model.image_size)
    pieces = (3 + averaged) * sum(min(layer.tensors * ranks, layer.parameters) for layer in layers)
    if pieces * _PIECE_BYTES > MAX_MANIFEST_BYTES:
        raise UserError(
            f"zero.stage is 3: a checkpoint of {model.name} on {ranks:,} ranks would have {pieces:,} pieces, "
            f"more than are read; allowed: {MAX_MANIFEST_BYTES // _PIECE_BYTES:,}, or zero.stage=1"
        )


def check_architecture(wanted: ModelConfig, found: ModelConfig, *, origin: str) -> None:
    """Make sure that a checkpoint holds the model that a config names; classes and image size may differ.

    Raises:
        UserError: it holds another one.
    """
    for key, value in vars(wanted).items():
        if key not in _NOT_ARCHITECTURE and value != getattr(found, key):
            raise UserError(
                f"model.{key} is {value}, but {origin} holds a model with {getattr(found, key)}; leave out "
                "`model` to take the checkpoint's"
            )


def check_frozen(parts: Sequence[str], model: ModelConfig) -> None:
    """Make sure that a model has the parts that are not to learn.

    Raises:
        UserError: it lacks one.
    """
    known = [part for part in PARTS if part in ("S0", *stage_names(model), "dense")]
    for part in parts:
        if part not in known:
            raise UserError(f"freeze is {part!r}; allowed with {model.name}: {', '.join(known)}")


def check_model(path: Path, *, weights: str = "auto") -> Description | None:
    """Look at what a command was given as its model: a run, a checkpoint, or an exported model.

    Args:
        path: where it lies.
        weights: which are wanted; "ema" of a run needs an average in it.

    Returns:
        What it says of itself; None where that cannot be told without reading it.

    Raises:
        UserError: nothing of the kind lies there, or an exported model is not what it claims to be.
    """
    refuse_pickle(path)
    file = path / TENSORS if path.is_dir() else path
    if file.suffix == ".safetensors" and (path.suffix == file.suffix or file.exists()):
        return read_description(file)
    found = _describe(checkpoints_of(path))
    if weights == "ema" and found is not None and not found.is_averaged:
        raise UserError(f"{path}: holds no average (ema) of the weights; take raw, or auto")
    return found


def check_fit(model: ModelConfig, shapes: dict[str, list[int]], *, origin: Path) -> None:
    """Make sure that a description asks for no more than its tensors fill: a model is built by it.

    Raises:
        UserError: it describes a larger one.
    """
    # A file may come without logits.
    counted = model if OWN_LOGITS in shapes else replace(model, num_classes=1)
    elements = sum(math.prod(shape) for shape in shapes.values())
    if (
        sum(model.depths or []) > len(shapes)
        or model.num_classes > _MOST_CLASSES
        or model_cost(counted, counted.image_size).parameters > elements
    ):
        raise UserError(f"{origin}: describes a larger model than its {elements:,} numbers make")


def check_init(
    init: str | None, *, weights: str = "auto", model: ModelConfig | None = None
) -> Description | None:
    """Look at what a run is to begin with: what `check_model` takes, or weights alone; None is from scratch.

    Args:
        init: where it lies.
        weights: which are wanted.
        model: what it should hold, if that was said.

    Returns:
        What it says of itself; None where it says nothing.

    Raises:
        UserError: nothing of the kind lies there, or it is not what it claims or should be.
    """
    if init is None:
        return None
    path = Path(init)
    if is_bare(path):
        _count_classes(path)
        if model is None:
            raise UserError(f"{init}: no {CONFIG} beside it tells its model; say `model={{name: coatnet_…}}`")
        check_image_size(check_safetensors(path), model.image_size, key="model.image_size", origin=path)
        return None
    found = check_model(path, weights=weights)
    if found is not None and model is not None:
        check_architecture(model, found.model, origin=init)
    return found


def check_image_size(shapes: Mapping[str, Sequence[int]], px: int, *, key: str, origin: Path) -> None:
    """Make sure that the tables of relative biases in bare weights are for images of a side.

    Args:
        shapes: of the tensors, by name.
        px: the side, in pixels.
        key: what gave it, for people.

    Raises:
        UserError: they are for another one, which is named.
    """
    for name, shape in unwrapped(shapes).items():
        if (table := _TABLE.fullmatch(name)) and shape:
            stage = int(table["timm"]) + 1 if table["timm"] else int(table["own"])
            offsets = math.isqrt(shape[0]) if table["timm"] else shape[-1]
            side = (offsets + 1) // 2 << (stage + 1)
            if side != px:
                raise UserError(
                    f"{key} is {px}, but {origin} has tables of relative biases for {side} px; give {side}: "
                    "images may be of any multiple of 32 all the same"
                )


def check_source(path: Path, *, name: str, px: int, classes: Path | None, trust_pickle: bool) -> None:
    """Look at weights that are to be imported, at what they are said to be and at the file of class names.

    Raises:
        UserError: a pickle without trust, no safetensors, weights of no CoAtNet, an unknown model, another
            side of the images, or names that are not fit to be shown or too few.
    """
    names = None if classes is None else read_class_names(classes)
    try:
        ModelConfig(name=name.removesuffix("_224"))
    except ValueError as error:
        raise UserError(f"--name: {error}") from None
    if is_pickle(path):
        if not trust_pickle:
            refuse_pickle(path)
        try:
            open_regular(path).close()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        return
    outputs = _count_classes(path)
    check_image_size(check_safetensors(path), px, key="--px", origin=path)
    if names is not None:
        check_class_count(names, outputs, origin=str(classes))


def _count_classes(path: Path) -> int:
    """Look at a file of weights alone, and return how many classes they tell apart."""
    shapes = unwrapped(check_safetensors(path))
    logits = next((shapes[key] for key in (TIMM_LOGITS, OWN_LOGITS) if key in shapes), [])
    if len(logits) != 2:
        raise UserError(f"{path}: holds neither {TIMM_LOGITS} (timm) nor {OWN_LOGITS} (this project)")
    return logits[0]
