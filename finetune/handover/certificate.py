"""The proof beside an export: how far its answers are from the model's, on what, made by what."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coatnet.checkpoint.classes import evaluation_columns
from coatnet.config import to_dict
from coatnet.runtime.environment import code_commit, installed_versions
from coatnet.runtime.ranks import Ranks
from data_pipeline.open_corpus import open_corpus
from finetune.classifier import Classifier
from finetune.evaluation.judging import judge, shares_of
from finetune.evaluation.measure import measure

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


def certify(
    form: str,
    answers: Answers,
    classifier: Classifier,
    *,
    folder: Path,
    files: list[Path],
    data: str | None,
    notes: dict[str, Any],
) -> dict[str, Any]:
    """Compare an export's answers with the model's, and return what came out.

    Returns:
        Plain values: among them `max_logit_difference` on a fixed batch against the model in torch, fp32; by
        SHA-256 `files`, all of the export's by their paths in `folder`, and `weights`, the model's, whatever
        the form; and of the images of `data` `top1` and `exported_top1`, or with several labels each `map`
        and `exported_map`, and `differing_guesses`.
    """
    images = fixed_batch(classifier.augment.image_size)
    with torch.inference_mode():
        own = classifier.model(images.to(classifier.device)).float().cpu()
        theirs = answers(images).float().cpu()
    difference = float((own - theirs).abs().max())
    return {
        "format": form,
        "accepted": difference <= TOLERANCE,
        "max_logit_difference": difference,
        "tolerance": TOLERANCE,
        "images": list(images.shape),
        "files": {str(file.relative_to(folder)): _sha256(file) for file in files},
        "weights": _digest_of_weights(classifier),
        "model": to_dict(classifier.model.config),
        "commit": code_commit(),
        "versions": installed_versions(_PACKAGES),
        "data": data,
        "notes": notes,
        **({} if data is None else _compare_on(data, answers, classifier)),
    }


class OnImages(torch.nn.Module):
    """What answers, as a module whose only input are images."""

    def __init__(self, model: Answers) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def _compare_on(data: str, answers: Answers, classifier: Classifier) -> dict[str, Any]:
    corpus = open_corpus(data)
    columns = evaluation_columns(classifier.classes, corpus.classes, origin=data)
    own, theirs = (
        measure(
            model,
            corpus,
            classifier.augment,
            batch=_IMAGES,
            ranks=Ranks.single(),
            loss=classifier.loss,
            columns=columns,
        ).predictions
        for model in (classifier.model, OnImages(answers))
    )
    name, *_ = shares_of(corpus)
    figures = [judge(one, classes=len(corpus.classes))[name] for one in (own, theirs)]
    differing = int((own.guess != theirs.guess).sum())
    return {name: figures[0], f"exported_{name}": figures[1], "differing_guesses": differing}


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
