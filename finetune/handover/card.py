"""A model card in the hub's format, generated from what is known. Claims nothing that was not measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from coatnet.config.plain_text import giga, is_number
from coatnet.model.cost import model_cost
from finetune.choices import FORMS
from finetune.classifier import Classifier

_CLASSES_SHOWN = 20
_MEANING = {
    "softmax": "one class per image: the softmax of the logits is the probability of each",
    "sigmoid": "any number of classes per image: the sigmoid of a logit is the probability of that class",
}
# Of the run's last evaluation, by figure: the hub's type, and the name shown.
_METRICS = {"top1": ("accuracy", "top-1"), "map": ("mean_average_precision", "mAP")}


def model_card(classifier: Classifier, certificates: Sequence[dict[str, Any]]) -> str:
    """Return README.md with the metadata that the hub reads."""
    augment, config = classifier.augment, classifier.model.config
    cost = model_cost(config, augment.image_size)
    metadata = ["---", "library_name: coatnet", "pipeline_tag: image-classification", "tags:", "- coatnet"]
    metadata += [*_results(classifier), "---"]
    names = ", ".join(_plain(name) for name in classifier.names[:_CLASSES_SHOWN])
    more = len(classifier.names) - _CLASSES_SHOWN
    accepted = [one for one in certificates if one["accepted"]]
    rows = [_row(one) for form in FORMS for one in accepted if one["format"] == form]
    lines = [
        *metadata,
        f"# {config.name}",
        "",
        "A CoAtNet (Dai et al., arXiv 2106.04803): convolution and relative attention.",
        "",
        f"- {cost.parameters:,} parameters, {giga(cost.macs)} GMAC per image at {augment.image_size} px",
        f"- {config.num_classes} classes: {names}{f' and {more} more' if more > 0 else ''}",
        f"- {_MEANING[classifier.loss or 'softmax']}",
        f"- input: RGB, {_resize(classifier)} to {augment.image_size}×{augment.image_size} px, "
        f"{augment.interpolation}, mean {augment.mean}, std {augment.std} of values from 0 to 1",
        "",
        "## Files",
        "",
        "| form | files | opened by | largest logit difference |",
        "|---|---|---|---|",
        *rows,
        "",
        "Each form's certificate (`certificate-*.json`) holds digests, versions and what was compared.",
        "",
        "## Configuration",
        "",
        "```json",
        json.dumps({key: value for key, value in vars(config).items() if value is not None}, indent=2),
        "```",
        "",
        "## Limits",
        "",
        "The data that the weights were trained on decide what they know and what they are biased towards; "
        "this card is generated and cannot say. Add licence, data and intended use before handing it on.",
    ]
    return "\n".join(lines) + "\n"


def _row(certificate: dict[str, Any]) -> str:
    files = ", ".join(f"`{file}`" for file in certificate["files"])
    form = certificate["format"]
    return f"| {form} | {files} | {FORMS[form]} | {certificate['max_logit_difference']:.1e} |"


def _results(classifier: Classifier) -> list[str]:
    """Return the hub's model-index for the training run's last evaluation, where it was of this model."""
    evaluated = classifier.facts.get("evaluation")
    known = evaluated if isinstance(evaluated, dict) else {}
    if (known.get("at"), known.get("image_size")) != (
        classifier.facts.get("samples_seen"),
        classifier.augment.image_size,
    ):
        return []  # of earlier weights, as after a stop between evaluations, or of other images
    metrics = [
        f"    - {{type: {kind}, value: {float(known[key]):.4f}, name: {name}}}"
        for key, (kind, name) in _METRICS.items()
        if is_number(known.get(key))
    ]
    if not metrics:
        return []
    return [
        "model-index:",
        f"- name: {classifier.model.config.name}",
        "  results:",
        "  - task: {type: image-classification}",
        "    dataset: {name: the run's evaluation set, type: imagefolder}",
        "    metrics:",
        *metrics,
    ]


def _resize(classifier: Classifier) -> str:
    if classifier.augment.evaluate_resize == "whole":
        return "the whole image resized"
    return f"the central square of {classifier.augment.evaluate_crop:g} of the shorter side, resized"


def _plain(name: str) -> str:
    """Return a class name that no Markdown reader takes for markup."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+!|~" else c for c in name)
