# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 · What does better mean?
#
# From one SFT model you have made four policies, and a way to do better without training at all. Which is best? The question has no answer until you say: on which prompts, by whose judgment, how far from the start, at what price, and how sure
# you want to be. In this notebook six contestants meet on the same prompts, and you will find out how much of what the numbers seem to say they really say.
#
# | | |
# |---|---|
# | **You will be able to** | put a bootstrap interval on a comparison, spot a judge that can be gamed, compare methods at equal distance, measure what training cost in other abilities, tell a claim about a checkpoint from one about a method, and write a report card |
# | **Time** | 1 minute to run, 60 to work through (2 CPU cores) |
# | **Needs** | SFT, reward, PPO, DPO, online DPO and GRPO models (yours from notebooks 01 to 06, or the shipped ones) |
# | **Produces** | `outputs/report/report_card.html` and `.md`, `outputs/suite_gold.jsonl` |

# %% tags=["setup"]
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything ships with the course; nothing is downloaded
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import time
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

from picollm_lite.chat import respond
from picollm_lite.data import load_demos, load_preferences, load_suite
from picollm_lite.evaluation.alignment_tax import fact_accuracy, held_out_documents, perplexity
from picollm_lite.evaluation.audit import scores_of
from picollm_lite.evaluation.constant_answer import annotator_judge, constant_answer_table
from picollm_lite.evaluation.data_files import describe_demos, describe_preferences
from picollm_lite.evaluation.diversity import diversity
from picollm_lite.evaluation.drift import drift_of
from picollm_lite.evaluation.frontier import Point, at_kl, frontier_table
from picollm_lite.evaluation.judges import ScoreJudge, gold_judge, judged_points, judged_win_rate, order_bias
from picollm_lite.evaluation.length_control import length_controlled_win_rate
from picollm_lite.evaluation.metrics import RESAMPLES, Interval, gold_scores, mean_interval, paired_win_rate
from picollm_lite.evaluation.report import report_card
from picollm_lite.evaluation.seeds import by_model, seed_study
from picollm_lite.evaluation.training_record import load_settings
from picollm_lite.files import read_jsonl, write_jsonl
from picollm_lite.models import RewardModel, interpolate, load_policy
from picollm_lite.paths import CHECKPOINTS, DEMOS, PREFERENCES, SEEDS, SUITE, checkpoint, outputs
from picollm_lite.report_card import write
from picollm_lite.scoring import left_align
from picollm_lite.stages import best_of_n
from picollm_lite.ui import plots
from picollm_lite.ui.claims import check, measure
from picollm_lite.ui.exercises import exercise
from picollm_lite.ui.explorers.answers import show_answers
from picollm_lite.ui.explorers.frontier import frontier
from picollm_lite.ui.report_sections import cell
from picollm_lite.ui.setup import start
from picollm_lite.world.annotators import PANEL

# %%
SEED = 0
ANSWERS = 4  # to each prompt of the suite, from each contestant
N = 4  # of best-of-n, as a contestant
N_DRAWS = N * ANSWERS
SHARES = (0.5, 0.75)  # of the way from SFT to a trained policy
CONSTANTS = {  # one answer to whatever is asked
    "a shrug": "I do not know.",
    "a compliment": "What a great question!",
    "flattery": "What a great question! You are such a smart student! I love how you think. Well asked! I admire your curiosity.",
    "a fact": "A token is a unit of text.",
}
TIE = 1e-4  # scores of one text differ by less from batch to batch
DEVICE = start(SEED)

# %%
TRAINED = {"PPO": "ppo", "DPO": "dpo", "online DPO": "online_dpo", "GRPO": "grpo"}  # and their folders
ref, tokenizer = load_policy(checkpoint("sft"), device=DEVICE)  # where all of them started
policies = {name: load_policy(checkpoint(stage), device=DEVICE)[0] for name, stage in TRAINED.items()}
reward_model = RewardModel.load(checkpoint("reward"), device=DEVICE)
for name, stage in {"SFT": "sft", "reward model": "reward", **TRAINED}.items():
    print(f"{name:<12} {'shipped' if checkpoint(stage).is_relative_to(CHECKPOINTS) else 'yours'}")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The suite, and why it is frozen
#
# A **suite** is the set of prompts on which models are compared. Ours is *frozen*: it was written down before there was a model, and no prompt has been changed or dropped since. Nor should anybody choose a setting by it: whatever you look at
# while you choose, you fit, even if no gradient ever flows. In that we are guilty: settings of this course were chosen with an eye on the suite, and notebook 05 draws gold on it while it trains. So its numbers are a little too kind to every method,
# and only new prompts could tell by how much. It has three **splits**: *seen phrasing* are questions such as training has, most of them word for
# word; *held-out phrasing* and *held-out combination* (of concept and request) are kept out of all training.

