"""What learners see: claims, pictures, printed answers, the setup line, and where files live."""

import io
import itertools
import math
import os
import platform
import re

import datasets
import matplotlib
import numpy as np
import pytest
import torch
import transformers
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgba
from PIL import Image as Pixels

from picollm_lite import paths
from picollm_lite.evaluation.metrics import Interval, WinRate
from picollm_lite.ui import plots, setup
from picollm_lite.ui.claims import ClaimError, check, measure
from picollm_lite.ui.explorers.answers import explain_gold, show_answers
from picollm_lite.world.asks import read, reference_answer
from picollm_lite.world.concepts import load_concepts
from picollm_lite.world.rubric import score

# Claims


@pytest.mark.parametrize("holds", [True, np.bool_(True), torch.tensor(True)])
def test_a_claim_that_holds_is_one_stable_line(capsys, holds):
    assert check("gold rose", holds) is None
    assert capsys.readouterr().out == "CLAIM ok: gold rose\n"


@pytest.mark.parametrize(("name", "value"), [("PICOLLM_CLAIMS", "report"), ("PICOLLM_QUICK", "3")])
def test_claims_that_fail_are_counted_where_that_is_wanted(capsys, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    check("gold rose", False)
    check("gold fell", True)
    assert capsys.readouterr().out == "CLAIM failed: gold rose\nCLAIM ok: gold fell\n"


def test_a_measured_result_is_one_line(capsys):
    measure("win rate", WinRate(0.7312, 0.65, 0.8, 9, 1, 3))
    measure("mean gold", Interval(-1.0, -1.25, -0.75))
    lines = ["MEASURED win rate: 0.731 [0.650, 0.800]", "MEASURED mean gold: -1.000 [-1.250, -0.750]"]
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize("holds", [False, np.bool_(False), math.nan > 1])
def test_a_claim_that_does_not_hold_stops(capsys, holds):
    with pytest.raises(ClaimError, match=r"^CLAIM failed: gold rose$"):
        check("gold rose", holds)
    assert capsys.readouterr().out == ""
    assert issubclass(ClaimError, AssertionError)


# Pictures

NAMES = ["base", "sft", "reward model", "dpo"]


def interval(middle):
    return Interval(middle, middle - 0.1, middle + 0.1)


def drawn(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def labels(ax):
    yield from ax.texts
    yield from (ax.xaxis.label, ax.yaxis.label)
    yield from [*ax.get_xticklabels(), *ax.get_yticklabels()]
    if ax.get_legend():
        yield from ax.get_legend().get_texts()


def overlaps(figure):
    """Pairs of texts that cover each other; every text must be drawn."""
    renderer = drawn(figure)
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for ax in figure.axes for t in labels(ax) if t.get_text()]
    assert all(box.width > 0 and box.height > 0 for _, box in boxes)
    return [(a, b) for (a, one), (b, two) in itertools.combinations(boxes, 2) if one.overlaps(two)]


def curves_of(ends):
    return plots.curves(
        {name: [3.0, end] for name, end in zip(NAMES, ends, strict=False)}, x=[0, 10], xlabel="step", ylabel="loss"
    )


FIGURES = {
    "curves": lambda: curves_of([1.0, 2.0]),
    "intervals": lambda: plots.intervals({"all": {"base": interval(-1.0), "sft": interval(0.5)}}, ylabel="gold"),
    "histogram": lambda: plots.histogram({"base": [0, 1, 1], "sft": [2, 3]}, xlabel="gold"),
}
each_figure = pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES.keys())


@each_figure
def test_a_picture_is_png_bytes_with_alternative_text(make):
    image = plots.show(make(), alt="Both lines fall")
    assert image.data.startswith(b"\x89PNG\r\n\x1a\n")
    with Pixels.open(io.BytesIO(image.data)) as pixels:
        assert min(pixels.size) > 200 and len(pixels.convert("RGB").getcolors(2**24)) > 10  # not blank
        assert "Software" not in pixels.info
    data, metadata = image._repr_mimebundle_()
    assert set(data) == {"image/png"}
    assert metadata["image/png"]["alt"] == "Both lines fall"
    assert plots.show(make(), alt="Both lines fall").data == image.data  # the same bytes every time


@each_figure
def test_pictures_leave_no_global_state(make):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    settings = dict(matplotlib.rcParams)
    plots.show(make(), alt="x")
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == settings


@each_figure
def test_axes_say_what_they_show(make):
    (ax,) = make().axes
    assert ax.get_ylabel() in ("loss", "gold", "share")
    assert ax.get_xlabel() in ("step", "gold") or [t.get_text() for t in ax.get_xticklabels()] == ["all"]


@pytest.mark.parametrize("ends", [(1, 1), (1, 1, 1, 1), (1, 1.01, 1.02, 5), (0, 1, 1.01, 5), (3, 3, 3, 2.99), (2, 1)])
def test_names_of_lines_never_overlap(ends):
    figure = curves_of(ends)
    assert overlaps(figure) == []
    (ax,) = figure.axes
    assert {text.get_text() for text in ax.texts} == set(NAMES[: len(ends)])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("level", [-2.0, 0.0, 1.5])
