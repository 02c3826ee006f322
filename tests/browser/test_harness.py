"""The harness on pages and panels that are wrong: each must be noticed."""

from types import SimpleNamespace

import pytest

from . import checks
from .driver import open_page


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("console.error('oh')", "console: oh"),
        ("setTimeout(() => { throw Error('oh') })", "error in the page: oh"),
        ("alert('oh')", "dialog: oh"),
        ("document.body.innerHTML = '<img src=\"http://192.0.2.1/x.png\">'", "request to another machine"),
        ("new WebSocket('ws://192.0.2.1/')", "request to another machine"),
        ("document.body.innerHTML = '<img src=x onerror=alert(1)>'", "dialog: 1"),
    ],
)
def test_problems_of_a_page_are_collected(browser, script, problem):
    with open_page(browser) as page:
        page.set_content("<p>a page</p>")
        assert page.problems == []
        page.evaluate(f"() => {{ {script} }}")
        page.wait_for_timeout(300)
        assert any(found.startswith(problem) for found in page.problems), page.problems


def seen(step, *, output=0, picture=None, running=True):
    picture = f"<svg>{step}</svg>" if picture is None else picture
    return {"output": output, "readout": f"ppo: step {step}/9", "picture": picture, "running": running}


@pytest.mark.parametrize(
    ("readouts", "moved"),
    [
        ([seen(1), seen(2), seen(9)], True),
        ([seen(1), seen(9)], False),
        ([seen(1), seen(2), seen(9, running=False)], False),
        ([seen(1), seen(2, output=1), seen(9, output=2)], False),
        ([seen(step, picture="<svg/>") for step in range(9)], False),
        ([seen(step, picture="") for step in range(9)], False),
        ([], False),
    ],
)
def test_only_a_panel_that_moves_while_its_cell_runs_passes(readouts, moved):
    notebook = SimpleNamespace(seen=lambda: readouts)
    if moved:
        checks.panels_move(notebook)
    else:
        with pytest.raises(AssertionError):
            checks.panels_move(notebook)


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_without_a_browser_only_ci_fails(monkeypatch, unavailable, ci, outcome):
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no browser"):
        unavailable("no browser")
