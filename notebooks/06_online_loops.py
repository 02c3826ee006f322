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
# # 06 · Online loops
#
# PPO learns from fresh answers, but needs a critic and much bookkeeping. DPO needs neither, but learns from old answers. Between the two stands a family of **online loops** that ask one simple
# question: *of several answers to the same prompt, which is better?* Sample, score, compare, learn, sample anew. In this notebook you will run five of them from the same SFT model, on the same number of answers,
# and find out what each one is good for.
#
# | | |
# |---|---|
# | **You will be able to** | say what best-of-n gains, costs and how far it moves; use the other answers as a baseline; tell RLOO, GRPO, online DPO and rejection sampling apart by what they do with a group of answers; compare methods on one budget |
# | **Time** | 2 minutes to run, 60 to work through (2 CPU cores) |
# | **Needs** | the SFT model and the reward model (yours, or the shipped ones) |
# | **Produces** | `outputs/checkpoints/online_dpo` and `outputs/checkpoints/grpo`, which notebook 07 compares |

# %% tags=["setup"]
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything ships with the course; nothing is downloaded
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import time
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from picollm_lite.chat import answer, respond
from picollm_lite.data import load_preferences, load_suite
from picollm_lite.evaluation.drift import drift
from picollm_lite.evaluation.features import features
from picollm_lite.evaluation.metrics import gold_scores, mean_interval, paired_win_rate
from picollm_lite.evaluation.training_record import save_settings
from picollm_lite.kernels.advantages import group_normalise, leave_one_out
from picollm_lite.kernels.group_losses import grpo_loss, reinforce_loss
from picollm_lite.kernels.logprobs import kl_k3
from picollm_lite.models import RewardModel, load_policy, save
from picollm_lite.paths import PREFERENCES, SUITE, checkpoint, outputs
from picollm_lite.scoring import left_align, sequence_logprobs
from picollm_lite.stages import best_of_n, group_policy, online_dpo, rejection
from picollm_lite.ui import plots
from picollm_lite.ui.claims import check, measure
from picollm_lite.ui.exercises import exercise
from picollm_lite.ui.explorers import sliders
from picollm_lite.ui.panel import TrainingPanel
from picollm_lite.ui.setup import start

# %%
SEED = 0
GROUP_SIZE = 4  # answers to a prompt
BATCH_SIZE, STEPS = 128, 20  # answers a step; every loop samples BATCH_SIZE * STEPS answers
ROUNDS = 2  # rejection sampling takes the same answers in fewer, larger batches
N_MAX = 32  # of best-of-n
RLOO_RATE, GRPO_RATE, ONLINE_DPO_RATE, REJECTION_RATE = 3e-4, 3e-4, 3e-4, 1e-4
KL_COEF, BETA = 0.3, 0.1
ANSWERS = 4  # to each prompt of the suite, when models are compared
DEVICE = start(SEED)

# %%
ref, tokenizer = load_policy(checkpoint("sft"), device=DEVICE)  # where every loop starts, and the reference
reward_model = RewardModel.load(checkpoint("reward"), device=DEVICE)
questions = list(load_suite(SUITE)["prompt"])
prompts = sorted({row[-1]["content"] for row in load_preferences(PREFERENCES)["prompt"]})  # what we train on
print(f"{len(prompts):,} prompts to train on; {len(questions)} in the frozen suite")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A group of answers
#
# Everything below starts from a **group**: $G$ answers $y_1, \dots, y_G$ to one prompt, each with its score $r_i$ from the reward model, our proxy. Three groups of four will carry us through the derivations.

# %%
three = questions[:3]
asked = [question for question in three for _ in range(GROUP_SIZE)]  # neighbors answer the same prompt
sample, texts = respond(ref, tokenizer, asked, seed=SEED)
r = reward_model.score(asked, texts)  # (B,)
pd.DataFrame({"question": asked, "proxy": r.cpu(), "gold": gold_scores(asked, texts), "answer": texts}).round(2)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Best-of-n: no training at all
#
# The simplest use of a group: give the answer with the highest score and throw the rest away. That is **best-of-n**. It trains nothing, needs nothing but a policy and a reward model, and costs $n$ answers at *every* question, for ever.
#
# **Predict before you run:** as $n$ grows, the proxy of the chosen answer can only grow. What does its gold do?

