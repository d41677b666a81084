"""Stages wait for those before them, also where a stage's job changes from life to life."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.cancel import cancel_run
from cluster.cli import submit as submit_command
from cluster.pipeline import is_pipeline, prepare_pipeline
from cluster.site import SiteConfig, load_site
from cluster.submission import preview
from coatnet.config import UserError

Cluster = Any  # of conftest.py, which nothing can be imported from
KILL = "--kill-on-invalid-dep=yes"


@pytest.mark.slow
def test_stages_wait_for_those_before_them_by_slurms_own_dependencies(cluster: Cluster) -> None:
    cluster.stages(c="a b requeue", a="requeue", b="requeue")
    assert cluster.submit() == {"a": "10", "b": "11", "c": "12"}
    assert cluster.heard() == ["sbatch a", "sbatch b", f"sbatch --dependency=afterok:10:11 {KILL} c"]


@pytest.mark.parametrize("hardware", ["null", "h100"])
def test_a_stage_is_submitted_although_the_weights_that_it_begins_from_are_not_there_yet(
    cluster: Cluster, tmp_path: Path, hardware: str
) -> None:
    (tmp_path / "second.yaml").write_text(
        f"{{init: {tmp_path / 'first'}, data: {{train: [{{path: {tmp_path / 'shards'}}}]}}}}\n"
    )
    cluster.path.write_text(
        f"stages:\n  first: {{command: evaluate, target: x, directory: {tmp_path / 'first'}}}\n"
        f"  second: {{command: finetune, target: {tmp_path / 'second.yaml'}, after: [first], "
        f"directory: {tmp_path / 'second'}, site: {{hardware: {hardware}}}}}\n"
    )
    assert cluster.submit() == {"first": "10", "second": "11"}


@pytest.mark.slow
def test_what_is_done_is_left_out_and_what_is_queued_is_waited_for(cluster: Cluster) -> None:
    cluster.stages(a="requeue", b="requeue", c="a b requeue", d="c requeue")
    cluster.submit()
    cluster.end("a")
    cluster.queue("11")
    assert cluster.submit() == {"a": "done", "b": "11", "c": "14", "d": "15"}
    assert cluster.heard() == [
        f"sbatch --dependency=afterok:11 {KILL} c", f"sbatch --dependency=afterok:14 {KILL} d",
    ]  # fmt: skip


@pytest.mark.slow
def test_what_is_behind_a_chain_is_held_until_its_last_life_releases_it(cluster: Cluster) -> None:
    cluster.stages(a="chain", b="a requeue", c="b requeue")
    cluster.submit()
    assert cluster.heard() == [
        "sbatch --hold a", "sbatch --hold b", f"sbatch --dependency=afterok:11 {KILL} c",
        "scontrol release 10",
    ]  # fmt: skip
    assert cluster.behind("a") == (["11"], []) and cluster.behind("b") == ([], [])


@pytest.mark.slow
def test_of_chains_behind_chains_only_the_first_may_start(cluster: Cluster) -> None:
    cluster.stages(a="chain", b="a chain", c="b chain")
    cluster.submit()
    assert cluster.heard() == ["sbatch --hold a", "sbatch --hold b", "sbatch --hold c", "scontrol release 10"]
    assert cluster.behind("a") == (["11"], ["12"]) and cluster.behind("b") == (["12"], [])


@pytest.mark.slow
def test_a_failure_before_a_chain_takes_along_what_is_held_behind_it(cluster: Cluster) -> None:
    cluster.stages(a="requeue", b="a chain", c="b requeue")
    cluster.submit()
    assert cluster.heard() == [
        "sbatch a", f"sbatch --dependency=afterok:10 {KILL} --hold b", "sbatch --hold c",
        "scontrol release 11",
    ]  # fmt: skip
    assert cluster.behind("a") == ([], ["12"]) and cluster.behind("b") == (["12"], [])


@pytest.mark.slow
def test_what_is_queued_later_behind_a_chain_that_runs_is_known_to_it(cluster: Cluster) -> None:
    cluster.stages(a="chain", b="a requeue")
    cluster.submit()
    cluster.queue("10")  # b was cancelled by hand
    assert cluster.submit() == {"a": "10", "b": "12"}
    assert cluster.heard() == ["sbatch --hold b", "scontrol release 10"]
    assert cluster.behind("a") == (["12"], [])


@pytest.mark.parametrize(
    ("began", "by_now", "heard"),
    [
        ("chain", "requeue", ["sbatch --hold b", "scontrol release 10"]),
        ("requeue", "chain", [f"sbatch --dependency=afterok:10 {KILL} b"]),
    ],
)
def test_what_is_queued_goes_on_as_it_was_submitted_whatever_the_file_says_by_now(
    cluster: Cluster, began: str, by_now: str, heard: list[str]
) -> None:
    cluster.stages(a=began)
    cluster.submit()
    cluster.queue("10")
    cluster.stages(a=by_now, b="a requeue")
    assert cluster.submit() == {"a": "10", "b": "11"}
    assert cluster.heard() == heard


@pytest.mark.slow
def test_what_is_still_held_waits_for_the_chain_that_is_submitted_anew(cluster: Cluster) -> None:
    cluster.stages(a="chain", b="a requeue")
    cluster.submit()
    cluster.queue("11")  # a was cancelled by hand
    assert cluster.submit() == {"a": "12", "b": "11"}
    assert cluster.heard() == ["sbatch --hold a", "scontrol release 12"]
    assert cluster.behind("a") == (["11"], [])


def test_what_is_still_held_behind_a_chain_that_is_done_is_released(cluster: Cluster) -> None:
    cluster.stages(a="chain", b="a requeue")
    cluster.submit()
    cluster.end("a")
    cluster.queue("11")  # the controller was away when a ended
    assert cluster.submit() == {"a": "done", "b": "11"}
    assert cluster.heard() == ["scontrol release 11"]


@pytest.mark.slow
def test_what_is_held_behind_a_chain_that_nobody_runs_is_told_with_a_remedy(cluster: Cluster) -> None:
    cluster.stages(a="chain", b="a chain", c="b requeue")
    cluster.submit()
    cluster.queue("10", "11", "12")
    assert [cluster.status(name)[1] for name in "abc"] == [
        "JobHeldUser: held; let it begin: scontrol release 10",
        f"begins after {cluster.folder}/a",
        f"begins after {cluster.folder}/b",
    ]
    cluster.queue("11", "12")  # somebody called scancel for a before it began
    assert cluster.status("c")[1] == f"begins after {cluster.folder}/b", "which will, or be told"
    assert cluster.status("b") == (
        "pending",
        f"held behind {cluster.folder}/a, of which no job is left; submit the pipeline again, or give up: "
        f"coatnet cancel {cluster.folder}/b",
    )
    cluster.end("a")
    assert cluster.status("b") == (
        "pending", f"held although {cluster.folder}/a is done; let it begin: scontrol release 11"
    )  # fmt: skip


def test_what_comes_after_a_chain_that_is_done_waits_for_nothing(cluster: Cluster) -> None:
    cluster.stages(a="chain", b="a requeue")
    (cluster.folder / "a").mkdir()
    cluster.end("a")
    assert cluster.submit() == {"a": "done", "b": "10"}
    assert cluster.heard() == ["sbatch b"]


def test_what_is_done_already_waits_for_no_chain_before_it(cluster: Cluster) -> None:
    cluster.stages(a="chain", b="a requeue")
    (cluster.folder / "b").mkdir()
    cluster.end("b")
    assert cluster.submit() == {"a": "10", "b": "done"} and cluster.behind("a") == ([], [])


@pytest.mark.slow
def test_a_chain_that_ends_while_the_next_stage_is_queued_releases_it_all_the_same(cluster: Cluster) -> None:
    cluster.stages(a="chain", b="a requeue")
    cluster.submit()
    cluster.queue("10")
    slow = (
        f"[ $(basename $(dirname $(dirname $(dirname $3)))) = a ] || touch {cluster.folder}/a/done; echo 12"
    )
    cluster.program("sbatch", slow)
    assert cluster.submit() == {"a": "10", "b": "12"}
    assert cluster.heard() == ["sbatch --hold b", "scontrol release 10", "scontrol release 12"]


@pytest.mark.slow
def test_stages_before_one_that_slurm_refuses_are_not_left_held(cluster: Cluster) -> None:
    cluster.stages(a="chain", b="a requeue", c="a requeue")
    refuse = 'case "$*" in */c/*) echo "error: no" >&2; exit 1;; */a/*) echo 10;; *) echo 11;; esac'
    cluster.program("sbatch", refuse)
    with pytest.raises(UserError, match="sbatch: no"):
        cluster.submit()
    assert cluster.heard()[-1] == "scontrol release 10" and cluster.behind("a") == (["11"], [])


@pytest.mark.slow
def test_cancelling_a_chain_cancels_what_is_held_behind_it(cluster: Cluster) -> None:
    cluster.stages(a="chain", b="a chain", c="b requeue")
    cluster.submit()
    cluster.queue("10", "11", "12", "13")
    assert cancel_run(cluster.folder / "a") == ["10", "11", "12"]


def test_a_held_stage_goes_on_with_a_word(cluster: Cluster) -> None:
    cluster.stages(a="requeue")
    (cluster.folder / "a").mkdir()
    cluster.end("a", "held")
    with pytest.raises(UserError, match="submit with --release"):
        cluster.submit()
    assert cluster.submit(release=True) == {"a": "10"}


def test_the_command_line_holds_for_every_stage_that_says_nothing_else(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.stages(a="requeue")
    submit_command(str(cluster.path), time="01:02:03", continuation="none", dry_run=True)
    printed = capsys.readouterr().out
    assert "#SBATCH --time=01:02:03" in printed and "#SBATCH --requeue" in printed
    with pytest.raises(UserError, match="is a pipeline: its stages give --array themselves"):
        submit_command(str(cluster.path), array=3)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"a": "b requeue", "b": "a requeue"}, "the stages a, b wait for each other"),
        ({"a": "z requeue"}, "stage a comes after z; stages: a"),
        (
            {"a": "chain", "b": "requeue", "c": "a b requeue"},
            "a stage can wait for one chain and nothing else",
        ),
        ({"a b": "requeue"}, "stage is 'a b'; allowed"),
        ({"a": "never"}, r"stages\.a\.site"),
    ],
)
def test_stages_that_cannot_be_are_refused(cluster: Cluster, stages: dict[str, str], message: str) -> None:
    cluster.stages(**stages)
    with pytest.raises(UserError, match=message):
        prepare_pipeline(cluster.path, site=cluster.site)


def test_a_stage_is_what_would_be_typed(cluster: Cluster) -> None:
    stage = "command: shard, target: 'x-{task}', arguments: [y], array: 3"
    cluster.path.write_text(f"stages:\n  first: {{{stage}, directory: {cluster.folder}/elsewhere}}\n")
    job = prepare_pipeline(cluster.path, site=cluster.site)["first"].job
    assert (job.name, job.command, job.array) == ("first", ["shard", "x-{task}", "y"], 3)
    assert job.directory == f"{cluster.folder}/elsewhere"
    cluster.path.write_text(f"stages:\n  first: {{{stage}}}\n")
    with pytest.raises(UserError, match=r"pipeline\.yaml: stage \w+: shard needs --directory"):
        prepare_pipeline(cluster.path, site=cluster.site)


def test_a_stages_config_is_looked_for_beside_the_pipeline_first(cluster: Cluster, tmp_path: Path) -> None:
    cluster.stages(a="requeue")
    text = cluster.path.read_text().replace(
        "command: evaluate, target: x", "command: pretrain, target: c.yaml"
    )
    cluster.path.write_text(text)
    config = "model: {name: coatnet_0}\ndata: {train: [{path: nowhere}]}\n"
    (tmp_path / "c.yaml").write_text(config)
    one = prepare_pipeline(cluster.path, site=cluster.site)["a"]
    assert one.config.model.name == "coatnet_0"
    assert one.job.name == "a" and one.job.directory == str(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("p.yaml", "# all\nstages:\n  a: {}\n", True),
        ("p.yml", "stages: {}\n", True),
        ("p.yaml", "model:\n  stages: 3\n", False),
        ("p.yaml", "# 4\udcb0\nmodel: {}\n", False),
        ("p.txt", "stages:\n", False),
    ],
)
def test_a_file_with_stages_is_a_pipeline(tmp_path: Path, name: str, text: str, expected: bool) -> None:
    (tmp_path / name).write_text(text, errors="surrogateescape")
    assert is_pipeline(tmp_path / name) is expected
    assert not is_pipeline(tmp_path / "nowhere.yaml")


@pytest.mark.slow
def test_the_pipeline_that_is_shipped_can_be_submitted_by_the_site_file_that_is() -> None:
    configs = Path(__file__).parents[3] / "configs" / "cluster"
    for site in (SiteConfig(), SiteConfig(continuation="chain"), load_site(configs / "site.yaml")):
        prepared = prepare_pipeline(configs / "pipeline.yaml", site=site)
        assert list(prepared)[-1] == "evaluate" and all(preview(one) for one in prepared.values())


def test_stages_that_would_share_a_run_directory_are_refused_and_defaults_are_told(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("model: {name: coatnet_0}\ndata: {train: [{path: x}]}\n")
    stage = "{command: pretrain, target: c.yaml}"
    cluster.path.write_text(f"stages:\n  first: {stage}\n")
    submit_command(str(cluster.path), gpus_per_node=1, dry_run=True)
    assert (
        "note: first: run.directory is not given; the config's own is runs/pretrain"
        in capsys.readouterr().err
    )
    cluster.path.write_text(f"stages:\n  first: {stage}\n  second: {stage}\n")
    with pytest.raises(UserError, match=r"stages first and second have one run directory, .*runs/pretrain"):
        prepare_pipeline(cluster.path, site=SiteConfig(gpus_per_node=1))


def test_no_stage_is_queued_if_the_batches_of_a_later_one_cannot_be_cut(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: {name: coatnet_0}\ndata: {train: [{path: x}]}\n")
    (tmp_path / "pipeline.yaml").write_text(
        f"stages:\n  shard: {{command: shard, target: x, directory: {tmp_path}/shard}}\n"
        f"  train: {{command: pretrain, target: c.yaml, directory: {tmp_path}/train, site: {{nodes: 3}}}}\n"
    )
    with pytest.raises(UserError, match="allowed with 24 ranks: multiples of 24"):
        prepare_pipeline(tmp_path / "pipeline.yaml", site=SiteConfig())
