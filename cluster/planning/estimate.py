"""A plan: a recipe on so many devices of one kind, put together from memory, speed and communication."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cluster.planning.communication import predict_communication
from cluster.planning.hardware import Hardware
from cluster.planning.memory import Layout, largest_micro_batch, predict_memory
from cluster.planning.plan import MemoryChoice, Plan, Stretch, Timing
from cluster.planning.recipe_view import RecipeView
from cluster.planning.speed import predict_step
from cluster.planning.whole_run import RunTime, decode_seconds, predict_run, sample_bytes
from cluster.planning.workload import Work, workload
from coatnet.checkpoint.inspection import check_manifest_size
from coatnet.config.batches import MOST_ON_CORES, cut
from coatnet.config.overlap import can_overlap

ALL_STAGES = ("S1", "S2", "S3", "S4")  # whose activations can be checkpointed
MOST_GPUS = 1024  # where nobody says how many
_FP32 = 4
_TRAINED_STATE = 3  # a checkpoint holds weights and AdamW's two moments in fp32


def make_plan(recipe: RecipeView, *, hardware: Hardware, nodes: int) -> Plan:
    """Predict one layout, on all devices of so many nodes.

    Raises:
        UserError: a batch cannot be cut for so many ranks, or their checkpoints could not be read.
    """
    world = nodes * hardware.gpus_per_node
    works = workload(recipe.model, image_size=recipe.image_size, frozen=recipe.frozen)
    recipe, layouts = _settled(recipe, works, world_size=world, hardware=hardware)
    timings = {
        batch: _timing(recipe, works, global_batch=batch, layout=layout, hardware=hardware, nodes=nodes)
        for batch, layout in layouts.items()
    }
    layout, timing = layouts[recipe.global_batch], timings[recipe.global_batch]
    largest = max(layouts.values(), key=lambda one: one.micro_batch)
    decode = decode_seconds(recipe, hardware=hardware)
    checkpoint = _checkpoint_bytes(recipe, works)
    save_seconds = checkpoint / nodes / hardware.storage_bytes_per_second
    return Plan(
        **vars(timing),
        hardware=hardware.name,
        nodes=nodes,
        world_size=world,
        layout=layout,
        global_batch=recipe.global_batch,
        parameters=sum(work.parameters for work in works),
        learning_parameters=sum(work.parameters for work in works if work.learns),
        macs=sum(work.macs for work in works),
        memory=predict_memory(works, layout=largest, hardware=hardware, image_size=recipe.image_size),
        memory_limit_bytes=hardware.rank_memory_bytes,
        in_process=hardware.shares_memory,
        mfu=timing.step.flops / timing.step_seconds / hardware.peak_flops(layout.precision),
        loader_cores_needed_per_node=recipe.global_batch / timing.step_seconds / nodes * decode,
        loader_cores_per_node=hardware.cores_per_gpu * hardware.gpus_per_node,
        checkpoint_bytes=checkpoint,
        checkpoint_seconds=save_seconds,
        checkpoints_kept=recipe.kept,
        read_bytes=recipe.total_samples * sample_bytes(recipe) if recipe.total_samples else None,
        total_samples=recipe.total_samples,
        run=_run(recipe, timings, layout=layout, hardware=hardware, save_seconds=save_seconds),
        shards_per_rank=recipe.shards / world if recipe.shards else None,
        stretches=[
            Stretch(batch, steps, timings[batch].step_seconds)
            for batch, steps in (recipe.stretches if recipe.batch_changes else ())
        ],
    )


def memory_choices(recipe: RecipeView, *, plan: Plan, hardware: Hardware) -> list[MemoryChoice]:
    """Return the memory at every ZeRO stage that the command has, with all activations kept.

    Where it can checkpoint them, with all of them checkpointed besides.
    """
    works = workload(recipe.model, image_size=recipe.image_size, frozen=recipe.frozen)
    choices = []
    for stage in range(recipe.highest_stage + 1):
        for checkpointing in (False, True) if recipe.is_pretraining else (False,):
            given = recipe.layout
            layout = replace(
                plan.layout,
                zero_stage=stage,
                checkpointing=ALL_STAGES if checkpointing else (),
                overlap=given.overlap and can_overlap(zero_stage=stage, precision=given.precision),
                is_ddp=stage == 0 and not recipe.is_pretraining,
            )
            memory = predict_memory(works, layout=layout, hardware=hardware, image_size=recipe.image_size)
            largest = largest_micro_batch(
                works, layout=layout, hardware=hardware, image_size=recipe.image_size
            )
            choices.append(MemoryChoice(stage, checkpointing, memory, largest))
    return choices


def _layouts(recipe: RecipeView, *, world_size: int, on_cores: bool) -> dict[int, Layout]:
    """Return how each global batch of the run is spread.

    Raises:
        UserError: one cannot be cut for so many ranks, or their checkpoints could not be read.
    """
    given = recipe.layout
    check_manifest_size(recipe.model, ranks=world_size, stage=given.zero_stage, averaged=given.ema)
    batches = [recipe.global_batch, *(batch for _, batch in recipe.batch_changes)]
    micro_batches, group = cut(
        batches,
        world_size=world_size,
        micro_batch=recipe.micro_batch,
        group_images=recipe.group_images,
        mixed=recipe.mixed,
        evenly=recipe.is_pretraining,
    )
    return {
        batch: replace(
            given,
            world_size=world_size,
            micro_batch=micro_batch,
            fused=given.compiled and given.fused and not on_cores,
            rows=on_cores and not given.compiled,
            groups=max(1, micro_batch // group),
            is_ddp=recipe.is_ddp,
        )
        for batch, micro_batch in zip(batches, micro_batches, strict=True)
    }


def _settled(
    recipe: RecipeView, works: Sequence[Work], *, world_size: int, hardware: Hardware
) -> tuple[RecipeView, dict[int, Layout]]:
    """Return each global batch's layout, and the recipe with the micro-batch that its run finds."""
    layouts = _layouts(recipe, world_size=world_size, on_cores=hardware.shares_memory)
    if not recipe.tunes:
        return recipe, layouts
    recipe = _tuned(recipe, works, layout=layouts[recipe.global_batch], hardware=hardware)
    return recipe, _layouts(recipe, world_size=world_size, on_cores=hardware.shares_memory)


