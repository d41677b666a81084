"""Whether batches can be cut for so many ranks: the plan, the submission and the run say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.planning.request import plan_of, scaling_plans
from cluster.site import SiteConfig
from cluster.submission import Request, prepare
from coatnet.config import UserError, load_config, to_yaml
from coatnet.runtime.run_directory import RunDirectory
from pretrain.batches import group_images
from pretrain.config import PretrainConfig

_CONFIG = """\
model: {name: coatnet_0}
data: {train: [{path: nowhere}]}
train: {global_batch: 4096, micro_batch: 64}
norm: {group_images: 32}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(_CONFIG)
    return path


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.global_batch=4100", "train.global_batch is 4100; allowed with 32 ranks: multiples of 32"),
        ("train.micro_batch=96", "train.micro_batch is 96; allowed with 32 ranks: divisors of 128"),
        ("train.micro_batch=256", "train.micro_batch is 256; allowed with 32 ranks: divisors of 128"),
        ("norm.group_images=48", "norm.group_images is 48; allowed: divisors of the micro-batch, 64"),
        ("train.batch_changes=[{at: 5 steps, global_batch: 5120}]", "share of train.global_batch=5120"),
        ("norm.group_images=1", "norm.group_images is 1; allowed with augment.mixup or augment.cutmix"),
    ],
)
def test_what_the_ranks_would_refuse_the_plan_and_the_submission_refuse_in_the_same_words(
    config: Path, word: str, message: str
) -> None:
    words = [word, "augment.mixup=0.8"]
    with pytest.raises(UserError, match=message) as by_the_run:
        group_images(load_config(PretrainConfig, config, overrides=words), world_size=32)
    with pytest.raises(UserError) as by_the_plan:
        plan_of("pretrain", config, [*words, "nodes=4", "gpus_per_node=8"])
    site, directory = SiteConfig(nodes=4, gpus_per_node=8), config.with_name("run")
    with pytest.raises(UserError) as by_the_submission:
        prepare(Request("pretrain", str(config), tuple(words), site, directory=directory)).check()
    assert str(by_the_run.value) == str(by_the_plan.value) == str(by_the_submission.value)


def test_a_run_that_goes_on_keeps_its_groups_at_whatever_number_of_nodes(config: Path) -> None:
    run = RunDirectory(config.with_name("run"))
    words = ("train.micro_batch=null", "norm.group_images=null")
    known = load_config(PretrainConfig, config, overrides=words)
    run.create(to_yaml(known), digest=known.run_digest())
    (run.checkpoints / "step-00000004").mkdir()
    run.group_images.write_text("64\n")
    for nodes in (4, 8):
        site = SiteConfig(nodes=nodes, gpus_per_node=8)
        prepare(Request("pretrain", str(config), words, site, directory=run.path)).check()
    many = SiteConfig(nodes=16, gpus_per_node=8)
    prepared = prepare(Request("pretrain", str(config), words, many, directory=run.path))
    with pytest.raises(UserError, match=r"is 64 since the first start; .* with 128 ranks theirs is 32"):
        prepared.check()


def test_fine_tuning_takes_the_rest_of_a_share_as_a_smaller_micro_batch(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {name: coatnet_0}\nhead: {keep_rows: none}\ndata: {train: [{path: nowhere}]}\n"
        "train: {global_batch: 384, micro_batch: 32}\n"
    )
    words = ["gpus_per_node=8", "nodes=1"]
    plan, _ = plan_of("finetune", config, words)
    assert (plan.layout.micro_batch, plan.accumulation) == (32, 2)
    small, _ = plan_of("finetune", config, [*words, "train.micro_batch=64"])
    assert (small.layout.micro_batch, small.accumulation) == (48, 1)
    site = SiteConfig(nodes=1, gpus_per_node=8)
    prepare(Request("finetune", str(config), (), site, directory=tmp_path / "run")).check()


def test_the_curve_over_gpus_goes_on_where_a_share_is_smaller_than_the_micro_batch_and_says_so(
    config: Path,
) -> None:
    plans, unlike = scaling_plans("pretrain", config, [])
    assert unlike == "from 128 GPUs on a run must be given train.micro_batch=32 or less"
    layouts = [(plan.world_size, plan.layout) for plan in plans]
    assert {gpus: layout.micro_batch for gpus, layout in layouts if gpus >= 32} == {
        32: 64, 64: 64, 128: 32, 256: 16, 512: 8, 1024: 4,
    }  # fmt: skip
    assert {layout.groups for gpus, layout in layouts if gpus > 64} == {1}
    assert scaling_plans("pretrain", config, ["train.micro_batch=null", "norm.group_images=null"])[1] == ""


def test_the_curve_leaves_out_what_cannot_be_cut_and_tells_the_first_refusal_where_nothing_can(
    config: Path,
) -> None:
    plans, _ = scaling_plans("pretrain", config, ["train.micro_batch=96"])
    assert [plan.world_size for plan in plans] == [64, 128, 256, 512, 1024]
    words = ["train.global_batch=1", "train.micro_batch=1", "norm.group_images=1", "augment.mixup=0.8"]
    with pytest.raises(UserError, match=r"norm\.group_images is 1; allowed with augment\.mixup"):
        scaling_plans("pretrain", config, words)
