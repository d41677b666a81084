"""What the phases of gpu_lease.py share: the shapes to measure, and the device with its clock."""

from __future__ import annotations

import fcntl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from coatnet.model.config import ModelConfig
from coatnet.training.utilisation import peak_flops

_TURN = Path(tempfile.gettempdir()) / "gpu_lease.turn"  # several processes compile at once but time in turns


@dataclass(frozen=True)
class Sizes:
    """The shapes to measure. Units: products (rows per image, width in, width out); maps (side, width)."""

    px: int
    batch: int
    products: tuple[tuple[str, int, int, int], ...]
    maps: tuple[tuple[str, int, int], ...]
    tokens: tuple[int, ...]
    heads: int
    peers: tuple[tuple[str, int], ...]
    models: tuple[tuple[ModelConfig, int], ...]
    batches: tuple[int, ...]
    repeats: int
    compile: bool

    def at_batch(self, batch: int) -> Sizes:
        """Return the same with whole models at another batch, where a card has to hold several at once."""
        return replace(
            self,
            peers=tuple({name: (name, batch) for name, _ in self.peers}.values()),
            models=tuple((config, batch) for config, _ in self.models),
            batches=(batch,),
        )


FULL = Sizes(
    px=224,
    batch=128,
    products=(
        ("S1", 56 * 56, 192, 768), ("S2", 28 * 28, 384, 1536), ("S3", 196, 768, 3072),
        ("S4", 49, 1536, 6144), ("CoAtNet-7 S3", 196, 2048, 8192),
    ),
    maps=(("S1", 56, 768), ("S2", 28, 1536), ("S3 of -7", 14, 4096)),
    tokens=(49, 196, 576, 1024),
    heads=24,
    peers=(("coatnet_4_224", 64), ("coatnet_4_224", 128), ("coatnet_0_224", 256)),
    models=((ModelConfig(name="coatnet_4"), 128), (ModelConfig(name="coatnet_7"), 64)),
    batches=(4, 8, 16, 32, 64, 96, 128, 160, 192),
    repeats=20,
    compile=True,
)  # fmt: skip
_SMALL = ModelConfig(depths=[1, 2, 2, 1, 1], widths=[8, 8, 16, 32, 32], image_size=32, num_classes=10)
TINY = Sizes(
    px=32,
    batch=2,
    products=(("S1", 64, 8, 32),),
    maps=(("S1", 8, 32),),
    tokens=(4, 64),
    heads=1,
    peers=(),
    models=((_SMALL, 2),),
    batches=(1, 2),
    repeats=2,
    compile=False,
)


@dataclass
class Bench:
    """The device, its type for activations, and the shapes."""

    sizes: Sizes
    device: torch.device
    dtype: torch.dtype
    kernels: Path | None = None  # where the whole steps' kernels are listed

    def random(self, *shape: int, grad: bool = False) -> Tensor:
        """Return a tensor on the device."""
        return torch.randn(*shape, device=self.device, dtype=self.dtype).requires_grad_(grad)

    def seconds(self, run: Callable[[], object], *, together: int = 1) -> float:
        """Return the median time of a call, the device's work included.

        Args:
            together: calls that are sent off before one waits: in a step the launches of small kernels hide.
        """
        run()
        times = []
        with _TURN.open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            run()
            for _ in range(self.sizes.repeats):
                self.wait()
                start = time.perf_counter()
                for _ in range(together):
                    run()
                self.wait()
                times.append((time.perf_counter() - start) / together)
        return statistics.median(times)

    def wait(self) -> None:
        """Let the device finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def mfu(self, flops_per_second: float) -> float | None:
        """Return the share of the datasheet's dense bf16 rate, None where it is not known."""
        peak = peak_flops("autocast")
        return None if peak is None else flops_per_second / peak

    def peak_bytes(self) -> int | None:
        """Return the most memory used since the last call, and start anew."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak
