"""The ranks of a job and what they say to each other."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from coatnet.config import UserError
from coatnet.runtime.endings import RankError
from coatnet.runtime.memory import keep_freed_memory
from coatnet.runtime.rendezvous import choose_interface, find_place
from coatnet.runtime.run_directory import cannot_write

_TIMEOUT_SECONDS = 600
_ENDLESS = timedelta(days=365)


@dataclass(frozen=True)
class Ranks:
    """Who this process is among its peers, and the few collectives that a run needs.

    Units: `rank` counts over all nodes, `local_rank` over the processes of this node.

    Attributes:
        mailbox: torch's key-value store, in which ranks leave words for each other.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    device_type: str = "cpu"
    distributed: bool = False
    mailbox: Any = field(default=None, compare=False)

    @classmethod
    def single(cls, *, deterministic: bool = False) -> Ranks:
        """One process without a process group."""
        return cls(device_type=_prepare_device(deterministic=deterministic))

    @classmethod
    def start(cls, *, timeout_seconds: float = _TIMEOUT_SECONDS, deterministic: bool = False) -> Ranks:
        """Join the process group that torchrun, SLURM or our launcher set up in the environment.

        Args:
            deterministic: on a GPU, use only kernels that give the same bits every time.

        Raises:
            UserError: no rank variables in the environment, no network interface towards the first node, or
                more ranks than GPUs.
        """
        allow_open_files()
        place = find_place()
        kind = _prepare_device(deterministic=deterministic)
        # DeepSpeed and accelerate ask for the first, `norm.sync: node` for the second; srun sets neither.
        os.environ.setdefault("LOCAL_RANK", str(place.local_rank))
        os.environ.setdefault("LOCAL_WORLD_SIZE", str(place.local_world_size))
        if kind == "cuda":
            own = place.local_rank % torch.cuda.device_count()
            torch.cuda.set_device(own)
            # The former take it for the device's number: not so where srun shows each task one GPU alone.
            os.environ["LOCAL_RANK"] = str(own)
        choose_interface(os.environ["MASTER_ADDR"])
        timeout = timedelta(seconds=timeout_seconds)
        mailbox, rank, world_size = next(
            dist.rendezvous("env://", place.rank, place.world_size, timeout=timeout)
        )
        dist.init_process_group(
            "nccl" if kind == "cuda" else "gloo",
            store=dist.PrefixStore("group", mailbox),
            rank=rank,
            world_size=world_size,
            timeout=timeout,
        )
        ranks = cls(rank, world_size, place.local_rank, place.local_world_size, kind, True, mailbox)
        if dist.get_backend() == "nccl":
            refuse_shared_gpu(mailbox, ranks.device)
        return ranks

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes what is written once."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this rank's tensors live."""
        if self.device_type == "cuda":
            return torch.device("cuda", self.local_rank % torch.cuda.device_count())
        return torch.device(self.device_type)

    @property
    def device_name(self) -> str:
        """Return the GPU's name as its driver tells it, "cpu" without one."""
        return torch.cuda.get_device_name(self.device) if self.device_type == "cuda" else "cpu"

    def say(self, text: str) -> None:
        """Print a line for whoever looks on, once for all ranks; above a progress bar where there is one."""
        if self.is_main:
            print(text, file=sys.stderr, flush=True)

    def try_on_main(self, action: Callable[[], None], *, folder: Path) -> None:
        """Let the main rank do what may fail; all ranks call this, and hear of it.

        Args:
            action: what it does.
            folder: where it writes, for the message.

        Raises:
            UserError: on each of them, where it failed.
        """
        trouble = None
        if self.is_main:
            try:
                action()
            except UserError as error:
                trouble = str(error)
            except OSError as error:
                trouble = str(cannot_write(error, folder=folder))
        trouble = self.broadcast(trouble)
        if trouble is not None:
            raise UserError(trouble)

    def wait_patiently(self) -> None:
        """Let collectives wait for as long as they must, since a watchdog is there by now to end what hangs.

        torch counts the time in which a suspended job was not there, and would end it when it comes back.
        Groups that are made later, and whatever waits in one already, keep their bounds.
        """
        if not self.distributed:
            return
        from torch.distributed import distributed_c10d

        for group in distributed_c10d._world.pg_map:  # DeepSpeed has one of its own
            distributed_c10d._set_pg_timeout(_ENDLESS, group)

    def barrier(self, *, timeout_seconds: float | None = None) -> None:
        """Wait for all ranks, at most as long as any collective does.

        Args:
            timeout_seconds: another bound; on a CPU only.

        Raises:
            RuntimeError: a rank did not arrive in time.
        """
        if not self.distributed:
            return
        if self.device_type == "cuda":
            dist.barrier(device_ids=[self.device.index])
        elif timeout_seconds is None:
            dist.barrier()
        else:
            dist.monitored_barrier(timeout=timedelta(seconds=timeout_seconds))

    def any(self, flag: bool) -> bool:
        """True on every rank when the flag is set on at least one."""
        own = torch.tensor([flag], dtype=torch.int32, device=self.device)
        self.all_reduce_sum(own)
        return bool(own)

    def all_reduce_sum(self, tensor: torch.Tensor) -> None:
        """Sum a tensor over all ranks, in place."""
        if self.distributed:
            dist.all_reduce(tensor)

    def table(self, own: torch.Tensor) -> torch.Tensor:
        """Return every rank's numbers, one row each, on the CPU. Shape: (n,) → (world size, n)."""
        everyone = torch.zeros(self.world_size, len(own), dtype=own.dtype, device=own.device)
        everyone[self.rank] = own
        self.all_reduce_sum(everyone)
        return everyone.cpu()

    def rows(self, own: torch.Tensor) -> torch.Tensor:
        """Return the rows of all ranks, in order of rank, on this rank's device.

        Shape: (n, …), n of each rank's own → (sum of all n, …).
        """
        if not self.distributed:
            return own
        if own.dtype == torch.bool:  # gloo adds up no booleans
            return self.rows(own.to(torch.uint8)).bool()
        counts = self.gather(len(own))
        begin = sum(counts[: self.rank])
        everyone = own.new_zeros(sum(counts), *own.shape[1:], device=self.device)
        everyone[begin : begin + len(own)] = own.to(self.device)
        self.all_reduce_sum(everyone)  # what a rank has not is zero, and a sum with zeros keeps every value
        return everyone

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's JSON-able value on every rank, what the others give being of no interest."""
        if not self.distributed:
            return value
        own = _as_bytes(value if self.is_main else None)
        return json.loads(self.rows(own if self.is_main else own[:0]).cpu().numpy().tobytes())

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's JSON-able value, on every rank. As JSON, so that nothing is unpickled."""
        if not self.distributed:
            return [value]
        text = _as_bytes(value).to(self.device)
        lengths = self.table(torch.tensor([len(text)], device=self.device))[:, 0].tolist()
        padded = text.new_zeros(max(lengths))
        padded[: len(text)] = text
        rows = self.table(padded)
        return [json.loads(row[:length].numpy().tobytes()) for row, length in zip(rows, lengths, strict=True)]

    def tell(self, key: str, text: str) -> None:
        """Leave a word for whoever asks for the key; from any thread, waits for nobody.

        Raises:
            RuntimeError: whoever keeps the words is gone.
        """
        self.mailbox.set(key, text)

    def heard(self, key: str, *, take: bool = True) -> str | None:
        """Return the word that was left under a key, None while there is none; it is gone if one takes it."""
        if not self.mailbox.check([key]):
            return None
        text = self.mailbox.get(key).decode()
        if take:
            self.mailbox.delete_key(key)
        return str(text)

    def stop(self) -> None:
        """Leave the process group."""
        if self.distributed:
            dist.destroy_process_group()


