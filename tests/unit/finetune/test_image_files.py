"""Which files of a folder are taken for images."""

from __future__ import annotations

from pathlib import Path

from finetune.image_files import image_files


def test_hidden_files_and_files_in_hidden_folders_are_left_out(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "a.jpg", ".hidden.jpg", ".cache/x.jpg", "b/.thumbnails/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert image_files([tmp_path]) == [tmp_path / "a.jpg", tmp_path / "b" / "2.jpg"]
    assert image_files([tmp_path / ".cache"]) == [tmp_path / ".cache" / "x.jpg"], "asked for by name"
