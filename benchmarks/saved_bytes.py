"""What autograd keeps of a forward pass, counted by torch itself, beside what the plan's formula says.

    .venv/bin/python benchmarks/saved_bytes.py

Needs no GPU: bytes are shapes and types. Uncompiled, torch's hooks see every tensor that is saved, on tensors
without memory (FakeTensorMode); what the network would choose on a GPU (its attention and convolutions, layer
norms in fp32 under autocast) is chosen here too. Compiled, inductor's partitioner says what it would keep of
one block of every stage, of two images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from cluster.planning.memory import Layout, saved_bytes
from cluster.planning.workload import workload
from coatnet.model.config import ModelConfig, NormConfig, architecture
from coatnet.model.gpu import attention, dense, depthwise, moments
from coatnet.model.network import CoAtNet, build_model
from coatnet.model.norm import defer_statistics

# Batches of three uncompiled runs on an H200 and the MiB that they took (benchmarks/gpu.md); then the bytes
# of a parameter: weight, gradient, AdamW's state with its copy, two buckets.
MEASURED = {"coatnet_0": (128, 21_837), "coatnet_2": (64, 24_217), "coatnet_4": (64, 60_714)}
_STATE_BYTES = 4 + 4 + 12 + 8
_COMPILED_IMAGES = 2
_MIB = 2**20


def main() -> None:
    """Print the tables of benchmarks/plan.md."""
    print("| model, 64 images | kernels | GiB counted | by the plan | error |\n|---|---|---|---|---|")
    for name in MEASURED:
        config = ModelConfig(name=name)
        for precision in ("autocast", "fp32"):
            counted = sum(count_eager(config, batch=64, image_size=224, precision=precision).values())
            planned = sum(planned_bytes(config, batch=64, image_size=224, precision=precision).values())
            print(f"| {name} | uncompiled {precision} | {counted / 2**30:.2f} | {planned / 2**30:.2f} "
                  f"| {planned / counted - 1:+.1%} |")  # fmt: skip
    print("\n| block of CoAtNet-4, 2 images | MiB kept compiled | by the plan | error |\n|---|---|---|---|")
    for words, fused in (("", False), (", `train.fused_mbconv`", True)):
        for block, (kept, expected) in count_compiled("coatnet_4", fused=fused).items():
            error = f"{expected / kept - 1:+.1%}"
            print(f"| {block}{words} | {kept / _MIB:.1f} | {expected / _MIB:.1f} | {error} |")
    print("\n| run on the H200 | MiB measured | counted in fp32 | in bf16 |\n|---|---|---|---|")
    for name, (batch, measured) in MEASURED.items():
        config, cells = ModelConfig(name=name), []
        state = _STATE_BYTES * sum(work.parameters for work in workload(config, image_size=224))
        for precision in ("fp32", "autocast"):
            kept = sum(count_eager(config, batch=batch, image_size=224, precision=precision).values())
            cells.append(f"{(kept + state) / _MIB:,.0f}")
        print(f"| {name} b{batch} | {measured:,} | {' | '.join(cells)} |")


def planned_bytes(config: ModelConfig, *, batch: int, image_size: int, precision: str) -> dict[str, float]:
    """Return the plan's activations by stage, uncompiled on a GPU."""
    layout = Layout(1, 0, batch, precision=precision)
    return saved_bytes(workload(config, image_size=image_size), layout=layout)


def count_eager(config: ModelConfig, *, batch: int, image_size: int, precision: str) -> dict[str, int]:
    """Return the bytes that autograd saves by stage, cast weights aside, with a GPU's choice of kernels."""
    with FakeTensorMode(), as_on_a_gpu():
        model = CoAtNet(config, norm=NormConfig(group_images=batch)).train()
        # the stem's convolution casts the images itself on a GPU
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        images = torch.empty(batch, 3, image_size, image_size, dtype=dtype)
        return count_saved(model, images, precision=precision)


