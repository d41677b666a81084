"""What evaluation says does not depend on how the work was cut; the commands around a finished run."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_server import FaultServer

from coatnet.config import UserError
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.sharder import shard_corpus
from finetune.cli import evaluate

Run = Callable[..., subprocess.CompletedProcess[str]]
EXACT = (
    "samples",
    "top1",
    "top5",
    "balanced_top1",
    "non_finite",
    "per_class",
    "most_confused",
    "top1_interval",
    "bad",
)


@pytest.mark.slow
def test_neither_batch_size_nor_ranks_change_a_figure(
    trained: Path, photos: Path, coatnet: Run, tmp_path: Path
) -> None:
    data = shutil.copytree(photos / "validation", tmp_path / "validation")
    for number, folder in enumerate(sorted(data.iterdir())):
        for copy in range(number + 1):
            (folder / f"broken-{copy}.jpg").write_bytes(b"no image")
    reports = [
        json.loads(coatnet("evaluate", trained, data, "--json", *cut).stdout)[0]
        for cut in (["--batch", "64"], ["--batch", "5"], ["--batch", "4", "--ranks", "2"])
    ]
    assert reports[0]["samples"] == 21 and reports[0]["bad_samples"] > 2
    for other in reports[1:]:
        for key in EXACT:
            assert other[key] == reports[0][key], key
        assert other["ece"] == pytest.approx(reports[0]["ece"], abs=1e-6)
        assert other["loss"] == pytest.approx(reports[0]["loss"], abs=1e-6)
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["top1"] == reports[0]["top1"]


@pytest.mark.slow
def test_a_set_behind_a_url_gives_the_figures_of_the_folder(
    trained: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the cache of shards is
    shards = tmp_path / "shards"
    shard_corpus(photos / "validation", shards, options=ShardOptions(shard_samples=6), quiet=True)
    with FaultServer(shards) as server:
        server.faults["shard-000001.tar"] = ["503", "cut"]
        evaluate(trained, server.url, as_json=True)
        remote = json.loads(capsys.readouterr().out)[0]
        with pytest.raises(UserError, match=f"{server.url}/nothing/manifest.json: .*404"):
            evaluate(trained, f"{server.url}/nothing")
    assert remote["bad_samples"] == 0 and server.requests["shard-000001.tar"] == 3
    evaluate(trained, str(shards), as_json=True)
    local = json.loads(capsys.readouterr().out)[0]
    assert {key: remote[key] for key in EXACT} == {key: local[key] for key in EXACT}


@pytest.mark.slow
def test_several_resolutions_make_a_table_and_a_plot(
    trained: Path, photos: Path, coatnet: Run, tmp_path: Path
) -> None:
    done = coatnet(
        "evaluate", trained, photos / "validation", "--px", "32", "--px", "64", "--destination", tmp_path
    )
    assert "top-1" in done.stdout and "64" in done.stdout
    reports = json.loads((tmp_path / "evaluation.json").read_text())
    assert [report["image_size"] for report in reports] == [32, 64]
    assert reports[1]["gmacs"] > reports[0]["gmacs"]
    for name in ("resolutions.png", "confusion-32.csv", "confusion-64.png", "classes-64.csv"):
        assert (tmp_path / name).stat().st_size > 0, name


@pytest.mark.slow
def test_predict_names_a_folder_and_goes_on_after_a_broken_file(
    trained: Path, photos: Path, coatnet: Run, tmp_path: Path
) -> None:
    (tmp_path / "good.jpg").write_bytes((photos / "validation" / "green" / "000.jpg").read_bytes())
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    done = coatnet("predict", trained, tmp_path, "--top", "2", "--json", check=False)
    rows = {Path(row["image"]).name: row for row in json.loads(done.stdout)}
    assert done.returncode == 1 and "error" in rows["broken.jpg"]
    assert len(rows["good.jpg"]["guesses"]) == 2
