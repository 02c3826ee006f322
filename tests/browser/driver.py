"""A notebook open in JupyterLab: what a learner can do in it, and what the page shows then.

Widgets are found by their labels. Works with the front ends of ipywidgets 7 and 8.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Locator, Page
from playwright.sync_api import Error as PlaywrightError

from .lab import TOKEN, Lab

PATIENCE = 180  # s, for what takes 5 on an idle machine
POLL = 100  # ms; Playwright's own choice, at every frame, would keep a core busy
READOUT = "pre[role=status]"
AREA = ".jp-OutputArea-child"
HANDLE = ".noUi-handle, .ui-slider-handle"  # ipywidgets 8, 7
KERNEL = "jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel"
# One entry for each new readout: which output shows it, the picture at that moment, and whether its cell was running.
WATCH = """() => {
    window.seen = [];
    let outputs = 0;
    const look = () => document.querySelectorAll('.jp-OutputArea-child pre[role=status]').forEach(readout => {
        const area = readout.closest('.jp-OutputArea-child');
        if (readout.textContent === area.lastReadout) return;
        area.lastReadout = readout.textContent;
        area.number ??= outputs++;
        const prompt = area.closest('.jp-Cell').querySelector('.jp-InputPrompt').textContent;
        window.seen.push({output: area.number, readout: readout.textContent, running: prompt.includes('*'),
                          picture: area.querySelector('svg')?.outerHTML ?? ''});
    });
    new MutationObserver(look).observe(document.body, {childList: true, subtree: true, characterData: true});
}"""
RUN_ALL = """() => {
    window.ran = false;
    jupyterapp.commands.execute('notebook:run-all-cells').finally(() => { window.ran = true; });
}"""
ERRORS = """() => jupyterapp.shell.currentWidget.content.widgets
    .flatMap(cell => cell.model.outputs?.toJSON() ?? [])
    .filter(output => output.output_type === 'error').map(output => `${output.ename}: ${output.evalue}`)"""
SHOWN = """area => ({
    readout: area.querySelector('pre[role=status]').textContent,
    picture: [...area.querySelectorAll('.widget-html-content')]
        .filter(html => !html.querySelector('pre[role=status]')).map(html => html.innerHTML).join('\\n'),
})"""


class Shown(NamedTuple):
    """What one output shows."""

    readout: str
    picture: str


@contextmanager
def open_page(browser: Browser) -> Iterator[Page]:
    """A fresh page. What it should not do is collected in `page.problems`."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(PATIENCE * 1000)
    page.problems = problems = []
    page.on("console", lambda line: line.type == "error" and problems.append(f"console: {line.text} {line.location}"))
    page.on("pageerror", lambda error: problems.append(f"error in the page: {error}"))
    page.on("request", lambda request: _check_host(request.url, problems))
    page.on("websocket", lambda socket: _check_host(socket.url, problems))

    def refuse(dialog):
        problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("dialog", refuse)
    try:
        yield page
    except Exception as error:
        picture = Path(mkdtemp(), "page.png")
        with suppress(PlaywrightError):
            page.screenshot(path=picture, timeout=10_000)
        error.add_note(f"the page then: {picture}; problems: {problems}")
        raise
    finally:
        context.close()


