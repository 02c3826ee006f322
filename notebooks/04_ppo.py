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
# # 04 · PPO
#
# We have a policy that answers and a reward model that scores. Put them together: let the policy answer, score the answers, make the better ones likelier, repeat. The
# algorithm is **PPO**, proximal policy optimization. In this notebook you will work out one step of it by hand, train, and then take away what holds it back, to see what
# happens to a policy that wants nothing but a high score.
#
# | | |
# |---|---|
# | **You will be able to** | estimate a KL divergence three ways, derive per-token rewards, advantages and the clipped loss, read a PPO run, and recognize over-optimization |
# | **Time** | 4 minutes to run, 75 to work through (2 CPU cores) |
# | **Needs** | the SFT model and the reward model (yours, or the shipped ones) |
# | **Produces** | `outputs/checkpoints/ppo` |

# %% tags=["setup"]
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything ships with the course; nothing is downloaded
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

from itertools import islice

import numpy as np
import pandas as pd
import torch

from picollm_lite.chat import answer, respond
from picollm_lite.data import load_preferences, load_suite
from picollm_lite.evaluation.audit import exploits, perturbation_table
from picollm_lite.evaluation.features import exploited, features
from picollm_lite.evaluation.metrics import gold_scores, mean_interval, overoptimization_fit, paired_win_rate
from picollm_lite.evaluation.training_record import save_settings
from picollm_lite.kernels.advantages import gae, masked_mean, shape_rewards, whiten
from picollm_lite.kernels.logprobs import kl_exact, kl_k1, kl_k2, kl_k3, token_logprobs
from picollm_lite.kernels.losses import ppo_policy_loss, ppo_value_loss
from picollm_lite.models import RewardModel, ValueModel, load_policy, save
from picollm_lite.paths import CHECKPOINTS, PREFERENCES, SUITE, checkpoint, outputs
from picollm_lite.scoring import left_align, sequence_logprobs
from picollm_lite.stages import ppo
from picollm_lite.ui import plots
from picollm_lite.ui.claims import check, measure
from picollm_lite.ui.exercises import exercise
from picollm_lite.ui.explorers.lens_data import lens_data
from picollm_lite.ui.explorers.sliders import kl_budget, sweep_rows
from picollm_lite.ui.explorers.token_lens import token_lens
from picollm_lite.ui.panel import TrainingPanel
from picollm_lite.ui.setup import start
from picollm_lite.world.asks import read, reference_answer

# %%
SEED = 0
STEPS = 40
BATCH_SIZE = 128
LEARNING_RATE = 1e-4
SWEEP_LEARNING_RATE = 3e-4  # three times as fast, to get to the interesting part within two minutes
KL_COEF, WEAK_KL_COEF, STRONG_KL_COEF = 0.3, 0.005, 1.0
SWEEP_STEPS, STRONG_STOP, LOOK_EVERY = 40, 9, 4
ANSWERS = 4  # to each prompt of the suite, when models are compared
GAMMA, LAM, CLIP = 1.0, 0.95, 0.2
UNFINISHED_SCORE = -3.0
LAB_STEPS = 9
DEVICE = start(SEED)

