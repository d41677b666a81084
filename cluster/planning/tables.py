"""A plan as tables and as a picture. Prints; predicts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.planning.estimate import MemoryChoice, Plan
from cluster.planning.memory import Memory
from cluster.tables import duration

if TYPE_CHECKING:
    from rich.table import Table

_GIB = 2**30


def print_plan(plan: Plan, choices: Sequence[MemoryChoice], *, name: str) -> None:
    """Print everything about one layout."""
    from rich.console import Console

    console = Console()
    size = f"{plan.parameters / 1e6:,.1f} M parameters, {plan.macs / 1e9:.2f} G MACs"
    console.print(f"[bold]{name}[/bold]: {size}")
    layout = plan.layout
    batch = f"{plan.global_batch} = {layout.micro_batch} × {plan.accumulation} × {plan.world_size}"
    console.print(
        f"{plan.nodes} nodes, {plan.world_size} × {plan.hardware}; global batch {batch}; "
        f"ZeRO-{layout.zero_stage}, {layout.precision}"
    )
    console.print(_memory_table(plan, choices))
    console.print(_speed_table(plan))
    for line in _facts(plan):
        console.print(line)
    if not plan.fits:
        console.print(
            "[red]does not fit[/red]: lower train.micro_batch, raise zero.stage or checkpoint activations"
        )


def print_comparison(plans: Sequence[Plan]) -> None:
    """Print one line per layout."""
    from rich.console import Console

    headings = ("nodes", "GPUs", "ZeRO", "micro-batch", "accumulation", "GiB/GPU", "fits", "step")
    table = _table(*headings, "images/s", "efficiency", "MFU", "days", "GPU-hours")
    best = max(plan.images_per_second / plan.world_size for plan in plans)
    for plan in plans:
        table.add_row(
            str(plan.nodes),
            str(plan.world_size),
            str(plan.layout.zero_stage),
            str(plan.layout.micro_batch),
            str(plan.accumulation),
            f"{plan.memory.total / _GIB:.1f}",
            "yes" if plan.fits else "[red]no[/red]",
            _milliseconds(plan.step_seconds),
            f"{plan.images_per_second:,.0f}",
            f"{plan.images_per_second / plan.world_size / best:.0%}",
            f"{plan.mfu:.0%}",
            _days(plan),
            "–" if plan.gpu_hours is None else f"{plan.gpu_hours:,.0f}",
        )
    Console().print(table)


def plot_scaling(plans: Sequence[Plan], path: Path, *, name: str) -> None:
    """Draw throughput and efficiency against the number of GPUs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    gpus = [plan.world_size for plan in plans]
    rates = [plan.images_per_second for plan in plans]
    first = rates[0] / gpus[0]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    left.semilogy(gpus, rates, "o-", label="predicted")
    left.semilogy(gpus, [first * count for count in gpus], "--", color="grey", label="linear")
    left.set(
        xlabel="GPUs", ylabel="images/s", title=f"{name}, {plans[0].hardware}, batch {plans[0].global_batch}"
    )
    left.legend()
    efficiency = [100 * rate / count / first for rate, count in zip(rates, gpus, strict=True)]
    right.plot(gpus, efficiency, "o-")
    right.set(xlabel="GPUs", ylabel="efficiency, %", ylim=(0, 105), title="per GPU, against the smallest")
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_xticks(gpus, [str(count) for count in gpus], rotation=45)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _memory_table(plan: Plan, choices: Sequence[MemoryChoice]) -> Table:
    components = list(plan.memory.components())
    table = _table("GiB per GPU", *components, "sum", "largest micro-batch")
    rows: list[tuple[str, Memory, int | None]] = [("this run", plan.memory, None)]
    rows += [
        (
            f"ZeRO-{choice.zero_stage}" + (", checkpointing" if choice.checkpointing else ""),
            choice.memory,
            choice.largest_micro_batch,
        )
        for choice in choices
    ]
    for label, memory, largest in rows:
        values = [f"{value / _GIB:.2f}" for value in memory.components().values()]
        fits = memory.total <= plan.memory_limit_bytes
        total = f"{memory.total / _GIB:.2f}"
        table.add_row(
            label, *values, total if fits else f"[red]{total}[/red]", "" if largest is None else str(largest)
        )
    return table


def _speed_table(plan: Plan) -> Table:
    table = _table("part of a step", "time", "share")
    parts = {f"{stage} forward and backward": seconds for stage, seconds in plan.step.stages.items()}
    parts |= {"recomputation": plan.step.recomputed, "AdamW": plan.step.optimizer}
    parts |= {f"{name} (exposed in all {_milliseconds(plan.communication.exposed)})": seconds
              for name, seconds in plan.communication.collectives.items()}  # fmt: skip
    for label, seconds in parts.items():
        if seconds:
            table.add_row(label, _milliseconds(seconds), f"{seconds / plan.step_seconds:.0%}")
    table.add_row("[bold]step[/bold]", _milliseconds(plan.step_seconds), "100%")
    return table


def _facts(plan: Plan) -> list[str]:
    stages = ", ".join(f"{stage} {size / _GIB:.2f}" for stage, size in plan.memory.activations.items())
    lines = [
        f"activations by stage, GiB: {stages}",
        f"{plan.images_per_second:,.0f} images/s, MFU {plan.mfu:.0%}",
        f"loader: {plan.loader_images_per_second_per_node:,.0f} images/s per node, "
        f"{plan.loader_cores_needed_per_node:.1f} of {plan.loader_cores_per_node} cores "
        f"at {plan.loader_images_per_second_per_node / plan.loader_cores_needed_per_node:,.0f} each",
        f"checkpoint: {plan.checkpoint_bytes / _GIB:.2f} GiB, written in {plan.checkpoint_seconds:.1f} s",
    ]
    if plan.shards_per_rank is not None:
        lines.append(f"shards per rank: {plan.shards_per_rank:.1f}")
    if plan.days is None:
        lines.append("days: unknown, since the corpus is not readable from here; give epoch_samples=1281167")
    else:
        lines.append(
            f"{plan.total_samples:,} images in {duration(plan.days * 86400)}: {plan.gpu_hours:,.0f} GPU-hours"
        )
    return lines


def _days(plan: Plan) -> str:
    return "–" if plan.days is None else f"{plan.days:.2f}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def _table(*headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right")
    return table
