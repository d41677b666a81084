"""Run a command where torch's CPU build has a CUDA device, whose memory is the host's.

    python benchmarks/host_gpu python -m pytest tests/gpu/test_runs.py -k ZeRO
    python benchmarks/host_gpu python -m coatnet.cli pretrain CONFIG

Every operator on the device's tensors is torch's for CPUs on the same bytes (`device.cpp`), and gloo carries
what NCCL would; streams and events do nothing. So all code runs that asks for a GPU, DeepSpeed's and
accelerate's too, in a GPU's types: what fails is a tensor on the wrong device, a call that is not there.
What it cannot show: orders on streams, races, a GPU's own kernels, Triton's included, and time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def build() -> Path:
    """Compile the device for this torch, once for each source, and return the library.

    Raises:
        RuntimeError: torch has a CUDA of its own.
    """
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    torch = Path(spec.origin).parent
    if (torch / "lib/libtorch_cuda.so").exists():
        raise RuntimeError(
            "this torch has a CUDA of its own; the host's stands in for it in CPU builds alone"
        )
    source = HERE / "device.cpp"
    version = str(torch).encode() + (torch / "version.py").read_bytes()  # it finds its libraries by that path
    name = f"host-gpu-{hashlib.sha256(source.read_bytes() + version).hexdigest()[:16]}.so"
    library = Path(tempfile.gettempdir(), name)
    if not library.exists():
        unfinished = library.with_suffix(f".{os.getpid()}")
        include = [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}"]
        link = [f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch / 'lib'}"]
        options = ["-std=c++20", "-O1", "-shared", "-fPIC"]
        subprocess.run(["g++", *options, *include, str(source), "-o", str(unfinished), *link], check=True)
        unfinished.rename(library)
    return library


def main() -> None:
    """Become the command."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    told = {"PYTHONPATH": path, "HOST_GPU": str(build()), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    os.execvpe(sys.argv[1], sys.argv[1:], {**os.environ, **told})


if __name__ == "__main__":
    main()
