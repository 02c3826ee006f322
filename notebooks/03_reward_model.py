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
# # 03 · The reward model
#
# SFT needs somebody to write the right answer. It is much easier to say which of two answers is better. In this notebook a model learns a
# score from such choices: the **reward model**, our *proxy* for what people want. You will derive its loss, train it in a minute, and
# **audit** it: find out what it gets wrong before a policy does.
#
# | | |
# |---|---|
# | **You will be able to** | derive the Bradley-Terry loss, turn a language model into a reward model, train it, say how good it could possibly be, and audit it: calibration, perturbations, new questions, second opinions |
# | **Time** | 3 minutes to run, 60 to work through (2 CPU cores) |
# | **Needs** | the SFT model (yours from notebook 01, or the shipped one) and the preference pairs in `data/` |
# | **Produces** | `outputs/checkpoints/reward`, which notebook 04 optimizes |

# %% tags=["setup"]
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything ships with the course; nothing is downloaded
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import random

import numpy as np
import pandas as pd
import torch

from picollm_lite.chat import answer
from picollm_lite.data import encode_pairs, load_preferences, load_suite
from picollm_lite.evaluation.audit import (
    agreement_by_split,
    compare_spread,
    ensemble_spread,
    exploits,
    perturbation_table,
)
from picollm_lite.evaluation.calibration import accuracy_tables, calibration, calibration_errors
from picollm_lite.evaluation.metrics import gold_scores, mean_interval
from picollm_lite.evaluation.perturbations import flattery_last
from picollm_lite.evaluation.training_record import save_settings
from picollm_lite.kernels.losses import bradley_terry_loss
from picollm_lite.models import RewardModel, load_policy, save
from picollm_lite.paths import CHECKPOINTS, PREFERENCES, PREFERENCES_TEST, SUITE, checkpoint, outputs
from picollm_lite.stages import reward
from picollm_lite.ui import plots
from picollm_lite.ui.claims import check, measure
from picollm_lite.ui.exercises import exercise
from picollm_lite.ui.explorers.reward_explorer import reward_explorer
from picollm_lite.ui.panel import TrainingPanel
from picollm_lite.ui.setup import start
from picollm_lite.world.annotators import panel_probability
from picollm_lite.world.asks import read, reference_answer

# %%
SEED = 0
BATCH_SIZE = 32
LEARNING_RATE = 1e-3
OFF_PROMPT_WEIGHT = 1.0
N_SECOND = 1500  # pairs for each second opinion
CLEAR = 1.0  # answers whose gold differs by at least this much differ clearly
DEVICE = start(SEED)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Pairs
#
# Each row holds a prompt and two answers that the SFT model gave to it. One annotator of a panel of five said which one is better. *Chosen* is the one
# that was preferred, *rejected* the other. How much better it is, or why, nobody wrote down.

# %%
preferences, held_out = load_preferences(PREFERENCES), load_preferences(PREFERENCES_TEST)
print(f"{len(preferences):,} pairs to train on, {len(held_out):,} kept out, on other prompts")
annotators = list(preferences["annotator"])
for row in preferences.select([annotators.index("careful"), annotators.index("flattered")]):
    print(f"\n{row['annotator']} judged two answers to: {row['prompt'][-1]['content']}")
    print(f"  chosen    {row['chosen'][-1]['content']}\n  rejected  {row['rejected'][-1]['content']}")

# %% [markdown]
# The columns `gold_chosen` and `gold_rejected` say what the rubric thinks. Training never reads them; in real life they would not be there. They tell us
# something uncomfortable at once: how often does the label agree with the rubric, for each annotator?

