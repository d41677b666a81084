"""A plan as tables and as a picture. Prints; predicts nothing."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from cluster.planning.memory import Memory
from cluster.planning.plan import MemoryChoice, Plan
from cluster.tables import duration
from coatnet.config import UserError
from coatnet.config.plain_text import number_of
from coatnet.runtime.console import make_console
from coatnet.runtime.drawing import make_figure

_GIB, _MIB = 2**30, 2**20
_MB = 1e6
_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", _MB))
_LEAST_IN_G = 1e8  # multiply-adds
_LEAST_IN_GIB = 4 * _GIB  # smaller plans are told in MiB
_SHOWN_SHARE = 5e-4  # of a step
_MOST_DIGITS = 9  # of images/s
_PICTURES = (".png", ".svg", ".pdf")


def print_plan(
    plan: Plan,
    choices: Sequence[MemoryChoice],
    *,
    name: str,
    remedies: Sequence[str],
    quicker: Mapping[str, float],
) -> None:
    """Print everything about one layout, and words under which it would fit, or be quicker."""
    console = make_console()
    macs = f"{plan.macs / 1e9:,.2f} G" if plan.macs >= _LEAST_IN_G else f"{plan.macs / 1e6:,.1f} M"
    size = f"{plan.parameters / 1e6:,.1f} M parameters, {macs} MACs"
    if plan.learning_parameters < plan.parameters:
        size += f"; {plan.learning_parameters / 1e6:,.1f} M learn"
    console.print(f"[bold]{escape(name)}[/bold]: {size}")
    layout = plan.layout
    batch = f"{plan.global_batch} = {layout.micro_batch} × {plan.accumulation} × {plan.world_size}"
    console.print(
        f"{number_of(plan.nodes, 'node')}, {plan.world_size} × {plan.hardware}; "
        f"global batch {batch}; ZeRO-{layout.zero_stage}, {layout.precision}"
    )
    for table in (_memory_table(plan, choices), _speed_table(plan)):
        _print(table)
    for line in _facts(plan):
        console.print(line)
    for words, spared in quicker.items():
        console.print(f"quicker by {spared:.0%}: {escape(words)}")
    if not plan.fits:
        held, needed = (f"{size / _GIB:.1f}" for size in (plan.memory_limit_bytes, plan.memory.total))
        console.print(f"[red]does not fit[/red]: {needed} GiB needed, {held} there")
        for words in remedies:
            console.print(f"  would fit: {escape(words)}")
        if not remedies:
            console.print("  nor would it in the smallest micro-batches, sharded and checkpointed")


def print_comparison(plans: Sequence[Plan], *, refused: Mapping[str, str]) -> None:
    """Print one line per layout, and below the table why others have none."""
    headings = ("nodes", "GPUs", "ZeRO", "batch", "GiB/GPU", "ms/step", "images/s")  # 80 characters in all
    table = _table(*headings, "per GPU", "MFU", "days", "GPU-h")
    best = max(plan.images_per_second / plan.world_size for plan in plans)
    for plan in plans:
        table.add_row(
            str(plan.nodes),
            str(plan.world_size),
            str(plan.layout.zero_stage),
            f"{plan.layout.micro_batch} × {plan.accumulation}",
            _total(plan.memory, plan, digits=1),
            f"{plan.step_seconds * 1e3:,.1f}",
            f"{plan.images_per_second:,.0f}",
            f"{plan.images_per_second / plan.world_size / best:.0%}",
            f"{plan.mfu:.0%}",
            _days(plan),
            "–" if plan.gpu_hours is None else f"{plan.gpu_hours:,.0f}",
        )
    _print(table)
    console = make_console()
    words = "batch: micro-batch × accumulation; per GPU: images/s against the best layout"
    console.print(words if all(plan.fits for plan in plans) else f"{words}; [red]![/red] does not fit")
    for reason, count in Counter(refused.values()).items():
        layout = next(layout for layout, why in refused.items() if why == reason)
        which = layout if count == 1 else f"{count}, as {layout}"
        console.print(escape(f"left out: {which}: {reason}"), highlight=False, soft_wrap=True)


def plot_scaling(plans: Sequence[Plan], path: Path, *, name: str) -> None:
    """Draw throughput and efficiency against the number of GPUs.

    Raises:
        UserError: the picture cannot be written there.
    """
    if path.suffix not in _PICTURES:
        raise UserError(f"--plot {path}: a picture ends in {', '.join(_PICTURES)}")
    gpus = [plan.world_size for plan in plans]
    rates = [plan.images_per_second for plan in plans]
    first = rates[0] / gpus[0]
    figure = make_figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogy(gpus, rates, "o-", label="predicted")
    left.semilogy(gpus, [first * count for count in gpus], "--", color="grey", label="linear")
    left.set(
        xlabel="GPUs", ylabel="images/s", title=f"{name}, {plans[0].hardware}, batch {plans[0].global_batch}"
    )
    ticks = [factor * 10**power for power in range(_MOST_DIGITS) for factor in (1, 2, 5)]
    low, high = left.get_ylim()
    shown = [tick for tick in ticks if low <= tick <= high]
    left.set_yticks(shown, [f"{tick:,}" for tick in shown])
    left.set_yticks([], minor=True)
    left.legend()
    efficiency = [100 * rate / count / first for rate, count in zip(rates, gpus, strict=True)]
    right.plot(gpus, efficiency, "o-")
    right.set(
        xlabel="GPUs",
        ylabel="efficiency, %",
        ylim=(0, 105),
        title=f"images/s per GPU, against {number_of(gpus[0], 'GPU')}",
    )
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_xticks(gpus, [str(count) for count in gpus], rotation=45)
        axis.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise UserError(f"--plot {path}: {error.strerror}") from None


def _memory_table(plan: Plan, choices: Sequence[MemoryChoice]) -> Table:
    """Lay components out as rows and ZeRO's stages as columns, which a terminal of 80 characters can hold."""
    kept = [choice for choice in choices if not choice.checkpointing]
    checkpointed = [choice for choice in choices if choice.checkpointing]
    unit = f"{_unit(plan)} per {'rank' if plan.in_process else 'GPU'}"
    table = _table(unit, "this run", *(f"ZeRO-{choice.zero_stage}" for choice in kept))
    memories = [plan.memory, *(choice.memory for choice in kept)]
    for name in plan.memory.components():
        sizes = [memory.components()[name] for memory in memories]
        if any(sizes):
            table.add_row(name, *(_size(size, plan) for size in sizes))
    table.add_row("[bold]sum[/bold]", *(_total(memory, plan) for memory in memories))
    table.add_row("largest micro-batch", "", *(str(choice.largest_micro_batch) for choice in kept))
    if not checkpointed:  # fine-tuning has none
        return table
    table.add_section()
    table.add_row("sum, activations checkpointed", "", *(_total(one.memory, plan) for one in checkpointed))
    table.add_row(
        "largest micro-batch then", "", *(str(choice.largest_micro_batch) for choice in checkpointed)
    )
    return table


