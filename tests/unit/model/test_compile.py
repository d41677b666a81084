"""Compilation per block: no graph breaks, shared between blocks of one shape, the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model
from coatnet.model.norm import commit_statistics, defer_statistics


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_blocks_compile_without_graph_breaks_and_share_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.testing import CompileCounter  # seconds of imports, which collection need not wait for

    counter = CompileCounter()
    compile_module = torch.nn.Module.compile

    def traced(part: torch.nn.Module, **options: Any) -> None:
        # Dynamo alone: inductor's code would take a minute and adds no graph breaks, which are errors here.
        compile_module(part, backend=counter, fullgraph=True, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    config = ModelConfig(
        depths=[1, 3, 2, 4, 3], widths=[8, 8, 16, 32, 32], stochastic_depth=0.2, image_size=64, num_classes=5
    )
    compiled, plain = (build_model(config, seed=0).train() for _ in range(2))
    defer_statistics(compiled)
    defer_statistics(plain)
    compiled.compile_blocks()
    images, keys = torch.randn(2, 3, 64, 64), torch.arange(2)
    assert torch.allclose(compiled(images, sample_keys=keys), plain(images, sample_keys=keys), atol=1e-5)
    # Stem, head, and for each of the four stages its first block and all others.
    assert counter.frame_count == 2 + 4 * 2
    for _ in range(2):  # the second evaluation of other weights compiles nothing
        with torch.no_grad():
            for parameter in [*compiled.parameters(), *plain.parameters()]:
                parameter.mul_(1.1)
            for _ in range(2):
                assert torch.allclose(compiled.eval()(images), plain.eval()(images), atol=1e-5)
        assert counter.frame_count == 2 * (2 + 4 * 2)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_the_kernel_for_gpus_traces_without_a_graph_break() -> None:
    from coatnet.model.attention import fused_attention

    compiled = torch.compile(fused_attention, backend="eager", fullgraph=True)
    q = torch.randn(1, 2, 49, 32)
    bias = torch.randn(2, 49, 49)
    assert torch.allclose(compiled(q, q, q, bias), fused_attention(q, q, q, bias), atol=1e-6)


def test_on_a_gpu_no_sum_is_chosen_by_the_time_that_it_takes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config as inductor

    given: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _part, *, dynamic, options: given.append(options))
    build_model(ModelConfig(), device="meta").compile_blocks()
    assert given and all(options["deterministic"] for options in given)
    assert all(hasattr(inductor, name) for options in given for name in options)


def test_checkpointed_stages_give_the_same_gradients() -> None:
    config = ModelConfig(
        depths=[1, 1, 1, 2, 1], widths=[8, 8, 16, 32, 32], stochastic_depth=0.2, image_size=64, num_classes=5
    )
    kept, recomputed = (build_model(config, seed=0).train() for _ in range(2))
    recomputed.set_activation_checkpointing(["S2", "S3"])
    images, keys = torch.randn(2, 3, 64, 64), torch.arange(2)
    for model in (kept, recomputed):
        model(images, sample_keys=keys).square().sum().backward()
    for (name, one), (_, other) in zip(kept.named_parameters(), recomputed.named_parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


@pytest.mark.parametrize("deferred", [True, False])
def test_checkpointed_stages_note_the_statistics_of_a_batch_once(deferred: bool) -> None:
    config = ModelConfig(depths=[1, 1, 1, 1, 1], widths=[8, 8, 16, 32, 32], image_size=64, num_classes=5)
    kept, recomputed = (build_model(config, seed=0).train() for _ in range(2))
    recomputed.set_activation_checkpointing(["S1", "S2", "S3", "S4"])
    parts = torch.randn(3, 2, 3, 64, 64)
    for model in (kept, recomputed):
        if deferred:
            defer_statistics(model)
        for images in parts:
            model(images).square().sum().backward()
        if deferred:
            commit_statistics(model)
    for (name, one), (_, other) in zip(kept.named_buffers(), recomputed.named_buffers(), strict=True):
        assert torch.equal(one, other), name


def test_every_parameter_is_contiguous() -> None:
    model = build_model(ModelConfig(name="coatnet_7"), device="meta")
    assert all(parameter.is_contiguous() for parameter in model.parameters())
