"""Charts as inline SVG: where lines and labels stand, what a screen reader hears, and what hostile input does."""

import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from picollm_lite.ui.plots import BLUE, GREEN, ORANGE, PINK
from picollm_lite.ui.scales import between, number, round_numbers, span, spread, thinned
from picollm_lite.ui.svg import LINE, escaped, line_chart, shade, shorten

NAN, INF = math.nan, math.inf
HOSTILE = "<img src=x onerror=alert(1)> \"'&"
SVG = "{http://www.w3.org/2000/svg}"
NUMBERS = r"-?\d+(?:\.\d+)?"


class Chart:
    """A drawn chart, read back."""

    def __init__(self, markup):
        self.markup, self.root = markup, ET.fromstring(markup)
        self.said = self.root.get("aria-label")
        self.inside = self.root.find(f"{SVG}svg")
        self.texts = list(self.root.iter(f"{SVG}text"))

    @property
    def labels(self):
        """(text, height) of the labels at the lines' ends."""
        ends = [text for text in self.texts if (text.get("font-size"), text.get("text-anchor")) == ("11", "start")]
        return [(text.text, round(float(text.get("y")) - 4, 1)) for text in ends]

    @property
    def axis(self):
        """Left, right and bottom of the plot."""
        (path,) = [p.get("d") for p in self.root.iter(f"{SVG}path") if p.get("stroke-opacity") == "0.5"]
        left, bottom, right = map(float, re.findall(NUMBERS, path))
        return left, right, bottom

    def points(self, color):
        """(x, y) in pixels of the line of that color."""
        (path,) = [p for p in self.inside if p.get("stroke") == color and p.get("stroke-width") == "1.8"]
        return [tuple(map(float, point.split())) for point in path.get("d")[1:].split("L")]

    def dots(self, color):
        paths = [p for p in self.inside if p.get("stroke") == color and p.get("stroke-width") == "5"]
        return sum(path.get("d").count("h0") for path in paths)


def chart(series, x=None, **options):
    x = range(len(next(iter(series.values()), ()))) if x is None else x
    return Chart(line_chart(series, x, **{"title": "reward", **options}))


# Lines and labels


def test_points_stand_where_their_values_are():
    """The plot is 126 pixels high from 24 down: of the range 0 to 10, the value 5 stands at 87."""
    drawn = chart({"gold": [0.0, 5.0, 10.0]}, [2, 3, 6], limits=(0, 10))
    left, right, bottom = drawn.axis
    assert bottom == 150
    assert drawn.points(BLUE) == [(left, 150), (round(left + (right - left) / 4, 1), 87), (right, 24)]
    assert [text.text for text in drawn.texts if text.get("font-size") == "10"][:3] == ["2", None, "6"]


def test_the_newest_values_stand_at_the_ends_of_the_lines():
    drawn = chart({"proxy": [0.0, 1.234], "gold": [1.0, -0.5]}, xlabel="step")
    heights = {"proxy 1.23": drawn.points(BLUE)[-1][1], "gold -0.50": drawn.points(ORANGE)[-1][1]}
    assert dict(drawn.labels) == heights
    assert drawn.said == "reward: proxy 1.23, gold -0.50"
    assert drawn.texts[0].text == "reward"


def test_every_series_has_its_color_and_its_dash():
    drawn = chart({name: [i, i + 1.0] for i, name in enumerate("abcd")})
    paths = [p for p in drawn.inside if p.get("stroke-width") == "1.8"]
    assert [path.get("stroke") for path in paths] == [BLUE, ORANGE, GREEN, PINK]
    assert paths[0].get("stroke-dasharray") == "" and len({path.get("stroke-dasharray") for path in paths}) == 4


def test_missing_points_are_left_out_and_the_last_finite_one_is_current():
    drawn = chart({"loss": [4.0, 3.0, 2.0, 1.0], "val loss": [NAN, 3.5, NAN, INF]}, [1, 2, 3, 4])
    assert len(drawn.points(BLUE)) == 4 and len(drawn.points(ORANGE)) == 1
    assert drawn.points(ORANGE)[0][0] == drawn.points(BLUE)[1][0]
    assert drawn.said == "reward: loss 1.00, val loss 3.50"
    assert dict(drawn.labels).keys() == {"loss 1.00", "val loss 3.50"}


def test_points_at_places_that_are_not_finite_are_left_out():
    drawn = chart({"a": [1.0, 2.0, 3.0]}, [0, NAN, INF])
    assert len(drawn.points(BLUE)) == 1 and drawn.said == "reward: a 1.00"


