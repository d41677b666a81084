"""Draw docs/stages.svg from the family's data: python docs/make_stages.py"""

from __future__ import annotations

from pathlib import Path

from coatnet.model.config import ModelConfig
from coatnet.model.cost import ModelCost, StageCost, model_cost

NAMES, PIXELS = ("coatnet_0", "coatnet_4", "coatnet_7"), 224
WIDTH, HEIGHT, GAP, TOP, LEFT, ROW = 192, 128, 18, 44, 20, 206
INK, LINE, MUTED = "#1b1f24", "#8c959f", "#57606a"
FILLS = {"conv": "#eef1f4", "mbconv": "#e3f1ec", "transformer": "#e6ebfa", "dense": "#eef1f4"}
LABELS = {"conv": "convolution", "mbconv": "MBConv", "transformer": "transformer", "dense": "pool, dense"}


def main() -> None:
    """Write the picture beside this script."""
    costs = [model_cost(ModelConfig(name=name, image_size=PIXELS), PIXELS) for name in NAMES]
    width = 2 * LEFT + len(costs[0].stages) * (WIDTH + GAP) - GAP
    height = len(costs) * ROW + TOP - 28
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif">',
        f'<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>',
    ]
    for number, cost in enumerate(costs):
        parts += row(cost, number * ROW)
    parts.append("</svg>")
    Path(__file__).with_name("stages.svg").write_text("\n".join(parts) + "\n")


def row(cost: ModelCost, top: int) -> list[str]:
    """Draw a member of the family."""
    title = (
        f"CoAtNet-{cost.name[-1]} at {PIXELS} px: {cost.parameters / 1e6:,.1f} M parameters, "
        f"{cost.macs / 1e9:.2f} G multiply-adds"
    )
    parts = [text(LEFT, top + 28, title, size=15, anchor="start")]
    for number, stage in enumerate(cost.stages):
        parts += box(stage, LEFT + number * (WIDTH + GAP), top + TOP, macs=cost.macs, arrow=number > 0)
    return parts


def box(stage: StageCost, left: int, top: int, *, macs: int, arrow: bool) -> list[str]:
    """Draw a stage: its blocks, its map, its share of the parameters and of the work."""
    kinds = [word for word in stage.kinds.split() if word in FILLS]
    kind = kinds[-1]  # a mixed stage is coloured by what most of it is
    middle = left + WIDTH / 2
    lines = [
        words(stage, kinds),
        f"{stage.side} × {stage.side} × {stage.width}",
        f"{stage.parameters / 1e6:.2f} M parameters",
        f"{100 * stage.macs / macs:.0f} % of the work"
        if stage.macs > 0.005 * macs
        else "under 1 % of the work",
    ]
    return [
        f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{FILLS[kind]}" '
        f'stroke="{LINE}"/>',
        text(middle, top + 26, stage.name, size=15, weight=600),
        *(text(middle, top + 52 + 19 * row, line, size=12.5) for row, line in enumerate(lines)),
        # The work as a bar under the box.
        f'<rect x="{left}" y="{top + HEIGHT + 12}" width="{WIDTH * stage.macs / macs:.1f}" height="8" '
        f'fill="{MUTED}"/>',
        *([f'<path d="M{left - GAP + 3} {top + HEIGHT / 2}h{GAP - 6}" stroke="{LINE}" '
           'stroke-width="1.6"/>'] if arrow else []),
    ]  # fmt: skip


def words(stage: StageCost, kinds: list[str]) -> str:
    """Say which blocks stand in a stage: "3 × MBConv", "8 C + 42 T"."""
    if len(kinds) > 1:
        depths = [word for word in stage.kinds.split() if word.isdigit()][::2]
        return " + ".join(f"{depth} {LABELS[kind]}" for depth, kind in zip(depths, kinds, strict=True))
    return f"{stage.depth} × {LABELS[kinds[0]]}" if stage.depth > 1 else LABELS[kinds[0]]


def text(x: float, y: float, words: str, *, size: float, weight: int = 400, anchor: str = "middle") -> str:
    """Return an SVG text element."""
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size:g}" font-weight="{weight}" '
        f'fill="{INK}">{words}</text>'
    )


if __name__ == "__main__":
    main()
