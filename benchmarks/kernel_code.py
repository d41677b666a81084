"""What the compiler makes of the GPU kernels, without a GPU: registers, spills, shared memory, instructions.

    python benchmarks/kernel_code.py                    CoAtNet-4's shapes, sm_80 and sm_90
    python benchmarks/kernel_code.py --only depthwise   kernels or shapes whose name has one of these

Every operator is called on small batches on the CPU with its kernels replaced by recorders, so that the
tiles are the product's own; Triton compiles what was recorded for each architecture, and the tools that come
with it read the machine code. Instructions are those of the innermost loop, each over the elements that it
stores; `budget` is how many a kernel may take before they and not the memory set its time.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).parent))
from lease_report import Row, table

from coatnet.model.gpu import (
    attention_kernels,
    depthwise_kernels,
    excite_kernels,
    mbconv_kernels,
    moments_kernels,
)
from coatnet.model.gpu.attention import attention
from coatnet.model.gpu.depthwise import depthwise
from coatnet.model.gpu.excite import gelu_sums
from coatnet.model.gpu.mbconv import activate_convolve
from coatnet.model.gpu.moments import moments

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes that one program may use: A100, H100 and H200
_REGISTERS = 65536  # of a multiprocessor, either architecture
# A multiprocessor's share of a copy, bytes per cycle: A100 1.7 TB/s over 108 at 1.41 GHz; H200 as in gpu.md,
# 3.9 TB/s over 132 at 1.75 GHz. It issues 128 lanes a cycle.
_COPY_BYTES = {80: 11.2, 90: 16.9}
_LANES = 128
_TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float16: "*fp16"}
_KINDS = {
    "float": ("FFMA", "FMUL", "FADD", "FMNMX", "FSEL", "FSETP", "HFMA2", "HADD2", "HMUL2", "HMMA", "HGMMA"),
    "special": ("MUFU",),
    "memory": ("LDG", "STG", "LDS", "STS", "LDSM", "LDGSTS", "LDL", "STL"),
}
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)")


@dataclass(frozen=True)
class Launch:
    """One kernel as an operator launched it."""

    kernel: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


@dataclass(frozen=True)
class Recorder:
    """Stands in a module for a kernel, and keeps its launches instead of running it."""

    kernel: Any
    launches: list[Launch]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **constants: self.launches.append(Launch(self.kernel, arguments, constants))


@contextmanager
def recorded(module: ModuleType) -> Iterator[list[Launch]]:
    """Keep the launches of a module's kernels."""
    kernels = {
        name: kernel for name, kernel in vars(module).items() if isinstance(kernel, triton.JITFunction)
    }
    launches: list[Launch] = []
    try:
        for name, kernel in kernels.items():
            setattr(module, name, Recorder(kernel, launches))
        yield launches
    finally:
        for name, kernel in kernels.items():
            setattr(module, name, kernel)


def depthwise_launches(side: int, width: int) -> list[Launch]:
    """Both passes of the depthwise convolution."""
    x = torch.zeros(1, side, side, width, dtype=torch.bfloat16, requires_grad=True)
    with recorded(depthwise_kernels) as launches:
        depthwise(x, torch.zeros(width, 1, 3, 3)).backward(x.detach())
    return launches


def mbconv_launches(side: int, width: int) -> list[Launch]:
    """Both passes of the fused middle of MBConv."""
    e = torch.zeros(1, side, side, width, dtype=torch.bfloat16, requires_grad=True)
    row, weight = torch.zeros(1, width), torch.zeros(width, 1, 3, 3)
    with recorded(mbconv_kernels) as launches:
        activate_convolve(e, row, row, row[0], weight)[0].backward(e.detach())
    return launches


def moments_launches(side: int, width: int) -> list[Launch]:
    """The moments of the norm before the depthwise convolution."""
    with recorded(moments_kernels) as launches:
        moments(torch.zeros(1, side, side, width, dtype=torch.bfloat16), 1)
    return launches


def excite_launches(side: int, width: int) -> list[Launch]:
    """The sums of squeeze-and-excite, without and with a gradient."""
    y, row = torch.zeros(1, side, side, width, dtype=torch.bfloat16), torch.zeros(1, width)
    with recorded(excite_kernels) as launches:
        for weights in (None, torch.zeros_like(y)):
            gelu_sums(y, row, row, row[0], weights)
    return launches


def attention_launches(tokens: int, size: int) -> list[Launch]:
    """Both passes of relative attention."""
    q = torch.zeros(2, tokens, 1, size, dtype=torch.bfloat16, requires_grad=True)
    with recorded(attention_kernels) as launches:
        attention(q, q, q, torch.zeros(1, tokens, tokens, requires_grad=True))[0].backward(q.detach())
    return launches


