"""Every reference, every known mistake, what the checker says about them, and what a notebook goes on with."""

import ast
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from picollm_lite.chat import encode_conversation
from picollm_lite.evaluation.judges import judged_points
from picollm_lite.evaluation.metrics import RESAMPLES, mean_interval, paired_win_rate
from picollm_lite.kernels import losses
from picollm_lite.kernels.advantages import gae, leave_one_out
from picollm_lite.kernels.logprobs import kl_k1, kl_k2, kl_k3, token_logprobs
from picollm_lite.stages.best_of_n import best_of_n_kl
from picollm_lite.ui import exercises
from picollm_lite.ui.answers import dpo as dpo_answers
from picollm_lite.ui.answers import evaluation as evaluation_answers
from picollm_lite.ui.answers import online as online_answers
from picollm_lite.ui.answers import ppo as ppo_answers
from picollm_lite.ui.answers import reward as reward_answers
from picollm_lite.ui.answers import scaling as scaling_answers
from picollm_lite.ui.answers import sft as sft_answers
from picollm_lite.ui.answers import start as start_answers
from picollm_lite.ui.exercises import EXERCISES, MODULES, exercise, show_solution
from picollm_lite.ui.grading import Exercise, same
from picollm_lite.world.rubric import OFFSET, WEIGHTS, score

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9]*.py"))
MISTAKES = [(name, cause) for name, item in EXERCISES.items() for cause in item.mistakes]
SEEDS = range(20)
each_exercise = pytest.mark.parametrize("item", EXERCISES.values(), ids=EXERCISES.keys())
each_mistake = pytest.mark.parametrize(("name", "cause"), MISTAKES, ids=[f"{n}-{c[:20]}" for n, c in MISTAKES])


@pytest.fixture(autouse=True)
def no_solving(monkeypatch):
    monkeypatch.delenv("PICOLLM_SOLVE", raising=False)


# Every exercise of the course.


def test_every_exercise_has_a_name_of_its_own():
    assert list(EXERCISES.values()) == [item for module in MODULES for item in module.EXERCISES]
    assert all(item.name == item.reference.__name__ for item in EXERCISES.values())


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
        assert_close(sft_answers.next_token_loss(logits, tokens, mask), losses.sft_loss(logp, mask[None, 1:]))


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


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(low, high, *shape, seed):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def test_bradley_terry_loss_by_hand_and_by_kernel():
    # the chosen answer wins with odds 1, 3 and 1/3: chances 1/2, 3/4 and 1/4
    chosen, rejected = torch.tensor([1.0, 3.0, 1 / 3]).log() + 5, torch.full((3,), 5.0)
    assert_close(reward_answers.bradley_terry_loss(chosen, rejected), torch.tensor([2.0, 4 / 3, 4.0]).log())
    cases = [tuple(20 * normal(2, 7, seed=seed)) for seed in SEEDS]
    for pair in [*cases, *EXERCISES["bradley_terry_loss"].cases]:
        assert_close(reward_answers.bradley_terry_loss(*pair), losses.bradley_terry_loss(*pair))


def test_last_token_scores_by_hand_and_by_loop():
    scores = torch.tensor([[10.0, 11.0, 12.0], [20.0, 21.0, 22.0], [30.0, 31.0, 32.0]])
    assert reward_answers.last_token_scores(scores, torch.tensor([1, 3, 2])).tolist() == [10.0, 22.0, 31.0]
    for seed in SEEDS:
        scores, lengths = normal(4, 6, seed=seed), integers(1, 7, 4, seed=seed)
        rows = [row[:length] for row, length in zip(scores, lengths.tolist(), strict=True)]
        assert_close(reward_answers.last_token_scores(scores, lengths), torch.stack([row[-1] for row in rows]))


def test_kl_estimators_by_hand_and_by_kernel():
    # log(policy / ref) = 1/2 and 0: k3 = exp(-1/2) - 1 + 1/2
    k1, k2, k3 = ppo_answers.kl_estimators(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -2.0]))
    assert_close(torch.stack([k1, k2, k3]), torch.tensor([[0.5, 0.0], [0.125, 0.0], [0.106531, 0.0]]))
    cases = [tuple(normal(2, 3, 4, seed=seed)) for seed in SEEDS]
    for pair in [*cases, *EXERCISES["kl_estimators"].cases]:
        for got, kernel in zip(ppo_answers.kl_estimators(*pair), (kl_k1, kl_k2, kl_k3), strict=True):
            assert_close(got, kernel(*pair))


