"""A plan: a recipe on so many devices of one kind, put together from memory, speed and communication."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.planning.communication import Communication, predict_communication
from cluster.planning.hardware import Hardware
from cluster.planning.memory import Layout, Memory, largest_micro_batch, predict_memory
from cluster.planning.recipe_view import RecipeView
from cluster.planning.speed import Step, predict_step
from cluster.planning.whole_run import RunTime, decode_seconds, predict_run, sample_bytes
from cluster.planning.workload import Work, workload
from coatnet.config import UserError

_ALL_STAGES = ("S1", "S2", "S3", "S4")
_FP32 = 4
_TRAINED_STATE = 3  # a checkpoint holds weights and AdamW's two moments in fp32


@dataclass(frozen=True)
class MemoryChoice:
    """One row of the memory table."""

    zero_stage: int
    checkpointing: bool
    memory: Memory
    largest_micro_batch: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers."""
        return {**dataclasses.asdict(self), "memory_bytes": self.memory.total}


@dataclass(frozen=True)
class Stretch:
    """Steps of one global batch in a run that changes it."""

    global_batch: int
    steps: int
    step_seconds: float


@dataclass(frozen=True)
class Plan:
    """What is predicted for one layout. Seconds and bytes are of one rank; rates of the whole run.

    Args:
        in_process: a rank's memory is its process's, as on a CPU, and no card's.
        loading: seconds of a step in which images are read and nothing is computed.
        read_bytes: of images, in the whole run; 110 kB each where the corpus is not readable from here.
        stretches: of a run that changes its global batch and whose length is known; layout, step and rates
            are those of the first batch, memory is that of the largest.
    """

    hardware: str
    nodes: int
    world_size: int
    layout: Layout
    accumulation: int
    global_batch: int
    parameters: int
    learning_parameters: int
    macs: float
    memory: Memory
    memory_limit_bytes: float
    in_process: bool
    step: Step
    communication: Communication
    loading: float
    images_per_second: float
    step_seconds: float
    mfu: float
    loader_images_per_second_per_node: float
    loader_cores_needed_per_node: float
    loader_cores_per_node: int
    checkpoint_bytes: float
    checkpoint_seconds: float
    checkpoints_kept: int
    read_bytes: float | None
    total_samples: int | None
    run: RunTime | None
    days: float | None
    gpu_hours: float | None
    shards_per_rank: float | None
    stretches: list[Stretch]

    @property
    def fits(self) -> bool:
        """Return whether a rank's memory suffices."""
        return self.memory.total <= self.memory_limit_bytes

    @property
    def measurable_bytes(self) -> float:
        """Return what a run measures of its memory: a GPU's allocator sees neither process nor fragments."""
        whole = self.memory.total
        return whole if self.in_process else whole - self.memory.process - self.memory.reserve

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, with the names that metrics and reports use at the top."""
        return {
            **dataclasses.asdict(self),
            "fits": self.fits,
            "memory_bytes": self.measurable_bytes,
            "memory_total_bytes": self.memory.total,
            "memory_components": self.memory.components(),
        }


@dataclass(frozen=True)
class _Timing:
    """What one step takes, and what of it goes into what."""

    step: Step
    communication: Communication
    loading: float
    image_decoding: float

    @property
    def seconds(self) -> float:
        return self.step.seconds + self.communication.exposed + self.loading


def make_plan(
    recipe: RecipeView, *, hardware: Hardware, nodes: int, gpus_per_node: int | None = None
) -> Plan:
    """Predict one layout.

    Raises:
        UserError: the global batch does not divide over the ranks and micro-batches.
    """
    per_node = gpus_per_node or hardware.gpus_per_node
    world = nodes * per_node
    accumulation, layout = _layout(recipe, world_size=world, on_cores=hardware.shares_memory)
    works = workload(recipe.model, image_size=recipe.image_size, frozen=recipe.frozen)
    timing = _timing(recipe, works, layout=layout, accumulation=accumulation, hardware=hardware, nodes=nodes)
    largest, step_seconds = layout, {recipe.global_batch: timing.seconds}
    for _, batch in recipe.batch_changes:
        later = dataclasses.replace(recipe, global_batch=batch)
        count, other = _layout(later, world_size=world, on_cores=hardware.shares_memory)
        largest = max(largest, other, key=lambda one: one.micro_batch)
        step_seconds[batch] = _timing(
            later, works, layout=other, accumulation=count, hardware=hardware, nodes=nodes
        ).seconds
    rate = recipe.global_batch / timing.seconds
    checkpoint = _checkpoint_bytes(recipe, works)
    checkpoint_seconds = checkpoint / nodes / hardware.storage_bytes_per_second
    on_cores = timing.image_decoding if hardware.shares_memory else 0.0
    run = predict_run(
        recipe,
        hardware=hardware,
        world_size=world,
        step_seconds=step_seconds,
        forward_seconds=timing.step.forward / layout.micro_batch + on_cores,
        save_seconds=checkpoint_seconds,
    )
    days = run.seconds / 86400 if run else None
    return Plan(
        hardware=hardware.name,
        nodes=nodes,
        world_size=world,
        layout=layout,
        accumulation=accumulation,
        global_batch=recipe.global_batch,
        parameters=sum(work.parameters for work in works),
        learning_parameters=sum(work.parameters for work in works if work.learns),
        macs=sum(work.macs for work in works),
        memory=predict_memory(works, layout=largest, hardware=hardware, image_size=recipe.image_size),
        memory_limit_bytes=hardware.rank_memory_bytes,
        in_process=hardware.shares_memory,
        step=timing.step,
        communication=timing.communication,
        loading=timing.loading,
        images_per_second=rate,
        step_seconds=timing.seconds,
        mfu=timing.step.flops / timing.seconds / hardware.peak_flops(recipe.precision),
        loader_images_per_second_per_node=rate / nodes,
        loader_cores_needed_per_node=rate / nodes * timing.image_decoding,
        loader_cores_per_node=hardware.cores_per_gpu * per_node,
        checkpoint_bytes=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        checkpoints_kept=recipe.kept,
        read_bytes=recipe.total_samples * sample_bytes(recipe) if recipe.total_samples else None,
        total_samples=recipe.total_samples,
        run=run,
        days=days,
        gpu_hours=days * 24 * world if days else None,
        shards_per_rank=recipe.shards / world if recipe.shards else None,
        stretches=[
            Stretch(batch, steps, step_seconds[batch])
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
            layout = dataclasses.replace(
                plan.layout,
                zero_stage=stage,
                checkpointing=_ALL_STAGES if checkpointing else (),
                is_ddp=stage == 0 and not recipe.is_pretraining,
            )
            memory = predict_memory(works, layout=layout, hardware=hardware, image_size=recipe.image_size)
            largest = largest_micro_batch(
                works, layout=layout, hardware=hardware, image_size=recipe.image_size
            )
            choices.append(MemoryChoice(stage, checkpointing, memory, largest))
    return choices


def _timing(
    recipe: RecipeView,
    works: Sequence[Work],
    *,
    layout: Layout,
    accumulation: int,
    hardware: Hardware,
    nodes: int,
) -> _Timing:
    step = predict_step(works, layout=layout, accumulation=accumulation, hardware=hardware)
    communication = predict_communication(
        parameters=sum(work.parameters for work in works if work.learns),
        layout=layout,
        accumulation=accumulation,
        hardware=hardware,
        backward_seconds=step.backward,
        overlap=recipe.overlap,
    )
    decode = decode_seconds(recipe, hardware=hardware)
    loading = _loading(
        recipe.global_batch / nodes * decode,
        step.seconds + communication.exposed,
        hardware=hardware,
        ranks=layout.world_size // nodes,
    )
    return _Timing(step, communication, loading, decode)


def _checkpoint_bytes(recipe: RecipeView, works: Sequence[Work]) -> float:
    """Return a checkpoint's size; of a part that does not learn its weights alone are kept."""
    learning = sum(work.parameters for work in works if work.learns)
    frozen = sum(work.parameters for work in works) - learning
    return _FP32 * (learning * (_TRAINED_STATE + int(recipe.ema)) + frozen)