def test_a_line_without_any_point_keeps_its_color_and_is_told_to_screen_readers():
    drawn = chart({"loss": [NAN, NAN], "gold": [1.0, 2.0]})
    assert drawn.points(ORANGE) and drawn.said == "reward: loss no value, gold 2.00"
    assert [label for label, _ in drawn.labels] == ["gold 2.00"]


def test_a_line_of_few_points_shows_them_and_of_many_does_not():
    assert chart({"a": [1.0, 2.0, 3.0]}).dots(BLUE) == 3
    assert chart({"a": [1.0]}).dots(BLUE) == 1  # alone, a line of no length would not be seen
    assert chart({"a": [1.0] * 100}).dots(BLUE) == 0


@pytest.mark.parametrize(
    "values", [[], [NAN], [NAN, INF, -INF], [3.0], [0.0], [-2.0, -2.0], [1e308, -1e308], [1e299, -1e299]]
)
@pytest.mark.parametrize("marker", [None, 0.5])
def test_there_is_a_picture_whatever_the_values(values, marker):
    drawn = chart({"a": values}, marker=marker)
    assert not re.search(r'="[^"]*\b(nan|inf)\b', drawn.markup)
    finite = [value for value in values if abs(value) < 1e300]
    assert ("no values yet" in [text.text for text in drawn.texts]) == (not finite)
    assert all(24 <= y <= 150 for y in ([y for _, y in drawn.points(BLUE)] if finite else []))


def test_nothing_at_all_is_a_picture_too():
    assert chart({}).said == "reward: "
    assert chart({"a": []}).said == "reward: a no value"


@pytest.mark.parametrize("ys", [[1e-280, 2e-280], [-3e8, 1e8], [-1e299, 1e299], [1e-9, 3e-9], [1e6, 1e6 + 1]])
def test_very_large_and_very_small_values_stand_apart_and_can_be_read(ys):
    drawn = chart({"a": ys})
    below, above = (y for _, y in drawn.points(BLUE))
    assert below - above > 100
    assert all(len(label) < 16 for label, _ in drawn.labels)


@pytest.mark.parametrize("ys", [[1e-300, 2e-300], [5e-324, 5e-324], [1e12, 1e12 + 1], [0.3, 0.1 + 0.2]])
def test_what_differs_by_rounding_errors_only_is_level(ys):
    below, above = (y for _, y in chart({"a": ys}).points(BLUE))
    assert below == above


def test_arrays_and_tensors_do_as_well_as_lists():
    plain = chart({"a": [1.0, NAN, 3.0]}, [0, 1, 2]).markup
    assert chart({"a": np.array([1.0, NAN, 3.0])}, np.arange(3)).markup == plain
    assert chart({"a": torch.tensor([1.0, NAN, 3.0])}, torch.arange(3)).markup == plain


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=4), st.booleans())
def test_labels_never_cover_each_other_and_stay_in_the_picture(ends, narrow):
    series = {f"line {i}": [0.0, end] for i, end in enumerate(ends)}
    drawn = chart(series, width=240 if narrow else 300, height=140 if narrow else 170)
    heights = sorted(height for _, height in drawn.labels)
    assert len(heights) == len(ends)
    assert all(below - above >= LINE - 0.11 for above, below in pairwise(heights))  # places are written to 0.1
    assert heights[0] >= 24 - 0.1 and heights[-1] <= (120 if narrow else 150) + 0.1


def test_a_long_name_is_cut_and_its_value_is_not():
    drawn = chart({"validation accuracy of everything": [0.5, 0.75]}, title="t" * 100)
    ((label, _),) = drawn.labels
    assert re.fullmatch(r"validation.*… 0\.75", label)
    left, right, _ = drawn.axis
    assert right - left > 80
    assert "validation accuracy of everything 0.75" in drawn.said and "t" * 100 in drawn.said
    assert len(drawn.texts[0].text) < 50


def test_what_lies_beyond_given_limits_is_cut_off_at_the_plots_edge():
    drawn = chart({"a": [1.0, 1e9], "b": [0.0, 1.0]}, limits=(0, 2), xlimits=(0, 2))
    (_, start), (_, end) = drawn.points(BLUE)
    assert start == 87 and -3000 < end < -100  # far above, and no number that a browser cannot take
    x, y, width, height = (float(drawn.inside.get(name)) for name in ("x", "y", "width", "height"))
    left, right, bottom = drawn.axis
    assert (x, y, x + width, y + height) == pytest.approx((left - 4, 20, right + 4, bottom + 4), abs=0.11)
    assert drawn.inside.get("overflow") is None  # hidden unless said otherwise
    assert ("a 1.00e+09", 24) in drawn.labels