def test_the_kl_estimators_estimate_what_their_mistakes_are_told():
    """Means over every token, weighted by the policy: k1 and k3 give the KL, the turned k3 chi-squared minus KL."""
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.125, 0.625])
    kl = (p * (p / q).log()).sum()
    k1, _, k3 = ppo_answers.kl_estimators(p.log(), q.log())
    assert_close((p * k1).sum(), kl)
    assert_close((p * k3).sum(), kl)
    (turned,) = (f for cause, f in EXERCISES["kl_estimators"].mistakes.items() if "chi-squared" in cause)
    assert_close((p * turned(p.log(), q.log())[2]).sum(), ((p - q).square() / q).sum() - kl)
    (no_log_r,) = (f for cause, f in EXERCISES["kl_estimators"].mistakes.items() if "lacks the log r" in cause)
    assert (p * no_log_r(p.log(), q.log())[2]).sum().abs() < 1e-6


def test_advantages_by_hand_and_by_kernel():
    # deltas from the end: 1 - .5 = .5, 0 + .5 * .5 - 1 = -.75; with gamma lam = .5 * .5: -.75 + .25 * .5 = -.625
    rewards, values = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.5])
    assert ppo_answers.advantages(rewards, values, 0.5, 0.5).tolist() == [-0.625, 0.5]
    settings = [(1.0, 0.95), (0.9, 0.5), (0.7, 1.0), (1.0, 0.0)]
    cases = [(*normal(2, 1 + seed % 6, seed=seed), *settings[seed % 4]) for seed in SEEDS]
    for rewards, values, gamma, lam in [*cases, *EXERCISES["advantages"].cases]:
        mask = torch.ones(1, len(rewards), dtype=torch.bool)
        wanted, _ = gae(rewards[None], values[None], mask, gamma=gamma, lam=lam)
        assert_close(ppo_answers.advantages(rewards, values, gamma, lam), wanted[0])


def test_clipped_loss_by_hand_and_by_kernel():
    # ratios 2, 2, 1/2, 1/2 with A = 1, -1, 1, -1 and clip 1/4: min(2, 1.25), -2, .5, min(-.5, -.75); padding; / 4
    ratio, a = torch.tensor([[2.0, 2.0, 0.5, 0.5, 9.0]]), torch.tensor([[1.0, -1.0, 1.0, -1.0, 9.0]])
    loss = ppo_answers.clipped_loss(ratio.log(), torch.zeros(1, 5), a, torch.tensor([bools("11110")]), 0.25)
    assert_close(loss, torch.tensor(0.25))
    for seed in SEEDS:
        logp, old_logp, a = normal(3, 3, 5, seed=seed)
        mask = torch.arange(5) < integers(1, 6, 3, 1, seed=seed)
        clip = (0.1, 0.2, 0.5)[seed % 3]
        wanted = losses.ppo_policy_loss(logp, old_logp, a, mask, clip=clip)
        assert_close(ppo_answers.clipped_loss(logp, old_logp, a, mask, clip), wanted)
    for *tensors, clip in EXERCISES["clipped_loss"].cases:
        assert_close(ppo_answers.clipped_loss(*tensors, clip), losses.ppo_policy_loss(*tensors, clip=clip))


def test_old_logprobs_by_hand_and_by_kernel():
    # logits ln 2 and 0 at temperature 1/2 are ln 4 and 0: p = 4/5 and 1/5
    logits = torch.tensor([[2.0, 1.0], [2.0, 1.0]]).log()
    assert_close(ppo_answers.old_logprobs(logits, torch.tensor([0, 1]), 0.5), torch.tensor([0.8, 0.2]).log())
    cases = [(3 * normal(4, 6, seed=seed), integers(0, 6, 4, seed=seed), 0.3 + 0.1 * seed) for seed in SEEDS]
    for logits, tokens, temperature in [*cases, *EXERCISES["old_logprobs"].cases]:
        wanted = token_logprobs(logits[None], tokens[None], temperature=temperature)[0]
        assert_close(ppo_answers.old_logprobs(logits, tokens, temperature), wanted)


