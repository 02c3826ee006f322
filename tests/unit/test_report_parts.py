"""What a report is put together from: training records, data files, and points with intervals as a picture."""

import hashlib
import re

import pytest

from picollm_lite import paths
from picollm_lite.evaluation.data_files import describe_demos, describe_preferences
from picollm_lite.evaluation.metrics import Interval
from picollm_lite.evaluation.training_record import load_settings, save_settings
from picollm_lite.files import write_jsonl
from picollm_lite.ui.interval_chart import interval_chart


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_a_record_comes_back(folder):
    assert load_settings(folder) is None and load_settings(folder / "nowhere") is None
    save_settings(folder, {"beta": 0.3, "loss": "dpo", "layers": [1, 2]}, 61)
    assert load_settings(folder) == ({"beta": 0.3, "loss": "dpo", "layers": [1, 2]}, 61.0)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "training.json"]


def test_a_time_may_be_unknown(folder):
    save_settings(folder, {"beta": 0.3})
    assert load_settings(folder) == ({"beta": 0.3}, None)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "12", True])
def test_a_time_is_a_number_from_0_on(folder, seconds):
    with pytest.raises(
        ValueError, match=r"training.json: expected `settings` by name and `seconds` from 0 on, got \{\}"
    ):
        save_settings(folder, {}, seconds)
    assert load_settings(folder) is None


@pytest.mark.parametrize("value", [float("nan"), {1, 2}])
def test_settings_are_what_json_can_hold(folder, value):
    with pytest.raises(ValueError, match="settings that JSON can hold"):
        save_settings(folder, {"x": value}, 1)


def test_a_record_needs_a_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint \(no config.json\): save the model first"):
        save_settings(tmp_path, {}, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        ("[]", "got None and None"),
        ('{"settings": [], "seconds": 1}', r"got \[\] and 1"),
    ],
)
def test_a_broken_record_is_refused(folder, text, said):
    (folder / "training.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"training.json: .*{said}.*or remove it"):
        load_settings(folder)


def test_paths_inside_the_project_begin_at_its_root(tmp_path, monkeypatch):
    """However they were given, and from wherever; others, and what is no path, stay as they were given."""
    (tmp_path / "work" / "data").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(paths, "ROOT", tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work" / "data")
    assert paths.shown(tmp_path / "work" / "data") == paths.shown("../data") == paths.shown(".") == "data"
    assert paths.shown("../../other") == "../../other" and paths.shown(tmp_path / "other") == str(tmp_path / "other")
    assert paths.shown("someone/model") == "someone/model"  # a hub id, not a folder of data/


def pair(**more):
    return {"prompt": "Why?", "chosen": "It splits words.", "rejected": "Thanks.", **more}


@pytest.mark.parametrize(
    ("more", "labelers"),
    [
        ([{"annotator": "b"}, {"annotator": "a"}, {"annotator": "a"}], {"a": 2, "b": 1}),
        ([{"annotator": "b"}, {}, {"annotator": None}], {"nobody named": 2, "b": 1}),
        ([{}, {}, {"annotator": None}], None),
    ],
)
def test_a_preference_file_by_annotator(tmp_path, more, labelers):
    path = write_jsonl(tmp_path / "p.jsonl", [pair(**row) for row in more])
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert describe_preferences(path) == ("preferences", str(path), 3, sha256, labelers)


def test_a_shipped_file_goes_by_its_place_in_the_project():
    assert describe_preferences(paths.PREFERENCES_TEST).path == "data/preferences_test.jsonl"


def test_a_file_of_demonstrations(tmp_path):
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "It splits words."}]
    got = describe_demos(write_jsonl(tmp_path / "d.jsonl", [{"messages": turns}] * 2))
    assert (got.kind, got.rows, got.labelers) == ("demonstrations", 2, None)
    with pytest.raises(FileNotFoundError, match="no file at"):
        describe_demos(tmp_path / "gone.jsonl")


def test_a_point_stands_where_its_numbers_are():
    """Three points a unit apart in x and y: the second halfway between the others, each bar as long as its interval."""
    points = {
        n: (Interval(x, x - 0.5, x + 0.25), Interval(x, x - 0.5, x + 0.5))
        for n, x in zip("abc", (1, 2, 3), strict=True)
    }
    svg = interval_chart(points, title="gold", xlabel="KL")
    at = [tuple(map(float, place)) for place in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)]
    bars = [
        tuple(map(float, bar)) for bar in re.findall(r'd="M([\d.]+) [\d.]+H([\d.]+)M[\d.]+ ([\d.]+)V([\d.]+)"', svg)
    ]
    across, up = at[1][0] - at[0][0], at[0][1] - at[1][1]  # pixels of a unit
    assert across > 0 and up > 0 and at[2] == pytest.approx((at[1][0] + across, at[1][1] - up), abs=0.2)
    for (x, y), bar in zip(at, bars, strict=True):
        assert bar == pytest.approx((x - across / 2, x + across / 4, y + up / 2, y - up / 2), abs=0.2)
    assert 'aria-label="gold, by KL: a 1.00 at 1.00; b 2.00 at 2.00; c 3.00 at 3.00"' in svg


def test_names_are_cut_and_escaped_and_a_chart_needs_a_point():
    svg = interval_chart({"<b>" + "x" * 30: (Interval(0, 0, 0), Interval(1, 1, 1))}, title="gold", xlabel="KL")
    assert f"&lt;b&gt;{'x' * 16}…</text>" in svg and "<b>" not in svg
    with pytest.raises(ValueError, match="'gold' has no point to draw"):
        interval_chart({}, title="gold", xlabel="KL")