@pytest.mark.parametrize("rise", [0.0, 0.1, 0.5])
def test_values_and_names_of_points_never_overlap(count, groups, level, rise):
    values = {name: interval(level + rise * i) for i, name in enumerate(NAMES[:count])}
    figure = plots.intervals({f"held out {i}": values for i in range(groups)}, ylabel="mean gold")
    assert overlaps(figure) == []


def test_lines_hold_their_points_without_nan_and_a_name_of_their_color():
    nan = math.nan
    series = {"train": [4.0, 3.0, 2.0], "validation": [nan, 3.5, nan], "none": [nan, nan, nan]}
    (ax,) = plots.curves(series, x=[1, 2, 3], xlabel="step", ylabel="loss").axes
    train, validation, none = ax.lines
    assert train.get_xydata().tolist() == [[1, 4], [2, 3], [3, 2]]
    assert validation.get_xydata().tolist() == [[2, 3.5]]
    assert len(none.get_xydata()) == 0  # a run that was stopped before its first evaluation
    assert {text.get_text(): text.get_color() for text in ax.texts} == {
        "train": train.get_color(),
        "validation": validation.get_color(),
    }
    assert [text.xy for text in ax.texts if text.get_text() == "train"] == [(3, 2.0)]
    assert train.get_linestyle() != validation.get_linestyle()


def test_points_stand_at_their_values_with_their_intervals():
    groups = {"seen": {"base": Interval(-1.0, -1.2, -0.7), "sft": Interval(0.5, 0.25, 1.0)}}
    (ax,) = plots.intervals(groups, ylabel="gold").axes
    (base, sft) = (container.lines[0] for container in ax.containers)
    assert [base.get_ydata().tolist(), sft.get_ydata().tolist()] == [[-1.0], [0.5]]
    assert base.get_xdata()[0] < sft.get_xdata()[0]
    assert base.get_marker() != sft.get_marker()
    ends = [segment[:, 1].tolist() for lines in ax.collections for segment in lines.get_segments()]
    assert np.allclose(ends, [[-1.2, -0.7], [0.25, 1.0]])
    assert [text.get_text() for text in ax.texts] == ["-1.00", "+0.50"]
    assert ax.texts[0].xy[1] == -0.7 and ax.texts[1].xy[1] == 1.0  # above the interval, not on it
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["base", "sft"]
    assert ax.get_xlabel() == ""
    (ax,) = plots.intervals(groups, ylabel="win rate", xlabel="split", number=".1f").axes
    assert ax.get_xlabel() == "split"
    assert [text.get_text() for text in ax.texts] == ["-1.0", "0.5"]


def test_points_and_the_curve_through_them():
    points = {"weak": ([0.0, 1.0], [2.0, 3.0]), "strong": ([0.5], [1.0])}
    (ax,) = plots.scatter_with_curve(points, curve=([0, 1], [2, 2]), xlabel="KL", ylabel="gold").axes
    weak, strong, curve = ax.lines
    assert weak.get_xydata().tolist() == [[0.0, 2.0], [1.0, 3.0]] and strong.get_xydata().tolist() == [[0.5, 1.0]]
    assert curve.get_xydata().tolist() == [[0.0, 2.0], [1.0, 2.0]] and curve.get_linestyle() == "-"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["weak", "strong", "fit"]
    assert weak.get_marker() != strong.get_marker() and {weak.get_linestyle(), strong.get_linestyle()} == {"None"}


def test_histograms_share_their_bins():
    series = {"base": [0.0, 0.0, 1.0], "sft": [4.0]}
    (ax,) = plots.histogram(series, xlabel="gold", bins=4).axes
    base, sft = ax.patches
    assert ax.get_legend_handles_labels()[1] == ["base", "sft"]
    for patch, shares in ((base, [2 / 3, 1 / 3, 0, 0]), (sft, [0, 0, 0, 1])):
        corners = patch.get_xy()
        assert (corners[:, 0].min(), corners[:, 0].max()) == (0.0, 4.0)
        assert np.allclose(corners[1:9:2], np.column_stack([range(4), shares]))  # the upper left corner of each bin
    assert to_rgba(base.get_edgecolor()) != to_rgba(sft.get_edgecolor())
    assert base.get_linestyle() != sft.get_linestyle()


def test_colors_are_those_that_the_color_blind_tell_apart():
    assert [to_hex(color).upper() for color, _ in plots.STYLES] == ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]
    assert len({dash for _, dash in plots.STYLES}) == 4


def test_a_fifth_series_is_refused_and_not_left_out():
    five = {str(i): [1.0, 2.0] for i in range(5)}
    message = "5 series in one picture: only 4 can be told apart, draw two pictures"
    with pytest.raises(ValueError, match=message):
        plots.curves(five, x=[0, 1], xlabel="step", ylabel="loss")
    with pytest.raises(ValueError, match=message):
        plots.histogram(five, xlabel="gold")
    with pytest.raises(ValueError, match=message):
        plots.intervals({"all": {name: interval(1.0) for name in five}}, ylabel="gold")