def _unit(plan: Plan) -> str:
    return "GiB" if plan.memory.total >= _LEAST_IN_GIB else "MiB"


def _size(size: float, plan: Plan) -> str:
    return f"{size / _GIB:.2f}" if _unit(plan) == "GiB" else f"{size / _MIB:,.0f}"


def _total(memory: Memory, plan: Plan, *, digits: int | None = None) -> str:
    total = _size(memory.total, plan) if digits is None else f"{memory.total / _GIB:.{digits}f}"
    return total if memory.total <= plan.memory_limit_bytes else f"[red]! {total}[/red]"


def _speed_table(plan: Plan) -> Table:
    table = _table("part of a step", "time", "share")
    parts = {f"{stage} forward and backward": seconds for stage, seconds in plan.step.stages.items()}
    parts |= {"recomputation": plan.step.recomputed, "sharding, by layer": plan.step.sharding}
    parts |= {"AdamW": plan.step.optimizer, "Python, calling operators": plan.step.operators}
    parts["waiting for images"] = plan.loading
    parts |= {f"{name} (exposed in all {_milliseconds(plan.communication.exposed)})": seconds
              for name, seconds in plan.communication.collectives.items()}  # fmt: skip
    for label, seconds in parts.items():
        if seconds >= _SHOWN_SHARE * plan.step_seconds:
            table.add_row(label, _milliseconds(seconds), f"{seconds / plan.step_seconds:.0%}")
    table.add_row("[bold]step[/bold]", _milliseconds(plan.step_seconds), "100%")
    return table


def _facts(plan: Plan) -> list[str]:
    stages = ", ".join(f"{stage} {_size(size, plan)}" for stage, size in plan.memory.activations.items())
    lines = [
        f"activations by stage, {_unit(plan)}: {stages}",
        f"{plan.images_per_second:,.0f} images/s, MFU {plan.mfu:.0%}",
        f"loader: {plan.loader_images_per_second_per_node:,.0f} images/s per node, "
        f"{plan.loader_cores_needed_per_node:.1f} of {number_of(plan.loader_cores_per_node, 'core')} "
        f"at {plan.loader_images_per_second_per_node / plan.loader_cores_needed_per_node:,.0f} each",
        f"checkpoint: {_size(plan.checkpoint_bytes, plan)} {_unit(plan)}, "
        f"written in {plan.checkpoint_seconds:.1f} s; {plan.checkpoints_kept} kept and one being written: "
        f"{_size((plan.checkpoints_kept + 1) * plan.checkpoint_bytes, plan)} {_unit(plan)}",
    ]
    if plan.shards_per_rank is not None:
        lines.append(f"shards per rank: {plan.shards_per_rank:.1f}")
    if plan.days is None:
        lines.append("days: unknown, since data.train cannot be read from here; give epoch_samples=1281167")
    else:
        assert plan.run is not None and plan.gpu_hours is not None
        hours = "" if plan.in_process else f": {plan.gpu_hours:,.0f} GPU-hours"
        lines.append(f"{plan.total_samples:,} images in {duration(plan.run.seconds)}{hours}")
        parts = {name: duration(seconds) for name, seconds in dataclasses.asdict(plan.run).items() if seconds}
        lines.append(", ".join(f"{name} {length}" for name, length in parts.items()))
        lines += [
            f"global batch {one.global_batch}: {number_of(one.steps, 'step')} of "
            f"{one.step_seconds * 1e3:,.1f} ms, {duration(one.steps * one.step_seconds)}"
            for one in plan.stretches
        ]
        assert plan.read_bytes is not None
        unit, size = next((unit, size) for unit, size in _UNITS if plan.read_bytes >= size or size == _MB)
        lines.append(f"images read: {plan.read_bytes / size:,.3g} {unit}")
    return lines


def _days(plan: Plan) -> str:
    return "–" if plan.days is None else f"{plan.days:.2f}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def _print(table: Table) -> None:
    """Print a table as wide as it is: a terminal that is narrower breaks lines, and no number is cut."""
    make_console(is_bounded=False).print(table)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right", no_wrap=True)
    return table
