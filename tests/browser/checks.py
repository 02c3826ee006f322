"""What a learner does with each kind of widget, and what must come of it. Whoever calls has run the notebook."""

import json
import re
from pathlib import Path

from playwright.sync_api import Locator

from .driver import Notebook, drag, is_in_upper_half

HOSTILE = "<img src=x onerror=alert(1)>"
EDITS = ["add flattery", "pad with filler", "repeat the last sentence", "swap the fact", "cut off the ending"]
QUESTION = "What is top-k sampling?"


def panels_move(notebook: Notebook) -> None:
    """An output went through three steps or more, with another picture each, while its cell ran."""
    steps, pictures = {}, {}
    for seen in notebook.seen():
        step = re.search(r"\bstep (\d+)", seen["readout"])
        if step and seen["running"]:
            steps.setdefault(seen["output"], set()).add(int(step[1]))
            pictures.setdefault(seen["output"], set()).add(seen["picture"])
    assert any(len(steps[output]) >= 3 and len(pictures[output] - {""}) >= 3 for output in steps), steps


def sliders(notebook: Notebook) -> None:
    """Every slider, by key and by mouse: another readout and another picture."""
    handles = notebook.handles()
    assert handles
    for handle in handles:
        _move(notebook, handle)


def token_lens(notebook: Notebook) -> None:
    """Another quantity gives another readout and another picture."""
    menu = notebook.control("color by").locator("select").first
    before = notebook.shown(menu)
    menu.select_option(label=menu.locator("option:not(:checked)").first.inner_text())
    notebook.changed(menu, before)


def reward_explorer(notebook: Notebook) -> None:
    """Typing moves proxy and gold; each button does something; a hostile text stays a text."""
    answer = notebook.control("answer").locator("textarea").first
    start, text = notebook.shown(answer), answer.input_value()
    answer.press("Control+End")
    notebook.page.keyboard.type(" You are right.")
    last = notebook.changed(answer, start)
    assert _number(start.readout, "proxy") != _number(last.readout, "proxy")
    assert _number(start.readout, "gold") != _number(last.readout, "gold")
    for edit in EDITS:
        notebook.button(edit, near=answer).click()
        last = notebook.changed(answer, last)
        assert edit in last.readout
    answer.fill(HOSTILE)
    last = notebook.changed(answer, last)
    assert HOSTILE in last.readout
    assert notebook.area(answer).locator("img").count() == 0
    notebook.button("back to the start", near=answer).click()
    last = notebook.changed(answer, last)
    assert _number(start.readout, "proxy") == _number(last.readout, "proxy")
    assert answer.input_value() == text


def playground(notebook: Notebook) -> None:
    """A question, a temperature, a seed: each gives other answers; going back gives the old ones again."""
    typed = notebook.control("or type one").locator("input").first
    seed = notebook.control("seed").locator("input").first
    before = notebook.shown(typed)
    typed.fill(QUESTION)
    typed.press("Enter")
    asked = notebook.changed(typed, before)
    assert QUESTION in asked.readout
    _move(notebook, notebook.handle("temperature").first)
    warmer = notebook.shown(typed)
    seed.fill("7")
    seed.press("Enter")
    other = notebook.changed(typed, warmer)
    seed.fill("0")
    seed.press("Enter")
    assert notebook.changed(typed, other) == warmer


def labelling(notebook: Notebook) -> None:
    """Three labels, one by mouse and two by key, stand in a file as soon as the next pair is shown."""
    before = _labels(notebook.lab.outputs)
    button = notebook.button("A is better").first
    key = notebook.control("key: a, b, t (tie), s (skip), u (undo)").locator("input").first
    last = notebook.shown(button)
    button.click()
    last = notebook.changed(button, last)
    key.focus()
    for letter in ("b", "t"):
        notebook.page.keyboard.press(letter)
        last = notebook.changed(button, last)
    new = [row for row in _labels(notebook.lab.outputs) if row not in before]
    assert sorted(row["label"] for row in new) == ["a", "b", "tie"]
    assert len({row["id"] for row in new}) == 3


def nothing_hostile_came_alive(notebook: Notebook) -> None:
    """Texts with markup were shown, and none of it became an element."""
    assert notebook.page.locator(".jp-OutputArea img[src='x'], .jp-OutputArea script").count() == 0
    assert notebook.page.locator(f".jp-OutputArea :text({json.dumps(HOSTILE)})").count() > 0


def _move(notebook: Notebook, handle: Locator) -> None:
    key, share = ("ArrowLeft", -0.4) if is_in_upper_half(handle) else ("ArrowRight", 0.4)
    before = notebook.shown(handle)
    handle.focus()
    notebook.page.keyboard.press(key)
    between = notebook.changed(handle, before)
    drag(handle, share)
    notebook.changed(handle, between)


def _labels(folder: Path) -> list[dict]:
    """The rows of all JSONL files below a folder that are somebody's labels."""
    rows = [json.loads(line) for path in folder.rglob("*.jsonl") for line in path.read_text().splitlines()]
    return [row for row in rows if "label" in row and "annotator" in row]


def _number(readout: str, name: str) -> str:
    """The first number in the line that starts with a name."""
    found = re.search(rf"^{name}\s+(\S+)", readout, re.MULTILINE)
    assert found, f"no line {name!r} in: {readout}"
    return found[1]
