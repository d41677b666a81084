"""What a fine-tuned model begins with: whose weights, which rows of the head, what learns and how fast."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.inspection import check_init, check_source
from coatnet.checkpoint.store import CheckpointStore
from coatnet.checkpoint.timm import timm_config, to_timm
from coatnet.checkpoint.weights import Weights, export_safetensors
from coatnet.config import UserError, to_dict
from coatnet.model.config import ModelConfig, NormConfig
from coatnet.model.network import CoAtNet, build_model
from coatnet.model.norm import GroupBatchNorm
from coatnet.runtime.ranks import Ranks
from coatnet.training.optimizer import parameter_groups
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.class_weights import loss_weights
from data_pipeline.config import DataConfig
from data_pipeline.open_corpus import open_corpus, open_train_corpora
from finetune.config import FinetuneConfig, HeadConfig
from finetune.handover.importing import foreign_weights
from finetune.launch import launch
from finetune.start import starting_model

FINETUNE = Path(__file__).parents[3] / "configs/finetune/small.yaml"
# ImageNet-21K names its classes by synset and often by word, 1K in another order and by synset alone.
CLASSES_21K = ["n00004475 organism", "n01440764 tench", "n01443537 goldfish", "n02084071 dog"]
CLASSES_1K = ["n01443537", "n01440764"]


@pytest.fixture(scope="module")
def pretrained(tiny: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four classes of the larger set, whose head has learned something."""
    config = replace(tiny, num_classes=4)
    model = build_model(config, seed=5)
    torch.nn.init.normal_(model.head.logits.weight)
    torch.nn.init.normal_(model.head.logits.bias)
    facts = {"step": 7, "samples_seen": 640, "config_digest": "aa"}
    weights = Weights(config, dict(model.state_dict()), CLASSES_21K, facts)
    return export_safetensors(weights, tmp_path_factory.mktemp("pretrained") / "model")


def norms(model: CoAtNet) -> list[GroupBatchNorm]:
    return [module for module in model.modules() if isinstance(module, GroupBatchNorm)]


def test_rows_of_the_head_follow_wordnet_ids_from_the_larger_set_to_the_smaller(pretrained: Path) -> None:
    from coatnet.checkpoint.weights import load_weights

    config = FinetuneConfig(init=str(pretrained), head=HeadConfig(keep_rows="matching"))
    model, origin = starting_model(config, classes=[*CLASSES_1K, "n09999999 new"])
    known = load_weights(pretrained).tensors
    assert torch.equal(model.head.logits.weight[:2], known["head.logits.weight"][[2, 1]])
    assert torch.equal(model.head.logits.bias[:2], known["head.logits.bias"][[2, 1]])
    assert not model.head.logits.weight[2].any()
    assert model.config.num_classes == 3 and origin["rows_kept"] == 2
    assert origin["said"].endswith(" under a new head that knows 2 classes already")
    assert torch.equal(model.head.dense.weight, known["head.dense.weight"])


def test_a_model_from_scratch_is_laid_out_for_its_images_and_classes_and_drawn_by_its_seed(
    tiny: ModelConfig,
) -> None:
    config = FinetuneConfig(
        model=replace(tiny, stochastic_depth=0.3), augment=AugmentConfig(96), norm=NormConfig(momentum=0.5)
    )
    model, origin = starting_model(config, classes=["a", "b"])
    assert (model.config.image_size, model.config.num_classes, model.config.stochastic_depth) == (96, 2, 0.3)
    assert {norm.momentum for norm in norms(model)} == {0.5} and origin == {"init": None, "said": ""}
    for seed, same in ((0, True), (1, False)):
        again, _ = starting_model(replace(config, seed=seed, stochastic_depth=0.1), classes=["a", "b"])
        assert torch.equal(again.stem.conv1.weight, model.stem.conv1.weight) is same
        assert again.config.stochastic_depth == 0.1


