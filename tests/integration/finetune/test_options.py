"""What practitioners expect, each in a short real run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from coatnet.checkpoint.weights import load_weights
from coatnet.report.record import read_run
from coatnet.report.write import comparison

Arguments = Command = Callable[..., list[str]]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
def test_a_linear_probe_at_another_resolution_changes_the_last_layer_and_nothing_else(
    trained: Path, arguments: Arguments, on_ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    words = arguments(
        tmp_path / "probe",
        init=str(trained),
        freeze="[S0,S1,S2,S3,S4,dense]",
        augment__image_size="64",
        train__duration="3 steps",
        head__keep_rows="matching",
        precision="bf16",
        loss__class_weights="balanced",
    )
    on_ranks("finetune_run", world_size=1, arguments=words)
    before, after = load_weights(trained).tensors, load_weights(tmp_path / "probe").tensors
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.logits.weight", "head.logits.bias"}
    assert json.loads((tmp_path / "probe" / "summary.json").read_text())["evaluation"]["image_size"] == 64
    compared = comparison(read_run(tmp_path / "probe"))
    assert {"memory_bytes", "step_seconds", "images_per_second"} <= set(compared), "planned by its checkpoint"


@pytest.mark.slow
def test_deepspeed_does_not_switch_bf16_off_on_a_gpu(
    arguments: Arguments, on_ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    def train(name: str, scenario: str, **changes: str) -> dict[str, torch.Tensor]:
        words = arguments(tmp_path / name, zero="1", train__duration="3 steps", **changes)
        on_ranks(scenario, world_size=1, arguments=words)
        return load_weights(tmp_path / name).tensors

    known = train("known", "finetune_run_as_on_a_gpu", precision="bf16")
    for name, same in train("unknown", "finetune_run", precision="bf16").items():
        assert torch.equal(known[name], same), name
    in_fp32 = train("fp32", "finetune_run_as_on_a_gpu")
    assert any(not torch.equal(known[name], other) for name, other in in_fp32.items())


@pytest.mark.campaign
def test_masked_tails_make_whole_epochs_and_the_same_weights_on_one_rank_and_two(
    arguments: Arguments, on_ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    tensors = []
    for world_size in (1, 2):
        words = arguments(
            tmp_path / f"masked-{world_size}",
            data__tail="mask",
            train__global_batch="48",  # 48 and 24 of 72 images
            train__duration="2 epochs",
            evaluate__every="1 epoch",
        )
        on_ranks("finetune_run", world_size=world_size, arguments=words)
        summary = json.loads((tmp_path / f"masked-{world_size}" / "summary.json").read_text())
        assert summary["samples"] == summary["evaluation"]["at"] == 144 and summary["steps"] == 4
        tensors.append(load_weights(tmp_path / f"masked-{world_size}").tensors)
    for name in set(tensors[0]) - {"stem.conv1.bias"}:  # batch norm cancels it: Adam scales up rounding noise
        torch.testing.assert_close(tensors[1][name], tensors[0][name], atol=1e-3, rtol=0.0)


@pytest.mark.slow
def test_seeds_stop_early_and_are_summarised(
    trained: Path, command: Command, coatnet: Run, tmp_path: Path
) -> None:
    words = command(
        tmp_path / "seeds",
        init=str(trained),
        seeds="[0,1]",
        train__patience="1",
        train__duration="40 steps",
        train__phases="[{image_size: 32, share: 1}, {image_size: 64, share: 9}]",
        optimizer__layer_decay="0.5",
        optimizer__learning_rate="1e-9",
        evaluate__every="2 steps",
        head__keep_rows="matching",
    )
    whole = tmp_path / "seeds"
    coatnet(*words, "seeds=[]", "seed=0", f"run.directory={whole}/seed-0")  # as a job of its own
    said = coatnet(*words).stderr
    assert f"{whole}/seed-0: is done already" in said
    assert "under a new head that knows 3 classes already" in said
    assert ", since evaluations brought nothing better" in said and "seeds: top1" in said
    summary = json.loads((tmp_path / "seeds" / "summary.json").read_text())
    assert summary["seeds"] == [0, 1] and len(summary["runs"]) == 2
    one = json.loads((tmp_path / "seeds" / "seed-0" / "summary.json").read_text())
    assert one["steps"] < 40, "nothing improves at this rate, so patience ends the run"
    assert one["evaluation"]["image_size"] == 64, "it waits for the last resolution"
    kept = tmp_path / "seeds" / "seed-0" / "checkpoints" / f"step-{one['best_step']:08d}"
    judged = load_weights(kept).facts
    assert judged["augment"]["image_size"] == judged["evaluation"]["image_size"]
