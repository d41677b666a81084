"""Configs are strict: what is misspelled, mistyped, out of range or interpolated is named with its path."""

from __future__ import annotations

import pwd
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.site import SiteConfig, load_site
from coatnet.config import ConfigError, UserError, config_digest, from_dict, load_config, to_dict, to_yaml
from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig


@dataclass
class Inner:
    size: int = 3
    rate: float | None = None
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}; allowed: 1 and more")


@dataclass
class Root:
    seed: int = 0
    warmup: str = "3 epochs"
    inner: Inner = field(default_factory=Inner)
    many: list[Inner] = field(default_factory=list)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_is_laid_over_the_defaults_and_overrides_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "seed: 5\ninner: {size: 7, names: [a, b]}\n")
    config = load_config(Root, path, overrides=["inner.size=9"])
    assert config == Root(seed=5, inner=Inner(size=9, names=["a", "b"]))


def test_a_base_file_is_read_first_and_relative_to_the_file_that_extends_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "base.yaml", "seed: 1\ninner: {size: 2}\n")
    path = write(tmp_path / "sub" / "b.yaml", "extends: ../base.yaml\nseed: 3\n")
    assert load_config(Root, path) == Root(seed=3, inner=Inner(size=2))


def test_a_home_is_written_out_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell does so behind `key=`, and a folder named ~ would be made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "base.yaml", "seed: 4\n")
    text = "extends: ~/base.yaml\nseed: ???\nwarmup: ~/there\nmany: [{names: [a~/b, ~/c]}]\n"
    path = write(tmp_path / "a.yaml", text)
    found = load_config(Root, path, overrides=["inner.names=[~/d]", "seed=4"])
    assert found.seed == 4 and found.warmup == f"{tmp_path}/there"
    assert found.many[0].names == ["a~/b", f"{tmp_path}/c"]
    assert found.inner.names == [f"{tmp_path}/d"]


def test_who_has_no_home_is_told_so_and_has_no_site_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that knows no name for a user's number."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    for words in ({"overrides": ["warmup=~/x"]}, {"path": write(tmp_path / "a.yaml", "extends: ~/b.yaml\n")}):
        with pytest.raises(UserError, match=r"~/[xb].*: there is no such home; set HOME, or give the whole"):
            load_config(Root, **words)
    assert load_site(None) == SiteConfig()


def test_files_that_extend_each_other_in_a_circle_are_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "extends: b.yaml\n")
    path = write(tmp_path / "b.yaml", "extends: a.yaml\n")
    with pytest.raises(ConfigError, match="circle"):
        load_config(Root, path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("warmpu=3", "unknown key warmpu; did you mean warmup"),
        ("inner.sice=3", r"unknown key inner\.sice; did you mean inner\.size"),
        ("inner.epochs=3", r"unknown key inner\.epochs; known: size, rate, names"),
        ("inner.size=many", r"inner\.size: .*could not be converted"),
        ("inner.size=0", "inner.size is 0; allowed: 1 and more"),
        ("many=[{size: 0}]", r"many\[0\].size is 0"),
        ("warmup=${oc.env:HOME}", "interpolations .* not allowed"),
        ("seed=null", r"override 'seed=null': seed is null; it needs a value"),
        ("inner=null", r"inner is null; it needs a value"),
        ("inner.rate= ", r"nothing stands behind the =; null says that nothing is meant"),
        ("seed", "expected key.sub=value"),
        ("seed=[", "seed="),
    ],
)
def test_a_wrong_override_is_named_with_its_path(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Root, overrides=[override])


@pytest.mark.parametrize(
    ("schema", "file", "said"),
    [
        (PretrainConfig, "quickstart_pretrain.yaml", "data.train is empty; give data.train=SHARDS"),
        (
            PretrainConfig,
            "finetune/seeds.yaml",
            "is a config of `coatnet finetune`, not of `coatnet pretrain`$",
        ),
        (
            FinetuneConfig,
            "ablations/layer_norm.yaml",
            "is a config of `coatnet pretrain`, not of `coatnet fine",
        ),
        (Root, "finetune/seeds.yaml", "unknown key "),
    ],
)
def test_a_config_of_another_command_is_told_as_such(schema: type, file: str, said: str) -> None:
    path = Path(__file__).parents[3] / "configs" / file
    with pytest.raises(ConfigError, match=said):
        load_config(schema, path)


