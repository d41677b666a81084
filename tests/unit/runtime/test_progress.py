"""The line that a person reads: what is done, how fast, how long it will take."""

from __future__ import annotations

import pytest

from coatnet.runtime.progress import progress


def test_work_that_is_given_up_is_taken_off_again(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(20, "pretrain", "images", done=8) as bar:
        bar.advance(10)
        bar.advance(-14)  # rolled back to before this life
        bar.note("loss 1.0")
    said = capsys.readouterr().err
    assert said.startswith("pretrain: 4/20, – left") and said.endswith("loss 1.0\n")
