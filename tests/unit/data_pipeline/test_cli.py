"""The data commands as a user types them, in one process."""

from __future__ import annotations

import json
import resource
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from coatnet.config import UserError
from data_pipeline import cli
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.corpus import Corpus
from data_pipeline.folder import FolderCorpus
from data_pipeline.tools.contact_sheet import _caption, contact_sheet
from data_pipeline.tools.tables import print_problems, print_shard_facts
from data_pipeline.tools.verify import Problem

RUNNER = CliRunner()


def run(function, *arguments: str | Path, status: int = 0) -> str:
    app = typer.Typer()
    app.command()(function)
    result = RUNNER.invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.stdout


def test_shard_prints_what_it_wrote(image_folder: Path, tmp_path: Path) -> None:
    made = json.loads(run(cli.shard, image_folder, tmp_path / "out", "--shard-samples", "50", "--json"))
    assert made["all"] == {"shards": 3, "classes": 3, "written": 120, "skipped": 0, "odd": 0, "duplicates": 0}
    again = run(cli.shard, image_folder, tmp_path / "out", "--shard-samples", "50")
    assert "3 shards, 3 classes, 120 written" in again and "; one label per image" in again


def test_a_class_of_which_nothing_could_be_used_is_named(image_folder: Path, tmp_path: Path) -> None:
    source = shutil.copytree(image_folder, tmp_path / "photos")
    (source / "ghost").mkdir()
    (source / "ghost" / "1.jpg").write_text("no image")
    told = run(cli.shard, source, tmp_path / "out", "--bad-budget", "0.1")
    assert "1 skipped" in told and "1 class has no image: ghost" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard-size", "big"], "'big' is not a size"),
        (["--shard-size", "100"], "--shard-size is 100 bytes; allowed: 100 kB or more, .*--shard-samples"),
        (["--shard-samples", "0"], "--shard-samples is below 1"),
        (["--policy", "cmyk"], "expected KIND=ACTION"),
        (["--policy", "cmyk=eat"], "cmyk is 'eat'; allowed: keep, convert, skip, stop"),
        (["--policy", "smell=keep"], "--policy is of 'smell'; allowed: not_an_image, unsupported"),
        (["--check", "taste"], "check is 'taste'; allowed: decode, header"),
        (["--validation", "1.5"], "--validation is 1.5; allowed: from 0 .off. to below 1"),
        (["--in-place"], "or --in-place without one"),
    ],
)
def test_a_wrong_option_is_one_clear_error(
    image_folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(cli.shard, image_folder, tmp_path / "out", *arguments)


def test_inspect_shards_counts_verifies_and_lints(shard_folder: Path) -> None:
    facts = json.loads(run(cli.inspect_shards, shard_folder, "--verify", "--lint", "--json"))
    assert facts["samples"] == 120
    assert facts["classes"] == {"ant": 40, "bee": 40, "cat": 40}
    assert facts["formats"] == {"JPEG": 120}
    assert facts["problems"] == []
    assert "nothing is damaged" in run(cli.inspect_shards, shard_folder, "--verify")


def test_class_names_in_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_shard_facts(
        {"samples": 3, "shards": 1, "classes": {"[/bold]": 2, "[red]": 1}, "counts": {"[/i]": 1}}
    )
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("[/bold]", "[red]", "[/i]"))


def test_inspect_shards_names_damage_and_fails(shard_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shard_folder, tmp_path / "shards"))
    path = folder / "shard-000001.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    facts = json.loads(run(cli.inspect_shards, folder, "--verify", "--json", status=1))
    assert {problem["shard"] for problem in facts["problems"]} == {"shard-000001.tar"}
    assert any(problem["sample"] == 0 for problem in facts["problems"])