def _loading(decoding: float, computing: float, *, hardware: Hardware, ranks: int) -> float:
    """Return how much longer a step takes for its images, of which a node decodes those of all its ranks.

    Cores that compute decode in turn; those beside a GPU do it meanwhile, if they are enough.
    """
    if hardware.shares_memory:
        return decoding / ranks
    return max(0.0, decoding / (hardware.cores_per_gpu * ranks) - computing)


def _layout(recipe: RecipeView, *, world_size: int, on_cores: bool) -> tuple[int, Layout]:
    share, rest = divmod(recipe.global_batch, world_size)
    micro = min(recipe.micro_batch or share, share) if share else 0
    if rest or not share or share % micro:
        raise UserError(
            f"train.global_batch {recipe.global_batch} is not micro_batch "
            f"{recipe.micro_batch or share} × accumulation × {world_size} ranks; choose other numbers"
        )
    layout = Layout(
        world_size=world_size,
        zero_stage=recipe.zero_stage,
        micro_batch=micro,
        precision=recipe.precision,
        checkpointing=recipe.checkpointing,
        ema=recipe.ema,
        bucket_elements=recipe.bucket_elements,
        compiled=recipe.compiled,
        rows=on_cores and not recipe.compiled,
        groups=max(1, micro // (recipe.group_images or micro)),
        is_ddp=recipe.is_ddp,
        draws=recipe.draws,
    )
    return share // micro, layout
