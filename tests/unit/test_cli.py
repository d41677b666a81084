"""The command line: found through entry points, quick to start, errors in one line."""

from __future__ import annotations

import functools
import inspect
import json
import os
import shlex
import signal
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
import typer
import typer.main
import typer.models
from PIL import Image

from coatnet import commands
from coatnet.cli import main
from coatnet.commands import run
from coatnet.config import UserError
from finetune.image_files import print_predictions

ROOT = Path(__file__).parents[2]
LEAST_TERMINAL = 80  # columns
COMMANDS = {point.name: point for point in sorted(entry_points(group="coatnet.commands"))}

# What prints a table takes --json, as all that inspects does.
TABLES = ("doctor", "evaluate", "plan", "predict", "quickstart", "replay", "report", "shard", "status")


Typed = Callable[..., subprocess.CompletedProcess[str]]


def coatnet(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coatnet.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Typed]:
    """Run a command as `coatnet` above does, in this process."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["coatnet", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(arguments, ended.value.code, *capsys.readouterr())

    handler = signal.getsignal(signal.SIGINT)
    yield run
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example_and_says_what_every_option_is(name: str) -> None:
    function = COMMANDS[name].load()
    assert "Example: coatnet " + name.replace(".", " ") in function.__doc__
    app = typer.Typer(add_completion=False)
    app.command(name)(function)
    assert not [one.name for one in typer.main.get_command(app).params if not getattr(one, "help", None)]
    if name in TABLES or name.startswith("inspect."):
        assert "as_json" in inspect.signature(function).parameters


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_in_a_help_page_can_be_pasted_into_a_shell(name: str) -> None:
    function = COMMANDS[name].load()
    examples = inspect.getdoc(function).split("Example: ")[1:]  # type: ignore[union-attr]
    for lines in (f"Example: {example.strip()}".splitlines() for example in examples):
        assert all(len(line) <= LEAST_TERMINAL - 2 for line in lines)
        assert all(line.endswith(" \\") for line in lines[:-1])
        words = shlex.split(" ".join(line.removesuffix("\\") for line in lines))
        app = typer.Typer(add_completion=False)
        app.command(name)(function)
        typer.main.get_command(app).make_context(name, words[3 + name.count(".") :])


def test_every_command_is_listed_without_importing_torch() -> None:
    code = "import sys; sys.argv = ['coatnet', '--help']\nfrom coatnet.cli import main\n"
    check = (
        "try: main()\nexcept SystemExit: pass\nassert not {'torch', 'deepspeed', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert name.split(".")[0] in done.stdout


@pytest.mark.slow
def test_a_wrong_config_is_one_line_on_stderr_and_status_two() -> None:
    done = coatnet("pretrain", "no_such_config.yaml")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(
        "error: no_such_config.yaml: no such config file"
    )


def test_a_misspelled_key_names_the_nearest_one(typed: Typed) -> None:
    done = typed("pretrain", "configs/quickstart_pretrain.yaml", "data.trian=x")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "did you mean data.train?" in done.stderr


def test_a_file_in_the_way_of_a_folder_is_one_line_and_no_traceback(tmp_path: Path, typed: Typed) -> None:
    (tmp_path / "in_the_way").touch()
    (tmp_path / "images").mkdir()
    model = tmp_path / "model"
    (model / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "images" / "a").mkdir()
    (tmp_path / "images" / "a" / "0.jpg").touch()
    done = typed(
        "evaluate", str(model), str(tmp_path / "images"), "--destination", str(tmp_path / "in_the_way")
    )
    assert done.returncode == 2
    what = f"the destination is {tmp_path / 'in_the_way'}, which is no folder"
    assert done.stderr == f"error: {what}; allowed: a folder, or a name that is free\n"


@pytest.mark.parametrize("words", [("shard", "", "out"), ("predict", "runs/first", " "), ("",)])
def test_an_argument_that_is_empty_is_no_name_of_this_folder(words: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="an argument is empty; a variable of the shell may not be set"):
        run(words)


def test_no_option_of_any_command_names_a_folder_that_is_called_like_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `--directory=~/runs` would, of which no shell makes a path."""
    monkeypatch.setenv("HOME", "/mine")
    made, tried = commands._command, set()

    def recorded(name: str, function: Callable[..., None]) -> object:
        return made(name, functools.wraps(function)(lambda **given: taken.update(given)))

    monkeypatch.setattr(commands, "_command", recorded)
    for name, point in COMMANDS.items():
        function, words = point.load(), name.split(".")
        hints, taken = typing.get_type_hints(function, include_extras=True), {}
        for one in inspect.signature(function).parameters.values():
            kind, *told = typing.get_args(hints[one.name])
            if one.default is inspect.Parameter.empty:
                words.append("x")
            elif Path in (kind, *typing.get_args(kind)) and isinstance(told[0], typer.models.OptionInfo):
                words.append(f"--{one.name}=~/x")
                tried.add(one.name)
        run(words)
        assert {taken[word[2:-4]] for word in words if "~" in word} <= {Path("/mine/x")}
    assert {"after", "calibrate", "classes", "configs", "destination", "directory", "output", "site"} <= tried


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--output=~", "--output=/mine"),
        ("--sbatch=--error=~/x", "--sbatch=--error=/mine/x"),
        ("hardware=~/x.yaml", "hardware=/mine/x.yaml"),
        ("run.directory=~", "run.directory=~"),  # null, in YAML
        ("--only=~x", "--only=~x"),
        ("https://a/b=~/c", "https://a/b=~/c"),
        ("~/x", "~/x"),  # as a shell leaves only what stands in quotes
    ],
)
def test_a_tilde_behind_an_equals_sign_is_home_where_it_begins_a_path(
    word: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/mine")
    assert commands._written_out(word) == meant


def test_an_option_may_be_empty() -> None:
    with pytest.raises(UserError, match="nowhere: No such file or directory"):
        run(("shard", "nowhere", "out", "--only", ""))


def test_an_unknown_command_is_refused(typed: Typed) -> None:
    done = typed("pretran")
    assert done.returncode == 2 and "pretran" in done.stderr


def test_an_unknown_command_names_the_nearest_one(typed: Typed) -> None:
    done = typed("inspect", "modle")
    assert done.returncode == 2
    assert done.stderr == "error: coatnet inspect has no command modle; did you mean model?\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pretrain",), "missing argument 'config'; see `coatnet pretrain --help`"),
        (("evaluate", "a", "b", "--batch", "0"), "see `coatnet evaluate --help`"),
        (("pretrain", "a.yaml", "--train.duration=5"), "config keys go without dashes, train.duration=VALUE"),
    ],
)
def test_a_mistake_in_the_options_is_one_line(words: tuple[str, ...], said: str, typed: Typed) -> None:
    done = typed(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ") and said in done.stderr


@pytest.mark.parametrize("words", [(), ("inspect",)])
def test_a_command_without_words_shows_its_help(words: tuple[str, ...], typed: Typed) -> None:
    done = typed(*words)
    assert done.returncode == 2 and "Commands" in done.stdout and done.stderr == ""


def test_the_version_is_the_installed_one(typed: Typed) -> None:
    done = typed("--version")
    assert (done.returncode, done.stdout) == (0, f"coatnet {version('coatnet')}\n")


def test_help_has_a_short_name(typed: Typed) -> None:
    done = typed("inspect", "model", "-h")
    assert done.returncode == 0 and "Usage: coatnet inspect model [OPTIONS]" in done.stdout


@pytest.mark.parametrize(
    ("line", "offered"), [("coatnet inspect mo", ["model"]), ("coatnet nonsense canc", ["cancel"])]
)
def test_a_shell_is_told_how_a_line_goes_on(
    line: str, offered: list[str], typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_COATNET_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    done = typed()
    assert (done.stdout.split(), done.stderr) == (offered, "")


@pytest.mark.slow
def test_a_reader_that_went_away_is_not_worth_a_word() -> None:
    for words in (["--help"], ["inspect", "model", "coatnet_0", "--json"]):
        done = subprocess.Popen(
            [sys.executable, "-m", "coatnet.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert done.stdout is not None and done.stderr is not None
        done.stdout.close()
        assert done.stderr.read() == b""
        assert done.wait(60) == 128 + signal.SIGPIPE, words  # as a shell tells it of any other command


@pytest.mark.slow
@pytest.mark.parametrize("words", ["inspect model coatnet_0", "logs ."])
def test_output_that_cannot_be_written_is_told_in_a_line(words: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    (tmp_path / "events.jsonl").write_text('{"kind": "start"}\n')
    command = [sys.executable, "-m", "coatnet.cli", *words.split()]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, timeout=60
        )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "error: No space left on device")
    assert "Traceback" not in done.stderr
    closed = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert closed.returncode == 0 and "rror" not in closed.stderr


# Interrupts the process itself: at the import of a module, whichever comes first of those that are named.
INTERRUPTED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["coatnet", *{words!r}]
from coatnet.cli import main
main()
"""


@pytest.mark.parametrize("name", ["typer", "coatnet.report.cli", "coatnet.report.write"])
def test_an_interruption_leaves_no_trace_at_whatever_moment_it_comes(name: str) -> None:
    program = INTERRUPTED.format(name=name, words=["report", "nowhere"])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.slow
def test_nothing_is_coloured_where_no_terminal_listens() -> None:
    for words in (["--help"], ["inspect", "model", "coatnet_0"], ["nonsense"]):
        done = coatnet(*words)
        assert "\x1b" not in done.stdout + done.stderr and "\r" not in done.stdout + done.stderr


def test_the_package_is_the_command_and_a_terminal_that_lacks_a_character_gets_another() -> None:
    """Where the environment's `bin` is not in the PATH: `python -m coatnet`."""
    command = [sys.executable, "-m", "coatnet", "inspect", "model", "coatnet_0"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}  # the table holds × and ²
    done = subprocess.run(command, capture_output=True, env=environment, check=False, timeout=60)
    assert done.returncode == 0 and b"25,036,948" in done.stdout


def test_a_working_directory_that_is_gone_is_told_in_a_line(tmp_path: Path) -> None:
    program = f"import os; os.chdir({str(tmp_path)!r}); os.rmdir({str(tmp_path)!r})\n"
    program += "import sys; sys.argv = ['coatnet', 'doctor']\nfrom coatnet.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the working directory is gone; change into another folder\n"


def test_no_line_is_broken_where_no_terminal_listens(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    image = "/".join(["a folder of a long name"] * 12)
    print_predictions([{"image": image, "guesses": [{"class": "[cat] :dog:", "probability": 0.5}]}])
    said = capsys.readouterr().out
    assert any(image in line and "[cat] :dog:" in line for line in said.splitlines())


@pytest.mark.slow
def test_names_are_read_alike_whatever_the_locale(tmp_path: Path) -> None:
    (tmp_path / "Köln").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "Köln" / "0.jpg")
    known = []
    for locale in ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "C.UTF-8"}):
        shards = tmp_path.with_name(f"shards-{locale['LC_ALL']}")
        command = [sys.executable, "-m", "coatnet.cli", "shard", str(tmp_path), str(shards)]
        done = subprocess.run(command, capture_output=True, env={**os.environ, **locale}, timeout=60)
        assert done.returncode == 0, done.stderr
        known.append(json.loads((shards / "manifest.json").read_bytes())["classes"])
    assert known == [["Köln"], ["Köln"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "configs/quickstart_pretrain.yaml", "data.train=[{path: o\udcff}]"],
        ["shard", "o\udcff", "s"],
    ],
)
def test_a_name_that_is_no_utf8_is_told_in_a_line(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "coatnet.cli", *words], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert r"o\udcff…: a name that is not UTF-8" in done.stderr


