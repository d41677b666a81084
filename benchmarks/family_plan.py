"""The family on H100s at 8, 64, 256 and 1,024 GPUs: the table of docs/plan.md.

.venv/bin/python benchmarks/family_plan.py
"""

from __future__ import annotations

from cluster.planning.estimate import make_plan
from cluster.planning.hardware import load_hardware
from cluster.planning.recipe_view import RecipeView
from coatnet.model.config import ModelConfig

NODES = (1, 8, 32, 128)
GLOBAL_BATCH = 4096
SAMPLES = 14_197_122 * 90  # ImageNet-21K, 90 epochs


def main() -> None:
    """Print one row per model."""
    hardware = load_hardware("h100")
    heads = [f"{nodes * hardware.gpus_per_node} GPUs" for nodes in NODES]
    print(f"| model | {' | '.join(heads)} | GiB/GPU at 64 | days at 64 | checkpoint, GiB |")
    print("|" + "---|" * (len(heads) + 4))
    for number in range(8):
        plans = [
            make_plan(recipe(number, gpus=nodes * hardware.gpus_per_node), hardware=hardware, nodes=nodes)
            for nodes in NODES
        ]
        first = plans[0].images_per_second / plans[0].world_size
        cells = [
            f"{plan.images_per_second:,.0f}, {plan.mfu:.0%}, "
            f"{plan.images_per_second / plan.world_size / first:.0%}"
            for plan in plans
        ]
        at_64 = plans[1]
        assert at_64.days is not None
        facts = [
            f"{at_64.memory.total / 2**30:.0f}",
            f"{at_64.days:.1f}",
            f"{at_64.checkpoint_bytes / 2**30:.1f}",
        ]
        print(f"| {number} | {' | '.join([*cells, *facts])} |")


def recipe(number: int, *, gpus: int) -> RecipeView:
    """Return a compiled ZeRO-1 run in bf16 of one model at 224 px, in micro-batches of up to 64."""
    return RecipeView(
        model=ModelConfig(name=f"coatnet_{number}", num_classes=21841),
        image_size=224,
        global_batch=GLOBAL_BATCH,
        micro_batch=min(64, GLOBAL_BATCH // gpus),
        precision="bf16",
        zero_stage=1,
        overlap=False,
        bucket_elements=200_000_000,
        checkpointing=(),
        ema=False,
        compiled=True,
        epoch_samples=14_197_122,
        total_samples=SAMPLES,
        shards=None,
    )


if __name__ == "__main__":
    main()
