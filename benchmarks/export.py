"""Latency of the ONNX export in onnxruntime beside the same model compiled by torch.

    OMP_NUM_THREADS=1 python benchmarks/export.py                coatnet_0 at 224 px, batches of 1 and 8
    OMP_NUM_THREADS=1 python benchmarks/export.py --name coatnet_1 --px 384 --json

Both have one thread, see the same images and answer within 1e-4 of each other, or the benchmark fails. Calls
are interleaved and counted in the process's own CPU time, which others' load does not lengthen; the least of
the rounds counts. `ratio` is onnxruntime's time over that of torch.compile; at most 1.2 is promised.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from in_turn import least_cpu_seconds
from torch import Tensor

from coatnet.checkpoint.weights import Weights, export_safetensors
from coatnet.config import to_dict
from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model
from data_pipeline.augment_config import AugmentConfig
from finetune.classifier import open_classifier
from finetune.handover.graphs import export_onnx

TOLERANCE = 1e-4
MOST = 1.2


def main() -> None:
    """Measure, print, and fail above the promised ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--name", default="coatnet_0")
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.name, px=options.px, batches=options.batch, rounds=options.rounds)
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print(line(row))
    if any(row["ratio"] > MOST for row in rows):
        raise SystemExit(f"onnxruntime takes more than {MOST} times as long as compiled torch")


def line(row: dict[str, Any]) -> str:
    """Put a row into words."""
    return (
        f"{row['name']} at {row['px']} px, {row['batch']} images: torch eager {row['eager']:.3f} s, "
        f"compiled {row['compiled']:.3f} s, onnxruntime {row['onnxruntime']:.3f} s of CPU; "
        f"ratio {row['ratio']:.2f}, largest difference of logits {row['largest_logit_difference']:.1g}"
    )


def measure(name: str, *, px: int, batches: list[int], rounds: int) -> list[dict[str, Any]]:
    """Return one row per batch size."""
    config = ModelConfig(name=name, image_size=px)
    with tempfile.TemporaryDirectory() as folder:
        facts = {"augment": to_dict(AugmentConfig(image_size=px))}
        state = dict(build_model(config, seed=0).state_dict())
        native = export_safetensors(Weights(config, state, None, facts), Path(folder) / "native")
        classifier = open_classifier(str(native), device=torch.device("cpu"))
        export_onnx(classifier, native)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            str(native / "model.onnx"), settings, providers=["CPUExecutionProvider"]
        )

        def in_onnxruntime(images: Tensor) -> Tensor:
            return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

        # One graph for each batch size: torch at its best, while the ONNX graph has a free one.
        compiled = torch.compile(classifier.model, dynamic=False)
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            "eager": classifier.model,
            "compiled": compiled,
            "onnxruntime": in_onnxruntime,
        }
        return [compare(ways, config, px=px, batch=batch, rounds=rounds) for batch in batches]


@torch.inference_mode()
def compare(
    ways: dict[str, Callable[[Tensor], Tensor]], config: ModelConfig, *, px: int, batch: int, rounds: int
) -> dict[str, Any]:
    """Return the least CPU seconds of each way (eager, compiled, onnxruntime), and what was measured with."""
    images = torch.randn(batch, 3, px, px, generator=torch.Generator().manual_seed(0))
    answers = {name: way(images) for name, way in ways.items()}
    difference = max(float((answers["eager"] - answer).abs().max()) for answer in answers.values())
    if difference > TOLERANCE:
        raise SystemExit(f"the logits differ by {difference:.2g}, more than {TOLERANCE}")
    best = least_cpu_seconds({name: partial(way, images) for name, way in ways.items()}, rounds=rounds)
    return {
        "name": config.name,
        "px": px,
        "batch": batch,
        **best,
        "ratio": best["onnxruntime"] / best["compiled"],
        "largest_logit_difference": difference,
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "processor": platform.processor() or platform.machine(),
    }


if __name__ == "__main__":
    main()
