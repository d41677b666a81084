"""timm's CoAtNet weights to ours and back. Knows timm's names and layouts; never imports timm.

timm's `coatnet_0_224` … `coatnet_5_224` deviate from the paper (stride in the depthwise, average pooling,
symmetric padding, exact GELU, other epsilons, no bias in the stem, head size 32 throughout); `timm_config`
states that as a `ModelConfig`. The other way round, `timm_arguments` makes timm build a config's network.
Source: timm 1.0.31, timm/models/maxxvit.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coatnet.config import UserError
from coatnet.model.config import ModelConfig, architecture
from coatnet.model.family import SE_RATIO
from coatnet.model.network import build_model

TIMM_NAMES = tuple(f"coatnet_{size}_224" for size in range(6))
_ENDS = {
    "stem.conv1": "stem.conv1",
    "stem.norm": "stem.norm1",
    "stem.conv2": "stem.conv2",
    "head.norm": "head.norm",
    "head.dense": "head.pre_logits.fc",
    "head.logits": "head.fc",
}
_MBCONV = {
    "shortcut.project": "shortcut.expand",
    "norm": "pre_norm",
    "expand": "conv1_1x1",
    "expand_norm": "norm1",
    "depthwise": "conv2_kxk",
    "depthwise_norm": "norm2",
    "se.reduce": "se.fc1",
    "se.expand": "se.fc2",
    "shrink": "conv3_1x1",
}
_TRANSFORMER = {
    "shortcut.project": "shortcut.expand",
    "attention_norm": "norm1",
    "attention.query": "attn.qkv",
    "attention.key": "attn.qkv",
    "attention.value": "attn.qkv",
    "attention.out": "attn.proj",
    "ffn_norm": "norm2",
    "ffn_expand": "mlp.fc1",
    "ffn_shrink": "mlp.fc2",
}
_PARTS = ("attention.query", "attention.key", "attention.value")
_TABLE = "attention.bias"
_TIMM_TABLE = "attn.rel_pos.relative_position_bias_table"
_VARIANCE = "running_var"
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class _Pair:
    """One tensor of ours and where it stands in timm: whole, a 1×1 convolution, a third of qkv, a table."""

    ours: str
    theirs: str
    shape: tuple[int, ...]
    heads: int
    part: int | None = None

    @property
    def is_table(self) -> bool:
        """A table of relative biases."""
        return self.theirs.endswith(_TIMM_TABLE)

    def read(self, tensor: Tensor) -> Tensor:
        """Take our tensor out of timm's."""
        if self.is_table:
            return tensor.t().reshape(self.shape)
        if self.part is not None:
            # head_first: a head's query, key and value rows lie side by side.
            tensor = tensor.reshape(self.heads, 3, -1, *tensor.shape[1:])[:, self.part].flatten(0, 1)
        return tensor.reshape(self.shape)

    def write(self, tensor: Tensor, state: dict[str, Tensor]) -> None:
        """Put our tensor into timm's state dict."""
        if self.is_table:
            state[self.theirs] = tensor.flatten(1).t().contiguous()
            return
        pointwise = tensor.dim() == 2 and not self.theirs.startswith("head.")
        tensor = tensor[:, :, None, None] if pointwise else tensor
        if self.part is not None:
            rows = tensor.unflatten(0, (self.heads, -1))
            whole = state.setdefault(self.theirs, tensor.new_zeros(3 * len(tensor), *tensor.shape[1:]))
            whole.view(self.heads, 3, *rows.shape[1:])[:, self.part] = rows
            return
        state[self.theirs] = tensor


def timm_config(name: str, *, num_classes: int = 1000, image_size: int = 224) -> ModelConfig:
    """Return the config under which our network computes what timm's does.

    Raises:
        UserError: not one of timm's paper-like models.
    """
    if name not in TIMM_NAMES:
        raise UserError(f"{name}: not a paper-like CoAtNet of timm; allowed: {', '.join(TIMM_NAMES)}")
    return ModelConfig(
        name=name.removesuffix("_224"),
        num_classes=num_classes,
        image_size=image_size,
        head_size=32,
        stride_place="depthwise",
        pooling="average",
        padding="symmetric",
        gelu="exact",
        stem_bias=False,
        batch_norm_eps=1e-5,
        layer_norm_eps=1e-6,
    )