# %%
policy, tokenizer = load_policy(checkpoint("sft"), device=DEVICE)
ref, _ = load_policy(checkpoint("sft"), device=DEVICE)  # the reference: it stays as it is
reward_model = RewardModel.load(checkpoint("reward"), device=DEVICE)
questions = list(load_suite(SUITE)["prompt"])
prompts = sorted({row[-1]["content"] for row in load_preferences(PREFERENCES)["prompt"]})  # what we train on
print(
    f"{len(prompts):,} prompts to train on; {len(questions)} in the frozen suite, {len(set(prompts) & set(questions))} of them in both"
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What we want
#
# Raise the expected reward, and stay close to the model we started from (Ziegler et al. 2019, eq. 2):
#
# $$\max_\theta\ \mathbb{E}_{x,\ y \sim \pi_\theta(\cdot\mid x)}\big[\,r(x, y)\,\big] - \beta\ \mathrm{KL}\big(\pi_\theta \,\|\, \pi_{ref}\big)$$
#
# $\pi_\theta$ is the policy that we train, $\pi_{ref}$ the **reference**, here a frozen copy of the SFT model, $r$ the score of the reward model, and $\beta$, in code `kl_coef`, the price of
# one nat of distance. Why stay close? Because $r$ was learned on answers of the SFT model and is only to be trusted near them.
#
# The **KL divergence** measures the distance in nats an answer. It is an expectation over the policy's own answers:
#
# $$\mathrm{KL}(\pi_\theta\,\|\,\pi_{ref}) = \mathbb{E}_{y\sim\pi_\theta} \sum_t \log\frac{\pi_\theta(y_t \mid x, y_{<t})}{\pi_{ref}(y_t \mid x, y_{<t})}$$
#
# ## A rollout
#
# To *roll out* is to sample an answer and write down the log-prob of every token as it is drawn. Four prompts will carry us through the derivation.

# %%
four = questions[:4]
sample, texts = respond(policy, tokenizer, four, seed=SEED)
sequences = left_align(sample)  # rows start at the left edge; position t predicts token t + 1
mask, logp = sequences.mask, sequences.logp  # (B, T): True on response tokens; log pi(y_t)
for text, row in zip(texts, mask, strict=True):
    print(f"{int(row.sum()):>3} tokens  {text}")

# %% [markdown]
# Two things must hold, or nothing after them is right. A second pass over the finished text must give the log-probs that were written down while sampling: the same temperature, the same
# positions, no dropout. And as the policy is still a copy of the reference, the KL must be 0.

# %%
with torch.no_grad():
    ref_logp = sequence_logprobs(ref, sequences)  # (B, T): one pass of the reference over the finished text
kl_at_start = (logp - ref_logp).sum(1).mean().item()
largest = (logp - ref_logp).abs().max().item()
print(f"KL at the start {kl_at_start:+.6f} nats an answer; largest difference of a token's log-prob {largest:.1e}")

# %% tags=["nbval-check-output"]
check("the KL of a policy to its own copy is 0", abs(kl_at_start) < 1e-3)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Three ways to estimate the KL
#
# The sum over the whole vocabulary at every token would be exact. With a real vocabulary that is costly, so one uses only the tokens that were drawn. With
# $u_t = \pi_{ref}(y_t) / \pi_\theta(y_t)$, Schulman (2020) compares three estimators:
#
# $$k_1 = -\log u \qquad k_2 = \tfrac12 (\log u)^2 \qquad k_3 = (u - 1) - \log u$$
#
# $k_1$ is right on average but noisy, and often negative. $k_2$ is never negative but biased. $k_3$ is right on average *and* never negative.
#
# ### Exercise: three estimators
# *Difficulty 2 of 3, about 8 minutes.* `logp` and `ref_logp` are the log-probs of tokens drawn from the policy. Return `(k1, k2, k3)`, each of the same shape.
#
# <details><summary>Hint</summary>Mind which one is the policy. Everything is a function of <code>ref_logp - logp</code>.</details>


# %%
@exercise("kl_estimators")
def kl_estimators(logp, ref_logp):
    raise NotImplementedError


# %% [markdown]
# To compare them we need a policy that differs from its reference: the shipped PPO model, on answers of its own, and the shipped SFT model that it started from.

# %%
trained, origin = (load_policy(CHECKPOINTS / name, device=DEVICE)[0] for name in ("ppo", "sft"))
away = left_align(respond(trained, tokenizer, questions, seed=SEED).rollout)
with torch.no_grad():
    away_ref_logp = sequence_logprobs(origin, away)
    exact = kl_exact(*(model(input_ids=away.tokens[:, :-1]).logits for model in (trained, origin)))  # (B, T)
estimates = dict(zip(("k1", "k2", "k3"), kl_estimators(away.logp, away_ref_logp), strict=True))
for kernel, mine in zip((kl_k1, kl_k2, kl_k3), estimates.values(), strict=True):
    torch.testing.assert_close(kernel(away.logp, away_ref_logp), mine)
rows = {"exact": exact, **estimates}
pd.DataFrame(
    {
        name: [masked_mean(k, away.mask).item(), k[away.mask].std().item(), (k[away.mask] < 0).float().mean().item()]
        for name, k in rows.items()
    },
    index=["mean, nats a token", "standard deviation", "share below 0"],
).T.round(4)

# %% tags=["nbval-check-output"]
spread_of = {name: k[away.mask].std().item() for name, k in rows.items()}
check("k1 spreads further than k3", spread_of["k1"] > spread_of["k3"])
check(
    "k1 has negative values, k2 and k3 have none",
    all((rows[k][away.mask] < -1e-6).any() == (k == "k1") for k in estimates),
)

# %% [markdown]
# Compare the rows with the exact one. $k_3$ comes nearest. $k_1$ is right on average, but spreads so far that a few thousand tokens leave its mean off by a good part; the bias of $k_2$ is small as long as the policy is close to its reference. Many values of
# $k_1$ are negative, but its *mean over many answers* should not be: if you ever see a clearly negative KL curve, something is wrong with the log-probs. You will hunt that bug below.
#
# ## Rewards, token by token
#
# An action is one token, so the objective is spread over tokens: at every token the policy pays for its distance there, and at the last one, where $\mathbb{1}[t = T]$ is 1, it gets the score.
#
# $$r_t = -\beta\,(\log\pi_\theta(y_t) - \log\pi_{ref}(y_t)) + \mathbb{1}[t = T]\; r(x, y)$$
#
# An answer that was cut off at the length limit never reached its end token. It gets a fixed low score instead.

# %%
scores = reward_model.score(four, texts).cpu()  # (B,)
final = scores.where(sample.finished.cpu(), torch.tensor(UNFINISHED_SCORE)).to(DEVICE)
r_t = -KL_COEF * (logp - ref_logp) * mask  # (B, T)
last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)  # (B,): the last response token
r_t[torch.arange(4), last] += final
torch.testing.assert_close(shape_rewards(final, logp, ref_logp, mask, kl_coef=KL_COEF), r_t)
print("scores", [round(x, 2) for x in final.tolist()])
print("last rewards of the second answer:", [round(x, 2) for x in r_t[1][mask[1]].tolist()[-4:]])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Advantages
#
# A score of +1 is good news only if we expected less. The **critic** $V$ predicts, before every token, the reward still to come. The surprise at one token is
#
# $$\delta_t = r_t + \gamma V_{t+1} - V_t$$
#
# and the **advantage** of having chosen token $t$ adds up later surprises, fading by $\gamma\lambda$ a token (generalized advantage estimation, Schulman et al. 2016, eq. 16):
#
# $$A_t = \sum_{l \ge 0} (\gamma\lambda)^l\,\delta_{t+l} \qquad\text{so}\qquad A_t = \delta_t + \gamma\lambda\,A_{t+1}$$
#
# After the last token there is nothing to come: $V_{T+1} = 0$. We use $\gamma = 1$: a score is worth the same however long the answer. $\lambda$ trades noise ($\lambda = 1$, wait for the real score) against trust in the
# critic ($\lambda = 0$). The critic is trained toward the *returns* $R_t = A_t + V_t$.
#
# ### Exercise: advantages
# *Difficulty 3 of 3, about 15 minutes.* `rewards` and `values` are (T,), one answer. Return its advantages, (T,).
#
# <details><summary>Hint</summary>Walk backwards from the last token, carrying the advantage of the token after.</details>


