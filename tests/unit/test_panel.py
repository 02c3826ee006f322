"""The training panel: what it draws and when, how a run ends, and what stays in the saved notebook."""

import io
import math
import re
import signal
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from ipywidgets import VBox
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image as Pixels

from picollm_lite.stages.dpo import DPOStep
from picollm_lite.stages.ppo import PPOStep
from picollm_lite.stages.reward import RewardStep
from picollm_lite.stages.sampling import Sample
from picollm_lite.stages.sft import SFTStep
from picollm_lite.ui import live as live_module
from picollm_lite.ui import panel as panel_module
from picollm_lite.ui import plots
from picollm_lite.ui.live import WIDGET_VIEW
from picollm_lite.ui.panel import TrainingPanel

NAN = math.nan
HOSTILE = "<img src=x onerror=alert(1)> \"'&"
CHARTS = {"reward": ("proxy", "gold"), "KL to SFT, nats an answer": ("kl",), "length, tokens": ("length",)}
SAMPLES = (
    Sample("What is a token?", "A unit of text.", 0.5, 1.75),
    Sample("Why?", "", NAN, -3.0),
    Sample("Be brief.", "What a great question!", 2.5, NAN),
)


def record(kind, step, steps, **numbers):
    """A record of a stage: 0 wherever a test does not care."""
    numbers = dict.fromkeys(kind._fields, 0.0) | numbers | {"step": step, "steps": steps}
    if "samples" in kind._fields:
        numbers["samples"] = numbers["samples"] or ()
    return kind(**numbers)


def ppo(step, steps=40, **numbers):
    return record(PPOStep, step, steps, **numbers)


class Screen:
    """Stands in for IPython's display and its handle, and holds the clock: it stands still unless a test moves it."""

    def __init__(self):
        self.shown, self.display_id, self.now = [], "id", 1000.0

    def __call__(self, data, *, raw, metadata, display_id):
        return self.update(data, raw=raw, metadata=metadata)

    def update(self, data, *, raw, metadata):
        assert raw and metadata == {"image/png": {"alt": data["text/plain"]}}
        self.shown.append(data)
        return self


