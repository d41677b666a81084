"""What the demo answers; its overlay shows what speaks for the first guess, by the definition of Grad-CAM."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from coatnet.config import UserError
from finetune.classifier import open_classifier
from finetune.demo.answer import _coloured, grad_cam, make_answer
from finetune.prediction import load_square, prepare


def test_the_heat_weighs_each_channel_by_what_it_adds_to_the_first_guess(
    exported: Path, photos: Path
) -> None:
    classifier = open_classifier(str(exported))
    square = load_square((photos / "amber" / "00.jpg").read_bytes(), classifier)
    logits, heat = grad_cam(classifier, square)
    with torch.no_grad():
        assert torch.equal(logits, classifier.model(prepare(square[None], classifier))[0])
        trunk, head = (
            classifier.model.trunk(prepare(square[None], classifier)).double(),
            classifier.model.head,
        )
        head.double()
        best, step = int(logits.argmax()), 1e-5
        # What the logit gains when a channel grows everywhere by the same small amount.
        gains = [
            (head(trunk + step * one)[0, best] - head(trunk - step * one)[0, best]) / (2 * step)
            for one in torch.eye(trunk.shape[-1], dtype=torch.float64)
        ]
        expected = (trunk[0] * torch.stack(gains)).sum(-1).relu()
    assert heat.shape == expected.shape and heat.max() == 1
    assert torch.allclose(heat.double(), expected / expected.max(), atol=1e-3)


def test_the_overlay_is_the_more_opaque_and_the_brighter_the_hotter_a_place_is() -> None:
    heat = torch.tensor([[0.0, 1.0], [0.25, 0.5]])
    pixels = np.asarray(_coloured(heat, side=2))
    level = (heat.numpy() * 255).astype(np.uint8) / 255
    assert pixels[..., 3].tolist() == [[0, 255], [126, 179]]
    assert (pixels[..., :3] == colormaps["inferno"](level, bytes=True)[..., :3]).all()
    assert np.asarray(_coloured(heat, side=64)).shape == (64, 64, 4)


def test_the_page_is_given_the_guesses_and_the_square_that_the_model_saw(
    exported: Path, photos: Path
) -> None:
    def picture(url: str) -> Image.Image:
        kind, _, content = url.partition(",")
        assert kind == "data:image/png;base64"
        return Image.open(io.BytesIO(base64.b64decode(content)))

    classifier, payload = open_classifier(str(exported)), (photos / "amber" / "00.jpg").read_bytes()
    found = make_answer(classifier)(payload)
    square = load_square(payload, classifier)
    assert [guess["index"] for guess in found["guesses"]] == grad_cam(classifier, square)[0].argsort(
        descending=True
    ).tolist()
    assert (np.asarray(picture(found["seen"])) == square.numpy()).all()
    assert picture(found["overlay"]).mode == "RGBA" and picture(found["overlay"]).size == (64, 64)
    assert 0 < found["seconds"] < 60
    with pytest.raises(UserError, match="not an image that can be shown: truncated"):
        make_answer(classifier)(payload[: len(payload) // 2])
    with torch.no_grad():
        classifier.model.head.logits.weight.zero_()
    assert not grad_cam(classifier, square)[1].any(), "where nothing speaks for a guess, nothing glows"
