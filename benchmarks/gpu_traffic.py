"""What a compiled training step would move through a GPU's memory, read off inductor's plan without a GPU.

    .venv/bin/python benchmarks/gpu_traffic.py
    .venv/bin/python benchmarks/gpu_traffic.py --model coatnet_7 --batch 64 --kernels S2.1

Every kind of block is compiled for an H100 that is only pretended (`pretend_gpu`), and inductor's scheduler
says what each kernel reads and writes. "stored" is inductor's own choice of what to keep between kernels,
and torch's max pooling; "recomputed" is what `CoAtNet.compile_blocks` and `max_pool` make of it; "fused" is
that with `train.fused_mbconv`. Bytes come of shapes and types. Nothing here is a time: arithmetic, caches and
launches are not in it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

from pretend_gpu import leave, pretend

pretend()

import torch  # noqa: E402
import torch._dynamo.utils  # noqa: E402
import torch._inductor.lowering  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._functorch.aot_autograd import aot_module  # noqa: E402
from torch._functorch.partitioners import min_cut_rematerialization_partition  # noqa: E402
from torch._inductor import config as inductor  # noqa: E402
from torch._inductor.compile_fx import _recursive_post_grad_passes, view_to_reshape  # noqa: E402
from torch._inductor.debug import DebugContext  # noqa: E402
from torch._inductor.decomposition import select_decomp_table  # noqa: E402
from torch._inductor.graph import GraphLowering  # noqa: E402
from torch._inductor.virtualized import V  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from coatnet.model import blocks as model_blocks  # noqa: E402
from coatnet.model.blocks import MBConv  # noqa: E402
from coatnet.model.config import ModelConfig, NormConfig, architecture  # noqa: E402
from coatnet.model.network import RECOMPUTING, CoAtNet  # noqa: E402
from coatnet.model.norm import defer_statistics  # noqa: E402

_GB = 1e9
_WAYS = ("stored", "recomputed", "fused")
_VIEWS = {
    "permute",
    "reshape",
    "unsqueeze",
    "squeeze",
    "expand",
    "convert_element_type",
    "slice",
    "view",
    "t",
}


@dataclass(frozen=True)
class Kernel:
    """One kernel of a block. Units: bytes read and written."""

    direction: str
    name: str
    bytes: int


@dataclass(frozen=True)
class Part:
    """A block, its input's shape, and how many of the network are like it."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    count: int