@pytest.fixture
def screen(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(live_module, "display", screen)
    monkeypatch.setattr(panel_module, "display", lambda panel: panel._ipython_display_())
    monkeypatch.setattr(panel_module, "clock", lambda: screen.now)
    return screen


@pytest.fixture
def watched(screen, monkeypatch):
    """The steps that a panel has drawn."""
    drawn, view_of = [], panel_module.panel_view

    def watch(run):
        drawn.append(run.step)
        return view_of(run)

    monkeypatch.setattr(panel_module, "panel_view", watch)
    return drawn


def readout(panel):
    return re.fullmatch(r"<pre [^>]*>(.*)</pre>", panel.readout.value, flags=re.DOTALL)[1]


def heard(panel):
    """What a screen reader says of each chart."""
    return re.findall(r'<svg [^>]*role="img" aria-label="([^"]*)"', panel.picture.value)


# What it shows


def test_every_chart_says_its_current_values(screen):
    panel = TrainingPanel("ppo", CHARTS)
    panel.update(ppo(1, proxy=-1.0, gold=-2.0, kl=0.0, length=40.0))
    screen.now += 1
    panel.update(ppo(2, proxy=0.51, gold=0.32, kl=1.2, length=44.4))
    assert heard(panel) == [
        "reward: proxy 0.51, gold 0.32",
        "KL to SFT, nats an answer: kl 1.20",
        "length, tokens: length 44.40",
    ]
    for label in ("proxy 0.51", "gold 0.32", "kl 1.20", "length 44.40"):
        assert f">{label}</text>" in panel.picture.value


def test_the_readout_is_one_line_of_step_numbers_and_time(screen):
    """12 of 40 steps took 14 s: the other 28 will take 32.7 s."""
    panel = TrainingPanel("ppo", {"reward": ("proxy", "gold"), "again": ("gold", "kl")})
    assert readout(panel) == "ppo: starting"
    screen.now += 14
    panel.update(ppo(12, proxy=0.51, gold=0.32, kl=1.2))
    assert readout(panel) == "ppo: step 12/40, proxy 0.51, gold 0.32, kl 1.20; 14 s, about 33 s left"
    screen.now += 2
    panel.close()
    screen.now += 5
    assert panel.seconds == 16  # it stands still once the run is over


def test_long_times_are_minutes(screen):
    panel = TrainingPanel("ppo", {"KL": ("kl",)})
    screen.now += 185
    panel.update(ppo(1, steps=2))
    assert readout(panel).endswith("; 3 min 05 s, about 3 min 05 s left")


def test_steps_without_an_evaluation_keep_the_last_number(screen):
    panel = TrainingPanel("sft", {"loss, nats a token": ("loss", "val_loss")})
    for step, val_loss in enumerate([NAN, 3.5, NAN], start=1):
        screen.now += 1
        panel.update(record(SFTStep, step, 9, loss=4.0 - step, val_loss=val_loss))
        if step == 1:
            assert ", loss 3.00, val loss n/a;" in readout(panel)
            assert heard(panel) == ["loss, nats a token: loss 3.00, val loss no value"]
    assert ", loss 1.00, val loss 3.50;" in readout(panel)
    assert heard(panel) == ["loss, nats a token: loss 1.00, val loss 3.50"]


def test_charts_grow_from_the_left_to_the_last_step(screen):
    panel = TrainingPanel("ppo", {"KL": ("kl",)})
    panel.update(ppo(1, kl=1.0))
    assert re.findall(r'font-size="10" fill="currentColor">([^<]*)', panel.picture.value)[:3] == ["1", "step", "40"]


@pytest.mark.parametrize("kind", [SFTStep, RewardStep])
def test_records_without_answers_show_none(screen, kind):
    panel = TrainingPanel("stage", {"loss": ("loss",)})
    panel.update(record(kind, 1, 9, loss=2.0))
    assert heard(panel) == ["loss: loss 2.00"]
    assert "newest answers" not in panel.picture.value + panel.bundle()["text/plain"]


def test_answers_stand_with_their_scores_shaded_by_gold(screen):
    panel = TrainingPanel("ppo", CHARTS)
    panel.update(ppo(1, samples=SAMPLES))
    shown = panel.picture.value
    assert "newest answers, step 1" in shown
    for words in ("What is a token?", "A unit of text.", "(nothing)", "What a great question!"):
        assert f">{words}</div>" in shown
    assert [text for text in re.findall(r">([^<>]+)</div>", shown) if "proxy" in text or text.startswith("gold")] == [
        "proxy +0.50, gold +1.75",
        "gold -3.00",
        "proxy +2.50",
    ]
    colors = re.findall(r"background:([^;]+);", shown)  # 1.75 of 2 to blue, 3 of 4 to orange, unknown
    assert colors == ["rgba(0,114,178,0.39)", "rgba(213,94,0,0.34)", "transparent"]
    assert "color:" not in shown.replace("currentColor", "")  # text has the color of its page


def test_the_gold_range_can_be_another(screen):
    panel = TrainingPanel("ppo", CHARTS, gold_range=(0.0, 10.0))
    panel.update(ppo(1, samples=(Sample("q", "a", 0.0, 10.0),)))
    assert "rgba(0,114,178,0.45)" in panel.picture.value
    assert panel_module.GOLD_RANGE == (-4.0, 2.0)


def test_an_answer_without_any_score_says_so(screen):
    panel = TrainingPanel("dpo", {"margin": ("margin",)})
    panel.update(record(DPOStep, 1, 9, samples=(Sample("q", "a", NAN, NAN),)))
    assert ">not scored</div>" in panel.picture.value


def test_answers_stay_until_newer_ones_come(screen):
    panel = TrainingPanel("dpo", {"margin": ("margin",)})
    newer = (Sample("q", "The newer answer.", NAN, 0.0),)
    seen = []
    for step, samples in enumerate([SAMPLES, (), (), newer], start=1):
        screen.now += 1
        panel.update(record(DPOStep, step, 9, samples=samples))
        seen.append(("A unit of text." in panel.picture.value, "The newer answer." in panel.picture.value))
    assert seen == [(True, False)] * 3 + [(False, True)]
    assert "newest answers, step 4" in panel.picture.value


def test_a_long_answer_is_cut_and_its_full_text_is_a_hover_or_a_tab_away(screen):
    long = " ".join(f"word{i}" for i in range(200))
    panel = TrainingPanel("ppo", CHARTS)
    panel.update(ppo(1, samples=(Sample("Why?", long, 0.0, 0.0), Sample("short", "short", 0.0, 0.0))))
    shown = panel.picture.value
    assert f">{long}<" not in shown and re.search(r">word0 word1 [^<]*…</div>", shown)
    focusable = re.findall(r'<div tabindex="0" role="group" title="([^"]*)" aria-label="([^"]*)"', shown)
    assert focusable == [(f"Why?\n{long}", f"Why?\n{long}")]


def test_only_three_answers_are_shown(screen):
    panel = TrainingPanel("ppo", CHARTS)
    panel.update(ppo(1, samples=tuple(Sample("q", f"answer {i}", 0.0, 0.0) for i in range(5))))
    assert re.findall(r"answer \d", panel.picture.value) == ["answer 0", "answer 1", "answer 2"]


def test_hostile_texts_are_text_wherever_they_stand(screen):
    panel = TrainingPanel(HOSTILE, {HOSTILE: ("kl",)})
    panel.update(ppo(1, samples=(Sample(HOSTILE, HOSTILE * 20, 0.0, 0.0),)))
    for markup in (panel.picture.value, panel.readout.value):
        assert "<img" not in markup
        assert set(re.findall(r"<(\w+)", markup)) <= {"div", "svg", "text", "path", "pre"}
        assert not re.search(r"<[^>]*\sonerror=[^>]*>", re.sub(r'"[^"]*"', '""', markup))
    assert "&lt;img src=x onerror=alert(1)&gt; &quot;&#x27;&amp;" in panel.picture.value
    assert HOSTILE in panel.bundle()["text/plain"]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_any_number_of_charts(screen, count):
    fields = ("proxy", "gold", "kl", "length", "entropy")[:count]
    panel = TrainingPanel("ppo", {f"chart of {field}": (field,) for field in fields})
    panel.update(ppo(1))
    assert len(heard(panel)) == count == len(panel.view.figure().axes)


def test_numbers_that_the_records_lack_can_be_measured(screen):
    panel = TrainingPanel("sft", {"loss": ("loss",), "gold": ("gold",)})
    panel.update(record(SFTStep, 1, 9, loss=3.0), gold=-2.0, samples=SAMPLES)
    screen.now += 1
    panel.update(record(SFTStep, 2, 9, loss=2.0))
    assert heard(panel) == ["loss: loss 2.00", "gold: gold -2.00"]
    assert "newest answers, step 1" in panel.picture.value


def test_a_field_that_is_not_there_is_named(screen):
    panel = TrainingPanel("sft", {"loss": ("loss", "kl")})
    with pytest.raises(ValueError, match=r"^sft: no 'kl' to draw; a record has step, steps, epoch, loss, val_loss"):
        panel.update(record(SFTStep, 1, 9))
    panel.close()
    assert readout(panel) == "sft: stopped before the first step"


# When it draws


def test_it_draws_at_most_ten_times_a_second_and_at_the_last_step(screen, watched):
    """A step each 0.04 s: drawn at the first one and then at every third, 0.12 s later; the 12th is the last."""
    panel = TrainingPanel("ppo", CHARTS)
    for step in range(1, 13):
        screen.now += 0.04
        panel.update(ppo(step, steps=12))
    assert watched == [0, 1, 4, 7, 10, 12]


def test_slow_steps_are_all_drawn(screen, watched):
    panel = TrainingPanel("ppo", CHARTS)
    for step in range(1, 5):
        screen.now += 0.3
        panel.update(ppo(step))
    assert watched == [0, 1, 2, 3, 4]


def test_what_was_not_drawn_was_not_forgotten(screen):
    panel = TrainingPanel("ppo", {"KL": ("kl",)})
    panel.update(ppo(1, kl=0.0))
    panel.update(ppo(2, kl=5.0, samples=SAMPLES))  # too soon to be drawn
    assert "step 1/40" in readout(panel) and "A unit" not in panel.picture.value
    screen.now += 1
    panel.update(ppo(3, kl=1.0))
    (path,) = re.findall(r'd="M([^"]*)"[^>]*stroke-width="1.8"', panel.picture.value)
    assert len(path.split("L")) == 3 and "A unit" in panel.picture.value


# How a run ends


def test_the_last_step_leaves_the_time_that_the_run_took(screen):
    panel = TrainingPanel("ppo", {"KL": ("kl",)})
    panel._ipython_display_()
    for step in (1, 2):
        screen.now += 23.5
        panel.update(ppo(step, steps=2, kl=float(step)))
    screen.now += 100
    assert readout(panel) == "ppo: step 2/2, kl 2.00; took 47 s"
    assert screen.shown[-1]["text/plain"] == "ppo: step 2/2, kl 2.00; took 47 s"
    shown = len(screen.shown)
    panel.close()
    assert readout(panel) == "ppo: step 2/2, kl 2.00; took 47 s" and len(screen.shown) == shown


def test_closing_early_says_where_the_run_stopped(screen):
    panel = TrainingPanel("ppo", {"KL": ("kl",)})
    panel._ipython_display_()
    panel.update(ppo(11, kl=1.0))
    panel.update(ppo(12, kl=2.0))  # too soon to be drawn
    screen.now += 14
    panel.close()
    assert readout(panel) == "ppo: stopped after step 12 of 40, kl 2.00; took 14 s"
    assert heard(panel) == ["KL: kl 2.00"]
    assert screen.shown[-1]["text/plain"] == readout(panel)


def test_a_run_that_goes_on_after_closing_is_running_again(screen):
    panel = TrainingPanel("ppo", {"KL": ("kl",)})
    panel.update(ppo(1, kl=1.0))
    panel.close()
    screen.now += 10
    panel.update(ppo(2, kl=2.0))
    assert readout(panel) == "ppo: step 2/40, kl 2.00; 10 s, about 3 min 10 s left"


def steps_of(count, steps=40, error=None, log=None):
    """A run; raises `error` in the step after `count`. Notes in `log` that it was closed."""
    try:
        for step in range(1, count + 1):
            yield ppo(step, steps=steps, kl=float(step))
        if error is not None:
            raise error
    finally:
        if log is not None:
            log.append("closed")


def test_follow_shows_a_run_from_start_to_end_and_returns_its_records(screen, capsys):
    panel = TrainingPanel("ppo", {"KL": ("kl",)})
    records = panel.follow(steps_of(3, steps=3))
    assert [r.step for r in records] == [1, 2, 3]
    assert readout(panel) == "ppo: step 3/3, kl 3.00; took 0 s"
    assert [data["text/plain"] for data in screen.shown] == ["ppo: starting", readout(panel)]
    assert capsys.readouterr().out == ""


def test_a_run_can_be_cut_short_from_outside(screen, capsys, monkeypatch):
    panel, log = TrainingPanel("ppo", {"KL": ("kl",)}), []
    monkeypatch.setenv("PICOLLM_QUICK", "2")
    assert [r.step for r in panel.follow(steps_of(9, log=log))] == [1, 2]
    assert log == ["closed"] and readout(panel) == "ppo: stopped after step 2 of 40, kl 2.00; took 0 s"
    monkeypatch.setenv("PICOLLM_QUICK", "")
    assert len(panel.follow(steps_of(9))) == 9


def test_an_interrupt_in_a_step_keeps_what_was_learned(screen, capsys):
    panel, log = TrainingPanel("ppo", {"KL": ("kl",)}), []
    records = panel.follow(steps_of(12, error=KeyboardInterrupt(), log=log))
    assert [r.step for r in records] == list(range(1, 13))
    assert capsys.readouterr().out == "stopped after step 12; going on with what was learned\n"
    assert log == ["closed"]
    assert readout(panel) == "ppo: stopped after step 12 of 40, kl 12.00; took 0 s"
    assert screen.shown[-1]["text/plain"] == readout(panel)


@pytest.fixture
def usual():
    """Python's own handler of interrupts, also where these tests run in the background, which ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def interrupted(times: int, log: list):
    """A run of two steps that is interrupted in the middle of its first one."""
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)
    log.append("a whole step")
    yield ppo(1)
    yield ppo(2)


def test_the_first_interrupt_lets_the_step_end(screen, capsys, usual):
    panel, log = TrainingPanel("ppo", {"KL": ("kl",)}), []
    records = panel.follow(interrupted(1, log))
    assert [r.step for r in records] == [1] and log == ["a whole step"]
    waiting, stopped = capsys.readouterr().out.splitlines()
    assert waiting == "stopping after this step; interrupt again to stop at once"
    assert stopped == "stopped after step 1; going on with what was learned"
    assert signal.getsignal(signal.SIGINT) is usual  # interrupts of other cells act at once


def test_the_second_interrupt_stops_at_once(screen, capsys, usual):
    panel, log = TrainingPanel("ppo", {"KL": ("kl",)}), []
    assert panel.follow(interrupted(2, log)) == [] and log == []
    assert capsys.readouterr().out.endswith("stopped after step 0; going on with what was learned\n")
    assert signal.getsignal(signal.SIGINT) is usual


def test_a_run_can_be_followed_in_another_thread(screen):
    """There Python allows no handler of signals."""
    panel = TrainingPanel("ppo", {"KL": ("kl",)})
    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(panel.follow, steps_of(3)).result()) == 3


def test_an_interrupt_outside_a_step_closes_the_run(screen, capsys):
    panel, log = TrainingPanel("ppo", {"KL": ("kl",)}), []

    def measure(record):
        if record.step == 5:
            raise KeyboardInterrupt
        return {}

    run = steps_of(40, log=log)
    records = panel.follow(run, measure)
    assert len(records) == 5 and log == ["closed"]  # now, not when nobody refers to it any longer
    assert capsys.readouterr().out == "stopped after step 5; going on with what was learned\n"
    assert "stopped after step 4 of 40" in readout(panel)  # the fifth was never measured


@pytest.mark.parametrize("where", ["picture", "readout"])
def test_an_interrupt_while_drawing_leaves_a_panel_that_can_be_drawn(screen, monkeypatch, where):
    panel = TrainingPanel("ppo", CHARTS)
    widget, interrupts = getattr(panel, where), [KeyboardInterrupt()]

    def interrupt(change):
        if panel.view.text.startswith("ppo: step 3") and interrupts:
            raise interrupts.pop()

    widget.observe(interrupt, names="value")

    def slowly():
        for step in steps_of(40):
            screen.now += 1
            yield step

    assert len(panel.follow(slowly())) == 3 and not interrupts
    assert "stopped after step 3 of 40" in readout(panel) and heard(panel)[1].endswith("kl 3.00")


def test_an_error_of_the_run_goes_on_to_the_caller_after_the_panel_shows_where(screen, capsys):
    panel, log = TrainingPanel("ppo", {"KL": ("kl",)}), []
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        panel.follow(steps_of(7, error=FloatingPointError("the loss is nan"), log=log))
    assert log == ["closed"] and capsys.readouterr().out == ""
    assert screen.shown[-1]["text/plain"] == "ppo: stopped after step 7 of 40, kl 7.00; took 0 s"


def test_an_error_of_the_panel_closes_the_run(screen):
    panel, log = TrainingPanel("ppo", {"KL": ("nothing",)}), []
    with pytest.raises(ValueError, match="no 'nothing' to draw"):
        panel.follow(steps_of(7, log=log))
    assert log == ["closed"] and readout(panel) == "ppo: stopped before the first step"


def test_an_error_while_closing_the_run_closes_the_panel_all_the_same(screen):
    def run():
        try:
            yield ppo(1)
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("could not clean up")

    panel = TrainingPanel("ppo", {"KL": ("kl",)})
    with pytest.raises(RuntimeError, match="could not clean up"):
        panel.follow(run())
    assert "stopped after step 1 of 40" in readout(panel)


def test_measured_numbers_are_drawn_while_following(screen):
    panel = TrainingPanel("sft", {"gold": ("gold",)})
    run = (record(SFTStep, step, 4) for step in range(1, 5))
    panel.follow(run, lambda r: {"gold": float(r.step), "samples": SAMPLES} if r.step % 2 else {})
    assert heard(panel) == ["gold: gold 3.00"] and "newest answers, step 3" in panel.picture.value


def test_following_again_starts_again(screen):
    panel = TrainingPanel("ppo", {"KL": ("kl",)})
    panel.follow([ppo(step, steps=2, kl=9.0, samples=SAMPLES) for step in (1, 2)])
    screen.now += 50
    assert len(panel.follow([ppo(1, steps=2, kl=1.0)])) == 1
    assert readout(panel) == "ppo: stopped after step 1 of 2, kl 1.00; took 0 s"
    assert "newest answers" not in panel.picture.value


def test_a_run_that_yields_nothing(screen):
    panel = TrainingPanel("ppo", CHARTS)
    assert panel.follow(iter(())) == []
    assert readout(panel) == "ppo: stopped before the first step"


# What stays in the notebook


def test_the_saved_notebook_has_the_last_state_as_picture_and_text(screen):
    panel = TrainingPanel("ppo", CHARTS)
    panel.update(ppo(1, samples=SAMPLES))  # before it is displayed
    panel._ipython_display_()
    panel.update(ppo(2, proxy=0.5, gold=-0.5, kl=1.0, length=30.0))
    panel.close()
    bundle = screen.shown[-1]
    assert set(bundle) == {"image/png", "text/plain"}  # no view of a widget that the saved notebook does not have
    assert bundle["text/plain"].splitlines() == [
        "ppo: stopped after step 2 of 40, proxy 0.50, gold -0.50, kl 1.00, length 30.00; took 0 s",
        "newest answers, step 1:",
        "Q  What is a token?",
        "A  A unit of text.  [proxy +0.50, gold +1.75]",
        "Q  Why?",
        "A  (nothing)  [gold -3.00]",
        "Q  Be brief.",
        "A  What a great question!  [proxy +2.50]",
    ]
    with Pixels.open(io.BytesIO(bundle["image/png"])) as pixels:
        assert pixels.width > 800 and len(pixels.convert("RGB").getcolors(2**24)) > 10


def test_while_a_run_goes_on_the_panel_is_a_widget(screen):
    panel = TrainingPanel("ppo", CHARTS)
    panel._ipython_display_()
    panel.update(ppo(1))
    for bundle in (screen.shown[-1], panel.bundle()):
        assert set(bundle) == {WIDGET_VIEW, "image/png", "text/plain"}
        assert isinstance(panel.box, VBox) and bundle[WIDGET_VIEW]["model_id"] == panel.box.model_id
    assert 'aria-live="off"' in panel.readout.value  # it changes ten times a second


def test_long_lines_of_the_text_are_wrapped_but_the_first(screen):
    panel = TrainingPanel("ppo", {"many": ("proxy", "gold", "kl", "length"), "more": ("entropy", "clip_fraction")})
    panel.update(ppo(1, samples=(Sample("q", "word " * 100, 0.0, 0.0),)))
    first, *rest = panel.bundle()["text/plain"].splitlines()
    assert first.endswith("left") and len(first) > 100
    assert len(rest) > 6 and max(map(len, rest)) <= 100


def test_without_a_notebook_the_panel_is_its_text(monkeypatch, capsys):
    """IPython's own display, which prints the repr here."""
    panel = TrainingPanel("ppo", {"KL": ("kl",)})
    records = panel.follow(steps_of(2, steps=2))
    assert len(records) == 2 and capsys.readouterr().out == "ppo: starting\n"
    assert repr(panel).startswith("ppo: step 2/2, kl 2.00; took ")


@pytest.fixture
def picture(screen):
    """The figure of a run with such samples."""

    def draw(*samples, charts=CHARTS, title="ppo"):
        panel = TrainingPanel(title, charts)
        for step in (1, 2, 3):
            screen.now += 1
            panel.update(ppo(step, proxy=0.1 * step, gold=NAN if step == 3 else -0.1, kl=1.0, samples=samples))
        return panel.view.figure()

    return draw


def test_the_picture_has_the_same_charts_values_and_answers(picture):
    figure = picture(*SAMPLES)
    reward, kl, _ = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == list(CHARTS)
    assert [text.get_text() for text in reward.texts] == ["proxy 0.30", "gold -0.10"]
    assert reward.lines[0].get_xydata()[:, 0].tolist() == [1, 2, 3]
    assert reward.lines[2].get_xydata().tolist() == [[1, -0.1], [2, -0.1]]  # NaN left out
    assert kl.get_xlim() == (1, 40)
    (notes,) = figure.texts
    assert notes.get_text().startswith("ppo: step 3/40, proxy 0.30")
    assert "A  A unit of text.  [proxy +0.50, gold +1.75]" in notes.get_text()


def test_before_the_first_step_the_picture_is_its_text_alone(screen):
    figure = TrainingPanel("ppo", CHARTS).view.figure()
    assert figure.axes == [] and [text.get_text() for text in figure.texts] == ["ppo: starting"]


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, 1e308])
def test_the_picture_leaves_out_what_cannot_be_drawn(screen, wrong):
    panel = TrainingPanel("ppo", {"KL": ("kl",)})
    for step, kl in enumerate([1.0, wrong, 3.0], start=1):
        screen.now += 1
        panel.update(ppo(step, kl=kl))
    (ax,) = panel.view.figure().axes
    assert ax.lines[0].get_xydata().tolist() == [[1, 1], [3, 3]]


