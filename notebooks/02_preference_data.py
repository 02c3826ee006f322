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
# # 02 · Preference data
#
# SFT imitates. To get beyond it somebody has to say which of two answers is better, thousands of times. A reward model, PPO and DPO will believe whatever these people said. In this notebook you will collect
# preferences, judge some yourself, and put four questions to 12,000 labels that are already there: who labeled, under what rubric, how noisily, and what is over-represented?
#
# | | |
# |---|---|
# | **You will be able to** | make pairs from a policy, measure agreement beyond chance, find an annotator's bias from labels alone, tell noise from bias, and publish a data set with its card |
# | **Time** | 1 minute to run, 45 to work through (2 CPU cores) |
# | **Needs** | the SFT model (yours, or the shipped one), the shipped preference pairs |
# | **Produces** | `outputs/my_preferences`, a small data set in the format of TRL, Hugging Face's library for such training; `outputs/labels.jsonl`, if you label |

# %% tags=["setup"]
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything ships with the course; nothing is downloaded
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import random
from dataclasses import replace
from itertools import compress

import pandas as pd
import torch
from IPython.display import Markdown

from picollm_lite.collection.aggregate import aggregate
from picollm_lite.collection.candidates import make_pairs, sample_candidates
from picollm_lite.collection.export import export, split_by_prompt
from picollm_lite.collection.labels import all_votes, panel_votes
from picollm_lite.collection.preference_file import from_preferences
from picollm_lite.data import load_preferences
from picollm_lite.evaluation.agreement import flip_rates, gold_agreement, label_shares, pairwise_kappa, panel_alpha
from picollm_lite.evaluation.composition import ask_shares, length_bias, length_quantiles, openings, position_bias
from picollm_lite.evaluation.data_card import data_card
from picollm_lite.evaluation.label_drivers import feature_margins, label_drivers, suspected_biases
from picollm_lite.models import load_policy
from picollm_lite.paths import PREFERENCES, checkpoint, outputs
from picollm_lite.ui.claims import check
from picollm_lite.ui.exercises import exercise
from picollm_lite.ui.labelling import label_pairs
from picollm_lite.ui.setup import start
from picollm_lite.world.annotators import PANEL

# %%
SEED = 0
N_PROMPTS, K = 150, 4
N_SHARED, REPEATS = 400, 2  # pairs that every annotator labels, and how often
DEVICE = start(SEED)

# %%
policy, tokenizer = load_policy(checkpoint("sft"), device=DEVICE)
preferences = load_preferences(PREFERENCES)
prompts = sorted({prompt[-1]["content"] for prompt in preferences["prompt"]})
prompts = random.Random(SEED).sample(prompts, N_PROMPTS)
print(f"{len(preferences):,} labeled pairs; {len(prompts)} of their prompts for a collection of our own")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Where pairs come from
#
# Take a prompt, sample a few answers from the policy that you want to improve, and put two of them side by side. Why from this policy, and not from a better one? Because the reward model will have to judge what *this* policy says.
#
# Some answers never become a pair: empty ones, duplicates, and those that training could not tell apart. They are counted, not lost.

# %%
candidates = sample_candidates({"sft": policy}, tokenizer, prompts, k=K, seed=SEED)
made = {kind: make_pairs(candidates, kind=kind, tokenizer=tokenizer, seed=SEED) for kind in ("any", "near", "far")}
print(f"{len(candidates)} answers -> {len(made['any'].pairs)} pairs; left out: {made['any'].dropped}")
for kind in ("near", "far"):
    pair = made[kind].pairs[0]
    print(f"\n{kind}: {pair.prompt[-1]['content']}\n  a  {pair.a[-1]['content']}\n  b  {pair.b[-1]['content']}")

# %% [markdown]
# Of the answers to one prompt, which two? *Near* pairs are the two most alike, *far* pairs the least alike, by edit distance.
#
# **Predict before you run:** on which kind is the better answer easier to see? On which does a label say more about *what* made it better?

# %%
gaps = {kind: feature_margins(some.pairs).gold.abs() for kind, some in made.items()}
pd.DataFrame(
    {
        kind: {"pairs": len(gap), "mean gold gap": gap.mean(), "equal by gold": (gap == 0).mean()}
        for kind, gap in gaps.items()
    }
).T.round(2)

