"""Claims and numbers collected over seeds, on a sample notebook in a temporary folder."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from picollm_lite import course, results
from picollm_lite.files import read_jsonl

SEEDED = """SEED = 0
print("SEED is", SEED)"""
CLAIMS = """from picollm_lite.evaluation.metrics import Interval
from picollm_lite.ui.claims import check, measure
measure("seed: twice", Interval(2.0 * SEED, SEED - 0.5, SEED + 0.5))
check("the seed is even", SEED % 2 == 0)
check("the seed is small", SEED < 10)"""


@pytest.fixture
def sample(tmp_path, monkeypatch):
    monkeypatch.setattr(course, "NOTEBOOKS", tmp_path)
    monkeypatch.setenv("PICOLLM_OUTPUTS", str(tmp_path / "outputs"))
    nb = new_notebook(cells=[new_code_cell(SEEDED), new_code_cell(CLAIMS)])
    nbformat.write(nb, tmp_path / "01_sample.ipynb")
    return tmp_path


def test_every_seed_is_run_and_counted(sample, capfd):
    before = (sample / "01_sample.ipynb").read_bytes()
    assert results.main(["--seeds", "2", "3", "--into", str(sample / "results.md")]) == 0
    table = (sample / "results.md").read_text()
    assert "| 01 | seed: twice | 4.00 [1.50, 2.50] | 6.00 [2.50, 3.50] |" in table
    assert "| 01 | the seed is even | 1 of 2 | ok | failed |" in table
    assert "| 01 | the seed is small | 2 of 2 | ok | ok |" in table
    assert "seed 3: 01_sample, 1 of 2 claims hold\n  failed: the seed is even" in capfd.readouterr().out
    assert (sample / "01_sample.ipynb").read_bytes() == before


def test_a_notebook_that_fails_loses_nothing_of_what_came_before(sample, capfd):
    cells = [new_code_cell(source) for source in (SEEDED, CLAIMS, "assert SEED != 3", 'check("got to the end", True)')]
    cells[3].source = "from picollm_lite.ui.claims import check\n" + cells[3].source
    nbformat.write(new_notebook(cells=cells), sample / "01_sample.ipynb")
    assert results.main(["--seeds", "3", "4", "--into", str(sample / "results.md")]) == 0
    table = (sample / "results.md").read_text()
    assert "| 01 | the seed is small | 2 of 2 | ok | ok |" in table
    assert "| 01 | got to the end | 1 of 2 | not run | ok |" in table
    assert "seed 3: 01_sample: code cell 3 failed: assert SEED != 3" in capfd.readouterr().out


@pytest.mark.parametrize("sources", [["seed = 0"], ["SEED = 0", "SEED = 1"], ["SEED = 0\nSEED = 1"]])
def test_a_notebook_sets_its_seed_in_one_line(sources):
    nb = new_notebook(cells=[new_code_cell(source) for source in sources])
    with pytest.raises(ValueError, match="02_x: expected one line `SEED = <number>`"):
        results.set_seed(nb, 7, "02_x")


def test_what_a_seed_did_not_reach_is_said():
    claims, measured = results.Outcome({"gold falls": "ok"}, {}), results.Outcome({}, {"win rate": "0.7"})
    table = results.as_markdown({0: {"04_ppo": claims}, 1: {"04_ppo": measured}})
    assert "| 04 | gold falls | 1 of 2 | ok | not run |" in table
    assert "| 04 | win rate | not run | 0.7 |" in table


LEAVES = """from picollm_lite.paths import outputs
(outputs() / "left").write_text(str(SEED))"""
READS = """from picollm_lite.paths import outputs
from picollm_lite.ui.claims import check
check("what was left is this seed's", (outputs() / "left").read_text() == str(SEED))"""


def test_a_notebook_run_alone_goes_on_from_what_the_others_left(sample):
    into = ["--seeds", "3", "4", "--into", str(sample / "results.md")]
    for name, sources in {"01_sample": (SEEDED, CLAIMS, LEAVES), "02_next": (SEEDED, READS)}.items():
        nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), sample / f"{name}.ipynb")
    results.main([*into, "--only", "01"])
    assert "02" not in (sample / "results.md").read_text().split("## Claims")[1]
    results.main([*into, "--only", "02"])
    table = (sample / "results.md").read_text()
    assert "| 02 | what was left is this seed's | 2 of 2 | ok | ok |" in table
    assert "| 01 | the seed is even | 1 of 2 | failed | ok |" in table


def test_a_whole_run_starts_from_nothing(sample):
    into = ["--seeds", "3", "--into", str(sample / "results.md")]
    nbformat.write(new_notebook(cells=[new_code_cell(SEEDED), new_code_cell(LEAVES)]), sample / "02_next.ipynb")
    results.main(into)
    (sample / "02_next.ipynb").unlink()
    results.main(into)
    assert not (sample / "outputs/results/seed-3/left").exists()


GOLD = """from picollm_lite.files import write_jsonl
from picollm_lite.paths import outputs
rows = [{"model": "SFT", "gold": [SEED, 0.5]}, {"model": "PPO", "gold": [1, SEED]}]
write_jsonl(outputs() / "suite_gold.jsonl", rows)"""


def test_the_gold_of_every_seed_is_collected(sample):
    nb = new_notebook(cells=[new_code_cell(SEEDED), new_code_cell(GOLD)])
    nbformat.write(nb, sample / "07_last.ipynb")
    results.main(["--seeds", "3", "4", "--into", str(sample / "results.md"), "--only", "07"])
    rows = [row for row, _ in read_jsonl(sample / "seeds.jsonl")]
    assert [(row["seed"], row["model"]) for row in rows] == [(3, "SFT"), (3, "PPO"), (4, "SFT"), (4, "PPO")]
    assert rows[-1]["gold"] == [1, 4]