# %%
suite = load_suite(SUITE)
questions, splits = list(suite["prompt"]), list(suite["split"])
trained_on = {messages[-1]["content"] for messages in load_preferences(PREFERENCES)["prompt"]}
trained_on |= {messages[0]["content"] for messages in load_demos(DEMOS)["messages"]}
frozen = pd.DataFrame({"split": splits, "in training data": [question in trained_on for question in questions]})
print(f"{len(questions)} prompts in the suite, {len(trained_on):,} in the training data")
frozen.groupby("split", sort=False)["in training data"].agg(prompts="size", in_training_data="sum")

# %% tags=["nbval-check-output"]
held_out = frozen[frozen["split"] != "seen_phrasing"]
check("no held-out prompt is in the training data", not held_out["in training data"].any())

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Six contestants
#
# Every one answers each prompt four times at temperature 1. **Best-of-n** (notebook 06) trains nothing: it draws $n = 4$ answers from SFT and says the one that the reward model likes best. We draw 16 answers a prompt, in four groups of four.
# SFT itself gets four fresh ones, so that nobody is compared with their own answers.
#
# **Predict before you run:** write down an order of the six, by gold.

# %%
asked = questions * ANSWERS  # all first answers, then all second ones
began = time.perf_counter()
said = {"SFT": respond(ref, tokenizer, asked, seed=SEED)}
seconds_an_answer = (time.perf_counter() - began) / len(asked)
said |= {name: respond(policy, tokenizer, asked, seed=SEED) for name, policy in policies.items()}
texts = {name: given.texts for name, given in said.items()}


def distance(policy, given):
    """KL to SFT, nats an answer, over the full vocabulary (notebook 04): of the first two answers to each prompt."""
    half = left_align(given.rollout).rows(torch.arange(2 * len(questions)))
    return drift_of(policy, ref, questions * 2, half, seed=SEED).exact.estimate


kl = {"SFT": 0.0} | {name: distance(policy, said[name]) for name, policy in policies.items()}
print(f"{len(said)} x {len(asked)} answers; SFT took {1000 * seconds_an_answer:.1f} ms for each")


# %%
def gold_fn(prompts, responses):
    """Gold for the records; best-of-n picks by the reward model and never sees it."""
    return torch.tensor(gold_scores(prompts, responses))


draws = best_of_n.draw(ref, reward_model.score, questions, N_DRAWS, tokenizer=tokenizer, gold_fn=gold_fn, seed=SEED + 1)
groups = draws.score.reshape(len(questions), ANSWERS, N)
best = groups.argmax(2) + N * np.arange(ANSWERS)  # (prompts, ANSWERS): the place of each group's best
texts["best of 4"] = [draws.texts[p][best[p, k]] for k in range(ANSWERS) for p in range(len(questions))]
curve = best_of_n.curve(draws)  # what every n up to 16 gives
kl["best of 4"] = curve[N - 1].kl
print(f"best of 4: KL to SFT {kl['best of 4']:.2f} nats an answer, at most {curve[N - 1].kl_bound:.2f}")


# %%
def proxy_scores(prompts, responses):
    return scores_of(reward_model.score, prompts, responses)


by_answer = {name: gold_scores(asked, given).reshape(ANSWERS, -1) for name, given in texts.items()}  # (ANSWERS, P)
gold = {name: rows.mean(0) for name, rows in by_answer.items()}  # (P,): one number a prompt
proxy = {name: proxy_scores(asked, given).reshape(ANSWERS, -1).mean(0) for name, given in texts.items()}
pd.DataFrame(
    {
        "gold": {name: values.mean() for name, values in gold.items()},
        "proxy": {name: values.mean() for name, values in proxy.items()},
        "KL": kl,
        "words": {name: np.mean([len(text.split()) for text in given]) for name, given in texts.items()},
    }
).round(2)

# %% slideshow={"slide_type": "slide"}
means = {name: {"gold": mean_interval(gold[name]), "proxy": mean_interval(proxy[name])} for name in texts}
plots.show(
    plots.intervals(means, ylabel="mean reward on the suite", number="+z.2f"),
    alt="Mean gold and proxy of six contestants with 95 % intervals over prompts",
)

# %%
for reward, values in {"gold": gold, "proxy": proxy}.items():
    print(f"by {reward:<6}", " > ".join(sorted(values, key=lambda name: -values[name].mean())))
written = write_jsonl(
    outputs() / "suite_gold.jsonl", [{"model": name, "gold": gold[name].round(4).tolist()} for name in gold]
)
print(f"gold of every prompt: {written.name}")

