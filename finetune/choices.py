"""What a user chooses by name, for the command line, the config and what does the work. Imports nothing."""

from __future__ import annotations

# Of a run's weights, as `load_weights(ema=…)` takes it: the average where there is one, or one of the two.
WEIGHTS: dict[str, bool | None] = {"auto": None, "ema": True, "raw": False}
PRECISIONS = ("fp32", "bf16")
# The forms of an export, and what opens each.
FORMS = {
    "safetensors": "`coatnet evaluate`, `coatnet predict`; any reader of safetensors",
    "timm": '`timm.create_model("local-dir:timm", pretrained=True)`',
    "onnx": "onnxruntime",
    "torch_export": "`torch.export.load`",
}
# What a form is made or proved by beside what coatnet needs, and what brings it.
PACKAGES = {
    "timm": (("timm", "torchvision"), "pip install timm"),
    "onnx": (("onnx", "onnxruntime", "onnxscript"), "pip install 'coatnet[onnx]'"),
}
