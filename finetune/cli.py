"""The commands `finetune`, `evaluate`, `predict`, `export`, `import` and `demo`. Imports nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from coatnet.config import UserError
from coatnet.config.checks import folder_to_write
from coatnet.config.keys import keys_option
from coatnet.config.plain_text import json_text
from coatnet.runtime.stop import held_signals
from data_pipeline.augment_config import EVALUATE_RESIZES
from finetune.choices import FORMS, PACKAGES, PRECISIONS, WEIGHTS


def _allowing(name: str, is_good: Callable[[Any], bool], *, allowed: str) -> Callable[[Any], Any]:
    """Return what checks an option's value, or each of several, before the command begins."""

    def check(value: Any) -> Any:
        for one in value if isinstance(value, list) else [value]:
            if one is not None and not is_good(one):
                raise UserError(f"{name} is {one}; allowed: {allowed}")
        return value

    return check


def _one_of(name: str, allowed: Collection[str]) -> Callable[[Any], Any]:
    return _allowing(name, allowed.__contains__, allowed=", ".join(allowed))


_sides = _allowing("--px", lambda px: px >= 32 and px % 32 == 0, allowed="multiples of 32")


def _check_installed(formats: Sequence[str]) -> None:
    """Check that what the forms of an export need is there, before one of them is written."""
    for form in formats:
        packages, remedy = PACKAGES.get(form, ((), ""))
        missing = [name for name in packages if find_spec(name) is None]
        if missing:
            raise UserError(f"--format {form} needs {', '.join(missing)}, not installed here: {remedy}")


def _local_folder(path: Path | None) -> Path | None:
    """Check that a folder to write can be one."""
    try:
        folder_to_write("the destination", path)
    except ValueError as error:
        raise UserError(str(error)) from None
    return path


_MODEL = typer.Argument(help="A run, a checkpoint or an exported directory.")
_JSON = typer.Option("--json", help="Print JSON and nothing else.")
_WEIGHTS = typer.Option(
    help="Which weights of a run: auto (EMA where there is one), ema or raw.",
    callback=_one_of("--weights", WEIGHTS),
)
_PX = typer.Option(help="Side of the images in pixels; default: the model's own.", callback=_sides)
_SIDES = typer.Option(help="Side of the images in pixels; repeat it to compare.", callback=_sides)
_GRAPH_PX = typer.Option(help="Side of the images, for onnx and torch_export.", callback=_sides)
_BATCH = typer.Option(min=1, help="Images at a time; no result depends on it.")
_THREADS = typer.Option(min=1, help="Decoding threads.")


def _schema() -> type:
    from finetune.config import FinetuneConfig

    return FinetuneConfig


def finetune(
    config: Annotated[Path, typer.Argument(help="A YAML config.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value …; see --keys.")] = None,
    keys: Annotated[bool, keys_option(_schema)] = False,
) -> None:
    """Fine-tune a model, or resume a run that was stopped or killed.

    Example: coatnet finetune configs/finetune/small.yaml init=runs/first \\
    data.train=photos/train data.evaluate=photos/validation \\
    run.directory=runs/second
    """
    with held_signals():
        from finetune.launch import launch

        status = launch(str(config), overrides or [])
    sys.exit(status)


