"""Batch norm by groups: what it computes, what it remembers, what it does not depend on."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from coatnet.model.config import ModelConfig, NormConfig
from coatnet.model.network import build_model
from coatnet.model.norm import GroupBatchNorm, commit_statistics, defer_statistics

WIDTH, GROUP = 6, 4


def make(*, group_images: int | None = GROUP, sync: str = "none") -> GroupBatchNorm:
    torch.manual_seed(0)
    norm = GroupBatchNorm(WIDTH, group_images=group_images, momentum=0.1, eps=1e-3, sync=sync)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def images(count: int, *, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, 3, WIDTH, generator=generator) * 3 + 7


def test_it_is_torchs_batch_norm_where_the_group_is_the_batch() -> None:
    ours, theirs = make(group_images=None), nn.BatchNorm2d(WIDTH, eps=1e-3, momentum=0.1)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    x = images(GROUP)
    assert torch.allclose(ours(x), theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), atol=1e-5)
    assert torch.allclose(ours.running_mean, theirs.running_mean)
    assert torch.allclose(ours.running_var, theirs.running_var)
    ours.eval(), theirs.eval()
    assert torch.allclose(ours(x), theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize("cut", [[12], [4, 8], [8, 4], [4, 4, 4]])
def test_output_gradient_and_statistics_do_not_depend_on_how_a_batch_is_cut(cut: list[int]) -> None:
    def run(parts: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        norm = make()
        defer_statistics(norm)
        y = torch.cat([norm(part) for part in images(12).split(parts)])
        y.square().mean().backward()
        commit_statistics(norm)
        assert norm.weight.grad is not None
        return y.detach(), norm.weight.grad, norm.running_var

    whole, cut_up = run([12]), run(cut)
    assert torch.equal(whole[0], cut_up[0])
    assert torch.allclose(whole[1], cut_up[1], rtol=1e-5)
    assert torch.equal(whole[2], cut_up[2])


def test_a_group_that_does_not_divide_the_batch_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(ValueError, match=r"batch of 6 .* groups of 4 .*norm.group_images"):
        make()(images(6))


def test_a_batch_without_images_has_no_statistics_and_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 0 images"):
        make()(images(0))


def test_nothing_is_remembered_before_the_commit_and_the_commit_is_one_update() -> None:
    norm = make()
    defer_statistics(norm)
    x = images(8)
    norm(x)
    assert torch.equal(norm.running_mean, torch.zeros(WIDTH))
    commit_statistics(norm)
    means = torch.stack([part.mean(dim=(0, 1, 2)) for part in x.split(GROUP)]).mean(0)
    assert torch.allclose(norm.running_mean, 0.1 * means, rtol=1e-5)
    commit_statistics(norm)
    assert torch.allclose(norm.running_mean, 0.1 * means, rtol=1e-5), (
        "a commit without images changes nothing"
    )


def test_deferring_anew_forgets_what_was_not_committed() -> None:
    norm = make()
    for _ in range(2):
        defer_statistics(norm)
        norm(images(8))
    commit_statistics(norm)
    once = make()
    defer_statistics(once)
    once(images(8))
    commit_statistics(once)
    assert torch.equal(norm.running_mean, once.running_mean)


def test_a_model_without_batch_norm_has_nothing_to_commit() -> None:
    model = nn.Linear(2, 2)
    defer_statistics(model)
    commit_statistics(model, pytest.fail)


def test_one_all_reduce_carries_all_layers() -> None:
    model = build_model(
        ModelConfig(depths=[1, 1, 1, 1, 1], widths=[8, 8, 8, 32, 32], image_size=32), seed=0
    ).train()
    defer_statistics(model)
    model(torch.randn(2, 3, 32, 32))
    calls = []
    commit_statistics(model, calls.append)
    assert len(calls) == 1


@pytest.mark.slow
def test_groups_are_cut_alike_where_the_cpus_kernel_does_not_fit() -> None:
    x = images(8)[:, :2]  # fewer rows than images in a group
    torch.testing.assert_close(make()(x.double()).float(), make()(x.contiguous()))


def test_a_fresh_norm_is_the_identity_and_saves_what_it_is_made_of() -> None:
    norm, x = GroupBatchNorm(WIDTH, group_images=GROUP, momentum=0.1, eps=0.0).eval(), images(GROUP)
    assert torch.equal(norm(x), x)
    assert set(norm.state_dict()) == {"weight", "bias", "running_mean", "running_var"}


def test_a_commit_is_the_mean_over_the_groups_of_all_ranks_layer_by_layer() -> None:
    ranks = [nn.ModuleList([make(), make()]) for _ in range(2)]
    fed = [[images(8, seed=1), images(8, seed=2)], [images(4, seed=3), images(4, seed=4)]]
    for layers, inputs in zip(ranks, fed, strict=True):
        defer_statistics(layers)
        for norm, x in zip(layers, inputs, strict=True):
            norm(x)
    theirs: list[torch.Tensor] = []
    commit_statistics(ranks[1], lambda sums: theirs.append(sums.clone()))
    commit_statistics(ranks[0], lambda sums: sums.add_(theirs[0]))
    for layer, norm in enumerate(ranks[0]):
        groups = torch.cat([inputs[layer] for inputs in fed]).split(GROUP)
        means = torch.stack([group.mean(dim=(0, 1, 2)) for group in groups]).mean(0)
        variances = torch.stack([group.flatten(0, 2).var(dim=0) for group in groups]).mean(0)
        torch.testing.assert_close(norm.running_mean, 0.1 * means)
        torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variances)


@pytest.mark.parametrize(("step", "momentum"), [(1, 9 / 11), (80, 0.1), (81, 0.1), (79, 9 / 89)])
def test_young_statistics_forget_their_start_faster(step: int, momentum: float) -> None:
    norm = make()
    defer_statistics(norm)
    norm(images(GROUP))
    commit_statistics(norm, step=step)
    torch.testing.assert_close(norm.running_mean, momentum * images(GROUP).mean(dim=(0, 1, 2)))


@pytest.mark.parametrize("training", [True, False])
def test_the_activation_follows_in_the_same_pass_or_after_it(training: bool) -> None:
    norm, x = make().train(training), images(8)
    torch.testing.assert_close(norm(x, gelu=True), functional.gelu(norm(x), approximate="tanh"))
    assert norm(x, gelu=True).dtype == x.dtype


@pytest.mark.parametrize("sync", ["node", "all"])
def test_sync_without_other_ranks_is_no_sync(sync: str) -> None:
    x = images(8)
    for fed in (x, x.double()):  # the latter not by the CPU's kernel
        assert torch.equal(make(sync=sync)(fed), make()(fed))


def test_bfloat16_activations_have_float32_statistics() -> None:
    """A mean of 7 and 120 numbers: in bf16 the running mean would have three digits."""
    norm, x = make(group_images=None), images(8).bfloat16()
    y = norm(x)
    assert y.dtype == torch.bfloat16
    assert norm.running_mean.dtype == torch.float32
    assert torch.allclose(norm.running_mean, 0.1 * x.float().mean(dim=(0, 1, 2)), rtol=1e-6)
    assert torch.allclose(y.float(), make(group_images=None)(x.float()), rtol=2**-8)


def test_bfloat16_weights_count_as_what_they_are() -> None:
    cast, exact, x = make().bfloat16(), make(), images(8)
    exact.load_state_dict({**exact.state_dict(), **{k: v.float() for k, v in cast.named_parameters()}})
    torch.testing.assert_close(cast(x), exact(x))


def test_a_model_cast_to_bfloat16_as_deepspeed_does_keeps_its_statistics_to_the_bit() -> None:
    config = ModelConfig(depths=[1, 1, 1, 1, 1], widths=[8, 8, 8, 32, 32], image_size=32)
    model = build_model(config, norm=NormConfig(group_images=2), seed=0).train()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model(images)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.bfloat16()
    for name, buffer in model.named_buffers():
        assert buffer.dtype == torch.float32, name
        assert torch.equal(buffer, before[name]), name
    assert next(model.parameters()).dtype == torch.bfloat16
    defer_statistics(model)
    model(images.bfloat16()).float().sum().backward()
    commit_statistics(model)
    assert all(buffer.dtype == torch.float32 for buffer in model.buffers())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_statistics_move_to_another_device_with_the_model() -> None:
    assert {buffer.device.type for buffer in make().to("meta").buffers()} == {"meta"}
