"""The bias table at other resolutions: resized in the graph, cached in evaluation, one stored parameter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from coatnet.config import UserError
from coatnet.model.attention import RelativeBias, fused_attention, plain_attention
from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model


def resize(table: Tensor, rows: int, columns: int) -> Tensor:
    """Bilinear with half-pixel centres and no antialias, entry by entry in float64."""

    def sample(size_in: int, size_out: int) -> list[tuple[int, int, float]]:
        found = []
        for index in range(size_out):
            at = max((index + 0.5) * size_in / size_out - 0.5, 0.0)
            low = min(math.floor(at), size_in - 1)
            found.append((low, min(low + 1, size_in - 1), at - low))
        return found

    table = table.double()
    out = torch.empty(table.shape[0], rows, columns, dtype=torch.float64)
    for i, (top, bottom, down) in enumerate(sample(table.shape[1], rows)):
        for j, (left, right, over) in enumerate(sample(table.shape[2], columns)):
            upper = table[:, top, left] * (1 - over) + table[:, top, right] * over
            lower = table[:, bottom, left] * (1 - over) + table[:, bottom, right] * over
            out[:, i, j] = upper * (1 - down) + lower * down
    return out


@pytest.mark.parametrize(("height", "width"), [(7, 7), (12, 12), (4, 6), (1, 3)])
def test_another_grid_is_the_bilinear_resize_of_the_table(height: int, width: int) -> None:
    bias = RelativeBias(2, grid=7).double()
    torch.nn.init.normal_(bias.table, generator=torch.Generator().manual_seed(0))
    table = resize(bias.table.detach(), 2 * height - 1, 2 * width - 1)
    got = bias(height, width)
    rows, columns = (
        at.flatten() for at in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    down, right = (at[:, None] - at[None, :] for at in (rows, columns))
    assert torch.allclose(got, table[:, down + height - 1, right + width - 1], atol=1e-12)
    # In fp32 the coordinates, up to 23, are rounded to steps of 2e-6.
    assert torch.allclose(bias.float()(height, width).double(), got, atol=1e-5)


def test_the_resize_stays_in_fp32_under_autocast() -> None:
    bias = RelativeBias(2, grid=4)
    torch.nn.init.normal_(bias.table)
    plain = bias(6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bias(6, 6), plain)


def test_the_gradient_flows_to_the_stored_table_at_another_resolution() -> None:
    bias = RelativeBias(3, grid=7)
    torch.nn.init.normal_(bias.table)
    bias(12, 12).square().sum().backward()
    assert bias.table.grad is not None
    assert bias.table.grad.shape == (3, 13, 13)
    assert bool((bias.table.grad != 0).all())


def test_evaluation_caches_the_bias_until_the_table_changes() -> None:
    bias = RelativeBias(2, grid=4).eval()
    torch.nn.init.normal_(bias.table)
    with torch.no_grad():
        first = bias(6, 6)
        assert bias(6, 6) is first
        bias.table.mul_(2.0)
        assert torch.allclose(bias(6, 6), 2 * first)
        assert bias(4, 4).shape == (2, 16, 16)


def test_a_new_evaluation_sees_a_table_that_was_written_where_autograd_does_not_look() -> None:
    """As the engines write weights and averages: through `data`, which counts no version."""
    bias = RelativeBias(2, grid=4).eval()
    torch.nn.init.normal_(bias.table)
    with torch.no_grad():
        first = bias(6, 6)
        bias.table.data.mul_(2.0)
        assert torch.allclose(bias.eval()(6, 6), 2 * first)
        assert bias.double()(6, 6).dtype == torch.float64


def test_224_to_384_and_back_changes_what_it_should() -> None:
    model = build_model(
        ModelConfig(depths=[1, 1, 1, 1, 1], widths=[8, 8, 16, 32, 32], num_classes=5), seed=0
    ).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(1, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    small = images[:, :, ::2, ::2][:, :, :224, :224].contiguous()
    small = torch.nn.functional.pad(small, (0, 224 - small.shape[3], 0, 224 - small.shape[2]))
    with torch.no_grad():
        first = model(small)
        large = model(images)
        again = model(small)
    assert torch.equal(first, again)
    assert not torch.allclose(first, large)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_side_that_is_not_divisible_by_32_is_refused() -> None:
    model = build_model(ModelConfig(), device="meta")
    with pytest.raises(UserError, match="200×224 px; both sides must be divisible by 32"):
        model(torch.empty(1, 3, 200, 224, device="meta"))


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_images_of_other_than_three_channels_are_refused(channels: int) -> None:
    tiny = ModelConfig(depths=[1, 1, 1, 1, 1], widths=[8, 8, 16, 32, 32])
    with pytest.raises(RuntimeError, match=f"3 channels, but got {channels} channels"):
        build_model(tiny, seed=0).eval()(torch.empty(1, channels, 32, 32))


def test_an_evaluation_of_no_images_gives_no_logits() -> None:
    model = build_model(ModelConfig(num_classes=5), device="meta").eval()
    assert model(torch.empty(0, 3, 224, 224, device="meta")).shape == (0, 5)


@pytest.mark.parametrize("tokens", [49, 64, 576])
def test_the_kernels_path_is_the_plain_one_and_has_no_nan(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(1, 2, tokens, 32, generator=generator, requires_grad=True) for _ in range(3))
    bias = (10 * torch.randn(2, tokens, tokens, generator=generator)).requires_grad_()
    inputs = (q, k, v, bias)
    plain, fused = plain_attention(*inputs), fused_attention(*inputs)
    assert torch.allclose(plain, fused, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad(plain.square().sum(), inputs),
        torch.autograd.grad(fused.square().sum(), inputs),
        strict=True,
    ):
        assert bool(one.isfinite().all())
        assert torch.allclose(one, other, atol=1e-4)
