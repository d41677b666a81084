"""What config and file system can tell is refused before torch is loaded, in one line; nothing is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from coatnet.config import UserError, load_config, to_dict
from coatnet.model.config import ModelConfig
from coatnet.runtime.run_directory import RunDirectory
from data_pipeline.first_look import look_at_data
from finetune.launch import launch
from pretrain.batches import make_calendar
from pretrain.config import PretrainConfig

ROOT = Path(__file__).parents[2]
PRETRAIN, FINETUNE = ROOT / "configs/quickstart_pretrain.yaml", ROOT / "configs/quickstart_finetune.yaml"

# Runs each command of a list in one process in which torch cannot be imported, and prints what became of it.
PROGRAM = """
import json, sys, time
sys.modules["torch"] = None
from coatnet.commands import in_a_line, run
for words in json.load(sys.stdin):
    began, said, status = time.process_time(), None, 0
    try:
        status = run(words)
    except Exception as error:
        said = in_a_line(error) or f"a traceback: {error!r}"
    print(json.dumps([said, status, time.process_time() - began]))
"""

# What is given besides a command that is in order, and what the refusal says. {…} are the fixture's folders.
BOTH = [
    ("data.train=[{path: nowhere}]", "nowhere: no such folder"),
    ("data.train=[{path: EMPTY}]", "expected a folder per class"),
    ("data.train=[{path: ftp://host/x}]", "allowed: a folder or a URL"),
    ("data.train=[{path: PHOTOS},{path: OTHERS}]", "a mixture needs one vocabulary"),
    ("data.train=", "override 'data.train=': nothing stands behind the =; null says"),
    ("data.evaluate=nowhere", "nowhere: no such folder"),
    ("data.evaluate=OTHERS", "has other classes than data.train[0]"),
    ("data.decoder=magic", "decoder is 'magic'; allowed: auto, kernel, pillow"),
    ("train.duration=1 images", "make it longer, or train.global_batch smaller"),
    ("optimizer.learning_rate=nan", "optimizer.learning_rate is nan"),
    ("loss.smoothing=.inf", "loss.smoothing is inf"),
    ("save.best=loss", "best is 'loss'; allowed: top1"),
    ("launch.ranks=100000", "allowed: 1 to 1024"),
    ("run.directory=OTHER_RUN", "holds a run with another config"),
    ("run.directory=s3://bucket/run", "no URL"),
    ("run.directory=WEIGHTS", "run.directory is WEIGHTS, which is no folder; choose another"),
    ("run.directory=TARS", "TARS: holds manifest.json, which is no run's; choose another run.directory"),
    ("run.directory=PHOTOS/run", "allowed: a place outside PHOTOS, whose folders are classes"),
]
CASES: dict[str, list[tuple[str, str]]] = {
    "pretrain": [
        *BOTH,
        ("train.global_batch=63", "allowed with 2 ranks: multiples of 2"),
        ("train.micro_batch=20", "train.micro_batch is 20; allowed with 2 ranks: divisors of 32"),
        ("norm.group_images=7", "norm.group_images is 7"),
        ("evaluate.transfer=nowhere", "nowhere: no such folder"),
    ],
    "finetune": [
        *BOTH,
        ("launch.ranks=5", "allowed with 5 ranks: multiples of 5"),
        ("init=nowhere", "neither a run directory"),
        ("init=OTHER_RUN", "the run has no checkpoint yet"),
        ("weights=ema", "holds no average (ema)"),
        ("model.name=coatnet_1", "holds a model with coatnet_0"),
        ("head.keep_rows=matching", "none of the 2 classes is among the checkpoint's 2"),
        ("stochastic_depth=2", "stochastic_depth is 2"),
        ("seeds=[1,1]", "seeds is [1, 1]"),
    ],
    "evaluate": [
        ("--px=33", "--px is 33; allowed: multiples of 32"),
        ("--weights=best", "--weights is best; allowed: auto, ema, raw"),
        ("--weights=ema", "holds no average (ema)"),
        ("--resize=round", "--resize is round; allowed: center_crop, whole"),
        ("--destination=s3://bucket/figures", "no URL"),
        ("--destination=OTHERS/figures", "allowed: a place outside OTHERS"),
        ("--precision=fp8", "--precision is fp8; allowed: fp32, bf16"),
        ("--real=nowhere", "nowhere: No such file"),
        ("--batch=0", "see `coatnet evaluate --help`"),
    ],
    "predict": [
        ("--px=33", "--px is 33"),
        ("--weights=ema", "holds no average (ema)"),
        ("nowhere", "nowhere: no such image or folder"),
    ],
    "export": [
        ("--format=pickle", "--format is pickle; allowed: safetensors, timm, onnx, torch_export, one each"),
        ("--data=nowhere", "nowhere: no such folder"),
        ("--data=PHOTOS", "the model knows 2 classes and 'a' is not among them"),
    ],
    "demo PHOTOS/a/0.jpg": [("--port=0", "PHOTOS/a/0.jpg: neither a run directory, a checkpoint, nor an ex")],
    "export MODEL": [
        ("MODEL", "MODEL: holds a run; give a folder of its own"),
        ("TARS", "TARS: holds shards or a checkpoint (manifest.json); give a folder of its own"),
    ],
    "export MODEL ": [("PHOTOS/a/0.jpg", "PHOTOS/a/0.jpg, which is no folder; allowed: a folder, or a name")],
    "import PHOTOS": [("nowhere", "PHOTOS: is not a regular file but a folder")],
    "import WEIGHTS --px 32": [
        ("MODEL", "MODEL: holds a run; give a folder of its own"),
        ("TARS", "TARS: holds shards or a checkpoint (manifest.json); give a folder of its own"),
    ],
    "shard PHOTOS": [
        ("PHOTOS/shards", "allowed: a place outside PHOTOS, whose folders are classes"),
        ("PHOTOS/a/0.jpg", "DESTINATION is PHOTOS/a/0.jpg, which is no folder"),
        ("MODEL", "MODEL: holds a run; give a folder of its own"),
        ("EXPORTED", "EXPORTED: holds an exported model; give a folder of its own"),
    ],
    "shard --in-place": [
        ("nowhere", "nowhere: no such folder of tars"),
        ("MODEL", "MODEL: holds a run; give a folder of its own"),
        ("EXPORTED", "EXPORTED: holds an exported model; give a folder of its own"),
    ],
    "shard nowhere": [("s3://bucket/shards", "DESTINATION is s3:/bucket/shards; allowed: a folder")],
    "inspect shards": [
        ("https://host/shards", "no URL"),
        ("nowhere", "nowhere: no such folder of shards"),
        ("PHOTOS/a/0.jpg", "PHOTOS/a/0.jpg: no such folder of shards"),
        ("PHOTOS", "PHOTOS/manifest.json: No such file or directory; `coatnet shard SOURCE PHOTOS` makes it"),
    ],
    "inspect checkpoint": [
        ("nowhere", "neither a checkpoint nor a run directory"),
        ("TARS", "TARS: a folder of shards, no model"),
    ],
    "inspect throughput": [("nowhere", "no such folder")],
    "preview": [("nowhere", "no such folder")],
    "replay": [("nowhere", "no such run directory")],
    "plan": [("nodse=2", "did you mean nodes?")],
    "demo": [
        ("--port=99999", "--port"),
        ("--px=33", "--px is 33"),
        ("--weights=ema", "holds no average (ema)"),
    ],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two image folders of other classes, an empty one, a run of another config, and a model."""
    root = tmp_path_factory.mktemp("refusals")
    for folder, classes in (("PHOTOS", "ab"), ("OTHERS", "cd")):
        for name in classes:
            (root / folder / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (40, 40)).save(root / folder / name / f"{number}.jpg")
    (root / "EMPTY").mkdir()
    (root / "TARS").mkdir()
    for name in ("manifest.json", "others.tar"):
        (root / "TARS" / name).touch()
    header = b'{"head.fc.weight":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}'
    (root / "WEIGHTS").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    (root / "EXPORTED").mkdir()
    shutil.copy(root / "WEIGHTS", root / "EXPORTED" / "model.safetensors")
    begun = root / "OTHER_RUN"
    (begun / "checkpoints").mkdir(parents=True)
    (begun / "identity.json").write_text('{"digest": "another"}')
    (begun / "metrics.jsonl").write_text('{"samples_seen": 64}\n')
    checkpoint = root / "MODEL" / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    model = ModelConfig(depths=[1, 1, 1, 2, 1], widths=[16, 32, 48, 96, 128], image_size=32, num_classes=2)
    body = {
        "facts": {"model": to_dict(model), "classes": ["c", "d"]},
        "files": [{"pieces": [{"kind": "weight"}]}],
    }
    (checkpoint / "manifest.json").write_text(json.dumps({"body": json.dumps(body)}))
    return {path.name: str(path) for path in root.iterdir()}


