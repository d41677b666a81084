"""The doctor's findings have a name, a status that decides the exit code, and a line that says what to do."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from coatnet.doctor import checks


@pytest.mark.slow
def test_every_finding_says_what_was_found() -> None:
    findings = checks.run_checks()
    names = [finding["name"] for finding in findings]
    assert {"python", "torch", "devices", "open files"} <= set(names)
    for finding in findings:
        assert finding["status"] in {"ok", "warn", "fail"} and finding["detail"]


def test_a_missing_extension_of_the_network_is_a_warning_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    finding = checks._network()
    assert finding["status"] == "warn" and "C compiler" in finding["detail"]


@pytest.mark.parametrize(
    ("cuda", "said"), [(None, "is a build for CPUs"), ("13.0", "for CUDA 13.0 cannot use them")]
)
def test_gpus_that_torch_cannot_use_are_a_warning_with_the_likely_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: str | None, said: str
) -> None:
    import torch

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(checks, "_GPUS", str(tmp_path))
    assert checks._devices()["status"] == "ok"
    (tmp_path / "0000:17:00.0").mkdir()
    finding = checks._devices()
    assert finding["status"] == "warn" and said in finding["detail"]


def test_too_few_open_files_come_with_the_command_that_mends_it() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    try:
        finding = checks._open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert finding["status"] == "warn" and "ulimit -n" in finding["detail"]


def test_a_missing_package_fails_and_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_PACKAGES", ("no-such-package",))
    (finding,) = checks._versions()
    assert finding["status"] == "fail" and "pip install -c constraints.txt" in finding["detail"]
