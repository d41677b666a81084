"""What a report is made of, and its two forms: an HTML page and Markdown. Knows no run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from coatnet.config.plain_text import one_line
from coatnet.report.chart import as_markup
from coatnet.report.style import STYLE

_NEAR = 20  # letters: a moment's length


@dataclass(frozen=True)
class Table:
    """Rows of text; columns named in `right` are numbers."""

    rows: Sequence[Sequence[str]]
    head: Sequence[str] = ()
    right: Sequence[int] = ()


@dataclass(frozen=True)
class Text:
    """A sentence."""

    text: str


@dataclass(frozen=True)
class Code:
    """Preformatted text."""

    text: str
    language: str = ""


@dataclass(frozen=True)
class Chart:
    """A picture with a caption: (name, last value) of its curves. `svg` is markup of our own."""

    title: str
    svg: str
    last: Sequence[tuple[str, str]] = ()
    wide: bool = False


@dataclass(frozen=True)
class Tiles:
    """Headline figures, as (label, value)."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Fold:
    """Blocks behind a line that unfolds; on paper they stand open, or are left out with it."""

    title: str
    blocks: Sequence[Block]
    on_paper: bool = True


Block = Table | Text | Code | Chart | Tiles | Fold


@dataclass(frozen=True)
class Section:
    """A heading and what stands below; a section without blocks is left out."""

    title: str
    blocks: Sequence[Block]


def html_page(title: str, *, state: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return one self-contained page."""
    shown = [section for section in sections if section.blocks]
    links = "".join(
        f'<a href="#s{number}">{as_markup(one.title)}</a>' for number, one in enumerate(shown) if one.title
    )
    body = "".join(
        f'<section id="s{number}">{f"<h2>{as_markup(one.title)}</h2>" if one.title else ""}'
        f"{_html_blocks(one.blocks)}</section>"
        for number, one in enumerate(shown)
    )
    badge = f'<span class="state {as_markup(state.split()[0])}">{as_markup(state)}</span>'
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{as_markup(title)}</title><style>{STYLE}</style>"
        f"<main><header><h1>{as_markup(title)} {badge}</h1><p>{as_markup(subtitle)}</p></header>"
        f"<nav>{links}</nav>{body}</main></html>\n"
    )


def markdown(title: str, *, state: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return the same content as Markdown; charts are their last values."""
    lines = [f"# {_plain(title)}", "", f"{_plain(subtitle)} State: {state}.", ""]
    for section in sections:
        if section.blocks:
            lines += [f"## {section.title}", ""] if section.title else []
            lines += _markdown_blocks(section.blocks)
    return "\n".join(lines).rstrip() + "\n"


def _html_blocks(blocks: Sequence[Block]) -> str:
    parts = ""
    for is_narrow, group in groupby(blocks, key=lambda block: isinstance(block, Chart) and not block.wide):
        shown = "".join(map(_html, group))
        parts += f'<div class="grid2">{shown}</div>' if is_narrow else shown
    return parts


def _html(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{as_markup(block.text)}</p>"
    if isinstance(block, Code):
        return f"<pre>{escape(block.text)}</pre>"
    if isinstance(block, Tiles):
        tiles = "".join(
            f'<div class="tile"><b>{as_markup(value)}</b><span>{as_markup(label)}</span></div>'
            for label, value in block.rows
        )
        return f'<div class="tiles">{tiles}</div>'
    if isinstance(block, Chart):
        last = "".join(f" <b>{as_markup(value)}</b>" for _, value in block.last[:1])
        return f"<figure><figcaption>{as_markup(block.title)}{last}</figcaption>{block.svg}</figure>"
    if isinstance(block, Fold):
        where = "" if block.on_paper else " class=screen"
        inner = f"<summary>{as_markup(block.title)}</summary>{_html_blocks(block.blocks)}"
        return f"<details{where}>{inner}</details>"
    return _html_table(block)


def _html_table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{_look(cell, is_number=number in table.right)}>{as_markup(cell)}</{tag}>"
            for number, cell in enumerate(cells)
        )

    head = f"<thead><tr>{row(table.head, 'th')}</tr></thead>" if table.head else ""
    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in table.rows)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _look(cell: str, *, is_number: bool) -> str:
    """Return a cell's class: numbers stand to the right, and what is short is never broken."""
    if is_number:
        return " class=right"
    return " class=near" if len(cell) <= _NEAR else ""


def _markdown_blocks(blocks: Sequence[Block]) -> list[str]:
    lines: list[str] = []
    values = [pair for block in blocks if isinstance(block, Chart) for pair in block.last]
    if values:
        lines += _markdown(Table(values, ("curve", "last"), right=(1,)))
    for block in blocks:
        if not isinstance(block, Chart):
            lines += _markdown(block)
    return lines


def _markdown(block: Block) -> list[str]:
    if isinstance(block, Text):
        return [_plain(block.text), ""]
    if isinstance(block, Code):
        fence = "`" * (1 + max(2, *map(len, re.findall("`+", block.text)), 0))
        return [f"{fence}{block.language}", block.text.rstrip(), fence, ""]
    if isinstance(block, Tiles):
        return _markdown(Table(block.rows, ("", "")))
    if isinstance(block, Fold):
        return [f"### {_plain(block.title)}", "", *_markdown_blocks(block.blocks)]
    assert isinstance(block, Table)
    width = max(len(row) for row in [block.head, *block.rows])
    head = [*block.head, *[""] * (width - len(block.head))]
    rules = ["---:" if number in block.right else "---" for number in range(width)]
    rows = [head, rules, *([_plain(cell) for cell in row] for row in block.rows)]
    return [*(f"| {' | '.join(row)} |" for row in rows), ""]


def _plain(text: str) -> str:
    """Return text that no Markdown reader takes for markup."""
    return re.sub(r"([\\|`\[*])", r"\\\1", one_line(text)).replace("<", "&lt;")