# %% [markdown]
# Were you right? And do both orders agree? All but SFT and DPO were made with the proxy, so it flatters them: a judge that a method was made with is no judge of that method. That is why gold decides here. Without a gold, take a *second* reward model,
# or people, that no training has touched.

# %% tags=["nbval-check-output"]
wins = {name: paired_win_rate(gold[name], gold["SFT"], seed=SEED) for name in gold if name != "SFT"}
for name, win in wins.items():
    check(f"{name} beats SFT by gold: the win rate's interval lies above 50 %", win.low > 0.5)

# %%
for name, win in wins.items():
    measure(f"{name}: gold win rate against SFT on the suite", win)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A mean is not a claim
#
# One mean is above the other. Would it be so on other prompts? The **bootstrap** (Efron and Tibshirani 1993, chapter 13) answers with the prompts at hand. Pretend that the suite is the world: draw $P$ prompts from its $P$, *with replacement*,
# so that some come twice and some not at all, and take the mean of their differences. Do that $R$ times:
#
# $$\bar d^{(r)} = \frac{1}{P}\sum_{p=1}^{P} d_{i_{rp}}, \qquad d_p = g^A_p - g^B_p, \qquad i_{rp} \sim \mathrm{Uniform}\{1, \dots, P\}$$
#
# with $g^A_p$ the mean gold of A's answers to prompt $p$. The middle 95 % of the $\bar d^{(r)}$ are the **interval**. If it leaves out 0, the suite supports a claim; if it does not, the claim is open.
#
# Differences first, then resampling: that is what **paired** means. Some prompts are hard for everyone, and what they do to both models is no difference between them.
#
# ### Exercise: the bootstrap interval
# *Difficulty 2 of 3, about 8 minutes.* `a` and `b` are (P,), one number a prompt; `draws` is (R, P), a row of prompt numbers for each resample. Return the lower and the upper end of the 95 % interval of the mean of `a - b`, (2,).
#
# <details><summary>Hint</summary>A tensor can be indexed by a table of numbers. Then a mean over one axis, and <code>torch.quantile</code>.</details>


# %%
@exercise("bootstrap_interval")
def bootstrap_interval(a, b, draws):
    raise NotImplementedError


# %% [markdown]
# PPO against DPO: the first learned from the reward model, the second from pairs. Notebook 05 counted who won more prompts. **Predict before you run:** by how many points of gold is the one ahead, and does the interval leave out 0?

# %%
rng = np.random.default_rng(SEED)
a, b = (torch.from_numpy(gold[name]).float() for name in ("PPO", "DPO"))
resamples = torch.from_numpy(rng.integers(0, len(a), (RESAMPLES, len(a))))  # (R, P)
low, high = bootstrap_interval(a, b, resamples).tolist()
difference = mean_interval(gold["PPO"] - gold["DPO"], seed=SEED)  # the package, by scipy: the same draws
np.testing.assert_allclose([low, high], difference[1:], atol=1e-5)
print(f"PPO - DPO: {difference.estimate:+.3f} points of gold, 95 % interval [{low:+.3f}, {high:+.3f}]")

# %%
others = torch.from_numpy(rng.integers(0, len(a), (RESAMPLES, len(a))))
means_a, means_b = a[resamples].mean(1), b[others].mean(1)  # each model on prompts of its own
unpaired = torch.quantile(means_a - means_b, torch.tensor([0.025, 0.975]))
print(f"width paired {high - low:.3f}, unpaired {unpaired[1] - unpaired[0]:.3f}")
print(f"correlation of PPO's and DPO's gold over prompts {np.corrcoef(gold['PPO'], gold['DPO'])[0, 1]:.2f}")

# %% tags=["nbval-check-output"]
check("pairing makes the interval narrower, from the same answers", high - low < unpaired[1] - unpaired[0])


# %% [markdown]
# ### How often, not how much
#
# The **win rate** asks on how many prompts A is better. A tie counts half, else a model that copies the other would seem worse than it. From here on, no sentence says "better" unless an interval does.


# %%
def verdict(interval, zero=0.0):
    """What a 95 % interval supports of "is better"."""
    return "better" if interval.low > zero else "worse" if interval.high < zero else "open"


win = paired_win_rate(gold["PPO"], gold["DPO"], seed=SEED)
points = (a > b).float() + 0.5 * (a == b).float()
np.testing.assert_allclose(win.rate, points.mean(), atol=1e-6)
print(f"{win.wins} wins, {win.ties} ties, {win.losses} losses: {win.rate:.0%} [{win.low:.0%}, {win.high:.0%}]")
print(f"PPO against DPO by mean gold: {verdict(difference)}; by win rate: {verdict(win, 0.5)}")

