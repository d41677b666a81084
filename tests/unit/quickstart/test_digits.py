"""The quickstart's image folders: every scan once, apart by corpus and split, written whole or not at all."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from coatnet.quickstart.digits import write_digits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("sklearn") is None, reason="scikit-learn (extra `quickstart`) holds the digits"
    ),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "images"
    assert write_digits(folder) == 1797
    return folder


def test_every_scan_is_written_once_and_a_second_call_changes_nothing(images: Path) -> None:
    files = sorted(images.rglob("*.jpg"))
    assert len({path.name for path in files}) == len(files) == 1797
    times = [path.stat().st_mtime_ns for path in files]
    assert write_digits(images) == 1797
    assert times == [path.stat().st_mtime_ns for path in sorted(images.rglob("*.jpg"))]
    assert [path.name for path in images.parent.iterdir()] == ["images"]


def test_pretraining_and_fine_tuning_share_no_class_and_a_fifth_is_for_validation(images: Path) -> None:
    classes = {
        corpus: {path.name for path in (images / corpus / "train").iterdir()}
        for corpus in ("pretrain", "finetune")
    }
    assert classes == {"pretrain": set("01234"), "finetune": set("56789")}
    validation = len(list((images).glob("*/validation/*/*.jpg")))
    assert 0.19 < validation / 1797 < 0.21


def test_the_images_are_real_jpegs_that_show_ink_on_paper(images: Path) -> None:
    with Image.open(next((images).rglob("*.jpg"))) as image:
        assert image.format == "JPEG" and image.size == (64, 64)
        low, high = image.getextrema()
        assert low < 20 and high > 200