def test_limits_of_the_x_axis_leave_room_for_the_rest_of_a_run():
    drawn = chart({"a": [1.0, 2.0]}, [1, 2], xlimits=(1, 5))
    left, right, _ = drawn.axis
    assert [x for x, _ in drawn.points(BLUE)] == [left, round(left + (right - left) / 4, 1)]
    x, y = drawn.points(BLUE)[-1]
    assert f'd="M{x} {y}H{right}" stroke="{BLUE}"' in drawn.markup  # from the line to its label


# Many points


def test_thousands_of_points_are_thinned_to_the_width_of_the_picture():
    ys = [math.sin(i / 500) for i in range(20_000)]
    ys[7_777] = 9.0  # a spike of one point
    drawn = chart({"a": ys}, limits=(-1, 9))
    points = drawn.points(BLUE)
    left, right, _ = drawn.axis
    assert 100 < len(points) < 300
    assert (points[0][0], points[-1][0]) == (left, right)
    assert min(y for _, y in points) == 24
    assert drawn.labels[0][0] == f"a {ys[-1]:.2f}"


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=300), st.integers(4, 60))
def test_thinning_keeps_the_ends_and_the_extremes_in_order(ys, count):
    keep = list(thinned(ys, count))
    assert keep[0] == 0 and keep[-1] == len(ys) - 1 and keep == sorted(set(keep))
    assert {min(ys), max(ys)} <= {ys[i] for i in keep}
    assert len(keep) <= count + 3
    if len(ys) <= count:
        assert len(keep) == len(ys)


# Marker and ticks


def test_a_marker_reads_every_line_at_its_place():
    """Between 0 and 10, three tenths of the way."""
    drawn = chart({"loss": [0.0, 10.0], "weight": [1.0, 0.0]}, [0, 1], marker=0.3, xlabel="beta", limits=(0, 10))
    assert drawn.said == "reward: loss 3.00, weight 0.70, at beta 0.30"
    assert dict(drawn.labels).keys() == {"loss 3.00", "weight 0.70"}
    left, right, _ = drawn.axis
    at = left + 0.3 * (right - left)
    loss, weight = drawn.inside.findall(f"{SVG}circle")
    assert [float(loss.get(name)) for name in ("cx", "cy")] == pytest.approx([at, 150 - 0.3 * 126], abs=0.06)
    assert float(weight.get("cy")) == pytest.approx(150 - 0.07 * 126, abs=0.06)
    assert [loss.get("fill"), weight.get("fill")] == [BLUE, ORANGE]
    (line,) = [p.get("d") for p in drawn.inside if p.get("stroke-opacity") == "0.7"]
    x, top, bottom = map(float, re.findall(NUMBERS, line))
    assert (x, top, bottom) == (pytest.approx(at, abs=0.11), 24, 150)


def test_a_marker_beyond_a_line_reads_nothing_there():
    drawn = chart({"short": [1.0, 2.0, NAN], "long": [1.0, 2.0, 3.0]}, [0, 1, 2], marker=1.5)
    assert drawn.said == "reward: short no value, long 2.50, at x 1.50"
    assert len(drawn.inside.findall(f"{SVG}circle")) == 1
    assert [label for label, _ in drawn.labels] == ["short", "long 2.50"]


def test_ticks_stand_on_the_axis_and_those_beyond_it_at_its_ends():
    drawn = chart({"a": [0.0, 1.0]}, [0, 10], ticks=[-100, 5, 11])
    left, right, _ = drawn.axis
    (path,) = [p.get("d") for p in drawn.inside if p.get("stroke-opacity") == "0.6"]
    places = [float(x) for x in re.findall(rf"M({NUMBERS}) ", path)]
    assert places == pytest.approx([left, (left + right) / 2, right], abs=0.11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"marker": NAN}, "line_chart: the marker must be a finite number, got nan"),
        ({"limits": (1.0, 1.0)}, r"line_chart: limits must rise from a finite number to another, got \(1.0, 1.0\)"),
        ({"xlimits": (0.0, INF)}, r"line_chart: limits must rise .* got \(0.0, inf\)"),
        ({"x": [1, 2, 3]}, "line_chart: 'a' has 2 values for 3 places on the x axis"),
    ],
)
def test_bad_input_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        chart({"a": [1.0, 2.0]}, **options)


def test_a_fifth_line_is_refused():
    with pytest.raises(ValueError, match="5 series in one picture: only 4"):
        chart({name: [1.0] for name in "abcde"})


# Safe in a page, readable in every theme


def test_hostile_names_are_text():
    drawn = chart({HOSTILE: [1.0, 2.0]}, title=HOSTILE, xlabel=HOSTILE, width=900)
    assert "<img" not in drawn.markup
    assert drawn.said == f"{HOSTILE}: {HOSTILE} 2.00"
    shown = [text.text for text in drawn.texts]
    assert shown.count(HOSTILE) == 2 and f"{HOSTILE} 2.00" in shown  # title and x axis, label


