"""The device transforms give on a GPU what they give on the CPU."""

from __future__ import annotations

import pytest
import torch

from data_pipeline.augment_config import AugmentConfig
from data_pipeline.device import augmented

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_gpu_makes_the_cpus_batch() -> None:
    count, generator = 256, torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 96, 96, 3), dtype=torch.uint8, generator=generator)
    labels, keys = torch.arange(count) % 10, torch.arange(count) * 104729
    config = AugmentConfig(randaugment_n=2, randaugment_m=15.0, mixup=0.8, cutmix=1.0, erasing=0.25)
    sizes = {"num_classes": 10, "group_images": 32}
    pixels, targets = augmented(images, labels, keys, config, **sizes)
    on_gpu, targets_on_gpu = augmented(images.cuda(), labels.cuda(), keys, config, **sizes)
    torch.testing.assert_close(on_gpu.cpu(), pixels, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(targets_on_gpu.cpu(), targets, atol=1e-6, rtol=1e-6)
    assert on_gpu.is_contiguous(memory_format=torch.channels_last)