def good_words(command: str, folders: dict[str, str], destination: Path) -> list[str]:
    data = [f"data.train=[{{path: {folders['PHOTOS']}}}]", f"data.evaluate={folders['PHOTOS']}"]
    run = f"run.directory={destination / 'run'}"
    return {
        "pretrain": ["pretrain", str(PRETRAIN), *data, run],
        "finetune": ["finetune", str(FINETUNE), f"init={folders['MODEL']}", *data, run],
        "evaluate": ["evaluate", folders["MODEL"], folders["OTHERS"]],
        "predict": ["predict", folders["MODEL"], folders["OTHERS"]],
        "export": ["export", folders["MODEL"], str(destination / "exported")],
        "demo": ["demo", folders["MODEL"]],
        "plan": ["plan", str(PRETRAIN), *data],
    }.get(command, in_place(command, folders).split())


@pytest.fixture(scope="module")
def outcomes(
    folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[tuple[str, str]], tuple[str, int, float]]:
    """Return what became of each case."""
    destination = tmp_path_factory.mktemp("written")
    cases = [(command, word) for command, given in CASES.items() for word, _ in given]
    commands = [
        [*good_words(command, folders, destination), in_place(word, folders)] for command, word in cases
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=destination,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    lines = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    assert not list(destination.iterdir()), "something was written"
    return dict(zip(cases, lines, strict=True)).__getitem__


def in_place(word: str, folders: dict[str, str]) -> str:
    for name, path in folders.items():
        word = word.replace(name, path)
    return word


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "word", "refusal"),
    [(command, word, refusal) for command, given in CASES.items() for word, refusal in given],
)
def test_a_mistake_is_told_in_a_line_before_torch_is_loaded(
    outcomes: Callable[[tuple[str, str]], tuple[str, int, float]],
    folders: dict[str, str],
    command: str,
    word: str,
    refusal: str,
) -> None:
    said, _, seconds = outcomes((command, word))
    assert said is not None and in_place(refusal, folders) in said and "\n" not in said, said
    assert seconds < 1.0