def test_final_scores_by_hand():
    scores, finished = torch.tensor([3.0, 1.0, -5.0]), torch.tensor(bools("011"))
    assert ppo_answers.final_scores(scores, finished, -2.0).tolist() == [-2.0, 1.0, -5.0]
    assert scores.tolist() == [3.0, 1.0, -5.0]


PUBLISHED = (  # beta .1, h = 0, 10, 20
    torch.tensor([-0.5, -10.0, -1.0]),
    torch.tensor([-0.1, -30.0, -21.0]),
    torch.tensor([-0.5, -10.1, -0.1]),
    torch.tensor([-0.1, -20.1, -0.1]),
)


@pytest.mark.parametrize(
    ("name", "wanted"), [("dpo_loss", [0.693147, 0.313262, 0.126928]), ("ipo_loss", [25.0, 25.0, 225.0])]
)
def test_losses_of_pairs_by_hand_and_by_kernel(name, wanted):
    answer, kernel = getattr(dpo_answers, name), getattr(losses, name)
    assert_close(answer(*PUBLISHED, 0.1), torch.tensor(wanted), rtol=0, atol=1e-4)
    cases = [(*(-20 * normal(4, 5, seed=seed).abs()), 0.05 * (1 + seed)) for seed in SEEDS]
    for *logp, beta in [*cases, *EXERCISES[name].cases]:
        assert_close(answer(*logp, beta), kernel(*logp, beta=beta).losses)


@pytest.mark.parametrize("name", ["bradley_terry_loss", "dpo_loss"])
def test_only_a_large_difference_tells_a_log_of_a_sigmoid_from_logsigmoid(name):
    item = EXERCISES[name]
    (naive,) = (mistake for cause, mistake in item.mistakes.items() if "use logsigmoid" in cause)
    *usual, large = item.cases
    assert all(same(naive(*case), item.reference(*case)) for case in usual)
    assert naive(*large).isinf().any() and item.reference(*large).isfinite().all()


def test_best_of_n_distance_by_hand_and_by_kernel():
    """Two answers of probability 1/2: the best of two is the upper one with probability 3/4."""
    wanted = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert_close(online_answers.best_of_n_distance(torch.tensor([0.5, 0.5]), 2), torch.tensor(wanted))
    cases = [(normal(7, seed=seed).softmax(0), 1 + seed) for seed in SEEDS]
    for p, n in [*cases, *EXERCISES["best_of_n_distance"].cases]:
        wanted = torch.as_tensor(best_of_n_kl(p.double().numpy(), np.array([n])))
        assert_close(online_answers.best_of_n_distance(p, n)[None].double(), wanted, rtol=1e-4, atol=1e-6)


def test_leave_one_out_by_hand_and_by_kernel():
    got = online_answers.leave_one_out_advantages(torch.tensor([3.0, 0.0, 1.5, 2.0, 2.0, -1.0]), 3)
    assert got.tolist() == [2.25, -2.25, 0.0, 1.5, 1.5, -3.0]
    for scores, size in [(normal(12, seed=1), 4), *EXERCISES["leave_one_out_advantages"].cases]:
        assert_close(online_answers.leave_one_out_advantages(scores, size), leave_one_out(scores, size))


def test_bootstrap_interval_by_hand_and_by_scipy():
    # Differences 0 and 4; 39 resamples have mean 0, one of both prompts 2, 39 of the second 4: the ends of 79 are these
    a, b, both = torch.tensor([1.0, 5.0]), torch.tensor([1.0, 1.0]), torch.tensor([[0, 1]])
    draws = torch.cat([torch.zeros(39, 2, dtype=torch.long), both, torch.ones(39, 2, dtype=torch.long)])
    assert evaluation_answers.bootstrap_interval(a, b, draws).tolist() == [0.0, 4.0]
    assert evaluation_answers.bootstrap_interval(a, b, both.expand(9, 2)).tolist() == [2.0, 2.0]
    for seed in range(3):
        a, b = normal(2, 30, seed=seed)
        draws = torch.from_numpy(np.random.default_rng(seed).integers(0, 30, (RESAMPLES, 30)))
        wanted = mean_interval((a - b).numpy(), seed=seed)
        assert evaluation_answers.bootstrap_interval(a, b, draws).tolist() == pytest.approx(wanted[1:])


