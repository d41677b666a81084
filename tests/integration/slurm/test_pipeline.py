"""Photographs to figures by one file on a real SLURM: an array of shards, two trainings, an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster import slurm
from cluster.pipeline import prepare_pipeline, submit_pipeline
from cluster.site import load_site
from cluster.status import read_status

from fake_cluster import FakeCluster
from training import CONFIG, STEPS, make_photos, samples_seen_in

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.every_scenario, pytest.mark.timeout(1200)]

PIPELINE = """\
stages:
  shard:
    {command: shard, target: "photos/part-{task}", arguments: ["shards/part-{task}"], directory: runs/shard,
     array: 2}
  pretrain:
    {command: pretrain, target: pretrain.yaml, arguments: [run.directory=runs/pretrain], after: [shard],
     site: {nodes: 2}}
  finetune:
    {command: finetune, target: finetune.yaml, arguments: [run.directory=runs/finetune], after: [pretrain]}
  evaluate:
    {command: evaluate, target: runs/finetune, arguments: [shards/part-0, --destination, figures],
     directory: runs/evaluate, after: [finetune]}
"""
SITE = """\
gpus_per_node: 0
cpus_per_task: 1
time: "00:30:00"
preflight: {enabled: false}
"""
FINETUNE = """\
init: runs/pretrain
data: {train: [{path: shards/part-0}, {path: shards/part-1}], threads: 1}
augment: {image_size: 32}
train: {duration: 10 steps, global_batch: 8}
"""


def submit(cluster: FakeCluster, folder: Path) -> dict[str, str]:
    """Submit the pipeline as `coatnet submit pipeline.yaml` does, with preloaded commands."""
    prepared = prepare_pipeline(folder / "pipeline.yaml", site=load_site(folder / "site.yaml"))
    for one in prepared.values():
        one.job.program = str(cluster.preloaded.program(folder / "program", pace=0.1))
    return submit_pipeline(folder / "pipeline.yaml", prepared)


def test_a_pipeline_goes_from_photographs_to_figures_although_a_stage_is_warned(
    slurm_cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm_cluster.environment["SLURM_CONF"])
    monkeypatch.chdir(tmp_path)
    for part in range(2):
        make_photos(tmp_path / "photos" / f"part-{part}", seed=part, per_class=30)
    corpora = "shards/part-0}, {path: shards/part-1"
    (tmp_path / "pretrain.yaml").write_text(
        CONFIG.format(shards=corpora, steps=STEPS, batch=8, every="15 steps")
    )
    for name, text in (("pipeline", PIPELINE), ("site", SITE), ("finetune", FINETUNE)):
        (tmp_path / f"{name}.yaml").write_text(text)

    jobs = submit(slurm_cluster, tmp_path)
    pretrain = Path("runs/pretrain")
    slurm_cluster.wait_for(lambda: samples_seen_in(pretrain) > 0, seconds=300, what="pretraining")
    assert submit(slurm_cluster, tmp_path) == {**jobs, "shard": "done"}, "what is queued is waited for"
    slurm_cluster.client("scancel", "--signal=USR1", "--batch", jobs["pretrain"])
    slurm_cluster.wait_for_state(jobs["evaluate"], "COMPLETED", "FAILED", "CANCELLED", seconds=900)

    for stage, lives in (("pretrain", 2), ("finetune", 1), ("evaluate", 1)):
        found = read_status(Path("runs") / stage, queue=slurm.queue())
        assert (found.state, found.lives) == ("done", lives), found
    assert read_status(Path("runs/shard"), queue=slurm.queue()).state == "done"
    assert json.loads((pretrain / "summary.json").read_text())["every_sample_once"]
    assert any(Path("figures").iterdir())
    assert submit(slurm_cluster, tmp_path) == dict.fromkeys(jobs, "done")