# %%
@exercise("advantages")
def advantages(rewards, values, gamma, lam):
    raise NotImplementedError


# %%
critic = ValueModel.from_policy(policy)  # a trunk of its own, and a head of zeros: it expects nothing yet
with torch.no_grad():
    V = critic.at(sequences) + 0.1 * mask  # (B, T); pretend that it expects 0.1 everywhere
A, R = gae(r_t, V, mask, gamma=GAMMA, lam=LAM)
for row in range(4):
    torch.testing.assert_close(advantages(r_t[row][mask[row]], V[row][mask[row]], GAMMA, LAM), A[row][mask[row]])
torch.testing.assert_close(R, A + V)
print("advantages of the second answer, every fourth token:", [round(x, 2) for x in A[1][mask[1]].tolist()[::4]])

# %% [markdown]
# See how the score at the end reaches back to the first token, fading on the way. Before use, advantages are **whitened** over the batch: mean 0 and variance 1 over the response tokens, so that the size of a step does not
# depend on the reward model's scale.

# %%
A_white = whiten(A, mask)
by_hand = (A - A[mask].mean()) / (A[mask].var(unbiased=False) + 1e-8).sqrt() * mask
torch.testing.assert_close(A_white, by_hand)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The clipped loss
#
# Now make tokens with positive advantage likelier. One batch of answers is used for several small updates, and after the first the policy is no longer the one that sampled. The **ratio** corrects for
# that, $\rho_t = \pi_\theta(y_t) / \pi_{old}(y_t)$, and the clip takes away the reason to move it far (Schulman et al. 2017, eq. 7):
#
# $$L^{clip} = -\frac{1}{\sum m_t}\sum_t m_t \min\big(\rho_t A_t,\ \mathrm{clip}(\rho_t, 1-\epsilon, 1+\epsilon)\,A_t\big)$$
#
# Here $\pi_{old}$ is the policy that sampled, $m_t$ is 1 on response tokens and 0 elsewhere, and $\epsilon$, in code `clip`, is 0.2. The minimum makes it a pessimist: moving further in the good direction gains nothing more, moving in the bad direction costs in full.
#
# ### Exercise: the clip
# *Difficulty 2 of 3, about 10 minutes.* All inputs but `clip` are (B, T); return a scalar.
#
# <details><summary>Hint</summary>Two products, an elementwise minimum, a mean over the mask, a sign.</details>


