"""What fine-tuning needs beside what it shares with pretraining and evaluation stays small."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import finetune

MAX_LINES = 600
# The commands, and what works on a finished model.
OTHERS = {"cli.py", "classifier.py", "image_files.py", "prediction.py"}
SKIPPED = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> int:
    """Return the lines that hold code: no blank ones, comments and docstrings."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {
        line
        for token in tokens
        if token.type not in SKIPPED
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def test_fine_tuning_is_at_most_six_hundred_lines_of_code_beside_what_it_shares() -> None:
    files = [path for path in Path(finetune.__file__).parent.glob("*.py") if path.name not in OTHERS]
    assert {"config.py", "engine.py", "trainer.py", "worker.py"} <= {path.name for path in files}
    assert sum(code_lines(path.read_text()) for path in files) <= MAX_LINES


def test_a_line_of_code_is_neither_blank_nor_a_comment_nor_a_docstring() -> None:
    assert code_lines('"""Two\nlines."""\n\n# why\nx = [\n    1,\n]\n') == 3
