"""Bad input through the command line: one clear line, status 2, and nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[2]


def coatnet(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coatnet.cli", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def one_error(done: subprocess.CompletedProcess[str], *words: str) -> None:
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0, done.stdout + done.stderr
    assert len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in errors[0], errors[0]


def make_images(folder: Path, *, classes: int = 3, each: int = 8) -> Path:
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(each):
            colour = (80 * label, 20 * number, 60)
            Image.new("RGB", (40, 40), colour).save(folder / f"class{label}" / f"{number}.jpg")
    return folder


def test_an_empty_folder_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    one_error(coatnet("shard", tmp_path / "empty", tmp_path / "shards"), str(tmp_path / "empty"))
    assert not list(tmp_path.rglob("*.tar*"))


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    (make_images(tmp_path / "images") / "hollow").mkdir()
    one_error(coatnet("shard", tmp_path / "images", tmp_path / "shards"), "hollow")
    assert not list(tmp_path.rglob("*.tar*"))


def test_an_unreadable_image_is_named_counted_and_skipped_within_the_budget(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", each=200)
    (images / "class1" / "broken.jpg").write_bytes(b"no image at all")
    done = coatnet("shard", images, tmp_path / "shards")
    assert done.returncode == 0, done.stderr
    assert "1 skipped" in done.stdout + done.stderr
    assert "broken.jpg" in (tmp_path / "shards" / "report.jsonl").read_text()


def test_too_many_unreadable_images_stop_the_sharder(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    for number in range(20):
        (images / "class1" / f"broken{number}.jpg").write_bytes(b"no image at all")
    one_error(coatnet("shard", images, tmp_path / "shards"), "broken")
    assert not (tmp_path / "shards" / "manifest.json").exists()


def test_a_full_disk_while_sharding_leaves_no_half_written_shard(tmp_path: Path, mounted: Any) -> None:
    images = make_images(tmp_path / "images", each=100)
    with mounted(tmp_path / "small", "size=128k") as small:
        one_error(coatnet("shard", images, small / "shards"), "the disk is full", str(small))
        assert not (small / "shards" / "manifest.json").exists()
        assert not list(small.rglob("*.tmp"))


def test_a_corpus_that_is_not_there_is_named_before_a_rank_starts(tmp_path: Path) -> None:
    done = coatnet(
        "pretrain",
        "configs/quickstart_pretrain.yaml",
        f"run.directory={tmp_path / 'run'}",
        f"data.train=[{{path: {tmp_path / 'nowhere'}}}]",
        "launch.ranks=1",
    )
    one_error(done, "nowhere")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    assert coatnet("shard", images, tmp_path / "shards").returncode == 0
    shard = next((tmp_path / "shards").glob("*.tar"))
    shard.unlink()
    done = coatnet(
        "pretrain",
        "configs/quickstart_pretrain.yaml",
        f"run.directory={tmp_path / 'run'}",
        f"data.train=[{{path: {tmp_path / 'shards'}}}]",
        "launch.ranks=1",
    )
    one_error(done, shard.name)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    from coatnet.checkpoint.weights import Weights, export_safetensors
    from coatnet.model.config import ModelConfig
    from coatnet.model.network import build_model

    images = make_images(tmp_path / "images")
    assert coatnet("shard", images, tmp_path / "shards").returncode == 0
    other = ModelConfig(depths=[1, 1, 1, 1, 1], widths=[8, 8, 16, 32, 32], image_size=32, num_classes=3)
    export_safetensors(Weights(other, build_model(other, seed=0).state_dict()), tmp_path / "other")
    done = coatnet(
        "finetune",
        "configs/quickstart_finetune.yaml",
        f"run.directory={tmp_path / 'run'}",
        f"init={tmp_path / 'other'}",
        f"data.train=[{{path: {tmp_path / 'shards'}}}]",
        f"data.evaluate={tmp_path / 'shards'}",
        "launch.ranks=1",
    )
    one_error(done, "model")


def test_a_config_typo_names_the_nearest_key_and_leaves_no_run_directory(tmp_path: Path) -> None:
    done = coatnet(
        "finetune",
        "configs/quickstart_finetune.yaml",
        f"run.directory={tmp_path / 'run'}",
        "optimiser.clip=1",
    )
    one_error(done, "unknown key optimiser", "optimizer")
    assert not (tmp_path / "run").exists()
