"""Pictures of the widgets as they stand in a notebook that was just run; `make screenshots` writes those we show."""

import os
from collections import Counter
from pathlib import Path

from .driver import AREA, READOUT, Notebook

LARGEST = 150_000  # bytes
NAMES = {  # by the first label in the widget; a training panel that has ended is a picture already
    "pick a question": "playground",
    "question": "reward_explorer",
    "answer": "token_lens",
    "beta": "beta",
    "KL budget, nats an answer": "kl_budget",
    "n, answers to pick from": "best_of_n",
    "KL to read at, nats an answer": "frontier",
    "key: a, b, t (tie), s (skip), u (undo)": "labelling",
}


def take(notebook: Notebook) -> list[Path]:
    """One PNG a widget in $PICOLLM_SCREENSHOTS, named NOTEBOOK_WIDGET.png; nothing without that variable."""
    if not os.environ.get("PICOLLM_SCREENSHOTS"):
        return []
    folder, taken, seen = Path(os.environ["PICOLLM_SCREENSHOTS"]), [], Counter()
    folder.mkdir(parents=True, exist_ok=True)
    usual, page = notebook.page.viewport_size, notebook.page
    page.set_viewport_size({"width": 1180, "height": 2400})  # a picture ends where the page does
    for area in page.locator(AREA, has=page.locator(READOUT)).all():
        name = NAMES[next(text for text in area.locator(".widget-label").all_inner_texts() if text)]
        seen[name] += 1
        number = f"_{seen[name]}" if seen[name] > 1 else ""
        path = folder / f"{Path(notebook.path).stem}_{name}{number}.png"
        area.locator(".jp-OutputArea-output").first.screenshot(path=path)
        taken.append(path)
    page.set_viewport_size(usual)
    too_large = [path.name for path in taken if path.stat().st_size > LARGEST]
    assert not too_large, f"more than {LARGEST} bytes: {too_large}"
    return taken
