"""How often a training step waits for its GPU: at each wait the GPU runs out of work for a moment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from on_host_gpu import NEEDS_HOST_GPU, ROOT, on_host_gpu

from tiny_runs import arguments

pytestmark = [pytest.mark.slow, *NEEDS_HOST_GPU]

EVERYTHING = ["augment={image_size: 32, randaugment_n: 2, mixup: 0.2, cutmix: 0.3, erasing: 1}"]
SHORT = ["train.duration=3 steps", "train.global_batch=8", "train.micro_batch=4", "launch.ranks=1"]
FINETUNE = ["", "model={depths: [1, 1, 1, 1, 1], widths: [8, 16, 16, 32, 32]}", "precision=bf16"]


def waits(stage: str, words: list[str]) -> list[dict[str, int]]:
    done = on_host_gpu(ROOT / "tests/integration/programs/waits.py", stage, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_step_of_pretraining_waits_when_its_gradient_is_there_and_not_before(place: Path) -> None:
    words = [*SHORT, *EVERYTHING, "data.evaluate=null", "precision=autocast", "zero.stage=1"]
    *_, steady = waits("pretrain", arguments(place, "waits", *words))
    assert steady.pop("DeepSpeed") > 0, "for the norm"
    # From the update on the GPU has nothing left to do.
    update, end = "pretrain/engine/engine.py: _update", "pretrain/trainer.py: step"
    assert steady == {update: 1, end: 2, "coatnet/runtime/ranks.py: table": 1}


def test_a_step_of_fine_tuning_waits_when_its_gradient_is_there_and_not_before(place: Path) -> None:
    own = [f"data.train=[{{path: {place / 'images'}}}]", f"run.directory={place / 'waits finetune'}"]
    *_, steady = waits("finetune", [*FINETUNE, *own, *SHORT, *EVERYTHING])
    update, end = "coatnet/training/optimizer.py: step", "finetune/run.py: take"
    assert steady == {update: 1, end: 2, "coatnet/runtime/ranks.py: table": 1}
