"""Figures that a document quotes are those of their source: a kept result, a table, a command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def rows(page: str, pattern: str) -> list[str]:
    """Return the rows of a page's tables that match."""
    text = (ROOT / page).read_text()
    return [line for line in text.splitlines() if line.startswith("|") and re.search(pattern, line)]


@pytest.mark.slow
def test_the_familys_plan_is_what_its_command_prints(
    load_benchmark: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    load_benchmark("family_plan").main()
    printed = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\| \d ", line)]
    assert rows("docs/plan.md", r"^\| \d \|.*%") == printed


def test_the_pages_of_the_data_pipeline_quote_the_kept_results() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "data.json").read_text())
    rates = found["decoding"]["images_per_second"]
    plain, tiled = found["decode_vs_pillow"], found["decode_tiled_vs_pillow"]
    assert f"{plain:.1f} times as fast from any JPEG, {tiled:.1f} from losslessly tiled ones" in README
    assert f"usual pipeline: {rates['webdataset'] / rates['pillow']:.1f} times as fast" in README
    assert f"{1000 * found['order_300m_seconds']:.1f} ms for 300 M samples" in README
    (row,) = rows("benchmarks/data.md", r"\*\*ours, any JPEG\*\*")
    for value in (f"{plain:.1f}", f"{found['read_gb_per_s']:.1f}", f"{found['write_gb_per_s']:.2f}"):
        assert f"**{value}**" in row
    assert f"**{found['seek_ms']:.3f}**" in row
    (kernel,) = rows("docs/decode.md", "kernel, any JPEG")
    assert f"| {rates['ours']:,.0f} | **{plain:.1f}** |" in kernel


def test_the_readme_counts_the_scenarios_that_passed() -> None:
    passed = rows("benchmarks/slurm.md", r"\| passed \|")
    assert f"{len(passed)} scenarios on a real SLURM pass" in README


def test_the_readme_quotes_the_ratios_of_the_models_page() -> None:
    found = re.search(
        r"Ratio to timm compiled: ([\d.]+), under load ([\d.]+)\*\*",
        (ROOT / "benchmarks/model.md").read_text(),
    )
    assert found is not None
    assert f"{found[2]} times as fast under load, {found[1]} on an idle machine" in README