@pytest.mark.slow
def test_a_home_that_cannot_be_written_is_not_worth_a_word(tmp_path: Path) -> None:
    picture = tmp_path / "scaling.png"
    words = ["plan", str(ROOT / "configs/pretrain/imagenet_1k_coatnet_0.yaml"), "--plot", str(picture)]
    elsewhere = ("MPLCONFIGDIR", "XDG_CONFIG_HOME")
    kept = {name: value for name, value in os.environ.items() if name not in elsewhere}
    done = subprocess.run(
        [sys.executable, "-m", "coatnet.cli", *words],
        env={**kept, "HOME": "/proc/1", "XDG_CACHE_HOME": "/proc/1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "") and picture.stat().st_size > 0


def test_what_a_command_starts_without_an_output_has_one(tmp_path: Path) -> None:
    """A rank has the streams of its launcher, and ended with a traceback at its first word."""
    child = (
        f"import sys; open({str(tmp_path / 'told')!r}, 'w').write(repr([sys.stdin, sys.stdout, sys.stderr]))"
    )
    begin = "import subprocess, sys; from coatnet.cli import _require_streams; _require_streams()"
    program = f"{begin}; subprocess.run([sys.executable, '-c', {child!r}])"
    subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", program], check=True)
    told = (tmp_path / "told").read_text()
    assert told.count("TextIOWrapper") == 3 and "None" not in told