# %%
started = time.perf_counter()
draws = best_of_n.draw(ref, reward_model.score, questions, N_MAX, tokenizer=tokenizer, gold_fn=gold_scores, seed=SEED)
curve = best_of_n.curve(draws)  # what best-of-n gives for n = 1, ..., N_MAX
print(f"{draws.proxy.size:,} answers in {time.perf_counter() - started:.0f} s")

# %% slideshow={"slide_type": "slide"}
n = np.array([row.n for row in curve])
figure = plots.curves(
    {"proxy": [row.proxy for row in curve], "gold": [row.gold for row in curve]},
    x=n,
    xlabel="n, answers to choose from",
    ylabel="expected reward of the chosen",
)
plots.show(figure, alt="Best-of-n: the proxy rises with n; gold rises steeply, peaks at a small n, and falls")

# %%
bon_gold = np.array([row.gold for row in curve])
peak = int(bon_gold.argmax())
print(
    f"gold of one answer {bon_gold[0]:.2f}, best at n = {n[peak]} with {bon_gold[peak]:.2f}, at n = {n[-1]}: {bon_gold[-1]:.2f}"
)

# %% tags=["nbval-check-output"]
gain_4 = mean_interval(gold_scores(questions, best_of_n.best(draws, 4)) - draws.gold.mean(1))
check("best of 4 has more gold than one answer: the interval of the difference lies above 0", gain_4.low > 0)
check("gold peaks before the largest n", n[peak] < N_MAX)
check("from its peak to the largest n gold falls by more than a tenth of a point", bon_gold[-1] < bon_gold[peak] - 0.1)

# %% [markdown]
# Over-optimization again, without a single gradient: what climbs is not the policy but the choice. The more answers there are to choose from, the likelier one of them has what the reward model overrates.
#
# **Try:** move $n$ and read the winner. From which $n$ on does it flatter?

# %%
shown = slice(0, 24)
sliders.best_of_n(draws.prompts[shown], draws.texts[shown], draws.proxy[shown], draws.gold[shown])

# %% [markdown] slideshow={"slide_type": "slide"}
# ### How far does choosing move the policy?
#
# Best-of-n is a policy too: it says some answers more often than $\pi$ does. Sort the answers to a prompt by score, and let no two have the same one. With $F(y)$ the probability of an answer that scores no higher than $y$, and $F^-(y)$ of one that scores lower,
#
# $$\pi_n(y) = F(y)^n - F^-(y)^n \qquad \mathrm{KL}(\pi_n\,\|\,\pi) = \sum_y \pi_n(y) \log\frac{\pi_n(y)}{\pi(y)}$$
#
# all $n$ score no higher, but not all of them lower. If every single answer is improbable, the sum becomes an integral, whatever else $\pi$ and the scores are, and its value is the number that papers print (Stiennon et al. 2020, appendix G.3):
#
# $$\mathrm{KL}(\pi_n\,\|\,\pi) \le \log n - \frac{n-1}{n}$$
#
# With answers that have mass of their own it is only an upper bound (Beirami et al. 2024).
#
# ### Exercise: the distance of best-of-n
# *Difficulty 2 of 3, about 10 minutes.* `p` (A,) holds the probability of each answer to a prompt, lowest score first. Return the KL in nats, a scalar.
#
# <details><summary>Hint</summary>`p.cumsum(0)` is F. Put a 0 in front and F^- stands one place to the left. What has probability 0 adds 0: `torch.special.xlogy`.</details>


# %%
@exercise("best_of_n_distance")
def best_of_n_distance(p, n):
    raise NotImplementedError


# %%
p = torch.tensor([0.5, 0.25, 0.25])
for k in (2, 4, 16):
    by_hand = best_of_n_distance(p, k).item()
    np.testing.assert_allclose(best_of_n.best_of_n_kl(p.numpy(), [k]), by_hand, rtol=1e-5)
    print(f"n = {k:>2}: three answers {by_hand:.3f} nats, the bound {best_of_n.kl_bound([k])[0]:.3f}")

