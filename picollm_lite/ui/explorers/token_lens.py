"""An answer token by token, colored by a number each has: log-ratio to the reference, value or advantage."""

import math
from collections.abc import Mapping, Sequence

import ipywidgets as widgets
from matplotlib.figure import Figure

from picollm_lite.ui.explorers.lens_data import Lens
from picollm_lite.ui.live import Live, View, explore
from picollm_lite.ui.plots import BLUE, ORANGE
from picollm_lite.ui.svg import escaped, shade
from picollm_lite.ui.tables import CHARACTER, FONT_SIZE, LINE, WIDTH, drawable, put, signed, text_table

WHITESPACE = {"\n": "↵", "\r": "↵", "\t": "⇥"}  # any other: ·
KEY = "blue, solid: above 0; orange, dashed: below 0; the further, the stronger; · is a space"
STRENGTH = 0.45  # of the strongest background: text stays readable on it
SMALL = 0.75  # of the font size: the numbers
_WIDE = {"layout": {"width": "95%", "max_width": "760px"}, "style": {"description_width": "80px"}}


def lens_view(tokens: Sequence[str], values: Mapping[str, Sequence[float]], shown: str, *, title: str = "") -> View:
    """Tokens with their numbers of the quantity `shown`; the readout lists all quantities.

    Colors are symmetric about 0. Raises ValueError for no tokens, a quantity that is not there, a wrong number of
    values and values that are not finite.
    """
    _check(tokens, values, shown)
    # Rounded as they are shown: noise of the last digits is no sign.
    cells = [(visible(token), round(value, 2)) for token, value in zip(tokens, values[shown], strict=True)]
    limit = max(abs(value) for _, value in cells) or 1.0
    heading = f"{title}  ({shown} of {len(tokens)} tokens)" if title else f"{shown} of {len(tokens)} tokens"
    spans = "".join(_span(token, value, shown, limit) for token, value in cells)
    markup = f'<div style="line-height:1.4"><p style="margin:4px 0">{escaped(heading)}</p>'
    markup += f'<div role="group" aria-label="{escaped(heading)}">{spans}</div>'
    markup += f'<div style="font-size:90%;opacity:0.8">{escaped(KEY)}</div></div>'
    names = [shown, *(name for name in values if name != shown)]
    rows = zip((token for token, _ in cells), *(map(signed, values[name]) for name in names), strict=True)
    text = "\n".join([heading, "", *text_table(["token", *names], list(rows))])
    return View(markup, text, lambda: _figure(heading, cells, limit))


def token_lens(answers: Mapping[str, Lens]) -> Live:
    """Pick one of the answers, and what colors its tokens. Raises ValueError for no answers."""
    if not answers:
        raise ValueError("no answers to look at: give at least one")

    def draw(answer: str, quantity: str) -> View:
        return lens_view(*answers[answer], quantity, title=answer)

    answer = widgets.Dropdown(options=list(answers), description="answer", **_WIDE)
    quantity = widgets.Dropdown(description="color by", **_WIDE)

    def offer(_: dict | None = None) -> None:
        """Only what this answer has; what was picked stays if it has that too."""
        names, picked = list(answers[answer.value][1]), quantity.value
        if list(quantity.options) != names:
            quantity.options = names
            quantity.value = picked if picked in names else names[0]

    offer()
    answer.observe(offer, names="value")
    return explore(draw, answer=answer, quantity=quantity)


def visible(token: str) -> str:
    """The token with marks for its whitespace."""
    return "".join(WHITESPACE.get(char, "·") if char.isspace() else char for char in token) or "∅"


def _check(tokens: Sequence[str], values: Mapping[str, Sequence[float]], shown: str) -> None:
    if not tokens:
        raise ValueError("no tokens to show: the answer is empty")
    if shown not in values:
        raise ValueError(f"no quantity {shown!r}: there is {', '.join(values) or 'none'}")
    for name, numbers in values.items():
        if len(numbers) != len(tokens):
            raise ValueError(f"expected one {name} a token, got {len(numbers)} for {len(tokens)} tokens")
        wrong = next((i for i, number in enumerate(numbers) if not math.isfinite(number)), None)
        if wrong is not None:
            raise ValueError(f"{name} of token {wrong + 1}, {tokens[wrong]!r}, is {numbers[wrong]}: expected a number")


def _span(token: str, value: float, shown: str, limit: float) -> str:
    said = escaped(f"token '{token}', {shown} {signed(value)}")
    color, line = _style(value)
    above = f"white-space:pre;padding:0 2px;background:{shade(value, -limit, limit)};border-bottom:3px {line} {color}"
    return (
        f'<span role="img" tabindex="0" aria-label="{said}" title="{said}" '
        f'style="display:inline-block;text-align:center;margin:3px;vertical-align:top">'
        f'<span style="display:block;{above}">{escaped(token)}</span>'
        f'<span style="display:block;font-size:{SMALL:.0%}">{signed(value)}</span></span>'
    )


def _style(value: float) -> tuple[str, str]:
    """Color and line, so that the sign can be seen with either."""
    return (BLUE, "solid") if value > 0 else (ORANGE, "dashed") if value < 0 else ("transparent", "solid")


def _figure(heading: str, cells: Sequence[tuple[str, float]], limit: float) -> Figure:
    """The tokens in rows, as in the markup; the key below."""
    places, x, y = [], 0.0, 2 * LINE
    for token, value in cells:
        width = CHARACTER * (max(len(token), SMALL * len(signed(value))) + 1)
        if x and x + width > WIDTH * CHARACTER:
            x, y = 0.0, y + 3 * LINE
        places.append((x + width / 2, y))
        x += width
    figure = Figure(figsize=(WIDTH * CHARACTER, y + 4 * LINE))
    put(figure, 0, 0, drawable(heading))
    for (token, value), (middle, top) in zip(cells, places, strict=True):
        color, line = _style(value)
        face = (color, STRENGTH * abs(value) / limit) if value else "none"
        box = {"facecolor": face, "edgecolor": color if value else "none", "linestyle": line, "pad": 1}
        put(figure, middle, top, drawable(token), ha="center", bbox=box)
        put(figure, middle, top + 1.3 * LINE, signed(value), ha="center", size=SMALL * FONT_SIZE)
    put(figure, 0, y + 3 * LINE, KEY)
    return figure
