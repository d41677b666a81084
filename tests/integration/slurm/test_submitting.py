"""What a submission that ends too early leaves behind, on a real SLURM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import slurm
from cluster.history import History
from cluster.site import SiteConfig
from cluster.status import find_runs, read_status
from cluster.submission import Request, prepare, submit
from coatnet.config import UserError

from fake_cluster import FakeCluster
from runs import Run
from training import make_photos

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

COATNET = str(Path(sys.executable).parent / "coatnet")


def test_a_submission_that_is_killed_right_after_sbatch_has_its_job_found(
    slurm_cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm_cluster.environment["SLURM_CONF"])
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "photos", seed=0, per_class=4)
    deadly = tmp_path / "programs" / "sbatch"
    deadly.parent.mkdir()
    deadly.write_text('#!/bin/sh\n/usr/bin/sbatch "$@" > printed\nkill -9 $PPID\n')
    deadly.chmod(0o755)
    words = ["photos", "shards", "--command", "shard", "--directory", "runs/shard", "--time", "00:30:00"]
    words += ["--set", "cpus_per_task=1", "--sbatch=--begin=now+1hour"]
    path = f"{deadly.parent}:{os.environ['PATH']}"
    killed = subprocess.run([COATNET, "submit", *words], env={**os.environ, "PATH": path}, check=False)
    assert killed.returncode == -9

    job_id = Path("printed").read_text().strip()
    run = Run(slurm_cluster, tmp_path / "runs" / "shard", 0, job_id)
    assert find_runs([Path("runs")]) == [Path("runs/shard")]
    found = read_status(run.directory, queue=slurm.queue())
    assert (found.state, found.job_id, found.lives) == ("pending", job_id, 0)
    again = Request("shard", "photos", ("shards",), SiteConfig(gpus_per_node=0), directory=run.directory)
    with pytest.raises(UserError, match=f"has job {job_id} already"):
        submit(prepare(again))

    slurm_cluster.client("scontrol", "update", f"JobId={job_id}", "StartTime=now")
    assert run.ends("COMPLETED", "FAILED") == "COMPLETED", run.log()
    assert History(run.directory).job_ids() == [job_id]
    assert read_status(run.directory, queue=slurm.queue()).state == "done"
