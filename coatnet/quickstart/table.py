"""The quickstart's closing table."""

from __future__ import annotations

from typing import Any

from rich.table import Column, Table

from coatnet.runtime.console import make_console


def print_summary(summary: dict[str, Any]) -> None:
    """Print the steps with their times and rates, the two accuracies, and where everything lies."""
    console = make_console()
    numbers = (Column(name, justify="right") for name in ("seconds", "images", "images/s"))
    steps = Table("step", *numbers, title="quickstart", title_justify="left")
    for step in summary["steps"]:
        rate = f"{step['images'] / step['seconds']:,.0f}" if step["images"] and step["seconds"] else "–"
        steps.add_row(step["title"], f"{step['seconds']:.1f}", f"{step['images'] or '–'}", rate)
    steps.add_section()
    steps.add_row("[bold]all[/bold]", f"[bold]{summary['seconds']:.1f}[/bold]", "", "")
    console.print(steps)

    share = Column("top-1", justify="right")
    results = Table("model", share, title="digits 5–9 at 64 px, same budget", title_justify="left")
    results.add_row("fine-tuned from digits 0–4", f"[bold green]{summary['finetuned_top1']:.2%}[/bold green]")
    results.add_row("from scratch", f"{summary['scratch_top1']:.2%}")
    console.print(results)
    console.print(f"interrupted and resumed: {'yes' if summary['resumed'] else 'no'}")
    for what, where in summary["paths"].items():
        console.print(f"{what}: {where}", soft_wrap=True, highlight=False)
