"""A widget that leaves something to see: where no kernel runs, its last state stays as a picture and as text.

Works on ipywidgets 7.7 and 8. Whatever comes from a model, a file or a learner is escaped before it enters `markup`.
"""

from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

import ipywidgets as widgets
from IPython.display import display
from matplotlib.figure import Figure

from picollm_lite.ui.plots import png

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
SEEN = "max-height:16em;overflow:auto"
UNSEEN = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)"  # but read out


class View(NamedTuple):
    """One state of a widget, in three forms that say the same."""

    markup: str  # HTML or inline SVG for the live widget; escaped by whoever made it
    text: str  # the readout: plain text, read out by screen readers, and all there is in a terminal
    figure: Callable[[], Figure]  # the picture for a page without a kernel; drawn only when it is asked for
    said_above: bool = False  # the markup shows all of the text, so that the readout is for screen readers alone


class Live:
    """Controls above, then one picture, then its readout. The last expression of a cell, or `display(live)`."""

    announced = True  # whether screen readers read out each change, and not only on demand

    def __init__(self, controls: Sequence[widgets.Widget] = ()):
        self.picture, self.readout = widgets.HTML(), widgets.HTML()
        self.box = widgets.VBox([*controls, self.picture, self.readout])
        self.view: View | None = None
        self._handle = None

    def show(self, view: View) -> None:
        """Draw a state. The readout comes last: who waits for it finds the picture there."""
        self.view = view
        self.picture.value = view.markup
        self.readout.value = _readout(view.text, UNSEEN if view.said_above else SEEN, self.announced)

    def attempt(self, draw: Callable[[], View]) -> None:
        """Draw what `draw` returns; an error is shown in one line, where a callback's traceback is easily lost."""
        try:
            self.show(draw())
        except Exception as error:
            self.readout.value = _readout(f"{type(error).__name__}: {error}")
            raise

    def keep(self) -> None:
        """Bring the static copy in the notebook, if it was displayed, up to the present state."""
        if self._handle is not None:
            bundle = self.bundle()
            self._handle.update(bundle, raw=True, metadata=_alternative(bundle))

    def bundle(self) -> dict:
        """The state for every kind of reader: live view, PNG and text. Raises ValueError before the first `show`."""
        if self.view is None:
            raise ValueError("nothing to display yet: call show() first")
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        return {WIDGET_VIEW: view, "image/png": png(self.view.figure()), "text/plain": self.view.text}

    def _ipython_display_(self) -> None:
        again = self._handle.display_id if self._handle else True  # all places share an id, so that keep() finds them
        bundle = self.bundle()
        self._handle = display(bundle, raw=True, metadata=_alternative(bundle), display_id=again)


def explore(draw: Callable[..., View], **controls: widgets.Widget) -> Live:
    """A live view of `draw(**values)`: drawn now, and again whenever the value of a control changes."""
    live = Live(list(controls.values()))

    def redraw(_: dict | None = None) -> None:
        live.attempt(lambda: draw(**{name: control.value for name, control in controls.items()}))

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    return live


def _alternative(bundle: dict) -> dict:
    """Metadata of an output: what a screen reader says instead of the picture."""
    return {"image/png": {"alt": bundle["text/plain"]}}


def _readout(text: str, style: str = SEEN, announced: bool = True) -> str:
    style = f"white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere;margin:0;{style}"
    live = "polite" if announced else "off"
    return f'<pre role="status" aria-live="{live}" style="{style}">{escape(text)}</pre>'
