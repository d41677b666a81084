"""The plan says what would fit, and what would be quicker: each of its words, planned again, is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.planning.request import advice_of, plan_of
from coatnet.commands import run

LAYOUTS = [
    ("pretrain", 7, "h100", 1, 256),
    ("pretrain", 7, "a100", 4, 128),
    ("pretrain", 6, "h100", 8, 128),
    ("pretrain", 5, "a100", 8, 512),
    ("pretrain", 4, "h200", 2, 512),
    ("pretrain", 3, "h100", 8, 512),
    ("pretrain", 2, "cpu2", 2, 64),
    ("finetune", 4, "h100", 8, 64),
    ("finetune", 7, "a100", 1, 16),
]


def written(command: str, number: int, micro: int, *, gpus: int, folder: Path) -> Path:
    zero = "zero: {stage: 1}\ncompile: true" if command == "pretrain" else "init: null\nzero: 0"
    path = folder / "config.yaml"
    path.write_text(
        f"model: {{name: coatnet_{number}}}\nnorm: {{group_images: 1}}\ndata: {{train: [{{path: no}}]}}\n"
        f"precision: bf16\n{zero}\ntrain: {{global_batch: {4 * gpus * micro}, micro_batch: {micro}}}\n"
    )
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("command", "number", "hardware", "gpus", "micro"), LAYOUTS)
def test_what_is_said_to_fit_fits_when_it_is_planned(
    command: str, number: int, hardware: str, gpus: int, micro: int, tmp_path: Path
) -> None:
    config = written(command, number, micro, gpus=gpus, folder=tmp_path)
    given = [f"hardware={hardware}", f"gpus_per_node={gpus}"]
    plan, _ = plan_of(command, config, given)
    assert not plan.fits
    found, _ = advice_of(command, config, given, plan=plan)
    assert found and len(set(found)) == len(found)
    for words in found:
        mended, _ = plan_of(command, config, [*given, *words.split()])
        assert mended.fits, words
    sizes = [int(words.removeprefix("train.micro_batch=")) for words in found if words.startswith("train.m")]
    for size in sizes:  # the largest that fits
        larger = next(each for each in range(size + 1, micro + 1) if 4 * micro % each == 0)
        assert not plan_of(command, config, [*given, f"train.micro_batch={larger}"])[0].fits


@pytest.mark.slow
def test_nothing_is_said_of_what_fits_and_of_what_nothing_mends(tmp_path: Path) -> None:
    config = written("pretrain", 7, 8, gpus=8, folder=tmp_path)
    plan, _ = plan_of("pretrain", config, ["hardware=h200"])
    assert plan.fits and advice_of("pretrain", config, ["hardware=h200"], plan=plan)[0] == []
    small = tmp_path / "small.yaml"
    small.write_text(
        "name: small\nmemory_bytes: 2.5e9\nmatmul_flops: {bf16: 1.0e14, fp32: 1.0e13}\n"
        "copy_bytes_per_second: 1.0e12\n"
    )
    plan, _ = plan_of("pretrain", config, [f"hardware={small}"])
    assert not plan.fits and advice_of("pretrain", config, [f"hardware={small}"], plan=plan) == ([], {})


@pytest.mark.slow
def test_the_command_prints_the_remedies_and_lists_them_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", str(written("pretrain", 4, 512, gpus=8, folder=tmp_path)), "hardware=h100"]
    assert run(words) == 0
    printed = capsys.readouterr().out
    assert "does not fit" in printed and "would fit: train.micro_batch=" in printed
    assert run([*words, "--json"]) == 0
    advice = json.loads(capsys.readouterr().out)
    listed = advice["remedies"]
    assert advice["quicker"] == {} and "quicker" not in printed, "what does not fit has other troubles"
    assert listed and all(f"would fit: {each}" in printed for each in listed)


SLOW = (
    "model: {name: coatnet_4}\nnorm: {group_images: 8}\ndata: {train: [{path: no}]}\n"
    "train: {global_batch: 4096, micro_batch: 16, activation_checkpointing: [S2]}\n"
)


@pytest.mark.slow
def test_what_is_said_to_be_quicker_is_by_as_much_when_it_is_planned(tmp_path: Path) -> None:
    config, given = tmp_path / "config.yaml", ["hardware=h100", "nodes=8"]
    config.write_text(SLOW + "precision: autocast\nzero: {stage: 2}\n")
    plan, _ = plan_of("pretrain", config, given)
    _, found = advice_of("pretrain", config, given, plan=plan)
    assert set(found) >= {
        "zero.overlap_communication=true", "compile=true", "train.micro_batch=64", "zero.stage=1",
    }  # fmt: skip
    assert list(found.values()) == sorted(found.values(), reverse=True)
    for words, spared in found.items():
        mended, _ = plan_of("pretrain", config, [*given, words])
        assert mended.fits and mended.step_seconds == pytest.approx((1 - spared) * plan.step_seconds)
    quickest, _ = plan_of("pretrain", config, [*given, *found])
    assert advice_of("pretrain", config, [*given, *found], plan=quickest) == ([], {})


def test_nothing_is_said_to_be_quicker_where_deepspeed_could_not_or_batch_norm_would_change(
    tmp_path: Path,
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(SLOW + "precision: bf16\nzero: {stage: 1}\ncompile: true\n")
    for given in (["nodes=8", "train.activation_checkpointing=[]"], ["nodes=1", "norm.group_images=null"]):
        plan, _ = plan_of("pretrain", config, given)
        _, found = advice_of("pretrain", config, given, plan=plan)
        assert not any("overlap" in words or "zero.stage" in words for words in found)
        assert ("train.micro_batch=64" in found) == (given[0] == "nodes=8")
