"""The walls of the house, checked by walking every module's syntax tree; docs/architecture.md draws it."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("coatnet", "data_pipeline", "pretrain", "finetune", "cluster")

# What a package may import of the house; the longest matching prefix decides. Itself is always allowed.
ALLOWED = {
    "coatnet": [],
    "coatnet.__main__": ["coatnet.cli"],
    "coatnet.cli": ["coatnet.commands"],
    "coatnet.commands": ["coatnet.config"],
    "coatnet.config": [],
    "coatnet.doctor": ["coatnet.config", "coatnet.runtime.console"],
    "coatnet.quickstart": ["coatnet.config", "coatnet.runtime"],
    "coatnet.runtime": ["coatnet.config"],
    "coatnet.report": ["coatnet.config", "coatnet.runtime", "coatnet.model.config", "coatnet.model.cost"],
    "coatnet.model": ["coatnet.config", "coatnet.runtime.console"],
    "coatnet.training": ["coatnet.config", "coatnet.runtime", "coatnet.model", "coatnet.checkpoint"],
    "coatnet.checkpoint": ["coatnet.config", "coatnet.runtime", "coatnet.model"],
    "data_pipeline": ["coatnet.config", "coatnet.runtime"],
    "pretrain": ["data_pipeline", "coatnet"],
    "finetune": ["data_pipeline", "coatnet"],
    "cluster": [
        "coatnet.config",
        "coatnet.runtime",
        "coatnet.model.family",
        "coatnet.model.config",
        "coatnet.model.operations",
        "coatnet.model.cost",
        "coatnet.checkpoint.inspection",
    ],
}
ONLY_IMPORTER = {"deepspeed": "pretrain", "accelerate": "finetune"}
TORCH_FREE = (
    "coatnet.cli",
    "coatnet.commands",
    "coatnet.config",
    "coatnet.report",
    "coatnet.doctor",
    "coatnet.quickstart",
    "cluster",
)
TORCH_FREE_MODULES = (
    "coatnet.model.family",
    "coatnet.model.config",
    "coatnet.model.operations",
    "coatnet.model.cost",
    "coatnet.checkpoint.inspection",
    "coatnet.checkpoint.weight_files",
    "data_pipeline.open_corpus",  # by which a submission judges images
)
MAX_LINES = 400
# Of a function's body. Signature and docstring are read as a table: a command's are as long as its options.
MAX_BODY_LINES = 40
# Triton's kernels: a split may change what the compiler makes of them, which only a GPU can tell.
KERNELS = ROOT / "coatnet" / "model" / "gpu"


def modules() -> list[tuple[str, Path]]:
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """Return (imported name, is it at the top level) for each import statement."""
    tree = tree_of(path)
    top = set()
    for node in tree.body:
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not guarded:
            top.update(
                id(inner) for inner in ([node] if not isinstance(node, ast.If | ast.Try) else ast.walk(node))
            )
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the walls; write the full name"
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names]
            # `from coatnet.model import family` imports a module, `… import build_model` a name
            found += [(name if is_module(name) else base, id(node) in top) for name in names]
    return found


@functools.cache
def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def owner(module: str) -> str:
    return max((key for key in ALLOWED if within(module, key)), key=len)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


MODULES = modules()


def test_a_module_imports_only_what_the_house_allows() -> None:
    forbidden = []
    for module, path in MODULES:
        own = owner(module)
        for name, _ in imports(path):
            root = name.split(".")[0]
            at_home = own != "coatnet" and within(name, own)
            if root in PACKAGES and not at_home and not any(within(name, wall) for wall in ALLOWED[own]):
                forbidden.append(f"{module} imports {name}; {own} may import {ALLOWED[own]}")
            importer = ONLY_IMPORTER.get(root)
            if importer is not None and not within(module, importer):
                forbidden.append(f"only {importer} imports {root}, not {module}")
    assert not forbidden


def test_a_file_stays_under_four_hundred_lines_and_its_name_says_what_it_holds() -> None:
    others = [path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    files = [*(path for _, path in MODULES), *others]
    assert not [path for path in files if len(path.read_text().splitlines()) > MAX_LINES]
    assert not [path for _, path in MODULES if path.stem in {"utils", "helpers", "misc", "common"}]


def test_a_function_says_what_it_does_within_forty_lines() -> None:
    long = []
    for _, path in MODULES:
        if path.parent == KERNELS:
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                begin = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0].lineno
                lines = (node.end_lineno or begin) - begin + 1
                if lines > MAX_BODY_LINES:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert not long


def test_no_module_imports_itself_through_others() -> None:
    known = dict(MODULES)
    graph = {
        module: {name for name, top in imports(path) if top and name in known and name != module}
        for module, path in known.items()
    }
    done: set[str] = set()

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join((*trail[trail.index(module) :], module))
        if module in done:
            return
        for target in sorted(graph[module]):
            walk(target, (*trail, module))
        done.add(module)

    for module in sorted(graph):
        walk(module, ())


def test_what_runs_on_a_login_node_imports_no_torch() -> None:
    names = [*TORCH_FREE, *TORCH_FREE_MODULES]
    chosen = [module for module, _ in MODULES if any(within(module, name) for name in names)]
    code = (
        "import sys, importlib\n"
        f"for module in {[module for module in chosen if not module.endswith('__main__')]!r}:\n"
        "    importlib.import_module(module)\n"
        "    assert 'torch' not in sys.modules, module"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_nothing_is_unpickled_and_no_shell_is_started() -> None:
    banned = re.compile(
        r"\b(import pickle|pickle\.loads?|torch\.load\((?!.*weights_only=True)|shell=True|os\.system"
        r"|allow_pickle=True|yaml\.load\(|eval\(|exec\()"
    )
    for _, path in MODULES:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            code = line.split("#")[0].replace(".eval(", "")
            assert not banned.search(code), f"{path.relative_to(ROOT)}:{number}: {line.strip()}"


def test_no_file_names_a_machine_or_a_registry() -> None:
    # A pattern in pieces, so that this file does not match itself.
    banned = re.compile(
        "|".join([r"/wor" + r"k/(main|shared)", r"/roo" + r"t/", r"files\.python" + r"hosted\.org"])
    )
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False, timeout=30)
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ".sh", ".c", ".h", ""} and path.is_file():
            text = path.read_text(errors="replace")
            found = banned.search(text)
            assert found is None, f"{name} names a machine's path: {found[0] if found else ''}"
