"""Draw docs/stages.svg from the family's data: python docs/make_stages.py"""

from __future__ import annotations

from pathlib import Path

from coatnet.model.config import ModelConfig
from coatnet.model.cost import StageCost, model_cost

NAME, PIXELS = "coatnet_0", 224
WIDTH, HEIGHT, GAP, TOP, LEFT = 132, 128, 26, 44, 20
INK, LINE, MUTED = "#1b1f24", "#8c959f", "#57606a"
FILLS = {"conv": "#eef1f4", "mbconv": "#e3f1ec", "transformer": "#e6ebfa", "dense": "#eef1f4"}
LABELS = {"conv": "convolution", "mbconv": "MBConv", "transformer": "transformer", "dense": "pool, dense"}


def main() -> None:
    """Write the picture beside this script."""
    cost = model_cost(ModelConfig(name=NAME, image_size=PIXELS), PIXELS)
    total = 2 * LEFT + len(cost.stages) * (WIDTH + GAP) - GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} 214" '
        'font-family="system-ui, sans-serif">',
        f'<rect width="{total}" height="214" rx="10" fill="#ffffff"/>',
        text(LEFT, 28, f"CoAtNet-0 at {PIXELS} px: {cost.parameters / 1e6:.1f} M parameters, "
             f"{cost.macs / 1e9:.2f} G multiply-adds", size=15, anchor="start"),
    ]  # fmt: skip
    for number, stage in enumerate(cost.stages):
        parts += box(stage, LEFT + number * (WIDTH + GAP), macs=cost.macs, arrow=number > 0)
    parts.append("</svg>")
    Path(__file__).with_name("stages.svg").write_text("\n".join(parts) + "\n")


def box(stage: StageCost, left: int, *, macs: int, arrow: bool) -> list[str]:
    """Draw a stage: its blocks, its map, its share of the parameters and of the work."""
    kind = next(word for word in stage.kinds.split() if word in FILLS)
    middle = left + WIDTH / 2
    lines = [
        f"{stage.depth} × {LABELS[kind]}" if stage.depth > 1 else LABELS[kind],
        f"{stage.side} × {stage.side} × {stage.width}",
        f"{stage.parameters / 1e6:.2f} M parameters",
        f"{100 * stage.macs / macs:.0f} % of the work" if stage.macs > 0.005 * macs else "< 1 % of the work",
    ]
    return [
        f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{FILLS[kind]}" '
        f'stroke="{LINE}"/>',
        text(middle, TOP + 26, stage.name, size=15, weight=600),
        *(text(middle, TOP + 52 + 19 * row, line, size=12.5) for row, line in enumerate(lines)),
        # The work as a bar under the box.
        f'<rect x="{left}" y="{TOP + HEIGHT + 12}" width="{WIDTH * stage.macs / macs:.1f}" height="8" '
        f'fill="{MUTED}"/>',
        *([f'<path d="M{left - GAP + 3} {TOP + HEIGHT / 2}h{GAP - 6}" stroke="{LINE}" '
           'stroke-width="1.6"/>'] if arrow else []),
    ]  # fmt: skip


def text(x: float, y: float, words: str, *, size: float, weight: int = 400, anchor: str = "middle") -> str:
    """Return an SVG text element."""
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size:g}" font-weight="{weight}" '
        f'fill="{INK}">{words}</text>'
    )


if __name__ == "__main__":
    main()