# %% tags=["nbval-check-output"]
check(
    "the two answers of far pairs differ more in gold than those of near pairs",
    gaps["far"].mean() > gaps["near"].mean(),
)

# %% [markdown]
# Far pairs differ more in gold, and in many things at once. Near pairs differ less, and the fewer things they differ in, the more a label says about each of them. But the nearest two of four samples may still differ in several, as above. Real collections mix both kinds; ours takes two answers at random.
#
# ### Be an annotator
#
# Now you. The rubric stands below the buttons, and which answer stands left is random. Every label is saved at once, and running the cell again goes on where you stopped.
#
# **Try:** label ten pairs, with the mouse or by typing letters into the field. Watch with which of the simulated annotators you agree.

# %%
label_pairs(made["any"].pairs[:40], outputs() / "labels.jsonl", seed=SEED)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Who labeled?
#
# The shipped pairs were labeled by a panel of five: *careful*, *hurried*, *length_lover*, *flattered* and *contrarian*. Who is who you will find out from the labels, so here they are numbers. One label a pair, as in most public preference sets.

# %%
numbers = [f"annotator {number}" for number in range(1, len(PANEL) + 1)]
number_of = dict(zip(random.Random(SEED).sample([a.name for a in PANEL], len(PANEL)), numbers, strict=True))
panel = [replace(annotator, name=number_of[annotator.name]) for annotator in PANEL]
pairs, votes = from_preferences(preferences, seed=SEED)
votes = [vote._replace(annotator=number_of[vote.annotator]) for vote in votes]
label_shares(votes)[["annotator", "labels", "share", "pairs"]].round(2)

# %% [markdown]
# First finding: the work is very unevenly shared. Whatever the busiest annotator likes will be most of what a reward model learns.
#
# Do they agree with each other? With one label a pair *nobody can know*: no two annotators saw the same pair. So a good collection has some pairs that everybody labels, and some that come back a second time.
# We let each of the five label 400 pairs, twice. (Simulated annotators cost nothing; with people this is the part that has to be budgeted.)

# %%
shared = pairs[:N_SHARED]
shared_votes = all_votes(shared, panel, repeats=REPEATS, seed=SEED)
print(f"{len(shared_votes):,} labels for {len(shared)} pairs")

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Agreement beyond chance
#
# Two people who toss coins agree on half of all pairs. **Cohen's kappa** (1960) counts only what is beyond that. With $p_o$ the share of pairs on which both gave the same label, and $p_e$ the share that would be expected if each
# kept their own habits but chose at random:
#
# $$\kappa = \frac{p_o - p_e}{1 - p_e}, \qquad p_e = q_1 q_2 + (1 - q_1)(1 - q_2)$$
#
# where $q_1$ and $q_2$ are how often each said "a". 1 is full agreement, 0 is chance, below 0 is less than chance.
#
# ### Exercise: Cohen's kappa
# *Difficulty 1 of 3, about 8 minutes.* `first` and `second` are (B,), 1 where that annotator prefers answer a, else 0. Return kappa, a scalar tensor.
#
# <details><summary>Hint</summary>Three numbers, each a mean: how often they agree, and how often each of them says 1.</details>


# %%
@exercise("cohen_kappa")
def cohen_kappa(first, second):
    raise NotImplementedError


# %%
first, second = torch.tensor([1.0, 1, 1, 0, 0, 1, 0, 1]), torch.tensor([1.0, 1, 0, 0, 1, 1, 0, 1])
p_o = (first == second).float().mean()
p_e = first.mean() * second.mean() + (1 - first.mean()) * (1 - second.mean())
print(f"agreement {p_o:.2f}, by chance {p_e:.2f}, kappa {cohen_kappa(first, second):.2f}")
torch.testing.assert_close(cohen_kappa(first, second), (p_o - p_e) / (1 - p_e))

# %% [markdown]
# **Predict before you run:** kappa of the best two annotators of the panel, and of the worst two?

# %%
kappas = pairwise_kappa(shared_votes)
kappas.sort_values("kappa", ascending=False).round(2)

# %% [markdown]
# One number for the whole panel is **Krippendorff's alpha**: 1 less observed over expected disagreement, for any number of annotators. Krippendorff asks for 0.8, and for 0.667 where tentative conclusions are enough.

# %%
alpha = panel_alpha(shared_votes)
alpha.round(2)

