"""Every operation of a network with its shapes, as data: what `cost` adds up. Imports no torch.

It mirrors `blocks`, `attention` and `network`; tests hold the two together (parameters on the meta device,
MACs against torch's own counter).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from coatnet.model.config import ModelConfig, architecture
from coatnet.model.family import EXPANSION, KERNEL_SIZE, SE_RATIO, Architecture

# Float operations per element, as a graph profiler counts them.
_BATCH_NORM, _GELU, _LAYER_NORM, _SOFTMAX, _POOL, _ADD = 2, 7, 8, 5, 4, 1


@dataclass(frozen=True)
class Place:
    """Where a block stands: its stage, its number there and the side of its output in pixels."""

    stage: str
    block: int
    side: int

    @property
    def pixels(self) -> int:
        """Positions of the output map."""
        return self.side * self.side

    @property
    def block_name(self) -> str:
        """The block as users name it: S3.4, stem, head."""
        return self.stage if self.block < 0 else f"{self.stage}.{self.block}"


@dataclass(frozen=True)
class Operation:
    """One operation on one image. Units: multiply-adds, float operations of elements, elements.

    Args:
        tensors: weights and biases that `parameters` are in.
        grouped: normalises over groups of images.
    """

    place: Place
    kind: str
    parameters: int = 0
    macs: int = 0
    float_ops: int = 0
    reads: int = 0
    writes: int = 0
    saved: int = 0
    lookup_macs: int = 0
    tensors: int = 0
    grouped: bool = False


def operations(config: ModelConfig, image_size: int) -> Iterator[Operation]:
    """Yield the network's operations in order.

    Units: image_size in pixels, a multiple of 32.
    """
    plan = architecture(config)
    width = plan.stem_width
    side, grid = image_size // plan.stem_stride, config.image_size // plan.stem_stride
    yield from _stem(plan, side, bias=config.stem_bias)
    for stage in plan.stages:
        side, grid, block = side // stage.stride, grid // stage.stride, 0
        for run in stage.runs:
            for _ in range(run.depth):
                place = Place(stage.name, block, side)
                stride = stage.stride if block == 0 else 1
                if run.kind == "mbconv":
                    yield from _mbconv(place, width, run.width, stride=stride, config=config, plan=plan)
                else:
                    table = grid if config.relative_attention else None
                    yield from _transformer(
                        place, width, run.width, stride=stride, head_size=plan.head_size, grid=table
                    )
                width, block = run.width, block + 1
    yield from _head(width, side, config.num_classes)


def learning_operations(
    config: ModelConfig, image_size: int, *, frozen: Collection[str] = ()
) -> Iterator[tuple[Operation, bool, bool]]:
    """Yield each operation, whether it learns, and whether a backward pass goes through it.

    One does from the first parameter that learns on.

    Args:
        frozen: parts that do not learn, as in fine-tuning's `freeze`; the logits always do.
    """
    *network, logits = operations(config, image_size)
    tracked = False
    for operation in (*network, logits):
        part = "dense" if operation.place.stage == "head" else operation.place.stage
        learns = operation is logits or part not in frozen
        tracked = tracked or (learns and operation.parameters > 0)
        yield operation, learns, tracked


def _stem(plan: Architecture, side: int, *, bias: bool) -> Iterator[Operation]:
    place, width = Place("S0", -1, side), plan.stem_width
    if plan.patch_size is not None:
        yield _linear(place, 3 * plan.patch_size**2, width)
        return
    yield _convolution(place, 3, width, bias=bias, pixels_in=4 * place.pixels)
    yield _norm(place, width, place.pixels, kind="batch")
    yield _gelu(place, width)
    yield _convolution(place, width, width, bias=bias, pixels_in=place.pixels)


def _mbconv(
    place: Place, width_in: int, width: int, *, stride: int, config: ModelConfig, plan: Architecture
) -> Iterator[Operation]:
    hidden, kind = EXPANSION * width, config.mbconv_norm
    before = place.pixels * stride * stride  # positions of the block's input
    early = place.pixels if plan.stride_place == "expand" else before  # and of the expanded map
    wide = Place(place.stage, place.block, place.side * (1 if plan.stride_place == "expand" else stride))
    yield from _shortcut(place, width_in, width, stride=stride)
    yield _norm(place, width_in, before, kind=kind)
    yield _linear(wide, width_in, hidden, bias=False)
    yield _norm(place, hidden, early, kind=kind)
    yield _gelu(wide, hidden)
    yield _depthwise(place, hidden, pixels_in=early)
    yield _norm(place, hidden, place.pixels, kind=kind)
    yield _gelu(place, hidden)
    yield from _squeeze_excite(place, hidden, max(1, int(width * SE_RATIO)))
    yield _linear(place, hidden, width)
    yield _add(place, width)


def _transformer(
    place: Place, width_in: int, width: int, *, stride: int, head_size: int, grid: int | None
) -> Iterator[Operation]:
    yield from _shortcut(place, width_in, width, stride=stride)
    yield _norm(place, width_in, place.pixels * stride * stride, kind="layer")
    if stride == 2:
        yield _pool(place, width_in)
    for _ in range(3):
        yield _linear(place, width_in, width)
    yield _attention(place, width, heads=width // head_size, grid=grid)
    yield _linear(place, width, width)
    yield _add(place, width)
    yield _norm(place, width, place.pixels, kind="layer")
    yield _linear(place, width, EXPANSION * width)
    yield _gelu(place, EXPANSION * width)
    yield _linear(place, EXPANSION * width, width)
    yield _add(place, width)


def _shortcut(place: Place, width_in: int, width: int, *, stride: int) -> Iterator[Operation]:
    if stride == 2:
        yield _pool(place, width_in)
    if width_in != width:
        yield _linear(place, width_in, width)


def _squeeze_excite(place: Place, width: int, squeeze: int) -> Iterator[Operation]:
    """The mean and the gating multiplication, and two linears on one position."""
    elements = width * place.pixels
    one = Place(place.stage, place.block, 1)
    yield _element(place, "se", 2 * elements, reads=2 * elements, writes=elements, saved=elements)
    yield _linear(one, width, squeeze)
    yield _linear(one, squeeze, width)


def _head(width: int, side: int, num_classes: int) -> Iterator[Operation]:
    place, elements = Place("head", -1, 1), width * side * side
    yield _element(place, "pool", elements, reads=elements, writes=width, saved=0)
    yield _norm(place, width, 1, kind="layer")
    yield _linear(place, width, width)
    yield _linear(place, width, num_classes)


def _convolution(place: Place, width_in: int, width: int, *, bias: bool, pixels_in: int) -> Operation:
    inputs = width_in * pixels_in
    return _weighted(place, "conv", width, KERNEL_SIZE**2 * width_in, inputs=inputs, bias=bias)


def _depthwise(place: Place, width: int, *, pixels_in: int) -> Operation:
    return _weighted(place, "depthwise", width, KERNEL_SIZE**2, inputs=width * pixels_in, bias=False)


def _linear(place: Place, width_in: int, width: int, *, bias: bool = True) -> Operation:
    return _weighted(place, "linear", width, width_in, inputs=width_in * place.pixels, bias=bias)


def _weighted(place: Place, kind: str, width: int, taps: int, *, inputs: int, bias: bool) -> Operation:
    """Each element of the output is a sum over `taps` of the input's `inputs` elements."""
    elements = width * place.pixels
    return Operation(
        place,
        kind,
        parameters=(taps + bias) * width,
        macs=taps * elements,
        float_ops=elements * bias,
        reads=inputs,
        writes=elements,
        saved=inputs,
        tensors=1 + bias,
    )


