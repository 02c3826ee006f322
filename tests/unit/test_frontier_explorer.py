"""The frontier widget: what it reads at a KL by hand, what a point says under the mouse, and hostile names."""

import os
import re
from html import unescape

import pytest

from picollm_lite.evaluation.frontier import Point
from picollm_lite.ui.explorers.frontier import frontier

EVIL = '<img src=x onerror=alert(1)> & "$x_$"'
# Gold and proxy of two prompts that are alike, so that every interval is the number itself.
PPO = [Point(0.0, [0, 0], [1, 1], "a = 0"), Point(4.0, [2, 2], [5, 5], "a = 1")]
DPO = [Point(0.0, [0, 0], [1, 1], "a = 0"), Point(1.0, [1, 1], [2, 2], "a = 1")]


def moved(kl, **runs):
    live = frontier(runs)
    live.box.children[0].value = kl
    return live


def titles(live):
    return [unescape(title) for title in re.findall(r"<title>(.*?)</title>", live.picture.value)]


def test_both_are_read_at_one_kl_by_hand():
    """KL 1 is a quarter of the way from 0 to 4: gold 2 / 4, proxy 1 + 4 / 4."""
    assert moved(1.0, PPO=PPO, dpo_two=DPO).view.text.splitlines() == [
        "At a KL of 1.00 nats an answer, with 95 % intervals over prompts:",
        "PPO      gold +0.50 [+0.50, +0.50], proxy +2.00 [+2.00, +2.00]",
        "dpo_two  gold +1.00 [+1.00, +1.00], proxy +2.00 [+2.00, +2.00]",
    ]
    assert "DPO  was not there" in moved(2.0, PPO=PPO, DPO=DPO).view.text


def test_the_slider_begins_where_all_have_been_and_ends_with_the_furthest():
    slider = frontier({"PPO": PPO, "DPO": DPO}).box.children[0]
    assert (slider.value, slider.min, slider.max) == (1.0, 0.0, 4.0)


def test_every_point_tells_its_numbers_under_the_mouse():
    found = titles(frontier({"PPO": PPO}))
    wanted = [
        "PPO, a = 0: KL 0.00, gold +0.00 [+0.00, +0.00], proxy +1.00 [+1.00, +1.00]",
        "PPO, a = 1: KL 4.00, gold +2.00 [+2.00, +2.00], proxy +5.00 [+5.00, +5.00]",
    ]
    assert found == wanted * 2  # in the picture of gold, and in that of the proxy


def test_points_stand_at_the_root_of_their_kl_and_the_mark_moves():
    live = frontier({"PPO": [*PPO[:1], Point(1.0, [1, 1], [2, 2]), PPO[1]]})
    xs = [float(x) for x in re.findall(r'cx="([\d.]+)"', live.picture.value)][:3]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)  # sqrt 0, 1, 2
    live.box.children[0].value = 1.0
    mark = re.search(r'd="M([\d.]+) 24V', live.picture.value)[1]
    assert float(mark) == pytest.approx(xs[1], abs=0.1)
    (line,) = [line for line in live.view.figure().axes[0].lines if len(set(line.get_xdata())) == 1]
    assert line.get_xdata()[0] == 1.0


def test_a_kl_estimate_below_zero_stands_at_the_reference():
    assert 'cx="36.0"' in frontier({"PPO": [Point(-0.01, [0, 0], [0, 0]), PPO[1]]}).picture.value


def test_a_fifth_method_is_gray_and_a_sixth_is_refused():
    runs = {f"m{n}": PPO for n in range(5)}
    assert "#7F7F7F" in frontier(runs).picture.value
    for wrong in ({}, runs | {"m5": PPO}):
        with pytest.raises(ValueError, match=f"expected 1 to 5 runs in one picture, got {len(wrong)}"):
            frontier(wrong)


def test_a_hostile_name_stays_a_text():
    live = frontier({EVIL: PPO})
    assert "<img" not in live.picture.value + live.readout.value
    live.view.figure().savefig(os.devnull, format="png")


def test_the_static_picture_has_both_rewards_and_the_readout():
    figure = frontier({"PPO": PPO, "DPO": DPO}).view.figure()
    assert [ax.get_title() for ax in figure.axes] == ["mean gold", "mean proxy"]
    assert "PPO  gold +0.50" in figure.texts[0].get_text()
