"""Where something is to be written is looked at before the work whose result it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.planning.calibration import calibrate
from coatnet.config import UserError
from coatnet.config.checks import folder_to_write
from coatnet.runtime.run_directory import keep_out_of_runs

_NOBODY = 65534


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that takes no files, as somebody sees it whom permissions bind."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0o555)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # pytest's own folders are closed to others
    user = os.geteuid()
    if user == 0:
        os.seteuid(_NOBODY)
    yield Path("closed")
    os.seteuid(user)


def test_a_folder_that_takes_no_files_is_refused_before_anything_is_made_for_it(closed: Path) -> None:
    with pytest.raises(ValueError, match=r"^the place is closed, which takes no files from you; allowed: a"):
        folder_to_write("the place", closed)
    folder_to_write("the place", closed / "new")  # whoever makes it is told
    with pytest.raises(UserError, match=r"mine\.yaml: closed takes no files from you"):
        calibrate(closed / "mine.yaml", ranks=1)


def test_whether_a_run_lies_in_a_folder_that_nobody_may_enter_is_not_asked(closed: Path) -> None:
    user = os.geteuid()
    os.seteuid(os.getuid())
    closed.chmod(0)
    os.seteuid(user)
    keep_out_of_runs(closed / "x")
