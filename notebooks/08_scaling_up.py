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
# # 08 · Scaling up
#
# Everything so far happened in a small world, with a model of a million parameters and a rubric that knows the truth. Here you take the same loops to your own model and your own preference data. Four things change: you must check what a
# foreign model and a foreign file really contain, there is no gold, memory becomes the limit, and runs take long enough to be cut off.
#
# | | |
# |---|---|
# | **You will be able to** | swap model and data by one cell, train without a known gold, work out how much memory a stage needs and what makes it fit, go on after a disconnect, share a run among several processes, and hand over to TRL |
# | **Time** | 1 minute to run as it stands, 30 to work through (2 CPU cores); with SmolLM2-135M you want a GPU, such as the T4 that Colab lends for free |
# | **Needs** | the SFT model (yours from notebook 01, or the shipped one), or any causal language model of your own |
# | **Produces** | `outputs/own/`: checkpoints of your SFT, reward, DPO, LoRA and PPO models, and a folder for TRL; with a model of your own also the state of each stage, which takes gigabytes |
#
# ## Choose
#
# As it stands, this notebook runs on the course's model and pairs, so that it runs anywhere and you can see what it does. Then swap. Nothing is fetched unless you name it here.
#
# | `MODEL` | |
# |---|---|
# | `None` | the course's SFT model |
# | `"HuggingFaceTB/SmolLM2-135M-Instruct"` | a small chat model from the Hugging Face hub: the place to start on a T4 |
# | `"path/to/folder"` | any causal language model that `save_pretrained` wrote. For a picoLLM export, which comes with its own Python code, also set `TRUST_REMOTE_CODE = True`: that runs the code |
#
# | `PREFERENCES` | `SPLIT` | |
# |---|---|---|
# | `None` | `None` | the course's pairs |
# | `"HuggingFaceH4/ultrafeedback_binarized"` | `"train_prefs[:1500]"` | long answers of many models, each scored by GPT-4: the best one of a prompt against another of it (Tunstall et al. 2023) |
# | `"Anthropic/hh-rlhf"` | `"train[60000:61500]"` | dialogs with an assistant, compared by people (Bai et al. 2022). Some of its texts are offensive, and its card advises against SFT on them |
# | `"path/to/file.jsonl"` (or `.parquet`) | `None` | your own: `{"prompt": ..., "chosen": ..., "rejected": ...}` a line, texts or lists of messages. Notebook 02 shows how to collect them |
#
# The same can be said without touching the cell, in the environment: `PICOLLM_MODEL`, `PICOLLM_PREFERENCES`, `PICOLLM_SPLIT`, `PICOLLM_TRUST_REMOTE_CODE=1`. A relative path starts at this notebook's folder; with `make course`, at the folder in which you call it. After a change, restart the kernel and run all: whether to go online is decided once, at the start.

# %% tags=["setup"]
import os
from pathlib import Path

MODEL = os.environ.get("PICOLLM_MODEL")
PREFERENCES = os.environ.get("PICOLLM_PREFERENCES")
SPLIT = os.environ.get("PICOLLM_SPLIT")
TRUST_REMOTE_CODE = os.environ.get("PICOLLM_TRUST_REMOTE_CODE") == "1"

OURS = MODEL is None and PREFERENCES is None
on_hub = any(name is not None and not Path(name).exists() for name in (MODEL, PREFERENCES))
os.environ.setdefault("HF_HUB_OFFLINE", "0" if on_hub else "1")  # before the imports, which read it
os.environ.setdefault("HF_DATASETS_OFFLINE", "0" if on_hub else "1")
if not OURS:
    os.environ["PICOLLM_CLAIMS"] = "report"  # the claims below are about the course's model: yours may be another

import json
import shutil
import subprocess
import sys
import time
from copy import deepcopy

import numpy as np
import pandas as pd
import torch