# %% [markdown]
# ### More answers or more prompts?
#
# Two things are drawn at random: the prompts and, at temperature 1, the answers. With $k$ answers to each of $P$ prompts the variance of a mean difference is
#
# $$\mathrm{Var}(\bar d) = \frac{1}{P}\Big(\sigma^2_{prompts} + \frac{\sigma^2_{answers}}{k}\Big)$$
#
# More answers shrink the second term alone; an analysis of variance tells the two apart. The interval over prompts contains both already, as each prompt brings the luck of its answers along.

# %%
P = len(questions)
gaps = by_answer["PPO"] - by_answer["DPO"]  # (ANSWERS, P): drawn with the same random numbers, so answers pair, too
within = gaps.var(0, ddof=1).mean()
between = max(0.0, gaps.mean(0).var(ddof=1) - within / ANSWERS)


def half_width(prompts, k):
    return 1.96 * np.sqrt((between + within / k) / prompts)


print(
    f"variance of one answer's difference: prompts {between / (between + within):.0%}, answers {within / (between + within):.0%}"
)
pd.DataFrame(
    {f"{k} answers each": {f"{m * P} prompts": half_width(m * P, k) for m in (1, 4)} for k in (1, 4, 16, 64)}
).round(3)

# %% [markdown]
# The table shows half the width of the interval of PPO - DPO. Down a column four times the prompts halve it, always. Along a row it falls to what the prompts leave, and no further. How soon depends on the shares above (an estimate below 0 counts as 0, and then four times the answers do as much as four times the prompts). Answers are cheap to
# draw, so look at the shares before you write more prompts.
#
# ## Judges
#
# Gold is a rubric, and you will not have it. What you will have is a **judge**: anything that looks at a prompt and two answers and says "a", "b" or "tie". A rubric, a reward model, a person, a large language model: to the code they are one
# callable, and each has its tastes.
#
# ### A judge that favors a position
#
# This one is well-meaning but reads the first answer with goodwill: the second must be better by more than a point of gold.


# %%
def first_reader(prompt, a, b):
    gold_a, gold_b = gold_scores([prompt, prompt], [a, b])
    return "b" if gold_b > gold_a + 1 else "a"


sides = asked, texts["PPO"], texts["SFT"]
given = [first_reader(q, a, b) for q, a, b in zip(*sides, strict=True)]
swapped = [first_reader(q, b, a) for q, a, b in zip(*sides, strict=True)]
ppo_first, ppo_second = given.count("a") / len(given), swapped.count("b") / len(swapped)
print(f"PPO's share of wins over SFT: shown first {ppo_first:.0%}, shown second {ppo_second:.0%}")

# %% [markdown]
# The remedy (Zheng et al. 2023, section 3.4): show each pair in both orders, and let a verdict count only if it stands in both. A contradiction is a tie.
#
# ### Exercise: a verdict that stands
# *Difficulty 1 of 3, about 6 minutes.* `given` are the verdicts when A was shown first, `swapped` when B was. In both, "a" names the answer that *stood first*. Return a list of A's points: 1, 0, or 0.5.
#
# <details><summary>Hint</summary>Turn the second verdict round before you compare.</details>


# %%
@exercise("swapped_points")
def swapped_points(given, swapped):
    raise NotImplementedError


# %%
standing = swapped_points(given, swapped)
np.testing.assert_array_equal(standing, judged_points(first_reader, *sides))
judges = {"gold": gold_judge, "reward model": ScoreJudge(reward_model.score, tie=TIE), "first reader": first_reader}
fair = judged_win_rate(first_reader, *sides, seed=SEED)
print(f"first reader, both orders: {fair.rate:.0%} [{fair.low:.0%}, {fair.high:.0%}], {fair.ties} of {len(asked)} ties")
bias = {name: order_bias(judge, *sides, seed=SEED) for name, judge in judges.items()}
pd.DataFrame(
    {
        name: {"contradicted": cell(b.contradicted, ".0%"), "first preferred": cell(b.first_preferred, ".0%")}
        for name, b in bias.items()
    }
).T

