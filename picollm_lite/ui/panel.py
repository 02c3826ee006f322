"""The live training panel: watches a run's records, and leaves its last state in the saved notebook."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from IPython.display import display

from picollm_lite.stages.sampling import Sample
from picollm_lite.ui.live import WIDGET_VIEW, Live
from picollm_lite.ui.panel_view import Run, panel_view, text_copy
from picollm_lite.world.rubric import CLEAN_FLOOR, OFFSET, WEIGHTS

MIN_SECONDS = 0.1  # between redraws
SHOWN = 3  # answers
GOLD_RANGE = (OFFSET + CLEAN_FLOOR * WEIGHTS["clean"], OFFSET + sum(WEIGHTS.values()))  # of the course's rubric
clock = time.monotonic


@contextmanager
def _interrupts_wait() -> Iterator[threading.Event]:
    """Within, the first interrupt only sets the event: a step that has begun can end. The second acts as ever."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only there do interrupts arrive
        yield asked
        return

    def wait(signum, frame):
        asked.set()
        signal.signal(signal.SIGINT, usual)
        print("stopping after this step; interrupt again to stop at once")

    usual = signal.signal(signal.SIGINT, wait)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, usual)


class TrainingPanel(Live):
    """Charts of a run's records, the newest answers, and a line that says how far it is.

    While the run goes on this is a widget. What `close` leaves is a picture, which a notebook that is saved and opened
    again still shows: a widget would be gone with its kernel.

    >>> panel = TrainingPanel("ppo", {"reward": ("proxy", "gold"), "KL to SFT, nats an answer": ("kl",)})
    >>> records = panel.follow(ppo.train(...))

    or by hand: `display(panel)`, `panel.update(record)` at every step, `panel.close()`. `charts` maps titles to the
    records' fields; answers are shown where records have `samples`, shaded over `gold_range`.
    """

    announced = False  # ten changes a second would drown all else

    def __init__(
        self, title: str, charts: Mapping[str, Sequence[str]], *, gold_range: tuple[float, float] = GOLD_RANGE
    ):
        super().__init__()
        self.title, self.charts, self.gold_range = title, charts, gold_range
        self._fields = list(dict.fromkeys(field for fields in charts.values() for field in fields))
        self._restart()

    def follow(self, run: Iterable, measure: Callable[[Any], Mapping[str, Any]] = lambda record: {}) -> list:
        """Display the panel and run to the end, or to the end of the step that is interrupted; returns the records.

        With PICOLLM_QUICK=N in the environment a run ends after N steps: a whole notebook can be tried in a minute.
        `measure(record)` may add fields (numbers, or `samples`) that the record does not have. The run and the panel
        are closed in every case; whatever the run raises goes on to the caller.
        """
        limit = int(os.environ.get("PICOLLM_QUICK") or 0)
        self._restart()
        display(self)
        records = []
        try:
            with _interrupts_wait() as interrupt:
                for record in run:
                    records.append(record)
                    self.update(record, **measure(record))
                    if interrupt.is_set():
                        raise KeyboardInterrupt
                    if len(records) == limit:
                        break
        except KeyboardInterrupt:
            print(f"stopped after step {len(records)}; going on with what was learned")
        finally:
            try:
                getattr(run, "close", lambda: None)()  # a generator's
            finally:
                self.close()
        return records

    def update(self, record: Any, **measured: Any) -> None:
        """Take in one step. Redraws at most 10 times a second, and at the last step.

        Raises ValueError when a chart's field is not to be had.
        """
        known = record._asdict() | measured
        missing = [field for field in self._fields if field not in known]
        if missing and not self._rows:
            raise ValueError(f"{self.title}: no {missing[0]!r} to draw; a record has {', '.join(record._fields)}")
        row = [float(known.get(field, "nan")) for field in self._fields]
        self._rows.append((record.step, *row))  # all at once: an interrupt may come at any time
        self._steps, self._ended = record.steps, None
        if known.get("samples"):
            self._samples, self._samples_step = known["samples"][:SHOWN], record.step
        if record.step == record.steps:
            self.close()
        elif clock() - self._drawn >= MIN_SECONDS:
            self._draw()

    def close(self) -> None:
        """Draw the last state, and refresh the copy in the saved notebook. Once is enough; twice does no harm."""
        if self._ended is None:
            self._ended = clock()
            self._draw()
            self.keep()

    @property
    def seconds(self) -> float:
        """Wall time of the run, evaluations included: so far, or in all once the panel is closed."""
        return (clock() if self._ended is None else self._ended) - self._started

    def bundle(self) -> dict:
        """PNG and readout with the newest answers, and while the run goes on the live view."""
        bundle = super().bundle() | {"text/plain": text_copy(self._shown)}
        if self._ended is not None:
            del bundle[WIDGET_VIEW]
        return bundle

    def __repr__(self) -> str:
        return text_copy(self._shown)  # what display() prints where there is no notebook

    def _restart(self) -> None:
        self._rows: list[tuple[float, ...]] = []  # step, and a number for each field
        self._steps = self._samples_step = 0
        self._samples: Sequence[Sample] = ()
        self._started, self._ended = clock(), None
        self._draw()
        self._drawn = -float("inf")  # so that the first step shows

    def _draw(self) -> None:
        self._shown = self._run()
        self.show(panel_view(self._shown))
        self._drawn = clock()

    def _run(self) -> Run:
        at, *columns = zip(*self._rows, strict=True) if self._rows else [()] * (1 + len(self._fields))
        return Run(
            title=self.title,
            charts=self.charts,
            step=at[-1] if at else 0,
            steps=self._steps,
            numbers=dict(zip(self._fields, columns, strict=True)),
            at=at,
            samples=self._samples,
            samples_step=self._samples_step,
            seconds=self.seconds,
            ended=self._ended is not None,
            gold_range=self.gold_range,
        )
