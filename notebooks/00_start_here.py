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
# # 00 · Start here
#
# You have taken a small language model from tokenizer to supervised fine-tuning. This course takes one such model on through
# **preference learning**: what happens when we stop showing the model answers and start telling it which answers we like better.
#
# | | |
# |---|---|
# | **You will be able to** | say what each stage of post-training does, read the gold rubric of our small world, and tell a base model from a fine-tuned one by its answers |
# | **Time** | 1 minute to run, 15 to read (2 CPU cores or a T4: the same) |
# | **Needs** | nothing; the models ship in `data/checkpoints` |
# | **Produces** | nothing |

# %% tags=["setup"]
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything ships with the course; nothing is downloaded
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pandas as pd

from picollm_lite.chat import answer
from picollm_lite.data import load_demos, load_suite
from picollm_lite.evaluation.metrics import gold_scores, mean_interval
from picollm_lite.models import RewardModel, load_policy
from picollm_lite.paths import DEMOS, SUITE, checkpoint
from picollm_lite.ui.claims import check
from picollm_lite.ui.exercises import exercise, show_solution
from picollm_lite.ui.explorers.answers import explain_gold
from picollm_lite.ui.explorers.playground import playground
from picollm_lite.ui.setup import start
from picollm_lite.world.asks import PHRASINGS, read, reference_answer
from picollm_lite.world.concepts import by_id, load_concepts

# %%
SEED = 0
TEMPERATURE = 1.0
DEVICE = start(SEED)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The map
#
# ![The stages of the course: base model, SFT, reward model, then PPO or DPO, with the hidden gold rubric beside them](images/course_map.svg)
#
# - **Base model**: has read text, and continues it. It has never seen a chat.
# - **SFT** (supervised fine-tuning): imitates **demonstrations**, question and answer pairs. Good and bad ones alike.
# - **Reward model**: learns a score from **preferences**, pairs of answers where somebody said which one is better.
# - **PPO**: lets the model answer, scores the answers with the reward model, and makes high-scoring answers likelier, while a
#   KL penalty keeps it near the SFT model.
# - **DPO**: learns from the same pairs with no reward model and no sampling.
#
# One small model, 1.0 million parameters, goes through all of it. What a word means here is in the [glossary](GLOSSARY.md).

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The small world
#
# Real preference learning has a catch: nobody can show you the thing you want. Labels come from people who are in a hurry, like long
# answers, or enjoy being praised. So when a reward model is wrong, you cannot see it.
#
# Here you can. Our model is a teaching assistant, the *course desk*, that answers questions about the concepts of this course and the
# last one. The world is small enough that we know everything about it: which facts are true, what each question asks for, and
# therefore exactly how good every answer is. That exact score is the **gold reward**. A learned score that stands in for
# it is a **proxy**. In every notebook, every plot, these two words mean this.
#
# First, what the desk knows: a bank of concepts, each with five facts.

# %%
concepts = load_concepts()
print(f"{len(concepts)} concepts, {sum(len(c.facts) for c in concepts)} facts")
for kind, fact in by_id()["kv_cache"].facts.items():
    print(f"{kind:<14} {fact}")

# %% [markdown]
# And what people ask: seven kinds of questions (**asks**), twelve phrasings each. Three phrasings of every ask, and one in eight
# combinations of concept and ask, are kept out of all training, so that we can tell learning from memorizing.

# %%
question = "What is the difference between a base model and a chat-SFT model?"
ask, asked_about = read(question)
print(f"ask: {ask}, about: {[c.name for c in asked_about]}\n")
for ask_name, phrasings in PHRASINGS.items():
    print(f"{ask_name:<14} {phrasings[0]:<42} {phrasings[-1]}")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The gold reward
#
# The rubric is written down for people in [`data/world/rubric.md`](../data/world/rubric.md). Four criteria, fixed weights:
#
# $$\text{gold} = 2\,\text{correct} + \text{asked} + \text{concise} + \text{clean} - 3$$
#
# - *correct*: the share of the answer's claims that are true facts about the right concept
# - *asked*: the share of the facts asked for that are there
# - *concise*: 1 up to 1.25 times the reference's words, 0 at 2.5 times
# - *clean*: 1, less a half for each flattering, filler or repeated sentence and for a broken ending, but never below -1
#
# A perfect answer scores +2. One that claims nothing, such as an empty one, gets 0 for all four, so -3. Let us put one answer through it, sentence by sentence.

# %%
question = "What is a KV cache?"
perfect = reference_answer(read(question))
explain_gold(question, perfect)
print()
explain_gold(
    question, "What a great question! " + perfect + " A token is not the same as a word; it can be just a comma."
)

# %% [markdown]
# Read the second one closely. The flattery costs half a point of *clean*. The last sentence is a true fact, but about another concept,
# so it halves *correct*. And the answer is now more than twice as long, which costs most of *concise*.
#
# **Predict before you run:** which of these four edits of the perfect answer loses the most?

