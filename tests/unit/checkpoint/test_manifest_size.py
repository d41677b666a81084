"""How large a manifest becomes is known before the first step: one too large is written and never read."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.admission import check_start
from cluster.planning.request import plan_of
from coatnet.checkpoint import inspection
from coatnet.checkpoint.format import Manifest, Piece, RankFile, manifest_to_json, write_json
from coatnet.checkpoint.inspection import check_manifest_size
from coatnet.config import UserError, load_config
from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory
from pretrain import worker
from pretrain.config import PretrainConfig
from pretrain.launch import launch

REFUSAL = r"^zero\.stage is 3: a checkpoint of coatnet_0 on 4 ranks would have 2,.* or zero\.stage=1$"


def test_a_piece_takes_as_many_bytes_of_the_manifest_as_is_reckoned_with(tmp_path: Path) -> None:
    """Of the largest network at the middle one of so many ranks as its manifest has room for."""
    model, ranks = build_model(ModelConfig(name="coatnet_7"), device="meta"), 1400
    pieces, offset = [], 0
    for name, tensor in model.named_parameters():
        for kind in ("weight", "exp_avg", "exp_avg_sq", "ema"):
            own = -(-tensor.numel() // ranks)
            hashed, begin = f"{hash((kind, name)) % 2**64:016x}", own * ranks // 2
            one = Piece(kind, name, tuple(tensor.shape), begin, own, "F32", offset, 4 * own, hashed)
            pieces.append(one)
            offset += one.bytes
    file = RankFile("rank-00700.safetensors", offset, 500_000, "0" * 16, tuple(pieces))
    write_json(tmp_path / "manifest.json", manifest_to_json(Manifest(1, 8, 1, 1, (file,))))
    found = (tmp_path / "manifest.json").stat().st_size / len(pieces)
    assert found == pytest.approx(inspection._PIECE_BYTES, rel=0.01)


@pytest.mark.parametrize(("averaged", "most"), [(False, 1949), (True, 1453)])
def test_at_stage_three_ranks_times_tensors_have_a_bound_and_below_it_none(averaged: bool, most: int) -> None:
    model = ModelConfig(name="coatnet_7")
    check_manifest_size(model, ranks=most, stage=3, averaged=averaged)
    with pytest.raises(UserError, match=rf"on {most + 1:,} ranks .* allowed: 5,506,368, or zero\.stage=1$"):
        check_manifest_size(model, ranks=most + 1, stage=3, averaged=averaged)
    check_manifest_size(model, ranks=1_000_000, stage=2, averaged=averaged)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a config whose manifest finds no room."""
    monkeypatch.setattr(inspection, "MAX_MANIFEST_BYTES", 2000 * inspection._PIECE_BYTES)
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "0.jpg").touch()
    path = tmp_path / "config.yaml"
    path.write_text(
        f"run: {{directory: {tmp_path / 'run'}}}\ndata: {{train: [{{path: {tmp_path / 'photos'}}}]}}\n"
        "train: {global_batch: 8, duration: 8 images}\nzero: {stage: 3}\nlaunch: {ranks: 4}\n"
    )
    return path


def test_plan_submit_and_start_refuse_what_would_be_saved_and_not_read(config: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=REFUSAL):
        launch(str(config), [], force=False)
    with pytest.raises(UserError, match=REFUSAL):
        plan_of("pretrain", config, ["hardware=h100", "gpus_per_node=4"])
    read, run = load_config(PretrainConfig, config), RunDirectory(tmp_path / "run")
    with pytest.raises(UserError, match=REFUSAL):
        check_start(read, run=run, world_size=4)
    with pytest.raises(UserError, match=REFUSAL):
        worker._make_run(read, run=run, ranks=Ranks(world_size=4))
    check_start(read, run=run, world_size=2)
    assert not run.path.exists()
