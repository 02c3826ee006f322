"""Progress of a training cell as text: one line, redrawn in place, that stays in the saved notebook."""

import time

from IPython.display import display

MIN_SECONDS = 0.5  # between redraws


class TextPanel:
    """Shows the newest numbers of a run. `update` once a step, `close` at the end.

    >>> panel = TextPanel("sft")
    >>> for record in sft.train(...):
    ...     panel.update(record.step, record.steps, loss=record.loss)
    >>> panel.close()
    """

    def __init__(self, title: str):
        self.title = title
        self.started = time.monotonic()
        self.drawn = 0.0
        self.line = f"{title}: starting"
        self.handle = display({"text/plain": self.line}, raw=True, display_id=True)

    def update(self, step: int, steps: int, **numbers: float) -> None:
        """Redraw at most twice a second, and at the last step."""
        now = time.monotonic()
        shown = "  ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        self.line = f"{self.title}: step {step}/{steps}  {shown}"
        if now - self.drawn >= MIN_SECONDS or step == steps:
            self.drawn = now
            left = (now - self.started) / step * (steps - step)
            self._draw(f"{self.line}  ({now - self.started:.0f} s, about {left:.0f} s left)")

    def close(self) -> None:
        """Leave the final line, with how long the run took."""
        self._draw(f"{self.line}  (took {time.monotonic() - self.started:.0f} s)")

    def _draw(self, line: str) -> None:
        self.handle.update({"text/plain": line}, raw=True)
