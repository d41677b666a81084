"""`coatnet inspect model` and `coatnet inspect layouts`. Imports no torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from coatnet.model.config import ModelConfig
    from coatnet.model.cost import Cost, ModelCost

_MIB = 1 << 20
_LEAST_WIDTH = 80
_LONG = "blocks and widths"
_TEXTS = ("stage", _LONG, "operation", "layout", "depths")
_PX = typer.Option("--px", help="Side of the input in pixels, a multiple of 32.")
_JSON = typer.Option("--json", help="Print JSON.")


def inspect_model(
    name: Annotated[
        str, typer.Argument(help="coatnet_0 … coatnet_7, coatnet_6_table12, vit_rel; with _dconv.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes: depths=[2,2,2,18,2].")] = None,
    px: Annotated[int, _PX] = 224,
    blocks: Annotated[bool, typer.Option("--blocks", help="A row per block, not per stage.")] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Print a model's stages: widths, parameters, multiply-adds, activations.

    Example: coatnet inspect model coatnet_4 --px 384
    """
    cost = _cost(_model_config(name, overrides or []), px)
    if as_json:
        print(json.dumps(dataclasses.asdict(cost), indent=2))
        return
    _print_model(cost, blocks=blocks)


def inspect_layouts(px: Annotated[int, _PX] = 224, as_json: Annotated[bool, _JSON] = False) -> None:
    """Print the five layouts of the paper side by side, at one size.

    Example: coatnet inspect layouts
    """
    from coatnet.model.layouts import LAYOUTS

    rows = [_layout_facts(layout, px) for layout in LAYOUTS]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    heads = ("layout", "depths", "widths", "parameters", "MACs", "paper's FLOPs", "activations")
    texts = [
        (
            row["layout"],
            " ".join(map(str, row["depths"])),
            " ".join(map(str, row["widths"])),
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['macs'] / 1e9:.2f} G",
            f"{row['paper_flops'] / 1e9:.2f} G",
            f"{row['activation_bytes'] / _MIB:.0f} MiB",
        )
        for row in rows
    ]
    _print_table(f"Layouts at {px} px", heads, texts)


def _layout_facts(layout: str, px: int) -> dict[str, Any]:
    from coatnet.model.config import architecture
    from coatnet.model.layouts import layout_config

    config = layout_config(layout)
    cost, stages = _cost(config, px), architecture(config).stages
    return {
        "layout": layout,
        "depths": [stage.depth for stage in stages],
        "widths": [stage.width for stage in stages],
        **{name: getattr(cost, name) for name in ("parameters", "macs", "paper_flops", "activation_bytes")},
    }


def _model_config(name: str, overrides: list[str]) -> ModelConfig:
    from coatnet.config import load_config
    from coatnet.model.config import ModelConfig

    return load_config(ModelConfig, None, overrides=[f"name={name}", *overrides])


def _cost(config: ModelConfig, px: int) -> ModelCost:
    from coatnet.config import UserError
    from coatnet.model.cost import model_cost

    try:
        return model_cost(config, px)
    except ValueError as error:
        raise UserError(f"--px: {error}") from None


def _print_model(cost: ModelCost, *, blocks: bool) -> None:
    rows: list[tuple[str, ...]] = []
    for stage in cost.stages:
        made = stage.kinds if stage.kinds[0].isdigit() else f"{stage.depth} {stage.kinds} {stage.width}"
        rows.append((stage.name, made, f"{stage.side}²", *_numbers(stage)))
        if blocks and len(stage.blocks) > 1:
            rows += [(f"  {block.name}", "", "", *_numbers(block)) for block in stage.blocks]
    rows.append(("total", "", "", *_numbers(cost)))
    heads = ("stage", _LONG, "map", "parameters", "MACs", "paper's FLOPs", "activations")
    _print_table(f"{cost.name} at {cost.image_size} px, per image", heads, rows)
    print()
    parts = [(part.name, *_numbers(part)) for part in cost.kinds]
    _print_table("By operation", ("operation", *heads[3:]), parts)


def _numbers(cost: Cost) -> tuple[str, ...]:
    return (
        f"{cost.parameters:,}",
        f"{cost.macs / 1e9:.3f} G",
        f"{cost.paper_flops / 1e9:.3f} G",
        f"{cost.activation_bytes / _MIB:.1f} MiB",
    )


def _print_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.table import Table

    from coatnet.runtime.console import make_console

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, collapse_padding=True)
    for heading in heads:
        is_text = heading in _TEXTS
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=heading != _LONG)
    for row in rows:
        table.add_row(*row)
    console = make_console()
    console.width = max(console.width, _LEAST_WIDTH)  # a narrower terminal breaks lines; no number is cut
    console.print(table)
