"""One evaluation as a user asks for it: by one process, or shared by several; at one resolution or many."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coatnet.model.cost import model_cost
from coatnet.runtime.endings import run_rank
from coatnet.runtime.launch import run_ranks
from coatnet.runtime.ranks import Ranks
from data_pipeline.numbering import Numbering
from data_pipeline.record import SampleSource
from finetune.classifier import Classifier, open_classifier
from finetune.evaluation.judging import full_report
from finetune.evaluation.measure import AnyPredictions, Measurement, measure
from finetune.evaluation.predictions import Predictions
from finetune.evaluation.sources import judged_set, read_real_labels, real_accuracy

_BAD_SHOWN = 20


@dataclass(frozen=True)
class EvaluationRequest:
    """What `coatnet evaluate` was asked for.

    Attributes:
        sizes: empty for the model's own.
        confusion: whether the reports hold all pairs of label and guess.
    """

    model: str
    data: str
    sizes: list[int]
    weights: str = "auto"
    batch: int = 64
    threads: int = 2
    resize: str | None = None
    precision: str = "fp32"
    labels: str | None = None
    real: str | None = None
    confusion: bool = False


def run_request(request: EvaluationRequest, *, ranks: int = 1) -> list[dict[str, Any]]:
    """Evaluate and return one report per resolution.

    Raises:
        UserError: the model or the data are not what they should be.
    """
    if ranks == 1:
        return evaluate(request, ranks=Ranks.single())
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "reports.json"
        words = [json.dumps(asdict(request)), str(result)]
        status = run_ranks("finetune.evaluation.request", words, ranks=ranks, heeding=False)
        if status:
            sys.exit(status)  # the ranks have said why
        return json.loads(result.read_text())


def evaluate(request: EvaluationRequest, *, ranks: Ranks) -> list[dict[str, Any]]:
    """Evaluate on this rank's share; the main rank returns the whole, the others empty reports."""
    classifier = open_classifier(
        request.model, weights=request.weights, resize=request.resize, device=ranks.device
    )
    sizes = request.sizes or [classifier.augment.image_size]
    return [_evaluate_at(classifier.at(px), request, ranks=ranks) for px in sizes]


def _evaluate_at(classifier: Classifier, request: EvaluationRequest, *, ranks: Ranks) -> dict[str, Any]:
    labels, real = (None if file is None else Path(file) for file in (request.labels, request.real))
    outputs, px = classifier.model.config.num_classes, classifier.augment.image_size
    corpus, columns = judged_set(
        request.data, labels=labels, real=real, classes=classifier.classes, outputs=outputs
    )
    result = measure(
        classifier.model,
        corpus,
        classifier.augment,
        batch=request.batch,
        ranks=ranks,
        loss=classifier.loss,
        columns=columns,
        precision=request.precision,
        threads=request.threads,
        label=f"evaluate at {px} px",
    )
    if not ranks.is_main:  # intervals take long, and the cores are shared
        return {}
    return {
        "model": request.model,
        "data": request.data,
        "image_size": px,
        "resize": classifier.augment.evaluate_resize,
        "label_kind": corpus.label_kind,
        **full_report(result.predictions, names=corpus.classes, with_confusion=request.confusion),
        **_work_done(result, classifier),
        "judged_among": None if columns is None else len(columns),
        **_real(result.predictions, corpus, request),
    }


def _work_done(result: Measurement, classifier: Classifier) -> dict[str, Any]:
    """Return how quickly it went, at which cost, and what could not be read."""
    images, cost = len(result.predictions), model_cost(classifier.model.config, classifier.augment.image_size)
    return {
        "seconds": round(result.seconds, 3),
        "images_per_second": round(images / result.seconds, 2),
        "model_images_per_second": round(images / max(result.model_seconds, 1e-9), 2),
        "gmacs": cost.macs / 1e9,
        "parameters": cost.parameters,
        "bad_samples": len(result.bad),
        "bad": result.bad[:_BAD_SHOWN],
    }


def _real(predictions: AnyPredictions, corpus: SampleSource, request: EvaluationRequest) -> dict[str, Any]:
    """Return what reassessed labels say, where they were given."""
    if request.real is None:
        return {}
    assert isinstance(predictions, Predictions)  # several labels were refused
    places = map(Numbering(corpus.counts).place, predictions.index.tolist())
    names, real = [corpus.name(*place) for place in places], read_real_labels(Path(request.real))
    share = real_accuracy(predictions, names=names, classes=corpus.classes, real=real, origin=request.data)
    return {"real_top1": share}


def main(arguments: Sequence[str]) -> None:
    """Be one rank of an evaluation: the request as JSON, and the file that rank 0 writes."""
    request = EvaluationRequest(**json.loads(arguments[0]))
    ranks = Ranks.start()
    ranks.wait_patiently()  # for the main rank's figures; the launcher ends what lost a peer
    reports = evaluate(request, ranks=ranks)
    if ranks.is_main:
        Path(arguments[1]).write_text(json.dumps(reports))
    ranks.barrier()
    ranks.stop()


if __name__ == "__main__":
    run_rank(main)