def _attention(place: Place, width: int, *, heads: int, grid: int | None) -> Operation:
    """q·k and scores·v; with a bias table also its look-up by two one-hot products (the paper's code)."""
    tokens, span = place.pixels, 2 * place.side - 1
    scores = heads * tokens * tokens
    return Operation(
        place,
        "attention",
        parameters=heads * (2 * grid - 1) ** 2 if grid else 0,
        macs=2 * tokens * tokens * width,
        float_ops=(_SOFTMAX + (_ADD if grid else 0)) * scores,
        reads=3 * tokens * width,
        writes=tokens * width,
        saved=4 * tokens * width,
        tensors=1 if grid else 0,
        lookup_macs=heads * (tokens * span**2 + tokens**2 * span) if grid else 0,
    )


def _norm(place: Place, width: int, pixels: int, *, kind: str) -> Operation:
    elements = width * pixels
    per_element = _BATCH_NORM if kind == "batch" else _LAYER_NORM
    return Operation(
        place,
        "norm",
        parameters=2 * width,
        float_ops=per_element * elements,
        reads=2 * elements,
        writes=elements,
        saved=elements,
        tensors=2,
        grouped=kind == "batch",
    )


def _gelu(place: Place, width: int) -> Operation:
    """Recomputed in the backward pass from what the norm or the linear before it saved."""
    elements = width * place.pixels
    return _element(place, "gelu", _GELU * elements, reads=elements, writes=elements, saved=0)


def _pool(place: Place, width: int) -> Operation:
    elements = width * place.pixels
    return _element(place, "pool", _POOL * elements, reads=4 * elements, writes=elements, saved=elements)


def _add(place: Place, width: int) -> Operation:
    """The residual addition; fused into its neighbours, so no profiler entry and no bytes of its own."""
    return _element(place, "add", 0, reads=width * place.pixels, writes=0, saved=0)


def _element(place: Place, kind: str, float_ops: int, *, reads: int, writes: int, saved: int) -> Operation:
    return Operation(place, kind, float_ops=float_ops, reads=reads, writes=writes, saved=saved)