# %% tags=["nbval-check-output"]
against = kappas[kappas.kappa < 0]
check("the panel does not reach the alpha of 0.667 that even tentative conclusions need", alpha["high"].iloc[0] < 0.667)
check(
    "one annotator agrees with somebody less than chance would",
    len(against) > 0 and all(number_of["contrarian"] in pair for pair in against[["first", "second"]].to_numpy()),
)

# %% [markdown]
# That is low, and a single number does not say why: because everybody guesses, or because they want different things? For that we have to look at what they want.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Under what rubric?
#
# They were all given the same rubric. Which one did they *use*? Take what differs between the two answers, and fit what moves the label: logistic regression on feature differences,
#
# $$P(a \succ b) = \sigma\Big(\sum_k w_k \frac{f_k(a) - f_k(b)}{s_k}\Big)$$
#
# $a \succ b$ says that a is preferred, $\sigma(z) = 1/(1 + e^{-z})$ turns a number into a probability, and $w_k$ is what feature $f_k$ is worth to the annotator. $s_k$ is the standard deviation of the difference, so that weights compare. Notebook 03 calls
# this the Bradley-Terry model, and puts a network where the sum is.
#
# The rubric pays for *correct* and *asked*. It pays nothing for *words*, and charges for *flattery*, *filler*, *repeated* and *unfinished* sentences. A positive weight on any of these five does not come from the rubric: it is a taste of the annotator's own, or a wish to work against the rubric.

# %%
drivers = label_drivers(pairs, votes)
drivers.pivot(index="annotator", columns="feature", values="coefficient").loc[
    drivers.annotator.unique(), drivers.feature.unique()
].round(2)

# %% [markdown]
# ### Exercise: who likes length?
# *Difficulty 1 of 3, about 6 minutes.* The simplest test needs no regression: how often does somebody prefer the longer answer? `words_a` and `words_b` are the lengths of both answers, `prefers_a` is 1 where a was preferred; all (B,).
# Return the share of labels that went to the longer answer, a scalar tensor. Pairs of equal length say nothing.
#
# <details><summary>Hint</summary>Leave out the equal pairs first. Then the label is for the longer answer where "a is longer" and "a is preferred" are both true or both false.</details>


# %%
@exercise("longer_preferred")
def longer_preferred(words_a, words_b, prefers_a):
    raise NotImplementedError


# %%
words = {pair.id: [len(side[-1]["content"].split()) for side in (pair.a, pair.b)] for pair in pairs}
for name in sorted({vote.annotator for vote in votes}):
    own = [vote for vote in votes if vote.annotator == name]
    words_a, words_b = torch.tensor([words[vote.pair] for vote in own]).T
    prefers_a = torch.tensor([float(vote.label == "a") for vote in own])
    print(f"{name}: {longer_preferred(words_a, words_b, prefers_a):.0%} for the longer answer")

# %% [markdown]
# Careful: a longer answer may also be the better one, since an answer that was cut short lacks something. The regression holds all else equal, this share does not. Write down whom you suspect of what, then run the next cell.

# %%
MY_SUSPECTS = {"length": ["annotator ?"], "flattery": ["annotator ?", "annotator ?"]}
print(MY_SUSPECTS)
suspects = suspected_biases(pairs, votes)
suspects

# %%
print({number: name for name, number in sorted(number_of.items(), key=lambda item: item[1])})

# %% [markdown]
# Whoever is listed with flattery need not like it. The contrarian works against the rubric, so likes whatever it charges for: read *favors* and *disfavors* together.

# %% tags=["nbval-check-output"]
favors = {row.annotator: row.favors for row in suspects.itertuples()}
disfavors = {row.annotator: row.disfavors for row in suspects.itertuples()}
check("who likes length was found from the labels", "words" in favors[number_of["length_lover"]])
check(
    "so were the two who like flattery",
    all(favors[number_of[name]][:1] == ("flattery",) for name in ("flattered", "hurried")),
)
check("nothing is held against the careful one", favors[number_of["careful"]] == ())
check("the contrarian works against what the rubric pays for", "correct" in disfavors[number_of["contrarian"]])
check("everyone taken together likes flattery", "flattery" in favors["everyone"])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## How noisily?
#
# An annotator who sees a pair again and changes their mind was not sure. If a label differs from what this annotator would say most of the time with probability $e$, independently each time and equally often on every pair, two labels differ with probability
#
# $$P(\text{flip}) = 2e(1 - e)$$
#
# so that the **flip rate** tells $e$ without knowing the truth. (It is an error by the annotator's own standard, which need not be the rubric's.) Our annotators' probabilities $p$ are known, so we can check: they should flip with probability $2p(1-p)$, on average over the pairs.
#
# **Predict before you run:** the annotator who likes flattery and gives most of the labels: noisier than the careful one, or not?

