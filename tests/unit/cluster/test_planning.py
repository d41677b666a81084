"""The plan: components that add up, rooflines within what others found, and no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.planning.hardware import hardware_names, load_hardware
from cluster.planning.memory import WINDOWS, Layout, largest_micro_batch, predict_memory
from cluster.planning.plan import Plan
from cluster.planning.request import compare_plans, plan_of, plan_run, scaling_plans
from cluster.planning.speed import predict_step
from cluster.planning.tables import plot_scaling, print_comparison, print_plan
from cluster.planning.workload import workload
from cluster.recipe import read_recipe
from coatnet.config import UserError, to_dict
from coatnet.model.config import ModelConfig
from coatnet.training.deepspeed_config import deepspeed_config
from coatnet.training.sections import ZeroConfig

ROOT = Path(__file__).parents[3]
_GIB = 2**30


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(
        "model: {name: coatnet_0}\ndata: {train: [{path: nowhere}]}\nprecision: bf16\ncompile: true\n"
    )
    return path


# Images/s per H100 that an independent model found for compiled training at 224 px, eight GPUs.
@pytest.mark.parametrize(
    ("name", "batch", "low", "high"),
    [
        ("coatnet_4", 128, 516, 671),
        ("coatnet_5", 96, 312, 381),
        ("coatnet_6", 64, 243, 266),
        ("coatnet_7", 64, 153, 166),
    ],
)
def test_the_roofline_agrees_with_an_independent_one(name: str, batch: int, low: int, high: int) -> None:
    works = workload(ModelConfig(name=name), image_size=224)
    layout = Layout(8, 1, batch, compiled=True)
    step = predict_step(works, layout=layout, accumulation=1, hardware=load_hardware("h100"))
    assert low <= batch / (step.seconds - step.operators) <= high, "it knows a device and no host"


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("coatnet_4", 200, 266), ("coatnet_5", 140, 178), ("coatnet_6", 115, 140), ("coatnet_7", 79, 99)],
)
# The independent one knows no fp32 sums of gradients, 4.5 GiB more of CoAtNet-7 at stage 1: 79, not 80.
def test_the_largest_micro_batch_on_80_gb_agrees_with_an_independent_one(
    name: str, low: int, high: int
) -> None:
    works = workload(ModelConfig(name=name), image_size=224)
    layout = Layout(8, 1, 1, compiled=True)
    found = largest_micro_batch(works, layout=layout, hardware=load_hardware("h100"), image_size=224)
    assert low <= found <= high


def test_zero_stages_shard_the_optimizer_then_the_gradients_then_the_weights() -> None:
    works = workload(ModelConfig(name="coatnet_7"), image_size=224)
    hardware = load_hardware("h100")
    found = [
        predict_memory(works, layout=Layout(8, stage, 8), hardware=hardware, image_size=224)
        for stage in range(4)
    ]
    parameters = 2_441_973_112
    assert [round(memory.weights / parameters, 3) for memory in found] == [2, 2, 2, 0.25]
    assert [round(memory.gradients / parameters, 2) for memory in found] == [4, 4, 0.75, 0.75]
    assert [round(memory.optimizer / parameters, 3) for memory in found] == [12, 1.5, 1.5, 1.5]
    # ZeRO-1: bf16 weights and gradients are the 9.1 GiB that bound CoAtNet-7
    assert (found[1].weights + 2 * parameters) / _GIB == pytest.approx(9.1, abs=0.05)
    assert found[0].total > found[1].total > found[2].total > found[3].total


def test_stage_three_works_on_the_part_of_the_model_that_the_plan_counts_on() -> None:
    parameters = 8_000_000
    told = deepspeed_config(ZeroConfig(stage=3), clip=1.0, precision="fp32", parameters=parameters)
    window = parameters // WINDOWS
    asked = told["zero_optimization"]
    assert asked["reduce_bucket_size"] == asked["stage3_max_live_parameters"] == window
    assert asked["sub_group_size"] == window


def test_memory_components_add_up_and_checkpointing_saves_most_activations() -> None:
    works = workload(ModelConfig(), image_size=224)
    kept, checkpointed = (
        predict_memory(
            works,
            layout=Layout(8, 1, 64, checkpointing=stages),
            hardware=load_hardware("a100"),
            image_size=224,
        )
        for stages in ((), ("S1", "S2", "S3", "S4"))
    )
    assert kept.total == pytest.approx(sum(kept.components().values()))
    assert checkpointed.components()["activations"] < 0.5 * kept.components()["activations"]


def test_stage_three_costs_a_core_time_for_every_layer_and_micro_batch() -> None:
    works, hardware = workload(ModelConfig(), image_size=224), load_hardware("cpu2")
    layers = sum(work.parameters > 0 for work in works)
    one, three = (
        predict_step(works, layout=Layout(2, stage, 8), accumulation=2, hardware=hardware) for stage in (1, 3)
    )
    assert one.sharding == 0.0
    assert three.sharding == pytest.approx(2 * layers * hardware.sharding_seconds)
    assert three.seconds - three.operators == pytest.approx(one.seconds - one.operators + three.sharding)


@pytest.mark.parametrize("name", hardware_names())
def test_every_profile_gives_a_plan(name: str, config: Path) -> None:
    plan, choices = plan_of("pretrain", config, [f"hardware={name}", "train.micro_batch=1"])
    assert 0 < plan.mfu < 1 and plan.images_per_second > 0 and len(choices) == 8
    assert choices[0].largest_micro_batch < choices[1].largest_micro_batch < choices[7].largest_micro_batch


def test_the_rows_of_stages_that_cannot_overlap_are_those_of_no_overlap(config: Path) -> None:
    given = ["zero.stage=2", "nodes=2"]
    (_, apart), (_, beside) = (
        plan_of("pretrain", config, [*given, f"zero.overlap_communication={word}"])
        for word in ("false", "true")
    )
    same = [(one.zero_stage, one.memory == other.memory) for one, other in zip(apart, beside, strict=True)]
    assert dict(same[:6]) == {0: True, 1: True, 2: False}, "with bf16 weights stage 1 cannot"


def test_days_follow_from_the_epochs_length(config: Path) -> None:
    plan, _ = plan_of("pretrain", config, ["nodes=8", "epoch_samples=1281167", "train.duration=300 epochs"])
    assert plan.total_samples == pytest.approx(300 * 1_281_167, rel=1e-4)
    assert plan.run is not None and plan.gpu_hours == pytest.approx(plan.run.seconds / 3600 * 64)
    assert plan.run.steps == pytest.approx(plan.total_samples / plan.images_per_second)
    assert plan.read_bytes == pytest.approx(plan.total_samples * 110e3), "nobody knows the corpus's images"
    assert plan_of("pretrain", config, ["nodes=8"])[0].days is None


def test_a_run_that_changes_its_batch_takes_the_steps_and_the_time_of_every_stretch(config: Path) -> None:
    def planned(*words: str, batch: int = 1000, micro_batch: str = "25") -> Plan:
        told = [f"train.global_batch={batch}", f"train.micro_batch={micro_batch}", "epoch_samples=1000000"]
        return plan_of("pretrain", config, [*told, "train.duration=1 epochs", "hardware=h100", *words])[0]

    changes = (
        "train.batch_changes=[{at: 300 steps, global_batch: 2000}, {at: 0.8 epochs, global_batch: 4000}]"
    )
    plan = planned(changes)
    assert [(one.global_batch, one.steps) for one in plan.stretches] == [(1000, 300), (2000, 250), (4000, 50)]
    alone = {batch: planned(batch=batch).step_seconds for batch in (1000, 2000, 4000)}
    assert [one.step_seconds for one in plan.stretches] == list(alone.values())
    assert plan.run is not None and plan.step_seconds == alone[1000] < alone[2000]
    assert plan.run.steps == pytest.approx(300 * alone[1000] + 250 * alone[2000] + 50 * alone[4000])
    assert planned().stretches == []
    assert planned(changes, micro_batch="null").memory.total > planned(micro_batch="null").memory.total
    with pytest.raises(UserError, match=r"train\.global_batch is 4100; allowed with 8 ranks"):
        planned("train.batch_changes=[{at: 300 steps, global_batch: 4100}]")


def test_checkpoints_are_kept_as_the_config_says_and_images_read_by_the_corpuss_size(config: Path) -> None:
    shards = config.parent / "shards"
    shards.mkdir()
    manifest = {"samples": 1000, "classes": ["a", "b"], "shards": [{"name": "x.tar", "bytes": 30_000_000}]}
    (shards / "manifest.json").write_text(json.dumps(manifest))
    words = [f"data.train=[{{path: {shards}}}]", "train.global_batch=512", "train.duration=100 steps"]
    words += ["save.last=2", "save.best=top1", "save.keep_every_steps=25", f"data.evaluate={shards}"]
    plan, _ = plan_of("pretrain", config, words)
    assert plan.checkpoints_kept == 2 + 1 + 4
    assert plan.read_bytes == pytest.approx(100 * 512 * 30_000)
    assert plan.loader_cores_needed_per_node == pytest.approx(plan.images_per_second * 30 / 110 / 976)
    assert plan.run is not None and plan.run.evaluation > 0


def test_a_step_waits_for_images_where_a_nodes_cores_are_too_few(config: Path, tmp_path: Path) -> None:
    given = (ROOT / "cluster" / "hardware" / "h100.yaml").read_text()
    few = tmp_path / "few.yaml"
    few.write_text(given.replace("cores_per_gpu: 12", "cores_per_gpu: 1"))
    waiting, _ = plan_of("pretrain", config, [f"hardware={few}"])
    served, _ = plan_of("pretrain", config, [])
    assert served.loading == 0.0 < waiting.loading
    assert waiting.images_per_second == pytest.approx(8 * 976)
    both, _ = plan_of("pretrain", config, [f"hardware={few}", "nodes=2"])
    assert both.images_per_second == pytest.approx(16 * 976)


@pytest.mark.parametrize(
    ("hardware", "compiled", "fused", "rows"),
    [
        ("h100", "true", True, False),
        ("h100", "false", False, False),
        ("cpu2", "true", False, False),
        ("cpu2", "false", False, True),
    ],
)
def test_a_plan_knows_which_kernels_a_device_and_a_config_have(
    hardware: str, compiled: str, fused: bool, rows: bool, config: Path
) -> None:
    words = [f"hardware={hardware}", f"compile={compiled}", "train.fused_mbconv=true", "precision=fp32"]
    layout = plan_of("pretrain", config, words)[0].layout
    assert (layout.fused, layout.rows) == (fused, rows)
    assert layout.kernels == ("compiled" if layout.compiled else "rows" if rows else "plain")


def test_a_comparison_takes_every_combination_that_divides_and_names_the_others(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["nodes=1,3,8", "zero.stage=1,2", "train.micro_batch=64"]
    plans, refused = compare_plans("pretrain", config, words)
    assert [(plan.nodes, plan.layout.zero_stage) for plan in plans] == [(1, 1), (1, 2), (8, 1), (8, 2)]
    assert list(refused) == ["nodes=3 zero.stage=1", "nodes=3 zero.stage=2"]
    print_comparison(plans, refused=refused)
    told = "left out: 2, as nodes=3 zero.stage=1: train.global_batch is 4096; allowed with 24"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(("hardware", "found"), [("h100", 128), ("h200", 256), ("cpu2", 64)])
def test_a_run_that_tunes_is_planned_with_what_it_will_find(hardware: str, found: int, config: Path) -> None:
    words = [f"hardware={hardware}", "gpus_per_node=8", "model.name=coatnet_4", "tune.micro_batch=auto"]
    plan, _ = plan_of("pretrain", config, [*words, "train.micro_batch=null", "norm.group_images=16"])
    assert (plan.layout.micro_batch, plan.layout.groups) == (found, found // 16)
    whole, _ = plan_of("pretrain", config, [*words, "train.micro_batch=null", "norm.group_images=512"])
    assert whole.layout.micro_batch == 512, "not even one group fits"


def test_efficiency_falls_with_the_number_of_gpus_at_one_global_batch(config: Path) -> None:
    plans, _ = scaling_plans("pretrain", config, [])
    rates = [plan.images_per_second / plan.world_size for plan in plans]
    assert plans[0].world_size == 1 and plans[-1].world_size == 1024
    assert rates[-1] < rates[3] <= rates[0]


@pytest.mark.parametrize(
    ("device", "profile"),
    [
        ("cpu", "cpu2"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GeForce RTX 4090", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA A100-SXM4-40GB", None),
    ],
)
def test_a_run_that_begins_is_planned_for_the_device_that_it_has(
    device: str, profile: str | None, config: Path
) -> None:
    resolved = to_dict(read_recipe("pretrain", config, overrides=["train.micro_batch=1"]))
    plan = plan_run(resolved, world_size=2, ranks_per_node=2, device=device)
    assert (plan or {}).get("hardware") == profile
    if plan is not None:
        assert 0 < plan["memory_bytes"] <= plan["memory_total_bytes"] and plan["step_seconds"] > 0


def test_a_run_is_planned_for_the_nodes_that_it_has(config: Path) -> None:
    resolved = to_dict(read_recipe("pretrain", config, overrides=["train.micro_batch=1"]))

    def planned(ranks_per_node: int) -> dict[str, Any] | None:
        return plan_run(
            resolved, world_size=32, ranks_per_node=ranks_per_node, device="NVIDIA H100 80GB HBM3"
        )

    narrow, wide = planned(4), planned(8)
    assert narrow is not None and wide is not None and (narrow["nodes"], wide["nodes"]) == (8, 4)
    assert narrow["communication"]["exposed"] > wide["communication"]["exposed"]
    assert planned(5) is None, "its nodes are unequal"


def test_a_profiles_name_may_be_written_as_its_maker_does(config: Path) -> None:
    plan, _ = plan_of("pretrain", config, ["hardware=H100"])
    assert plan.hardware == "h100"


def test_a_gpu_measures_neither_its_process_nor_its_fragments(config: Path) -> None:
    gpu, _ = plan_of("pretrain", config, ["hardware=h100"])
    assert gpu.measurable_bytes == pytest.approx(gpu.memory.total - gpu.memory.process - gpu.memory.reserve)
    cpu, _ = plan_of("pretrain", config, ["hardware=cpu2", "train.micro_batch=1"])
    assert cpu.measurable_bytes == cpu.memory.total


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nodes=0"], "nodes is '0'"),
        (["hardware=h1000"], "allowed: a100"),
        (["nodes=3"], "with 24 ranks: multiples of 24"),
        (["train.mikro_batch=1"], "did you mean train.micro_batch"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str, config: Path) -> None:
    with pytest.raises(UserError, match=message):
        plan_of("pretrain", config, words)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("copy_bytes_per_second: 0", "copy_bytes_per_second is 0.0; allowed: above 0"),
        ("memory_bytes: -1", r"memory_bytes is -1\.0"),
        ("matmul_flops: {bf16: 1.0}", "allowed: bf16 and fp32, above 0"),
    ],
)
def test_a_hardware_file_that_no_machine_can_be_is_refused(
    line: str, message: str, config: Path, tmp_path: Path
) -> None:
    good = {"name": "x", "memory_bytes": "1.0e9", "matmul_flops": "{bf16: 1.0, fp32: 1.0}"}
    good |= {"copy_bytes_per_second": "1.0", line.partition(":")[0]: line.partition(":")[2]}
    path = tmp_path / "mine.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in good.items()))
    with pytest.raises(UserError, match=message):
        plan_of("pretrain", config, [f"hardware={path}"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"), [("x.txt", r"ends in \.png"), ("no/x.png", "No such file or directory")]
)
def test_a_picture_that_cannot_be_is_refused(name: str, message: str, config: Path, tmp_path: Path) -> None:
    plans, _ = scaling_plans("pretrain", config, [])
    with pytest.raises(UserError, match=message):
        plot_scaling(plans[:2], tmp_path / name, name="x")


def test_the_table_shows_every_component_the_sum_and_the_largest_micro_batch(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    plan, choices = plan_of("pretrain", config, ["nodes=2"])
    print_plan(plan, choices, name="x", remedies=[], quicker={})
    rows = {line[:29].strip(): line[29:].split() for line in capsys.readouterr().out.splitlines()}
    used = {name: size for name, size in plan.memory.components().items() if size}
    assert {"weights", "activations", "reserve"} <= used.keys() <= rows.keys()
    assert "EMA" not in rows  # what no stage needs is left out
    assert rows["sum"][0] == f"{plan.memory.total / _GIB:.2f}" and len(rows["sum"]) == 5
    assert rows["largest micro-batch"] == [
        str(choice.largest_micro_batch) for choice in choices if not choice.checkpointing
    ]


def test_a_narrow_terminal_breaks_lines_and_cuts_no_number(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    plan, choices = plan_of("pretrain", config, ["nodes=2", "epoch_samples=1281167000000"])
    print_plan(plan, choices, name="x", remedies=[], quicker={})
    print_comparison([plan], refused={})
    printed = capsys.readouterr().out
    assert "…" not in printed and f"{plan.gpu_hours:,.0f}" in printed


@pytest.mark.slow
def test_the_command_prints_pure_json_without_torch(config: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['deepspeed'] = None\n"
        f"sys.argv = ['coatnet', 'plan', {str(config)!r}, 'nodes=2', '--json']\n"
        "from coatnet.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["world_size"] == 16 and len(found["choices"]) == 8
