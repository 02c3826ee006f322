"""The report card on tiny models: its numbers are those of the metrics, its pages are safe, it is all or nothing."""

import re
from copy import deepcopy
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from datasets import Dataset

from picollm_lite import paths
from picollm_lite import report_card as command
from picollm_lite.chat import respond
from picollm_lite.evaluation.alignment_tax import fact_accuracy, perplexity
from picollm_lite.evaluation.audit import exploits, perturbation_table
from picollm_lite.evaluation.data_card import markdown_text
from picollm_lite.evaluation.data_files import DataFile
from picollm_lite.evaluation.diversity import diversity
from picollm_lite.evaluation.drift import drift
from picollm_lite.evaluation.exam import extremes
from picollm_lite.evaluation.features import exploited
from picollm_lite.evaluation.judges import gold_judge, judged_points, judged_win_rate
from picollm_lite.evaluation.length_control import length_controlled_win_rate
from picollm_lite.evaluation.metrics import Interval, WinRate, gold_scores, mean_interval, paired_win_rate
from picollm_lite.evaluation.report import checkpoint_names, report_card
from picollm_lite.evaluation.training_record import TrainingRecord, save_settings
from picollm_lite.files import write_jsonl
from picollm_lite.models import RewardModel, load_policy, save
from picollm_lite.ui.report_page import as_html, as_markdown
from picollm_lite.ui.report_sections import cell, sections, title, verdict
from picollm_lite.world.asks import read, reference_answer
from picollm_lite.world.concepts import load_concepts

PROMPTS = [
    "What is a token?",
    "What is a KV cache?",
    "Give an example of a token.",
    "What is a token, in one sentence?",
]
SPLITS = ["seen", "seen", "seen", "held out"]
ROWS = [
    {"id": str(n), "prompt": prompt, "split": split, "ask": "define"}
    for n, (prompt, split) in enumerate(zip(PROMPTS, SPLITS, strict=True))
]
ASKED = PROMPTS * 2
ROOM, DOCUMENTS, CONCEPTS = 8, ["A token.", "A unit of text."], load_concepts()[:6]
SMALL = {"answers": 2, "device": "cpu", "max_new_tokens": ROOM, "documents": DOCUMENTS, "concepts": CONCEPTS}
HOSTILE = '<script>alert(1)</script> <img src="http://x.example/a.png" onerror=b> | `c` ![d](http://x.example/d.png)'


@pytest.fixture(scope="module")
def folders(taught, tiny_model, tokenizer, tmp_path_factory):
    """A reference, a checkpoint between it and noise, one with another tokenizer, and a reward model."""
    root, model, other = tmp_path_factory.mktemp("checkpoints"), taught(), deepcopy(tokenizer)
    save(model, tokenizer, root / "sft")
    save(RewardModel.from_policy(model, tokenizer).model, tokenizer, root / "reward")
    other.add_tokens(["unheard"])
    save(model, other, root / "other")
    with torch.no_grad():
        for mine, noise in zip(model.parameters(), tiny_model(seed=1).parameters(), strict=True):
            mine.lerp_(noise, 0.2)
    save(model, tokenizer, root / "rl")
    save_settings(root / "rl", {"kl_coef": 0.05, "steps": 3}, 12.4)
    return root


@pytest.fixture(scope="module")
def suite():
    return Dataset.from_list(ROWS)


@pytest.fixture(scope="module")
def card(folders, suite):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "ROOT", folders)  # so that paths are shown from there on
        return report_card([folders / "rl"], ref=folders / "sft", suite=suite, reward=folders / "reward", **SMALL)


@pytest.fixture(scope="module")
def markdown(card):
    return as_markdown(sections(card), "page.html")