from picollm_lite.adapters import add_lora, reference
from picollm_lite.chat import answer, encode_prompt, padding_id, readable, respond, user, without_control_tokens
from picollm_lite.compat import add_chat_format
from picollm_lite.data import encode_pairs, load_preferences, prompt_key
from picollm_lite.evaluation.audit import scores_of
from picollm_lite.evaluation.metrics import gold_scores, mean_interval, paired_win_rate
from picollm_lite.files import write_jsonl
from picollm_lite.handoff import command, hand_off
from picollm_lite.kernels.rollout import context_length
from picollm_lite.models import RewardModel, load_policy, mixed_precision, save
from picollm_lite.paths import PREFERENCES as OUR_PAIRS
from picollm_lite.paths import checkpoint, outputs
from picollm_lite.stages import dpo, ppo, reward, sft
from picollm_lite.stages.resume import Resume
from picollm_lite.ui.claims import check
from picollm_lite.ui.exercises import exercise
from picollm_lite.ui.panel import TrainingPanel
from picollm_lite.ui.setup import start

# %% [markdown]
# Our learning rates suit a model of a million parameters and short runs. The values after `else` are a cautious start for 100 million and more; runs of hundreds of steps want lower ones. The other settings leave room on a GPU of 15 GB, such as a T4: with a random model of SmolLM2-135M's shape and texts of 512 tokens, in fp32, this notebook took at most 9.9 GiB in any stage, 10.9 with what torch holds in reserve (`tests/benchmarks/memory.md`). That was an H100, held to a T4's memory; on a T4 itself nobody has run it.

# %%
SEED = 0
N_PAIRS = 1000 if PREFERENCES is None else 1500
MAX_LENGTH = 256 if PREFERENCES is None else 512  # tokens of a conversation; what is longer is cut
MAX_NEW_TOKENS = 56 if PREFERENCES is None else 256  # tokens of an answer
BATCH_SIZE = 64 if MODEL is None else 16  # demonstrations or pairs a step
N_ANSWERS = 64  # a step of PPO
N_QUESTIONS = 128  # held out, to compare models on
SFT_RATE, REWARD_RATE, DPO_RATE, PPO_RATE = (5e-4, 1e-3, 1e-4, 1e-4) if MODEL is None else (2e-5, 2e-5, 5e-6, 3e-6)
BETA, KL_COEF = 0.3, 0.3 if MODEL is None else 0.05
UNFINISHED_SCORE = -3.0 if PREFERENCES is None else None  # of an answer that does not end; None: as the proxy scores it
PPO_STEPS = 6
LORA_RANK = 8
CHECKPOINTING = MODEL is not None  # compute activations anew: slower, and a fraction of the memory
KEEP_AS = torch.float16 if MODEL is None else torch.float32  # fp16 would round most of a small step away
DEVICE = start(SEED)
OWN = outputs() / "own"

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What did you get?
#
# A model is a folder with weights, a tokenizer and a chat template. Look at all three before you train: what a template does wrong, no loss curve will show you.
#
# We load the weights in **fp32**, numbers of 4 bytes, also where they were stored in **bf16**, which has 2 bytes and keeps 8 significant bits. In bf16 a step of $10^{-6}$ on a weight of 0.03 rounds to no step at all. A **KV cache** keeps the keys and values of earlier tokens while a model samples; a model without one computes them again
# at every token.

# %%
source = MODEL or checkpoint("sft")
opened = {"device": DEVICE, "dtype": "float32", "trust_remote_code": TRUST_REMOTE_CODE}
policy, tokenizer = load_policy(source, **opened)
if tokenizer.chat_template is None:
    add_chat_format(policy, tokenizer)
    print("no chat template: this is a base model. It got ours, and SFT has to teach it what the new tokens mean")
print(
    f"{type(policy).__name__}: {policy.num_parameters():,} parameters in {policy.dtype}, {len(tokenizer):,} tokens, "
    f"with{'' if getattr(policy.config, 'use_cache', False) else 'out'} a KV cache"
)

# %% [markdown]
# And a file of pairs is what somebody said about two texts. `load_preferences` reads our format, TRL's, UltraFeedback's and HH-RLHF's, and turns them into lists of messages. Rows of other people's data that it cannot read are left out and counted, and so are texts that spell a control token, such as `<|im_end|>`, which only the
# template may write. We split by prompt, since prompts come up again: two fifths of them to train on, two fifths for a judge, one fifth that nobody trains on.

# %%
preferences = load_preferences(PREFERENCES or OUR_PAIRS, split=SPLIT, strict=PREFERENCES is None)
preferences = preferences.shuffle(seed=SEED).select(range(min(N_PAIRS, len(preferences))))


def spells_no_control_token(row):
    texts = [message["content"] for part in ("prompt", "chosen", "rejected") for message in row[part]]
    return texts == [without_control_tokens(tokenizer, text) for text in texts]


