"""The proof beside an export: how far its answers are from the model's, on what, made by what."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coatnet.checkpoint.classes import evaluation_columns
from coatnet.config import to_dict
from coatnet.runtime.environment import code_commit, installed_versions
from coatnet.runtime.ranks import Ranks
from data_pipeline.open_corpus import open_corpus
from finetune.classifier import Classifier
from finetune.evaluation.judging import judge, shares_of
from finetune.evaluation.measure import AnyPredictions, measure

TOLERANCE = 1e-4
_IMAGES = 4
_SEED = 20210604  # any fixed number makes the batch the same everywhere
_PACKAGES = ("torch", "timm", "onnx", "onnxruntime", "safetensors")
_BLOCK_BYTES = 1 << 20

Answers = Callable[[Tensor], Tensor]


def fixed_batch(px: int) -> Tensor:
    """Return the batch that every certificate compares on: smooth noise of the range of normalised images.

    Shape: (4, 3, px, px)
    """
    generator = torch.Generator().manual_seed(_SEED)
    coarse = torch.randn(_IMAGES, 3, max(2, px // 8), max(2, px // 8), generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(px, px), mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Own:
    """What a model answers before anything is written of it: every form is compared with that.

    Attributes:
        logits: of the fixed batch.
        weights: SHA-256 over the model's tensors.
        data, predictions: a corpus, if one is given, and what the model says of its images.
    """

    classifier: Classifier
    logits: Tensor
    weights: str
    data: str | None = None
    predictions: AnyPredictions | None = None


def ask(classifier: Classifier, *, data: str | None) -> Own:
    """Let a model answer."""
    images = fixed_batch(classifier.augment.image_size)
    with torch.inference_mode():
        logits = classifier.model(images.to(classifier.device)).float().cpu()
    predictions = None if data is None else _predictions(classifier.model, classifier, data=data)
    return Own(classifier, logits, _digest_of_weights(classifier), data, predictions)


def certify(
    form: str, answers: Answers, own: Own, *, folder: Path, files: list[Path], notes: dict[str, Any]
) -> dict[str, Any]:
    """Compare an export's answers with the model's, and return what came out.

    Returns:
        Plain values: among them `max_logit_difference` on a fixed batch against the model in torch, fp32; by
        SHA-256 `files`, all of the export's by their paths in `folder`, and `weights`, the model's, whatever
        the form; and of the images of `data` `top1` and `exported_top1`, or with several labels each `map`
        and `exported_map`, and `differing_guesses`.
    """
    images = fixed_batch(own.classifier.augment.image_size)
    with torch.inference_mode():
        theirs = answers(images).float().cpu()
    difference = float((own.logits - theirs).abs().max())
    return {
        "format": form,
        "accepted": difference <= TOLERANCE,
        "max_logit_difference": difference,
        "tolerance": TOLERANCE,
        "images": list(images.shape),
        "files": {str(file.relative_to(folder)): _sha256(file) for file in files},
        "weights": own.weights,
        "model": to_dict(own.classifier.model.config),
        "commit": code_commit(),
        "versions": installed_versions(_PACKAGES),
        "data": own.data,
        "notes": notes,
        **_compare_on_data(answers, own),
    }


class OnImages(nn.Module):
    """What answers, as a module whose only input are images."""

    def __init__(self, model: Answers) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def _compare_on_data(answers: Answers, own: Own) -> dict[str, Any]:
    if own.data is None or own.predictions is None:
        return {}
    corpus = open_corpus(own.data)
    theirs = _predictions(OnImages(answers), own.classifier, data=own.data)
    name, *_ = shares_of(corpus)
    both = (own.predictions, theirs)
    figure, exported = (judge(one, classes=len(corpus.classes))[name] for one in both)
    differing = int((own.predictions.guess != theirs.guess).sum())
    return {name: figure, f"exported_{name}": exported, "differing_guesses": differing}


def _predictions(model: nn.Module, classifier: Classifier, *, data: str) -> AnyPredictions:
    corpus = open_corpus(data)
    return measure(
        model,
        corpus,
        classifier.augment,
        batch=_IMAGES,
        ranks=Ranks.single(),
        loss=classifier.loss,
        columns=evaluation_columns(classifier.classes, corpus.classes, origin=data),
    ).predictions


def _digest_of_weights(classifier: Classifier) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(classifier.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