def test_nothing_of_the_picture_covers_anything_else(picture):
    figure = picture(*SAMPLES, charts=CHARTS | {"entropy": ("entropy",)})
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [ax.get_tightbbox(renderer) for ax in figure.axes] + [t.get_window_extent(renderer) for t in figure.texts]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_labels_of_lines_that_end_together_stand_apart_in_the_picture(screen):
    panel = TrainingPanel("ppo", {"all": ("proxy", "gold", "kl", "length")})
    panel.update(ppo(1))
    figure = panel.view.figure()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in figure.axes[0].texts]
    assert len(boxes) == 4
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


@pytest.mark.parametrize(
    "text", ["$x_{", r"\frac $\alpha$ {", "\U0001f600 smile", "ॐ \x00 \x07", "a\nb\tc", "x" * 3000, HOSTILE]
)
def test_no_text_stops_the_picture_or_makes_it_warn(picture, text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.show(picture(Sample(text, text, 0.0, 0.0), charts={text[:40]: ("kl",)}, title=text[:40]), alt="x")


def test_a_field_like_a_formula_is_drawn_as_it_is(picture):
    figure = picture(Sample("q", "costs $5 and $6", 0.0, 0.0), charts={"$5 and $6": ("kl",)})
    assert not figure.texts[0].get_parse_math() and not figure.axes[0]._left_title.get_parse_math()


def test_small_charts_refuse_a_fifth_line():
    with pytest.raises(ValueError, match="5 series in one picture"):
        series = {str(i): [1.0] for i in range(5)}
        plots.small_multiples({"chart": series}, x=[1], xlabel="step", xlimits=(1, 2))


def test_panels_leave_no_pyplot_state(screen):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    panel = TrainingPanel("ppo", CHARTS)
    panel.follow(steps_of(3, steps=3))
    assert pyplot.get_fignums() == []