def test_a_part_that_the_model_does_not_have_cannot_be_frozen(folders: dict[str, str]) -> None:
    words = ["model={name: vit_rel, depths: null, widths: null}", "freeze=[S3,S1]"]
    with pytest.raises(UserError, match=r"^freeze is 'S1'; allowed with vit_rel: S0, S3, dense$"):
        launch(str(FINETUNE), [*words, f"data.train={folders['PHOTOS']}"])


def new_run(folders: dict[str, str]) -> str:
    """Return the override of a run that is not there; the config's own may be, after the quickstart."""
    return f"run.directory={folders['EMPTY']}/run"


def test_a_step_of_more_images_than_there_are_is_warned_of(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for batch, warned in ((64, True), (8, False)):
        words = [
            f"data.train=[{{path: {folders['PHOTOS']}}}]",
            f"train.global_batch={batch}",
            new_run(folders),
        ]
        config = load_config(PretrainConfig, PRETRAIN, overrides=words)
        look_at_data(config, make_calendar=make_calendar)
        said = capsys.readouterr().err
        assert ("a step takes 64 images (train.global_batch), and there are 8" in said) == warned


def test_a_run_that_goes_on_by_other_images_is_refused_before_its_ranks_start(
    folders: dict[str, str], tmp_path: Path
) -> None:
    words = [f"data.train={folders['PHOTOS']}", f"data.evaluate={folders['PHOTOS']}", "train.global_batch=8"]
    config = load_config(PretrainConfig, PRETRAIN, overrides=[*words, f"run.directory={tmp_path}"])
    run = RunDirectory(tmp_path)
    run.metrics.write_text("{}")
    for key in ("data.train", "data.evaluate"):
        run.corpora.write_text(json.dumps({key: ["others"]}))
        with pytest.raises(UserError, match=f"^{key}: holds other images than"):
            look_at_data(config, make_calendar=make_calendar)
    run.corpora.write_text(json.dumps(config.data.digests_here()))
    look_at_data(config, make_calendar=make_calendar)


def test_a_rate_that_cannot_fall_is_warned_of(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for words, warned in (
        (["optimizer.learning_rate=1e-6"], True),
        (["optimizer.learning_rate=1e-6", "schedule.minimum=0"], False),
        (["optimizer.learning_rate=1e-6", "schedule.shape=constant"], False),
    ):
        words += [f"data.train=[{{path: {folders['PHOTOS']}}}]", "train.global_batch=8", new_run(folders)]
        look_at_data(load_config(PretrainConfig, PRETRAIN, overrides=words), make_calendar=make_calendar)
        said = capsys.readouterr().err
        assert ("schedule.minimum, 1e-05, is above optimizer.learning_rate, 1e-06" in said) == warned


DRIVER = """
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 3; return 0; }
"""
WITH_GPUS = "import coatnet.runtime.launch as launch\nlaunch.version = lambda name: '2.13.0'\n"


@pytest.mark.slow
def test_a_batch_that_this_machines_gpus_cannot_share_is_told_before_torch_is_loaded(
    folders: dict[str, str], tmp_path: Path
) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build a driver of three GPUs with")
    library = [compiler, "-shared", "-fPIC", "-xc", "-", "-o", str(tmp_path / "libcuda.so.1")]
    subprocess.run(library, input=DRIVER, text=True, check=True)
    commands = [
        [*good_words(command, folders, tmp_path), "launch.ranks=null", "train.global_batch=32"]
        for command in ("pretrain", "finetune")
    ]
    done = subprocess.run(
        [sys.executable, "-c", WITH_GPUS + PROGRAM],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        cwd=tmp_path,
        timeout=60,
    )
    said = [json.loads(line)[0] for line in done.stdout.splitlines()]
    assert said == ["train.global_batch is 32; allowed with 3 ranks: multiples of 3"] * 2, done.stderr