class Notebook:
    """The notebook at `path`, below the server's root, with a kernel that is ready."""

    def __init__(self, page: Page, lab: Lab, path: str):
        self.page, self.lab, self.path = page, lab, path
        page.goto(f"{lab.url}/lab/workspaces/w/tree/{path}?token={TOKEN}&reset")
        page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for()
        self.wait_idle(PATIENCE)

    def run_all(self, seconds: float) -> None:
        """Run every cell and wait for the last one. Raises AssertionError for an error in a cell."""
        self.page.evaluate(WATCH)
        self.page.evaluate(RUN_ALL)
        self._wait("window.ran", seconds)
        self.wait_idle(seconds)
        errors = self.page.evaluate(ERRORS)
        assert errors == []

    def wait_idle(self, seconds: float) -> None:
        self._wait(f"{KERNEL}?.status === 'idle'", seconds)

    def seen(self) -> list[dict]:
        """Every readout since `run_all` began: output (a number), readout, picture (SVG), running (its cell was)."""
        return self.page.evaluate("window.seen")

    def save(self) -> None:
        self.page.evaluate("jupyterapp.commands.execute('docmanager:save')")

    def control(self, label: str) -> Locator:
        """The widget with that description."""
        return self.page.locator(f"{AREA} :has(> .widget-label:text-is({json.dumps(label)}))")

    def button(self, name: str, near: Locator | None = None) -> Locator:
        area = self.page.locator(AREA) if near is None else self.area(near)
        return area.get_by_role("button", name=name, exact=True)

    def handle(self, label: str) -> Locator:
        return self.control(label).locator(HANDLE)

    def handles(self) -> list[Locator]:
        """What all sliders are dragged by."""
        return self.page.locator(f"{AREA} :is({HANDLE})").all()

    def pictures(self) -> int:
        """The number of outputs that are pictures, of a width that one can see."""
        self.page.wait_for_timeout(500)
        pictures = self.page.locator(f"{AREA} img[src^='data:image/png']").all()
        return sum((picture.bounding_box() or {"width": 0})["width"] > 100 for picture in pictures)

    def area(self, inside: Locator) -> Locator:
        """The output that `inside` stands in."""
        return inside.locator(_ancestor("jp-OutputArea-child"))

    def shown(self, inside: Locator) -> Shown:
        """Picture and readout of the output that `inside` stands in, once they have settled."""
        area, last = self.area(inside), None
        while last != (last := Shown(**area.evaluate(SHOWN))):
            self.page.wait_for_timeout(150)
            self.wait_idle(PATIENCE)
        return last

    def changed(self, inside: Locator, before: Shown, seconds: float = PATIENCE) -> Shown:
        """Wait for another readout than before. Raises AssertionError when there is none, or the picture stays."""
        changed = f"before => ({SHOWN})(before.area).readout !== before.readout"
        area = self.area(inside).element_handle()
        self._wait(changed, seconds, arg={"area": area, "readout": before.readout})
        after = self.shown(inside)
        assert after.picture != before.picture, f"a new readout, but the old picture: {after.readout}"
        return after

    def _wait(self, condition: str, seconds: float, **arg: object) -> None:
        self.page.wait_for_function(condition, polling=POLL, timeout=seconds * 1000, **arg)


def label_of(handle: Locator) -> str:
    """The description of the slider that a handle belongs to."""
    return handle.locator(f"{_ancestor('slider-container')}/preceding-sibling::*").inner_text()


def is_in_upper_half(handle: Locator) -> bool:
    box, track = handle.bounding_box(), _track(handle)
    return box["x"] + box["width"] / 2 > track["x"] + track["width"] / 2


def drag(handle: Locator, share: float) -> None:
    """Move a slider's handle by a share of its track, with the mouse."""
    handle.scroll_into_view_if_needed()
    box, track, mouse = handle.bounding_box(), _track(handle), handle.page.mouse
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse.move(x, y)
    mouse.down()
    mouse.move(x + share * track["width"], y, steps=5)
    mouse.up()


def _track(handle: Locator) -> dict:
    return handle.locator(_ancestor("slider-container")).bounding_box()


def _ancestor(name: str) -> str:
    return f"xpath=ancestor::*[{_has_class(name)}][1]"


def _has_class(name: str) -> str:
    return f"contains(concat(' ', @class, ' '), ' {name} ')"


def _check_host(url: str, problems: list[str]) -> None:
    parts = urlsplit(url)
    if parts.hostname != "127.0.0.1" and parts.scheme not in ("data", "blob"):
        problems.append(f"request to another machine: {url}")