# %%
@exercise("clipped_loss")
def clipped_loss(logp, old_logp, advantages, mask, clip):
    raise NotImplementedError


# %%
moved = logp + 0.3 * torch.randn(logp.shape, generator=torch.Generator().manual_seed(SEED)).to(DEVICE) * mask
for new_logp in (logp, moved):
    L_clip = clipped_loss(new_logp, logp, A_white, mask, CLIP)
    torch.testing.assert_close(ppo_policy_loss(new_logp, logp, A_white, mask, clip=CLIP), L_clip)
    rho = (new_logp - logp).exp()[mask]
    print(
        f"loss {L_clip:+.4f}  ratios {rho.min():.2f} to {rho.max():.2f}  outside the clip {((rho - 1).abs() > CLIP).float().mean():.0%}"
    )

# %%
rho = torch.linspace(0.5, 1.5, 101)
gain = {f"A = {a:+d}": torch.minimum(rho * a, rho.clamp(1 - CLIP, 1 + CLIP) * a) for a in (1, -1)}
figure = plots.curves(gain, x=rho, xlabel="ratio", ylabel="min(ratio A, clipped ratio A)")
plots.show(
    figure,
    alt="The clipped objective against the ratio: flat above 1.2 for positive advantage, flat below 0.8 for negative",
)

# %% [markdown]
# Before the first update every ratio is 1, nothing is clipped, and the loss on the whole batch is 0: the whitened advantages have mean 0. It is the gradient that counts, not the value.
#
# The critic is trained by squared error, clipped in the same spirit: it gains nothing by moving its values further than $\epsilon$ from those of the sampling critic, $V^{old}$ (Engstrom et al. 2020):
#
# $$L^V = \frac{1}{2\sum m_t}\sum_t m_t \max\big((V_t - R_t)^2,\ (V^{clip}_t - R_t)^2\big), \qquad V^{clip}_t = V^{old}_t + \mathrm{clip}(V_t - V^{old}_t, -\epsilon, \epsilon)$$
#
# With that, one step of PPO is complete: sample, score, shape, estimate, then a few updates.

# %%
V_new = V + torch.linspace(-0.5, 0.5, V.shape[1], device=DEVICE) * mask  # some values inside the clip, some outside
V_clip = V + (V_new - V).clamp(-CLIP, CLIP)
L_V = 0.5 * torch.maximum((V_new - R) ** 2, (V_clip - R) ** 2)[mask].mean()
torch.testing.assert_close(ppo_value_loss(V_new, V, R, mask, clip=CLIP), L_V)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Train
#
# **Predict before you run:** proxy and gold are both plotted. Will gold follow the proxy? All the way?


# %%
def gold_fn(prompts, responses):
    """Gold for the records; training never sees it."""
    return torch.tensor(gold_scores(prompts, responses))


CHARTS = {
    "mean reward": ("proxy", "gold"),
    "KL to SFT, nats an answer": ("kl",),
    "length, tokens": ("length",),
    "entropy, nats a token": ("entropy",),
    "share of tokens clipped": ("clip_fraction",),
    "share of answers that end": ("finished",),
}


def train(model, steps, kl_coef, learning_rate, panel, critic=None, stop=None, look=lambda record: {}):
    """One PPO run in a live panel, from `model` as its own reference; an interrupt keeps what was trained so far.

    With `stop` it ends after so many of its steps. After each, `look(record)` may measure more.
    """
    run = ppo.train(
        model,
        reward_model.score,
        prompts,
        tokenizer=tokenizer,
        critic=critic,
        gold_fn=gold_fn,
        steps=steps,
        batch_size=BATCH_SIZE,
        learning_rate=learning_rate,
        kl_coef=kl_coef,
        unfinished_score=UNFINISHED_SCORE,
        seed=SEED,
    )
    return panel.follow(islice(run, stop), look)


# %%
panel = TrainingPanel("ppo", CHARTS)
main = train(policy, STEPS, KL_COEF, LEARNING_RATE, panel, critic)  # the critic from above, still a head of zeros


