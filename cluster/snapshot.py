"""A copy of the code as it was at submission, so that editing the checkout changes no queued job."""

from __future__ import annotations

import compileall
import hashlib
import shutil
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("coatnet", "data_pipeline", "pretrain", "finetune", "cluster")
_KEPT_SUFFIXES = {".py", ".yaml", ".json", ".so", ".typed", ".html", ".css", ".js", ".c", ".h"}


def snapshot_code(target: Path) -> None:
    """Copy the packages, compiled, to the folder that `snapshot_folder` named, unless they are there."""
    if target.is_dir():
        return
    temporary = target.with_suffix(".part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for name, source in _files():
            copy = temporary / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)
        # thousands of ranks would each do so at the first start, and write what came of it into one folder
        compileall.compile_dir(temporary, quiet=2)
        temporary.rename(target)
    finally:  # on a disk that is full it would take what was left
        shutil.rmtree(temporary, ignore_errors=True)


def snapshot_folder(directory: Path) -> Path:
    """Return where the code as it is now belongs, `directory/code-<digest>`."""
    digest = hashlib.sha256()
    for name, source in _files():
        digest.update(name.encode() + b"\0" + source.read_bytes() + b"\0")
    return directory / f"code-{digest.hexdigest()[:12]}"


def _files() -> list[tuple[str, Path]]:
    found = []
    for package in PACKAGES:
        spec = find_spec(package)
        for root in spec.submodule_search_locations if spec and spec.submodule_search_locations else []:
            for path in sorted(Path(root).rglob("*")):
                inside = path.relative_to(Path(root).parent)
                if path.suffix in _KEPT_SUFFIXES and path.is_file() and "__pycache__" not in inside.parts:
                    found.append((str(inside), path))
    return found
