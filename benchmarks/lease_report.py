"""The command line of gpu_lease.py, how it runs its cases in time, and how it writes what they found."""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
Case = tuple[str, Callable[[], Row]]


def run_phase(
    cases: Iterator[Case], *, deadline: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[Row]:
    """Run cases until the deadline; the rest, and those that fail, become rows that say so."""
    for name, case in cases:
        if clock() >= deadline:
            yield {"case": name, "left_out": "the phase's time was over"}
            continue
        try:
            yield {"case": name, **case()}
        except Exception as error:  # Triton's are of no common kind; the next case shall have its turn
            traceback.print_exc()
            yield {"case": name, "failed": (str(error).splitlines() or [type(error).__name__])[0]}


def table(rows: list[Row]) -> str:
    """Format a phase's rows as Markdown, a column for every key that occurs."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(key.replace("_", " ") for key in keys) + " |", "|" + "---|" * len(keys)]
    lines += ["| " + " | ".join(_cell(row.get(key)) for key in keys) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "/")


def list_kernels(step: Callable[[], None], path: Path) -> None:
    """Write what one step's kernels cost, the dearest first."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    with torch.profiler.profile(activities=kinds) as profile:
        step()
    order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    table = profile.key_averages().table(sort_by=order, row_limit=60, max_name_column_width=100)
    path.write_text(table)


def make_parser(description: str, minutes: dict[str, float]) -> argparse.ArgumentParser:
    """Describe the command line; `minutes` holds each phase's share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--phases", nargs="+", choices=minutes, default=list(minutes))
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="cases whose name has one of these"
    )
    parser.add_argument("--minutes", type=float, default=sum(minutes.values()), help="for all seven phases")
    parser.add_argument(
        "--tiny", action="store_true", help="small shapes, fp32: try the script without a GPU"
    )
    parser.add_argument("--batch", type=int, help="of whole models, instead of those of the lease")
    parser.add_argument("--kernels", action="store_true", help="list the kernels of the whole steps beside")
    parser.add_argument(
        "--deterministic", action="store_true", help="only kernels that give the same bits every time"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/lease"))
    return parser
