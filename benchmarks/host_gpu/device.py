"""What torch's Python says of a CUDA device, answered for the host's (`device.cpp`)."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_BYTES = 80 << 30
_CARD = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3, which is the host", major=9, minor=0, multi_processor_count=132,
    total_memory=_BYTES, warp_size=32, max_threads_per_multi_processor=2048, regs_per_multiprocessor=65536,
    shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472, L2_cache_size=50 << 20,
    is_integrated=False, gcnArchName="",
)  # fmt: skip
_ANSWERS = {
    "is_available": True, "is_initialized": True, "is_bf16_supported": True, "_is_in_bad_fork": False,
    "is_current_stream_capturing": False, "current_device": 0, "device_count": 1, "_exchange_device": 0,
    "_maybe_exchange_device": 0, "get_device_capability": (9, 0), "get_device_name": _CARD.name,
    "get_device_properties": _CARD, "get_arch_list": ["sm_90"], "init": None, "_lazy_init": None,
    "set_device": None, "synchronize": None, "empty_cache": None, "ipc_collect": None, "manual_seed": None,
    "manual_seed_all": None, "set_rng_state": None, "set_rng_state_all": None,
}  # fmt: skip


class Stream:
    """A stream that has always done its work."""

    _count = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        import torch

        Stream._count += 1
        self.cuda_stream = self.stream_id = Stream._count
        self.device, self.device_index, self.device_type = torch.device("cuda", 0), 0, 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.stream_id == self.stream_id

    def __hash__(self) -> int:
        return hash(self.stream_id)

    def synchronize(self) -> None: ...
    def wait_stream(self, other: Stream) -> None: ...
    def wait_event(self, event: Event) -> None: ...

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        return True


class Event:
    """An event that has happened when it is recorded."""

    def __init__(self, **_: Any) -> None:
        self.at = 0.0

    def record(self, stream: Stream | None = None) -> None:
        self.at = time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None: ...
    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        return 1000 * (end.at - self.at)


def install(library: str) -> None:
    """Give this process the device. The first import of torch must be this one's."""
    assert "torch" not in sys.modules, "torch has been imported: the device comes before"
    device = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    device.host_gpu_held.restype = device.host_gpu_peak.restype = ctypes.c_int64
    import torch

    answer_for_card()
    cuda: Any = torch.cuda
    cuda.get_rng_state_all = lambda: [cuda.get_rng_state()]
    cuda.default_generators = (torch.default_generator,)
    cuda.nvtx.range_push = cuda.nvtx.range_pop = lambda *_, **__: 0
    torch._C._cuda_getCurrentRawStream = lambda *_: 0
    for place in (cuda, cuda.memory):
        _answer_for_memory(place, device)
    _name_streams(torch)
    _pin_nothing(torch)
    if torch.distributed.is_available():
        device.host_gpu_collectives()
        _carry_by_gloo(torch.distributed)
    find = importlib.util.find_spec  # there is no card that Triton could compile for
    importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)


def answer_for_card() -> None:
    """Let torch know one card, an H100."""
    import torch
    import torch.amp.autocast_mode as autocast

    cuda: Any = torch.cuda
    for name, answer in _ANSWERS.items():
        setattr(cuda, name, lambda *_, answer=answer, **__: answer)
    cuda.get_rng_state = lambda *_: torch.zeros(16, dtype=torch.uint8)
    places: list[Any] = [autocast, cuda.amp.common]
    for place in places:
        place.amp_definitely_not_available = lambda: False


def _answer_for_memory(place: Any, device: Any) -> None:
    held, peak = device.host_gpu_held, device.host_gpu_peak
    for name in ("memory_allocated", "memory_reserved", "memory_cached"):
        setattr(place, name, lambda *_: held())
        setattr(place, f"max_{name}", lambda *_: peak())
    for name in ("reset_peak_memory_stats", "reset_max_memory_allocated"):
        setattr(place, name, lambda *_: device.host_gpu_reset_peak())
    place.mem_get_info = lambda *_: (_BYTES - held(), _BYTES)
    place.memory_stats = lambda *_: {"allocated_bytes.all.peak": peak(), "num_alloc_retries": 0}
    place._record_memory_history = lambda *_, **__: None
    place._dump_snapshot = lambda path, **__: Path(path).write_bytes(bytes(2000))


def _name_streams(torch: Any) -> None:
    default = Stream()
    present = SimpleNamespace(stream=default)

    @contextmanager
    def stream(chosen: Stream | None) -> Iterator[None]:
        before, present.stream = present.stream, chosen or present.stream
        try:
            yield
        finally:
            present.stream = before

    torch.Stream = torch.cuda.Stream = torch.cuda.streams.Stream = Stream
    torch.Event = torch.cuda.Event = torch.cuda.streams.Event = Event
    torch.cuda.stream, torch.cuda.current_stream = stream, lambda *_: present.stream
    torch.cuda.default_stream = lambda *_: default
    torch.cuda.set_stream = lambda chosen: setattr(present, "stream", chosen)
    torch.Tensor.record_stream = lambda self, stream: None


def _pin_nothing(torch: Any) -> None:
    empty = torch.empty
    torch.empty = lambda *sizes, pin_memory=False, **options: empty(*sizes, **options)
    torch.Tensor.pin_memory = lambda self, *_, **__: self


def _carry_by_gloo(dist: Any) -> None:
    """Let gloo carry NCCL's words, on the same bytes."""
    start, group, wait = dist.init_process_group, dist.new_group, dist.barrier

    def init_process_group(
        backend: str | None = None, *rest: Any, device_id: Any = None, **options: Any
    ) -> None:
        start("gloo", *rest, **options)

    def new_group(
        ranks: Any = None, *, device_id: Any = None, backend: str | None = None, **options: Any
    ) -> Any:
        return group(ranks, backend="gloo", **options)

    def barrier(group: Any = None, async_op: bool = False, device_ids: Any = None) -> Any:
        return wait(group, async_op)

    for place in (dist, dist.distributed_c10d):
        place.init_process_group, place.new_group, place.barrier = init_process_group, new_group, barrier
    dist.is_nccl_available = lambda: True