def test_swapped_points_by_hand_and_by_package():
    given, swapped = ["a", "b", "a", "tie", "tie"], ["b", "a", "a", "tie", "b"]
    assert evaluation_answers.swapped_points(given, swapped) == [1.0, 0.0, 0.5, 0.5, 0.5]
    for given, swapped in EXERCISES["swapped_points"].cases:
        verdicts = {(f"a{n}", f"b{n}"): v for n, v in enumerate(given)}
        verdicts |= {(f"b{n}", f"a{n}"): v for n, v in enumerate(swapped)}
        sides = zip(*((f"a{n}", f"b{n}") for n in range(len(given))), strict=True)
        points = judged_points(lambda _, a, b, verdicts=verdicts: verdicts[a, b], ["Why?"] * len(given), *sides)
        assert evaluation_answers.swapped_points(given, swapped) == points.tolist()


def test_constant_win_rates_by_hand_and_by_package():
    # the first beats 0, ties 1 and loses to 2; the second wins all
    scores, baseline = torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]]), torch.tensor([0.0, 1.0, 2.0])
    assert evaluation_answers.constant_win_rates(scores, baseline).tolist() == [0.5, 1.0]
    for seed in range(3):
        scores, baseline = integers(-2, 3, 4, 9, seed=seed).float(), integers(-2, 3, 9, seed=seed + 50).float()
        wanted = [paired_win_rate(row.numpy(), baseline.numpy()).rate for row in scores]
        assert evaluation_answers.constant_win_rates(scores, baseline).tolist() == pytest.approx(wanted)


def test_training_bytes_by_counting_what_torch_keeps():
    trained, frozen = torch.nn.Linear(7, 3, bias=False), torch.nn.Linear(5, 2, bias=False)
    optimizer = torch.optim.AdamW(trained.parameters())
    trained(torch.ones(7)).sum().backward()
    optimizer.step()
    state = next(iter(optimizer.state.values()))
    kept = [trained.weight, trained.weight.grad, state["exp_avg"], state["exp_avg_sq"], frozen.weight]
    assert scaling_answers.training_bytes(21, 10) == sum(tensor.nbytes for tensor in kept) == 4 * 4 * 21 + 4 * 10


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
        KeyError, match=r"no exercise 'dpo': the exercises are advantages, best_of_n_distance, .*without_end"
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
        assert function.name in (name, f"my_{name}")  # my_ where the notebook imports the kernel of that name
        assert ast.unparse(function.body[-1]) == "raise NotImplementedError"
    assert set(re.findall(r"show_solution\(\"(\w+)\"\)", source)) <= set(EXERCISES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_states_difficulty_and_minutes_of_each(path):
    """An open task, which has no checker, stands under another heading."""
    line = r"^# ### Exercise: .+\n# \*Difficulty (\d) of 3, about (\d+) minutes?\.\*"
    stated = re.findall(line, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    wanted = [(EXERCISES[name].difficulty, EXERCISES[name].minutes) for name, _ in stubs(path)]
    assert [(int(a), int(b)) for a, b in stated] == wanted


def test_no_exercise_is_in_two_notebooks():
    used = [name for path in NOTEBOOKS for name, _ in stubs(path)]
    assert len(used) == len(set(used))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_the_exercises_of_a_module_are_in_its_notebook(module):
    number = re.match(r"Exercises of notebook (\d\d)\.", module.__doc__)[1]
    paths = [path for path in NOTEBOOKS if path.stem.startswith(number)]
    if not paths:
        pytest.skip(f"notebook {number} is not written yet")
    assert sorted(name for name, _ in stubs(paths[0])) == sorted(item.name for item in module.EXERCISES)
