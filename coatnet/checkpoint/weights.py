"""Weights for use: from a run, a checkpoint or an exported model; never from a pickle."""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coatnet.checkpoint.format import TORCH_DTYPES, CheckpointError
from coatnet.checkpoint.inspection import CONFIG, TENSORS, check_fit, checkpoints_of, read_description
from coatnet.checkpoint.reader import Checkpoint, read_into
from coatnet.checkpoint.weight_files import stored_tensors
from coatnet.config import UserError, from_dict, to_dict
from coatnet.config.plain_text import json_text
from coatnet.model.config import ModelConfig
from coatnet.model.initial import allocate
from coatnet.model.norm import forget_statistics
from coatnet.runtime.regular_files import open_regular
from coatnet.runtime.run_directory import write_atomically
from coatnet.runtime.whole_files import whole_file

LOGITS = ("head.logits.weight", "head.logits.bias")


@dataclass
class Weights:
    """A model's config and state dict, the class names, and what else is known of it."""

    model: ModelConfig
    tensors: dict[str, Tensor]
    classes: list[str] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def load_weights(path: Path | str, *, ema: bool | None = None) -> Weights:
    """Load weights from a run directory, a checkpoint directory, an exported directory or its .safetensors.

    Args:
        path: where they lie.
        ema: the average (True), the raw weights (False), or the average where there is one (None).

    Raises:
        UserError: nothing of the kind lies there, or it is damaged.
    """
    path = Path(path)
    if path.suffix == ".safetensors" or (path / TENSORS).exists():
        file = path / TENSORS if path.is_dir() else path
        described = read_description(file)
        return Weights(described.model, read_safetensors(file), described.classes, described.facts)
    return from_checkpoint(_newest_whole(checkpoints_of(path)), ema=ema)


def from_checkpoint(checkpoint: Checkpoint, *, ema: bool | None = None) -> Weights:
    """Return a verified checkpoint's weights.

    Raises:
        CheckpointError: it says nothing of its model, or has no average where one is asked for.
        UserError: it describes a larger model than its weights make.
    """
    facts = checkpoint.facts
    if "model" not in facts:
        raise CheckpointError(f"{checkpoint.directory}: says nothing of its model")
    model = from_dict(ModelConfig, facts["model"], origin=str(checkpoint.directory))
    shapes = {name: list(checkpoint.shape("weight", name)) for name in checkpoint.names("weight")}
    check_fit(model, shapes, origin=checkpoint.directory)
    averaged = set(checkpoint.names("ema"))
    if ema and not averaged:
        raise CheckpointError(f"{checkpoint.directory}: holds no average (ema) of the weights")
    tensors = {}
    with checkpoint.held_open():
        for kind in ("weight", "buffer"):
            for name in checkpoint.names(kind):
                chosen = "ema" if name in averaged and ema is not False else kind
                tensors[name] = checkpoint.tensor(chosen, name)
    rest = {key: value for key, value in facts.items() if key not in ("model", "classes")}
    if averaged and ema is False:
        rest.pop("evaluation", None)  # it was of the average
    rest |= {"step": checkpoint.step, "samples_seen": checkpoint.samples_seen}
    return Weights(model, tensors, facts.get("classes"), rest)


def export_safetensors(weights: Weights, destination: Path | str) -> Path:
    """Write `model.safetensors` and `config.json` into a directory; each whole, and both of one model."""
    destination = Path(destination)
    destination.mkdir(parents=True, exist_ok=True)
    config = {"model": to_dict(weights.model), "classes": weights.classes, "facts": weights.facts}
    write_tensors(weights.tensors, destination / TENSORS, described_by=destination / CONFIG)
    write_atomically(destination / CONFIG, json_text(config, indent=2) + "\n")
    return destination


def write_tensors(tensors: Mapping[str, Tensor], path: Path, *, described_by: Path) -> None:
    """Write a safetensors file by temporary name and rename, readable by whom other new files are.

    Args:
        tensors, path: what, and where.
        described_by: a file to be written next; one of an earlier export goes with the tensors it was for.

    Raises:
        OSError: it could not be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.contiguous()
        plain[name] = own.clone() if own.data_ptr() in places else own  # a tensor of two names is refused
        places.add(own.data_ptr())
    with whole_file(path) as temporary:
        try:
            save_file(plain, temporary, {"format": "pt"})
        except SafetensorError as error:  # such as a full disk
            raise OSError(errno.EIO, str(error), str(path)) from None
        described_by.unlink(missing_ok=True)


def load_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], *, device: torch.device | str, origin: str
) -> None:
    """Make tensors the weights of a model that is on the meta device.

    They are not copied where they are of the model's types and on the device: a large model does not fit
    twice. The logits' layer, where none is given for it, gets memory alone.

    Raises:
        UserError: a tensor is missing, unknown or of another shape.
    """
    check_tensors(model, tensors, origin=origin)
    types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    taken = {name: one.to(device, types[name]).contiguous() for name, one in tensors.items()}
    model.load_state_dict(taken, strict=False, assign=True)
    allocate(model, device=device)
    forget_statistics(model)  # what batch norms add up, and no file holds


def check_tensors(model: nn.Module, tensors: Mapping[str, Tensor], *, origin: str) -> None:
    """Make sure that tensors are all of a model's, or all but the logits' layer.

    Raises:
        UserError: one is missing, unknown or of another shape.
    """
    own = model.state_dict()
    expected = own.keys() if tensors.keys() & set(LOGITS) else own.keys() - set(LOGITS)
    for name in sorted(expected | tensors.keys()):
        if name not in own or name not in tensors:
            where = "the model" if name not in own else "the checkpoint"
            raise UserError(f"{origin}: {where} has no tensor {name}")
        if own[name].shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, the model's is {tuple(own[name].shape)}"
            raise UserError(f"{origin}: {name} has shape {shapes}")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a .safetensors file after a look at its header, into memory of its own.

    The library would map it: whoever cuts the file short then kills who computes with it, and what was read
    is in memory twice once it is copied.

    Raises:
        UserError: too short, a header that claims too much, or not safetensors at all (a renamed pickle).
    """
    found = {}
    stored = stored_tensors(path)
    try:
        with open_regular(path) as opened:
            for name, one in stored.items():
                found[name] = torch.empty(one.shape, dtype=TORCH_DTYPES[one.dtype])
                read_into(opened, one.offset, found[name].view(-1).view(torch.uint8).numpy().data)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return found


def _newest_whole(checkpoints: Sequence[Path]) -> Checkpoint:
    """Open the first whose weights are whole, as a reader: without touching what a job may be writing.

    The moments, half of the bytes or more, are left to who goes on training.

    Raises:
        CheckpointError: all are damaged, the first in this way.
    """
    faults: list[CheckpointError] = []
    for path in checkpoints:
        try:
            checkpoint = Checkpoint(path)
            checkpoint.verify(kinds=("weight", "buffer", "ema"))
        except CheckpointError as error:
            faults.append(error)
            continue
        if faults:
            print(f"warning: {faults[0]}; the weights of step {checkpoint.step} are taken", file=sys.stderr)
        return checkpoint
    raise faults[0]