# %%
table = preferences.to_pandas()
table["agrees"] = (table.gold_chosen > table.gold_rejected).where(table.gold_chosen != table.gold_rejected)
table.groupby("annotator").agrees.agg(pairs="size", agreement="mean").astype({"agreement": float}).round(2)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## From choices to scores
#
# Suppose every answer $y$ to a prompt $x$ has a hidden worth $r(x, y)$, and that people choose the worthier one, the more surely the larger the difference.
# The **Bradley-Terry model** (1952) makes this precise:
#
# $$P(y_c \succ y_r \mid x) = \sigma\big(r(x, y_c) - r(x, y_r)\big), \qquad \sigma(z) = \frac{1}{1 + e^{-z}}$$
#
# with $y_c$ the chosen and $y_r$ the rejected answer. To learn $r$, make the choices that people made as likely as possible. The loss is the
# negative log-likelihood of one choice (Ouyang et al. 2022, eq. 1):
#
# $$L^{BT} = -\log \sigma(r_c - r_r)$$
#
# Its unit is nats a pair. Knowing nothing ($r_c = r_r$) costs $\log 2 = 0.693$. And it depends on the *difference* alone: add 100 to every score and nothing
# changes. A reward model's zero means nothing until we choose one.
#
# ### Exercise: the Bradley-Terry loss
# *Difficulty 1 of 3, about 6 minutes.* `chosen_scores` and `rejected_scores` are (B,). Return one loss a pair, (B,).
#
# <details><summary>Hint</summary>What does <code>torch.sigmoid(-200.0)</code> give, and what is its logarithm? There is a function that does both at
# once.</details>


# %%
@exercise("bradley_terry_loss")
def my_bradley_terry_loss(chosen_scores, rejected_scores):
    raise NotImplementedError


# %%
r_c, r_r = torch.tensor([1.0, 0.5, 2.0, -1.0]), torch.tensor([1.0, 0.0, -1.0, 2.0])
L_bt = -(1 / (1 + (-(r_c - r_r)).exp())).log()  # the formula as it stands
print("P(chosen is preferred)", [round(p, 3) for p in torch.sigmoid(r_c - r_r).tolist()])
print("loss                  ", [round(loss, 3) for loss in L_bt.tolist()])
torch.testing.assert_close(bradley_terry_loss(r_c, r_r), L_bt)
torch.testing.assert_close(my_bradley_terry_loss(r_c, r_r), L_bt)
torch.testing.assert_close(bradley_terry_loss(r_c + 100, r_r + 100), L_bt)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A language model with one output
#
# Where does $r$ come from? From a language model whose last layer, the one that scores the vocabulary, is replaced by a single linear function. The rest, the *trunk*, starts
# as the SFT model's: it has read the facts already.
#
# A causal model has one hidden state a token. Which one do we read? The last one: only it has seen the whole answer. In a batch that means the last *real* token of every
# row, not the padding behind it.
#
# ### Exercise: the last real token
# *Difficulty 1 of 3, about 5 minutes.* `scores` is (B, L), a score at every position of rows padded on the right; `lengths` is (B,). Return each
# row's score at its last real token, (B,).
#
# <details><summary>Hint</summary>Positions count from 0. Index rows and columns together.</details>


# %%
@exercise("last_token_scores")
def last_token_scores(scores, lengths):
    raise NotImplementedError


# %% [markdown]
# Now a real batch, by hand: two pairs, four conversations, padded on the right. A causal model does not see what stands to the right, so no attention mask is
# needed.

# %%
policy, tokenizer = load_policy(checkpoint("sft"), device=DEVICE)
reward_model = RewardModel.from_policy(policy, tokenizer, seed=SEED)
pairs, test_pairs = encode_pairs(preferences, tokenizer), encode_pairs(held_out, tokenizer)
batch = pairs[:2]
conversations = [pair.chosen for pair in batch] + [pair.rejected for pair in batch]
lengths = torch.tensor([len(c.tokens) for c in conversations])
print(
    f"trunk: {reward_model.model.base_model.num_parameters():,} parameters; head: {reward_model.model.score.weight.numel()}"
)
print("lengths", lengths.tolist(), "| last token of each:", {tokenizer.decode(c.tokens[-1]) for c in conversations})

# %%
padded = [c.tokens + [tokenizer.pad_token_id] * (int(lengths.max()) - len(c.tokens)) for c in conversations]
with torch.no_grad():
    hidden = reward_model.model.base_model(input_ids=torch.tensor(padded, device=DEVICE)).last_hidden_state  # (B, L, d)
    w = reward_model.model.score.weight.squeeze(0)  # (d,)
    r = last_token_scores((hidden @ w).cpu(), lengths)  # (B,)
    torch.testing.assert_close(reward_model(conversations).cpu(), r)
