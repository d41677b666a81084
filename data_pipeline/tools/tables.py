"""Prints what the other tools found, for people."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from coatnet.config.plain_text import number_of, plain
from coatnet.runtime.console import make_console
from data_pipeline.tools.verify import Problem

_MOST_CLASSES = 20
_MOST_PROBLEMS = 50


def print_shard_facts(facts: dict[str, Any]) -> None:
    """Print a corpus' facts, and its largest classes."""
    console = make_console()
    table = Table(box=None, show_header=False)
    for name in ("samples", "shards", "bytes"):
        if name in facts:
            table.add_row(name, f"{facts[name]:,}")
    for name in ("digest", "label_kind"):
        if name in facts:
            table.add_row(name.replace("_", " "), str(facts[name]))
    for name in ("image_bytes", "width", "height"):
        if name in facts:
            spread = ", ".join(f"{what} {value:,}" for what, value in facts[name].items())
            table.add_row(name.replace("_", " "), spread)
    for name in ("formats", "odd", "counts"):
        found = {what: count for what, count in facts.get(name, {}).items() if count}
        if found:
            table.add_row(name, escape(", ".join(f"{count:,} {what}" for what, count in found.items())))
    console.print(table)
    classes = sorted(facts.get("classes", {}).items(), key=lambda item: -item[1])
    if classes:
        most = max(1, classes[0][1])
        title = number_of(len(classes), "class", "classes")
        histogram = Table(title=title, title_justify="left", box=None, show_header=False)
        for name, count in classes[:_MOST_CLASSES]:
            bar = "█" * max(1, round(30 * count / most)) if count else ""
            histogram.add_row(escape(name), f"{count:,}", bar)
        console.print(histogram)
        if len(classes) > _MOST_CLASSES:
            console.print(f"… {len(classes) - _MOST_CLASSES} more, the smallest with {classes[-1][1]:,}")


def print_problems(problems: list[Problem], *, checked: bool) -> None:
    """Print what is damaged, or that nothing is."""
    console = make_console()
    if not problems:
        if checked:
            console.print("[green]nothing is damaged[/green]")
        return
    table = Table(title=number_of(len(problems), "problem"), title_justify="left")
    for heading in ("shard", "sample", "name", "what"):
        table.add_column(heading, overflow="fold")
    for problem in problems[:_MOST_PROBLEMS]:
        sample = "" if problem.sample is None else str(problem.sample)
        table.add_row(
            escape(problem.shard), sample, *(escape(plain(text)) for text in (problem.name, problem.what))
        )
    console.print(table)
    if len(problems) > _MOST_PROBLEMS:
        console.print(f"… {len(problems) - _MOST_PROBLEMS:,} more; --json lists all")


def print_order(proof: dict[str, Any]) -> None:
    """Print a proof, and who reads which shards."""
    console = make_console()
    console.print(
        f"{number_of(proof['samples'], 'sample')} in {number_of(proof['shards'], 'shard')}, "
        f"{number_of(proof['lanes'], 'lane')}; {number_of(proof['steps'], 'whole step')}, "
        f"a tail of {proof['tail_samples']:,}"
    )
    table = Table()
    names = ("world_size", "doubled", "missing", "differing_steps", "most_shards_of_a_rank")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for row in proof["world_sizes"]:
        table.add_row(*(f"{row[name]:,}" for name in names))
    console.print(table)
    for row in proof["reads"]:
        shards = " ".join(map(str, row["shards"]))
        console.print(f"world size {row['world_size']}, step {row['step']}, rank {row['rank']}: {shards}")
    verdict = (
        "[green]exactly once at each[/green]" if proof["exactly_once"] else "[red]not exactly once[/red]"
    )
    console.print(verdict)


def print_throughput(rows: list[dict[str, Any]], *, needs: float | None) -> None:
    """Print the rates, and what they mean for a model."""
    table = Table()
    for name in ("threads", "images/s", "decoder"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(str(row["threads"]), f"{row['images_per_second']:,.0f}", row["decoder"])
    console = make_console()
    console.print(table)
    if needs is not None:
        best = min(row["held_back_percent"] for row in rows)
        console.print(f"a model that needs {needs:,.0f} images/s is held back by {best:.0f} %")