def test_a_checkpoint_keeps_its_grid_and_its_facts_and_takes_the_runs_depth_and_norm(
    pretrained: Path, tiny: ModelConfig
) -> None:
    config = FinetuneConfig(init=str(pretrained), stochastic_depth=0.2, norm=NormConfig(momentum=0.5))
    model, origin = starting_model(config, classes=["a"])
    assert (model.config.image_size, model.config.stochastic_depth) == (tiny.image_size, 0.2)
    assert {norm.momentum for norm in norms(model)} == {0.5}
    facts = {"step": 7, "samples_seen": 640, "config_digest": "aa", "rows_kept": 0}
    assert origin == {"init": str(pretrained), "said": f" from {pretrained} under a new head", **facts}
    with pytest.raises(UserError, match=r"depths"):
        starting_model(replace(config, model=replace(tiny, depths=[2, 1, 1, 1, 1])), classes=["a"])


def test_of_a_run_the_average_is_taken_or_the_raw_weights_where_these_are_asked_for(
    tiny: ModelConfig, tmp_path: Path
) -> None:
    state = build_model(tiny, seed=1).state_dict()
    pieces = [
        Fragment(kind, name, tuple(one.shape), 0, one.flatten() * share)
        for name, one in state.items()
        for kind, share in (("buffer", 1.0) if "running" in name else ("weight", 1.0), ("ema", 0.5))
    ]
    store = CheckpointStore(tmp_path / "checkpoints", ranks=Ranks())
    store.save(step=1, samples_seen=8, fragments=pieces, facts={"model": to_dict(tiny)}, wait=True)
    for which, share in (("auto", 0.5), ("raw", 1.0)):
        model, _ = starting_model(FinetuneConfig(init=str(tmp_path), weights=which), classes=["a"])
        assert torch.equal(model.stem.conv1.weight, state["stem.conv1.weight"] * share)


def test_a_new_head_is_zero_or_normal(pretrained: Path) -> None:
    def head(kind: str) -> torch.Tensor:
        config = FinetuneConfig(init=str(pretrained), head=HeadConfig(init=kind))
        return starting_model(config, classes=[str(number) for number in range(50)])[0].head.logits.weight

    assert not head("zero").any()
    assert float(head("normal").detach().std()) == pytest.approx(0.02, rel=0.1)


def test_rows_cannot_be_kept_where_no_class_is_known(pretrained: Path) -> None:
    config = FinetuneConfig(init=str(pretrained), head=HeadConfig(keep_rows="matching"))
    with pytest.raises(UserError, match="none of the 1 classes is among"):
        starting_model(config, classes=["n09999999"])


@pytest.mark.slow
def test_weights_in_timms_form_are_taken_as_they_are_by_the_models_name(tmp_path: Path) -> None:
    theirs = timm_config("coatnet_0_224", num_classes=7, image_size=224)
    state = build_model(theirs, seed=2).state_dict()
    form = {name: tensor.contiguous() for name, tensor in to_timm(state, theirs).items()}
    save_file(form, tmp_path / "timm.safetensors")
    config = FinetuneConfig(init=str(tmp_path / "timm.safetensors"), model=ModelConfig(name="coatnet_0"))
    model, _ = starting_model(config, classes=["a", "b"])
    assert model.config.num_classes == 2
    assert torch.equal(model.head.dense.weight, state["head.dense.weight"])
    with pytest.raises(UserError, match=r"config\.json"):
        starting_model(replace(config, model=None), classes=["a", "b"])


def test_rates_fall_from_the_head_to_the_stem_and_frozen_parts_are_in_no_group(tiny: ModelConfig) -> None:
    model = build_model(tiny, seed=0)
    model.freeze(["S1", "dense"])
    groups = parameter_groups(model, 0.1, layer_decay=0.5)
    scale = {id(parameter): group["scale"] for group in groups for parameter in group["params"]}
    blocks = len(list(model.blocks()))
    assert scale[id(model.head.logits.weight)] == 1.0
    assert scale[id(model.stem.get_parameter(next(iter(model.stem.state_dict()))))] == 0.5 ** (blocks + 1)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(scale) == sorted(map(id, learning))
    assert not {id(parameter) for parameter in model.head.dense.parameters()} & set(scale)
    assert [group["weight_decay"] for group in parameter_groups(model, 0.1)] == [0.1, 0.0]


def test_a_frozen_part_keeps_its_running_statistics(tiny: ModelConfig) -> None:
    model = build_model(tiny, seed=0)
    model.freeze(["S0", "S1"])
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    model.train()(torch.randn(2, 3, 64, 64))
    changed = {name for name, old in before.items() if not model.get_buffer(name).equal(old)}
    assert changed == {name for name in before if not name.startswith(("stem", "stages.S1"))}


