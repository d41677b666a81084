"""The batch scripts as they were when people last read them; COATNET_GOLDEN=write renews the files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.job import Job
from cluster.launch import Attempt, rank_command
from cluster.script import render_script
from cluster.site import ContainerConfig, SiteConfig

FOLDER = Path(__file__).parent / "cluster"
CASES = {
    "requeue": SiteConfig(partition="gpu", account="vision", nodes=8, time="2-00:00:00"),
    "chain_with_spares": SiteConfig(
        nodes=8, spares=1, continuation="chain", constraint="h100&ib", exclude="n[7-9]",
        modules=["cuda/12.6"],
        setup_script="/site/setup.sh",
        environment=["HF_HOME"], sbatch=["--mail-type=FAIL"],
    ),
    "container": SiteConfig(
        nodes=2, qos="long", container=ContainerConfig("pyxis", "/images/coatnet.sqsh", ["/data:/data:ro"])
    ),
    "array": SiteConfig(nodes=1, tasks_per_node=1, gpus_per_node=0, cpus_per_task=32, time="12:00:00"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_script_and_its_srun_are_as_they_were(name: str) -> None:
    job = Job(
        name="imagenet",
        directory="/scratch/runs/imagenet",
        command=["pretrain", "/scratch/runs/imagenet/submissions/0001/config.yaml"],
        site=CASES[name],
        python="/opt/coatnet/bin/python3",
        program="/opt/coatnet/bin/coatnet",
        code="/scratch/runs/imagenet/submissions/code-0123456789ab",
        working_directory="/home/me/coatnet",
        array=21 if name == "array" else 0,
    )
    script = render_script(job, job_file=Path("/scratch/runs/imagenet/submissions/0001/job.json"))
    argv = rank_command(
        job, attempt=Attempt("12", 1, 1), nodes=["n1", "n2"], directory=Path(job.directory), task=None
    )
    text = (
        script
        + "\n# what the supervisor starts, one word a line\n"
        + "".join(f"#   {word}\n" for word in argv)
    )
    path = FOLDER / f"{name}.sh"
    if os.environ.get("COATNET_GOLDEN") == "write":
        FOLDER.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"{path.name} differs; read the change, then renew it"
