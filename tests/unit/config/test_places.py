"""Where something is to be written is looked at before the work whose result it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from cluster.planning.calibration import calibrate
from coatnet.config import UserError
from coatnet.config.checks import file_to_write, folder_to_write
from coatnet.runtime.launch import launch_run
from coatnet.runtime.run_directory import keep_out_of_runs
from data_pipeline.cli import preview


@pytest.fixture
def closed(tmp_path: Path, as_nobody: Callable[[], AbstractContextManager[None]]) -> Iterator[Path]:
    """A folder that takes no files, as somebody sees it whom permissions bind."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0o555)
    (tmp_path / "closed.png").mkdir()
    with as_nobody():
        yield Path("closed")


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


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("closed/sheet.png", r"closed/sheet\.png: closed takes no files from you$"),
        ("gone/sheet.png", r"gone/sheet\.png: there is no folder gone$"),
        ("closed.png", r"closed\.png: is a folder$"),
        ("closed", r"closed: ends in nothing; allowed: \.png, \.jpg"),
    ],
)
def test_where_a_picture_goes_is_looked_at_before_the_images(closed: Path, name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        preview("no corpus", output=Path(name))


def test_a_file_to_write_may_be_there_and_end_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "sheet.PNG").touch()
    file_to_write(tmp_path / "sheet.PNG", endings=[".png"])


@pytest.mark.parametrize("name", ["closed", "closed/run"])
def test_a_run_directory_that_takes_no_files_is_refused_before_torch_is_loaded(
    closed: Path, name: str
) -> None:
    with pytest.raises(UserError, match=f"^{name}: .*; make room or a way in, or choose another run"):
        launch_run("no.module", [], directory=Path(name), ranks=1, alone=True)