def test_stochastic_depth_drops_nothing_of_a_frozen_part(tiny: ModelConfig) -> None:
    config = replace(tiny, stochastic_depth=0.9)
    images, keys = torch.randn(8, 3, 64, 64), torch.arange(8)
    seen: list[torch.Tensor] = []
    for frozen in (["S0", "S1", "S2", "S3"], ["S0", "S1"]):
        model = build_model(config, seed=0)
        model.watch = lambda stage, x: seen.append(x) if stage == "S3" else None
        model.freeze(frozen)
        model.train()(images, sample_keys=keys)
        model.eval()(images)
    assert torch.equal(seen[0], seen[1]), "nothing of what is frozen differs from what it is in use"
    assert not torch.equal(seen[2], seen[3])


def test_a_run_without_training_data_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.train is empty"):
        open_train_corpora(DataConfig())


def test_balanced_weights_make_every_class_count_alike(photos: Path) -> None:
    weights = loss_weights([open_corpus(photos)], "balanced", ranks=Ranks.single())  # 8, 8 and 7 images
    assert weights == pytest.approx([23 / 24, 23 / 24, 23 / 21])


def test_weights_alone_of_another_network_or_of_no_named_model_are_refused_before_torch_is_loaded(
    tmp_path: Path,
) -> None:
    alone, other = tmp_path / "alone.safetensors", tmp_path / "other.safetensors"
    save_file({"head.fc.weight": torch.zeros(2, 3)}, alone)
    save_file({"fc.weight": torch.zeros(2, 3)}, other)
    named = ModelConfig(name="coatnet_0")
    assert check_init(str(alone), model=named) is None
    with pytest.raises(UserError, match=r"alone\.safetensors: no config\.json beside it .* `model={name: "):
        check_init(str(alone))
    with pytest.raises(UserError, match=r"other\.safetensors: holds neither head\.fc\.weight \(timm\) nor "):
        check_init(str(other), model=named)


SMALL = ModelConfig(depths=[1, 1, 1, 1, 1], widths=[8, 8, 16, 32, 32], image_size=96, num_classes=2)


@pytest.mark.parametrize("form", ["timm", "ours"])
def test_tables_of_another_side_than_was_said_are_refused_with_that_side(tmp_path: Path, form: str) -> None:
    state, alone = build_model(SMALL).state_dict(), tmp_path / "alone.safetensors"
    save_file(to_timm(state, SMALL) if form == "timm" else state, alone)
    remedy = rf"{alone} has tables of relative biases for 96 px; give 96: images may be of any multiple of 32"
    with pytest.raises(UserError, match=f"^model.image_size is 224, but {remedy}"):
        check_init(str(alone), model=ModelConfig(name="coatnet_0"))
    assert check_init(str(alone), model=ModelConfig(name="coatnet_0", image_size=96)) is None
    with pytest.raises(UserError, match=f"^--px is 64, but {remedy}"):
        check_source(alone, name="coatnet_0", px=64, classes=None, trust_pickle=False)
    torch.save(load_file(alone), tmp_path / "pickled.pth")
    with pytest.raises(UserError, match=r"^--px is 64, but .*pickled\.pth has tables .* for 96 px; give 96"):
        foreign_weights(tmp_path / "pickled.pth", name="coatnet_0", px=64, trust_pickle=True)


def test_rows_of_weights_without_class_names_are_refused_before_torch_is_loaded(
    tmp_path: Path, photos: Path
) -> None:
    (tmp_path / "bare").mkdir()
    bare = tmp_path / "bare" / "model.safetensors"
    save_file({"head.fc.weight": torch.zeros(2, 3)}, bare)
    described = export_safetensors(Weights(SMALL, build_model(SMALL).state_dict()), tmp_path / "described")
    for init, model in ((bare, ["model={name: coatnet_0}"]), (described, [])):
        for data in (photos, "https://host/shards"):
            words = [f"init={init}", *model, f"data.train={data}", f"run.directory={tmp_path / 'run'}"]
            words += [f"data.evaluate={photos}", "head.keep_rows=matching", "launch.ranks=1"]
            with pytest.raises(UserError, match=r"^head\.keep_rows is 'matching', but the checkpoint has no"):
                launch(str(FINETUNE), words)
