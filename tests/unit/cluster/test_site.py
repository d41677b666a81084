"""The site file: strict, and no secret ever in a script."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.job import Job
from cluster.launch import Attempt, rank_command, rank_environment
from cluster.script import render_script
from cluster.site import SiteConfig, load_site, read_secrets, time_seconds, unheeded_settings
from coatnet.config import ConfigError, UserError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2-00:00:00", 172800),
        ("1:30:00", 5400),
        ("0-00:05:30", 330),
        ("24:00:00", 86400),
        ("1-12", 129600),
        ("1-2:30", 95400),
        ("30:00", 1800),
        ("100:00:00", 360000),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, seconds: int) -> None:
    assert time_seconds(text) == seconds


def test_what_the_environment_tells_sbatch_is_said_to_count_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert unheeded_settings(SiteConfig()) == ""
    for name in ("ACCOUNT", "PARTITION", "RESERVATION", "QOS"):
        monkeypatch.setenv(f"SBATCH_{name}", "x")
    told = unheeded_settings(SiteConfig(partition="gpu", sbatch=["--qos=high"]))
    assert told == (
        "SBATCH_ACCOUNT of your environment is not heeded; give --account, or write it into the site file; "
        "SBATCH_RESERVATION of your environment is not heeded; "
        "give --sbatch=--reservation=NAME, or write it into the site file"
    )


@pytest.mark.parametrize(
    "text", ["two days", "1d", "", "-5", "1:2", "1-", "45", "UNLIMITED", "1-2:3", "1-100", ":30"]
)
def test_another_form_of_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write D-HH:MM:SS"):
        time_seconds(text)


def test_a_misspelled_key_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("partitoin: gpu\n")
    with pytest.raises(ConfigError, match="did you mean partition"):
        load_site(tmp_path / "site.yaml")


def test_an_unquoted_time_that_yaml_turns_into_a_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("time: 12:00:00\n")
    with pytest.raises(ConfigError, match="put it in quotes"):
        load_site(tmp_path / "site.yaml")


def test_a_pipelines_stage_changes_keys_and_keeps_the_others() -> None:
    site = SiteConfig(partition="gpu").with_keys(
        {"time": "12:00:00", "preflight": {"enabled": False}}, origin="p"
    )
    assert (site.time, site.partition, site.preflight.enabled) == ("12:00:00", "gpu", False)
    assert site.preflight.open_files == SiteConfig().preflight.open_files
    with pytest.raises(ConfigError, match="did you mean nodes"):
        SiteConfig().with_keys({"nodse": 2}, origin="p")


def test_the_command_line_wins_over_the_site_file(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("partition: gpu\nnodes: 2\nsbatch: [--mail-type=FAIL]\n")
    site = load_site(tmp_path / "site.yaml", overrides=["spares=1"])
    site = site.updated({"nodes": 8, "partition": None}, image=None, sbatch=["--nice=5"], srun=[])
    assert (site.nodes, site.partition, site.spares) == (8, "gpu", 1)
    assert site.sbatch == ["--mail-type=FAIL", "--nice=5"]
    with pytest.raises(ConfigError, match="continuation is 'forever'"):
        site.updated({"continuation": "forever"}, image=None, sbatch=[], srun=[])


def test_an_image_of_the_command_line_completes_the_runtime_of_the_site_file(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("container: {runtime: pyxis}\n")
    site = load_site(tmp_path / "site.yaml")
    inside = site.updated({}, image="/i.sqsh", sbatch=[], srun=[])
    assert inside.container.image == "/i.sqsh"
    job = Job(name="a", directory="/runs/a", command=["pretrain"], site=site, working_directory="/")
    with pytest.raises(UserError, match="pyxis without an image; give --container IMAGE"):
        rank_command(job, attempt=Attempt("1", 1, 1), nodes=["n1"], directory=tmp_path)
    with pytest.raises(ConfigError, match="the run would begin outside of it"):
        SiteConfig().updated({}, image="/i.sqsh", sbatch=[], srun=[])


def test_a_warning_as_long_as_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="as long as the time limit"):
        SiteConfig(time="00:05:00", warning_seconds=300)


def test_secrets_come_from_a_private_file_and_enter_neither_script_nor_argv(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    path.write_text("# storage\nAWS_SECRET_ACCESS_KEY=hush=hush\n")
    path.chmod(0o600)
    secrets = read_secrets(path)
    assert secrets == {"AWS_SECRET_ACCESS_KEY": "hush=hush"}
    job = Job(
        name="run", directory="/runs/x", command=["pretrain", "c.yaml"], python="/usr/bin/python3",
        site=SiteConfig(secrets_file=str(path)),
    )  # fmt: skip
    attempt = Attempt("7", 1, 1)
    environment = rank_environment(job, attempt=attempt, nodes=["n1"], given={}, secrets=secrets)
    assert environment["AWS_SECRET_ACCESS_KEY"] == "hush=hush"
    assert "hush" not in render_script(job, job_file=Path("/runs/x/job.json"))
    assert "hush" not in " ".join(rank_command(job, attempt=attempt, nodes=["n1"], directory=Path("/runs/x")))


def test_a_secrets_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    path.write_text("A=b\n")
    path.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        read_secrets(path)


def test_a_broken_line_of_secrets_is_named_without_its_content(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    path.write_text("A=b\nhushhush\n")
    path.chmod(0o600)
    with pytest.raises(UserError, match="line 2") as caught:
        read_secrets(path)
    assert "hush" not in str(caught.value)
