"""The same table as HTML, as text, and as a picture of text. Cells are plain text, escaped here."""

from collections.abc import Sequence
from textwrap import wrap

from matplotlib.figure import Figure

from picollm_lite.ui.plots import characters_of
from picollm_lite.ui.svg import escaped

WIDTH = 92  # characters of a line of text: what fits beside the prompts in JupyterLab
FONT, FONT_SIZE = "DejaVu Sans Mono", 9  # points; ships with matplotlib
CHARACTER, LINE = 0.65 * FONT_SIZE / 72, 1.3 * FONT_SIZE / 72  # inches, with room for rounding to pixels
_CELL = "padding:2px 10px 2px 0;vertical-align:top;text-align:left;border-bottom:1px solid rgba(128,128,128,0.35)"


def signed(value: float) -> str:
    """Two decimals and always a sign; what rounds to 0 is +0.00."""
    return f"{round(value, 2) + 0.0:+.2f}"  # adding 0 turns -0.0 into 0.0


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", equal: bool = False) -> str:
    """A table whose first column names the rows; `equal` gives all other columns the same width."""
    top = "".join(f'<th scope="col" style="{_CELL}">{escaped(cell)}</th>' for cell in head)
    body = "".join(f"<tr>{_row_head(row[0])}{''.join(map(_cell, row[1:]))}</tr>" for row in rows)
    style = "border-collapse:collapse;font-variant-numeric:tabular-nums;line-height:1.4"
    if equal:
        style += ";table-layout:fixed;width:100%"
    first = '<colgroup><col style="width:90px"></colgroup>' if equal else ""
    above = f'<caption style="text-align:left;white-space:nowrap">{escaped(caption)}</caption>' if caption else ""
    return f'<table style="{style}">{above}{first}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]


def wrapped(text: str, indent: str) -> list[str]:
    """The text in lines of at most WIDTH characters, all but the first indented by as much as `indent` is long."""
    return wrap(text.strip() or "(nothing)", WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent))


def text_figure(text: str) -> Figure:
    """A picture of lines of text, in a font in which columns stay aligned."""
    lines = [drawable(line) for line in text.splitlines()]
    width, height = CHARACTER * max(map(len, lines), default=1), LINE * max(1, len(lines))
    figure = Figure(figsize=(max(1.0, width), height))
    for number, line in enumerate(lines):
        put(figure, 0, number * LINE, line)
    return figure


def put(figure: Figure, x: float, y: float, line: str, **style) -> None:
    """One line of text, x and y in inches from the upper left corner of the figure."""
    width, height = figure.get_size_inches()
    style = {"family": FONT, "size": FONT_SIZE, "va": "top", "ha": "left", **style}
    figure.text(x / width, 1 - y / height, line, parse_math=False, **style)  # an answer may hold dollar signs


def drawable(text: str) -> str:
    """The text with a replacement mark for what the font cannot draw: matplotlib would warn and draw a box."""
    return "".join(character if ord(character) in characters_of(FONT) else "�" for character in text)


def _row_head(text: str) -> str:
    return f'<th scope="row" style="{_CELL};white-space:nowrap">{escaped(text)}</th>'


def _cell(text: str) -> str:
    return f'<td style="{_CELL};overflow-wrap:break-word">{escaped(text)}</td>'
