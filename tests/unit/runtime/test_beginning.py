"""What a rank does before it has loaded torch."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from coatnet.config import load_config
from coatnet.runtime.beginning import lease_early, loading
from coatnet.runtime.launch import run_ranks
from coatnet.runtime.lease import Lease, LeaseHeld, LeaseLost, newest_epoch
from coatnet.runtime.opening import opened_run
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.rendezvous import ENDED_TOGETHER
from coatnet.runtime.run_directory import RunDirectory
from pretrain.config import PretrainConfig

ROOT = Path(__file__).parents[3]
SLOW_TORCH = "import sys\nprint('loads', flush=True)\nsys.exit(sys.stdin.readline())"
ENDLESS_TORCH = "import time\nprint('loads', flush=True)\ntime.sleep(600)"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_run_is_held_while_its_rank_still_loads_torch(stage: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(SLOW_TORCH)
    command = [sys.executable, "-m", f"{stage}.worker", f"configs/quickstart_{stage}.yaml"]
    command += ["data.train=[{path: nowhere}]", f"run.directory={tmp_path}"]
    place = {"RANK": "0", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **place}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"loads\n"
        with pytest.raises(LeaseHeld, match=f"held by process {process.pid} on"):
            Lease.require_free(tmp_path)
        process.communicate(b"enough\n")
    assert newest_epoch(tmp_path) == 1 == Lease.require_free(tmp_path)


@pytest.mark.slow
def test_of_two_that_start_at_once_the_second_hears_of_the_first_while_torch_would_be_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torch.py").write_text(ENDLESS_TORCH)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    arguments = [str(ROOT / "configs/quickstart_pretrain.yaml"), "data.train=[{path: nowhere}]"]
    held = Lease.acquire(tmp_path / "run")  # taken since the launcher has looked
    began = time.monotonic()
    status = run_ranks("pretrain.worker", [*arguments, f"run.directory={tmp_path / 'run'}"], ranks=2)
    assert time.monotonic() - began < 5.0
    said, complaint = capfd.readouterr()
    assert status == 2 and f"held by process {os.getpid()} on" in complaint and "rank 1" not in complaint
    assert said in ("", "loads\n"), "the other rank alone"
    held.release()


TWO = {"RANK": "0", "WORLD_SIZE": "2"}
OF_SRUN = {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7", "MASTER_ADDR": "localhost"}


@pytest.mark.parametrize(
    "place",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {**OF_SRUN, "SLURM_NTASKS": "1"},
        {**TWO, ENDED_TOGETHER: "1"},
    ],
)
def test_where_nobody_waits_for_the_first_rank_it_hears_who_holds_the_run_before_torch_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: dict[str, str]
) -> None:
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    held = Lease.acquire(tmp_path)
    with pytest.raises(LeaseHeld, match=f"held by process {os.getpid()} on"):
        lease_early(tmp_path)
    held.release()


@pytest.mark.parametrize("place", [TWO, {**OF_SRUN, "SLURM_NTASKS": "2"}])
def test_a_lease_that_cannot_be_had_early_is_asked_for_again_where_others_would_wait_for_this_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: dict[str, str]
) -> None:
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    held = Lease.acquire(tmp_path / "held")
    assert lease_early(tmp_path / "held") is None
    held.release()
    (tmp_path / "file").touch()
    assert lease_early(tmp_path / "file") is None
    monkeypatch.setenv("RANK", "1")
    other = tmp_path / "of another rank"
    assert lease_early(other) is None and not newest_epoch(other)


def test_nothing_is_written_into_a_run_that_was_taken_over_while_torch_was_loading(tmp_path: Path) -> None:
    run, config = (
        RunDirectory(tmp_path),
        load_config(PretrainConfig, overrides=["data.train=[{path: nowhere}]"]),
    )
    lease = lease_early(tmp_path)
    assert lease is not None
    (tmp_path / "lease" / f"epoch-{lease.epoch + 1:08d}").touch()
    with (
        pytest.raises(LeaseLost),
        opened_run(run, ranks=Ranks.single(), config=config, force=None, lease=lease),
    ):
        pass
    assert not run.config.exists()


def test_what_takes_long_to_load_is_named_by_the_first_rank_and_what_does_not_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, spoke = list[str](), threading.Event()

    def say(text: str) -> None:
        said.append(text)
        spoke.set()

    monkeypatch.setattr("coatnet.runtime.beginning.say_from_a_handler", say)
    monkeypatch.setattr("coatnet.runtime.beginning._SILENT_SECONDS", 3600.0)
    with loading("quickly", tmp_path):
        pass
    monkeypatch.setattr("coatnet.runtime.beginning._SILENT_SECONDS", 0.0)
    with loading("DeepSpeed", tmp_path):
        assert spoke.wait(60.0)
    monkeypatch.setenv("SLURM_PROCID", "1")
    with loading("DeepSpeed", tmp_path):
        pass
    assert said == [f"{tmp_path}: loading DeepSpeed"]
