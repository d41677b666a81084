"""Every key of a config is told: what it means, what it may be, and what it is if nobody says."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.site import SiteConfig
from coatnet.config import load_config
from coatnet.config.keys import annotated_yaml, meanings, sections
from coatnet.model.config import ModelConfig
from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig

SCHEMAS = (PretrainConfig, FinetuneConfig, SiteConfig)
# What a config cannot be without.
NEEDED = {PretrainConfig: ["data.train=[{path: x}]"], FinetuneConfig: ["init=x"], SiteConfig: []}


def all_sections(schema: type) -> Iterator[type]:
    yield schema
    for kind in sections(schema).values():
        yield from all_sections(kind)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_key_has_a_meaning(schema: type) -> None:
    silent = [
        f"{kind.__name__}.{one.name}"
        for kind in all_sections(schema)
        for one in dataclasses.fields(kind)
        if one.name not in {**meanings(kind), **sections(kind)}
    ]
    assert not silent


@pytest.mark.parametrize("schema", SCHEMAS)
def test_no_meaning_is_of_a_key_that_is_gone(schema: type) -> None:
    for kind in all_sections(schema):
        assert meanings(kind).keys() <= {one.name for one in dataclasses.fields(kind)}, kind


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_meaning_names_every_choice(schema: type) -> None:
    for kind in all_sections(schema):
        for one in dataclasses.fields(kind):
            if not str(one.type).startswith("str") or (kind, one.name) == (ModelConfig, "name"):
                continue
            try:
                kind(**{one.name: "no such choice"})
            except ValueError as error:
                allowed = re.search(r"allowed: (\w+(?:, \w+)+)$", str(error))
                for choice in allowed[1].split(", ") if allowed else []:
                    assert re.search(rf"\b{choice}\b", meanings(kind)[one.name]), f"{one.name}: {choice}"


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_text_is_a_config_of_the_defaults(schema: type, tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    path.write_text(annotated_yaml(schema))
    assert max(map(len, path.read_text().splitlines())) <= 80
    assert load_config(schema, path, overrides=NEEDED[schema]) == load_config(
        schema, overrides=NEEDED[schema]
    )


def test_a_command_prints_its_keys_without_a_config_and_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['deepspeed'] = None\n"
        "from coatnet.commands import run\n"
        "for command in ('pretrain', 'finetune', 'submit'):\n"
        "    print('\\f', end=''); assert run([command, '--keys']) == 0"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    _, *pages = done.stdout.split("\f")
    assert len(pages) == 3 and all("\n# " in page for page in pages)
