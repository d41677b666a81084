"""Draw docs/terminal.svg, a terminal in which a run is killed and goes on: python docs/make_terminal.py

Every line is what the commands printed just now; the middle of a long second life is left out. Two minutes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from html import escape
from pathlib import Path

from coatnet.quickstart.digits import write_digits

ROOT = Path(__file__).parents[1]
CONFIG = "configs/quickstart_pretrain.yaml"
COATNET = [sys.executable, "-m", "coatnet.cli"]
BEGIN, END = 7, 4  # lines of the second life that are shown
SECONDS_TO_TYPE = 5.0  # the ranks end with their launcher, within five seconds
COLUMNS, LINE, CHARACTER, MARGIN = 104, 19, 7.83, 18
PAPER, INK, QUIET, PROMPT, ALARM = "#0d1117", "#d1d9e0", "#9198a1", "#7ee2a8", "#ff9b8e"


def main() -> None:
    """Run the commands and write the picture beside this script."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "configs").symlink_to(ROOT / "configs")
        write_digits(place / "digits")
        lines = session(place)
    Path(__file__).with_name("terminal.svg").write_text(drawn(lines))


def session(place: Path) -> list[tuple[str, str]]:
    """Return (colour, text) of every line."""
    for split in ("train", "validation"):
        run(["shard", f"digits/pretrain/{split}", f"shards/{split}"], place)
    words = ["pretrain", CONFIG, "data.train=shards/train", "data.evaluate=shards/validation"]
    words += ["run.directory=runs/first", "save.every=40 steps"]
    lines = run(words, place, kill_at=2)
    lines += [
        (ALARM, "Killed"),
        (QUIET, "# kill -9 of the whole run, in the middle of an epoch. The same command again:"),
    ]
    again = run(words, place)
    if len(again) > BEGIN + END + 1:  # of a shorter life no line is left out, and none is shown twice
        again[BEGIN:-END] = [(QUIET, "# …")]
    return [*lines, *again]


def run(words: list[str], place: Path, *, kill_at: int = 0) -> list[tuple[str, str]]:
    """Run a command, or kill it once it has told its progress so often; return what a person saw."""
    typed = " ".join(f'"{word}"' if "[" in word or " " in word else word for word in words)
    lines = [(PROMPT, f"$ coatnet {typed}")]
    with subprocess.Popen(
        [*COATNET, *words],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((INK, line.rstrip()))
            if kill_at and sum(text.startswith("pretrain: ") for _, text in lines) == kill_at:
                process.send_signal(signal.SIGKILL)
                time.sleep(SECONDS_TO_TYPE)
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit("\n".join(text for _, text in lines))
    return lines


def drawn(lines: list[tuple[str, str]]) -> str:
    """Return the lines as a picture of a terminal."""
    rows = [
        (colour, part)
        for colour, text in lines
        for part in textwrap.wrap(text, COLUMNS, subsequent_indent="  ", break_long_words=False) or [""]
    ]
    width, height = round(COLUMNS * CHARACTER) + 2 * MARGIN, len(rows) * LINE + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-size="13" '
        'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace">',
        f'<rect width="{width}" height="{height}" rx="10" fill="{PAPER}"/>',
    ]
    for number, (colour, text) in enumerate(rows):
        y = MARGIN + (number + 0.75) * LINE
        parts.append(
            f'<text x="{MARGIN}" y="{y:g}" fill="{colour}" xml:space="preserve">{escape(text)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    main()