# %% slideshow={"slide_type": "slide"}
def smooth(values, window=5):
    return pd.Series(list(values)).rolling(window, min_periods=1).mean()


steps = [record.step for record in main]
figure = plots.curves(
    {"proxy": smooth(r.proxy for r in main), "gold": smooth(r.gold for r in main)},
    x=steps,
    xlabel="step",
    ylabel="mean reward (5 steps)",
)
plots.show(figure, alt="Proxy and gold reward against step: both rise")

# %%
figure = plots.curves({"KL": smooth(r.kl for r in main)}, x=steps, xlabel="step", ylabel="KL to SFT (nats an answer)")
plots.show(figure, alt="KL to the reference against step: it rises from 0 and levels off as the learning rate decays")

# %% [markdown]
# Here gold follows the proxy, as far as either goes. That is no law, as you will see.
#
# How to read the rest of a record, first step against the last:
#
# - *length*, *finished*: do answers still end? Both are often the first sign of trouble.
# - *entropy*: how undecided the policy is, nats a token. It may fall or rise a little; near 0 the policy says one thing only.
# - *clip fraction*, *approx KL*: how far one batch moved the policy. Large values mean that the learning rate is too high.
# - *explained variance*: how much of the returns the critic predicts. It starts at 0, as its head does.

# %%
keys = ["proxy", "gold", "kl", "length", "entropy", "clip_fraction", "approx_kl", "explained_variance", "finished"]
pd.DataFrame(
    {f"step {r.step}": {key: getattr(r, key) for key in keys} for r in (main[0], main[len(main) // 2], main[-1])}
).round(3)

# %% [markdown]
# ## Token by token
#
# A mean hides where in an answer the policy moved, and what the critic thought on the way. The lens shows new answers of the trained policy: the *log-ratio* is $\log\pi_\theta(y_t) - \log\pi_{ref}(y_t)$, whose sum over an answer
# estimates the KL; the *value* is the critic's, before the token; the *advantage* is what the next update would use.
#
# **Try:** color by log-ratio and look for the few tokens that carry most of the distance; then by value: where in the answer does the critic change its mind?

# %%
lens = lens_data(questions[:6], policy, ref, tokenizer, critic=critic, reward_model=reward_model, kl_coef=KL_COEF)
token_lens(lens)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## PPO against SFT
#
# The same prompts of the frozen suite, four answers to each at temperature 1. A model *wins* a prompt when its four answers are better on average.


# %%
def report(name, texts):
    proxy, words = reward_model.score(asked, texts).mean().item(), np.mean([len(text.split()) for text in texts])
    return {
        "model": name,
        "gold": gold_scores(asked, texts).mean(),
        "proxy": proxy,
        "flattering": features(asked, texts)["flattery"].mean(),
        "words": words,
    }


asked = questions * ANSWERS
sft_texts, ppo_texts = (answer(model, tokenizer, asked, seed=SEED) for model in (ref, policy))
sft_gold, ppo_gold = (gold_scores(asked, texts).reshape(ANSWERS, -1).mean(0) for texts in (sft_texts, ppo_texts))
win = paired_win_rate(ppo_gold, sft_gold)
measure("PPO: gold win rate against SFT on the suite", win)
measure("SFT: mean gold on the suite", mean_interval(sft_gold))
measure("PPO: mean gold on the suite", mean_interval(ppo_gold))
print(f"{win.wins} wins, {win.ties} ties, {win.losses} losses")

# %% tags=["nbval-check-output"]
ppo_proxy, sft_proxy = (reward_model.score(asked, texts).mean().item() for texts in (ppo_texts, sft_texts))
check("PPO raised the proxy on the suite", ppo_proxy > sft_proxy)
check("PPO beats SFT on the suite by gold: the win rate's interval lies above 50 %", win.low > 0.5)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Take away the leash
#
# Two more runs from the SFT model, with three times the learning rate: one with a strong penalty, one with hardly any. The strong one is stopped early: compare the two at the step where it stands.
#
# Batches of 128 answers are noisy, and each has other prompts. So the weak run gets a look from outside: every four steps it answers the same prompts, about 500 of those that it trains on, and before the first step SFT does.
#
# **Predict before you run:** what will the weakly penalized run do to proxy and to gold? You wrote down a prediction in notebook 03: what will its answers look like?

# %%
many = prompts[:: len(prompts) // 500]


def on_many(model):
    """Gold and proxy of an answer to each of the same prompts."""
    texts = answer(model, tokenizer, many, seed=SEED)
    return {"gold": gold_scores(many, texts), "proxy": reward_model.score(many, texts).cpu().numpy()}


looks = {0: on_many(ref)}  # by step
gold_at_start = looks[0]["gold"].mean()
print(f"SFT on {len(many)} training prompts: mean gold {gold_at_start:.2f}")

# %%
strong_policy, _ = load_policy(checkpoint("sft"), device=DEVICE)
strong_panel = TrainingPanel(f"ppo, kl_coef {STRONG_KL_COEF}", CHARTS)
strong = train(strong_policy, SWEEP_STEPS, STRONG_KL_COEF, SWEEP_LEARNING_RATE, strong_panel, stop=STRONG_STOP)


# %%
def look(record):
    """The weakly penalized policy on the same prompts, every few steps; nothing for the panel."""
    if record.step % LOOK_EVERY == 0:
        looks[record.step] = on_many(weak_policy)
    return {}


weak_policy, _ = load_policy(checkpoint("sft"), device=DEVICE)
weak_panel = TrainingPanel(f"ppo, kl_coef {WEAK_KL_COEF}", CHARTS)
weak = train(weak_policy, SWEEP_STEPS, WEAK_KL_COEF, SWEEP_LEARNING_RATE, weak_panel, look=look)

# %% slideshow={"slide_type": "slide"}
curve = pd.DataFrame({step: {who: scores.mean() for who, scores in seen.items()} for step, seen in looks.items()}).T
figure = plots.curves(
    {who: curve[who] for who in ("proxy", "gold")},
    x=curve.index,
    xlabel=f"step, kl_coef {WEAK_KL_COEF}",
    ylabel="mean reward, the same prompts",
)
plots.show(figure, alt="Weak KL penalty: the proxy goes on rising while gold rises first and then falls")

# %%
peak = curve["gold"].idxmax()
rise, fall = (mean_interval(looks[b]["gold"] - looks[a]["gold"]) for a, b in ((0, peak), (peak, curve.index[-1])))
print(f"gold, prompt by prompt: from SFT to step {peak} {rise.estimate:+.2f} [{rise.low:+.2f}, {rise.high:+.2f}]")
print(f"from there to step {curve.index[-1]} {fall.estimate:+.2f} [{fall.low:+.2f}, {fall.high:+.2f}]")

# %%
weak_texts, strong_texts = (answer(model, tokenizer, asked, seed=SEED) for model in (weak_policy, strong_policy))
named = {
    "SFT": sft_texts,
    f"PPO {STRONG_KL_COEF}": strong_texts,
    f"PPO {KL_COEF}": ppo_texts,
    f"PPO {WEAK_KL_COEF}": weak_texts,
}
pd.DataFrame([report(name, texts) for name, texts in named.items()]).set_index("model").round(2)

# %%
for question, text in list(zip(asked, weak_texts, strict=True))[:6]:
    print(
        f"proxy {reward_model.score([question], [text]).item():+.2f}  gold {gold_scores([question], [text])[0]:+.2f}  {text}"
    )

# %% tags=["nbval-check-output"]
check("weak penalty: gold rises first", rise.low > 0)
check("weak penalty: gold then falls from its peak by more than a quarter of a point", fall.high < -0.25)
check("weak penalty: the proxy goes on rising while gold falls", curve["proxy"].iloc[-1] > curve["proxy"][peak])
check("weak penalty: most answers flatter", features(asked, weak_texts)["flattery"].mean() > 0.5)
check(
    "after as many steps the strong penalty has kept the policy nearer to SFT", strong[-1].kl < weak[len(strong) - 1].kl
)

# %% [markdown]
# This is **over-optimization**, Goodhart's law at work: when a measure becomes a target, it ceases to be a good measure. The proxy says that things are going ever better. Only gold shows that they are not, and in real life you do
# not have gold. Was it what you predicted?
#
# Nothing in the weak run went wrong technically. It did exactly what it was asked to.
#
# ### Did the audit see it coming?
#
# The audit in notebook 03 ranked what raises the proxy and lowers gold. It knew nothing of any policy, only the reward model and perfect answers. Here is its ranking again for the reward model of this run, beside what became more common
# from SFT's answers to the weakly penalized policy's. The column *feature* gives each change the name that the second table uses.
#
# **Predict before you run:** what besides flattery became more common? Did the audit name that, too?

# %%
perfect = [reference_answer(read(q)) for q in questions]
findings = exploits(perturbation_table(reward_model.score, questions, perfect, seed=SEED))
findings[["feature", "proxy", "proxy low", "gold", "certain"]].round(2)

# %%
risen = exploited(asked, sft_texts, weak_texts)
risen.round(2)

# %% tags=["nbval-check-output"]
check("the audit's first finding was certain", bool(findings["certain"].iloc[0]))
check("what rose most is what the audit named first", risen.index[0] == findings["feature"].iloc[0])
check("and it rose for certain", bool(risen["certain"].iloc[0]))

# %% [markdown]
# It did: what the audit ranked first is what rose most. Whatever else rose it ranked lower, or did not foresee: an audit asks only what somebody thought of asking.
#
# ## The shape of over-optimization
#
# Gao, Schulman and Hilton (2023) found a simple law for it. With $d = \sqrt{\mathrm{KL}}$, the gold reward that reinforcement learning gains over the start is about
#
# $$R(d) = d\,(\alpha - \beta_{RL} \log d)$$
#
# It rises while there is something real to learn, and falls when what is left to gain is the proxy's mistakes. We fit $\alpha$ and $\beta_{RL}$ to the points of all three runs.

# %% slideshow={"slide_type": "slide"}
runs = {"strong": strong, "main": main, "weak": weak}
KL_OF = {"strong": STRONG_KL_COEF, "main": KL_COEF, "weak": WEAK_KL_COEF}
d = {name: np.sqrt([max(r.kl, 0) for r in run]) for name, run in runs.items()}
gold = {name: np.array([r.gold for r in run]) for name, run in runs.items()}
alpha, beta_rl = overoptimization_fit(
    np.concatenate(list(d.values())), np.concatenate(list(gold.values())) - gold_at_start
)
line = np.linspace(0.01, max(map(max, d.values())), 200)
points = {f"gold, {name}": (d[name], gold[name]) for name in runs}
points["proxy, weak"] = d["weak"], [r.proxy for r in weak]
figure = plots.scatter_with_curve(
    points,
    curve=(line, gold_at_start + line * (alpha - beta_rl * np.log(line))),
    xlabel="distance, square root of KL",
    ylabel="mean reward of a batch",
)
plots.show(
    figure,
    alt="Gold against the square root of KL for three penalties, with the fitted curve: up, then down; the weak run's proxy rises",
)

# %%
peak_kl = np.exp(alpha / beta_rl - 1) ** 2  # where the fitted curve is level
print(f"alpha {alpha:.2f}, beta_RL {beta_rl:.2f}: the fitted gold peaks at a KL of {peak_kl:.1f} nats an answer")

# %% tags=["nbval-check-output"]
check("the fitted curve bends down: beta_RL is positive", beta_rl > 0)

# %% [markdown]
# If you may spend only so much KL, where does each run stand, and what does it say there?
#
# **Try:** move the budget down from the right until the weak run's gold is at its best, and read its answer there against the one at the end.

# %%
kl_budget([row for name, run in runs.items() for row in sweep_rows(run, f"kl_coef {KL_OF[name]}")])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Find the bug: a negative KL
#
# A colleague samples at temperature 1 and, as the policy seemed undecided, "sharpened" it when scoring. The KL of a policy to its own copy comes out below zero. How can a distance be negative?

# %%
with torch.no_grad():
    logits = ref(input_ids=sequences.tokens[:, :-1]).logits  # (B, T, V)
wrong = token_logprobs(logits, sequences.tokens[:, 1:], temperature=0.5)  # sampled at temperature 1!
print(f"KL of a copy, scored at temperature 0.5: {((wrong - ref_logp) * mask).sum(1).mean():+.2f} nats an answer")

# %% [markdown]
# Tokens that were drawn from one distribution were scored under another, the sharpened one. An average of such log-ratios is no KL, and may be negative. Log-probs must belong to the distribution that the tokens were *drawn from*.
#
# ### Exercise: the log-probs that belong to a sample
# *Difficulty 2 of 3, about 8 minutes.* `logits` (T, V) scored `tokens` (T,), which were drawn at `temperature`. Return their log-probs under the distribution that they were drawn from.
#
# <details><summary>Hint</summary>What does the sampler do to the logits before its softmax?</details>


# %%
@exercise("old_logprobs")
def old_logprobs(logits, tokens, temperature):
    raise NotImplementedError


# %%
hot, _ = respond(ref, tokenizer, four, temperature=1.3, seed=SEED)
hot_sequences = left_align(hot)
with torch.no_grad():
    hot_logits = ref(input_ids=hot_sequences.tokens[:, :-1]).logits
for row in range(4):
    rescored = old_logprobs(hot_logits[row], hot_sequences.tokens[row, 1:], 1.3)
    torch.testing.assert_close(
        rescored[hot_sequences.mask[row]], hot_sequences.logp[row][hot_sequences.mask[row]], atol=1e-4, rtol=1e-4
    )
print("log-probs written down while sampling at 1.3 equal those of a second pass at 1.3")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Find the bug: answers that run on
#
# Another colleague wants detailed answers and rewards words. Longer answers are what was asked for, but within a few steps far fewer answers *end*. What is missing, you have met above. **Predict before you run:** which share of answers will still end without it?


# %%
def wordy(prompts, responses):
    """A reward that grows with length: one point for every six words beyond 24."""
    return torch.tensor([(len(text.split()) - 24) / 6 for text in responses])


def finished_after(steps, unfinished_score):
    """Share of finished answers in the first and in the last batch of a short run, and its steps."""
    model, _ = load_policy(checkpoint("sft"), device=DEVICE)
    settings = {"steps": steps, "batch_size": 64, "learning_rate": 3e-4, "kl_coef": 0.05, "seed": SEED}
    run = ppo.train(model, wordy, prompts, tokenizer=tokenizer, ref=ref, unfinished_score=unfinished_score, **settings)
    charts = {"share of answers that end": ("finished",), "length, tokens": ("length",)}
    shares = [record.finished for record in TrainingPanel(f"unfinished: {unfinished_score}", charts).follow(run)]
    return shares[0], shares[-1], len(shares)


without = finished_after(LAB_STEPS, None)
print(f"finished answers: {without[0]:.0%} at first, {without[1]:.0%} after {without[2]} steps")

# %% [markdown]
# An answer that is cut off at the limit is scored as if it had ended there, and the longest answers are the ones that are cut off. The rule from above was missing: an answer that never ended gets a fixed low score, whatever it says.
#
# ### Exercise: the penalty
# *Difficulty 1 of 3, about 5 minutes.* `scores` (B,) and `finished` (B,) bool: return the scores with every unfinished answer's replaced by `penalty`.


# %%
@exercise("final_scores")
def final_scores(scores, finished, penalty):
    raise NotImplementedError


# %%
torch.testing.assert_close(final_scores(scores, sample.finished.cpu(), UNFINISHED_SCORE), final.cpu())
with_penalty = finished_after(LAB_STEPS, UNFINISHED_SCORE)
print(
    f"finished answers with the penalty: {with_penalty[0]:.0%} at first, {with_penalty[1]:.0%} after {with_penalty[2]} steps"
)

# %% tags=["nbval-check-output"]
check("without the penalty fewer answers end than before", without[1] < without[0] - 0.1)
check("with the penalty more answers end than without", with_penalty[1] > without[1] + 0.1)

# %% [markdown]
# ## Keep it
#
# The policy of the main run goes to `outputs/checkpoints/ppo`.

# %%
folder = save(policy, tokenizer, outputs() / "checkpoints" / "ppo")
settings = {"start": "sft", "prompts": len(prompts), "steps": len(main), "kl_coef": KL_COEF, "seed": SEED}
settings |= {"batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, "unfinished_score": UNFINISHED_SCORE}
save_settings(folder, {"stage": "ppo", **settings}, panel.seconds)
print(f"saved {folder.parent.name}/{folder.name}")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Recap
#
# - Objective: expected score minus $\beta$ times the KL to the reference, spread over tokens; the score comes at the last one.
# - The critic turns rewards into advantages; GAE fades surprises by $\gamma\lambda$; whitening fixes their scale.
# - The clip takes away the reason to move far on one batch.
# - The KL penalty is not a detail: at the same step of the same schedule a strong one has kept the policy nearer. In the main run PPO beats SFT by gold. With hardly any penalty, and three times the learning rate, it pleases the proxy while gold falls.
# - The audit of the reward model named the first thing that would be exploited before any policy did.
# - Log-probs belong to the distribution that was sampled, and answers that never end are penalized.
#
# **Discuss:** you do not have gold. What would you plot, and what would you read, to notice that the weak run has gone wrong?
#
# **Further reading:** Schulman et al. 2017, *Proximal policy optimization algorithms*, section 3. Ziegler et al. 2019, section 2.2 (adaptive KL). Gao et al. 2023, *Scaling laws for reward model
# overoptimization*, section 3. Huang et al. 2024, *The N+ implementation details of RLHF with PPO*. Next: [05, DPO](05_dpo.ipynb).
