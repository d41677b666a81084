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
        ("schedule.minimum=-1", "schedule.minimum is -1.0; allowed: 0 or more"),
        ("schedule.warmup=never", "schedule.warmup: 'never' is no duration; write for example"),
        ("train.duration='0 epochs'", "train.duration is '0 epochs'; allowed: above 0"),
        ("evaluate.every='0 steps'", "evaluate.every is '0 steps'; allowed: above 0"),
        ("save.every='0 seconds'", "save.every is '0 seconds'; allowed: above 0"),
        ("save.every='3 fortnights'", "save.every: '3 fortnights' is no duration; write for example"),
        ("guard.hang_seconds=1e30", r"guard.hang_seconds is 1e\+30; allowed: above 0, up to 31536000"),
        ("profile.steps=110..100", "profile.steps is '110..100'; the last step comes before the first"),
        ("augment.image_size=3200000", "augment.image_size is 3200000; allowed: multiples of 32 up to 16384"),
        ("data.cache.limit=much", "data.cache.limit: 'much' is no size; write for example"),
        ("zero.stage=4", "zero.stage is 4; allowed: 0, 1, 2, 3"),
    ],
)
def test_what_no_pretraining_can_mean_is_refused_by_its_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(PretrainConfig, overrides=[_TRAIN, override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeds=[0,-1]", "seed is -1; allowed: 0 or more"),
        ("optimizer.layer_decay=0", "optimizer.layer_decay is 0.0; allowed: above 0, up to 1"),
        ("norm.group_images=7", "train.micro_batch is 32; allowed: multiples of norm.group_images, 7"),
    ],
)
def test_what_no_fine_tuning_can_mean_is_refused_by_its_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(FinetuneConfig, overrides=["init=x", _TRAIN, override])


@pytest.mark.parametrize("name", ["timeout_seconds", "open_files", "free_space_bytes", "clock_skew_seconds"])
def test_a_sites_checks_ask_for_nothing_below_zero(name: str) -> None:
    with pytest.raises(ConfigError, match=f"preflight.{name} is -1"):
        load_config(SiteConfig, overrides=[f"preflight.{name}=-1"])