# %% tags=["nbval-check-output"]
check("the order decides who wins: PPO when it is shown first, SFT when SFT is", ppo_first > 0.5 > ppo_second)
check("swapping exposes the first reader", bias["first reader"].first_preferred.low > 0.5)
check(
    "gold and the reward model do not care which answer stands first",
    max(bias[name].contradicted.high for name in ("gold", "reward model")) == 0,  # they score each answer alone
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Who is asked decides
#
# The five annotators of notebook 02, without their noise, and the reward model that learned from them, compare each contestant's first answers with SFT's.
#
# **Predict before you run:** by whose judgment does the best method lose to SFT?

# %%
judges = {"gold": gold_judge, "reward model": ScoreJudge(reward_model.score, tie=TIE)}
judges |= {annotator.name: annotator_judge(annotator) for annotator in PANEL}
first = {name: given[:P] for name, given in texts.items()}  # one answer a prompt
by_judge = {
    judge: {name: judged_win_rate(ask, questions, first[name], first["SFT"], seed=SEED) for name in wins}
    for judge, ask in judges.items()
}
pd.DataFrame({judge: {name: cell(win, ".0%") for name, win in row.items()} for judge, row in by_judge.items()}).T

# %% [markdown]
# Two rows you could have told beforehand: the careful annotator's utility is three times gold, so that row is gold's, and the contrarian's is gold turned round. The others each add a taste. Does any of them put another contestant first? What a taste moves before that is the margin, and with it the verdict: PPO beats SFT by gold, and by who likes length the two cannot be told apart.
#
# ### Length control, and how it is gamed
#
# Many judges, people among them, like long answers. Dubois et al. (2024) ask what the win rate would be at equal length: fit
#
# $$P(a \succ b) = \sigma\big(\theta + \phi\,\tanh(\Delta / s)\big)$$
#
# with $\Delta$ the words of $a$ less those of $b$ and $s$ the standard deviation of $\Delta$, and report $\sigma(\theta)$, the value at $\Delta = 0$.

# %%
control = {}
for name in wins:
    points = judged_points(judges["length_lover"], questions, first[name], first["SFT"])
    got = length_controlled_win_rate(questions, first[name], first["SFT"], points, seed=SEED)
    longer = [len(one.split()) - len(other.split()) for one, other in zip(first[name], first["SFT"], strict=True)]
    control[name] = {
        "words more": round(np.mean(longer), 1),
        "raw": cell(got.raw, ".0%"),
        "at equal length": cell(got.controlled, ".0%"),
        "phi": round(got.length_effect, 2),
    }
pd.DataFrame(control).T

# %% [markdown]
# That was the judge who likes length. $\phi$ is the taste. Where a method writes shorter answers than SFT (*words more* below 0), this judge holds it against the method, and the correction gives it back. (The paper's model has one more term, for how hard the instruction is.)
#
# A benchmark that is corrected for length feels safe. Now send it *one and the same answer to every prompt*. Zheng et al. (2024, *Cheating automatic LLM benchmarks*) won 86.5 % of a length-controlled benchmark with one, against a strong model.
# How would you look for such an answer? By trying.
#
# ### Exercise: the judge that a constant answer beats
# *Difficulty 1 of 3, about 6 minutes.* `scores` is (K, P): what a judge gives to each of K constants under each of P prompts. `baseline` is (P,): what it gives to the other model's answers. Return how often each constant wins, (K,), ties as half.
#
# <details><summary>Hint</summary>Compare (K, P) with (P,), then take the mean over prompts.</details>


# %%
@exercise("constant_win_rates")
def constant_win_rates(scores, baseline):
    raise NotImplementedError


# %% [markdown]
# **Try:** add constants of your own to `CONSTANTS`, near the top. Which judge can you beat, knowing nothing of the question?
#
# **Predict before you run:** by which judges does a constant win more than half of the prompts against SFT?

# %%
rates = {}
for judge, ask in judges.items():
    scores = np.stack([scores_of(ask.score_fn, questions, [text] * P) for text in CONSTANTS.values()])  # (K, P)
    baseline = scores_of(ask.score_fn, questions, first["SFT"])  # (P,)
    rates[judge] = constant_win_rates(torch.from_numpy(scores), torch.from_numpy(baseline)).tolist()
pd.DataFrame(rates, index=list(CONSTANTS)).T.round(2)

# %%
picked = {name: judges[name] for name in ("gold", "reward model", "flattered", "length_lover")}
flattering, short = (
    constant_answer_table(picked, questions, first["SFT"], CONSTANTS[name], seed=SEED)
    for name in ("flattery", "a compliment")
)
flattering.round(2)

# %% tags=["nbval-check-output"]
check("by gold the flattering constant loses to SFT", flattering.loc["gold", "high"] < 0.5)
check("by the judge who likes flattery it wins", flattering.loc["flattered", "low"] > 0.5)
check("the reward model, too, likes it better than SFT's answers", flattering.loc["reward model", "low"] > 0.5)
check("and length control does not take that away", flattering.loc["reward model", "controlled low"] > 0.5)

# %% [markdown]
# Five compliments, no content, and the busiest annotator, who likes flattery, prefers them to the answers of a model that tries. Worse, so does our reward model, which learned from that annotator
# more than from any other: what notebook 03 found in its audit is enough to beat it as a judge, without reading a single question. Length control takes out length, and this is not about length.
#
# And the correction can lie by itself. The short compliment is *always* the shorter one, so that the data hold nothing about equal length, and what the fit reads at $\Delta = 0$ is extrapolated:

# %%
short.round(2)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## At the same distance
#
# The contestants stand at different KLs. More gold further out proves little: perhaps the other method would have got there, too, had it gone as far. So compare **at matched KL**: the **reward-KL frontier** is what a method reaches at each
# distance (Gao et al. 2023).
#
# For that every method needs a knob from KL 0 on. Best-of-n has $n$. For trained policies we take one that needs no saved runs: move the weights a share $a$ of the way from SFT to the policy,
#
# $$\theta(a) = (1 - a)\,\theta_{SFT} + a\,\theta_{policy}$$
#
# the "linear interpolation towards initialization" of Ramé et al. (2024, *WARP*). So what we draw is the frontier of the *interpolated* policies. A run with another KL penalty, or stopped earlier, may do better or worse at the same distance.
#
# **Predict before you run:** halfway in the weights, how far is the KL?


# %%
def on_suite(model, name):
    """A point of the frontier from two answers to each prompt: KL to SFT, and gold and proxy of every prompt."""
    given = respond(model, tokenizer, questions * 2, seed=SEED)
    rewards = (f(questions * 2, given.texts).reshape(2, -1).mean(0) for f in (gold_scores, proxy_scores))
    return Point(distance(model, given), *rewards, name)


runs = {}
for name, policy in policies.items():
    between = [on_suite(interpolate(ref, policy, share), f"a = {share}") for share in SHARES]
    ends = Point(0.0, gold["SFT"], proxy["SFT"], "a = 0"), Point(kl[name], gold[name], proxy[name], "a = 1")
    runs[name] = [ends[0], *between, ends[1]]
pd.DataFrame({name: {point.name: point.kl for point in run} for name, run in runs.items()}).T.round(3)

# %%
picks = {
    reward: np.stack([best_of_n.expected_best(s[None], r[None]) for s, r in zip(draws.score, rows, strict=True)])
    for reward, rows in {"gold": draws.gold, "proxy": draws.proxy}.items()
}  # (P, N_DRAWS) each: expected over the draws, for every n
runs["best of n"] = [
    Point(curve[n - 1].kl, picks["gold"][:, n - 1], picks["proxy"][:, n - 1], f"n = {n}") for n in (1, 2, 4, 8)
]
frontier(runs)

# %% [markdown]
# **Try:** put the mouse on a point to read it. Then slide the KL: where does a method gain proxy without gaining gold? And which intervals overlap? (That is no test: two intervals may overlap while the one of the paired difference, below, leaves out 0.) Best-of-n begins with $n = 1$, which is SFT on other draws: how far its start lies from that of
# the others is what sampling alone does.
#
# The same at three distances, the last as far as the shortest path goes:

# %% slideshow={"slide_type": "slide"}
reach = min(max(point.kl for point in run) for run in runs.values())
budgets = [reach / 4, reach / 2, reach]
table = frontier_table(runs, budgets)
matched = {
    name: {f"KL {kl:.2f}": Interval(*table.loc[(kl, name), ["gold", "gold low", "gold high"]]) for kl in budgets}
    for name in runs
}
plots.show(
    plots.intervals(matched, ylabel="mean gold at matched KL", number="+z.2f"),
    alt="Mean gold of five methods at three distances from SFT, with 95 % intervals over prompts",
)

# %%
for one, other in combinations(runs, 2):
    gap = mean_interval(at_kl(runs[one], reach)[0] - at_kl(runs[other], reach)[0], seed=SEED)
    print(f"{one:<10} against {other:<10} {gap.estimate:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]  {verdict(gap)}")

# %% tags=["nbval-check-output"]
halves = {
    name: next(p.kl for p in run if p.name == "a = 0.5") / run[-1].kl for name, run in runs.items() if name in policies
}
check("halfway in the weights costs less than half of the KL, for each trained policy", max(halves.values()) < 0.5)

# %% [markdown]
# Near SFT the KL grows with the *square* of the distance in weights, so the first part of the way is nearly free. Read the verdicts as they stand. "Open" does not mean equal: it means that this suite cannot tell. Ten intervals of 95 % give half
# a verdict by chance alone, were all methods equal. And the KL itself is an estimate, whose error these intervals leave out.
#
# ## What it cost elsewhere
#
# The **alignment tax** (Askell et al. 2021) is what a policy has unlearned. Two measures, neither in chat format: the **perplexity** of text that the base model was trained to continue, $\exp(-\frac{1}{T}\sum_t \log p_t)$, and how often a
# concept's own fact is likelier than a neighbor's. And from the answers: **distinct-2**, the share of pairs of words that are not repeats (Li et al. 2016), and **self-similarity**, how alike the four answers to one prompt are, 1 if they are the
# same.
#
# **Predict before you run:** which step costs the most perplexity? Who repeats themselves most?

# %%
documents = held_out_documents()
base, _ = load_policy(checkpoint("base"), device=DEVICE)
models = {"base": base, "SFT": ref, **policies}
tax = {name: perplexity(model, tokenizer, documents, seed=SEED) for name, model in models.items()}
facts = {name: fact_accuracy(model, tokenizer, seed=SEED) for name, model in models.items()}
spread = {name: diversity(asked, given, seed=SEED) for name, given in texts.items()}
pd.DataFrame(
    {
        "perplexity": {name: cell(value, ".2f") for name, value in tax.items()},
        "facts": {name: cell(value, ".0%") for name, value in facts.items()},
        "distinct-2": {name: cell(value.distinct_2, ".2f") for name, value in spread.items()},
        "self-similarity": {name: cell(value.self_similarity, ".2f") for name, value in spread.items()},
    }
).fillna("–")

# %% [markdown]
# The large step is SFT: learning the chat format costs more base text than learning what is preferred. Best-of-n has SFT's weights, so SFT's perplexity: it pays no tax of its own, and pays at every answer instead. What each of them pays is
# variety: a policy that has found what scores says it more often.

# %% tags=["nbval-check-output"]
check("SFT costs perplexity on base text", tax["SFT"].low > tax["base"].high)
added = {name: tax[name].estimate - tax["SFT"].estimate for name in policies}
check("no policy adds as much to that as SFT did", max(added.values()) < tax["SFT"].estimate - tax["base"].estimate)
check("facts are kept: every policy tells at least 90 % apart", min(value.estimate for value in facts.values()) > 0.9)
check(
    "the answers of each other contestant to one prompt are more alike than SFT's",
    min(spread[name].self_similarity.estimate for name in wins) > spread["SFT"].self_similarity.estimate,
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Would it happen again?
#
# Every interval so far is over prompts: it speaks about *these checkpoints*, on prompts like these. Train again with another seed and you get other checkpoints. A claim about a *method* has to hold for those, too. So the whole course was run
# with five seeds (`make results`), and `data/seeds.jsonl` holds the gold of each model on each prompt. Seeds and prompts are both drawn at random (Searle et al. 1992, chapter 4):
#
# $$d_{sp} = \mu + \text{seed}_s + \text{prompt}_p + \text{rest}_{sp}, \qquad \mathrm{Var}(\bar d) = \frac{\sigma^2_{seed}}{S} + \frac{\sigma^2_{prompt}}{P} + \frac{\sigma^2_{rest}}{SP}$$
#
# No number of prompts makes the first term smaller.
#
# **Predict before you run:** PPO against DPO, five times over. Do the five intervals agree?

# %%
stored = by_model(row for row, _ in read_jsonl(SEEDS))  # {model: (seeds, prompts)}
gaps = stored["PPO"] - stored["DPO"]
pictured = {f"run {s + 1}": {"PPO - DPO": mean_interval(gap)} for s, gap in enumerate(gaps)}
pictured["all five"] = {"PPO - DPO": seed_study(gaps).mean}
plots.show(
    plots.intervals(pictured, ylabel="difference in mean gold", number="+z.2f"),
    alt="PPO less DPO in mean gold: five runs with intervals over prompts, and all five with an interval over seeds and prompts",
)

# %%
rows = {}
for one, other in [(name, "SFT") for name in wins] + list(combinations(wins, 2)):
    here, study = mean_interval(gold[one] - gold[other], seed=SEED), seed_study(stored[one] - stored[other])
    rows[f"{one} against {other}"] = {
        "this run, over prompts": cell(here, "+z.3f"),
        "these checkpoints": verdict(here),
        "five runs, over seeds and prompts": cell(study.mean, "+z.3f"),
        "the method": verdict(study.mean),
        "share of seeds": f"{study.seed_share:.0%}",
    }
survey = pd.DataFrame(rows).T
survey

# %%
claimed = survey[survey["these checkpoints"] != "open"]
kept = claimed[claimed["these checkpoints"] == claimed["the method"]]
print(f"of {len(claimed)} verdicts on these checkpoints, {len(kept)} survive as verdicts on the method")
print("do not survive:", ", ".join(claimed.index.difference(kept.index)) or "none")

# %% tags=["nbval-check-output"]
for name in ("best of 4", "PPO", "DPO"):
    check(f"{name} beats SFT over seeds and prompts", seed_study(stored[name] - stored["SFT"]).mean.low > 0)

# %% [markdown]
# "Share of seeds" is how much of one run's variance on one prompt is the seed's doing on all prompts: about a percent or less here. And yet the seed's share is the part that stays when you average over prompts.
# Because it is small in this world, five runs are above all five times the data, and an open verdict may even close. Where training is longer or less stable it is the other way round: verdicts open again. You know which only if you have run it.
#
# And a "method" is its recipe in this course: PPO sampled 5,120 answers, GRPO and online DPO 2,560, DPO none. With more answers one of them might catch up; no number of seeds would tell.
#
# ## What it takes
#
# Seconds of training, as each checkpoint's `training.json` records them, against answers at every question. All but SFT and DPO also need the reward model. The last column: after how many questions best-of-4, which draws four answers each time, has
# taken as long as that training.


# %%
def training_seconds(stage):
    """Seconds of training, or None where nothing was recorded."""
    record = load_settings(checkpoint(stage))
    return record.seconds if record else None


stages = {"SFT": "sft", "reward model": "reward", **TRAINED}
spent = {name: training_seconds(stage) for name, stage in stages.items()}
extra = (N - 1) * seconds_an_answer  # what best-of-4 takes longer at every question
costs = {
    name: {
        "trained for": "not recorded" if seconds is None else f"{seconds:.0f} s",
        "answers a question": "" if name == "reward model" else 1,
        "repaid after, questions": "" if seconds is None or name not in TRAINED else f"{seconds / extra:,.0f}",
    }
    for name, seconds in spent.items()
}
pd.DataFrame(costs | {"best of 4": {"trained for": "0 s", "answers a question": N, "repaid after, questions": ""}}).T

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The report card
#
# All of this on one page, for these checkpoints or any others: `python -m picollm_lite.report_card CHECKPOINT ... --ref CHECKPOINT`. It also names the data and the environment, splits the suite, audits the reward model, and shows answers: the
# best, the median and the worst, not the nicest.

# %%
card = report_card(
    [checkpoint(stage) for stage in TRAINED.values()],
    ref=checkpoint("sft"),
    reward=checkpoint("reward"),
    suite=suite,
    data=[describe_demos(DEMOS), describe_preferences(PREFERENCES)],
    answers=ANSWERS // 2,  # every model answers anew
    seed=SEED,
    device=DEVICE,
)
markdown, page = write(card, outputs() / "report")
print(f"open outputs/report/{page.name} in a browser; {markdown.name} is the same as text")

# %%
sections = markdown.read_text(encoding="utf-8").split("\n## ")
Markdown("\n\n".join(f"### {part}" for part in sections if part.startswith("Suite\n")))

# %% [markdown]
# The card drew answers of its own, two a prompt where we had four. So its win rates lie closer to a coin, and the intervals of its means are wider: does a verdict differ from yours above? Fewer answers also repeat each other less, which lifts distinct-2.
#
# Numbers do not replace reading. The prompt on which PPO does worst:

# %%
worst = int(gold["PPO"].argmin())
show_answers(questions[worst], {name: given[worst] for name, given in texts.items()})

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Recap
#
# - A frozen suite, the same prompts for all: differences are paired. Every choice made by it, ours included, wears it out.
# - No claim without an interval. Resample prompts, with both models' answers to each; count ties as half.
# - A judge is a callable with tastes. Swap positions; never let a method's own reward judge it; try a constant answer.
# - Length control removes length and nothing else, and extrapolates where one side is always shorter.
# - Compare at matched KL, and say whose frontier it is.
# - An interval over prompts is about checkpoints, one over seeds and prompts about methods. Say which of the two you make.
# - Better at this may be worse at something else: measure the tax, the diversity and the cost.
#
# **Discuss:** a colleague reports "54 % wins, p < 0.05" for a new method: one seed, one LLM judge, no swapping, 40 settings tried on the same prompts. Which question would you ask first, and which would be cheapest to answer?
#
# **Further reading:** Efron and Tibshirani 1993, *An introduction to the bootstrap*, chapter 13. Miller 2024, *Adding error bars to evals*. Zheng et al. 2023, *Judging LLM-as-a-judge with MT-Bench and Chatbot Arena*, section 3. Dubois et al.
# 2024, *Length-controlled AlpacaEval*. Zheng et al. 2024, *Cheating automatic LLM benchmarks*. Agarwal et al. 2021, *Deep reinforcement learning at the edge of the statistical precipice*. Ramé et al. 2024, *WARP: on the benefits of weight
# averaged rewarded policies*.
