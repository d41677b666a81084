"""The model's operations as memory and time see them: an adapter over coatnet.model.operations."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from cluster.planning.operators import calls_of
from coatnet.model.config import ModelConfig, architecture
from coatnet.model.operations import Operation, learning_operations

# Which share of the machine's peak or copy rate an operation attains; what is not named is elementwise.
_CLASSES = {"conv": "matmul", "linear": "matmul", "depthwise": "depthwise", "attention": "attention"}
_BYTES = {"fp32": 4, "half": 2}
_WIDE_BYTES, _INDEX_BYTES = 4, 8  # what autocast normalises in; max pooling's places
_WINDOW = 4  # positions that pooling takes one from


@dataclass(frozen=True)
class Work:
    """One operation on one image.

    Units: elements of activations, parameters and multiply-adds; bytes in `kept_bytes` alone.

    Args:
        kind: matmul, depthwise, attention or elementwise.
        moved: read and written by a fused forward pass.
        kept: elements for the backward pass, when compiled.
        kept_bytes: for it when every step is a kernel of its own, by `mode`.
        fuses: `train.fused_mbconv` keeps nothing for it: its input is computed again in the kernel.
        block_input: what checkpointing keeps of the block, told by its first norm.
        tensors: that the parameters are in.
        grouped: whether it normalises over groups of images.
        learns: its parameters are not frozen.
        tracked: a backward pass goes through it, since something learns at it or before it.
        calls: operators forward and backward, once and for every group, by `kernels`.
    """

    stage: str
    block: str
    kind: str
    parameters: int
    macs: int
    moved: float
    kept: float
    kept_bytes: Mapping[str, float]
    block_input: float
    fuses: bool = False
    tensors: int = 0
    grouped: bool = False
    learns: bool = True
    tracked: bool = True
    calls: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def mode(precision: str, *, rows: bool) -> str:
    """Say how uncompiled kernels keep what they keep: half and fp32 on a GPU, or fp32 on a CPU (rows)."""
    return "half" if precision != "fp32" else "rows" if rows else "fp32"


def workload(config: ModelConfig, *, image_size: int, frozen: Collection[str] = ()) -> list[Work]:
    """Return the operations of a forward pass, in order.

    Args:
        frozen: parts that do not learn, as in fine-tuning's `freeze`.
    """
    head_size = architecture(config).head_size
    # MBConv.fuse: the forms that its kernels know, where the depthwise convolution has no stride
    known_form = config.mbconv_norm == "batch" and config.gelu == "tanh"
    works, seen, before = [], set[str](), None
    for operation, learns, tracked in learning_operations(config, image_size, frozen=frozen):
        if not learns:  # its norm takes the statistics that it has
            operation = replace(operation, grouped=False)
        first_norm = operation.kind == "norm" and operation.place.block_name not in seen
        if first_norm:
            seen.add(operation.place.block_name)
        fuses = known_form and operation.kind == "depthwise" and operation.reads == operation.writes
        facts = {"fuses": fuses, "learns": learns, "tracked": tracked}
        works.append(_work(operation, before, head_size=head_size, first_norm=first_norm, **facts))
        before = operation
    return works


def _work(
    operation: Operation, before: Operation | None, *, head_size: int, first_norm: bool, **facts: bool
) -> Work:
    return Work(
        stage=operation.place.stage,
        block=operation.place.block_name,
        kind=_CLASSES.get(operation.kind, "elementwise"),
        parameters=operation.parameters,
        macs=operation.macs,
        moved=operation.reads + operation.writes,
        kept=_compiled_elements(operation, before),
        kept_bytes={
            name: _eager_bytes(operation, before, mode=name, head_size=head_size)
            for name in ("half", "fp32", "rows")
        },
        block_input=operation.saved if first_norm else 0.0,
        tensors=operation.tensors,
        grouped=operation.grouped,
        calls=calls_of(operation, before),
        **facts,
    )


def _compiled_elements(operation: Operation, before: Operation | None) -> float:
    """Return what torch.compile's partitioner keeps; tests ask it. Norms' GELUs are computed again."""
    kind = operation.kind
    if kind == "gelu":
        return 0.0 if before is not None and before.kind == "norm" else operation.reads
    if kind == "attention":
        return 3.0 * operation.writes  # query, key, value; its output is the next product's input
    if kind == "se" or (kind == "linear" and _reads_the_same(operation, before)):
        return 0.0
    return operation.saved


def _reads_the_same(operation: Operation, before: Operation | None) -> bool:
    """Say whether it is a key or a value, which reads what the query has kept."""
    return before is not None and before.kind == "linear" and before.reads == operation.reads


def _eager_bytes(operation: Operation, before: Operation | None, *, mode: str, head_size: int) -> float:
    """Return what autograd keeps of an operation that is a kernel of its own.

    Tests count it by autograd's own hooks. In half precision norms take fp32 copies of their inputs, and each
    of query, key and value a bf16 copy of the same norm's output; only a CPU's attention keeps its scores.
    """
    half, kind = mode == "half", operation.kind
    size = _BYTES["half" if half else "fp32"]
    after = before.kind if before is not None else ""
    if kind == "norm":
        return operation.saved * _WIDE_BYTES
    if kind == "gelu":  # by the CPU's extension a norm and its GELU keep the norm's input alone
        return 0.0 if mode == "rows" and after == "norm" else operation.reads * size
    if kind == "pool" and operation.saved:
        own = after == "norm" or half  # else the block's first norm keeps the same input
        wide = _WIDE_BYTES if after == "norm" else size
        return operation.writes * (_INDEX_BYTES + (_WINDOW * wide if own else 0))
    if kind == "attention":
        tokens_width = operation.writes
        heads_tokens = tokens_width / head_size
        scores = operation.macs / (2 * head_size)  # heads × tokens × tokens
        return 3 * tokens_width * size + (scores if mode == "rows" else heads_tokens) * _WIDE_BYTES
    if kind == "linear" and _reads_the_same(operation, before) and not half:
        return 0.0
    return operation.saved * size