print("scores of the untrained head", [round(x, 2) for x in r.tolist()])
print(f"loss of these two pairs {bradley_terry_loss(r[:2], r[2:]).mean():.3f}, of knowing nothing {np.log(2):.3f}")

# %% [markdown]
# The head starts with small random weights, of standard deviation $1/\sqrt{d+1}$ (Stiennon et al. 2020), so an untrained reward model has opinions already,
# and wrong ones as often as right ones.
#
# ## What pairs do not say
#
# Look at the pairs again. Both answers were given to the *same* prompt. So a pair can often be told apart without reading the prompt at all: an answer that is
# cut off loses, whatever was asked. A reward model trained on pairs alone learns to judge answers and hardly to check that they answer *this question*.
#
# The remedy costs no labels (Liu et al. 2025, *RRM*). Take an answer that was chosen for another question and put it under this prompt: we know that it is worse. We add a second
# Bradley-Terry loss for these **off-prompt** answers.

# %%
off_prompt = reward.off_prompt_answers(batch)
print(tokenizer.decode(off_prompt[0].tokens))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## How good can it get?
#
# Annotators disagree, with each other and, as they are noisy, with themselves. So no model predicts every label. In our world we know each annotator's probabilities, so we can
# compute the **Bayes ceiling**: the accuracy of always predicting what the panel more probably prefers. The **Bayes floor** is the loss of predicting its probabilities exactly.
#
# **Predict before you run:** the ceiling is a number between 50 % and 100 %. How high is it for a panel like this?


# %%
def sides(row):
    return row["prompt"][-1]["content"], row["chosen"][-1]["content"], row["rejected"][-1]["content"]


p_chosen = np.array([panel_probability(*sides(row)) for row in held_out])
ceiling = np.maximum(p_chosen, 1 - p_chosen).mean()
floor = -(p_chosen * np.log(p_chosen) + (1 - p_chosen) * np.log(1 - p_chosen)).mean()
print(f"Bayes ceiling of accuracy {ceiling:.1%}; Bayes floor of the loss {floor:.3f} nats a pair")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Train
#
# One epoch, every pair seen once. A second look at the same pairs teaches a reward model mostly their noise. After the last step the scores are shifted so that the answers in the training pairs score 0 on average, as
# Bradley-Terry leaves the zero open.
#
# **Predict before you run:** coin tossing gets 50 % of the held-out labels right, the ceiling is above. Where between the two will a model of a million parameters end?

# %%
run = reward.train(
    reward_model,
    pairs,
    val=test_pairs[:300],
    off_prompt_weight=OFF_PROMPT_WEIGHT,
    batch_size=BATCH_SIZE,
    learning_rate=LEARNING_RATE,
    eval_every=40,
    seed=SEED,
)
charts = {
    "accuracy on labels": ("accuracy", "val_accuracy"),
    "loss, nats a pair": ("loss", "val_loss"),
    "margin": ("margin",),
}
panel = TrainingPanel("reward", charts)
records = panel.follow(run)
if not records or records[-1].step < records[-1].steps:  # stopped early: the scores still want centering
    reward.center(reward_model, pairs)

# %% slideshow={"slide_type": "slide"}
steps = [record.step for record in records]
smooth = pd.Series([record.accuracy for record in records]).rolling(20, min_periods=1).mean()
figure = plots.curves(
    {"train, mean of 20": smooth, "held out": [r.val_accuracy for r in records], "ceiling": [ceiling] * len(steps)},
    x=steps,
    xlabel="step",
    ylabel="accuracy on labels",
)
plots.show(
    figure,
    alt="Accuracy on training and held-out labels against step: both rise from about one half toward, but not to, the ceiling",
)

# %% [markdown]
# Most of the rise comes early, a slow one after it. The held-out curve follows and ends close to the other: with every pair seen once there is little to memorize.

