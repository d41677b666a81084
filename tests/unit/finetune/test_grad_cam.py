"""The demo's overlay shows what speaks for the first guess, by the definition of Grad-CAM."""

from __future__ import annotations

from pathlib import Path

import torch

from finetune.classifier import open_classifier
from finetune.demo.answer import grad_cam
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
