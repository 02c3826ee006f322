"""Every reference, every known mistake, what the checker says about them, and what a notebook goes on with."""

import ast
import itertools
import re
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from picollm_lite.chat import encode_conversation
from picollm_lite.kernels.logprobs import token_logprobs
from picollm_lite.kernels.losses import sft_loss
from picollm_lite.ui import exercises
from picollm_lite.ui.answers import sft as sft_answers
from picollm_lite.ui.answers import start as start_answers
from picollm_lite.ui.exercises import EXERCISES, exercise, show_solution
from picollm_lite.ui.grading import Exercise, same
from picollm_lite.world.rubric import OFFSET, WEIGHTS, score

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9]*.py"))
MISTAKES = [(name, cause) for name, item in EXERCISES.items() for cause in item.mistakes]
each_exercise = pytest.mark.parametrize("item", EXERCISES.values(), ids=EXERCISES.keys())
each_mistake = pytest.mark.parametrize(("name", "cause"), MISTAKES, ids=[f"{n}-{c[:20]}" for n, c in MISTAKES])


@pytest.fixture(autouse=True)
def no_solving(monkeypatch):
    monkeypatch.delenv("PICOLLM_SOLVE", raising=False)


# Every exercise of the course.


@each_exercise
def test_the_reference_is_right(item):
    assert item.judge(item.reference) == (True, "right")


@each_exercise
def test_an_exercise_says_how_hard_it_is(item):
    assert item.difficulty in (1, 2, 3) and 1 <= item.minutes <= 30
    assert len(item.mistakes) >= 4
    assert item.reference.__doc__  # show_solution shows it
    assert all(not cause.endswith(".") and len(cause) <= 100 for cause in item.mistakes)


@each_mistake
def test_a_known_mistake_is_rejected_and_named(name, cause):
    item = EXERCISES[name]
    verdict = item.judge(item.mistakes[cause])
    assert not verdict.right
    assert verdict.message.splitlines()[-1] == f"  likely cause: {cause}"
    assert re.match(r"case \d is wrong\n  given  .+\n  got    .+\n  wanted .+\n", verdict.message)


@each_exercise
def test_no_two_mistakes_give_the_same_results(item):
    """Else the learner would be told the first one's cause for both."""
    results = {cause: [mistake(*case) for case in item.cases] for cause, mistake in item.mistakes.items()}
    for (cause, one), (other, two) in itertools.combinations(results.items(), 2):
        assert not all(same(a, b) for a, b in zip(one, two, strict=True)), f"{cause!r} and {other!r} look the same"


@each_exercise
def test_every_case_rejects_at_least_half_of_the_mistakes(item):
    for case in item.cases:
        wrong = [not same(mistake(*case), item.reference(*case)) for mistake in item.mistakes.values()]
        assert sum(wrong) >= len(wrong) / 2


# The references against what they stand for.


def bools(digits):
    return [digit == "1" for digit in digits]


def test_response_mask_by_hand_and_by_template(tokenizer):
    # bos, user start, x, user end, assistant start, y, z, end, user start, x, user end, assistant start, y, end
    tokens = [0, 1, 21, 2, 3, 31, 32, 4, 1, 22, 2, 3, 33, 4]
    assert sft_answers.response_mask(tokens, 3, 4) == bools("00000111000011")
    talk = [{"role": role, "content": "Why is it?"} for role in ("system", "user", "assistant", "user", "assistant")]
    encoded = encode_conversation(tokenizer, talk)
    start, end = tokenizer.convert_tokens_to_ids(["<|assistant_start|>", "<|assistant_end|>"])
    assert sft_answers.response_mask(encoded.tokens, start, end) == encoded.response_mask


def test_next_token_loss_by_hand_and_by_kernel():
    # p = 1/2, 1/4, 1/4 at every position; the targets are 0 (not in the mask), 1 and 0: -log 1/4 and -log 1/2
    logits = torch.tensor([0.5, 0.25, 0.25]).log().expand(4, 3)
    tokens, mask = torch.tensor([2, 0, 1, 0]), torch.tensor(bools("0011"))
    assert_close(sft_answers.next_token_loss(logits, tokens, mask), torch.tensor(1.5).mul(torch.tensor(2.0).log()))
    for logits, tokens, mask in EXERCISES["next_token_loss"].cases:
        logp = token_logprobs(logits[None, :-1], tokens[None, 1:])
        assert_close(sft_answers.next_token_loss(logits, tokens, mask), sft_loss(logp, mask[None, 1:]))


def test_without_end_by_hand():
    assert sft_answers.without_end([0, 3, 31, 4, 1, 4, 3, 32, 4], bools("001100011"), 4) == bools("001000010")


