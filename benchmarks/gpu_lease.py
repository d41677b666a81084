"""What to measure in thirty minutes on one GPU, in order of what decides most; docs: ../benchmarks/model.md.

    python benchmarks/gpu_lease.py --out runs/lease            the whole lease
    python benchmarks/gpu_lease.py --phases ceilings attention
    python benchmarks/gpu_lease.py --tiny                      the same logic on a CPU; no figures

Seven phases, each with its share of the time: the ceilings of products and copies at our shapes, timm's
models, the depthwise convolution, MBConv with and without the kernels that join its middle, attention with
checks for NaN and types, the step by stage, the step by batch size.
`lease.json` is written anew after every row, so that a lease that is cut short has still given all before; a
case that fails or whose phase is out of time becomes a row that says so. `lease.md` has a table per phase.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parent))
from lease_bench import FULL, TINY, Bench
from lease_report import Case, Row, list_kernels, make_parser, run_phase, table
from model import training_step
from timm_peer import import_timm

from coatnet.model import network
from coatnet.model.attention import fused_attention, plain_attention
from coatnet.model.blocks import convolve
from coatnet.model.config import ModelConfig, architecture
from coatnet.model.cost import model_cost
from coatnet.model.family import EXPANSION
from coatnet.model.gpu.attention import attention as relative_attention
from coatnet.model.gpu.excite import gelu_sums
from coatnet.model.gpu.mbconv import activate_convolve, activate_convolve_backward
from coatnet.model.network import CoAtNet, build_model
from coatnet.runtime.ranks import Ranks

MINUTES = {
    "ceilings": 2.0, "peer": 6.0, "depthwise": 4.0, "fused": 4.0, "attention": 4.0, "stages": 7.0,
    "batches": 3.0,
}  # fmt: skip
_TOGETHER = 8
_WAYS = ("stored", "timed", "apart", "joined")


def ceilings(bench: Bench) -> Iterator[Case]:
    """Products and copies at our shapes: no step can be quicker."""
    for name, rows, width_in, width in bench.sizes.products:

        def product(
            rows: int = rows * bench.sizes.batch, width_in: int = width_in, width: int = width
        ) -> Row:
            x, weight = bench.random(rows, width_in), bench.random(width, width_in)
            rate = 2 * rows * width_in * width / bench.seconds(lambda: F.linear(x, weight))
            return {"tflops": rate / 1e12, "share_of_peak": bench.mfu(rate)}

        def copy(rows: int = rows * bench.sizes.batch, width: int = width) -> Row:
            x = bench.random(rows, width)
            y = torch.empty_like(x)
            return {"gb_per_second": 2 * x.nbytes / bench.seconds(lambda: y.copy_(x)) / 1e9}

        yield f"product {name}", product
        yield f"copy {name}", copy


def peer(bench: Bench) -> Iterator[Case]:
    """timm's models, eager and compiled, in both layouts.

    Its fused attention cannot be compiled by block (its bias is laid out otherwise); with products it can.
    """
    for name, batch in bench.sizes.peers:
        for mode in ("eager", "compiled", "compiled by block", "products, compiled by block"):
            for layout in ("NCHW", "NHWC"):

                def run(name: str = name, batch: int = batch, mode: str = mode, layout: str = layout) -> Row:
                    form = torch.channels_last if layout == "NHWC" else torch.contiguous_format
                    timm = import_timm()
                    timm.layers.set_fused_attn(not mode.startswith("products"))
                    model = timm.create_model(name).to(bench.device, memory_format=form).train()
                    if mode.endswith("by block"):  # as ours: blocks of one shape share their code
                        torch._dynamo.config.recompile_limit = 64
                        for block in (model.stem, *(one for stage in model.stages for one in stage.blocks)):
                            block.compile(dynamic=False)
                    model = torch.compile(model, dynamic=False) if mode == "compiled" else model
                    macs = model_cost(ModelConfig(name=f"{name.removesuffix('_224')}_dconv"), 224).macs
                    return whole_step(bench, model, batch=batch, px=224, macs=macs, form=form)

                yield f"{name} b{batch} {mode} {layout}", run


def depthwise(bench: Bench) -> Iterator[Case]:
    """The 3×3 depthwise convolution as a share of a copy's bandwidth: torch's in both layouts, and ours."""
    for name, side, width in bench.sizes.maps:
        for kernel in ("torch NCHW", "torch NHWC", "ours NHWC"):

            def run(side: int = side, width: int = width, kernel: str = kernel) -> Row:
                x = bench.random(bench.sizes.batch, side, side, width)
                if kernel == "torch NCHW":
                    x = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
                x.requires_grad_()
                weight = bench.random(width, 1, 3, 3, grad=True)

                def forward() -> Tensor:
                    if kernel == "ours NHWC":
                        return convolve(x, weight, bias=None, stride=1, padding="same")
                    y = F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1, groups=width)
                    return y.permute(0, 2, 3, 1)

                y, target = forward(), torch.empty_like(x)
                down = torch.randn_like(y)
                copy = bench.seconds(lambda: target.copy_(x.detach()), together=_TOGETHER)
                ahead = bench.seconds(forward, together=_TOGETHER)
                back = bench.seconds(
                    lambda: torch.autograd.grad(y, (x, weight), down, retain_graph=True), together=_TOGETHER
                )
                # Forwards one read and one write, as a copy; backwards two reads and a write.
                shares = {"forward_share_of_copy": copy / ahead, "backward_share_of_copy": 1.5 * copy / back}
                return {"forward_ms": 1e3 * ahead, "backward_ms": 1e3 * back, **shares}

            yield f"{name} {side}²×{width} {kernel}", run


def fused(bench: Bench) -> Iterator[Case]:
    """What recomputing in compiled blocks brings ("stored": inductor's default), and `train.fused_mbconv`.

    "timed" lets inductor choose the forms of sums by their time: what it costs that they have one. The fused
    kernels beside a copy, then blocks and the whole step each way.
    """
    config, batch = bench.sizes.models[0]
    plan = architecture(config)
    sides = {"S1": bench.sizes.px // 4, "S2": bench.sizes.px // 8}
    widths = {stage.name: stage.runs[-1].width for stage in plan.stages}
    if bench.device.type == "cuda":
        for stage, side in sides.items():
            shape = (batch, side, side, EXPANSION * widths[stage])
            yield f"kernels {stage}", partial(_fused_kernels, bench, shape)
    for stage, side in sides.items():
        for way in _WAYS:

            def block(stage: str = stage, side: int = side, way: str = way) -> Row:
                stages: Any = build_model(config, device=bench.device, seed=0).train().stages
                one = stages[stage][-1]
                if way == "joined":
                    one.fuse()
                if bench.sizes.compile:
                    one.compile(dynamic=False, options=_fusion(bench, way))
                x = bench.random(batch, side, side, widths[stage], grad=True)

                def forward() -> Tensor:
                    with torch.autocast(x.device.type, x.dtype, enabled=x.dtype != torch.float32):
                        return one(x, None)

                down = torch.randn_like(forward())
                bench.peak_bytes()
                both = bench.seconds(lambda: forward().backward(down), together=_TOGETHER)
                peak = bench.peak_bytes()
                ahead = bench.seconds(forward, together=_TOGETHER)
                row = {"forward_ms": 1e3 * ahead, "both_ms": 1e3 * both}
                return {**row, "peak_gib": None if peak is None else peak / 2**30}

            yield f"block {stage} {way}", block
    macs = model_cost(config, bench.sizes.px).macs
    for way in _WAYS:

        def step(way: str = way) -> Row:
            model = build_model(config, device=bench.device, seed=0).train()
            if way == "joined":
                model.fuse_mbconv()
            if bench.sizes.compile:
                with mock.patch.object(network, "GPU_OPTIONS", _fusion(bench, way)):
                    model.compile_blocks()
            return whole_step(bench, model, batch=batch, px=bench.sizes.px, macs=macs)

        yield f"step {way}", step


def _fusion(bench: Bench, way: str) -> dict[str, int | bool] | None:
    """Inductor's options of a way; None is its default."""
    if way == "stored" or bench.device.type != "cuda":
        return None
    return {**network.RECOMPUTING} if way == "timed" else network.GPU_OPTIONS


def _fused_kernels(bench: Bench, shape: tuple[int, ...]) -> Row:
    e = bench.random(*shape)
    target = torch.empty_like(e)
    mean, scale = (torch.ones(1, shape[3], device=e.device) for _ in range(2))
    weight = torch.randn(shape[3], 1, 3, 3, device=e.device)
    copy = bench.seconds(lambda: target.copy_(e), together=_TOGETHER)
    ahead = bench.seconds(lambda: activate_convolve(e, mean, scale, mean[0], weight), together=_TOGETHER)
    back = bench.seconds(
        lambda: activate_convolve_backward(target, e, mean, scale, mean[0], weight), together=_TOGETHER
    )
    rows = torch.ones(shape[0], shape[3], device=e.device)
    sums = bench.seconds(lambda: gelu_sums(e, rows, rows, mean[0], target), together=_TOGETHER)
    shares = {"forward_share_of_copy": copy / ahead, "backward_share_of_copy": 1.5 * copy / back}
    row = {"forward_ms": 1e3 * ahead, "backward_ms": 1e3 * back, **shares}
    return {**row, "sums_ms": 1e3 * sums, "sums_share_of_copy": copy / sums}


def attention(bench: Bench) -> Iterator[Case]:
    """Time, and what must hold before a kernel may be chosen: no NaN, its input's type, float64's numbers."""
    kernels: dict[str, Callable[..., Tensor]] = {"plain": plain_attention, "torch": fused_attention}
    if bench.device.type == "cuda":
        kernels["ours"] = _ours
        kernels["cuDNN, without the bias's gradient"] = _cudnn
    for tokens in bench.sizes.tokens:
        for name, kernel in kernels.items():

            def run(tokens: int = tokens, kernel: Callable[..., Tensor] = kernel) -> Row:
                heads = bench.sizes.heads
                shape = (bench.sizes.batch, tokens, heads, 32)  # as the projections leave them
                q, k, v = (bench.random(*shape).transpose(1, 2).requires_grad_() for _ in range(3))
                # Very negative biases make the logsumexp with which cuDNN's backward pass goes wrong.
                bias = (
                    torch.randn(heads, tokens, tokens, device=bench.device).mul(30).sub(60).requires_grad_()
                )
                y = kernel(q, k, v, bias)
                down = torch.randn_like(y)
                leaves = [leaf for leaf in (q, k, v, bias) if kernel is not _cudnn or leaf is not bias]
                gradients = torch.autograd.grad(y, leaves, down, retain_graph=True)
                few = slice(0, 1)
                q64, k64, v64, bias64 = (t.detach().double() for t in (q[few], k[few], v[few], bias))
                exact = plain_attention(q64, k64, v64, bias64)
                back = bench.seconds(
                    lambda: torch.autograd.grad(y, leaves, down, retain_graph=True), together=_TOGETHER
                )
                ahead = bench.seconds(lambda: kernel(q, k, v, bias), together=_TOGETHER)
                return {
                    "forward_ms": 1e3 * ahead,
                    "backward_ms": 1e3 * back,
                    "finite": bool(y.isfinite().all()) and all(bool(g.isfinite().all()) for g in gradients),
                    "type_kept": y.dtype == q.dtype,
                    "largest_error": float((y[few].detach().double() - exact).abs().max()),
                }

            yield f"N={tokens} {name}", run


def _ours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    q, k, v = (one.transpose(1, 2) for one in (q, k, v))
    return relative_attention(q, k, v, bias)[0].transpose(1, 2)


def _cudnn(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.detach().to(q.dtype)[None])


def stages(bench: Bench) -> Iterator[Case]:
    """The whole step, then forward and backward of each part on an input of its shape."""
    for config, batch in bench.sizes.models:
        model = _network(bench, config)
        macs = model_cost(config, bench.sizes.px).macs
        yield (
            f"{config.name} b{batch} step",
            lambda: whole_step(bench, model, batch=batch, px=bench.sizes.px, macs=macs),  # noqa: B023
        )
        parts: dict[str, Any] = {"S0": [model.stem], **model.stages}
        plan, side = architecture(config), bench.sizes.px
        widths = {"S0": plan.stem_width, **{stage.name: stage.runs[-1].width for stage in plan.stages}}
        x = bench.random(batch, side, side, 3)
        for name, blocks in parts.items():

            def run(x: Tensor = x, blocks: list[Any] = blocks, name: str = name) -> Row:
                x = x.detach().requires_grad_()

                def both_ways() -> None:
                    with torch.autocast(
                        bench.device.type, dtype=torch.bfloat16, enabled=bench.dtype != torch.float32
                    ):
                        y = x
                        for block in blocks:
                            y = block(y) if name == "S0" else block(y, None)
                    y.float().sum().backward()

                return {"ms": 1e3 * bench.seconds(both_ways)}

            yield f"{config.name} b{batch} {name}", run
            side //= 2
            x = bench.random(batch, side, side, widths[name])


def batches(bench: Bench) -> Iterator[Case]:
    """How the step's time grows with the batch; the plan's model of a GPU is fitted to it."""
    config = bench.sizes.models[0][0]
    macs = model_cost(config, bench.sizes.px).macs
    for batch in bench.sizes.batches:
        yield (
            f"{config.name} b{batch}",
            lambda: whole_step(bench, _network(bench, config), batch=batch, px=bench.sizes.px, macs=macs),  # noqa: B023
        )


def _network(bench: Bench, config: ModelConfig) -> CoAtNet:
    model = build_model(config, device=bench.device, seed=0).train()
    if bench.sizes.compile:
        model.compile_blocks()
    return model


def whole_step(
    bench: Bench,
    model: Any,
    *,
    batch: int,
    px: int,
    macs: int,
    form: torch.memory_format = torch.channels_last,
) -> Row:
    """Time a training step under autocast."""
    images = torch.randn(batch, 3, px, px, device=bench.device).to(memory_format=form)
    labels = torch.randint(0, 10, (batch,), device=bench.device)
    bench.peak_bytes()
    step = training_step(model, images, labels, dtype=bench.dtype)
    seconds = bench.seconds(step)
    rate = batch / seconds
    peak = bench.peak_bytes()
    if bench.kernels is not None:
        list_kernels(step, bench.kernels / f"kernels-{type(model).__name__}-b{batch}.txt")
    row = {"ms": 1e3 * seconds, "images_per_second": rate, "mfu": bench.mfu(6 * macs * rate)}
    return {**row, "peak_gib": None if peak is None else peak / 2**30}


PHASES: dict[str, Callable[[Bench], Iterator[Case]]] = {
    "ceilings": ceilings,
    "peer": peer,
    "depthwise": depthwise,
    "fused": fused,
    "attention": attention,
    "stages": stages,
    "batches": batches,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the phases in order and write both files."""
    parser = make_parser((__doc__ or "").splitlines()[0], MINUTES)
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("no CUDA device; --tiny runs the same logic on a CPU")
    device = torch.device("cpu" if options.tiny else "cuda")
    Ranks.single(deterministic=options.deterministic)
    sizes = TINY if options.tiny else FULL
    bench = Bench(
        sizes.at_batch(options.batch) if options.batch else sizes,
        device,
        torch.float32 if options.tiny else torch.bfloat16,
        options.out if options.kernels else None,
    )
    name = "CPU, tiny shapes" if options.tiny else torch.cuda.get_device_name()
    result: dict[str, Any] = {"device": name, "torch": torch.__version__, "phases": {}}
    options.out.mkdir(parents=True, exist_ok=True)
    for phase in options.phases:
        share = 60 * options.minutes * MINUTES[phase] / sum(MINUTES.values())
        rows = result["phases"].setdefault(phase, [])
        cases = (case for case in PHASES[phase](bench) if any(text in case[0] for text in options.only))
        for row in run_phase(cases, deadline=time.monotonic() + share):
            rows.append(row)
            print(f"{phase}: {row}", flush=True)
            (options.out / "lease.json").write_text(json.dumps(result, indent=2))
        if device.type == "cuda":
            torch.cuda.empty_cache()
    parts = [f"# {name}, torch {torch.__version__}"]
    parts += [f"## {phase}\n\n{table(rows)}" for phase, rows in result["phases"].items()]
    (options.out / "lease.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