# %%
with torch.no_grad():
    chosen, rejected = (scores.cpu().numpy() for scores in reward.score_pairs(reward_model, test_pairs))
gold_gap = np.array(held_out["gold_chosen"]) - np.array(held_out["gold_rejected"])
right = (chosen > rejected) == (gold_gap > 0)  # does the proxy rank the two as gold does?
clear = np.abs(gold_gap) >= CLEAR
label_accuracy = mean_interval(chosen > rejected)
agreement = mean_interval(right[clear])
measure("reward model: accuracy on held-out labels", label_accuracy)
measure(f"reward model: agreement with gold where it differs by {CLEAR:g} or more", agreement)

# %%
bins = pd.cut(
    np.abs(gold_gap), [-0.01, 0.01, 0.5, 1, 2, 3, 6], labels=["tie", "to 0.5", "to 1", "to 2", "to 3", "above"]
)
by_gap = pd.DataFrame({"gold differs by": bins, "label": (gold_gap > 0), "proxy": right})
by_gap[by_gap["gold differs by"] != "tie"].groupby("gold differs by", observed=True).agg(
    pairs=("proxy", "size"), labels_agree=("label", "mean"), proxy_agrees=("proxy", "mean")
).round(2)

# %% tags=["nbval-check-output"]
scores_mean = np.concatenate([chosen, rejected]).mean()
check("the reward model beats coin tossing on held-out labels", label_accuracy.low > 0.5)
check("it stays below the Bayes ceiling", label_accuracy.estimate < ceiling)
check("it agrees with gold on at least 80 % of clear pairs", agreement.estimate >= 0.8)
check(
    "the larger the difference in gold, the more often the proxy sees it",
    right[np.abs(gold_gap) >= 2].mean() > right[~clear & (gold_gap != 0)].mean(),
)
check("scores center near 0, also on held-out answers", abs(scores_mean) < 0.5)

# %% [markdown] slideshow={"slide_type": "slide"}
# Where answers differ clearly the proxy mostly sees it, about as often as a label does, although it was shown no score. Where they differ
# little it is close to guessing.
#
# ## The audit
#
# A policy will soon do all it can to please this model. What will it find? An **audit** asks before it happens, with questions that accuracy does not answer: is the model as sure as it should be,
# where is it right, what does it charge too little for, and where does it not know?
#
# ### Is it as sure as it should be?
#
# A pair's **margin** is the chosen answer's score less the rejected one's. The answer with the higher score is the model's *favorite*, and by Bradley-Terry $\sigma(|\text{margin}|)$ is how sure it is of it. The model is **calibrated** when, of all pairs
# where it is 80 % sure, the favorite was chosen in 80 %. (Why favorites? Our pairs stand with the chosen answer first, so every label is a 1, and of a row of ones there is no curve.)
#
# Two numbers sum this up. The **Brier score** is the mean of $(q - o)^2$, with $q$ the predicted probability that an answer is chosen, and $o$ 1 if it was, else 0. With $p$ the true probability of a label, no forecast scores below $p(1-p)$ on average: labels are noisy, and that is the floor. The
# **calibration error** is the distance between predicted and observed share in a bin, that is, among pairs of which the model is about equally sure, averaged over the pairs. The plot also shows each bin's mean $p$: the observed share without its noise.
#
# **Predict before you run:** is a model that was trained on noisy labels too sure, or not sure enough? And on which pairs?

# %%
margins = chosen - rejected
curve = calibration(margins, p_chosen)
figure = plots.curves(
    {"calibrated": curve["predicted"], "labels": curve["observed"], "true probability": curve["true"]},
    x=curve["predicted"],
    xlabel="how sure the proxy is of its favorite",
    ylabel="how often it was chosen",
)
plots.show(
    figure,
    alt="How often the proxy's favorite was chosen against how sure the proxy is: near the diagonal at first, below it where it is surest",
)

# %%
errors = calibration_errors(margins, p_chosen)
errors.round(3)

