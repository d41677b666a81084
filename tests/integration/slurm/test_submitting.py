"""What a submission that ends too early leaves behind, on a real SLURM."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import slurm
from cluster.cancel import cancel_run
from cluster.cli import status
from cluster.history import History
from cluster.site import SiteConfig
from cluster.status import find_runs, read_status
from cluster.submission import Request, prepare, submit
from coatnet.config import UserError

from fake_cluster import FakeCluster
from runs import Run, start
from training import make_photos

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

_NOBODY = 65534
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
    shown = slurm_cluster.client("scontrol", "--oneliner", "show", "job", job_id)
    assert f" StartTime={found.expected_start} " in shown and "T" in str(found.expected_start)
    again = Request("shard", "photos", ("shards",), SiteConfig(gpus_per_node=0), directory=run.directory)
    with pytest.raises(UserError, match=f"has job {job_id} already"):
        submit(prepare(again))

    slurm_cluster.client("scontrol", "update", f"JobId={job_id}", "StartTime=now")
    assert run.ends("COMPLETED", "FAILED") == "COMPLETED", run.log()
    assert History(run.directory).job_ids() == [job_id]
    assert read_status(run.directory, queue=slurm.queue()).state == "done"


def test_while_the_controller_is_away_no_run_is_called_lost_and_none_cancelled(
    slurm_cluster: FakeCluster,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = start(slurm_cluster, tmp_path / "run", options=("asked_at=1",))
    run.reach(1)
    configured = Path(slurm_cluster.environment["SLURM_CONF"]).read_text()
    impatient = tmp_path / "slurm.conf"
    impatient.write_text(re.sub(r"(MessageTimeout|TCPTimeout)=\d+", r"\1=2", configured))
    monkeypatch.setenv("SLURM_CONF", str(impatient))
    slurm_cluster.kill_controller(job_id=run.job_id)
    try:
        status([run.directory])
        printed = " ".join(capsys.readouterr().out.split())
        assert "states are read from the run directories alone: squeue: " in printed
        assert "SLURM knows no job" not in printed
        with pytest.raises(UserError, match="marked as cancelled, but not all of its jobs are ended"):
            cancel_run(run.directory)
        with pytest.raises(UserError, match="Unable to contact slurm controller"):
            submit(prepare(Request("shard", "a", ("b",), SiteConfig(), directory=tmp_path / "other")))
        assert find_runs([tmp_path / "other"]) == []
    finally:
        slurm_cluster.start_controller()
    assert cancel_run(run.directory) == [run.job_id]
    assert run.ends("COMPLETED", "CANCELLED", "FAILED") == "CANCELLED"


@pytest.mark.skipif(os.getuid() != 0, reason="an ordinary user is played, whom SLURM hides it from")
def test_a_job_in_a_partition_that_the_site_hides_is_seen(
    slurm_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm_cluster.environment["SLURM_CONF"])
    script = slurm_cluster.root / "script.sh"
    script.write_text("#!/bin/sh\nsleep 600\n")
    slurm_cluster.client("scontrol", "update", "PartitionName=short", "Hidden=YES")
    os.setresgid(_NOBODY, _NOBODY, 0)
    os.setresuid(_NOBODY, _NOBODY, 0)
    try:
        assert [one.limit_seconds for one in slurm.partitions("short")] == [600]
        job_id = slurm.sbatch(str(script), "--partition=short", "--time=5", "--output=/dev/null")
        assert slurm.queue()[job_id].is_alive
        slurm.cancel_job(job_id)
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        slurm_cluster.client("scontrol", "update", "PartitionName=short", "Hidden=NO")
