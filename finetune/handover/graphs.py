"""The model as a graph that needs none of this code: ONNX and torch.export, both with a free batch size."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coatnet.runtime.whole_files import whole_file
from finetune.classifier import Classifier
from finetune.handover.certificate import Answers, OnImages, fixed_batch

_ONNX, _TORCH = "model.onnx", "model.pt2"
_OPSET = 20  # the first with Gelu
_MAX_BATCH = 4096


def export_torch(classifier: Classifier, destination: Path) -> tuple[list[Path], Answers, dict[str, Any]]:
    """Write `model.pt2`, which torch.export.load opens."""
    path = destination / _TORCH
    images = fixed_batch(classifier.augment.image_size)
    program = torch.export.export(OnImages(classifier.model).eval(), (images,), dynamic_shapes=_shapes())
    with whole_file(path) as temporary:
        torch.export.save(program, temporary)
    del program  # which what is read back does not need beside it in memory
    program_alone = torch.export.load(path).module()

    def answers(images: Tensor) -> Tensor:  # a graph's module refuses eval(), which whoever measures it calls
        return program_alone(images)

    return [path], answers, {"image_size": classifier.augment.image_size}


def export_onnx(classifier: Classifier, destination: Path) -> tuple[list[Path], Answers, dict[str, Any]]:
    """Write `model.onnx` and check it in onnxruntime."""
    # onnxruntime 1.32 gives a machine a number and keeps it, with telemetry, in the home.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    path = destination / _ONNX
    images = fixed_batch(classifier.augment.image_size)
    with _quiet_exporter():
        program = torch.onnx.export(
            OnImages(classifier.model).eval(),
            (images,),
            dynamo=True,
            opset_version=_OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=_shapes(),
            verbose=False,
        )
    assert program is not None
    files = _save_onnx(program, path)
    del program
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def answers(images: Tensor) -> Tensor:
        pixels = np.ascontiguousarray(images.numpy())
        return torch.from_numpy(session.run(["logits"], {"images": pixels})[0])

    return files, answers, {"image_size": classifier.augment.image_size, "opset": _OPSET}


def _save_onnx(program: torch.onnx.ONNXProgram, path: Path) -> list[Path]:
    """Write the graph, and where it is too large for a protobuf (2 GiB) its weights beside it.

    Returns:
        The files. The graph names that of the weights, which therefore gets its name before the rename.
    """
    weights, made = path.with_name(f"{path.name}.data"), path.with_name(f".{path.name}.tmp")
    shutil.rmtree(made, ignore_errors=True)  # of one that was killed
    made.mkdir()
    try:
        program.save(str(made / path.name))
        files = [file for file in (weights, path) if (made / file.name).exists()]
        if weights in files or weights.exists():
            # A graph of an earlier export must not stand beside other weights, nor they beside another graph.
            for file in (path, weights):
                file.unlink(missing_ok=True)
        for file in files:
            with whole_file(file) as temporary:
                (made / file.name).replace(temporary)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return files


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep off what torch's exporter says of packages and of itself: --json speaks on stdout."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(before)


def _shapes() -> dict[str, Any]:
    return {"images": {0: torch.export.Dim("batch", min=1, max=_MAX_BATCH)}}
