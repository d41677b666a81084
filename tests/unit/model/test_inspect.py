"""`coatnet inspect model` and `coatnet inspect layouts`, and what a config refuses."""

from __future__ import annotations

import json

import pytest

from coatnet.config import UserError
from coatnet.model.cli import inspect_layouts, inspect_model
from coatnet.model.config import ModelConfig


def test_json_carries_parameters_macs_and_the_papers_flops(capsys: pytest.CaptureFixture[str]) -> None:
    inspect_model("coatnet_4", px=384, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 275_425_672
    assert found["macs"] / 1e9 == pytest.approx(186.5, abs=0.01)
    assert found["paper_flops"] / 1e9 == pytest.approx(189.5, rel=0.006)


@pytest.mark.parametrize("name", ["coatnet_6_table12", "coatnet_0_dconv", "vit_rel"])
def test_the_table_names_every_stage_and_cuts_no_number(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect_model(name, blocks=True)
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert all(word in printed for word in ("S0", "S3.1", "head", "total"))


def test_the_tables_fit_into_a_terminal_of_eighty_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    inspect_model("coatnet_7", px=512)
    inspect_layouts()
    printed = capsys.readouterr().out
    assert "2,441,973,112 2538.529 G" in printed and "C-T-T-T 2 2 15 2  128 256 512 1024" in printed
    assert "…" not in printed and max(map(len, printed.splitlines())) <= 80


def test_overrides_change_what_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    inspect_model("coatnet_2", ["depths=[2,2,2,18,2]"], as_json=True)
    assert json.loads(capsys.readouterr().out)["parameters"] != 74_685_000


def test_layouts_are_of_one_size(capsys: pytest.CaptureFixture[str]) -> None:
    inspect_layouts(as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [row["layout"] for row in rows] == ["ViT-REL", "C-C-C-C", "C-C-C-T", "C-C-T-T", "C-T-T-T"]
    for row in rows:
        assert row["parameters"] == pytest.approx(74.69e6, rel=0.013)
        assert row["macs"] == pytest.approx(15.50e9, rel=0.015)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("coatnet_0_224", "coatnet_0"),
        ("coatnet_1_rw_224", "coatnet_1"),
        ("coatnet_6_table12_384", "coatnet_6_table12"),
        ("coatnet0", "coatnet_0"),
    ],
)
def test_a_longer_name_of_a_member_is_told_as_that_member(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf"^name is '{name}'; did you mean {near}\?$"):
        ModelConfig(name=name)


def test_mistakes_are_one_line_with_what_is_allowed() -> None:
    with pytest.raises(UserError, match="did you mean coatnet_7"):
        inspect_model("coatnet_9")
    for px in (100, -32, 32 * 10**12):
        with pytest.raises(UserError, match=f"image_size is {px}; allowed: multiples of 32 up to 16384"):
            inspect_model("coatnet_0", px=px)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "C-C-X-T"}, "expected four of C and T"),
        ({"layout": "C-T"}, "expected four of C and T"),
        ({"depths": [1, 2]}, "expected 5 positive numbers"),
        ({"head_size": 48, "name": "coatnet_2"}, "does not divide width"),
        ({"pooling": "median"}, "allowed: max, average"),
        ({"stride_place": "shrink"}, "allowed: expand, depthwise"),
        ({"name": "coatnet_6", "layout": "C-C-T-T"}, "mixes kinds"),
        ({"stochastic_depth": 1.0}, "below 1"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**changes)