def evaluate(
    model: Annotated[Path, _MODEL],
    data: Annotated[  # no Path, which would take a slash from a URL
        str, typer.Argument(help="Shards or their URL, an image folder, or with --labels a flat folder.")
    ],
    px: Annotated[list[int] | None, _SIDES] = None,
    weights: Annotated[str, _WEIGHTS] = "auto",
    batch: Annotated[int, _BATCH] = 64,
    ranks: Annotated[int, typer.Option(min=1, help="Processes that share the work.")] = 1,
    threads: Annotated[int, _THREADS] = 2,
    resize: Annotated[
        str | None,
        typer.Option(
            help=f"{' or '.join(EVALUATE_RESIZES)}; default: as trained.",
            callback=_one_of("--resize", EVALUATE_RESIZES),
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(help=f"{' or '.join(PRECISIONS)}.", callback=_one_of("--precision", PRECISIONS))
    ] = "fp32",
    labels: Annotated[Path | None, typer.Option(help="File of `NAME LABEL` lines.")] = None,
    real: Annotated[
        Path | None, typer.Option(help="File of ReaL labels (real.json) for ImageNet's validation set.")
    ] = None,
    destination: Annotated[
        Path | None, typer.Option(help="Folder for figures, tables and plots.", callback=_local_folder)
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Measure accuracy, calibration and throughput, at one resolution or several.

    Example: coatnet evaluate runs/second photos/validation --px 224 --px 384
    """
    from coatnet.checkpoint.inspection import check_model
    from data_pipeline.folder import keep_out
    from finetune.evaluation.sources import check_evaluation_set

    found = check_model(model, weights=weights)
    check_evaluation_set(data, labels=labels, real=real, model=found)
    if destination is not None:
        keep_out("--destination", destination, [data])
        destination.mkdir(parents=True, exist_ok=True)
    from finetune.evaluation.request import EvaluationRequest, run_request
    from finetune.evaluation.table import print_reports

    request = EvaluationRequest(
        model=str(model),
        data=data,
        sizes=px or [],
        weights=weights,
        batch=batch,
        threads=threads,
        resize=resize,
        precision=precision,
        labels=None if labels is None else str(labels),
        real=None if real is None else str(real),
        confusion=destination is not None,
    )
    reports = run_request(request, ranks=ranks)
    try:
        if destination is not None:
            from finetune.evaluation.write import write_reports

            write_reports(reports, destination)
    finally:  # what was measured is not lost where a disk is full
        _show(reports, print_reports, as_json=as_json)


def predict(
    model: Annotated[Path, _MODEL],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to show per image.")] = 5,
    px: Annotated[int | None, _PX] = None,
    weights: Annotated[str, _WEIGHTS] = "auto",
    batch: Annotated[int, _BATCH] = 32,
    threads: Annotated[int, _THREADS] = 2,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Name what images show.

    Example: coatnet predict runs/second photos/validation/shirt --top 3
    """
    from coatnet.checkpoint.inspection import check_model
    from finetune.image_files import image_files, print_predictions, refused_images

    check_model(model, weights=weights)
    files = image_files(images)
    rows = refused_images(files)
    if not rows:
        from finetune.classifier import open_classifier
        from finetune.prediction import predict_files

        classifier = open_classifier(str(model), weights=weights, px=px)
        rows = predict_files(classifier, files, top=top, batch=batch, threads=threads)
    _show(rows, print_predictions, as_json=as_json)
    if any("error" in row for row in rows):
        sys.exit(1)


def export(
    model: Annotated[Path, _MODEL],
    destination: Annotated[Path, typer.Argument(help="Directory to write.", callback=_local_folder)],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help=f"{', '.join(FORMS)}; may be repeated. Default: safetensors.",
            callback=_allowing("--format", FORMS.__contains__, allowed=f"{', '.join(FORMS)}, one each time"),
        ),
    ] = None,
    weights: Annotated[str, _WEIGHTS] = "auto",
    px: Annotated[int | None, _GRAPH_PX] = None,
    data: Annotated[str | None, typer.Option(help="Evaluation set for the certificates.")] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Export a model, each format with a certificate that it gives the same answers.

    Example: coatnet export runs/second exported --format timm --format onnx \\
    --data photos/validation
    """
    from coatnet.checkpoint.inspection import check_model
    from coatnet.runtime.run_directory import keep_models_out
    from data_pipeline.folder import keep_out
    from finetune.evaluation.sources import check_evaluation_set

    _check_installed(formats or [])
    found = check_model(model, weights=weights)
    if data is not None:
        check_evaluation_set(data, model=found)
        keep_out("DESTINATION", destination, [data])
    keep_models_out(destination)
    destination.mkdir(parents=True, exist_ok=True)
    from finetune.handover.export import export_model, print_certificates

    certificates = export_model(
        str(model), destination, formats=formats or ["safetensors"], weights=weights, px=px, data=data
    )
    _show(certificates, print_certificates, as_json=as_json)


def import_weights(
    source: Annotated[Path, typer.Argument(help="timm weights or safetensors (.safetensors, or .pth).")],
    destination: Annotated[Path, typer.Argument(help="Directory to write.", callback=_local_folder)],
    name: Annotated[str, typer.Option(help="Family member that the weights are of.")] = "coatnet_0",
    px: Annotated[
        int, typer.Option(help="Side of the images that they were trained on, in pixels.", callback=_sides)
    ] = 224,
    classes: Annotated[Path | None, typer.Option(help="File with one class name per line.")] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Read a .pth, with weights_only=True.")
    ] = False,
) -> None:
    """Import weights that others trained, to evaluate or fine-tune them.

    Example: coatnet import coatnet_0.safetensors imported --name coatnet_0
    """
    from coatnet.checkpoint.inspection import check_source
    from coatnet.runtime.run_directory import keep_models_out

    check_source(source, name=name, px=px, classes=classes, trust_pickle=trust_pickle)
    keep_models_out(destination)
    destination.mkdir(parents=True, exist_ok=True)
    from finetune.handover.importing import import_model

    print(import_model(source, destination, name=name, px=px, classes=classes, trust_pickle=trust_pickle))


def demo(
    model: Annotated[Path, _MODEL],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8000,
    px: Annotated[int | None, _PX] = None,
    weights: Annotated[str, _WEIGHTS] = "auto",
) -> None:
    """Serve a page, to this machine alone, that classifies the images dropped on it.

    Example: coatnet demo runs/second --port 8000
    """
    from coatnet.checkpoint.inspection import check_model
    from finetune.demo.server import check_port, make_server

    check_model(model, weights=weights)
    check_port(port)
    from finetune.classifier import open_classifier
    from finetune.demo.answer import make_answer

    classifier = open_classifier(str(model), weights=weights, px=px)
    server = make_server(make_answer(classifier), title=classifier.title, port=port)
    print(f"http://{server.server_address[0]!s}:{server.server_address[1]}/  (Ctrl-C ends it)", flush=True)
    with server:
        server.serve_forever()


def _show(value: Any, print_table: Callable[[Any], None], *, as_json: bool) -> None:
    if as_json:
        print(json_text(value, indent=2))
    else:
        print_table(value)