def test_a_tar_that_the_manifest_does_not_name_is_named(shard_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shard_folder, tmp_path / "shards"))
    for name in ("shard-000000.tar", "Added.TAR"):
        shutil.copy(folder / "shard-000001.tar", folder / name)
    (folder / "shard-000000.tar").rename(folder / "found.tar")
    facts = json.loads(run(cli.inspect_shards, folder, "--verify", "--json", status=1))
    named = {problem["shard"]: problem["what"] for problem in facts["problems"]}
    assert named.pop("shard-000000.tar") == "No such file or directory"
    assert set(named) == {"Added.TAR", "found.tar"}
    assert set(named.values()) == {"is not in the manifest: nothing reads it"}


def test_dalis_index_is_that_of_its_own_indexer(shard_folder: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(shard_folder, tmp_path / "shards"))
    assert "shard-000000.idx to shard-000007.idx" in run(cli.inspect_shards, shards, "--export", "dali")
    for tar in sorted(shards.glob("*.tar")):
        with tarfile.open(tar) as file:
            members = [(m.name.split(".", 1)[1], m.offset_data, m.size, m.name) for m in file.getmembers()]
        pairs = zip(members[::2], members[1::2], strict=True)
        wanted = [" ".join(str(value) for part in pair for value in part) for pair in pairs]
        assert tar.with_suffix(".idx").read_text().splitlines() == ["v1.2 15", *wanted]


def test_the_index_for_wids_counts_every_sample(shard_folder: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(shard_folder, tmp_path / "shards"))
    run(cli.inspect_shards, shards, "--export", "wids")
    index = json.loads((shards / "wids.json").read_text())
    assert [(shards / entry["url"]).stat().st_size for entry in index["shardlist"]] == [
        entry["filesize"] for entry in index["shardlist"]
    ]
    assert sum(entry["nsamples"] for entry in index["shardlist"]) == 120


def test_an_index_for_another_library_is_refused(shard_folder: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(shard_folder, tmp_path / "shards"))
    with pytest.raises(UserError, match="allowed: wids, dali"):
        run(cli.inspect_shards, shards, "--export", "squirrel")


def test_inspect_order_proves_exactly_once(shard_folder: Path) -> None:
    proof = json.loads(
        run(
            cli.inspect_order,
            shard_folder,
            *("--world-sizes", "1,2,3,24", "--global-batch", "24", "--show-steps", "1", "--json"),
        )
    )
    assert proof["exactly_once"] is True
    assert [row["world_size"] for row in proof["world_sizes"]] == [1, 2, 3, 24]
    assert len(proof["reads"]) == 1 + 2 + 3 + 24
    with pytest.raises(UserError, match="allowed: divisors of the global batch, 24"):
        run(cli.inspect_order, shard_folder, "--world-sizes", "7", "--global-batch", "24")
    with pytest.raises(UserError, match="--world-sizes is '2,two'; allowed: numbers"):
        run(cli.inspect_order, shard_folder, "--world-sizes", "2,two")
    with pytest.raises(UserError, match="--threads is '0'; allowed: numbers from 1 on"):
        run(cli.inspect_throughput, shard_folder, "--threads", "0")
    ragged = json.loads(
        run(cli.inspect_order, shard_folder, "--world-sizes", "1,7", "--global-batch", "49", "--json")
    )
    assert ragged["tail_samples"] == 22 and ragged["exactly_once"] is True


def test_one_of_a_kind_is_no_plural(image_folder: Path) -> None:
    said = run(cli.inspect_order, image_folder, "--world-sizes", "1", "--global-batch", "120")
    assert "120 samples in 1 shard, 1 lane; 1 whole step, a tail of 0" in said


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (cli.inspect_order, ["--global-batch", "0"]),
        (cli.inspect_order, ["--epoch", "-1"]),
        (cli.inspect_throughput, ["--seconds", "0"]),
        (cli.preview, ["--images", "0"]),
        (cli.preview, ["--columns", "0"]),
    ],
)
def test_a_number_that_would_run_for_ever_or_mean_nothing_is_refused(
    shard_folder: Path, command: Callable[..., None], option: list[str]
) -> None:
    run(command, shard_folder, *option, status=2)