CASES: dict[str, Callable[[], list[Launch]]] = {
    "depthwise 56²×768": lambda: depthwise_launches(56, 768),
    "depthwise 28²×1536": lambda: depthwise_launches(28, 1536),
    "depthwise 14²×4096": lambda: depthwise_launches(14, 4096),
    "fused MBConv 56²×768": lambda: mbconv_launches(56, 768),
    "fused MBConv 28²×1536": lambda: mbconv_launches(28, 1536),
    "fused MBConv 14²×4096": lambda: mbconv_launches(14, 4096),
    "norm 28²×1536": lambda: moments_launches(28, 1536),
    "squeeze, excite 28²×1536": lambda: excite_launches(28, 1536),
    "attention 49×32": lambda: attention_launches(49, 32),
    "attention 196×32": lambda: attention_launches(196, 32),
    "attention 576×32": lambda: attention_launches(576, 32),
    "attention 196×64": lambda: attention_launches(196, 64),
    "attention 196×128": lambda: attention_launches(196, 128),
}


def compile_for(launch: Launch, arch: int) -> Any:
    """Compile a launch for an architecture, as Triton would at its first call there."""
    constants = dict(launch.constants)
    options = {"num_warps": constants.pop("num_warps", 4)}
    names = launch.kernel.arg_names
    values = dict(zip(names, launch.arguments, strict=False)) | constants
    signature = {name: _type(values[name], constant=name in constants) for name in names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if signature[name].startswith("*")
    }
    fixed = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(launch.kernel, signature, constexprs=fixed, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def _type(value: Any, *, constant: bool) -> str:
    if constant:
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    return "i32" if isinstance(value, int) else "fp32"


def describe(launch: Launch, arch: int) -> Row:
    """Read a kernel's machine code. Instructions are of the innermost loop, per element stored there."""
    compiled = compile_for(launch, arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run(knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        code = _run(knobs.nvidia.nvdisasm.path, "-c", file.name)
    registers, stack = (int(re.findall(rf"{key}:(\d+)", usage)[0]) for key in ("REG", "STACK"))
    warps = compiled.metadata.num_warps
    resident = min(_REGISTERS // (-(-registers // 8) * 8 * 32 * warps), 64 // warps)
    shared = compiled.metadata.shared
    maps = {id(one) for one in launch.arguments if getattr(one, "dtype", None) == torch.bfloat16}
    if shared:
        resident = min(resident, SHARED_LIMIT[arch] // (shared + 1024))
    return {
        "kernel": launch.kernel.__name__,
        "sm": arch,
        "registers": registers,
        "spilled_bytes": stack,
        "shared_bytes": shared,
        "warps_resident": resident * warps,
        **_per_element(code, maps=len(maps), copy_bytes=_COPY_BYTES[arch]),
    }


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _per_element(code: str, *, maps: int, copy_bytes: float) -> Row:
    """Count the innermost loop's instructions by kind; nothing where it neither stores nor loads elements."""
    names = _innermost_loop(code)
    stored, loaded = (sum(_bytes(name) for name in names if name.startswith(kind)) for kind in ("STG", "LDG"))
    elements = (stored or loaded / maps) / 2  # bf16; a kernel that only sums loads each map once
    if not elements:
        return {}
    counts = Counter(_kind(name) for name in names)
    row = {kind: counts[kind] / elements for kind in (*_KINDS, "other")}
    return {**row, "all": len(names) / elements, "budget": 2 * maps / copy_bytes * _LANES}


def _innermost_loop(code: str) -> list[str]:
    """Return the instructions' names in the longest loop that holds no other."""
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    names: list[str] = []
    for line in code.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(names)
        elif found := _INSTRUCTION.search(line):
            names.append(found[1])
            target = re.search(r"\.L_x_\d+", found[2]) if found[1].startswith("BRA") else None
            if target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    start, end = max(inner, key=lambda one: one[1] - one[0], default=(0, 0))
    return names[start:end]


def _bytes(name: str) -> int:
    """Return what an instruction moves from or to global memory for a thread."""
    return next(
        (size for part, size in ((".128", 16), (".64", 8), (".U16", 2), (".U8", 1)) if part in name), 4
    )


def _kind(name: str) -> str:
    base = name.split(".")[0]
    return next((kind for kind, names in _KINDS.items() if base in names), "other")


def main(arguments: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT")
    options = parser.parse_args(arguments)
    rows = []
    for name, launches in CASES.items():
        for launch in launches():
            if any(text in f"{name} {launch.kernel.__name__}" for text in options.only):
                rows += [{"shape": name, **describe(launch, arch)} for arch in SHARED_LIMIT]
    print(f"Triton {triton.__version__}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