def _tuned(recipe: RecipeView, works: Sequence[Work], *, layout: Layout, hardware: Hardware) -> RecipeView:
    """Return the recipe with the micro-batch that the run finds: a divisor of a rank's share, in groups."""
    share, group = recipe.global_batch // layout.world_size, layout.micro_batch // layout.groups
    fits = largest_micro_batch(works, layout=layout, hardware=hardware, image_size=recipe.image_size)
    most = max(MOST_ON_CORES, group) if hardware.shares_memory else fits
    sizes = (size for size in range(group, share + 1, group) if share % size == 0 and size <= most)
    return replace(recipe, micro_batch=max(sizes, default=group), group_images=group)


def _timing(
    recipe: RecipeView,
    works: Sequence[Work],
    *,
    global_batch: int,
    layout: Layout,
    hardware: Hardware,
    nodes: int,
) -> Timing:
    """Return one step's time; a rest of fine-tuning's share counts as a whole micro-batch."""
    accumulation = math.ceil(global_batch / layout.world_size / layout.micro_batch)
    step = predict_step(works, layout=layout, accumulation=accumulation, hardware=hardware)
    communication = predict_communication(
        parameters=sum(work.parameters for work in works if work.learns),
        norms=sum(work.grouped for work in works),
        layout=layout,
        accumulation=accumulation,
        hardware=hardware,
        backward_seconds=step.backward,
    )
    loading = _loading(
        global_batch / nodes * decode_seconds(recipe, hardware=hardware),
        step.seconds + communication.exposed,
        hardware=hardware,
        ranks=layout.world_size // nodes,
    )
    return Timing(accumulation, step, communication, loading)


def _run(
    recipe: RecipeView,
    timings: Mapping[int, Timing],
    *,
    layout: Layout,
    hardware: Hardware,
    save_seconds: float,
) -> RunTime | None:
    """Predict the whole run by its batches' steps; an evaluation's images pass as those of the first do."""
    forward = timings[recipe.global_batch].step.forward / layout.micro_batch
    decoding = decode_seconds(recipe, hardware=hardware) if hardware.shares_memory else 0.0
    return predict_run(
        recipe,
        hardware=hardware,
        world_size=layout.world_size,
        step_seconds={batch: one.step_seconds for batch, one in timings.items()},
        forward_seconds=forward + decoding,
        save_seconds=save_seconds,
    )


def _checkpoint_bytes(recipe: RecipeView, works: Sequence[Work]) -> float:
    """Return a checkpoint's size; of a part that does not learn its weights alone are kept."""
    learning = sum(work.parameters for work in works if work.learns)
    frozen = sum(work.parameters for work in works) - learning
    return _FP32 * (learning * (_TRAINED_STATE + recipe.layout.ema) + frozen)


def _loading(decoding: float, computing: float, *, hardware: Hardware, ranks: int) -> float:
    """Return how much longer a step takes for its images, of which a node decodes those of all its ranks.

    Cores that compute decode in turn; those beside a GPU do it meanwhile, if they are enough.
    """
    if hardware.shares_memory:
        return decoding / ranks
    return max(0.0, decoding / (hardware.cores_per_gpu * ranks) - computing)