def test_numbers_are_those_of_the_metrics(card, folders):
    (policy, tokenizer), (ref, _) = (load_policy(folders / name, device="cpu") for name in ("rl", "sft"))
    said, ref_said = (respond(m, tokenizer, ASKED, seed=0, max_new_tokens=ROOM) for m in (policy, ref))
    sides = ASKED, said.texts, ref_said.texts
    gold, ref_gold = (gold_scores(ASKED, texts).reshape(2, 4).mean(0) for texts in sides[1:])
    proxy = RewardModel.load(folders / "reward", device="cpu").score(ASKED, said.texts).double().view(2, 4).mean(0)
    words = [[len(said.texts[p].split()), len(said.texts[p + 4].split())] for p in range(4)]
    spread = diversity(ASKED, said.texts)
    wanted = {
        "gold": mean_interval(gold),
        "proxy": mean_interval(proxy),
        "words": mean_interval([sum(pair) / 2 for pair in words]),
        "finished": mean_interval(said.rollout.finished.double().view(2, 4).mean(0)),
        "win rate": paired_win_rate(gold, ref_gold),
        "distinct-2": spread.distinct_2,
        "self-similarity": spread.self_similarity,
        "perplexity": perplexity(policy, tokenizer, DOCUMENTS),
        "facts": fact_accuracy(policy, tokenizer, concepts=CONCEPTS),
        "kl": drift(policy, ref, tokenizer, ASKED, max_new_tokens=ROOM).exact,
        "answer by answer": judged_win_rate(gold_judge, *sides)[:3],
        "length-controlled": length_controlled_win_rate(*sides, judged_points(gold_judge, *sides)).controlled,
    }
    (got,) = card.checkpoints
    assert list(got.numbers) == list(wanted)
    for name, value in wanted.items():
        assert tuple(got.numbers[name]) == pytest.approx(tuple(value)), name
    assert got.texts == said.texts and got.gold.tolist() == gold_scores(ASKED, said.texts).tolist()
    assert got.splits["seen"]["gold"] == pytest.approx(mean_interval(gold[:3]))
    assert got.splits["seen"]["win rate"] == pytest.approx(paired_win_rate(gold[:3], ref_gold[:3]))
    assert got.splits["held out"] is None
    assert got.rises.equals(exploited(ASKED, ref_said.texts, said.texts))
    assert {"kl", "win rate", "length-controlled"}.isdisjoint(card.ref.numbers) and card.ref.rises is None


def test_the_audit_is_that_of_perfect_answers(card, folders):
    perfect = [reference_answer(read(prompt)) for prompt in PROMPTS]
    table = perturbation_table(RewardModel.load(folders / "reward", device="cpu").score, PROMPTS, perfect)
    assert card.audit.equals(exploits(table))


def test_pages_show_the_numbers(card, markdown):
    numbers, html = card.checkpoints[0].numbers, as_html(sections(card), title(card))
    for key, spec in (("gold", "+z.2f"), ("kl", "z.2f"), ("win rate", ".0%"), ("facts", ".0%")):
        shown = cell(numbers[key], spec)
        assert f"| {markdown_text(shown)} |" in markdown and f">{shown}</td>" in html
    win = numbers["win rate"]
    assert f"| prompts won, tied, lost | – | {win.wins}, {win.ties}, {win.losses} |" in markdown
    assert re.search(r"\| held out \| 1 \| rl \| – \| – \| – \| – \| – \|", markdown)
    assert "| sft | 0.00 \\[0.00, 0.00\\] |" in markdown  # the reference's point of the frontier
    assert html.count("<svg role=") == 2 and 'aria-label="gold reward, by KL' in html
    assert title(card) == "Report card: rl beside sft" and "temperature 1 |" in markdown


def test_what_is_not_recorded_stays_so(card, markdown):
    assert re.search(r"\| sft \| sft \| 9,\d+ \| not recorded \| not recorded \|", markdown)
    assert re.search(r"\| rl \| rl \| 9,\d+ \| 12 s \| kl\\_coef = 0.05, steps = 3 \|", markdown)
    assert "| reward model | reward |" in markdown and "No data file was named." in markdown
    untimed = replace(card, ref=replace(card.ref, training=TrainingRecord({"epochs": 2}, None)))
    assert re.search(r"\| 9,\d+ \| not recorded \| epochs = 2 \|", as_markdown(sections(untimed), "page.html"))
    files = [DataFile("demonstrations", "d", 4, "a1", None), DataFile("preferences", "p", 4, "b2", {"x": 3, "y": 1})]
    table = as_markdown(sections(replace(card, data=files)), "page.html")
    assert "| demonstrations | d | 4 | not recorded | a1 |" in table
    assert "| preferences | p | 4 | x 75%, y 25% | b2 |" in table


