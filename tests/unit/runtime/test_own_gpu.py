"""What a rank tells those who read the environment: its GPU's number, and how many ranks its node has."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from coatnet.config import UserError
from coatnet.runtime.ranks import Ranks, refuse_shared_gpu


@pytest.mark.parametrize(("local_rank", "shown", "own"), [(3, 8, 3), (3, 1, 0), (0, 1, 0)])
@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_the_environment_names_the_gpu_that_a_task_is_shown_and_the_ranks_of_its_node(
    monkeypatch: pytest.MonkeyPatch, local_rank: int, shown: int, own: int, launcher: str
) -> None:
    """srun with --gpus-per-task shows each task one GPU alone, as number 0."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # to be put back afterwards, whoever sets it
        monkeypatch.delenv(name)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
    if launcher == "srun":
        place |= {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": str(local_rank)}
        place |= {"SLURM_JOB_ID": "1", "SLURM_NTASKS_PER_NODE": "4"}
    else:
        place |= {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": str(local_rank)}
        place |= {"LOCAL_WORLD_SIZE": "4"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    set_to: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: shown)
    monkeypatch.setattr("torch.cuda.set_device", set_to.append)
    monkeypatch.setattr("coatnet.runtime.ranks.choose_interface", lambda address: None)
    mailbox = torch.distributed.HashStore()
    monkeypatch.setattr("torch.distributed.rendezvous", lambda *_, **__: iter([(mailbox, 3, 8)]))
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: None)
    monkeypatch.setattr("torch.distributed.get_backend", lambda: "gloo")
    ranks = Ranks.start()
    assert set_to == [own] and os.environ["LOCAL_RANK"] == str(own)
    assert os.environ["LOCAL_WORLD_SIZE"] == "4", "norm.sync: node would be off"
    assert ranks.local_rank == local_rank and ranks.device == torch.device("cuda", own)


def test_a_second_rank_on_one_gpu_is_told_how_many_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL refuses it as well, in words of its own."""
    seen = SimpleNamespace(uuid="", name="NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: seen)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    mailbox, device = torch.distributed.HashStore(), torch.device("cuda", 0)
    for seen.uuid in ("one", "other"):
        refuse_shared_gpu(mailbox, device)
    with pytest.raises(UserError, match=r"more ranks than GPUs.*launch\.ranks=2"):
        refuse_shared_gpu(mailbox, device)
    seen.name += " MIG 1g.10gb"  # parts of a card may be called like the whole one
    refuse_shared_gpu(mailbox, device)
