"""How a run begins, and what it leaves alone where there is nothing to begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from coatnet.config import UserError, load_config
from coatnet.runtime.opening import opened_run
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory
from data_pipeline.open_corpus import settle_corpora
from pretrain.batches import settle_group_images
from pretrain.config import PretrainConfig


def test_a_run_that_is_done_keeps_the_record_of_how_it_was_trained_whatever_is_asked_of_it_later(
    tmp_path: Path,
) -> None:
    run = RunDirectory(tmp_path / "run")

    def open_by(duration: str, decoder: str) -> list[str]:
        words = ["data.train=[{path: nowhere}]", f"train.duration={duration}"]
        config = load_config(PretrainConfig, overrides=words)
        with opened_run(run, ranks=Ranks.single(), config=config, force=True, decoder=decoder):
            return [file.read_text() for file in (run.config, run.identity, run.environment)]

    began = open_by("30 steps", "kernel")
    lengthened = open_by("60 steps", "pillow")
    assert all(one != other for one, other in zip(began, lengthened, strict=True))
    run.mark("done")
    assert open_by("90 steps", "kernel") == lengthened


def test_what_the_main_rank_cannot_write_ends_all_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the run's folder should be")
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(UserError, match=f"{run.path}.*; make room or a way in"):
        settle_corpora({}, run=run, ranks=Ranks.single())
    config = load_config(PretrainConfig, overrides=["data.train=nowhere"])
    with pytest.raises(UserError, match=f"{run.path}.*; make room or a way in"):
        settle_group_images(config, run=run, ranks=Ranks.single())