# %% tags=["nbval-check-output"]
surest = curve.iloc[-1]
check("where it is surest, the proxy is too sure", surest["predicted"] > surest["observed high"])
check(
    "its Brier score lies between the floor and that of a coin",
    errors.loc["Brier score", "at best"] < errors.loc["Brier score", "on labels"] < 0.25,
)

# %% [markdown]
# "Expected" replaces each label by the panel's true probability: what the same forecasts would score on average over all labels that might have been given. "At best" is a forecast that knows these probabilities.
# Outside this world you would have the first column only.
#
# Where the proxy sees the largest differences it is too sure of them. Optimization lives on large differences, so do not take them at face value.
#
# ### Where is it right?
#
# The same accuracy, in groups. Pairs are **length-matched** when their answers differ by at most one word or a tenth of the longer one: there a taste for length is of no help. And if the model merely liked length, it would be right when the *longer* answer was chosen and wrong
# when the shorter one was. "best guess" is the share of the same labels that the panel's own probabilities get right: the ceiling is what to expect of it.
#
# **Predict before you run:** whose labels does the model predict best? Remember how the panel's work is divided.

# %%
labeled_by = np.array(held_out["annotator"])
accuracy_tables(
    margins,
    p_chosen,
    chosen=[row["chosen"][-1]["content"] for row in held_out],
    rejected=[row["rejected"][-1]["content"] for row in held_out],
    annotators=labeled_by,
    gold_margins=gold_gap,
).round(2)

# %% tags=["nbval-check-output"]
busiest = labeled_by == pd.Series(labeled_by).mode()[0]
check(
    "the labels of the busiest annotator are predicted better than those of the others",
    (margins > 0)[busiest].mean() > (margins > 0)[~busiest].mean(),
)

# %% [markdown]
# A reward model learns the *panel*, not the truth and not one person: it predicts the labels of whoever gave most of them better than those of the others. But read each row against its best guess, as a group may be easier for everybody: at whose labels is most left to learn?
# And is the proxy's gap between the two rows on length wider than the best guess's?
#
# You know the panel from notebook 02. Write it down, before you read on and before notebook 04 shows it: **if a policy does all it can to please this reward model, what will its answers look like?** The rest of the audit tests your guess.

# %%
PREDICTED_HACK = "(your prediction)"
print(PREDICTED_HACK)

# %% [markdown]
# ### What does it like?
#
# Bias does not average out. Take perfect answers, make one change (a **perturbation**), and see how far proxy and gold move. The changes: flattery before or after the answer; padding; the last sentence said again (*repetition*); true facts that
# nobody asked for, added (*extra facts*), or in place of the answer (*missed ask*); a fact swapped for another concept's; the right kind of answer about another concept; a dropped word; no capitals; a missing end. All are defects but one: the rubric does not mind
# "lower case", so a reward model should not mind it either.
#
# **Predict before you run:** which defect does the proxy charge least for? Is there one that it *pays* for?

# %%
suite = load_suite(SUITE)
questions = list(suite["prompt"])
perfect = [reference_answer(read(q)) for q in questions]
table = perturbation_table(reward_model.score, questions, perfect, seed=SEED)
table[["proxy", "proxy low", "proxy high", "gold", "disagreement"]].round(2)

# %% tags=["nbval-check-output"]
wrong_concept = ["swapped fact", "another concept's answer"]
check(
    "what costs most is to speak of another concept",
    table.loc[wrong_concept, "proxy high"].max() < table.drop(wrong_concept)["proxy low"].min(),
)
check("the proxy minds padding", table.loc["padding", "proxy high"] < 0)

# %% [markdown]
# *Disagreement* is the share of answers that the proxy likes better after the change and gold likes less. It needs no common scale for the two, and says how often a policy would be led astray.
#
# ### On new questions
#
# Of two answers to one question, does the proxy prefer the better one? The suite has phrasings that the model has seen, phrasings that it has not, and combinations of concept and request that it has not.

# %%
asked, splits = questions * 4, list(suite["split"]) * 4
sft_answers = answer(policy, tokenizer, asked, seed=SEED)
agreement_by_split(reward_model.score, asked, sft_answers, splits).round(2)

