"""Run every scenario on a real SLURM of fake nodes, and write how long each took into benchmarks/slurm.md.

    make slurm-scenarios        # or: OMP_NUM_THREADS=1 .venv/bin/python benchmarks/slurm_scenarios.py

Each worker of pytest has a SLURM of its own. Needs root, for /etc/hosts and to install SLURM. The exit
status is 0 if all passed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "benchmarks" / "slurm.md"
_BEGIN, _END = "<!-- written by benchmarks/slurm_scenarios.py -->", "<!-- end -->"
_WITH = {
    "test_training": "training",
    "test_storms": "training",
    "test_machine": "stand-in",
    "test_submitting": "the real commands",
    "test_pipeline": "the real commands",
}


class Scenarios:
    """What pytest says of each test, as rows of a table."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str, str, str, str, float]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep a test's outcome and the seconds of its call; a fixture that fails is an outcome as well."""
        if report.when == "call" or report.outcome != "passed":
            path, _, name = report.nodeid.partition("::")
            default = "" if "every_scenario" in report.keywords else "yes"
            outcome = report.outcome if report.passed else f"**{report.outcome}**"
            kind = _WITH[Path(path).stem]
            self.rows[report.nodeid] = (_sentence(name), kind, default, outcome, report.duration)

    @property
    def all_passed(self) -> bool:
        """Return whether there were tests, and each of them passed."""
        return bool(self.rows) and all(row[3] == "passed" for row in self.rows.values())

    def table(self) -> str:
        """Return the rows in Markdown, what trains first."""
        kinds = list(dict.fromkeys(_WITH.values()))
        rows = sorted(self.rows.values(), key=lambda row: (kinds.index(row[1]), row[0]))
        lines = ["| scenario | with | default | result | seconds |", "|---|---|---|---|---|"]
        lines += [
            f"| {name} | {kind} | {default} | {outcome} | {seconds:.0f} |"
            for name, kind, default, outcome, seconds in rows
        ]
        return "\n".join(lines)


def _sentence(name: str) -> str:
    words, _, case = name.removeprefix("test_").partition("[")
    return words.replace("_", " ") + (f", {case.rstrip(']')}" if case else "")


def heading(*, seconds: float, count: int, load: float, workers: int) -> str:
    """Return what the table was measured with, and on."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "deepspeed"))
    slurm = _printed("/usr/sbin/slurmd", "-V").removeprefix("slurm-wlm ")
    commit = _printed("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    changed = _printed("git", "-C", str(ROOT), "status", "--porcelain", "--", ".", ":!benchmarks/slurm.md")
    return (
        f"{time.strftime('%-d %B %Y')}, commit {commit}{' with changes' if changed else ''}, SLURM {slurm}, "
        f"{versions}, {os.cpu_count()} cores, load {load:.1f} before the start: "
        f"{count} scenarios by {workers} workers in **{seconds / 60:.1f} minutes**."
    )


def _printed(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--workers", type=int, default=3, help="pytest processes, each with a SLURM (at most 4)"
    )
    parser.add_argument(
        "--only", default="", help="pytest's -k: these scenarios alone; the document stays as it is"
    )
    options = parser.parse_args()
    os.environ["COATNET_SLURM"] = "all"
    scenarios, load, began = Scenarios(), os.getloadavg()[0], time.monotonic()
    arguments = [str(ROOT / "tests/integration/slurm"), "--rootdir", str(ROOT), "-k", options.only]
    arguments += ["--numprocesses", str(options.workers), "--maxschedchunk", "1"]
    pytest.main(arguments, plugins=[scenarios])
    seconds = time.monotonic() - began
    text = heading(seconds=seconds, count=len(scenarios.rows), load=load, workers=options.workers)
    text += "\n\n" + scenarios.table()
    print(f"\n{text}")
    if not options.only:
        before, _, rest = DOCUMENT.read_text().partition(_BEGIN)
        DOCUMENT.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{rest.partition(_END)[2]}")
    return 0 if scenarios.all_passed else 1


if __name__ == "__main__":
    sys.exit(main())
