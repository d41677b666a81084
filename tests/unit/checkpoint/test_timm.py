"""timm's CoAtNets and ours exchange weights and then compute the same logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coatnet.checkpoint.timm import TIMM_NAMES, from_timm, timm_arguments, timm_config, to_timm
from coatnet.config import UserError
from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model

SMALL: dict[str, Any] = {"depths": [2, 1, 2, 2, 1], "widths": [16, 16, 32, 64, 96], "num_classes": 7}
TOLERANCE, EXACT = 1e-4, 1e-11


def disturb(model: torch.nn.Module, *, seed: int) -> None:
    """Give every tensor a value that shows: norms and statistics leave one and zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.rand(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.2 + 0.5 * noise)
            elif name.endswith("running_mean"):
                tensor.copy_(noise - 0.5)
            elif "norm" in name and tensor.dim() == 1:
                tensor.add_(0.4 * noise)
            elif tensor.is_floating_point():
                tensor.add_(0.05 * (noise - 0.5))


def difference(theirs: torch.nn.Module, ours: torch.nn.Module, *, px: int, dtype: torch.dtype) -> float:
    """Compare in one thread: timm's own fp32 logits differ by 5e-4 between one and two, ours do not."""
    images = torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(1)).to(dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            found = theirs.to(dtype).eval()(images) - ours.to(dtype).eval()(images)
    finally:
        torch.set_num_threads(threads)
    return float(found.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coatnet_0_224", pytest.param("coatnet_2_224", marks=pytest.mark.slow)])
def test_timm_weights_give_timms_logits(timm: Any, name: str) -> None:
    """In fp32 either is 1e-5 to 1e-4 off with these weights, by the processor and the order of its sums."""
    torch.manual_seed(0)  # timm draws from torch's global state, which depends on the tests before this one
    theirs = timm.create_model(name)
    disturb(theirs, seed=3)
    config = timm_config(name)
    ours = build_model(config)
    ours.load_state_dict(from_timm(theirs.state_dict(), config))
    assert difference(theirs, ours, px=224, dtype=torch.float64) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM_NAMES)
def test_every_tensor_of_every_size_finds_its_place_in_timm(timm: Any, name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name)
    config = timm_config(name)
    ours = build_model(config, device="meta")
    there = to_timm(ours.state_dict(), config)
    assert {key: value.shape for key, value in there.items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    back = from_timm(theirs.state_dict(), config)
    assert {key: value.shape for key, value in back.items()} == {
        key: value.shape for key, value in ours.state_dict().items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stride_place": "depthwise"},
        {"relative_attention": False},
        {"head_size": 16, "layout": "C-T-C-T"},
        {"pooling": "average", "gelu": "exact", "stem_bias": False, "padding": "symmetric"},
    ],
)
def test_our_weights_give_our_logits_in_timm(timm: Any, changes: dict[str, Any]) -> None:
    config = ModelConfig(image_size=64, **SMALL, **changes)
    ours = build_model(config, seed=5)
    disturb(ours, seed=6)
    name, arguments = timm_arguments(config)
    theirs = timm.create_model(name, **arguments)
    theirs.load_state_dict(to_timm(ours.state_dict(), config))
    assert difference(theirs, ours, px=64, dtype=torch.float32) < TOLERANCE
    assert difference(theirs, ours, px=64, dtype=torch.float64) < EXACT


def test_there_and_back_is_the_identity() -> None:
    config = ModelConfig(image_size=64, **SMALL)
    state = build_model(config, seed=1).state_dict()
    back = from_timm(to_timm(state, config), config)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_weights_that_do_not_fit_are_named() -> None:
    config = ModelConfig(image_size=64, **SMALL)
    state = to_timm(build_model(config, seed=1).state_dict(), config)
    with pytest.raises(UserError, match=r"head\.fc\.weight is missing"):
        from_timm({name: tensor for name, tensor in state.items() if name != "head.fc.weight"}, config)
    with pytest.raises(UserError, match="relative_position_bias_table is"):
        from_timm(dict(state), ModelConfig(image_size=96, **SMALL))
    with pytest.raises(UserError, match="gamma has no place"):
        from_timm({**state, "stages.2.blocks.0.ls1.gamma": torch.ones(1)}, config)


@pytest.mark.parametrize("name", ["coatnet_6", "coatnet_7", "vit_rel"])
def test_what_timm_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="timm has no"):
        timm_arguments(ModelConfig(name=name))
    with pytest.raises(UserError, match="allowed: coatnet_0_224"):
        timm_config("coatnet_0_rw_224")