# %%
flips = flip_rates(shared, shared_votes, panel=panel)
flips[["annotator", "repeats", "flip_rate", "low", "high", "expected", "label_error"]].round(3)

# %%
agreement = gold_agreement(shared, shared_votes, feature_margins(shared).gold)
agreement.round(2)

# %% tags=["nbval-check-output"]
flip_rate, by_gold = flips.set_index("annotator").flip_rate, agreement.set_index("annotator").agreement
liked, careful, against_all = (number_of[name] for name in ("flattered", "careful", "contrarian"))
check("the contrarian changes their mind most often", flip_rate.drop("everyone").idxmax() == against_all)
check(
    "the busiest annotator, who likes flattery, is within 0.1 as steady as the careful one, but further from gold",
    flip_rate[liked] < flip_rate[careful] + 0.1 and by_gold[liked] < by_gold[careful],
)

# %% [markdown]
# Two kinds of error, and they must not be confused. **Noise** shows when you ask again, and averages out over many labels. **Bias** gives the same wrong answer every time: asking again finds nothing, and more labels make a model surer of it.
# The flip rate sees noise only. That is why we needed the regression.
#
# ## What is over-represented?
#
# A reward model learns what it sees often. Four things to count: what was asked, how long answers are, how they begin, and whether a side is preferred for its place. For the last one we take
# the shared pairs: the shipped file does not say which answer was read first.

# %%
ask_shares(pairs).round(3)

# %%
length_quantiles(pairs, votes).round(1)

# %%
common = openings(pairs, votes)
common.head(8).round(3)

# %%
pd.concat(
    {
        "longer": length_bias(pairs, votes).set_index("annotator"),
        "first": position_bias(shared_votes).set_index("annotator"),
    },
    axis=1,
)[
    [
        ("longer", "longer_preferred"),
        ("longer", "low"),
        ("longer", "high"),
        ("first", "first_preferred"),
        ("first", "low"),
        ("first", "high"),
    ]
].round(2)

# %% tags=["nbval-check-output"]
by_place = position_bias(shared_votes).set_index("annotator").loc["everyone"]
check("taken together, the panel does not prefer what it reads first", by_place.low <= 0.5 <= by_place.high)

# %% [markdown]
# Requests are balanced because we drew them so. In found data they never are. The panel has no **position bias**: it does not favor what it reads first. People and LLM judges often do, which is why the side is drawn at random, and why a collection should write down which one it was.
#
# Compare an opening's share among the chosen with its share among the rejected: a preference for a *form* shows before any model is trained.
#
# ## More votes, or a filter?
#
# What can be done about noise and bias with the labels at hand? Some remedies, each judged by how often the label that it leaves agrees with gold (which you would not have):


# %%
def remedy(some_pairs, some_votes):
    """Pairs that get a label; how often it goes to the side with more gold, and how often where the other side flatters."""
    rows = aggregate(some_pairs, some_votes).rows
    given, labels = from_preferences([{**row, "annotator": "all"} for row in rows], seed=SEED)
    margins = feature_margins(given)
    right = gold_agreement(given, labels, margins.gold).iloc[-1]
    misleads = (margins.gold * margins.flattery < 0).to_numpy()  # the worse answer flatters more
    misled = gold_agreement(list(compress(given, misleads)), list(compress(labels, misleads)), margins.gold[misleads])
    shares = {"agree with gold": right.agreement, "low": right.low, "high": right.high}
    misled_shares = {"where flattery misleads": misled.agreement.iloc[-1], "so many pairs": misleads.sum()}
    return {"pairs": len(rows), **shares, **misled_shares}


