"""Take over weights that others trained, into the native form. Pickles are refused unless asked for."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coatnet.checkpoint.classes import check_class_count
from coatnet.checkpoint.inspection import (
    CONFIG,
    OWN_LOGITS,
    TIMM_LOGITS,
    check_image_size,
    timm_description,
    unwrapped,
)
from coatnet.checkpoint.timm import TIMM_NAMES, from_timm, timm_arguments, timm_config
from coatnet.checkpoint.weight_files import is_pickle, refuse_pickle
from coatnet.checkpoint.weights import Weights, check_tensors, export_safetensors, read_safetensors
from coatnet.config import UserError, from_dict, to_dict
from coatnet.config.plain_text import check_class_names
from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model
from coatnet.runtime.class_names import read_class_names
from coatnet.runtime.regular_files import open_regular
from data_pipeline.augment_config import AugmentConfig

# Under which trainers keep a state dict beside other things; as in timm, an average before what it is of.
_STATE_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")


def import_model(
    source: Path,
    destination: Path,
    *,
    name: str,
    px: int,
    classes: Path | None = None,
    trust_pickle: bool = False,
) -> Path:
    """Write weights of timm's models, or a bare state dict of ours, in the native form.

    Args:
        source: the weights; a `config.json` of timm's beside them tells class names and preprocessing.
        name: "coatnet_0" and so on; for timm's weights also "coatnet_0_224".
        px: side of the images that the relative-bias tables are for.

    Raises:
        UserError: a pickle without trust, a damaged file, or tensors that do not fit the model.
    """
    weights = foreign_weights(source, name=name, px=px, trust_pickle=trust_pickle)
    said, origin = timm_description(source.parent) or {}, str(source.with_name(CONFIG))
    if classes is not None:
        weights.classes, origin_of_names = read_class_names(classes), str(classes)
    elif isinstance(said.get("label_names"), list):
        weights.classes, origin_of_names = check_class_names(said["label_names"], origin=origin), origin
    if weights.classes is not None:
        check_class_count(weights.classes, weights.model.num_classes, origin=origin_of_names)
    weights.facts["augment"] = to_dict(_preprocessing(said.get("pretrained_cfg"), px=px, origin=origin))
    return export_safetensors(weights, destination)


def _preprocessing(said: Any, *, px: int, origin: str) -> AugmentConfig:
    """Return how images are prepared: as timm's description says, else as ours are."""
    values: dict[str, Any] = {"image_size": px}
    if isinstance(said, dict):
        values |= {key: said[key] for key in ("mean", "std", "interpolation") if key in said}
        values |= {"evaluate_crop": said["crop_pct"]} if "crop_pct" in said else {}
        values |= {"evaluate_resize": "whole"} if said.get("crop_mode") == "squash" else {}
    return from_dict(AugmentConfig, values, origin=origin)


def foreign_weights(source: Path, *, name: str, px: int, trust_pickle: bool = False) -> Weights:
    """Read weights of timm's models, or a bare state dict of ours; both carry no description of their own.

    Raises:
        UserError: a pickle without trust, a damaged file, or tensors that do not fit the model.
    """
    read = partial(_read_pickle, trusted=trust_pickle) if is_pickle(source) else read_safetensors
    state = unwrapped(read(source))
    is_timm = TIMM_LOGITS in state
    logits = state.get(TIMM_LOGITS if is_timm else OWN_LOGITS)
    if logits is None or logits.ndim != 2:
        raise UserError(f"{source}: holds neither {TIMM_LOGITS} (timm) nor {OWN_LOGITS} (this project)")
    shapes = {key: tensor.shape for key, tensor in state.items()}
    check_image_size(shapes, px, key="--px", origin=source)
    config = _config(name, is_timm=is_timm, num_classes=len(logits), px=px)
    if is_timm:
        _refuse_other_network(source, config)
    tensors = from_timm(state, config) if is_timm else state
    check_tensors(build_model(config, device="meta"), tensors, origin=str(source))
    origin = {"imported": source.name, "form": "timm" if is_timm else "native"}
    return Weights(config, tensors, None, {"origin": origin})


def _config(name: str, *, is_timm: bool, num_classes: int, px: int) -> ModelConfig:
    if is_timm:
        full = name if name in TIMM_NAMES else f"{name}_224"
        return timm_config(full, num_classes=num_classes, image_size=px)
    try:
        return ModelConfig(name=name, num_classes=num_classes, image_size=px)
    except ValueError as error:
        raise UserError(f"--name or --px: {error}") from None


def _refuse_other_network(source: Path, config: ModelConfig) -> None:
    """Refuse what this project exported of a network that timm has no name for: its tensors would fit."""
    described, (_, arguments) = timm_description(source.parent), timm_arguments(config)
    own = (described or {}).get("model_args") or {}
    if any(value != arguments.get(key, value) for key, value in own.items() if key != "img_size"):
        raise UserError(
            f"{source}: {CONFIG} beside it describes another network than timm's {config.name}; "
            "export it again with --format safetensors and give that folder"
        )


def _read_pickle(source: Path, *, trusted: bool) -> Mapping[str, Tensor]:
    if not trusted:
        refuse_pickle(source)
    try:
        # timm's trainer keeps its arguments beside the weights; a Namespace does nothing when it is read.
        harmless = torch.serialization.safe_globals([argparse.Namespace])
        with open_regular(source) as file, harmless, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}") from None
    except Exception:  # an unpickler meets anything; torch's own words may advise to drop the protection
        raise UserError(f"{source}: damaged, or not a file of tensors alone; nothing else is read") from None
    if isinstance(state, Mapping):
        state = next((state[key] for key in _STATE_KEYS if isinstance(state.get(key), Mapping)), state)
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(each, Tensor) for name, each in state.items()
    ):
        raise UserError(f"{source}: holds no state dict")
    return state
