"""What fine-tuning needs beside what it shares with pretraining and evaluation stays small."""

from __future__ import annotations

from pathlib import Path

import finetune

MAX_LINES = 600
# The commands, what they let a user choose, and what works on a finished model.
OTHERS = {"cli.py", "choices.py", "classifier.py", "image_files.py", "prediction.py"}


def test_fine_tuning_is_at_most_six_hundred_lines_beside_what_it_shares() -> None:
    files = [path for path in Path(finetune.__file__).parent.glob("*.py") if path.name not in OTHERS]
    assert {"config.py", "engine.py", "run.py", "worker.py"} <= {path.name for path in files}
    lines = {path.name: len(path.read_text().splitlines()) for path in files}
    assert sum(lines.values()) <= MAX_LINES, lines