# %% [markdown]
# With three answers the KL can never exceed $\log 4$, that of always giving the best one; the bound grows for ever. **Predict:** our policy has far more than three answers to a prompt. Is the bound loose for it?

# %%
powers = [1, 2, 4, 8, 16, 32]
pd.DataFrame([curve[k - 1] for k in powers]).set_index("n")[["kl", "kl_bound", "proxy", "gold", "rollouts"]].round(2)


# %%
def distance_at(k, score, logp, answer):
    """Measured KL of best-of-k at one prompt, from its draws."""
    return best_of_n.best_of_n_kl(best_of_n.level_masses(score, logp, answer), [k])[0]


kl_16 = np.array([distance_at(16, *row) for row in zip(draws.score, draws.logp, draws.answer, strict=True)])
for i in (*kl_16.argsort()[:3], kl_16.argmax()):
    print(f"{kl_16[i]:.2f} nats, {len(set(draws.answer[i])):>2} of {N_MAX} answers different: {questions[i]}")

# %% tags=["nbval-check-output"]
check(
    "at n = 16 the bound is nearly tight: the measured KL is within a tenth of it",
    curve[15].kl > 0.9 * curve[15].kl_bound,
)
check(
    "but not at every prompt: somewhere it is less than three quarters of it", kl_16.min() < 0.75 * curve[15].kl_bound
)

# %% [markdown]
# On average the bound is nearly tight: most answers are improbable one by one, which is the case that it was derived for. It is loose where the answers that score best are likely ones: once one of them has been drawn, further draws change nothing.
#
# ## One budget
#
# Best-of-n pays at every question. The loops that follow pay once: they train the policy to say at first try what would have been chosen. All of them sample 2,560 answers to the same prompts, with the same reward model and the same start. A panel shows each
# one live, and at the end we compare seconds, reward and KL.


# %%
class Loop(NamedTuple):
    policy: PreTrainedModel
    records: list
    seconds: float  # of training


def gold_fn(prompts, responses):
    """Gold for the records; training never sees it."""
    return torch.tensor(gold_scores(prompts, responses))


CHARTS = {"mean reward": ("proxy", "gold"), "KL to SFT, nats an answer": ("kl",), "length, tokens": ("length",)}
loops = {}


def run(name, loop, **settings):
    """Train a fresh copy of the SFT model in a live panel; an interrupt keeps what was trained so far."""
    policy, _ = load_policy(checkpoint("sft"), device=DEVICE)
    settings = {"steps": STEPS, "batch_size": BATCH_SIZE, "group_size": GROUP_SIZE, "seed": SEED, **settings}
    steps = loop(policy, reward_model.score, prompts, tokenizer=tokenizer, ref=ref, gold_fn=gold_fn, **settings)
    panel = TrainingPanel(name, CHARTS)
    records = panel.follow(steps)
    loops[name] = Loop(policy, records, panel.seconds)


# %% [markdown] slideshow={"slide_type": "slide"}
# ## Rejection sampling: imitate your own best
#
# Take the best answer of each group and do SFT on it, then sample anew from the new policy. This is rejection-sampling fine-tuning, also called expert iteration or RAFT (Dong et al. 2023, algorithm 1). There is no reference and no KL penalty in it: only the learning rate and the number of rounds
# keep it near its start.
#
# Is it the *choice* that helps, or would any SFT on its own answers do? A matched **control** tells: the same rounds, but the answer that is kept is drawn by lot.
#
# **Predict before you run:** what happens to a model that learns from its own random answers?