def test_lint_names_the_damaged_sample(
    shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(shard_folder, tmp_path / "shards"))
    problems = [Problem("shard-0.tar", 7, "damaged: [odd]\x1b[2J", "000007-ant\x1b]0;")] * 51
    print_problems(problems, checked=True)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown, "a terminal would obey what others call their images"
    assert "000007-ant" in shown and "[odd]" in shown and "1 more; --json lists all" in shown
    corpus = Corpus.open(folder)
    content = bytes(corpus.read(0, 3).payload)
    path = folder / "shard-000000.tar"
    path.write_bytes(path.read_bytes().replace(content, content[:-300] + bytes(300)))
    facts = json.loads(run(cli.inspect_shards, folder, "--lint", "--json", status=1))
    (named,) = [problem for problem in facts["problems"] if problem["sample"] == 3]
    assert named["name"] and named["name"] in corpus.name(0, 3)


def test_inspect_throughput_says_what_holds_a_model_back(shard_folder: Path) -> None:
    rows = json.loads(
        run(
            cli.inspect_throughput,
            *(
                shard_folder,
                "image_size=16",
                "--threads",
                "1",
                "--seconds",
                "0.1",
                "--needs",
                "1e9",
                "--json",
            ),
        )
    )
    assert rows[0]["images_per_second"] > 0
    assert rows[0]["held_back_percent"] > 90


@pytest.mark.parametrize("augment", [[], ["mixup=0.8", "randaugment_n=2", "randaugment_m=9"]])
def test_preview_draws_a_sheet(shard_folder: Path, tmp_path: Path, augment: list[str]) -> None:
    run(
        cli.preview,
        *(shard_folder, "image_size=24", *augment),
        *("--output", tmp_path / "sheet.png", "--images", "6", "--columns", "3"),
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (3 * 28 + 4, 2 * (2 * (24 + 16) + 8) + 4)


def test_a_preview_without_room_names_its_file_and_leaves_the_former_one(
    shard_folder: Path, tmp_path: Path
) -> None:
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(b"former")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match=r"sheet\.png"):
            cli.preview(str(shard_folder), output=sheet, images=2, overrides=["image_size=24"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"former"]


def test_a_preview_names_the_images_that_cannot_be_used_and_shows_the_others(
    image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(next(image_folder.rglob("*.jpg")).relative_to(image_folder))
    corpus = FolderCorpus(image_folder, classes=["ant"], files=[(image, 0), ("gone", 0), ("lost\x1b[2J", 0)])
    sheet = contact_sheet(corpus, AugmentConfig(image_size=24), images=3, columns=1, seed=0)
    assert sheet.size == (28 + 4, 2 * (24 + 16) + 8 + 4)
    told = capsys.readouterr().err
    assert told.count("left out: ") == 2 and "left out: gone: " in told and r"left out: lost\x1b[2J: " in told
    corpus = FolderCorpus(image_folder, classes=["ant"], files=[("gone", 0)])
    with pytest.raises(UserError, match="none of the images"):
        contact_sheet(corpus, AugmentConfig(image_size=24), images=1, columns=1, seed=0)


def test_a_preview_writes_letters_beyond_ascii(image_folder: Path) -> None:
    image = str(next(image_folder.rglob("*.jpg")).relative_to(image_folder))
    captions = set()
    for name in ("Hüte", "Häte", "Hите"):
        corpus = FolderCorpus(image_folder, classes=[name], files=[(image, 0)])
        sheet = contact_sheet(corpus, AugmentConfig(image_size=64), images=1, columns=1, seed=0)
        captions.add(sheet.crop((0, 0, 72, 20)).tobytes())
    assert len(captions) == 3, "what a font does not know looks all alike"


def test_no_command_imports_anything_heavy_for_its_help() -> None:
    import subprocess
    import sys

    code = "import sys, data_pipeline.cli; print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_a_preview_names_the_shares_of_mixed_labels() -> None:
    classes = ["ant", "bee", "cat"]
    assert _caption(torch.tensor(2), classes) == "cat"
    assert _caption(torch.tensor([0.0, 1.0, 0.0]), classes) == "bee"
    assert _caption(torch.tensor([0.3, 0.0, 0.7]), classes) == "0.70 cat, 0.30 ant"