def test_a_misspelled_key_makes_no_config_of_another_command(tmp_path: Path) -> None:
    """Nor does one on the command line of a config that others could take, too."""
    with pytest.raises(ConfigError, match="unknown key init; known: seed"):
        load_config(PretrainConfig, write(tmp_path / "a.yaml", "init: runs/x\ntrian: {}\n"))
    with pytest.raises(ConfigError, match="unknown key freeze"):
        load_config(PretrainConfig, write(tmp_path / "b.yaml", "seed: 1\n"), overrides=["freeze=[S0]"])


def test_an_interpolation_in_a_file_is_refused_wherever_it_hides(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "many: [{size: 1, names: ['${seed}']}]\n")
    with pytest.raises(ConfigError, match="interpolations"):
        load_config(Root, path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"names": ["${oc.env:HOME}"]}}, "interpolations"),
        ({"inner": {"names": "${oc.env:HOME}"}}, "interpolations"),
        ({"inner": {"names": ["${broken"]}}, "in a file"),
        ([1, 2], "in a file: expected keys and values"),
        ("text", "in a file: expected keys and values"),
        ({1: 2}, "unknown key"),
    ],
)
def test_what_a_file_of_values_holds_is_taken_as_strictly_as_a_config(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(Root, values, origin="in a file")


def test_values_nested_without_end_are_one_clear_error() -> None:
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    with pytest.raises(ConfigError, match="in a file"):
        from_dict(Root, {"inner": {"names": deep}}, origin="in a file")


def test_a_missing_file_is_named_with_the_nearest_one_that_exists(tmp_path: Path) -> None:
    write(tmp_path / "quickstart.yaml", "seed: 1\n")
    with pytest.raises(
        ConfigError, match=r"quikstart\.yaml: no such config file; did you mean .*quickstart\.yaml"
    ):
        load_config(Root, tmp_path / "quikstart.yaml")


@pytest.mark.parametrize(
    "text",
    [
        *("- a\n- b\n", "a: [\n", "\x00", "null: 2", "inner: !!set {a}", f"seed: {'9' * 5000}"),
        "{a: " * 2000 + "1" + "}" * 2000,
    ],
)
def test_garbage_instead_of_yaml_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "bad.yaml", text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(Root, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inner: small", "inner is small; allowed: keys below it, as inner.size"),
        ("inner: []", r"inner is \[\]; allowed: keys below it, as inner.size"),
        ("many: {size: 3}", r"many is {'size': 3}; allowed: a list, as \[{size: …}\]"),
        ("extends: .", "is a folder; give a YAML file of it: "),
        ("extends: /dev/zero", "/dev/zero: is a pipe or device; give a YAML file"),
    ],
)
def test_what_stands_where_a_section_belongs_is_told_with_what_would(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Root, write(tmp_path / "a.yaml", text))


def test_a_config_survives_the_way_through_yaml_and_through_json(tmp_path: Path) -> None:
    config = Root(seed=2, inner=Inner(rate=0.5), many=[Inner(size=4)])
    assert load_config(Root, write(tmp_path / "c.yaml", to_yaml(config))) == config
    assert from_dict(Root, to_dict(config), origin="test") == config


def test_the_digest_changes_with_every_value_but_those_left_out() -> None:
    assert config_digest(Root(seed=1)) != config_digest(Root(seed=2))
    assert config_digest(Root(seed=1), without=["seed"]) == config_digest(Root(seed=2), without=["seed"])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("data.train=a", "data.train=[{path: a}]"),
        ("data.train={path: a}", "data.train=[{path: a}]"),
        ("data.train=[a,b]", "data.train=[{path: a}, {path: b}]"),
        ("data.train=[a,{path: b, weight: 2}]", "data.train=[{path: a}, {path: b, weight: 2}]"),
    ],
)
def test_a_corpus_may_be_given_by_its_path_alone(written: str, meant: str, tmp_path: Path) -> None:
    assert load_config(PretrainConfig, overrides=[written]) == load_config(PretrainConfig, overrides=[meant])
    key, _, value = written.removeprefix("data.").partition("=")
    (tmp_path / "c.yaml").write_text(f"data: {{{key}: {value}}}\n")
    assert load_config(PretrainConfig, tmp_path / "c.yaml") == load_config(PretrainConfig, overrides=[meant])


@pytest.mark.parametrize("override", ["data.train=3", "data.train=[[a]]", "data=a"])
def test_what_is_no_corpus_is_refused_with_its_key(override: str) -> None:
    with pytest.raises(ConfigError, match=r"data"):
        load_config(PretrainConfig, overrides=[override])
