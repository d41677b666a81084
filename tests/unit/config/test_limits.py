"""Values that no run can mean are refused by the config, in a line that names the key and what is allowed."""

from __future__ import annotations

import pytest

from cluster.site import SiteConfig
from coatnet.config import ConfigError, load_config
from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig

_TRAIN = "data.train=[{path: shards}]"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed is -1; allowed: 0 or more"),
        ("seed=99999999999999999999", "seed is 99999999999999999999; allowed: whole numbers below"),
        ("guard.spike_window=99999999999999999999", "guard.spike_window is 9+; allowed: whole numbers below"),
        ("run.directory=' '", "run.directory is ' '; allowed: a folder"),
        ("data.train=[{path: ''}]", r"data.train\[0\].path is ''; allowed: a folder or a URL"),
        ("data.evaluate=''", "data.evaluate is ''; allowed: a folder or a URL, or null"),
        ("evaluate.transfer=''", "evaluate.transfer is ''; allowed: a folder or a URL, or null"),
        ("data.cache.directory=''", "data.cache.directory is ''; allowed: a folder, or null"),
        ("data.lanes=99999999999999", "data.lanes is 99999999999999; allowed: 1 to 1000000"),
        ("data.threads=1000000", "data.threads is 1000000; allowed: 1 to 1024"),
        ("data.prefetch=1000000", "data.prefetch is 1000000; allowed: 1 to 1024"),
        ("norm.momentum=0", "norm.momentum is 0.0; allowed: above 0, up to 1"),
        ("norm.momentum=1.5", "norm.momentum is 1.5; allowed: above 0, up to 1"),
        ("schedule.minimum=-1", "schedule.minimum is -1.0; allowed: 0 to 1"),
        ("schedule.warmup=never", "schedule.warmup: 'never' is not a duration; write for example"),
        ("train.duration='0 epochs'", "train.duration is '0 epochs'; allowed: above 0"),
        ("evaluate.every='0 steps'", "evaluate.every is '0 steps'; allowed: above 0"),
        ("save.every='0 seconds'", "save.every is '0 seconds'; allowed: above 0"),
        ("save.every='3 fortnights'", "save.every: '3 fortnights' is not a duration; write for example"),
        ("guard.hang_seconds=1e30", r"guard.hang_seconds is 1e\+30; allowed: above 0, up to 31536000"),
        ("profile.steps=110..100", "profile.steps is '110..100'; the last step comes before the first"),
        ("augment.image_size=3200000", "augment.image_size is 3200000; allowed: multiples of 32 up to 16384"),
        ("data.cache.limit=much", "data.cache.limit: 'much' is not a size; write for example"),
        (
            'run.directory="a\\0b"',
            r"run.directory is 'a\\x00b'; allowed: a folder, without control characters",
        ),
        ("zero.bucket_elements=7", "zero.bucket_elements is 7; allowed: even numbers from 2 on"),
        ("zero.stage=4", "zero.stage is 4; allowed: 0, 1, 2, 3"),
        (
            "optimizer.learning_rate=1e9",
            r"optimizer.learning_rate is 1000000000.0; allowed: above 0, up to 1",
        ),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate is -1.0; allowed: above 0, up to 1"),
        ("optimizer.weight_decay=1e4", "optimizer.weight_decay is 10000.0; allowed: 0 to 1 / learning_rate"),
        ("optimizer.eps=1e-300", "optimizer.eps is 1e-300; allowed: 1e-30 to 1"),
        ("optimizer.clip=1e-300", r"optimizer.clip is 1e-300; allowed: 0 \(off\), or from 1e-06 on"),
        ("schedule.minimum=2", "schedule.minimum is 2.0; allowed: 0 to 1"),
        ("model.batch_norm_eps=1e30", r"model.batch_norm_eps is 1e\+30; allowed: 1e-12 to 1"),
        ("model.layer_norm_eps=1e-300", "model.layer_norm_eps is 1e-300; allowed: 1e-12 to 1"),
        (
            "augment.mean=[0,0,124]",
            r"augment.mean is \[0.0, 0.0, 124.0\]; allowed: three numbers from 0 to 1",
        ),
        (
            "augment.std=[0,1,1]",
            r"augment.std is \[0.0, 1.0, 1.0\]; allowed: three numbers from 0.001 to 100",
        ),
        ("augment.randaugment_n=1000000", "augment.randaugment_n is 1000000; allowed: 0 to 16"),
        ("data.cache.limit=0", "data.cache.limit is '0'; allowed: above 0"),
        (f"data.cache.limit={'9' * 400}", "data.cache.limit: '9+' is not a size"),
        ("data.cache.stall_seconds=1e-9", "data.cache.stall_seconds is 1e-09; allowed: 0.1 to 600"),
        ("data.cache.attempts=1000000", "data.cache.attempts is 1000000; allowed: 1 to 1000"),
        ("evaluate.batch=1000000000000", "evaluate.batch is 1000000000000; allowed: 1 to 65536"),
        ("train.global_batch=1000000000000", "train.global_batch is 1000000000000; allowed: 1 to 16777216"),
        (f"train.duration={'9' * 400} epochs", "train.duration: '9+ epochs' is too long; allowed: up to 1e"),
        ("profile.steps=1..1000000", "profile.steps is '1..1000000'; allowed: up to 1000 steps"),
        ("model.depths=[[1]]", r"model.depths"),
        ("optimizer.betas=[{}]", r"optimizer.betas\[0\] is {}; allowed: a number"),
        ("train.activation_checkpointing=[S5]", "activation_checkpointing is 'S5'; allowed: S1, S2, S3, S4"),
        (
            "train.activation_checkpointing=[[S1]]",
            r"train.activation_checkpointing\[0\] is \['S1'\]; allowed: text",
        ),
    ],
)
def test_what_no_pretraining_can_mean_is_refused_by_its_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(PretrainConfig, overrides=[_TRAIN, override])