def test_text_takes_the_color_of_its_page_and_nothing_comes_from_outside():
    drawn = chart({"a": [1.0, 2.0]}, marker=0.5, ticks=[1], xlabel="x")
    assert drawn.root.get("role") == "img"
    assert {text.get("fill") for text in drawn.texts} == {"currentColor"}
    markup = drawn.markup.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"script|href|url\(|http|class=|\sid=", markup)


def test_escaping_is_for_attributes_too():
    assert escaped("<a b=\"c\" d='e'>&") == "&lt;a b=&quot;c&quot; d=&#x27;e&#x27;&gt;&amp;"
    assert escaped(1.5) == "1.5"


def test_shades_part_at_the_middle_and_grow_towards_the_ends():
    assert shade(2.0, -4.0, 2.0) == shade(9.0, -4.0, 2.0) == "rgba(0,114,178,0.45)"
    assert shade(1.0, -4.0, 2.0) == "rgba(0,114,178,0.23)"  # half of 0.45
    assert shade(-4.0, -4.0, 2.0) == "rgba(213,94,0,0.45)"
    assert shade(-1.0, -4.0, 2.0) == "rgba(213,94,0,0.11)"  # a quarter
    assert shade(0.0, -4.0, 2.0).endswith(",0.00)") and shade(NAN, -4.0, 2.0) == "transparent"
    assert shade(1.0, 0.0, 2.0, middle=1.0).endswith(",0.00)")


def test_shortened_text_is_one_line_of_at_most_that_length():
    assert shorten("a \n b", 5) == "a b"
    assert shorten("one two three", 9) == "one two…"
    assert shorten("abc", 3) == "abc" and shorten("abcd", 3) == "ab…" and shorten("", 3) == ""


# Numbers and ranges


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (1.234, "1.23"),
        (-0.5, "-0.50"),
        (0, "0.00"),
        (99_999, "99999.00"),
        (1_234_567.0, "1.23e+06"),
        (0.001, "1e-03"),
        (-1.17e-4, "-1e-04"),
        (0.005, "0.01"),
        (NAN, "n/a"),
        (INF, "inf"),
        (-INF, "-inf"),
    ],
)
def test_numbers_are_written_short(value, written):
    assert number(value) == written


def test_digits_are_asked_for():
    assert number(0.001, 3) == "0.001" and number(12.3, 0) == "12"


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-1.06, 1.06, ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        (0.68, 0.74, ["0.68", "0.70", "0.72", "0.74"]),
        (38.7, 51.2, ["40", "45", "50"]),
        (0, 3e6, ["0e+00", "1e+06", "2e+06", "3e+06"]),
    ],
)
def test_axes_have_round_numbers(low, high, marks):
    found = round_numbers(low, high)
    assert [written for _, written in found] == marks
    assert [value for value, _ in found] == pytest.approx([float(mark) for mark in marks])


@given(st.floats(-1e200, 1e200), st.floats(1e-8, 1e200))
def test_axes_have_two_to_six_different_numbers(low, size):
    low, high = span([low, low + size], 0.06)
    marks = round_numbers(low, high)
    assert 2 <= len(marks) <= 6 and len({written for _, written in marks}) == len(marks)
    assert all(low - 1e-6 * (high - low) <= value <= high + 1e-6 * (high - low) for value, _ in marks)


def test_a_range_is_never_empty():
    assert span([]) == (0, 1)
    assert span([1, 3]) == (1, 3) and span([0, 10], 0.1) == (-1, 11)
    assert span([3.0]) == (3, 4) and span([10.0, 10.0], 0.06) == (9, 11) and span([0.0], 0.06) == (-0.5, 0.5)


def test_places_move_only_where_they_must():
    assert spread([50, 10], 13, 0, 100) == [50, 10]
    assert spread([50, 50], 13, 0, 100) == [50, 63]
    assert spread([98, 99], 13, 0, 100) == [87, 100]  # up from the lower edge
    assert spread([-5], 13, 0, 100) == [0]
    assert spread([], 13, 0, 100) == []


def test_values_between_points():
    assert between([0, 1, 3], [0.0, 10.0, 20.0], 2) == 15
    assert between([0, 1], [0.0, 10.0], 1) == 10 and between([0, 1], [0.0, 10.0], 0) == 0
    assert between([0, 1], [0.0, 10.0], 1.01) is None and between([], [], 0) is None
    assert between([0.1, 0.3], [1.0, 2.0], 0.1 + 0.2) == 2  # 0.30000000000000004