kept = [i for i, row in enumerate(preferences) if spells_no_control_token(row)]
print(f"{len(preferences) - len(kept)} of {len(preferences):,} pairs left out, as they spell a control token")
preferences = preferences.select(kept)

# %%
prompts = sorted({prompt_key(prompt) for prompt in preferences["prompt"]})
PARTS = ("train", "judge", "train", "judge", "test")
part_of = {prompt: PARTS[i % 5] for i, prompt in enumerate(prompts)}
row_parts = [part_of[prompt_key(prompt)] for prompt in preferences["prompt"]]
rows = {name: preferences.select([i for i, part in enumerate(row_parts) if part == name]) for name in PARTS}
max_length = min(MAX_LENGTH, context_length(policy) or MAX_LENGTH)
pairs = {name: encode_pairs(part, tokenizer, max_length=max_length) for name, part in rows.items()}
print({name: f"{len(part):,} pairs" for name, part in pairs.items()})
if len(pairs["train"]) < 4 * BATCH_SIZE:
    print(
        "fewer than four steps a stage: that shows how things work and trains nothing; have more pairs or a smaller BATCH_SIZE"
    )
row = rows["train"][0]
print(
    f"\nasked     {readable(row['prompt'])}\nchosen    {readable(row['chosen'])}\nrejected  {readable(row['rejected'])}"
)

# %% [markdown]
# What will the loss count? The first pair's chosen side again, token by token. With a foreign chat template, check that every token of the answer counts, the one that ends it too (unless the text was cut), and no other.

# %%
example = pairs["train"][0].chosen
tokens = tokenizer.convert_ids_to_tokens(example.tokens)
marked = [
    f"{token!r:<24} {'counts' if counts else '-'}" for token, counts in zip(tokens, example.response_mask, strict=True)
]
first, last = np.flatnonzero(example.response_mask)[[0, -1]]
print("\n".join([*marked[max(first - 3, 0) : first + 2], "...", *marked[last - 1 :]]))

# %% [markdown]
# The loops that sample want plain questions, short enough to leave room for an answer.

