"""Which files of a folder are taken for images, and what naming one of them loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.image_files import image_files, refused_images


def test_hidden_files_and_files_in_hidden_folders_are_left_out(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "a.jpg", ".hidden.jpg", ".cache/x.jpg", "b/.thumbnails/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert image_files([tmp_path]) == [tmp_path / "a.jpg", tmp_path / "b" / "2.jpg"]
    assert image_files([tmp_path / ".cache"]) == [tmp_path / ".cache" / "x.jpg"], "asked for by name"


def test_what_is_no_file_is_told_without_the_systems_number_and_the_name_again(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (row,) = refused_images([tmp_path / "pipe"])
    assert row["error"] == "is not a regular file"


@pytest.mark.slow
def test_naming_an_image_loads_no_symbolic_shapes_which_take_half_a_second(
    exported: Path, photos: Path
) -> None:
    code = (
        "import sys, finetune.cli\nfrom pathlib import Path\n"
        "finetune.cli.predict(Path(sys.argv[1]), [Path(sys.argv[2])])\n"
        "assert 'sympy' not in sys.modules"
    )
    words = [sys.executable, "-c", code, str(exported), str(photos / "blue" / "01.jpg")]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