# %% [markdown]
# Before you read a difference into the rows, look at their intervals: each rests on at most 42 questions, those in the column *comparable*.
#
# ### Second opinions
#
# Two more reward models, each trained on 1,500 pairs that the other does not see. Where they disagree, the labels have not settled the matter, and neither is to be trusted. We call their standard deviation the **ensemble spread**; Coste et al. (2024) take its square, the variance, off the reward.
# Every model has a zero of its own for each prompt, as only differences were ever trained. So we compare by how much an answer is better than the perfect one to the same question.
#
# **Predict before you run:** will second opinions warn us of a bias that most labels of both share?


# %%
def second_opinion(k, name, off_prompt_weight=OFF_PROMPT_WEIGHT):
    """The scores of a reward model with a head and pairs of its own: part k of them."""
    other = RewardModel.from_policy(policy, tokenizer, seed=SEED + k)
    settings = {"batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, "seed": SEED + k}
    part = pairs[(k - 1) * N_SECOND : k * N_SECOND]
    run = reward.train(other, part, off_prompt_weight=off_prompt_weight, **settings)
    TrainingPanel(f"reward, {name}", {"accuracy on labels": ("accuracy",)}).follow(run)
    return other.score


others = [second_opinion(k, f"second opinion {k}") for k in (1, 2)]

# %%
ppo_policy, _ = load_policy(CHECKPOINTS / "ppo", device=DEVICE)  # the shipped one: notebook 04 trains yours
sets = {
    "SFT": sft_answers,
    "PPO": answer(ppo_policy, tokenizer, asked, seed=SEED),
    "SFT, flattery added": [flattery_last(q, a, random.Random(a)) for q, a in zip(asked, sft_answers, strict=True)],
}
spreads = {name: ensemble_spread(others, asked, texts, references=perfect * 4) for name, texts in sets.items()}
spread_table = compare_spread(asked, spreads)
spread_table.round(3)

# %%
gains = [(f(asked, sets["SFT, flattery added"]) - f(asked, sft_answers)).mean().item() for f in others]
print("what each second opinion pays for added flattery:", [round(gain, 2) for gain in gains])

# %% tags=["nbval-check-output"]
check("a rise of the spread on PPO's answers cannot be told from chance", spread_table.loc["PPO", "rise low"] <= 0)
check("each of them pays for flattery, too", min(gains) > 0)
check(
    "added flattery raises the spread by less than it pays",
    spread_table.loc["SFT, flattery added", "rise"] < np.mean(gains),
)

# %% [markdown]
# Spread warns where the models *differ*. On PPO's answers they do not differ more than on SFT's, as far as we can tell, which fits a policy that was kept near the answers that have labels (notebook 04 shows how). And a taste that both took from the same panel looks like
# knowledge: flattery raises the spread by less than it pays, so that a reward with the spread taken off once would still pay for it (Eisenstein et al. 2024). Only another kind of check finds it: a perturbation, or reading the answers.

# %% [markdown]
# ### Pairs alone
#
# We added the off-prompt answers because an argument said so. Here is the experiment: the first second opinion once more, with the same head, pairs and order, but without them.
#
# **Predict before you run:** which of the changes from above will it charge less for? Which as much as before?

# %%
pairs_alone = second_opinion(1, "pairs alone", off_prompt_weight=0.0)
columns = ["proxy", "proxy low", "proxy high"]
both = {
    name: perturbation_table(scores, questions, perfect, seed=SEED)[columns]
    for name, scores in {"with off-prompt answers": others[0], "pairs alone": pairs_alone}.items()
}
pd.concat(both, axis=1).round(2)

# %% tags=["nbval-check-output"]
charge = {name: -of.loc[wrong_concept, "proxy"] for name, of in both.items()}
check(
    "from pairs alone it learns to charge less for speaking of another concept",
    (charge["pairs alone"] < charge["with off-prompt answers"]).all(),
)

# %% [markdown]
# Both saw an eighth of the pairs, so they charge far less than the reward model does for a wrong concept. But compare the two. *Another concept's answer* and *missed ask* are good answers, to something else: only the question shows that they are wrong. From pairs alone the model has hardly learned to mind either. What shows in the answer by itself, such as a missing
# end, it minds without any help.

# %% [markdown]
# ### The finding
#
# An **exploit** raises the proxy and lowers gold. It is *certain* when both intervals leave out 0. Exploits stand first, the best paid on top. Then come the defects that the proxy does charge for, the cheapest first: *proxy per gold lost* is the change of
# proxy for each point of gold that the change costs. What costs no gold stands last.

# %% slideshow={"slide_type": "slide"}
findings = exploits(table)
findings[["feature", "proxy", "proxy low", "gold", "gold high", "certain", "proxy per gold lost"]].round(2)

# %% tags=["nbval-check-output"]
check("the audit's first finding is certain", bool(findings["certain"].iloc[0]))
check("the audit's first finding is flattery", findings["feature"].iloc[0] == "flattery")

# %% [markdown]
# Gold takes points off for flattery and padding alike. The proxy tells them apart, because the panel does: its busiest annotator enjoys praise. A policy that looks for
# a high score will find that out.
#
# ### Your turn: fool it
# *Difficulty 2 of 3, about 10 minutes.* Write an answer to this question that the proxy scores above the perfect one and the rubric far below. There is no single solution.
#
# **Try:** the buttons first, one at a time, and compare the two changes in the last line; then type.
#
# <details><summary>Hint</summary>Start from the perfect answer and read the table above.</details>

# %%
QUESTION = "What is a KV cache?"
reward_explorer(QUESTION, reward_model)

# %% [markdown]
# Keep your best find here, in place of the perfect answer; the cell says how far you got.

# %%
best = reference_answer(read(QUESTION))
MY_ANSWER = best  # yours, in quotes

for name, text in {"perfect": best, "yours": MY_ANSWER}.items():
    proxy, gold = reward_model.score([QUESTION], [text]).item(), gold_scores([QUESTION], [text])[0]
    print(f"{name:<8} proxy {proxy:+.2f}  gold {gold:+.2f}  {text}")

# %% [markdown]
# ## Keep it

# %%
folder = save(reward_model.model, tokenizer, outputs() / "checkpoints" / "reward")
settings = {"start": "sft", "pairs": len(pairs), "steps": len(records), "off_prompt_weight": OFF_PROMPT_WEIGHT}
settings |= {"batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, "seed": SEED}
save_settings(folder, {"stage": "reward", **settings}, panel.seconds)
again = RewardModel.load(folder, device=DEVICE)
difference = (again.score(questions, perfect) - reward_model.score(questions, perfect)).abs().max().item()
print(
    f"saved {folder.parent.name}/{folder.name}; the largest change of a score by saving in half precision: {difference:.3f}"
)

# %% tags=["nbval-check-output"]
check("the saved reward model gives the same scores to 0.1", difference < 0.1)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Recap
#
# - A reward model is a language model's trunk with one linear output, read at the last real token.
# - $L^{BT} = -\log\sigma(r_c - r_r)$ makes the choices that people made likely. Only differences count; we center the scores afterwards.
# - One epoch. The Bayes ceiling says how good a model of noisy labels could be at best.
# - Pairs share their prompt; off-prompt answers teach the model to look at it.
# - Calibration, perturbations, splits and second opinions ask what accuracy does not. Second opinions hardly warn of a bias that most labels share.
# - Bias is learned like everything else, and the loss curve does not show it. How much of the noise averages out, notebook 05 measures.
#
# **Discuss:** you have a budget for 12,000 labels. Would you rather have one careful annotator for all of them, or five different ones? What could you measure in either case?
#
# **Further reading:** Ouyang et al. 2022, section 3.5. Stiennon et al. 2020, *Learning to summarize from human feedback*, appendix B. Liu et al. 2025, *RRM: Robust reward
# model training mitigates reward hacking*. Coste et al. 2024, *Reward model ensembles help mitigate overoptimization*. Eisenstein et al. 2024, *Helping or herding?* Next: [04, PPO](04_ppo.ipynb).