# %%
max_new_tokens = min(MAX_NEW_TOKENS, max_length // 2)


def questions_of(part):
    """The prompts of a part that are a single question and leave room for an answer."""
    single = [prompt[0][1] for prompt in prompts if part_of[prompt] == part and len(prompt) == 1]
    return [text for text in single if len(encode_prompt(tokenizer, user(text))) <= max_length - max_new_tokens]


train_questions, questions = questions_of("train"), questions_of("test")[:N_QUESTIONS]
print(
    f"{len(train_questions):,} of {sum(part == 'train' for part in part_of.values()):,} prompts to train on; {len(questions)} kept out"
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What fits?
#
# In fp32, training with AdamW keeps 16 bytes for each parameter that it trains: the weight, its gradient, and Adam's two averages, 4 bytes each (Rajbhandari et al. 2020, *ZeRO*, section 3.1, counts the same 16 for mixed precision). A weight that only answers, such as one of the
# reference, costs its 4. On top of that come the **activations**: the intermediate results of the forward pass that the backward pass needs, which grow with batch and length.
#
# ### Exercise: before the first token
# *Difficulty 1 of 3, about 5 minutes.* Return the bytes that stay in memory for `trained` parameters with gradient and `frozen` ones without, in fp32 with AdamW.
#
# <details><summary>Hint</summary>
# Four numbers for each parameter that is trained. How many for one that is not?
# </details>


# %%
@exercise("training_bytes")
def training_bytes(trained, frozen):
    raise NotImplementedError


# %% [markdown]
# **Predict before you run:** which stage needs most, and how many times as much as SFT?

# %%
n = policy.num_parameters()
needs = {  # parameters with gradient, parameters without
    "SFT": (n, 0),
    "reward model": (n, 0),
    "DPO": (n, n),  # the reference
    "GRPO": (n, 2 * n),  # reference and reward model
    "PPO": (2 * n, 2 * n),  # and a critic; the judge, below, is one more frozen model, not counted here
}
sizes = {"this model": 1, "135 million": 135e6 / n, "7 billion": 7e9 / n}
gib = {
    stage: {name: training_bytes(*need) * size / 2**30 for name, size in sizes.items()} for stage, need in needs.items()
}
pd.DataFrame(gib).T.map(lambda value: f"{value:,.1f} GiB" if value >= 1 else f"{1024 * value:,.0f} MiB")

# %% tags=["nbval-check-output"]
check("PPO keeps 2.5 times as much as SFT", training_bytes(*needs["PPO"]) == 2.5 * training_bytes(*needs["SFT"]))

# %% [markdown]
# That is before the first token. Measured on a GPU (an H100), with randomly initialized Llamas in fp32, 8 texts of 128 tokens (reward model and DPO: pairs of texts; PPO: questions with an answer) and all activations kept (`tests/benchmarks/memory.md`, with a CPU beside it, which needs much the same):
#
# | parameters | SFT | reward model | DPO | PPO |
# |---|---|---|---|---|
# | 1 million | 0.1 GiB | 0.2 GiB | 0.2 GiB | 0.2 GiB |
# | 31 million | 0.9 GiB | 1.3 GiB | 1.3 GiB | 1.6 GiB |
# | 135 million, SmolLM2's shape | 3.7 GiB | 6.6 GiB | 5.8 GiB | 7.2 GiB |
#
# SFT of the largest keeps 2.0 GiB between steps and needs nearly twice that during one, for a thousand tokens. Sixty-four texts of a thousand tokens would hold sixty-four times the activations: over 100 GiB. The reward model needs so much because its step also scores each chosen answer under another prompt.
#
# What to do when it does not fit, in this order:
#
# 1. **Shorter texts.** Activations grow with the tokens of a batch: lower `MAX_LENGTH`, then `BATCH_SIZE`. Logits over a large vocabulary are computed in pieces automatically.
# 2. **Mixed precision**: matrix products in bf16, weights and optimizer in fp32 (Micikevicius et al. 2018, there with fp16; Kalamkar et al. 2019). `with mixed_precision(policy):` around the loop does it, as around the training loops below, on a GPU that has bf16. A T4 has not: there everything runs in fp32. It mostly buys speed: at 135 million parameters the peak fell by 3 (PPO) to 23 % (reward model).
# 3. **Activation checkpointing** (no relation to saved checkpoints): forget activations and compute them anew in the backward pass (Chen et al. 2016). Every loop then works through a batch in pieces of 2,048 tokens, with the same gradient, and holds the activations of one piece at a time, however large the batch. With batches of 64 in place of 8, the last row of the table becomes 5.4, 5.2, 5.9 and 8.6 GiB. Every model that trains has to be told: `lean`, below, does it.
# 4. **Train less**: LoRA, below. Gradients and averages of a few percent of the parameters, and no second copy for the reference.
# 5. **More GPUs**, or a trainer that splits one model over several: hand over to TRL, below.


# %%
def lean(model):
    """Activation checkpointing where it is asked for, and no gradients of an earlier run."""
    for part in (model, getattr(model, "base_model", model)):
        part.gradient_checkpointing = CHECKPOINTING  # the loops look for it
    model.zero_grad(set_to_none=True)
    return model


def resume(stage):
    """On your own model each stage keeps its state, so that a run that was cut off goes on (below)."""
    return None if MODEL is None else Resume(OWN / f"{stage}.state", every=10)


# %% [markdown] slideshow={"slide_type": "slide"}
# ## The same four stages
#
# SFT on the chosen answers of the training pairs, as there are no other demonstrations. (HH-RLHF's card advises against that: there, watch the loop run and do not keep the model.) Interrupt the kernel to end a training cell after its step: the cells below go on with what was learned.

# %%
sft_policy = lean(deepcopy(policy))
sft_panel = TrainingPanel("sft", {"loss, nats a response token": ("loss", "val_loss")})
with mixed_precision(sft_policy):
    run = sft.train(
        sft_policy,
        [pair.chosen for pair in pairs["train"]],
        val=[pair.chosen for pair in pairs["test"]],
        pad_token_id=padding_id(tokenizer),
        epochs=1,
        batch_size=BATCH_SIZE,
        learning_rate=SFT_RATE,
        eval_every=10,
        seed=SEED,
        resume=resume("sft"),
    )
    sft_records = sft_panel.follow(run)
sft_folder = save(sft_policy, tokenizer, OWN / "sft", dtype=KEEP_AS)
ref = lean(load_policy(sft_folder, **opened)[0])  # as anybody will find it
del sft_policy  # its gradients, too

# %% [markdown]
# ### Two reward models: one to train on, one to judge by
#
# Nobody knows the gold of your data. What can take its place? Gao et al. 2023 (*Scaling laws for reward model overoptimization*, section 2) let a large reward model play the truth, which labels the pairs and gives the verdicts. We have labels already, so what is left of it is a model that gives the verdicts: we train two
# reward models on pairs with different prompts. The **proxy** is what PPO optimizes; the **judge** has seen none of its pairs and gives the verdicts. What the proxy gets wrong by chance, the judge need not. What is wrong with the labels, such as annotators who like flattery, both
# learn; and as both start from the same model, what it cannot tell apart neither can (Eisenstein et al. 2023). A second model of the same kind cannot warn you of either.


# %%
def trained_reward_model(part, seed):
    """A reward model from the SFT model, on the pairs of one part."""
    model = lean(RewardModel.from_policy(ref, tokenizer, seed=seed))
    panel = TrainingPanel(f"reward model: {part}", {"accuracy": ("accuracy", "val_accuracy")})
    settings = {"batch_size": BATCH_SIZE // 2, "learning_rate": REWARD_RATE, "eval_every": 10, "seed": seed}
    with mixed_precision(model):
        panel.follow(reward.train(model, pairs[part], val=pairs["test"], resume=resume(part), **settings))
    reward.center(model, pairs[part])  # also where it was interrupted
    return lean(model)


proxy, judge = trained_reward_model("train", SEED), trained_reward_model("judge", SEED + 1)

# %%
for name, model in {"proxy": proxy, "judge": judge}.items():
    with torch.no_grad():
        chosen, rejected = reward.score_pairs(model, pairs["test"])
    right = mean_interval((chosen > rejected).float().cpu().numpy())
    print(f"{name}: {right.estimate:.0%} of the labels kept out [{right.low:.0%}, {right.high:.0%}]")

# %% [markdown]
# An interval that includes 50 % is a model not told apart from a coin. Four hundred pairs are few: notebook 03 had 12,000.

# %% [markdown] slideshow={"slide_type": "slide"}
# ### DPO, and a disconnect
#
# On a free GPU a run is cut off sooner or later. Every loop takes `resume=Resume(path, every=k)`: it writes its state, which is weights, optimizer, random generators and records, to one file every $k$ steps, and when it is called again in the same way, with the weights that it began with, it goes on
# from there. Here a run goes through without a break; then a second one, which keeps its state every few steps, is cut off past the middle and called again.
#
# The panel's line called gold is the judge's score, here and below: it is all that we have.
#
# **Predict before you run:** by how much will the losses of the two differ at the end?


# %%
def dpo_run(resume=None):
    """A copy of the SFT model, and DPO on it."""
    model = lean(deepcopy(ref))
    settings = {"beta": BETA, "batch_size": BATCH_SIZE, "learning_rate": DPO_RATE, "seed": SEED}
    sampled = {"prompts": questions[:16], "gold_fn": judge.score, "eval_every": 8, "max_new_tokens": max_new_tokens}
    return model, dpo.train(model, pairs["train"], tokenizer=tokenizer, ref=ref, resume=resume, **settings, **sampled)


DPO_CHARTS = {
    "implicit reward": ("chosen_reward", "rejected_reward"),
    "KL to SFT, nats an answer": ("kl",),
    "the judge's score": ("gold",),
}
with mixed_precision(ref):
    dpo_policy, run = dpo_run(resume("dpo"))
    whole = TrainingPanel("dpo", DPO_CHARTS).follow(run)
dpo_policy = lean(dpo_policy)

# %%
state = OWN / "disconnect.state"
often = Resume(state, every=2 if MODEL is None else 5)
state.unlink(missing_ok=True)  # of an earlier visit to this cell, which would go on from its end
with mixed_precision(ref):
    for record in dpo_run(often)[1]:
        if record.step > record.steps / 2:
            break  # the disconnect: from here on everything but the file is gone
    again = list(dpo_run(often)[1])
print(f"{state.stat().st_size / 1e6:.1f} MB hold the state; {len(again)} records, as without the break: {len(whole)}")

# %% [markdown]
# The state has 12 bytes for each parameter that is trained: 1.6 GB for 135 million, twice that in PPO, so every other step is for show. With a model of your own SFT, both reward models, DPO and PPO keep theirs every ten steps, and a restart passes through those that are done. To train one anew, delete its file in `outputs/own/` and those of
# the stages after it, which began with its weights: `sft`, `train` (the proxy), `judge`, `dpo`, `ppo`. On Colab the disk goes with the machine. Before the first cell, mount your Drive (`from google.colab import drive; drive.mount("/content/drive")`) and set `os.environ["PICOLLM_OUTPUTS"] = "/content/drive/MyDrive/picollm"`. States and models of 135 million
# parameters come to some 13 GB in all, and a free Drive has 15: delete the states that you no longer need.

# %% tags=["nbval-check-output"]
gone_on, without_break = [record.loss for record in again[: len(whole)]], [record.loss for record in whole]
resumed = "cut off and gone on, the run has the losses of the run without a break"
if DEVICE == "cpu":
    check(f"{resumed}, to the last bit", gone_on == without_break)
else:  # some sums on a GPU change from run to run
    check(f"{resumed}, to 0.01", np.allclose(gone_on, without_break, rtol=0, atol=0.01))

# %% [markdown] slideshow={"slide_type": "slide"}
# ### PPO
#
# As in notebook 04, with the proxy as reward. Watch the share of answers that end: those of a chat model may not fit into so few tokens, and then a fixed score for them would teach little else than to stop early.

# %%
ppo_policy = lean(deepcopy(ref))
PPO_CHARTS = {
    "mean reward": ("proxy", "gold"),
    "KL to SFT, nats an answer": ("kl",),
    "length, tokens": ("length",),
    "share that ended": ("finished",),
}
with mixed_precision(ref):
    run = ppo.train(
        ppo_policy,
        proxy.score,
        train_questions,
        tokenizer=tokenizer,
        ref=ref,
        gold_fn=judge.score,
        steps=PPO_STEPS,
        batch_size=N_ANSWERS,
        minibatch_size=N_ANSWERS,
        learning_rate=PPO_RATE,
        critic_learning_rate=10 * PPO_RATE,
        kl_coef=KL_COEF,
        unfinished_score=UNFINISHED_SCORE,
        max_new_tokens=max_new_tokens,
        seed=SEED,
        resume=resume("ppo"),
    )
    ppo_records = TrainingPanel("ppo", PPO_CHARTS).follow(run)

# %% [markdown]
# Three policies on the questions that nobody has trained on. Proxy and judge give their verdicts, and for once, since this is still the course's data, gold gives one, too. After so few steps expect intervals that include 50 %: then none of the three has shown anything. With your own data the last column is missing, and that is the point.

# %%
policies = {"SFT": ref, "DPO": dpo_policy, "PPO": ppo_policy}
texts = {
    name: answer(model, tokenizer, questions, seed=SEED, max_new_tokens=max_new_tokens)
    for name, model in policies.items()
}
verdicts = {"proxy": proxy.score, "judge": judge.score} | ({"gold": gold_scores} if PREFERENCES is None else {})
scores = {
    who: {name: scores_of(score, questions, given) for name, given in texts.items()} for who, score in verdicts.items()
}
pd.DataFrame(
    {
        f"{who}: wins against SFT": {
            name: "{:.0%} [{:.0%}, {:.0%}]".format(*paired_win_rate(of[name], of["SFT"])[:3]) for name in ("DPO", "PPO")
        }
        for who, of in scores.items()
    }
)

# %%
for name in ("DPO", "PPO"):
    points = {who: (1 + np.sign(np.subtract(of[name], of["SFT"]))) / 2 for who, of in scores.items()}
    more = mean_interval(points["proxy"] - points["judge"])
    print(f"{name}: wins by the proxy less wins by the judge {more.estimate:+.0%} [{more.low:+.0%}, {more.high:+.0%}]")

# %%
q = max(range(len(questions)), key=lambda i: len({given[i] for given in texts.values()}))  # answered most differently
print(f"Q  {questions[q]}")
for name, given in texts.items():
    says = ", ".join(f"{who} {of[name][q]:+.2f}" for who, of in scores.items())
    print(f"\n{name}: {says}\n    {given[q]}")

# %% [markdown]
# Proxy and judge scored the same answers, so the difference was taken question by question, as in notebook 07. Where its interval lies above 0, the policy has learned what is peculiar to the proxy: 07 warned of a method's own reward. Where it includes 0, this many questions cannot tell. And then read answers.
#
# ## LoRA: train little, keep the rest
#
# **LoRA**, low-rank adaptation (Hu et al. 2021, equation 3 and the scale below it), leaves a weight matrix $W_0$ as it is and learns what to add to it, $W_0 + \frac{\alpha}{r} B A$, where $A$ and $B$ are so narrow, of rank $r$, that they hold few numbers. $\alpha$ is a constant, here 16. $B$ starts at zero, so the first policy is the reference. And the reference never goes away: it
# is the policy without its adapters, so there is no second copy in memory.

# %%
lora_policy = add_lora(lean(deepcopy(ref)), rank=LORA_RANK, alpha=16, seed=SEED)
lora_ref = reference(lora_policy)
trained = sum(weight.numel() for weight in lora_policy.parameters() if weight.requires_grad)
print(f"{trained:,} of {n:,} parameters are trained: {trained / n:.1%}")
with mixed_precision(policy):
    run = dpo.train(
        lora_policy,
        pairs["train"],
        tokenizer=tokenizer,
        ref=lora_ref,
        beta=BETA,
        batch_size=BATCH_SIZE,
        learning_rate=10 * DPO_RATE,  # ten times the rate is a good first guess (Schulman et al. 2025)
        seed=SEED,
    )
    lora_records = TrainingPanel("dpo, LoRA", {"margin": ("margin",), "accuracy": ("accuracy",)}).follow(run)
lora_folder = save(lora_policy, tokenizer, OWN / "dpo_lora", dtype=KEEP_AS)  # with the adapters merged into W

# %% tags=["nbval-check-output"]
check(
    "the first loss is ln 2: with B = 0 policy and reference are one",
    abs(lora_records[0].loss - np.log(2)) < (1e-4 if DEVICE == "cpu" else 0.05),  # a GPU may compute in bf16
)
check("less than a tenth of the parameters is trained", trained < 0.1 * n)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Several processes
#
# With two GPUs a step can take half as long. The loops need no change for it: start your script with `accelerate launch`, and each process samples, scores and differentiates its rows of every batch; gradients are summed, records are those of the whole batch, and only the first process writes files.
# Without a second GPU, two processes on one CPU show the same thing. The script is a DPO run like the one above, on a few pairs.

# %%
train_file = write_jsonl(OWN / "train.jsonl", rows["train"].select_columns(["prompt", "chosen", "rejected"]).to_list())
script = OWN / "several.py"
settings = {"beta": BETA, "batch_size": 16, "learning_rate": DPO_RATE, "seed": SEED}
script.write_text(f"""
import json
from accelerate import PartialState
from picollm_lite.data import encode_pairs, load_preferences
from picollm_lite.models import load_policy
from picollm_lite.stages import dpo

policy, tokenizer = load_policy({str(sft_folder)!r}, dtype="float32", trust_remote_code={TRUST_REMOTE_CODE})
pairs = encode_pairs(load_preferences({str(train_file)!r}), tokenizer, max_length={max_length})
records = list(dpo.train(policy, pairs[:64], tokenizer=tokenizer, **{settings}))
if PartialState().is_main_process:
    print(json.dumps([record.loss for record in records]))
""")


def losses_of_two():
    """Run the script in two processes, on two GPUs where there are two, else on the CPU; what the first one printed."""
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    where = {"OMP_NUM_THREADS": "1"} | ({} if torch.cuda.device_count() > 1 else {"CUDA_VISIBLE_DEVICES": ""})
    ran = subprocess.run(
        [sys.executable, "-m", *launch, str(script)], capture_output=True, text=True, env=os.environ | where
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


two = None
if n < 20e6 or torch.cuda.device_count() > 1:
    run = dpo.train(deepcopy(ref), pairs["train"][:64], tokenizer=tokenizer, ref=ref, **settings)
    one, two = [record.loss for record in run], losses_of_two()
    print(pd.DataFrame({"one process": one, "two processes": two}, index=range(1, len(two) + 1)).round(6))
else:
    print("skipped: two copies of this model would share one CPU for minutes; with two GPUs this cell runs")

# %% tags=["nbval-check-output"]
if two is not None:
    check("two processes have the losses of one, to the fourth digit", np.allclose(one, two, rtol=0, atol=1e-4))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## On to TRL
#
# From some size on you want a trainer that others maintain: one that splits a model over GPUs (FSDP and DeepSpeed do that), samples with a server made for it (vLLM), and logs to where your team looks. `hand_off` writes a folder that TRL's command line trains on: model, data, settings with TRL's names, and a list of what TRL does differently. Our defaults go with the course's model, so we say
# what this run used.

# %%
if TRUST_REMOTE_CODE:
    print("skipped: hand_off does not pass on a model's own code")
else:
    folder = OWN / "trl_dpo"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier visit to this cell
    ours = {"beta": BETA, "learning_rate": DPO_RATE, "max_length": max_length, "gradient_checkpointing": CHECKPOINTING}
    pieces = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": BATCH_SIZE // 8}
    hand_off("dpo", model=sft_folder, data=train_file, into=folder, **ours, **pieces)
    print(command("dpo", folder))
    print((folder / "config.yaml").read_text(encoding="utf-8"))

# %% [markdown]
# ## How fast is it here?
#
# Sampling is where online loops spend their time. On this machine, with this model:

# %%
started = time.perf_counter()
sample = respond(policy, tokenizer, questions, seed=SEED, max_new_tokens=max_new_tokens).rollout
seconds = time.perf_counter() - started
name = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{DEVICE}, {torch.get_num_threads()} threads"
print(f"{name}: {int(sample.response_mask.sum()) / seconds:,.0f} tokens a second, {len(questions)} answers at once")
if DEVICE != "cuda":
    print("no GPU here, so no figure for one: where you have one, run tests/benchmarks/bench_rollout.py")

# %%
for stage, model in {"dpo": dpo_policy, "ppo": ppo_policy, "reward": proxy.model}.items():
    save(model, tokenizer, OWN / stage, dtype=KEEP_AS)
print("saved", ", ".join(sorted(path.name for path in OWN.iterdir() if (path / "config.json").exists())))

# %% [markdown]
# ## Swap it
#
# **Exercise** (difficulty 2, 20 minutes and a GPU). Go back to the first cell, set `MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"`, and `PREFERENCES` and `SPLIT` as in UltraFeedback's row; restart and run all. Before you do, write down: which of the claims above will still hold, and which figure tells you first that a learning rate is wrong?
#
# <details><summary>What to expect</summary>
# We have not run this one; here is what we expect. In fp32 the first loss of DPO is ln 2 again; in bf16 it may be off by some .01. The run that was cut off agrees with the whole one to a few digits, not to the last bit, as some sums on a GPU change from run to run. Both reward models agree with clearly less than 80 % of GPT-4's labels.
# A rate that is too high shows first in the KL of DPO and PPO, in the held-out loss of SFT and the held-out accuracy of the reward models. Where the proxy's win rates look better than the judge's: which of the two do you report?
# </details>
#
# ## Recap
#
# - Look at a foreign model's template and at a file's first rows before any loss curve.
# - Without gold, hold a judge back: other pairs, other prompts. It shares the labels' biases and its starting point, so read answers, too.
# - 16 bytes for each parameter that trains, 4 for each that does not, then activations. Shorter texts, bf16, checkpointing, LoRA, more GPUs: in this order.
# - Keep state: a run that cannot be resumed is a run that you will pay for twice.
# - When one GPU is not enough, hand over, and read what the other trainer does differently before you compare numbers.
#
# **Discuss:** your proxy says 75 % wins, your judge 55 %, and a colleague who read fifty answers prefers the SFT model. What do you do next, and what would each answer have cost you at the start?
#
# **Further reading:** Rajbhandari et al. 2020, *ZeRO: memory optimizations toward training trillion parameter models*, section 3.1. Micikevicius et al. 2018, *Mixed precision training*. Kalamkar et al. 2019, *A study of BFLOAT16 for deep learning training*. Chen et al. 2016, *Training deep nets with sublinear memory cost*. Hu et al. 2021, *LoRA:
# low-rank adaptation of large language models*. Schulman et al. 2025, *LoRA without regret*. Gao et al. 2023, *Scaling laws for reward model overoptimization*, section 2. Eisenstein et al. 2023, *Helping or herding?* Tunstall et al. 2023, *Zephyr: direct distillation of LM alignment*. Bai et al. 2022, *Training a helpful and
# harmless assistant*.