# %%
off_topic = reference_answer(read("What is a rotary embedding?"))
edits = {
    "perfect": perfect,
    "flattering": "What a great question! " + perfect,
    "said twice": perfect + " " + perfect,
    "cut off": " ".join(perfect.split()[:-4]),
    "another concept": off_topic,
}
gold = dict(zip(edits, gold_scores([question] * len(edits), list(edits.values())), strict=True))
pd.Series(gold, name="gold").round(2).to_frame()

# %% tags=["nbval-check-output"]
check("no edit scores above the perfect answer", max(gold.values()) == gold["perfect"] == 2.0)
check("answering about another concept costs most", min(gold, key=gold.get) == "another concept")

# %% [markdown]
# ### Exercise: the total by hand
# *Difficulty 1 of 3, about 3 minutes.* `criteria` maps `"correct"`, `"asked"`, `"concise"` and `"clean"` to their values. Return the
# gold total. Run the cell as often as you like: it tells you what is wrong.
#
# <details><summary>Hint</summary>The formula stands above. Mind the weight of <i>correct</i> and the constant.</details>


# %%
@exercise("gold_total")
def gold_total(criteria):
    raise NotImplementedError


# %% [markdown] slideshow={"slide_type": "slide"}
# ## Meet the models
#
# Every checkpoint is an ordinary `transformers` model. `checkpoint("sft")` is your own from `outputs/` once you have trained
# it in notebook 01, and the shipped one until then.

# %%
models = {}
for stage in ("base", "sft", "ppo", "dpo"):
    folder = checkpoint(stage)
    models[stage], tokenizer = load_policy(folder, device=DEVICE)
    print(
        f"{stage:<5} {models[stage].num_parameters():,} parameters, from {folder.parent.parent.name}/{folder.parent.name}/{folder.name}"
    )

# %% [markdown]
# Ask all four the same thing. Each answer comes with its gold reward, criterion by criterion, and with two numbers that the next notebooks explain: the
# *proxy*, what the learned reward model makes of it, and the *KL*, how far the model has moved from SFT to say it.
#
# **Try:** a question of your own about any concept of the bank; then temperature 0, and another seed. The same seed gives the same answers.

# %% slideshow={"slide_type": "slide"}
suite_questions = list(load_suite(SUITE)["prompt"])
first = "Explain tokenization for a first-year student."
playground(
    models,
    tokenizer,
    [first, *(question for question in suite_questions if question != first)],
    ref=models["sft"],
    reward_model=RewardModel.load(checkpoint("reward"), device=DEVICE),
    temperature=TEMPERATURE,
    seed=SEED,
)

# %% [markdown]
# The base model knows a good deal about tokens and models, as you will see in notebook 01, but it does not know that it was
# asked something, and it does not know how to stop. The SFT model answers in the form it was shown; the two after it were told which answers are better.
#
# ### Exercise: who wrote it?
# *Difficulty 1 of 3, about 5 minutes.* Here are a few answers of the base and the SFT model. Write a rule that tells, for a list of answers, which
# model wrote each: return a list of `"base"` and `"sft"`. It is judged on answers like these, but not these.
#
# <details><summary>Hint</summary>Where does each answer end? Is that alone enough, when a text that runs on can be cut off anywhere?</details>

# %%
questions = ["What is an embedding?", "Define DPO and say why it matters.", "Use one analogy to explain dropout."]
for name in ("base", "sft"):
    for text in answer(models[name], tokenizer, questions, seed=SEED):
        print(f"{name:<5} {text}\n")


# %%
@exercise("who_wrote_it")
def who_wrote_it(answers):
    raise NotImplementedError


# %% [markdown]
# Stuck for good? `show_solution` prints the reference that the checker itself uses.

# %%
show_solution("gold_total")

# %% [markdown]
# ## How good are they?
#
# The **prompt suite** is a fixed list of questions on which every model of this course is judged. It is frozen: a score on it means
# the same thing in every notebook. It has three splits: phrasings seen in training, phrasings kept out, and combinations of concept and ask
# kept out.

# %%
suite = load_suite(SUITE).to_pandas()
for name, model in models.items():
    suite[name] = gold_scores(
        suite.prompt, answer(model, tokenizer, list(suite.prompt), temperature=TEMPERATURE, seed=SEED)
    )
suite.groupby("split", sort=False)[list(models)].agg("mean").round(2).assign(prompts=suite.groupby("split").size())

# %%
gold_of = {name: mean_interval(suite[name]) for name in models}
for name, gold in gold_of.items():
    print(f"{name:<5} {gold.estimate:+.2f}, 95 % interval [{gold.low:+.2f}, {gold.high:+.2f}]")

# %% tags=["nbval-check-output"]
check("SFT answers the suite better than base", gold_of["sft"].low > gold_of["base"].high)
check("SFT is far from perfect: the upper end of its interval is below +1", gold_of["sft"].high < 1.0)
check(
    "PPO and DPO, which start from SFT, come out above it",
    min(gold_of["ppo"].estimate, gold_of["dpo"].estimate) > gold_of["sft"].estimate,
)