# %%
rounds = {"steps": ROUNDS, "batch_size": BATCH_SIZE * STEPS // ROUNDS, "learning_rate": REJECTION_RATE}
run("rejection sampling", rejection.train, **rounds)
run("random control", rejection.train, keep=rejection.keep_random, **rounds)

# %% [markdown]
# On average the control learns nothing at the first update of a round, and hardly anything after it: for answers of the policy itself, the expected gradient of the log-prob is zero,
#
# $$\mathbb{E}_{y\sim\pi}\big[\nabla\log\pi(y)\big] = \sum_y \nabla\pi(y) = \nabla 1 = 0$$
#
# so what is left is a random walk. It moves, and where to depends on the seed: over five seeds the control won between 42 and 56 % of the prompts against SFT (`data/results.md`). If its curves above rise or fall, that is as much the doing of the prompts: the second round has others. Remember this line: it is what makes the next method work.
#
# ## RLOO: the others are the baseline
#
# The gradient of the expected reward is $\mathbb{E}\big[r(y)\,\nabla\log\pi(y)\big]$ (REINFORCE, Williams 1992). By the line above any constant $b$ may be subtracted from $r$ without changing the expectation. A good one changes the *noise*: an answer should count as good if it is better than what
# one would have expected, and PPO trains a whole critic to know what that is. But the other answers to the same prompt know it, too. **RLOO**, REINFORCE with leave-one-out baseline (Kool et al. 2019; Ahmadian et al. 2024, section 2):
#
# $$A_i = r_i - \frac{1}{G-1}\sum_{j\ne i} r_j \qquad L = -\frac1B\sum_i A_i \log\pi_\theta(y_i)$$
#
# Its own score must stay out, or the baseline would depend on the answer and the line above would no longer hold.
#
# ### Exercise: leave one out
# *Difficulty 1 of 3, about 6 minutes.* `scores` (B,) holds runs of `group_size` neighbors. Return each one's advantage, (B,).
#
# <details><summary>Hint</summary>The sum of a group less the score itself is the sum of the others.</details>


# %%
@exercise("leave_one_out_advantages")
def leave_one_out_advantages(scores, group_size):
    raise NotImplementedError


# %%
A = leave_one_out_advantages(r, GROUP_SIZE)  # (B,)
torch.testing.assert_close(leave_one_out(r, GROUP_SIZE), A)
sequences = left_align(sample)
mask = sequences.mask  # (B, T): True on response tokens
logp = sequence_logprobs(ref, sequences).detach()  # (B, T): the policy is still the reference
L = -(A * (logp * mask).sum(1)).mean()
torch.testing.assert_close(reinforce_loss(logp, A, mask), L)
print(f"loss of this batch {L:+.2f}: the value says nothing, it is the gradient that counts")

# %% [markdown]
# How much noise does this baseline take away? Leaving one out turns the spread *within* a group, $\sigma^2$, into $\sigma^2 G/(G-1)$, as the baseline is noisy too; the spread *between* prompts it takes away altogether. The answers from above, cut into groups of different sizes:
#
# **Predict before you run:** is a baseline of one other answer better than none?

# %%
scores = torch.tensor(draws.score.flatten())
print(f"no baseline: mean square {scores.square().mean():.2f}")
noise = {size: leave_one_out(scores, size).square().mean().item() for size in (2, 4, 8, 16)}
for size, value in noise.items():
    print(f"groups of {size:>2}: {value:.2f}")

# %% tags=["nbval-check-output"]
check("the more others, the less noise", noise[2] > noise[4] > noise[8] > noise[16])
check("with seven others it is less than without a baseline", noise[8] < scores.square().mean())

# %% [markdown]
# One other answer is as noisy as the answer itself: compare the first line. A critic has an error of its own, but not this one: it pools what it has learned from all prompts. That is what PPO pays for.
#
# The KL penalty is taken off each answer's score before the baseline, as in PPO: $r_i - \beta \log\frac{\pi_\theta(y_i)}{\pi_{ref}(y_i)}$. No critic, no GAE, no clip: one update a batch, so that every answer comes from the policy that is updated.

# %%
run("RLOO", group_policy.rloo, learning_rate=RLOO_RATE, kl_coef=KL_COEF)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## GRPO: the same, in units of the group
#
# GRPO (Shao et al. 2024, section 4.1) made the idea famous. It differs in four places:
#
# - the advantage is measured in standard deviations of its group, $A_i = (r_i - \bar r)/\mathrm{std}(r)$;
# - PPO's clipped ratio is back, so that a batch can be used for several updates;
# - the penalty is $k_3$ of every token, in the loss and not in the reward;
# - an answer's loss is the *mean* over its tokens.
#
# Its mean $\bar r$ includes the answer's own score. That does no harm: $r_i - \bar r$ is $\frac{G-1}{G}$ times the advantage of RLOO, a constant factor.
#
# $$L = -\frac1B\sum_i \frac{1}{|y_i|}\sum_t \Big[\min\big(\rho_{it}A_i,\ \mathrm{clip}(\rho_{it}, 1-\epsilon, 1+\epsilon)A_i\big) - \beta\,k_3\Big]$$
#
# **Predict before you run:** one group has the scores 1.00, 1.01, 1.02, 1.03, another one -2, 0, 1, 3. Which one teaches more, by RLOO and by GRPO?

# %%
two = torch.tensor([1.00, 1.01, 1.02, 1.03, -2.0, 0.0, 1.0, 3.0])
for name, advantages in {"RLOO": leave_one_out(two, 4), "GRPO": group_normalise(two, 4)}.items():
    print(f"{name}: {[round(a, 2) for a in advantages.tolist()]}")

# %% [markdown]
# To GRPO both groups matter alike: a hundredth of a point between nearly equal answers counts as much as a real difference. And the mean over tokens makes a bad answer cheaper a token if it is longer. Both were criticized by Liu et al. (2025), who drop the two divisions: **Dr. GRPO**, "GRPO done right".
# GRPO's loss by hand, at the first update, where every ratio is 1:

# %%
grouped = r.view(-1, GROUP_SIZE)
A = ((grouped - grouped.mean(1, keepdim=True)) / (grouped.var(1, unbiased=False, keepdim=True) + 1e-8).sqrt()).flatten()
torch.testing.assert_close(group_normalise(r, GROUP_SIZE), A)
ref_logp = logp - 0.1 * mask  # pretend that the reference gives every token a tenth of a nat less
per_token = (A[:, None] - KL_COEF * kl_k3(logp, ref_logp)) * mask  # (B, T)
L = -(per_token.sum(1) / mask.sum(1)).mean()
torch.testing.assert_close(grpo_loss(logp, logp, ref_logp, A, mask, kl_coef=KL_COEF), L)

# %%
grpo_settings = {"learning_rate": GRPO_RATE, "kl_coef": KL_COEF, "epochs": 1}  # two minibatches a batch
run("GRPO", group_policy.grpo, **grpo_settings)
run("Dr. GRPO", group_policy.grpo, std_term=False, length_term=False, **grpo_settings)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Online DPO: the group as a pair
#
# The best and the worst of a group are a preference pair, and notebook 05 has the loss for it. **Online DPO** (Guo et al. 2024) is that: DPO whose pairs are the policy's own, labeled at the moment they are sampled (there two answers a prompt, judged by a language model; here the best and the worst of four, by the reward model).
#
# **Predict before you run:** look at the three groups of the beginning. Which two answers make the pair of each?

# %%
best, worst = online_dpo.best_and_worst(r, GROUP_SIZE)  # rows of the batch
for question, i, j in zip(three, best.tolist(), worst.tolist(), strict=True):
    print(f"{question}\n  best  {r[i]:+.2f}  {texts[i]}\n  worst {r[j]:+.2f}  {texts[j]}")

# %%
online_dpo_settings = {"learning_rate": ONLINE_DPO_RATE, "beta": BETA}
run("online DPO", online_dpo.train, **online_dpo_settings)

# %% [markdown]
# Here the reference in the loss is the SFT model all the time. It may also *move*: every few steps the policy becomes its own reference, so that each stretch is a DPO run of its own, as in the self-rewarding models of Yuan et al. (2024). (The iterative DPO of Xiong et al. 2023 renews the pairs and keeps the reference.) Nothing then ties the policy to SFT but the
# learning rate and the number of steps.
#
# **Try:** run it once more with `move_ref_every=5` and another name. In a run as short as this you will hardly see a difference; with `steps=60` you may.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## All of them, side by side
#
# First while they trained: proxy and gold against the answers sampled so far. Then on the frozen suite.


# %%
def while_training(what):
    """Means over three steps, one column a loop; a loop that was stopped early ends early."""
    frame = pd.DataFrame(
        {
            name: pd.Series({record.rollouts: getattr(record, what) for record in loops[name].records})
            for name in ("RLOO", "GRPO", "Dr. GRPO", "online DPO")
        }
    )
    smooth = frame.rolling(3, min_periods=1).mean().where(frame.notna())
    return plots.curves(dict(smooth), x=smooth.index, xlabel="answers sampled", ylabel=f"mean {what} (3 steps)")


plots.show(while_training("proxy"), alt="Mean proxy against answers sampled, for four loops: all rise")

# %%
plots.show(
    while_training("gold"), alt="Mean gold against answers sampled, for four loops: they rise less than proxy does"
)

# %%
asked = questions * ANSWERS
texts = {"SFT": answer(ref, tokenizer, asked, seed=SEED)}
texts |= {name: answer(loop.policy, tokenizer, asked, seed=SEED) for name, loop in loops.items()}
gold = {name: gold_scores(asked, said).reshape(ANSWERS, -1).mean(0) for name, said in texts.items()}  # (prompts,)
wins = {name: paired_win_rate(values, gold["SFT"]) for name, values in gold.items()}


def report(name, loop):
    win = wins[name]
    return {
        "seconds": round(loop.seconds),
        "proxy": round(reward_model.score(asked, texts[name]).mean().item(), 2),
        "gold": round(gold[name].mean(), 2),
        "KL": round(drift(loop.policy, ref, tokenizer, questions, seed=SEED).exact.estimate, 3),
        "flattering": round(features(asked, texts[name])["flattery"].mean(), 2),
        "wins against SFT": f"{win.rate:.0%} [{win.low:.0%}, {win.high:.0%}]",
    }


table = {name: report(name, loop) for name, loop in {"SFT": Loop(ref, [], 0.0), **loops}.items()}
pd.DataFrame(table).T

# %%
for name in loops:
    measure(f"{name}: gold win rate against SFT on the suite", wins[name])
measure("best of 4: gain in gold over one answer", gain_4)

# %% [markdown]
# Where does each stand at its distance from SFT? Best-of-n is in the picture, too: its curve is what *choosing* gives at that KL.


# %% slideshow={"slide_type": "slide"}
def at_its_distance(what):
    names = ("RLOO", "GRPO", "online DPO", "rejection sampling")
    points = {name: ([max(table[name]["KL"], 0) ** 0.5], [table[name][what]]) for name in names}
    best_of = np.sqrt([row.kl for row in curve]), [getattr(row, what) for row in curve]
    labels = {"xlabel": "distance, square root of KL", "ylabel": f"{what} on the suite", "label": "best-of-n"}
    return plots.scatter_with_curve(points, curve=best_of, **labels)


plots.show(at_its_distance("proxy"), alt="Proxy against distance: the curve of best-of-n, and where each loop ended")

# %%
plots.show(at_its_distance("gold"), alt="Gold against distance: best-of-n's curve peaks; the loops ended below it")

# %%
trained = [name for name in loops if name != "random control"]
at_same_kl = {name: np.interp(table[name]["KL"], [row.kl for row in curve], bon_gold) for name in trained}
for name in trained:
    print(f"{name}: gold {table[name]['gold']:.2f}, best-of-n at the same KL {at_same_kl[name]:.2f}")

# %% tags=["nbval-check-output"]
for name in ("RLOO", "GRPO", "Dr. GRPO", "online DPO"):
    check(f"{name} beats SFT on the suite by gold: the win rate's interval lies above 50 %", wins[name].low > 0.5)
check(
    "rejection sampling beats its random control by gold",
    gold["rejection sampling"].mean() > gold["random control"].mean(),
)
check("at the KL of each loop best-of-n has more gold", all(at_same_kl[name] > table[name]["gold"] for name in trained))

# %% [markdown]
# How to read this:
#
# - **The loops that use losers win most,** here and with most seeds, not with all. RLOO, GRPO and online DPO push bad answers down as well as good ones up. Rejection sampling only imitates winners, and most of what it imitates is accident: look how far its control moved, which learned nothing. It is not the only
#   difference: rejection sampling also samples anew only once, and learns at a lower rate.
# - **Best-of-n is hard to beat at its distance.** It moves probability straight to what scores well, prompt by prompt. A loop has to say it in weights that all prompts share, and spends KL on noise. But the loop answers at once, and best-of-n draws $n$ times for every question.
# - **All that counts is the proxy, for all of them.** Look at the column *flattering*, and at whose is clearly larger than the random control's, which no reward has touched. Nothing in a loop protects from what the reward model overrates.
#
# How sure is the order of the loops among themselves? Ask before you believe it:

# %%
for a, b in (("RLOO", "online DPO"), ("Dr. GRPO", "GRPO"), ("RLOO", "rejection sampling")):
    win = paired_win_rate(gold[a], gold[b])
    verdict = f"{a} is better" if win.low > 0.5 else f"{b} is better" if win.high < 0.5 else "not told apart"
    print(f"{a} against {b}: {win.rate:.0%} [{win.low:.0%}, {win.high:.0%}], {verdict} on this suite, with this seed")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Which is the right tool?
#
# | | needs | pays | good when |
# |---|---|---|---|
# | best-of-n | policy, reward model | $n$ answers at every question | few questions, no time to train; as a yardstick of what the reward model can choose |
# | rejection sampling | the same, SFT code | fresh answers, in a few large rounds | selection is by something sure, such as a test that passes; simple code matters |
# | RLOO | reference, log-probs | fresh answers at every step | the default where answers are short and rewards come at the end |
# | GRPO, Dr. GRPO | the same, a ratio | fresh answers, several updates each | sampling is what costs most, and a batch should be used twice |
# | online DPO | reference, log-probs | fresh answers | all that can be had is which of two is better: a judge or a person instead of a score |
# | PPO | all that and a critic | fresh answers, critic | long answers or rewards along the way, where one number an answer is too coarse |
#
# ## Keep two
#
# Notebook 07 compares them with the others.

# %%
budget = {"start": "sft", "prompts": len(prompts), "steps": STEPS, "batch_size": BATCH_SIZE, "group_size": GROUP_SIZE}
for name, stage, settings in (
    ("online DPO", "online_dpo", online_dpo_settings),
    ("GRPO", "grpo", grpo_settings),
):
    folder = save(loops[name].policy, tokenizer, outputs() / "checkpoints" / stage)
    save_settings(folder, {"stage": stage, **budget, **settings, "seed": SEED}, loops[name].seconds)
    print(f"saved {folder.parent.name}/{folder.name}")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Recap
#
# - Several answers to one prompt are worth more than one: they say what to expect, and so replace a critic.
# - Best-of-n trains nothing and is hard to beat, at $n$ times the price of every answer. It over-optimizes as training does.
# - Its KL is at most $\log n - (n-1)/n$, and less where the best answers are likely ones.
# - $\mathbb{E}[\nabla\log\pi]=0$: any baseline that does not know the answer is free. RLOO takes the others' mean.
# - GRPO counts in units of the group, so small differences weigh as much as large ones; Dr. GRPO does not.
# - Online DPO needs only which answer is better. Rejection sampling learns from winners alone, and from their accidents, too.
# - All of them optimize the proxy. None of them knows gold.
#
# **Discuss:** the methods got the same number of answers. Would you rather have given them the same seconds? The same KL?
#
# **Further reading:** Ahmadian et al. 2024, *Back to basics: revisiting REINFORCE-style optimization for learning from human feedback in LLMs*, section 2. Shao et al. 2024, *DeepSeekMath*, section 4.1. Liu et al. 2025, *Understanding R1-zero-like
# training*, section 3. Guo et al. 2024, *Direct language model alignment from online AI feedback*. Xiong et al. 2023, *Iterative preference learning from human feedback*. Yuan et al. 2024, *Self-rewarding language models*. Beirami et al. 2024, *Theoretical guarantees on the best-of-n alignment policy*.
