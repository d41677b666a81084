"""Fuzz the decode kernel under AddressSanitizer: python benchmarks/fuzz_decode/run.py --seconds 600

Compiles the kernel's C source with the sanitizers, makes small JPEGs of every kind the kernel knows (and
takes those of --corpus), and runs the mutator. Prints JSON; a finding exits with the sanitizer's report.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "data_pipeline" / "decode" / "csrc"
FLAGS = ["-std=c11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wall"]
_MAX_CORPUS_BYTES = 60_000


def main() -> None:
    """Compile, make the seeds, run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, help="a folder of further JPEGs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = compile_fuzzer(Path(folder))
        seeds = [*make_seeds(Path(folder)), *_corpus(options.corpus)]
        command = [str(program), str(options.seconds), str(options.seed), *map(str, seeds)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"finding, exit status {done.returncode}:\n{done.stderr}")
    result = {"seconds": options.seconds, "seed": options.seed, "files": len(seeds), "findings": 0}
    print(json.dumps({**result, **json.loads(done.stdout)}))


def compile_fuzzer(folder: Path) -> Path:
    """Build the mutator and the kernel, without its Python module, into one program."""
    sources = [str(HERE / "fuzz.c"), *(str(path) for path in SOURCE.glob("*.c") if path.name != "module.c")]
    program = folder / "fuzz"
    subprocess.run(["gcc", *FLAGS, "-o", str(program), *sources, "-lm"], check=True)
    return program


def make_seeds(folder: Path) -> list[Path]:
    """Write small JPEGs: gray and colour, each subsampling, with and without restart markers, odd sizes."""
    generator = np.random.default_rng(0)
    seeds = []
    for index, (width, height) in enumerate([(64, 48), (97, 33), (5, 70), (16, 16), (130, 131), (1, 1)]):
        noise = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2))
        for subsampling in (0, 1, 2):
            for restart in (0, 3):
                path = folder / f"seed_{index}_{subsampling}_{restart}.jpg"
                quality = 60 + 15 * subsampling
                image.save(path, subsampling=subsampling, restart_marker_blocks=restart, quality=quality)
                seeds.append(path)
        image.convert("L").save(folder / f"gray_{index}.jpg", optimize=True)
        seeds.append(folder / f"gray_{index}.jpg")
    return seeds


def _corpus(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})
    return [path for path in found if path.stat().st_size < _MAX_CORPUS_BYTES][:400]


if __name__ == "__main__":
    main()
