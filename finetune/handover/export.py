"""Write a model in the asked forms, each checked after it was written and read back."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from coatnet.checkpoint.weights import (
    CONFIG,
    TENSORS,
    Weights,
    export_safetensors,
    load_tensors,
    load_weights,
)
from coatnet.config import UserError, to_dict
from coatnet.config.plain_text import json_text
from coatnet.runtime.console import make_console
from coatnet.runtime.regular_files import read_regular
from coatnet.runtime.run_directory import write_atomically
from finetune.choices import FORMS
from finetune.classifier import Classifier, open_classifier
from finetune.handover.card import model_card
from finetune.handover.certificate import Answers, Own, ask, certify
from finetune.handover.graphs import export_onnx, export_torch
from finetune.handover.timm_form import check_timm, export_timm

_Written = tuple[list[Path], Answers, dict[str, Any]]
CARD = "README.md"
_MAX_CERTIFICATE_BYTES = 1 << 20


def export_model(
    path: str,
    destination: Path,
    *,
    formats: Sequence[str],
    weights: str = "auto",
    px: int | None = None,
    data: str | None = None,
) -> list[dict[str, Any]]:
    """Write the forms, of `FORMS`, a certificate for each, and a model card; return the certificates.

    The card lists what earlier exports of the same model left in the folder, too.

    Raises:
        UserError: a form that cannot hold this architecture, no room, or answers that differ.
    """
    # Exports are compared where all of their ecosystems run, on the CPU.
    classifier = open_classifier(path, weights=weights, px=px, device=torch.device("cpu"))
    if "timm" in formats:  # what it cannot hold or be proved by is told before another form is written
        check_timm(classifier.model.config)
    destination.mkdir(parents=True, exist_ok=True)
    own = ask(classifier, data=data)
    certificates: list[dict[str, Any]] = []
    try:
        for form in formats:
            certificates.append(_export(own, destination, form=form))
    finally:  # where a later form is refused, the card of another model must not stay beside those before
        if certificates:
            card = model_card(classifier, [*certificates, *_earlier(destination, certificates)])
            write_atomically(destination / CARD, card)
    bad = [one for one in certificates if not one["accepted"]]
    if bad:
        raise UserError(
            f"{destination}: the logits of the {bad[0]['format']} export differ by "
            f"{bad[0]['max_logit_difference']:.2g}, more than {bad[0]['tolerance']:g}; do not use it"
        )
    return certificates


def _export(own: Own, destination: Path, *, form: str) -> dict[str, Any]:
    """Write one form and its certificate, which comes back."""
    print(f"{destination}: writing and checking {form} …", file=sys.stderr, flush=True)
    certified = destination / f"certificate-{form}.json"
    _require_space(destination, own.classifier)
    certified.unlink(missing_ok=True)  # an earlier export's must not stand beside files that are replaced
    files, answers, notes = _WRITERS[form](own.classifier, destination)
    certificate = certify(form, answers, own, folder=destination, files=files, notes=notes)
    write_atomically(certified, json_text(certificate, indent=2) + "\n")
    return certificate


def _earlier(destination: Path, certificates: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the certificates that earlier exports left, and warn of those that are of another model."""
    own, earlier = certificates[0], []
    for form in FORMS.keys() - {one["format"] for one in certificates}:
        path = destination / f"certificate-{form}.json"
        if not path.exists():
            continue
        try:
            one = json.loads(read_regular(path, most=_MAX_CERTIFICATE_BYTES))
            same = all(one[key] == own[key] for key in ("weights", "images"))
            same = same and all((destination / name).is_file() for name in one["files"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            same = False
        if same:
            earlier.append(one)
        else:
            print(f"warning: {path} is of another model or size; the card leaves it out", file=sys.stderr)
    return earlier


def _require_space(destination: Path, classifier: Classifier) -> None:
    """Refuse what finds no room before it is begun: torch's own writer aborts the process on a full disk."""
    needed = sum(tensor.nbytes for tensor in classifier.model.state_dict().values())
    free = shutil.disk_usage(destination).free
    if free < needed:
        raise UserError(
            f"{destination}: {free / 2**20:,.1f} MiB free, an export needs {needed / 2**20:,.1f}; make room"
        )


def print_certificates(certificates: Sequence[dict[str, Any]]) -> None:
    """Print a table."""
    table = Table(title="exported", title_justify="left")
    name, words = ("map", "mAP") if "map" in certificates[0] else ("top1", "top-1")
    for heading in ("form", "files", "logits differ by", words, "exported"):  # 80 characters in all
        table.add_column(heading, overflow="fold")
    for one in certificates:
        shown = [f"{one[key]:.2%}" if key in one else "–" for key in (name, f"exported_{name}")]
        table.add_row(
            one["format"], escape("\n".join(one["files"])), f"{one['max_logit_difference']:.1e}", *shown
        )
    make_console().print(table)


def _native(classifier: Classifier, destination: Path) -> _Written:
    """Write the native form; what is read back takes the model's place: a large one does not fit twice."""
    facts = {
        **{key: value for key, value in classifier.facts.items() if key in _KEPT_FACTS},
        "augment": to_dict(classifier.augment),
    }
    model, origin = classifier.model, str(destination)
    export_safetensors(Weights(model.config, model.state_dict(), classifier.classes, facts), destination)
    load_tensors(model.to("meta"), load_weights(destination).tensors, device=classifier.device, origin=origin)
    return [destination / TENSORS, destination / CONFIG], model, {}


# What an export says of its origin: nothing that names a machine.
_KEPT_FACTS = ("loss", "step", "samples_seen", "config_digest", "evaluation", "seed")
_WRITERS: dict[str, Callable[[Classifier, Path], _Written]] = dict(
    zip(FORMS, (_native, export_timm, export_onnx, export_torch), strict=True)
)