def test_without_a_reward_model_and_with_one_answer(folders, suite):
    got = report_card([folders / "rl"], ref=folders / "sft", suite=suite, **{**SMALL, "answers": 1})
    text = as_markdown(sections(got), "page.html")
    assert "proxy" not in got.ref.numbers and got.audit is None and "distinct-2" not in got.checkpoints[0].numbers
    assert "No reward model was given: there is no proxy." in text and "No reward model was given.\n" in text
    assert "With one answer a prompt, diversity is not measured." in text
    assert "| proxy reward |" not in text and "| distinct-2 |" not in text


def test_samples_are_the_best_the_median_and_the_worst(card, markdown):
    """Of mean golds 0.5, -1, 2 and 1: prompt 2, then 0 (the lower one in the middle), then 1."""
    measured = replace(card.checkpoints[0], columns={"gold": torch.tensor([0.5, -1.0, 2.0, 1.0]).numpy()})
    assert extremes(measured) == {"best": 2, "median": 0, "worst": 1}
    best = extremes(card.checkpoints[0])["best"]
    first = markdown_text(f"[{card.checkpoints[0].gold[best]:+.2f}] {card.checkpoints[0].texts[best].strip()}")
    assert f"| best | {PROMPTS[best]} |" in markdown and f"| {first} |" in markdown


def test_failures_are_what_rose_and_the_worst_answers(card):
    rises = card.checkpoints[0].rises.assign(rise=0.0)
    text = as_markdown(sections(replace(card, checkpoints=[replace(card.checkpoints[0], rises=rises)])), "page.html")
    assert "No feature became more common." in text
    for column, value in {"before": 0.1, "after": 0.6, "rise": 0.5, "rise low": 0.2, "rise high": 0.8}.items():
        rises.loc["flattery", column] = value
    rises["certain"] = True
    gold, texts = card.checkpoints[0].gold.copy(), [f"text {n}" for n in range(8)]
    gold[[6, 1, 3]] = -9, -8, -7
    changed = replace(card.checkpoints[0], rises=rises, gold=gold, texts=texts)
    text = as_markdown(sections(replace(card, checkpoints=[changed])), "page.html")
    assert "| flattery | 10% | 60% | +50% \\[+20%, +80%\\] | yes |" in text
    worst = [f"| {n} | {ASKED[at]} | \\[-{g}.00\\] text {at} |" for n, at, g in ((1, 6, 9), (2, 1, 8), (3, 3, 7))]
    assert "\n".join(worst) in text


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def test_hostile_texts_are_shown_as_they_are(card):
    def planted(measured):
        training = TrainingRecord({HOSTILE: HOSTILE}, 1.0)
        named = replace(measured, name=f"{measured.name} {HOSTILE}", folder=HOSTILE, training=training)
        splits = {f"{name}{HOSTILE}": numbers for name, numbers in measured.splits.items()}
        return replace(named, texts=[HOSTILE] * 8, splits=splits)

    data = [DataFile("preferences", HOSTILE, 1, "a", {HOSTILE: 1})]
    exam = replace(card.exam, prompts=[HOSTILE] * 4)
    bad = replace(card, ref=planted(card.ref), checkpoints=[planted(card.checkpoints[0])], data=data, exam=exam)
    page = Page(as_html(sections(bad), title(bad)))
    assert page.tags.isdisjoint({"script", "img", "link", "iframe", "object", "a", "base", "form"})
    assert page.text.count(HOSTILE) > 20
    text = as_markdown(sections(bad), "page.html")
    assert "<" not in text and "![" not in text and "&lt;script&gt;" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_the_page_refers_to_nothing_outside(card):
    html = as_html(sections(card), title(card))
    page = Page(html)
    assert "http" not in re.sub("http-equiv", "", html) and "url(" not in html and "script" not in html
    assert {name for name, _ in page.attributes}.isdisjoint({"src", "srcset", "href", "xlink:href", "data", "action"})
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert page.tags >= {"svg", "table", "h1", "main"} and "color-scheme:light dark" in html


