"""Model FLOPs utilisation, where the device's peak is known. Knows no run."""

from __future__ import annotations

import re
from collections.abc import Collection

import torch

from coatnet.model.config import ModelConfig
from coatnet.model.operations import learning_operations

# TFLOP/s in bf16, TF32 and fp32 by NVIDIA's datasheets, without sparsity; the first whose words all stand in
# the driver's name. Sources: the data sheets "NVIDIA A100 80GB", "H100" (SXM, NVL), "H200", "GH200", "L40S",
# "HGX B200" and "GB200 NVL72"; H100 PCIe: the H100 architecture's white paper, table 2.
_PEAKS = (
    ("GB200", (2500, 1250, 80)),
    ("B200", (2250, 1125, 75)),
    ("GH200", (989, 494, 67)),
    ("H200 NVL", (835, 417, 60)),
    ("H200", (989, 494, 67)),
    ("H100 NVL", (835, 417, 60)),
    ("H100 PCIe", (756, 378, 51)),
    ("H100", (989, 494, 67)),
    ("A100", (312, 156, 19.5)),
    ("L40S", (362, 183, 91.6)),
)
_TERA = 1e12
_PART_OF_A_CARD = "MIG"
_FLOPS_PER_MAC = 2


def flops_per_image(model: ModelConfig, image_size: int, *, frozen: Collection[str] = ()) -> float:
    """Return the floating-point operations of training on one image, recomputation not counted.

    Args:
        model, image_size: what is trained, on images of which side.
        frozen: parts that do not learn; before the first weight that does there is no way back.
    """
    macs = 0
    for operation, learns, has_way_back in learning_operations(model, image_size, frozen=frozen):
        # Forward, back to the inputs, and back to the weights or to the other factor where there are none.
        passes = 1 + has_way_back * (1 + (learns or not operation.parameters))
        macs += passes * operation.macs
    return _FLOPS_PER_MAC * macs


def peak_flops(precision: str) -> float | None:
    """Return this rank's peak, or None for a device that is not in the table.

    Args:
        precision: of a run; "fp32" is TF32 where torch takes that for products, the others are bf16.
    """
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    peaks = next(
        (peaks for words, peaks in _PEAKS if set(words.split()) <= set(re.split(r"[ -]", name))), None
    )
    if peaks is None or _PART_OF_A_CARD in name:
        return None
    bf16, tf32, fp32 = peaks
    if precision != "fp32":
        return bf16 * _TERA
    return (fp32 if torch.get_float32_matmul_precision() == "highest" else tf32) * _TERA
