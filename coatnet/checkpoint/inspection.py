"""A first look at files that others made, before anything heavy is imported or any of them is trusted.

A command that is given a bad file says so within a second. Imports no torch.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from coatnet.checkpoint.classes import check_class_names, read_class_names
from coatnet.config import UserError, from_dict
from coatnet.model.config import ModelConfig

TENSORS = "model.safetensors"
CONFIG = "config.json"
MANIFEST = "manifest.json"
_NOT_ARCHITECTURE = ("num_classes", "image_size", "stochastic_depth")
_PICKLES = (".pth", ".pt", ".bin", ".pkl", ".ckpt")
_MAX_HEADER_BYTES = 64 << 20
_MAX_CONFIG_BYTES = 64 << 20


def is_pickle(path: Path) -> bool:
    """Tell by its name whether a file is read by unpickling."""
    return path.suffix.lower() in _PICKLES


def refuse_pickle(path: Path) -> None:
    """Refuse a file that is read by unpickling.

    Raises:
        UserError: it is one.
    """
    if is_pickle(path):
        raise UserError(
            f"{path}: a pickle can run any program when it is read; convert it to safetensors, or give "
            "--trust-pickle, which reads tensors alone"
        )


def check_safetensors(path: Path) -> None:
    """Check the header of a .safetensors file, which others' readers trust.

    Raises:
        UserError: too short, a header that claims too much, or not safetensors at all (a renamed pickle).
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if size < 10 or header_bytes > min(size - 8, _MAX_HEADER_BYTES):
                raise UserError(f"{path}: not a safetensors file")
            header = file.read(header_bytes)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if not header.startswith(b"{"):
        raise UserError(f"{path}: not a safetensors file")
    try:
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        ends = [tensor["data_offsets"][1] for tensor in tensors.values()]
        sizes = [math.prod(tensor["shape"]) for tensor in tensors.values()]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise UserError(f"{path}: not a valid safetensors file (its header is damaged)") from None
    if max([*ends, *sizes], default=0) > size - 8 - header_bytes:
        raise UserError(f"{path}: not a valid safetensors file (its header claims more than there is)")


def read_exported_config(config: Path) -> dict[str, Any]:
    """Read and check the `config.json` of an exported model.

    Returns:
        model (ModelConfig), classes (list or None), facts (dict).

    Raises:
        UserError: not there, or not what it should be.
    """
    try:
        if config.stat().st_size > _MAX_CONFIG_BYTES:
            raise UserError(f"{config}: more than {_MAX_CONFIG_BYTES >> 20} MiB")
        described = json.loads(config.read_text())
        model, classes = described["model"], described.get("classes")
        facts = described.get("facts", {})
    except OSError as error:
        raise UserError(f"{config}: {error.strerror}; it must lie beside {TENSORS}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{config}: does not describe a model of this project") from None
    if classes is not None:
        if not isinstance(classes, list):
            raise UserError(f"{config}: classes is no list of names")
        check_class_names(classes, origin=str(config.parent))
    return {
        "model": from_dict(ModelConfig, model, origin=str(config)),
        "classes": classes,
        "facts": facts if isinstance(facts, dict) else {},
    }


def is_bare(path: Path) -> bool:
    """Tell whether a file of tensors lies without the `config.json` that describes them, as timm's do."""
    return path.suffix == ".safetensors" and not (path.parent / CONFIG).exists()


def described_model(path: Path) -> ModelConfig:
    """Return the config of the model that a run, a checkpoint or an exported directory holds.

    Raises:
        UserError: nothing of the kind lies there, or it says nothing of its model.
    """
    check_model(path)
    file = path / TENSORS if path.is_dir() else path
    if file.exists() and file.is_file():
        return read_exported_config(file.parent / CONFIG)["model"]
    manifests = [path / MANIFEST, *sorted(path.glob(f"checkpoints/step-*/{MANIFEST}"), reverse=True)]
    for manifest in manifests:
        try:
            facts = json.loads(json.loads(manifest.read_text())["body"])["facts"]
            return from_dict(ModelConfig, facts["model"], origin=str(manifest))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # whoever reads the tensors says what is wrong with it
    raise UserError(f"{path}: no checkpoint there describes its model")


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


def check_model(path: Path) -> None:
    """Look at what a command was given as its model: a run, a checkpoint, or an exported model.

    Raises:
        UserError: nothing of the kind lies there, or an exported model is not what it claims to be.
    """
    refuse_pickle(path)
    file = path / TENSORS if path.is_dir() else path
    if path.suffix == ".safetensors" or file.exists():
        check_safetensors(file)
        read_exported_config(file.parent / CONFIG)
    elif not (path / MANIFEST).exists() and not (path / "checkpoints").is_dir():
        raise UserError(f"{path}: neither a run directory, a checkpoint, nor an exported model")


def check_init(init: str | None) -> None:
    """Look at what a run is to begin with: what `check_model` takes, or weights alone; None is from scratch.

    Raises:
        UserError: nothing of the kind lies there, or it is not what it claims to be.
    """
    if init is not None:
        path = Path(init)
        (check_safetensors if is_bare(path) else check_model)(path)


def check_source(path: Path, *, classes: Path | None, trust_pickle: bool) -> None:
    """Look at weights that are to be imported, and at the file of their class names.

    Raises:
        UserError: a pickle without trust, no safetensors, or names that are not fit to be shown.
    """
    if classes is not None:
        read_class_names(classes)
    if not is_pickle(path):
        check_safetensors(path)
    elif not trust_pickle:
        refuse_pickle(path)
