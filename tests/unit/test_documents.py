"""What documents tell a reader to type exists: commands parse, configs and links are there."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
import typing
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer
import typer.main

from cluster.site import SiteConfig
from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in {"runs", "build"} for part in path.relative_to(ROOT).parts)
)
TEXTS = {path: path.read_text() for path in DOCUMENTS}
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
POINTS = {point.name: point for point in entry_points(group="coatnet.commands")}
_FENCE = re.compile(r"^ *```(?:sh|bash|console)\n(.*?)^ *```", re.M | re.S)
_INDENTED = re.compile(r"^    (?:\S*/)?(coatnet [^#\n]*(?:\\\n[^\n]*)*)", re.M)
_FILE = re.compile(
    r"\b((?:benchmarks|tests|configs|docs)/[\w./-]*\w\.(?:py|md|yaml|json|sh|txt|html|svg|png))\b"
)
_COMMIT = re.compile(r"\b(?=[0-9a-f]*[a-f])(?=[0-9a-f]*[0-9])[0-9a-f]{7}\b")
_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
_SECTION_LINK = re.compile(r"\]\(([^)#\s:]*)#([^)\s]+)\)")
_KEY = re.compile(r"`([a-z_]+(?:\.[a-z_]+)+)(?:=[^`]*)?`|\b([a-z_]+(?:\.[a-z_]+)+)=")


def typed_commands(text: str) -> list[list[str]]:
    """Return the words of every `coatnet …` line in shell and indented blocks, continued lines joined."""
    found = []
    for block in [*_FENCE.findall(text), *_INDENTED.findall(_FENCE.sub("", text))]:
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


def test_every_relative_link_of_a_document_leads_to_a_file() -> None:
    links = [(path, target) for path, text in TEXTS.items() for target in _LINK.findall(text)]
    inside = [(path, to) for path, to in links if "://" not in to and not to.startswith("mailto:")]
    assert not [(str(path), target) for path, target in inside if not (path.parent / target).exists()]


def test_every_link_to_a_section_leads_to_its_heading() -> None:
    for path, text in TEXTS.items():
        for target, section in _SECTION_LINK.findall(text):
            page = path.parent / target if target else path
            if page.exists():
                titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
                headings = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
                assert section in headings, f"{path.relative_to(ROOT)} links to {target}#{section}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= set(_LINK.findall(index)), pages - set(_LINK.findall(index))


def test_every_config_key_that_a_document_names_exists() -> None:
    known = config_keys(PretrainConfig) | config_keys(FinetuneConfig) | config_keys(SiteConfig)
    sections = {key.partition(".")[0] for key in known if "." in key}
    file = re.compile(r"\.(safetensors|onnx|onnx\.data|py|md|json|yaml)$")
    named = {(path.name, one or other) for path, text in TEXTS.items() for one, other in _KEY.findall(text)}
    keys = {(page, name) for page, name in named if not file.search(name)}
    unknown = {(page, name) for page, name in keys if name not in known}
    assert not {(page, name) for page, name in unknown if name.partition(".")[0] in sections}


def config_keys(schema: type, *, prefix: str = "") -> set[str]:
    """Return every key of a schema, those of its sections with their path."""
    found = set()
    for name, kind in typing.get_type_hints(schema).items():
        found.add(prefix + name)
        for part in (kind, *typing.get_args(kind)):
            if dataclasses.is_dataclass(part):
                found |= config_keys(typing.cast(type, part), prefix=f"{prefix}{name}.")
    return found


def test_every_file_of_the_repository_that_a_document_names_is_there() -> None:
    named = {(path.name, name) for path, text in TEXTS.items() for name in _FILE.findall(text)}
    assert not {(page, name) for page, name in named if not (ROOT / name).exists()}


def test_every_commit_that_a_document_names_is_in_the_history() -> None:
    git = ["git", "-C", str(ROOT)]
    known = subprocess.run(
        [*git, "log", "--format=%h", "--abbrev=7"], capture_output=True, text=True, check=False
    )
    shallow = subprocess.run(
        [*git, "rev-parse", "--is-shallow-repository"], capture_output=True, text=True, check=False
    )
    if known.returncode or shallow.stdout.strip() != "false":
        pytest.skip("no whole history here")
    commits = set(known.stdout.split())
    named = {(path.name, commit) for path, text in TEXTS.items() for commit in _COMMIT.findall(text)}
    assert not {(name, commit) for name, commit in named if commit not in commits}