once = all_votes(shared, panel, seed=SEED)
alike = [pair for pair in shared if abs(words[pair.id][0] - words[pair.id][1]) <= 1]
remedies = {
    "one label, by share": remedy(shared, panel_votes(shared, panel, seed=SEED)),
    "majority of 3, by share": remedy(shared, panel_votes(shared, panel, votes=3, seed=SEED)),
    "majority of all 5": remedy(shared, once),
    "of all 5, without who is against all": remedy(shared, [v for v in once if v.annotator != against_all]),
    "the careful one alone": remedy(shared, [v for v in once if v.annotator == careful]),
    "one label, same length only": remedy(alike, panel_votes(alike, panel, seed=SEED)),
}
pd.DataFrame(remedies).T.astype({"pairs": int, "so many pairs": int}).round(2)

# %% tags=["nbval-check-output"]
check(
    "a majority of all five agrees with gold more often than one label",
    remedies["majority of all 5"]["agree with gold"] > remedies["one label, by share"]["agree with gold"],
)
check(
    "where the worse answer flatters, a majority of all five sides with it, as one label does",
    max(remedies[name]["where flattery misleads"] for name in ("majority of all 5", "one label, by share")) < 0.5,
)

# %% [markdown]
# Votes help against noise. Against a bias that most voters share they do not: where the worse answer flatters, the majority goes wrong about as often as a single label. There it helps only to ask somebody without the bias: the contrarian may go or stay, the careful one has to decide alone.
#
# The rows with fewer pairs are judged on those pairs only. The filter on length keeps one pair in six and looks good, because a flattering sentence makes an answer longer: among answers of one length few differ in flattery. It chose easier pairs; nobody was cured of anything.
#
# ## Publish it
#
# Now our own collection, from prompts to a data set, with nothing done by hand in between: three votes a pair, the majority wins, undecided pairs are kept aside, and no prompt stands in both splits.

# %%
own_votes = panel_votes(made["any"].pairs, votes=3, seed=SEED)
rows, undecided = aggregate(made["any"].pairs, own_votes)
splits = split_by_prompt(rows, test_share=0.2, seed=SEED)
in_split = {name: {row["id"] for row in part} for name, part in splits.items()}
card = data_card(
    "Course desk preferences, a small collection",
    {
        name: (
            [pair for pair in made["any"].pairs if pair.id in ids],
            [vote for vote in own_votes if vote.pair in ids],
        )
        for name, ids in in_split.items()
    },
    files={name: f"{name}.jsonl" for name in splits},
    collected=f"{K} answers a prompt, sampled from the SFT model of the course at temperature 1; two of them at random "
    "make a pair; three labels a pair by the course's simulated panel; the majority decides.",
    limits=["Annotators are simulated.", "True only in the small world of the course.", "Labels favor flattery."],
    panel=PANEL,
)
folder = export(splits, outputs() / "my_preferences", card=card)
print(
    f"{len(rows)} rows, {len(undecided)} undecided -> {folder.name}: {sorted(path.name for path in folder.iterdir())}"
)
print(len(load_preferences(folder / "train.jsonl")), "rows to train on, read back")

# %%
sections = {part.split("\n", 1)[0]: part for part in card.split("\n## ")[1:]}
print("README.md says:", "; ".join(sections))
Markdown("\n".join(f"### {sections[name]}" for name in ("How it was collected", "How noisy", "Known limits")))

# %% [markdown]
# The **data card**, of which you see three sections, answers the four questions for whoever uses the set after you, and says what it does not know: nobody in this collection saw a pair twice, so the noise is *unknown*. Read one before you train on anything: *who labeled this, and what did they like?*

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Recap
#
# - Pairs come from the policy that is to be improved; near pairs differ less in gold than far ones.
# - Agreement must be measured on pairs that several people labeled, and beyond chance: $\kappa$ for two, $\alpha$ for all.
# - A regression on feature differences finds what an annotator likes, and does not need to know the annotator.
# - Asking again finds noise. It does not find bias.
# - Whatever the busiest annotator likes, a model will learn.
#
# **Discuss:** two of your annotators disagree with everybody, one because he is careless and one because she is right. How do you tell?
#
# **Further reading:** Cohen 1960, *A coefficient of agreement for nominal scales*. Krippendorff 2004, *Content analysis*, chapter 11. Gebru et al. 2021, *Datasheets for datasets*. Ouyang et al. 2022, appendix B (how their labelers were chosen and instructed).
# Next: [03, the reward model](03_reward_model.ipynb).
