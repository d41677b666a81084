"""What fine-tuning will take: by its checkpoint, its images, its resolutions and what does not learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.planning.request import plan_of
from cluster.planning.tables import print_plan
from coatnet.config import UserError
from coatnet.model.config import ModelConfig
from coatnet.model.cost import model_cost


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """An exported model with holes for tensors, and an image folder of two classes."""
    (tmp_path / "exported").mkdir()
    model = {"name": "coatnet_1", "num_classes": 21841, "image_size": 224}
    (tmp_path / "exported" / "config.json").write_text(json.dumps({"model": model, "classes": None}))
    size = 4 * 600_000
    tensors = {
        f"tensor {number}": {
            "dtype": "F32",
            "shape": [600_000],
            "data_offsets": [number * size, (number + 1) * size],
        }
        for number in range(100)
    }
    header = json.dumps(tensors).encode()
    with (tmp_path / "exported" / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 100 * size)  # a hole: nothing of it is on the disk
    for name in ("cats/1.jpg", "cats/2.jpg", "dogs/deep/3.jpg", "dogs/.hidden"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"x" * 1000)
    (tmp_path / "photos" / "dogs" / "4.jpg").symlink_to("nowhere")
    return tmp_path


def test_fine_tuning_is_planned_from_what_its_checkpoint_says(exported: Path) -> None:
    recipe = exported / "config.yaml"
    recipe.write_text(
        "augment: {image_size: 384}\ntrain: {global_batch: 64, micro_batch: 8, duration: 100 epochs}\n"
    )
    words = [f"init={exported / 'exported'}", f"data.train=[{{path: {exported / 'photos'}}}]", "nodes=1"]
    plan, _ = plan_of(None, recipe, words)
    head = (21841 - 2) * (768 + 1)
    whole = model_cost(ModelConfig("coatnet_1", num_classes=21841), 384)
    assert plan.parameters == whole.parameters - head
    assert plan.layout.ema and plan.layout.zero_stage == 0
    assert plan.total_samples == pytest.approx(300, abs=64), "a hundred times three images, in whole steps"
    assert plan.read_bytes == 1000 * plan.total_samples
    with pytest.raises(UserError, match=r"model\.name is coatnet_3, but .* coatnet_1"):
        plan_of(None, recipe, [*words, "model={name: coatnet_3}"])
    with pytest.raises(UserError, match="neither a run directory"):
        plan_of("finetune", recipe, ["init=nowhere"])


def test_the_largest_resolution_of_a_progressive_run_decides(exported: Path) -> None:
    recipe = exported / "config.yaml"
    recipe.write_text("train: {global_batch: 64, phases: [{image_size: 224}, {image_size: 512}]}\n")
    words = [f"init={exported / 'exported'}", "nodes=1"]
    large, _ = plan_of(None, recipe, words)
    small, _ = plan_of(None, recipe, [*words, "train.phases=[]", "augment.image_size=224"])
    assert large.macs > 4 * small.macs


def test_the_table_of_a_fine_tuning_run_has_what_fine_tuning_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model: {name: coatnet_0}\ndata: {train: [{path: nowhere}]}\n")
    plan, choices = plan_of("finetune", config, ["nodes=2"])
    assert [(one.zero_stage, one.checkpointing) for one in choices] == [(stage, False) for stage in range(3)]
    assert choices[0].memory == plan.memory, "torch's own data parallelism in both"
    print_plan(plan, choices, name="x", remedies=[], quicker={})
    assert "checkpointed" not in capsys.readouterr().out


def test_what_is_frozen_costs_its_weights_and_a_forward_pass(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model: {name: coatnet_0}\ndata: {train: [{path: nowhere}]}\n")
    whole, half, probe = (
        plan_of("finetune", config, ["hardware=cpu2", f"freeze=[{parts}]"])[0]
        for parts in ("", "S0,S1,S2", "S0,S1,S2,S3,S4,dense")
    )
    assert whole.learning_parameters == whole.parameters == probe.parameters > probe.learning_parameters
    assert whole.memory.weights == half.memory.weights == probe.memory.weights
    assert whole.memory.optimizer > half.memory.optimizer > 20 * probe.memory.optimizer
    frozen = half.parameters - half.learning_parameters
    assert half.checkpoint_bytes == 4 * (4 * half.learning_parameters + frozen), "average and two moments"
    assert whole.checkpoint_bytes > half.checkpoint_bytes > probe.checkpoint_bytes > whole.memory.weights
    assert probe.step.backward < 0.01 * whole.step.backward
    assert sum(probe.step.stages.values()) == pytest.approx(sum(whole.step.stages.values()) / 3, rel=0.01)
    assert whole.mfu == pytest.approx(half.mfu, rel=0.5), "what is not done is not counted"
    alone = plan_of("finetune", config, ["hardware=cpu2", "freeze=[S4]"])[0]
    assert half.step.backward < alone.step.backward < whole.step.backward, "what learns before it needs it"
