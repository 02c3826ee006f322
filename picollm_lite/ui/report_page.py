"""A report as blocks, and blocks as Markdown or as one HTML page that needs nothing but itself.

Whatever text comes in is escaped here, in both.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from picollm_lite.evaluation.data_card import markdown_table, markdown_text
from picollm_lite.ui.svg import escaped
from picollm_lite.ui.tables import html_table

# Should a text ever get past the escaping, the page's policy keeps it from loading or running anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem;"
    "background:Canvas;color:CanvasText}"
    "table{font-size:0.9rem}"
    ".wide{overflow-x:auto;margin:1rem 0}"
    ".pictures{display:flex;flex-wrap:wrap;gap:1rem}"
)


class Heading(NamedTuple):
    """Level 1 is the title."""

    text: str
    level: int = 2


class Paragraph(NamedTuple):
    text: str


class Table(NamedTuple):
    """The first column names the rows; `equal` gives all others the same width, for long texts."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    equal: bool = False


class Pictures(NamedTuple):
    """SVG, safe already, and what each shows, for where no picture can be."""

    svgs: Sequence[str]
    alt: str


Block = Heading | Paragraph | Table | Pictures


def as_markdown(blocks: Sequence[Block], page: str) -> str:
    """Pictures stand as their alternative text, which names `page`, the HTML file that has them."""
    return "\n\n".join(_markdown(block, page) for block in blocks) + "\n"


def as_html(blocks: Sequence[Block], title: str) -> str:
    """The whole page: no script, no reference to anything outside, readable in light and dark and without color."""
    body = "\n".join(map(_html, blocks))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def _markdown(block: Block, page: str) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {markdown_text(text)}"
        case Paragraph(text):
            return markdown_text(text)
        case Table(head, rows):
            return markdown_table(pd.DataFrame(rows, columns=list(head)))
        case Pictures(_, alt):
            return f"Picture, in [{page}]({page}): {markdown_text(alt)}"


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escaped(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{escaped(text)}</p>"
        case Table(head, rows, equal):
            # A region that scrolls must be reachable with the keyboard, and then has a name.
            named = f'role="region" tabindex="0" aria-label="table: {escaped(", ".join(filter(None, head)))}"'
            return f'<div class="wide" {named}>{html_table(head, rows, equal=equal)}</div>'
        case Pictures(svgs, _):
            # Inside HTML the namespace goes without saying, and a page without it names no address at all.
            drawn = "".join(svg.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1) for svg in svgs)
            return f'<div class="pictures">{drawn}</div>'
