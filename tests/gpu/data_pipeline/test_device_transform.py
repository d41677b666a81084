"""The device transforms give on a GPU what they give on the CPU, and nothing of them waits for it."""

from __future__ import annotations

import pytest
import torch

from data_pipeline.augment_config import AugmentConfig
from data_pipeline.batch import Batch
from data_pipeline.device import TrainTransform, augmented

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


EVERYTHING = AugmentConfig(randaugment_n=2, randaugment_m=15.0, mixup=0.8, cutmix=1.0, erasing=0.25)


def test_a_gpu_makes_the_cpus_batch() -> None:
    count, generator = 256, torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 96, 96, 3), dtype=torch.uint8, generator=generator)
    labels, keys = torch.arange(count) % 10, torch.arange(count) * 104729
    sizes = {"num_classes": 10, "group_images": 32}
    pixels, targets = augmented(images, labels, keys, EVERYTHING, **sizes)
    on_gpu, targets_on_gpu = augmented(images.cuda(), labels.cuda(), keys, EVERYTHING, **sizes)
    torch.testing.assert_close(on_gpu.cpu(), pixels, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(targets_on_gpu.cpu(), targets, atol=1e-6, rtol=1e-6)
    assert on_gpu.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_is_made_while_the_gpu_has_something_else_to_do() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    transform = TrainTransform(EVERYTHING, device=device, num_classes=10, group_images=8)
    batch = Batch.blank(image_size=96, samples=64)
    transform(batch, slice(0, 64))  # what stays the same is made once, and waited for
    torch.cuda.set_sync_debug_mode("error")
    try:
        transform(batch, slice(0, 64))
    finally:
        torch.cuda.set_sync_debug_mode("default")
