"""The family on H100s at 8, 64, 256 and 1,024 GPUs: the table of docs/plan.md.

    .venv/bin/python benchmarks/family_plan.py

In brackets with `zero.overlap_communication`.
"""

from __future__ import annotations

from cluster.planning.estimate import make_plan
from cluster.planning.hardware import load_hardware
from cluster.planning.memory import Layout
from cluster.planning.plan import Plan
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
        apart, beside = (
            [
                make_plan(
                    recipe(number, gpus=nodes * hardware.gpus_per_node, overlap=overlap),
                    hardware=hardware,
                    nodes=nodes,
                )
                for nodes in NODES
            ]
            for overlap in (False, True)
        )
        cells = [cell(*plans, alone=apart[0]) for plans in zip(apart, beside, strict=True)]
        at_64 = apart[1]
        assert at_64.days is not None
        facts = [
            f"{at_64.memory.total / 2**30:.0f}",
            f"{at_64.days:.1f}",
            f"{at_64.checkpoint_bytes / 2**30:.1f}",
        ]
        print(f"| {number} | {' | '.join([*cells, *facts])} |")


def cell(apart: Plan, beside: Plan, *, alone: Plan) -> str:
    """Return images/s, MFU, and the efficiency per GPU against one node: apart, and beside."""
    first = alone.images_per_second / alone.world_size
    shares = [plan.images_per_second / plan.world_size / first for plan in (apart, beside)]
    return f"{apart.images_per_second:,.0f}, {apart.mfu:.0%}, {shares[0]:.0%} ({shares[1]:.0%})"


def recipe(number: int, *, gpus: int, overlap: bool) -> RecipeView:
    """Return a compiled ZeRO-1 run under autocast of one model at 224 px, in micro-batches of up to 64."""
    layout = Layout(
        world_size=1, zero_stage=1, micro_batch=1, precision="autocast", compiled=True, overlap=overlap
    )
    return RecipeView(
        model=ModelConfig(name=f"coatnet_{number}", num_classes=21841),
        image_size=224,
        global_batch=GLOBAL_BATCH,
        micro_batch=min(64, GLOBAL_BATCH // gpus),
        tunes=False,
        layout=layout,
        total_samples=SAMPLES,
        shards=None,
        group_images=None,
        mixed=False,
        is_pretraining=True,
        sample_bytes=None,
        evaluation_samples=0,
        evaluate_every=None,
        kept=1,
        frozen=(),
        batch_changes=(),
    )


if __name__ == "__main__":
    main()
