"""What stays the same is made once: a copy of numbers to a GPU waits for all that it has to do."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model
from coatnet.training.losses import make_loss
from coatnet.training.metrics import MultiLabelMetrics, SingleLabelMetrics
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.batch import Batch
from data_pipeline.device import TrainTransform

TINY = ModelConfig(
    num_classes=3, image_size=32, depths=[1] * 5, widths=[8, 16, 16, 32, 32], stochastic_depth=0.1
)


class FromLists(TorchDispatchMode):
    """Counts the tensors that are made of Python's numbers."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten.lift_fresh.default
        return function(*args, **kwargs or {})


def test_a_step_and_an_evaluation_make_no_tensor_of_numbers_that_they_had_before() -> None:
    model = build_model(TINY, seed=0).train()
    transform = TrainTransform(
        AugmentConfig(image_size=32), device=torch.device("cpu"), num_classes=3, group_images=4
    )
    loss = make_loss("softmax", 0.1, class_weights=[1.0, 2.0, 3.0])
    batch, presences = Batch.blank(image_size=32, samples=4), torch.zeros(4, 3)

    def work() -> None:
        pixels, targets, keys, _ = transform(batch, slice(0, 4))
        logits = model(pixels, sample_keys=keys)
        loss(logits, targets).backward()
        SingleLabelMetrics(3).update(logits, targets, losses=logits[:, 0])
        MultiLabelMetrics(3).update(logits, presences, losses=logits[:, 0])

    made = []
    for _ in range(2):
        with FromLists() as seen:
            work()
        made.append(seen.count)
    assert made[0] > 0 == made[1]