def test_a_model_of_one_stage_checkpoints_no_other() -> None:
    words = [_TRAIN, "model.name=vit_rel", "train.activation_checkpointing=[S3,S1]"]
    with pytest.raises(ConfigError, match=r"train.activation_checkpointing is 'S1'; allowed: S3$"):
        load_config(PretrainConfig, overrides=words)


@pytest.mark.parametrize("words", [["zero.stage=0"], ["zero.stage=1", "precision=bf16"]])
def test_gradients_cannot_go_beside_the_backward_pass_where_deepspeed_sends_them_later(
    words: list[str],
) -> None:
    beside = [_TRAIN, "zero.overlap_communication=true"]
    assert load_config(PretrainConfig, overrides=beside).zero.overlap_communication
    with pytest.raises(
        ConfigError, match=r"overlap_communication is true; allowed at zero.stage . with .*: false"
    ):
        load_config(PretrainConfig, overrides=[*beside, *words])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeds=[0,-1]", r"seeds is \[0, -1\]; allowed: 0 or more, each once"),
        ("seeds=[1,1]", r"seeds is \[1, 1\]; allowed: 0 or more, each once"),
        ("seeds=[[1]]", r"seeds\[0\] is \[1\]; allowed: a whole number"),
        ("optimizer.layer_decay=0", "optimizer.layer_decay is 0.0; allowed: above 0, up to 1"),
        ("norm.group_images=7", "train.micro_batch is 32; allowed: multiples of norm.group_images, 7"),
    ],
)
def test_what_no_fine_tuning_can_mean_is_refused_by_its_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(FinetuneConfig, overrides=["init=x", _TRAIN, override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modules=[{}]", r"modules\[0\] is {}; allowed: text"),
        ("container.mounts=[[a]]", r"container.mounts\[0\] is \['a'\]; allowed: text"),
    ],
)
def test_a_list_in_a_list_of_a_site_is_refused_by_its_place(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(SiteConfig, overrides=[override])


@pytest.mark.parametrize("name", ["timeout_seconds", "open_files", "free_space_bytes", "clock_skew_seconds"])
def test_a_sites_checks_ask_for_nothing_below_zero(name: str) -> None:
    with pytest.raises(ConfigError, match=f"preflight.{name} is -1"):
        load_config(SiteConfig, overrides=[f"preflight.{name}=-1"])