# Answers, printed

QUESTION = "What is a KV cache?"


def test_answers_stand_side_by_side_with_their_gold(capsys):
    perfect = reference_answer(read(QUESTION))
    show_answers(QUESTION, {"base": "", "sft": perfect})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Q  {QUESTION}"
    assert lines[2] == "base         gold -3.00   correct +0.00  asked +0.00  concise +0.00  clean +0.00"
    assert lines[3] == "    (nothing)"
    assert lines[5] == "sft          gold +2.00   correct +1.00  asked +1.00  concise +1.00  clean +1.00"
    assert " ".join(line.strip() for line in lines[6:]) == perfect
    assert max(map(len, lines)) <= 100


def test_a_long_answer_is_wrapped_and_control_characters_do_no_harm(capsys):
    show_answers(QUESTION, {"sft": "A KV cache <b>is</b> {x} %s. " * 20})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 6 and max(map(len, lines)) <= 100
    assert "<b>is</b> {x} %s." in lines[3]


def other_facts():
    return next(concept for concept in load_concepts() if concept.id != "kv_cache").facts


def test_every_sentence_is_explained(capsys):
    fact = reference_answer(read(QUESTION))
    assert re.fullmatch(r"[^.!?]+\.", fact)  # one sentence
    text = f"What a great question! {fact} {fact} {other_facts()['definition']} Zebras graze. I hope this helps!"
    explain_gold(QUESTION, text)
    *sentences, last = capsys.readouterr().out.splitlines()
    verdicts = [line.partition("|")[0].strip() for line in sentences]
    assert verdicts[:3] == ["flattery", "definition of kv_cache, credit 1.00", "said before"]
    assert re.fullmatch(r"off topic: definition of (?!kv_cache)\w+", verdicts[3])
    assert verdicts[4:] == ["a claim that is in no fact", "filler"]
    assert [line.partition("| ")[2] for line in sentences][1] == fact
    assert last.startswith(f"gold {score(QUESTION, text).total:+.2f}   correct ")


@pytest.mark.parametrize("show", [lambda q: show_answers(q, {"sft": "Yes."}), lambda q: explain_gold(q, "Yes.")])
def test_a_question_about_nothing_in_the_bank_says_so(show):
    with pytest.raises(ValueError, match="the question names no concept of the bank"):
        show("What is a zebra?")


# The setup line


@pytest.fixture
def torch_as_it_was():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    transformers.utils.logging.enable_progress_bar()
    datasets.enable_progress_bars()


@pytest.mark.parametrize(
    ("cores", "chosen", "threads"), [(8, "", 2), (2, "", 2), (1, "", 1), (None, "", 1), (8, "1", 1), (2, "3", 2)]
)
def test_start_fixes_seed_and_threads_and_says_what_the_machine_is(
    torch_as_it_was, monkeypatch, capsys, cores, chosen, threads
):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setenv("PICOLLM_THREADS", chosen)
    monkeypatch.setattr(setup, "best_device", lambda: "mps")
    assert setup.start(7) == "mps"
    assert capsys.readouterr().out == (
        f"device mps, {threads} CPU threads | Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}\n"
    )
    assert torch.get_num_threads() == threads
    drawn_after = torch.rand(3)
    assert torch.equal(drawn_after, torch.rand(3, generator=torch.Generator().manual_seed(7)))
    assert not transformers.utils.logging.is_progress_bar_enabled()
    assert datasets.are_progress_bars_disabled()


# Where files live


def test_outputs_stand_beside_data_unless_the_environment_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("PICOLLM_OUTPUTS", raising=False)
    assert paths.outputs() == paths.ROOT / "outputs" == paths.DATA.parent / "outputs"
    monkeypatch.setenv("PICOLLM_OUTPUTS", "")
    assert paths.outputs() == paths.ROOT / "outputs"
    monkeypatch.setenv("PICOLLM_OUTPUTS", str(tmp_path))
    assert paths.outputs() == tmp_path


def test_a_learners_own_checkpoint_goes_before_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PICOLLM_OUTPUTS", str(tmp_path))
    own, shipped = tmp_path / "checkpoints" / "sft", paths.CHECKPOINTS / "sft"
    assert paths.checkpoint("sft") == shipped
    own.mkdir(parents=True)
    assert paths.checkpoint("sft") == shipped  # an empty folder is no checkpoint
    (own / "config.json").write_text("{}")
    assert paths.checkpoint("sft") == own
    assert paths.checkpoint("base") == paths.CHECKPOINTS / "base"


def test_shipped_files_are_where_paths_says(root):
    assert root == paths.ROOT
    assert root / "data" / "checkpoints" == paths.CHECKPOINTS
    assert paths.CONCEPTS.is_file() and paths.DEMOS.is_file() and paths.SUITE.is_file()
