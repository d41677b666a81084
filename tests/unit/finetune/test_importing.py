"""Weights of others become a model of ours: what is taken, what beside them is believed, what refused."""

from __future__ import annotations

import argparse
import json
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from coatnet.checkpoint.inspection import check_source, is_bare
from coatnet.checkpoint.timm import timm_config, to_timm
from coatnet.config import UserError
from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model
from data_pipeline.augment_config import AugmentConfig
from finetune.classifier import open_classifier
from finetune.handover.certificate import TOLERANCE
from finetune.handover.importing import foreign_weights, import_model
from finetune.handover.timm_form import describe_to_timm


@pytest.mark.slow
def test_weights_of_timms_own_model_are_imported_with_equal_logits(timm: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    peer = timm.create_model("coatnet_0_224", num_classes=7).eval()
    save_file(peer.state_dict(), tmp_path / "peer.safetensors")
    source, names = tmp_path / "peer.safetensors", tmp_path / "classes.txt"
    names.write_text("a\nb\nc\nd\ne\nf\ng\n")
    import_model(source, tmp_path / "own", name="coatnet_0", px=224, classes=names)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        assert (peer(images) - open_classifier(str(tmp_path / "own")).model(images)).abs().max() <= TOLERANCE
    imported = open_classifier(str(tmp_path / "own"))
    assert imported.classes == [*"abcdefg"] and imported.augment.image_size == 224
    names.write_text("a\nb\n")
    with pytest.raises(UserError, match="2 class names for 7 outputs"):
        import_model(source, tmp_path / "other", name="coatnet_0", px=224, classes=names)


@pytest.mark.slow
def test_an_export_for_timm_of_a_network_that_timm_has_no_name_for_is_not_taken_for_timms_own(
    tmp_path: Path,
) -> None:
    ours = ModelConfig(name="coatnet_0", num_classes=2, image_size=32, stem_bias=False)
    theirs = timm_config("coatnet_0_224", num_classes=2, image_size=32)
    for name, config in (("ours", ours), ("theirs", theirs)):
        (tmp_path / name).mkdir()
        tensors = to_timm(build_model(config, seed=0).state_dict(), config)
        save_file(tensors, tmp_path / name / "model.safetensors")
        described = describe_to_timm(config, AugmentConfig(image_size=32), classes=["ebony", "ivory"])
        (tmp_path / name / "config.json").write_text(json.dumps(described))
    assert foreign_weights(tmp_path / "theirs" / "model.safetensors", name="coatnet_0", px=32).model == theirs
    with pytest.raises(UserError, match=r"config\.json beside it describes another network"):
        foreign_weights(tmp_path / "ours" / "model.safetensors", name="coatnet_0", px=32)


@pytest.mark.slow
def test_class_names_and_preprocessing_are_imported_from_what_timm_keeps_beside_weights(
    tmp_path: Path,
) -> None:
    config = timm_config("coatnet_0_224", num_classes=2, image_size=32)
    wanted = AugmentConfig(image_size=32, mean=[0.5, 0.4, 0.3], interpolation="bilinear", evaluate_crop=0.95)
    source, beside = tmp_path / "model.safetensors", tmp_path / "config.json"
    save_file(to_timm(build_model(config, seed=0).state_dict(), config), source)
    beside.write_text(json.dumps(describe_to_timm(config, wanted, classes=["ebony", "ivory"])))
    import_model(source, tmp_path / "own", name="coatnet_0", px=32)
    assert is_bare(source), "a fine-tuning may begin with it, too"
    with pytest.raises(
        UserError, match=r"not describe a model of this project; `coatnet import` takes timm's"
    ):
        open_classifier(str(tmp_path))
    found = open_classifier(str(tmp_path / "own"))
    assert (found.classes, found.augment) == (["ebony", "ivory"], wanted)
    beside.write_text(json.dumps({"architecture": "coatnet_0_224", "label_names": ["ebony"]}))
    with pytest.raises(UserError, match=r"config\.json: 1 class names for 2 outputs"):
        import_model(source, tmp_path / "other", name="coatnet_0", px=32)


@pytest.mark.slow
def test_weights_are_found_beside_what_a_trainer_keeps_and_under_what_it_wraps_them_in(
    tmp_path: Path,
) -> None:
    own = build_model(ModelConfig(name="coatnet_0", num_classes=2, image_size=32), seed=1).state_dict()
    raw = {name: torch.zeros_like(tensor) for name, tensor in own.items()}
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in own.items()}
    averaged = {"state_dict": raw, "state_dict_ema": wrapped, "epoch": 3, "args": argparse.Namespace(lr=1.0)}
    torch.save(averaged, tmp_path / "last.pth.tar")
    torch.save({"model": wrapped, "optimizer": {"state": {}}}, tmp_path / "model.pth")
    save_file(wrapped, tmp_path / "wrapped.safetensors")
    for name in ("last.pth.tar", "model.pth", "wrapped.safetensors"):
        check_source(tmp_path / name, name="coatnet_0", px=32, classes=None, trust_pickle=True)
        found = foreign_weights(tmp_path / name, name="coatnet_0", px=32, trust_pickle=True).tensors
        assert found.keys() == own.keys() and all(torch.equal(found[each], own[each]) for each in own)
    with pytest.raises(UserError, match=r"last\.pth\.tar: a pickle can run any program"):
        check_source(tmp_path / "last.pth.tar", name="coatnet_0", px=32, classes=None, trust_pickle=False)


@pytest.mark.parametrize(
    "held", [{0: torch.zeros(2)}, {"state_dict": {"head.fc.weight": 3}}, [torch.zeros(2)]]
)
def test_a_pickle_that_holds_no_names_of_tensors_is_refused(tmp_path: Path, held: Any) -> None:
    torch.save(held, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        foreign_weights(tmp_path / "odd.pth", name="coatnet_0", px=32, trust_pickle=True)


def test_what_is_given_without_a_description_is_looked_at_before_it_is_taken(tmp_path: Path) -> None:
    head, other = {"head.logits.weight": torch.zeros(2, 768)}, {"fc.weight": torch.zeros(2, 3)}
    torch.save(head, tmp_path / "head.pth")
    torch.save(other, tmp_path / "other.pth")
    take = partial(foreign_weights, name="coatnet_0", px=32)
    with pytest.raises(UserError, match="a pickle can run any program"):
        take(tmp_path / "head.pth")
    with pytest.raises(UserError, match=r"other\.pth: holds neither head\.fc\.weight \(timm\) nor"):
        take(tmp_path / "other.pth", trust_pickle=True)
    with pytest.raises(UserError, match=r"head\.pth: the checkpoint has no tensor head\.dense"):
        take(tmp_path / "head.pth", trust_pickle=True)


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04" + bytes(99)])
def test_a_damaged_pickle_is_refused_without_the_advice_to_read_it_unprotected(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "odd.pth").write_bytes(content)
    with tarfile.open(tmp_path / "tar.pth", "w") as tar:
        tar.add(tmp_path / "odd.pth", "storages")
    for name in ("odd.pth", "tar.pth"):
        with pytest.raises(
            UserError, match=r"damaged, or not a file of tensors alone; nothing else is read$"
        ):
            foreign_weights(tmp_path / name, name="coatnet_0", px=32, trust_pickle=True)