def count_saved(model: CoAtNet, images: Tensor, *, precision: str) -> dict[str, int]:
    """Return the bytes of all storages that a forward pass saves, by stage, cast weights aside."""
    own = [*model.parameters(), *model.buffers()]
    seen = {one.untyped_storage()._cdata: one.untyped_storage() for one in own}
    weights = {tuple(one.shape) for one in own} | {tuple(one.t().shape) for one in own if one.ndim == 2}
    stages: Counter[str] = Counter()
    place = ["S0"]

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen[storage._cdata] = storage  # held, so that no other takes its place
            if tuple(tensor.shape) not in weights:
                stages[place[0]] += storage.nbytes()
        return tensor

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: place.__setitem__(0, name)

    parts: list[tuple[str, nn.Module]] = [("S0", model.stem), *model.blocks(), ("head", model.head)]
    handles = [part.register_forward_pre_hook(enter(name)) for name, part in parts]
    try:
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"),
            saved_tensors_hooks(note, lambda tensor: tensor),
        ):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return dict(stages)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Let the network take the way that it takes on a GPU; torch's own attention for fp32 keeps as much."""

    def normalise(self: nn.LayerNorm, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(attention, "fits", lambda q: True))
        stack.enter_context(mock.patch.object(depthwise, "fits", lambda x, stride: stride == 1))
        stack.enter_context(mock.patch.object(dense, "fits", lambda x, weight: weight.shape[1] == x.shape[3]))
        stack.enter_context(mock.patch.object(nn.LayerNorm, "forward", normalise))
        yield


def count_compiled(name: str, *, fused: bool = False, **sizes: Any) -> dict[str, tuple[float, float]]:
    """Return for the second block of every stage what inductor keeps, and what the plan says, in bytes.

    Args:
        name: of the family.
        fused: with `train.fused_mbconv`.
        sizes: of a smaller relative, as ModelConfig takes them.
    """
    config = ModelConfig(**{"depths": [2] * 5, **sizes}, name=name)
    model = build_model(config, norm=NormConfig(group_images=_COMPILED_IMAGES), seed=0).train()
    defer_statistics(model)
    if fused:
        model.fuse_mbconv()
    found, side = {}, config.image_size // 2
    works = workload(config, image_size=config.image_size)
    widths = {stage.name: stage.width for stage in architecture(config).stages}
    for stage, blocks in model.stages.items():
        side //= 2
        name, block = f"{stage}.1", blocks[1]  # type: ignore[index]
        own = [work for work in works if work.block == name and not (fused and work.fuses)]
        planned = sum(work.kept for work in own) * 2 * _COMPILED_IMAGES
        found[name] = _partitioned(block, width=widths[stage], side=side), planned
    return found


class _Seen(Exception):
    """Ends a compilation once its forward graph is known."""


class _Summed(nn.Module):
    """A block without an output of its own among what is kept."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, None).sum()


def _partitioned(block: nn.Module, *, width: int, side: int) -> float:
    # Here, since the compiler takes seconds to import: who only counts what is not compiled need not wait.
    import torch._inductor.lowering  # the decompositions look there
    from torch._functorch.aot_autograd import aot_module
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    x = torch.empty(_COMPILED_IMAGES, side, side, width, dtype=torch.bfloat16).requires_grad_()
    rows = (_COMPILED_IMAGES, _COMPILED_IMAGES * side * side)  # what holds images and no weights begins so
    weights = {tuple(one.shape) for one in block.parameters()}
    kept: dict[int, int] = {}

    def look(graph: torch.fx.GraphModule, _: Any) -> None:
        (results,) = next(node for node in graph.graph.nodes if node.op == "output").args
        for node in results:
            value = node.meta.get("val") if isinstance(node, torch.fx.Node) else None
            if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[0] not in rows:
                continue
            if not weights & {tuple(value.shape), tuple(value.shape[::-1])}:
                kept[value.untyped_storage()._cdata] = value.numel() * value.element_size()
        raise _Seen

    compiled = aot_module(
        _Summed(block), fw_compiler=look, partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )  # fmt: skip
    with (
        mock.patch.object(attention, "fits", lambda q: True),
        mock.patch.object(moments, "fits", lambda x: True),
        torch.autocast("cpu", torch.bfloat16),
        suppress(_Seen),
    ):
        compiled(x)
    return sum(kept.values())


if __name__ == "__main__":
    main()