def timm_arguments(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Return (name, arguments): `timm.create_model(name, **arguments)` computes what our network does.

    Raises:
        UserError: timm's architecture cannot hold the network.
    """
    plan = architecture(config)
    if plan.patch_size is not None or any(len(stage.runs) > 1 for stage in plan.stages):
        raise UserError(f"{config.name}: timm has no patch stem and no stage of two widths (CoAtNet-6, -7)")
    if config.mbconv_norm != "batch":
        raise UserError(f"model.mbconv_norm is {config.mbconv_norm}; timm's CoAtNet has batch norm there")
    runs = [stage.runs[0] for stage in plan.stages]
    act_layer = "gelu_tanh" if config.gelu == "tanh" else "gelu"
    pool = "max2" if config.pooling == "max" else "avg2"
    name = f"{config.name}_224"
    return name if name in TIMM_NAMES else TIMM_NAMES[0], {
        "img_size": config.image_size,
        "num_classes": config.num_classes,
        "depths": [run.depth for run in runs],
        "embed_dim": [run.width for run in runs],
        "block_type": ["C" if run.kind == "mbconv" else "T" for run in runs],
        "stem_width": plan.stem_width,
        "stem_bias": config.stem_bias,
        "head_hidden_size": plan.width,
        "conv_stride_mode": "1x1" if plan.stride_place == "expand" else "dw",
        "conv_pool_type": pool,
        "conv_padding": "same" if config.padding == "same" else "",
        "conv_act_layer": act_layer,
        "conv_norm_eps": config.batch_norm_eps,
        "conv_attn_ratio": SE_RATIO,
        "transformer_dim_head": plan.head_size,
        "transformer_pool_type": pool,
        "transformer_act_layer": act_layer,
        "transformer_norm_eps": config.layer_norm_eps,
        "transformer_rel_pos_type": "bias" if config.relative_attention else "",
    }


def from_timm(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Rename and reshape timm's state dict into ours.

    Each tensor is taken out of `state` once it has been read: a large model's do not fit twice.

    Raises:
        UserError: a tensor is missing, has another size, or belongs to nothing in this network.
    """
    ours = {}
    for pair in _pairs(config):
        if pair.theirs not in state:
            raise UserError(f"timm weights: {pair.theirs} is missing; {config.name} needs it")
        tensor = state[pair.theirs]
        expected = math.prod(pair.shape) * (1 if pair.part is None else 3)
        if tensor.numel() != expected:
            raise UserError(
                f"timm weights: {pair.theirs} is {tuple(tensor.shape)}, {config.name} at "
                f"{config.image_size} px and {config.num_classes} classes needs {expected} numbers"
            )
        ours[pair.ours] = pair.read(tensor).clone()
        if pair.part in (None, len(_PARTS) - 1):
            del state[pair.theirs]
    unused = [name for name in state if not name.endswith(_COUNTER)]
    if unused:
        raise UserError(f"timm weights: {min(unused)} has no place in {config.name} ({len(unused)} such)")
    return ours


def to_timm(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Rename and reshape our state dict into timm's, for the model that `timm_arguments` describes.

    Where only the name differs the tensor is the same one.
    """
    theirs: dict[str, Tensor] = {}
    for pair in _pairs(config):
        pair.write(state[pair.ours], theirs)
        if pair.theirs.endswith(_VARIANCE):
            theirs[pair.theirs.replace(_VARIANCE, _COUNTER)] = torch.zeros((), dtype=torch.int64)
    return theirs


def _pairs(config: ModelConfig) -> Iterator[_Pair]:
    """Yield every tensor of the network's state dict with its place in timm's."""
    model = build_model(config, device="meta")
    kinds = {stage.name: stage.runs[0].kind for stage in architecture(config).stages}
    head_size = architecture(config).head_size
    for name, tensor in model.state_dict().items():
        module, _, leaf = name.rpartition(".")
        shape = tuple(tensor.shape)
        if not module.startswith("stages."):
            yield _Pair(name, f"{_ENDS[module]}.{leaf}", shape, heads=0)
            continue
        _, stage, number, inner = module.split(".", 3)
        prefix = f"stages.{int(stage[1:]) - 1}.blocks.{number}"
        if inner == _TABLE:
            yield _Pair(name, f"{prefix}.{_TIMM_TABLE}", shape, heads=shape[0])
            continue
        theirs = (_MBCONV if kinds[stage] == "mbconv" else _TRANSFORMER)[inner]
        if inner == "attention_norm" and number == "0":
            theirs += ".norm"  # where the resolution is halved, the norm stands before a pooling
        part = _PARTS.index(inner) if inner in _PARTS else None
        yield _Pair(name, f"{prefix}.{theirs}.{leaf}", shape, heads=shape[0] // head_size, part=part)