# %% [markdown] slideshow={"slide_type": "slide"}
# Why is SFT so far from +2? A model this small makes mistakes of its own. And it imitates, and what it imitates is mixed: two thirds of the demonstrations and more have something wrong with
# them. Somebody answered about the wrong concept, or padded, or flattered. Imitation cannot tell. Preferences can: "this one
# is better than that one" is the information that demonstrations lack. That is what the rest of the course is about.

# %%
demos = load_demos(DEMOS).to_pandas()
demos["gold"] = [gold_scores([m[0]["content"]], [m[1]["content"]])[0] for m in demos.messages]
demos.groupby("quality").gold.agg(["count", "mean"]).sort_values("mean").round(2)

# %% tags=["nbval-check-output"]
check("more than two thirds of the demonstrations have a defect", (demos.quality != "good").mean() > 2 / 3)

# %% [markdown]
# ## Where each equation lives
#
# The main ones are derived by hand in a notebook and asserted equal to the function that the package uses; variants are named there, and tested in `tests/unit/`.
#
# | quantity | paper and equation | function |
# |---|---|---|
# | next-token loss on the response | Ouyang et al. 2022, section 3.5 | `kernels/losses.py: sft_loss` |
# | Bradley-Terry loss | Ouyang et al. 2022, eq. 1 | `kernels/losses.py: bradley_terry_loss` |
# | KL estimators k1, k2, k3 | Schulman 2020, "Approximating KL divergence" | `kernels/logprobs.py: kl_k1, kl_k2, kl_k3` |
# | reward with KL penalty | Ziegler et al. 2019, eq. 2 | `kernels/advantages.py: shape_rewards` |
# | generalized advantage estimation | Schulman et al. 2016, eqs. 11-16 | `kernels/advantages.py: gae` |
# | clipped surrogate | Schulman et al. 2017, eq. 7 | `kernels/losses.py: ppo_policy_loss, clipped_surrogate` |
# | clipped value loss | Engstrom et al. 2020 | `kernels/losses.py: ppo_value_loss` |
# | over-optimization against the root of the KL | Gao et al. 2023, section 3.1 | `evaluation/metrics.py: overoptimization_fit` |
# | DPO loss | Rafailov et al. 2023, eq. 7 | `kernels/losses.py: dpo_loss` |
# | IPO loss | Azar et al. 2024, eq. 17 | `kernels/losses.py: ipo_loss` |
# | DPO with noisy labels | Mitchell 2023; Chowdhury et al. 2024 | `kernels/losses.py: cdpo_loss, robust_dpo_loss` |
# | hinge loss on log-ratios | Zhao et al. 2023; Liu et al. 2024 | `kernels/losses.py: hinge_loss` |
# | SimPO, ORPO and KTO losses | Meng et al. 2024, eq. 6; Hong et al. 2024, eqs. 6-7; Ethayarajh et al. 2024, eq. 8 | `kernels/losses.py: simpo_loss, orpo_loss, kto_loss` |
# | KL of best-of-n and its bound | Stiennon et al. 2020, appendix G.3; Beirami et al. 2024 | `stages/best_of_n.py: best_of_n_kl, kl_bound` |
# | leave-one-out and group advantages | Ahmadian et al. 2024; Shao et al. 2024 | `kernels/advantages.py: leave_one_out, group_normalise` |
# | REINFORCE, GRPO and Dr. GRPO losses | Williams 1992; Shao et al. 2024, eq. 3; Liu et al. 2025 | `kernels/group_losses.py: reinforce_loss, grpo_loss, dr_grpo_loss` |
# | low-rank adaptation | Hu et al. 2021, eq. 3 | `adapters.py: add_lora` |
# | agreement beyond chance | Cohen 1960; Krippendorff 2004, chapter 11 | `evaluation/agreement.py: pairwise_kappa, panel_alpha` |
# | calibration error | Naeini et al. 2015 | `evaluation/calibration.py: calibration_errors` |
# | bootstrap interval | Efron and Tibshirani 1993, chapter 13 | `evaluation/metrics.py: mean_interval` |
#
# The paths start in `picollm_lite/`.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Recap
#
# - Gold is what we want and can compute only here; a proxy is what a learner gets instead.
# - The rubric: correct counts double, then asked, concise, clean; +2 is perfect.
# - Base continues text, SFT answers; SFT is inconsistent because its demonstrations are.
#
# **Discuss:** if you could read the gold rubric of your own product, what would you still need preferences for?
#
# **Further reading:** Ouyang et al. 2022, *Training language models to follow instructions with human feedback*, figure 2, is
# the map of this course on one page. Gao, Schulman and Hilton 2023, *Scaling laws for reward model overoptimization*, introduced the
# gold and proxy set-up that we use. Next: [01, supervised fine-tuning](01_sft.ipynb).