def refuse_shared_gpu(mailbox: Any, device: torch.device) -> None:
    """Refuse a GPU that another rank has taken: NCCL would, with a stack from every rank.

    Raises:
        UserError: it is the same.
    """
    card = torch.cuda.get_device_properties(device)
    if "MIG" not in card.name and mailbox.add(f"gpu {card.uuid}", 1) > 1:
        raise RankError(
            f"more ranks than GPUs: another one has this {card.name}, and NCCL wants one for each; give "
            f"launch.ranks={torch.cuda.device_count()} (evaluate: --ranks, torchrun: --nproc-per-node)"
        )


def _as_bytes(value: Any) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _prepare_device(*, deterministic: bool) -> str:
    """Return "cuda" or "cpu"; settle how memory is had, and that bits are kept if that is asked for.

    torch's CPU allocator is to ask for huge pages, of which it reads at its first large allocation, and on a
    CPU what tensors free is kept. Fresh memory is written once for every activation and gradient: 100 MB took
    0.08 to 0.14 s of CPU in pages of 4 KiB and 0.02 s in huge ones (0.01 s warm).
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if not torch.cuda.is_available():
        keep_freed_memory()
        return "cpu"
    if deterministic:
        _keep_the_bits()
    return "cuda"


def allow_open_files() -> None:
    """Let this process open as many files as it may: many systems begin with 1,024, and shards stay open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # as it was, then
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _keep_the_bits() -> None:
    """Use only kernels without races in their sums: a resumed run must end in the bits of an unbroken one.

    An error rather than a warning for what has no such kernel: with warnings alone the memory-efficient
    attention keeps its racing backward pass.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
