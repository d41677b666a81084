"""The quickstart's closing table."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from coatnet.runtime.console import make_console


def print_summary(summary: dict[str, Any]) -> None:
    """Print the steps with their times and rates, the two accuracies, and where everything lies."""
    console = make_console()
    steps = Table(title="quickstart", title_justify="left")
    for heading, justify in (
        ("step", "left"),
        ("seconds", "right"),
        ("images", "right"),
        ("images/s", "right"),
    ):
        steps.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for step in summary["steps"]:
        rate = f"{step['images'] / step['seconds']:,.0f}" if step["images"] and step["seconds"] else "–"
        steps.add_row(step["title"], f"{step['seconds']:.1f}", f"{step['images'] or '–'}", rate)
    steps.add_section()
    steps.add_row("[bold]all[/bold]", f"[bold]{summary['seconds']:.1f}[/bold]", "", "")
    console.print(steps)

    results = Table(title="digits 5–9 at 64 px, same budget", title_justify="left")
    results.add_column("model")
    results.add_column("top-1", justify="right")
    results.add_row("fine-tuned from digits 0–4", f"[bold green]{summary['finetuned_top1']:.2%}[/bold green]")
    results.add_row("from scratch", f"{summary['scratch_top1']:.2%}")
    console.print(results)
    console.print(f"interrupted and resumed: {'yes' if summary['resumed'] else 'no'}")
    for what, where in summary["paths"].items():
        console.print(f"{what}: {where}", soft_wrap=True, highlight=False)
