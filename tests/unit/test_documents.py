"""What documents tell a reader to type exists: commands parse, configs and links are there."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer
import typer.main

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path for path in ROOT.rglob("*.md") if not {".venv", "runs", "node_modules"} & set(path.parts)
)
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
POINTS = {point.name: point for point in entry_points(group="coatnet.commands")}
_FENCE = re.compile(r"^ *```(?:sh|bash|console)\n(.*?)^ *```", re.M | re.S)
_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def typed_commands(text: str) -> list[list[str]]:
    """Return the words of every `coatnet …` line in a text's shell blocks, continuation lines joined."""
    found = []
    for block in _FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"^\s*\$ ", "", line).strip()
            if re.match(r"(\S*/)?coatnet ", line):
                words = shlex.split(line, comments=True)
                cut = next((i for i, word in enumerate(words) if word in {"|", ">", "&&", ";"}), len(words))
                found.append(words[1:cut])
    return found


def parse(words: list[str]) -> None:
    """Parse a command as the shell would hand it over, without running it."""
    name = ".".join(words[:2]) if words[0] == "inspect" else words[0]
    assert name in POINTS, f"there is no command `coatnet {' '.join(words[:2])}`"
    app = typer.Typer(add_completion=False)
    app.command(name)(POINTS[name].load())
    rest = words[name.count(".") + 1 :]
    if "--help" not in rest:
        typer.main.get_command(app).make_context(name, list(rest))
    for word in rest:
        if word.startswith("configs/") and "*" not in word and "…" not in word:
            assert (ROOT / word).exists(), f"{word} does not exist"


@pytest.mark.parametrize("path", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_every_command_in_a_document_parses_and_names_files_that_exist(path: Path) -> None:
    for words in typed_commands(path.read_text()):
        parse(words)


@pytest.mark.parametrize("path", CONFIGS, ids=[str(path.relative_to(ROOT)) for path in CONFIGS])
def test_the_command_in_a_configs_head_parses(path: Path) -> None:
    head = [line.lstrip("# ").rstrip() for line in path.read_text().splitlines() if line.startswith("#")]
    commands = typed_commands("```sh\n" + "\n".join(line for line in head) + "\n```")
    for words in commands:
        parse(words)


@pytest.mark.parametrize("path", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_every_relative_link_of_a_document_leads_to_a_file(path: Path) -> None:
    for target in _LINK.findall(path.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (path.parent / target).exists(), f"{path.relative_to(ROOT)} links to {target}"
