"""The layouts that the paper compares, at matched size and for the experiment in miniature. Imports no torch.

Source: paper, Section 3.1 and Figure 1. The paper prints no widths; these depths and widths have one size.
"""

from __future__ import annotations

from coatnet.model.config import ModelConfig

# CoAtNet-2's widths; aim: its 74.69 M parameters and 15.50 G multiply-adds at 224 px.
_MATCHED = {
    "ViT-REL": {"name": "vit_rel"},
    "C-C-C-C": {"name": "coatnet_2", "layout": "C-C-C-C", "depths": [2, 2, 12, 17, 2]},
    "C-C-C-T": {"name": "coatnet_2", "layout": "C-C-C-T", "depths": [2, 2, 13, 15, 2]},
    "C-C-T-T": {"name": "coatnet_2", "layout": "C-C-T-T", "depths": [2, 2, 6, 14, 2]},
    "C-T-T-T": {"name": "coatnet_2", "layout": "C-T-T-T", "depths": [2, 2, 2, 15, 2]},
}
LAYOUTS = tuple(_MATCHED)


def layout_config(layout: str) -> ModelConfig:
    """Return the network of one of `LAYOUTS`, at CoAtNet-2's size."""
    return ModelConfig(**_MATCHED[layout])  # type: ignore[arg-type]
