"""Naming what files show: by several threads, in the order of the files, never far ahead of the model."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from coatnet.config import UserError
from data_pipeline.folder import FolderCorpus
from data_pipeline.record import Record
from finetune.classifier import open_classifier
from finetune.demo.answer import make_answer
from finetune.image_files import image_files
from finetune.prediction import guesses, predict_files

# A file that never comes, asked for by a thread; the parent is told once it is.
WAITING = """
import os, threading
from coatnet.cli import main
from data_pipeline.folder import FolderCorpus

def wait(self, shard, index):
    os.write(1, b"reading\\n")  # as one: print lets another thread's word in before the line's end
    threading.Event().wait()

FolderCorpus.read = wait
main()
"""


def test_neither_threads_nor_the_batch_change_what_is_said_or_its_order(
    exported: Path, photos: Path, tmp_path: Path
) -> None:
    broken, missing = tmp_path / "broken.jpg", tmp_path / "gone.jpg"
    broken.write_bytes(b"no image")
    files = image_files([photos])
    files[3:3], files[9:9] = [broken], [missing]
    classifier = open_classifier(str(exported))
    alone = predict_files(classifier, files, top=2, batch=1, threads=1)
    assert [row["image"] for row in alone] == [str(file) for file in files]
    assert [number for number, row in enumerate(alone) if "error" in row] == [3, 9]
    assert alone[9]["error"] == "No such file or directory"
    for batch, threads in ((7, 3), (64, 2)):
        for row, other in zip(
            alone, predict_files(classifier, files, top=2, batch=batch, threads=threads), strict=True
        ):
            assert row["image"] == other["image"] and row.get("error") == other.get("error")
            for guess, others in zip(row.get("guesses", ()), other.get("guesses", ()), strict=True):
                assert guess == {**others, "probability": pytest.approx(others["probability"], abs=1e-5)}


def test_a_guess_is_a_class_by_name_and_number_with_its_probability(exported: Path) -> None:
    shares = torch.tensor([0.25, 0.5, 0.125], dtype=torch.float64) / 0.875
    assert guesses(shares.log(), open_classifier(str(exported)), top=2) == [
        {"class": "blue", "index": 1, "probability": pytest.approx(0.5 / 0.875)},
        {"class": "amber", "index": 0, "probability": pytest.approx(0.25 / 0.875)},
    ]


def test_a_model_whose_logits_are_not_finite_guesses_nothing_neither_here_nor_in_the_demo(
    exported: Path, photos: Path
) -> None:
    classifier, (file, *_) = open_classifier(str(exported)), image_files([photos])
    with torch.no_grad():
        classifier.model.head.logits.bias[1] = torch.nan
    (row,) = predict_files(classifier, [file], top=2, batch=1)
    assert row == {"image": str(file), "error": "the model's logits are not finite, so there is no guess"}
    with pytest.raises(UserError, match="not finite"):
        make_answer(classifier)(file.read_bytes())


def test_threads_read_together_and_a_few_batches_ahead_of_the_model_at_most(
    exported: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = image_files([photos]) * 4
    read, together, classifier = [], threading.Barrier(2, timeout=60), open_classifier(str(exported))
    ahead, read_as_usual, predicted = [], FolderCorpus.read, [0]

    def meet_and_read(self: FolderCorpus, shard: int, index: int) -> Record:
        together.wait()
        read.append(index)
        return read_as_usual(self, shard, index)

    def count(model: Any, inputs: Any) -> None:
        ahead.append(len(read) - predicted[0])
        predicted[0] += len(inputs[0])

    monkeypatch.setattr(FolderCorpus, "read", meet_and_read)
    classifier.model.register_forward_pre_hook(count)
    rows = predict_files(classifier, files, top=1, batch=4, threads=2)
    assert len(rows) == len(files) == predicted[0] == 92
    assert max(ahead) <= 4 * 4, "whatever the number of files"


@pytest.mark.slow
def test_ctrl_c_ends_it_in_seconds_also_where_a_thread_waits_for_a_file(exported: Path, photos: Path) -> None:
    words = [sys.executable, "-c", WAITING, "predict", str(exported), str(photos)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")