def test_gold_total_is_the_rubric():
    text = "What a great question! A KV cache stores things."
    total, criteria = score("What is a KV cache?", text)
    assert start_answers.gold_total(criteria) == pytest.approx(total)
    assert (WEIGHTS, OFFSET) == ({"correct": 2, "asked": 1, "concise": 1, "clean": 1}, -3)
    assert start_answers.gold_total({"correct": 0.5, "asked": 1.0, "concise": 0.25, "clean": -0.5}) == -1.25


def test_who_wrote_it_on_its_answers():
    answers = EXERCISES["who_wrote_it"].cases[0][0]
    assert start_answers.who_wrote_it(answers) == [*["sft", "base"] * 3, "base"]


# The checker, on an exercise of our own.


def double(x):
    """Twice x."""
    return 2 * x


def toy(reference=double, cases=((1.0,), (3.0,)), mistakes=None):
    mistakes = {"squared": lambda x: x**2, "added": lambda x: x + 2} if mistakes is None else mistakes
    return Exercise("double", reference, cases, mistakes, difficulty=1, minutes=1)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(EXERCISES, "double", toy())


def test_the_first_wrong_case_is_shown():
    right, message = toy().judge(lambda x: x + 1)
    assert not right
    assert message.splitlines() == ["case 2 is wrong", "  given  3", "  got    4", "  wanted 6"]


def test_a_cause_is_told_only_if_every_case_agrees_with_it():
    assert toy().judge(lambda x: x**2).message.endswith("wanted 2\n  likely cause: squared")
    assert toy().judge(lambda x: x + 2).message.endswith("likely cause: added")
    assert "likely cause" not in toy().judge(lambda x: x**2 if x == 1 else 0.0).message


def test_what_an_attempt_raises_is_told():
    assert toy().judge(lambda x: 1 / (x - 3)).message.startswith("case 1 is wrong")
    assert toy().judge(lambda x: 2.0 if x == 1 else 1 / 0).message == (
        "case 2 raised ZeroDivisionError: division by zero\n  given 3"
    )
    assert "case 1 raised TypeError" in toy().judge(lambda: 2).message
    assert "case 1 raised RecursionError" in toy().judge(endless).message


def endless(x):
    return endless(x)


def unanswered(x):
    raise NotImplementedError


def test_an_empty_exercise_is_no_mistake():
    assert toy().judge(unanswered) == (False, "not answered yet")


def interrupted(x):
    raise KeyboardInterrupt


def test_the_stop_button_still_works():
    with pytest.raises(KeyboardInterrupt):
        toy().judge(interrupted)


def take_last(numbers):
    """All but the last, changing the list that was given."""
    numbers.pop()
    return numbers


def test_an_attempt_that_writes_into_its_arguments_changes_no_case():
    """`mask[i] = False` is a natural way to solve an exercise; it must not rewrite what others are judged on."""
    item = toy(lambda numbers: numbers[:-1], [([1, 2, 3],)], {"nothing was taken out": lambda numbers: list(numbers)})
    for _ in range(2):
        assert item.judge(take_last).right
        assert item.judge(lambda numbers: numbers).message.endswith("likely cause: nothing was taken out")
        assert "given  [1, 2, 3]\n" in item.judge(lambda numbers: numbers.clear()).message
    assert item.cases == [([1, 2, 3],)]


ONE = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        (1.00001, 1.0),
        (1, 1.0),
        (ONE, 1.0),
        (ONE.double(), ONE),
        (torch.tensor([1, 2]), torch.tensor([1, 2], dtype=torch.int32)),
        (torch.tensor(float("nan")), torch.tensor(float("nan"))),
        ((True, False), [True, False]),
        ([1.00001, 2], (1.0, 2.0)),
        ("sft", "sft"),
    ],
)
def test_the_same(got, wanted):
    assert same(got, wanted) is True


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        (1.001, 1.0),
        (None, 1.0),
        ("1.0", 1.0),
        (1.0, ONE),
        (ONE[None], ONE),
        (torch.ones(2, 1), torch.ones(2)),
        (torch.tensor(1), ONE),
        (torch.tensor([1, 0]), torch.tensor([True, False])),
        (torch.tensor(0.0), torch.tensor(float("nan"))),
        ([1, 0], [True, False]),
        (1, True),
        (torch.tensor([True, False]), [True, False]),
        ([True], [True, False]),
        ([True, False, True], [True, False]),
        (None, [True]),
        ("ab", ["a", "b"]),
        ("base", "sft"),
    ],
)
def test_not_the_same(got, wanted):
    assert same(got, wanted) is False


