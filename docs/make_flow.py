"""Draw docs/flow.svg: python docs/make_flow.py"""

from __future__ import annotations

from pathlib import Path

BOXES = [
    ("shard", "folder, table, tars", "tars + index + hashes"),
    ("plan", "memory, speed, days", "before the queue"),
    ("pretrain", "DeepSpeed ZeRO 0–3", "any number of ranks"),
    ("fine-tune", "384, 512 px", "new head, EMA"),
    ("evaluate", "top-1, ECE,", "several resolutions"),
    ("export", "safetensors, timm,", "ONNX, model card"),
]
WIDTH, HEIGHT, GAP, TOP = 142, 74, 26, 26
INK, PAPER, LINE, ACCENT = "#1b1f24", "#f6f8fa", "#8c959f", "#0a7a5c"


def main() -> None:
    """Write the picture beside this script."""
    total = len(BOXES) * (WIDTH + GAP) - GAP + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} 196" '
        'font-family="system-ui, sans-serif">',
        f'<rect width="{total}" height="196" rx="10" fill="#ffffff"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{LINE}"/></marker></defs>',
    ]
    for number, (title, *lines) in enumerate(BOXES):
        left = 20 + number * (WIDTH + GAP)
        parts.append(
            f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" rx="8" '
            f'fill="{PAPER}" stroke="{LINE}"/>'
        )
        parts.append(
            f'<text x="{left + WIDTH / 2}" y="{TOP + 24}" text-anchor="middle" font-weight="600" '
            f'font-size="15" fill="{INK}">{title}</text>'
        )
        for row, line in enumerate(lines):
            parts.append(
                f'<text x="{left + WIDTH / 2}" y="{TOP + 43 + 17 * row}" text-anchor="middle" '
                f'font-size="12" fill="{INK}">{line}</text>'
            )
        if number:
            parts.append(
                f'<path d="M{left - GAP + 2} {TOP + HEIGHT / 2}H{left - 2}" stroke="{LINE}" '
                'stroke-width="1.6" marker-end="url(#tip)"/>'
            )
    left = 20 + 2 * (WIDTH + GAP)
    bottom = TOP + HEIGHT
    parts += [
        f'<path d="M{left + 110} {bottom + 2}V{bottom + 26}H{left + 32}V{bottom + 4}" fill="none" '
        f'stroke="{ACCENT}" stroke-width="1.8" marker-end="url(#tip)"/>',
        f'<text x="{left + WIDTH / 2}" y="{bottom + 43}" text-anchor="middle" font-size="12" fill="{ACCENT}">'
        "time limit, lost node, kill -9:</text>",
        f'<text x="{left + WIDTH / 2}" y="{bottom + 59}" text-anchor="middle" font-size="12" fill="{ACCENT}">'
        "resumes, equal to the bit</text>",
        "</svg>",
    ]
    Path(__file__).with_name("flow.svg").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
