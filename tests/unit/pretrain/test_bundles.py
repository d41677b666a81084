"""Replay bundles: whole or absent, without a copy of the weights; what the command says of them."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest

from coatnet.config import UserError
from pretrain.bundles import Bundle, bundle_path, find_bundles, read_bundle, read_config, write_bundle
from pretrain.replay_table import print_replay, run_replay

BUNDLE = Bundle(
    event="skipped_step",
    step=12,
    samples_seen=88,
    samples=8,
    applied_steps=11,
    applied=False,
    loss="nan",
    gradient_norm="inf",
    micro_batch=4,
    world_size=2,
    data={"seed": 1},
)
FOUND = {
    "step": 12,
    "event": "spike",
    "observed": {"loss": 9.0, "gradient_norm": 40.0},
    "steps": [
        {"step": 11, "loss": 1.5, "recorded_loss": 1.5, "gradient_norm": 1.0},
        {"step": 12, "loss": 1.25, "recorded_loss": None, "gradient_norm": "inf"},
    ],
    "worst_samples": [{"position": 91, "name": "shard[3] [red]x.jpg", "loss": 4.5}],
    "reproduced": False,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    checkpoint = tmp_path / "checkpoints" / "step-00000011"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    return tmp_path


def keep(run: Path, bundle: Bundle) -> Path:
    checkpoint = run / "checkpoints" / "step-00000011"
    return write_bundle(run, bundle, config=run / "config.yaml", checkpoint=checkpoint)


def test_a_bundle_reads_back_and_outlives_its_checkpoint_without_a_copy(run: Path) -> None:
    folder = keep(run, BUNDLE)
    assert folder == bundle_path(run, 12) and find_bundles(run) == [12]
    original = run / "checkpoints" / "step-00000011" / "manifest.json"
    assert (folder / "checkpoint" / "manifest.json").samefile(original)
    original.unlink()
    assert (folder / "checkpoint" / "manifest.json").read_text() == "{}"
    assert read_bundle(folder) == BUNDLE and not list((run / "replays").glob(".*"))


def test_what_a_killed_life_left_of_a_bundle_goes_with_the_next_one(run: Path) -> None:
    left = run / "replays" / ".step-00000007.1.tmp" / "checkpoint"
    left.mkdir(parents=True)
    (left / "manifest.json").hardlink_to(run / "checkpoints" / "step-00000011" / "manifest.json")
    assert find_bundles(run) == [] and [keep(run, BUNDLE)] == [*(run / "replays").iterdir()]


def test_a_full_disk_leaves_nothing_of_a_bundle(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("pretrain.bundles.write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        keep(run, BUNDLE)
    assert not [*(run / "replays").iterdir()]


def test_the_same_step_of_a_later_life_replaces_the_bundle(run: Path) -> None:
    keep(run, BUNDLE)
    keep(run, replace(BUNDLE, loss=3.0))
    assert read_bundle(bundle_path(run, 12)).loss == 3.0


def test_what_is_not_there_is_named(run: Path) -> None:
    with pytest.raises(UserError, match="holds no replay bundle"):
        run_replay(run)
    keep(run, BUNDLE)
    with pytest.raises(UserError, match="no replay bundle of step 13; there are 12"):
        run_replay(run, step=13)
    (bundle_path(run, 12) / "bundle.json").write_text('{"steps": 1}')
    with pytest.raises(UserError, match="not a replay bundle"):
        read_bundle(bundle_path(run, 12))


def test_a_replay_may_be_told_where_the_data_are_by_now_and_not_another_step(run: Path) -> None:
    (run / "config.yaml").write_text("data: {train: [{path: gone}]}\n")
    folder = keep(run, BUNDLE)
    found = read_config(folder, overrides=["data.train=[{path: elsewhere}]", "data.threads=1"])
    assert [one.path for one in found.data.train] == ["elsewhere"] and found.data.threads == 1
    for other in ("data.train=[{path: elsewhere, weight: 2}, {path: more}]", "seed=7", "precision=bf16"):
        with pytest.raises(UserError, match=r"makes it another run's step; give only what may change"):
            read_config(folder, overrides=[other])


def test_the_table_sets_what_came_now_beside_what_was_seen(capsys: pytest.CaptureFixture[str]) -> None:
    print_replay(FOUND, as_json=False)
    shown = capsys.readouterr().out
    for word in ("1.25", "9", "inf", "shard[3] [red]x.jpg", "not reproduced"):
        assert word in shown
    alike = {**FOUND, "reproduced": True, "tolerance": 1e-4, "world_size": 2, "equal_bits": False}
    for found, said in (
        (alike, "reproduced within 0.0001, since 2 ranks add up in another order"),
        (
            alike | {"world_size": 1},
            "reproduced within 0.0001, since threads, versions or kernels are others",
        ),
        (alike | {"equal_bits": True}, "reproduced to the bit"),
    ):
        print_replay(found, as_json=False)
        assert said in " ".join(capsys.readouterr().out.split())
    print_replay(FOUND, as_json=True)
    assert json.loads(capsys.readouterr().out) == FOUND