def test_cells_and_verdicts_by_hand():
    assert cell(Interval(-0.001, -0.2, 0.256), "+z.2f") == "+0.00 [-0.20, +0.26]" and cell(None, ".2f") == "–"
    for low, high, words in ((0.51, 0.9, "better than"), (0.1, 0.49, "worse than"), (0.5, 0.9, "cannot be told apart")):
        assert words in verdict("rl", WinRate(0.5, low, high, 1, 0, 1), "sft")


def test_a_checkpoint_that_fails_is_named(folders, suite):
    ask = {"ref": folders / "sft", "suite": suite, **SMALL}
    with pytest.raises(ValueError, match=r"checkpoint nowhere: no checkpoint at \S+nowhere: check the path"):
        report_card([folders / "nowhere"], **ask)
    with pytest.raises(ValueError, match="checkpoint other: expected one tokenizer for policy and reference"):
        report_card([folders / "other"], **ask)
    with pytest.raises(ValueError, match=r"sft is given twice"):
        report_card([folders / "rl", folders / "rl" / ".." / "sft"], **ask)
    with pytest.raises(ValueError, match="expected at least one checkpoint beside the reference, got none"):
        report_card([], **ask)
    with pytest.raises(ValueError, match="at least 1 answer a prompt, got 0"):
        report_card([folders / "rl"], **{**ask, "answers": 0})
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        report_card([folders / "rl"], **{**ask, "ref": folders / "nowhere"})


@pytest.mark.parametrize(("rows", "count", "different"), [([], 0, 0), (ROWS[:1], 1, 1), (ROWS[:2] + ROWS[:1], 3, 2)])
def test_a_suite_needs_different_prompts(folders, rows, count, different):
    with pytest.raises(ValueError, match=f"none of them twice, got {count}, {different} of them different"):
        report_card([folders / "rl"], ref=folders / "sft", suite=Dataset.from_list(rows), **SMALL)


def test_checkpoints_with_one_name_go_by_their_paths(tmp_path, monkeypatch):
    assert checkpoint_names(["a/sft", "b/ppo/"]) == ["sft", "ppo"]
    assert checkpoint_names(["a/sft", "a/ppo", "b/ppo"]) == ["sft", "a/ppo", "b/ppo"]
    (tmp_path / "c" / "ppo").mkdir(parents=True)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert checkpoint_names([tmp_path / "c" / "ppo", "a/ppo"]) == ["c/ppo", "a/ppo"]


def test_the_command_writes_both_files_or_neither(card, folders, tmp_path, monkeypatch, capsys):
    into = tmp_path / "new"
    where = ["--ref", str(folders / "sft"), "--into", str(into), "--demos", "--preferences"]
    write_jsonl(tmp_path / "suite.jsonl", ROWS)
    (tmp_path / "empty.jsonl").touch()
    arguments = [str(folders / "rl"), *where, "--suite"]
    assert command.main([*arguments, str(tmp_path / "empty.jsonl")]) == 1
    assert f"error: {tmp_path / 'empty.jsonl'} is empty" in capsys.readouterr().err
    assert command.main([*arguments, str(tmp_path / "suite.jsonl"), "--reward", str(folders / "gone")]) == 1
    assert "error: no checkpoint at" in capsys.readouterr().err and not into.exists()
    asked = {}
    monkeypatch.setattr(command, "report_card", lambda *given, **options: asked.update(options, given=given) or card)
    assert command.main([*arguments, str(tmp_path / "suite.jsonl"), "--answers", "7", "--seed", "3"]) == 0
    assert (asked["given"], asked["answers"], asked["seed"], asked["data"]) == (([str(folders / "rl")],), 7, 3, [])
    assert asked["reward"] is None and asked["suite"]["prompt"][:] == PROMPTS
    assert sorted(path.name for path in into.iterdir()) == ["report_card.html", "report_card.md"]
    assert capsys.readouterr().out.splitlines()[-2:] == [str(into / "report_card.md"), str(into / "report_card.html")]
    assert "[report_card.html](report_card.html)" in (into / "report_card.md").read_text("utf-8")