def test_a_wrong_type_or_shape_can_be_told_from_what_is_shown():
    masks = toy(lambda x: [True, False], mistakes={})
    assert (
        "got    tensor([True, False])\n  wanted [True, False]"
        in masks.judge(lambda x: torch.tensor([True, False])).message
    )
    assert "got    [1, 0]\n" in masks.judge(lambda x: [1, 0]).message
    tensors = toy(lambda x: torch.tensor([x]), mistakes={})
    assert "got    tensor(1.0)\n  wanted tensor([1.0])" in tensors.judge(lambda x: torch.tensor(x)).message
    assert "got    None\n" in tensors.judge(lambda x: None).message
    assert "got    tensor of shape (5, 5)\n" in tensors.judge(lambda x: torch.zeros(5, 5)).message


@pytest.mark.parametrize("got", [[torch.ones(2)], torch.ones(2), [torch.ones(2), torch.ones(2)]])
def test_odd_results_never_stop_the_notebook(got):
    for wanted in (1.0, [True], ["sft"], "sft", torch.ones(3)):
        assert not toy(lambda x, wanted=wanted: wanted).judge(lambda x: got).right


# The decorator.


def test_a_right_attempt_is_kept(registered, capsys):
    def attempt(x):
        return x + x

    assert exercise("double")(attempt) is attempt
    assert capsys.readouterr().out == "EXERCISE double: right\n"


@pytest.mark.parametrize(
    ("attempt", "first_line"),
    [
        (unanswered, "not answered yet"),
        (lambda x: x**2, "case 1 is wrong"),
        (lambda x: 1 / 0, "case 1 raised ZeroDivisionError: division by zero"),
    ],
)
def test_any_other_attempt_is_replaced_by_the_reference(registered, capsys, attempt, first_line):
    assert exercise("double")(attempt) is double
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"EXERCISE double: {first_line}"
    assert last == "The cells below go on with the reference. Edit and run this cell again whenever you like."


def test_solving_uses_the_reference_without_running_the_attempt(registered, capsys, monkeypatch):
    monkeypatch.setenv("PICOLLM_SOLVE", "1")
    assert exercise("double")(interrupted) is double
    assert capsys.readouterr().out == "EXERCISE double: solved for you (PICOLLM_SOLVE=1)\n"
    monkeypatch.setenv("PICOLLM_SOLVE", "0")
    assert exercise("double")(lambda x: 0.0) is double
    assert "case 1 is wrong" in capsys.readouterr().out


@pytest.mark.parametrize("use", [exercise, show_solution])
def test_an_unknown_name_lists_the_known_ones(use):
    with pytest.raises(
        KeyError, match=r"no exercise 'dpo': the exercises are gold_total, next_token_loss, .*without_end"
    ):
        use("dpo")


@each_exercise
def test_show_solution_shows_the_reference(item, monkeypatch):
    shown = []
    monkeypatch.setattr(exercises, "display", shown.append)
    show_solution(item.name)
    (code,) = shown
    assert code.language == "python"
    namespace = {"torch": torch}
    exec(code.data, namespace)  # it stands on its own, so that a learner can paste it
    assert item.judge(namespace[item.reference.__name__]).right


# The notebooks.


def stubs(path):
    """(name, function) of every function decorated with @exercise, in order."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for decorator in getattr(node, "decorator_list", []):
            if ast.unparse(decorator).startswith("exercise("):
                yield ast.literal_eval(decorator.args[0]), node


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_exercises_of_a_notebook_exist(path):
    source = path.read_text(encoding="utf-8")
    found = list(stubs(path))
    assert len(found) == source.count("\n@exercise(")
    for name, function in found:
        assert name in EXERCISES
        wanted = [len(case) for case in EXERCISES[name].cases]
        assert wanted == [len(function.args.args)] * len(wanted), f"{name} takes other arguments"
        assert function.name == name
        assert ast.unparse(function.body[-1]) == "raise NotImplementedError"
    assert set(re.findall(r"show_solution\(\"(\w+)\"\)", source)) <= set(EXERCISES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_states_difficulty_and_minutes_of_each(path):
    stated = re.findall(r"\*Difficulty (\d) of 3, about (\d+) minutes?\.\*", path.read_text(encoding="utf-8"))
    wanted = [(EXERCISES[name].difficulty, EXERCISES[name].minutes) for name, _ in stubs(path)]
    assert [(int(a), int(b)) for a, b in stated] == wanted


def test_every_exercise_is_in_one_notebook():
    used = [name for path in NOTEBOOKS for name, _ in stubs(path)]
    assert sorted(used) == sorted(EXERCISES)
