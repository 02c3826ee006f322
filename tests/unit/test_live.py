"""The base of all widgets: its copies in a notebook, escaping, errors shown and raised, redraws by controls."""

import io
import sys

import ipywidgets as widgets
import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image as Pixels
from traitlets.config import Config

from picollm_lite.ui.live import WIDGET_VIEW, Live, View, explore

HOSTILE = "<img src=x onerror=alert(1)> \"'&"


def view(text, markup="<svg></svg>", width=2):
    return View(markup, text, lambda: Figure(figsize=(width, 1)))


def picture_width(bundle):
    with Pixels.open(io.BytesIO(bundle["image/png"])) as pixels:
        return pixels.width


@pytest.fixture
def published(tmp_path, monkeypatch):
    """What IPython's own display sends to a notebook: dicts of data, transient, update."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # the shell puts its own there
    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    publisher = CapturingDisplayPublisher()
    monkeypatch.setattr(shell, "display_pub", publisher)
    yield publisher.outputs
    InteractiveShell.clear_instance()


# The copies in a notebook


def test_a_display_has_a_live_view_a_picture_and_text(published):
    live = Live()
    live.show(view("gold 1.00"))
    display(live)
    (sent,) = published
    data = sent["data"]
    assert set(data) == {WIDGET_VIEW, "image/png", "text/plain"}
    assert data[WIDGET_VIEW] == {"version_major": 2, "version_minor": 0, "model_id": live.box.model_id}
    assert data["text/plain"] == "gold 1.00" and picture_width(data) > 100
    assert sent["metadata"] == {"image/png": {"alt": "gold 1.00"}}


def test_keeping_brings_the_copy_up_to_date_in_its_place(published):
    live = Live()
    live.show(view("first"))
    display(live)
    live.show(view("second", width=4))
    assert len(published) == 1  # a redraw alone sends no pictures
    live.keep()
    first, second = published
    assert second["update"] and second["transient"] == first["transient"] and second["transient"]["display_id"]
    assert second["data"]["text/plain"] == "second" and second["metadata"] == {"image/png": {"alt": "second"}}
    assert picture_width(second["data"]) > 1.5 * picture_width(first["data"])


def test_a_second_display_is_kept_up_to_date_too(published):
    live = Live()
    live.show(view("first"))
    display(live)
    display(live)
    live.keep()
    assert [sent["update"] for sent in published] == [False, False, True]
    assert len({sent["transient"]["display_id"] for sent in published}) == 1


def test_what_was_never_displayed_has_nothing_to_keep(published):
    live = Live()
    live.show(view("first"))
    live.keep()
    assert published == []


def test_nothing_to_display_is_an_error():
    with pytest.raises(ValueError, match="nothing to display yet"):
        Live().bundle()


def test_the_picture_is_drawn_only_when_it_is_asked_for():
    live, drawn = Live(), []
    live.show(View("", "", lambda: drawn.append(1) or Figure()))
    assert drawn == []
    live.bundle()
    assert drawn == [1]


# What it shows


def test_controls_then_picture_then_readout():
    slider = widgets.IntSlider()
    live = Live([slider])
    assert live.box.children == (slider, live.picture, live.readout)


def test_the_readout_is_escaped_and_comes_last():
    live, order = Live(), []
    live.picture.observe(lambda change: order.append("picture"), names="value")
    live.readout.observe(lambda change: order.append("readout"), names="value")
    live.show(view(HOSTILE, markup="<svg>1</svg>"))
    assert order == ["picture", "readout"] and live.picture.value == "<svg>1</svg>"
    assert "<img" not in live.readout.value and "&lt;img src=x onerror=alert(1)&gt;" in live.readout.value
    assert 'role="status"' in live.readout.value
    assert live.bundle()["text/plain"] == HOSTILE  # as it is: nobody reads it as markup


def test_a_readout_that_the_markup_shows_is_for_screen_readers_alone_but_an_error_is_not():
    live = Live()
    live.show(view("all of it")._replace(said_above=True))
    assert "clip-path" in live.readout.value and "all of it" in live.readout.value
    live.show(view("more"))
    assert "clip-path" not in live.readout.value

    def draw():
        raise ValueError("no")

    live.show(view("all of it")._replace(said_above=True))
    with pytest.raises(ValueError, match="no"):
        live.attempt(draw)
    assert "clip-path" not in live.readout.value


def test_an_error_is_shown_in_the_readout_and_raised():
    live = Live()
    live.show(view("before", markup="<svg>before</svg>"))

    def draw():
        raise ValueError(HOSTILE)

    with pytest.raises(ValueError, match="img"):
        live.attempt(draw)
    assert "ValueError: &lt;img src=x" in live.readout.value and "<img" not in live.readout.value
    live.attempt(lambda: view("after"))
    assert "after" in live.readout.value and "ValueError" not in live.readout.value


# Explore


def explored():
    """A slider and a menu, and the values they were drawn with."""
    calls = []

    def draw(beta, kind):
        calls.append((beta, kind))
        if beta > 8:
            raise ValueError("beta is too large")
        return view(f"beta {beta}, {kind}")

    controls = {"beta": widgets.IntSlider(value=1, max=10), "kind": widgets.Dropdown(options=["dpo", "ipo"])}
    return explore(draw, **controls), controls, calls


def test_it_draws_at_once_and_at_each_change_of_any_control():
    live, controls, calls = explored()
    assert "beta 1, dpo" in live.readout.value
    controls["beta"].value = 5
    assert "beta 5, dpo" in live.readout.value
    controls["kind"].value = "ipo"
    assert "beta 5, ipo" in live.readout.value
    controls["kind"].value = "ipo"  # no change
    assert calls == [(1, "dpo"), (5, "dpo"), (5, "ipo")]
    assert live.box.children[:2] == tuple(controls.values())


def test_an_error_in_a_callback_is_shown_and_the_next_change_recovers():
    live, controls, _ = explored()
    with pytest.raises(ValueError, match="beta is too large"):
        controls["beta"].value = 9
    assert "ValueError: beta is too large" in live.readout.value
    controls["beta"].value = 2
    assert "beta 2, dpo" in live.readout.value


def test_an_error_in_the_first_drawing_goes_to_the_cell():
    def draw(beta):
        raise ValueError("no such beta")

    with pytest.raises(ValueError, match="no such beta"):
        explore(draw, beta=widgets.IntSlider())


def test_nothing_touches_pyplot():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    live, controls, _ = explored()
    controls["beta"].value = 3
    live.bundle()
    assert pyplot.get_fignums() == []