def main(arguments: list[str] | None = None) -> None:
    """Print the table, or one block's kernels."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="coatnet_4")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--kernels", metavar="BLOCK", help="list the kernels of S0, S1.0, S1.1, …")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    rows = []
    for part in parts(options.model, batch=options.batch, px=options.px):
        if options.kernels and part.name != options.kernels:
            continue
        ways = {way: kernels(part, way=way) for way in _WAYS}
        rows.append((part, ways))
        if options.kernels and not options.json:
            for way, found in ways.items():
                print(f"\n{part.name}, {way}\n")
                for one in found:
                    if one.bytes > 1e7:
                        print(f"{one.direction:9} {one.bytes / 1e6:8.0f} MB  {one.name}")
    if options.json:
        print(json.dumps({part.name: {way: [asdict(one) for one in found] for way, found in ways.items()}
                          for part, ways in rows}))  # fmt: skip
    elif not options.kernels:
        print_table(rows)


def print_table(rows: list[tuple[Part, dict[str, list[Kernel]]]]) -> None:
    """Print GB by block and way, and the sum over the network."""
    print(f"| block | blocks | kernels | GB {' | GB '.join(_WAYS)} |\n|---|---|---|---|---|---|")
    totals = dict.fromkeys(_WAYS, 0.0)
    for part, ways in rows:
        moved = {way: sum(one.bytes for one in found) / _GB for way, found in ways.items()}
        totals = {way: total + part.count * moved[way] for way, total in totals.items()}
        counts = " → ".join(str(len(found)) for found in ways.values())
        print(f"| {part.name} | {part.count} | {counts} | {_cells(moved)} |")
    print(f"| network | {sum(part.count for part, _ in rows)} | | {_cells(totals)} |")


def _cells(moved: dict[str, float]) -> str:
    return " | ".join(f"{moved[way]:.1f} ({moved[way] / moved['stored'] - 1:+.0%})" for way in _WAYS)


def parts(name: str, *, batch: int, px: int) -> Iterator[Part]:
    """Yield the stem, and the first and the other block of every stage."""
    config = ModelConfig(name=name, image_size=px)
    with FakeTensorMode(), torch.device("cuda"):
        model = CoAtNet(config, norm=NormConfig(group_images=batch)).train()
    defer_statistics(model)
    widths = {stage.name: stage.runs[-1].width for stage in architecture(config).stages}
    yield Part("S0", model.stem, (batch, px, px, 3), 1)
    side, width = px // 2, architecture(config).stem_width
    for stage, blocks in model.stages.items():
        yield Part(f"{stage}.0", blocks[0], (batch, side, side, width), 1)  # type: ignore[index]
        side, width = side // 2, widths[stage]
        rest = len(blocks) - 1  # type: ignore[arg-type]
        if rest:
            yield Part(f"{stage}.1", blocks[1], (batch, side, side, width), rest)  # type: ignore[index]


def kernels(part: Part, *, way: str) -> list[Kernel]:
    """Compile one block's forward and backward pass under bf16 autocast and return its kernels."""
    found: list[Kernel] = []
    mode = next(part.module.parameters()).fake_mode  # type: ignore[attr-defined]
    takes_scales = part.name != "S0"

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = part.module

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x, None) if takes_scales else self.module(x)

    patches: list[Any] = [
        mode,
        torch.autocast("cuda", torch.bfloat16),
        mock.patch.object(torch.compiler, "is_compiling", lambda: True),
        mock.patch.object(torch._dynamo.utils, "assert_no_fake_params_or_buffers", lambda _: None),
    ]
    if way == "stored":
        patches.append(mock.patch.object(model_blocks, "max_pool", _torch_pool))
    else:
        patches.append(inductor.patch(RECOMPUTING))
    if isinstance(part.module, MBConv) and way == "fused":
        part.module.fuse()
    with ExitStack() as stack:
        for one in patches:
            stack.enter_context(one)
        x = torch.empty(part.shape, dtype=torch.bfloat16, device="cuda").requires_grad_(takes_scales)
        compiled = aot_module(
            Whole(),
            fw_compiler=_lowered("forward", found),
            bw_compiler=_lowered("backward", found),
            partition_fn=min_cut_rematerialization_partition,
            decompositions=select_decomp_table(),
        )
        y = compiled(x)
        y.backward(torch.empty_like(y))
    return found


def _torch_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


def _lowered(direction: str, found: list[Kernel]) -> Callable[..., Any]:
    def lower(module: torch.fx.GraphModule, inputs: Any) -> Any:
        mode = next(node.meta["val"].fake_mode for node in module.graph.nodes if node.op == "placeholder")
        with V.set_fake_mode(mode):
            view_to_reshape(module)
            _recursive_post_grad_passes(module, is_inference=False)
            graph = GraphLowering(module, example_inputs=inputs, is_backward=direction == "backward")
            with (
                V.set_graph_handler(graph),
                V.set_extern_kernel_nodes([]),
                V.set_debug_handler(DebugContext()),
            ):
                graph.run(*inputs)
                graph._update_scheduler()
                for node in graph.scheduler.nodes:
                    moved = int(node.get_read_write_buffers_sizes())
                    if moved:
                        found.append(Kernel(direction, _name(node), moved))
        return module.forward

    return lower


def _name(node: Any) -> str:
    """The operators of a kernel, without those that only look at memory otherwise."""
    origins = {str(one.target) for part in node.get_nodes() for one in part.node.get_origins()}
    names = {(origin.split(".")[1:2] or [origin])[0] for origin in origins}
    return " ".join(sorted(names - _VIEWS))


if __name__ == "__main__":
    main()
    leave()
