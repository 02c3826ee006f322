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
# | **Time** | 1 minute to run as it stands, 30 to work through (2 CPU cores); with SmolLM2-135M have a GPU, such as a T4 |
# | **Needs** | the SFT model (yours from notebook 01, or the shipped one), or any causal language model of your own |
# | **Produces** | `outputs/own/`: checkpoints of your SFT, reward, DPO and PPO models, and a folder for TRL |
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
# | `"HuggingFaceH4/ultrafeedback_binarized"` | `"train_prefs[:4000]"` | long answers of many models, compared by GPT-4 |
# | `"Anthropic/hh-rlhf"` | `"train[:4000]"` | dialogs with an assistant, compared by people |
# | `"path/to/file.jsonl"` (or `.parquet`) | `None` | your own: `{"prompt": ..., "chosen": ..., "rejected": ...}` a line, texts or lists of messages. Notebook 02 shows how to collect them |
#
# The same can be said without touching the cell, in the environment: `PICOLLM_MODEL`, `PICOLLM_PREFERENCES`, `PICOLLM_SPLIT`, `PICOLLM_TRUST_REMOTE_CODE=1`.

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

from picollm_lite.adapters import add_lora, merged, reference
from picollm_lite.chat import answer, encode_prompt, padding_id, readable, respond, user
from picollm_lite.compat import add_chat_format
from picollm_lite.data import encode_pairs, load_preferences, prompt_key
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
# Our learning rates suit a model of a million parameters. Larger ones break at a hundredth of them; the second column is where to start with 100 million and more.

# %%
SEED = 0
N_PAIRS = 1500
MAX_LENGTH = 256 if PREFERENCES is None else 1024  # tokens of a conversation; what is longer is cut
MAX_NEW_TOKENS = 56 if PREFERENCES is None else 256  # tokens of an answer
BATCH_SIZE = 64  # pairs or answers a step
N_QUESTIONS = 64  # held out, to compare models on
SFT_RATE, REWARD_RATE, DPO_RATE, PPO_RATE = (5e-4, 1e-3, 1e-4, 1e-4) if MODEL is None else (1e-5, 1e-5, 1e-6, 1e-6)
BETA, KL_COEF = 0.3, 0.3
PPO_STEPS = 8
LORA_RANK = 8
DEVICE = start(SEED)
OWN = outputs() / "own"

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What did you get?
#
# A model is a folder with weights, a tokenizer and a chat template. Look at all three before you train: what a template does wrong, no loss curve will show you.

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
# And a file of pairs is what somebody said about two texts. `load_preferences` reads our format, TRL's, UltraFeedback's and HH-RLHF's, and turns them into lists of messages; at a row that it cannot read it stops and names the line. We split by prompt, since
# prompts come up again: two fifths of them to train on, two fifths for a judge of its own, one fifth that nobody trains on.

# %%
preferences = load_preferences(PREFERENCES or OUR_PAIRS, split=SPLIT)
preferences = preferences.shuffle(seed=SEED).select(range(min(N_PAIRS, len(preferences))))
prompts = sorted({prompt_key(prompt) for prompt in preferences["prompt"]})
PARTS = ("train", "judge", "train", "judge", "test")
part_of = {prompt: PARTS[i % 5] for i, prompt in enumerate(prompts)}
row_parts = [part_of[prompt_key(prompt)] for prompt in preferences["prompt"]]
rows = {name: preferences.select([i for i, part in enumerate(row_parts) if part == name]) for name in set(PARTS)}
max_length = min(MAX_LENGTH, context_length(policy) or MAX_LENGTH)
pairs = {name: encode_pairs(part, tokenizer, max_length=max_length) for name, part in rows.items()}
print({name: f"{len(part):,} pairs" for name, part in pairs.items()})
row = rows["train"][0]
print(
    f"\nasked     {readable(row['prompt'])}\nchosen    {readable(row['chosen'])}\nrejected  {readable(row['rejected'])}"
)

# %% [markdown]
# What will the loss count? The first pair's chosen side again, token by token. With a foreign chat template, check that every token of the answer counts, the one that ends it too, and no other.

# %%
example = pairs["train"][0].chosen
tokens = tokenizer.convert_ids_to_tokens(example.tokens)
marked = [
    f"{token!r:<24} {'counts' if counts else '-'}" for token, counts in zip(tokens, example.response_mask, strict=True)
]
first, last = (
    places[0] for places in (np.flatnonzero(example.response_mask), np.flatnonzero(example.response_mask)[::-1])
)
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
# reference, costs its 4. To that come the **activations**: the intermediate results of the forward pass that the backward pass needs, which grow with batch and length.
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
    "PPO": (2 * n, 2 * n),  # and a critic
}
sizes = {"this model": 1, "135 million": 135e6 / n, "7 billion": 7e9 / n}
gib = {
    stage: {name: training_bytes(*need) * size / 2**30 for name, size in sizes.items()} for stage, need in needs.items()
}
pd.DataFrame(gib).T.map(lambda value: f"{value:,.2f} GiB")

# %% tags=["nbval-check-output"]
check("PPO keeps 2.5 times as much as SFT", training_bytes(*needs["PPO"]) == 2.5 * training_bytes(*needs["SFT"]))

# %% [markdown]
# MEMORY_TABLE
#
# What to do when it does not fit, in this order:
#
# 1. **Shorter texts.** Activations grow with the tokens of a batch: lower `MAX_LENGTH`, then `BATCH_SIZE`. Logits over a large vocabulary are computed in pieces by themselves.
# 2. **bf16 products**, on a GPU that has them: `with mixed_precision(policy):` around the loop, as everywhere below. Weights and optimizer stay in fp32 (Micikevicius et al. 2018).
# 3. **Activation checkpointing**: compute activations anew in the backward pass (Chen et al. 2016). After `policy.activation_checkpointing_enable()` the loops go through a batch in pieces of 2,048 tokens, with the same gradient, and hold the activations of one piece, however large the batch is.
# 4. **Train less**: LoRA, below. Gradients and averages of a hundredth of the parameters, and no second copy for the reference.
# 5. **More GPUs**, or a trainer that splits the model itself: hand over to TRL, below.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The same four stages
#
# SFT on the chosen answers of the training pairs, as there are no other demonstrations.

# %%
sft_panel = TrainingPanel("sft", {"loss, nats a response token": ("loss", "val_loss")})
with mixed_precision(policy):
    run = sft.train(
        policy,
        [pair.chosen for pair in pairs["train"]],
        val=[pair.chosen for pair in pairs["test"]],
        pad_token_id=padding_id(tokenizer),
        epochs=1,
        batch_size=BATCH_SIZE,
        learning_rate=SFT_RATE,
        eval_every=10,
        seed=SEED,
    )
    sft_records = sft_panel.follow(run)
sft_folder = save(policy, tokenizer, OWN / "sft")
ref, _ = load_policy(sft_folder, **opened)  # as anybody will find it

# %% [markdown]
# ### Two reward models: one to train on, one to judge by
#
# Nobody knows the gold of your data. What can take its place? Gao et al. 2023 (*Scaling laws for reward model overoptimization*, section 2) let a large reward model play the truth, which labels the pairs and gives the verdicts. We have labels already, so we can do half of that: train two
# reward models on pairs with different prompts. The **proxy** is what PPO optimizes; the **judge** has seen none of its pairs and gives the verdicts. What the proxy gets wrong by chance, the judge need not. What is wrong with the labels, such as annotators who like flattery, both
# learn, and no second model trained on them will tell.


# %%
def trained_reward_model(part):
    """A reward model from the SFT model, on the pairs of one part."""
    model = RewardModel.from_policy(ref, tokenizer, seed=SEED)
    panel = TrainingPanel(f"reward model: {part}", {"accuracy": ("accuracy", "val_accuracy")})
    with mixed_precision(model):
        run = reward.train(model, pairs[part], val=pairs["test"], learning_rate=REWARD_RATE, eval_every=10, seed=SEED)
        panel.follow(run)
    return model


proxy, judge = trained_reward_model("train"), trained_reward_model("judge")

# %%
for name, model in {"proxy": proxy, "judge": judge}.items():
    with torch.no_grad():
        chosen, rejected = reward.score_pairs(model, pairs["test"])
    right = mean_interval((chosen > rejected).float().cpu().numpy())
    print(f"{name}: {right.estimate:.0%} of the labels kept out [{right.low:.0%}, {right.high:.0%}]")

# %% [markdown] slideshow={"slide_type": "slide"}
# ### DPO, and a disconnect
#
# On a free GPU a run is cut off sooner or later. Every loop takes `resume=Resume(path, every=k)`: it writes its state, which is weights, optimizer, random generators and records, to one file every $k$ steps, and when it is called again in the same way, with the weights that it began with, it goes on
# from there. Here a run goes through without a break; then a second one, which keeps its state every other step, is cut off past the middle and called again.
#
# The panel's line called gold is the judge's score, here and below: it is all that we have.
#
# **Predict before you run:** by how much will the losses of the two differ at the end?


# %%
def dpo_run(resume=None):
    """A copy of the SFT model, and DPO on it."""
    model = deepcopy(ref)
    settings = {"beta": BETA, "batch_size": BATCH_SIZE, "learning_rate": DPO_RATE, "seed": SEED}
    sampled = {"prompts": questions[:16], "gold_fn": judge.score, "eval_every": 8, "max_new_tokens": max_new_tokens}
    return model, dpo.train(model, pairs["train"], tokenizer=tokenizer, ref=ref, resume=resume, **settings, **sampled)


DPO_CHARTS = {"implicit reward": ("chosen_reward", "rejected_reward"), "the judge's score": ("gold",)}
with mixed_precision(policy):
    dpo_policy, run = dpo_run()
    whole = TrainingPanel("dpo", DPO_CHARTS).follow(run)

# %%
state = OWN / "dpo.state"
state.unlink(missing_ok=True)  # of an earlier visit to this cell, which would go on from its end
with mixed_precision(policy):
    for record in dpo_run(Resume(state, every=2))[1]:
        if record.step > record.steps / 2:
            break  # the disconnect: from here on everything but the file is gone
    again = list(dpo_run(Resume(state, every=2))[1])
print(f"{state.stat().st_size / 1e6:.0f} MB hold the state; {len(again)} records, as without the break: {len(whole)}")

# %% tags=["nbval-check-output"]
check(
    "cut off and gone on, the run has the losses of the run without a break, to the last bit",
    [record.loss for record in again[: len(whole)]] == [record.loss for record in whole],
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ### PPO
#
# As in notebook 04, with the proxy as reward.

# %%
ppo_policy = deepcopy(ref)
PPO_CHARTS = {"mean reward": ("proxy", "gold"), "KL to SFT, nats an answer": ("kl",), "length, tokens": ("length",)}
with mixed_precision(policy):
    run = ppo.train(
        ppo_policy,
        proxy.score,
        train_questions,
        tokenizer=tokenizer,
        ref=ref,
        gold_fn=judge.score,
        steps=PPO_STEPS,
        batch_size=BATCH_SIZE,
        minibatch_size=BATCH_SIZE,
        learning_rate=PPO_RATE,
        critic_learning_rate=10 * PPO_RATE,
        kl_coef=KL_COEF,
        max_new_tokens=max_new_tokens,
        seed=SEED,
    )
    ppo_records = TrainingPanel("ppo", PPO_CHARTS).follow(run)

# %% [markdown]
# Three policies on the questions that nobody has trained on. Proxy and judge give their verdicts, and for once, since this is still the course's data, gold gives one, too: see how far to trust the other two. With your own data the last column is missing, and that is the point.

# %%
policies = {"SFT": ref, "DPO": dpo_policy, "PPO": ppo_policy}
texts = {
    name: answer(model, tokenizer, questions, seed=SEED, max_new_tokens=max_new_tokens)
    for name, model in policies.items()
}
verdicts = {"proxy": proxy.score, "judge": judge.score} | ({"gold": gold_scores} if OURS else {})
scores = {
    who: {name: np.asarray(score(questions, given)) for name, given in texts.items()} for who, score in verdicts.items()
}
pd.DataFrame(
    {
        f"{who}: wins against SFT": {
            name: "{:.0%} [{:.0%}, {:.0%}]".format(*paired_win_rate(of[name], of["SFT"])[:3]) for name in ("DPO", "PPO")
        }
        for who, of in scores.items()
    }
)

# %% tags=["nbval-check-output"]
if OURS:
    by_proxy, by_judge = (paired_win_rate(scores[who]["PPO"], scores[who]["SFT"]).rate for who in ("proxy", "judge"))
    check("PPO wins more often by the proxy, which it was trained on, than by the judge", by_proxy > by_judge)

# %%
# The first question to which all three say something else, if there is one.
q = next((i for i, given in enumerate(zip(*texts.values(), strict=True)) if len(set(given)) == 3), 0)
print(f"Q  {questions[q]}")
for name, given in texts.items():
    says = ", ".join(f"{who} {of[name][q]:+.2f}" for who, of in scores.items())
    print(f"\n{name}: {says}\n    {given[q]}")

# %% [markdown]
# Do the verdicts agree? Ask that before you believe the judge: where proxy and judge part, somebody has been optimized. And remember notebook 07: a method's own reward is no judge of it.
#
# ## LoRA: train little, keep the rest
#
# **LoRA**, low-rank adaptation (Hu et al. 2021, equation 3), leaves a weight matrix $W_0$ as it is and learns what to add to it, $W_0 + \frac{\alpha}{r} B A$, where $A$ and $B$ are so narrow, of rank $r$, that they hold few numbers. $B$ starts at zero, so the first policy is the reference. And the reference never goes away: it
# is the policy with its adapters switched off, so there is no second copy in memory.

# %%
lora_policy = add_lora(deepcopy(ref), rank=LORA_RANK, seed=SEED)
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
        learning_rate=10 * DPO_RATE,  # adapters want ten times the rate (Schulman et al. 2025)
        seed=SEED,
    )
    lora_records = TrainingPanel("dpo, LoRA", {"margin": ("margin",), "accuracy": ("accuracy",)}).follow(run)
lora_folder = save(merged(lora_policy), tokenizer, OWN / "dpo_lora")

# %% tags=["nbval-check-output"]
check("the first loss is ln 2: with B = 0 policy and reference are one", abs(lora_records[0].loss - np.log(2)) < 1e-4)
check("less than a tenth of the parameters is trained", trained < 0.1 * n)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Several processes
#
# With two GPUs a step can take half as long. The loops need no change for it: start your script with `accelerate launch`, and each process samples, scores and differentiates its rows of every batch; gradients are summed, records are those of the whole batch, and only the first process writes files.
# There is no second GPU here, but two processes on one CPU show the same thing. The script is a DPO run like the one above, on a few pairs.

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
    print(pd.DataFrame({"one process": one, "two processes": two}).rename_axis("step").round(6))
else:
    print("skipped: two copies of this model would share one CPU for minutes; with two GPUs this cell runs")

# %% tags=["nbval-check-output"]
check(
    "two processes have the losses of one, to the fourth digit",
    two is not None and np.allclose(one, two, rtol=0, atol=1e-4),
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## On to TRL
#
# From some size on you want a trainer that others maintain: one that splits a model over GPUs, samples with vLLM, logs to where your team looks. `hand_off` writes a folder that TRL's command line trains on: model, data, settings with TRL's names, and a list of what TRL does differently. For a model that
# one GPU cannot hold, its README names the accelerate settings that split it (FSDP, DeepSpeed).

# %%
if TRUST_REMOTE_CODE:
    print("skipped: hand_off does not pass on a model's own code")
else:
    folder = OWN / "trl_dpo"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier visit to this cell
    print(command("dpo", hand_off("dpo", model=sft_folder, data=train_file, into=folder)))
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
    print("no GPU here, so nothing about one: with one, run tests/benchmarks/bench_rollout.py and bench_memory.py")

# %%
save(dpo_policy, tokenizer, OWN / "dpo")
save(ppo_policy, tokenizer, OWN / "ppo")
save(proxy.model, tokenizer, OWN / "reward")
print("saved", ", ".join(sorted(path.name for path in OWN.iterdir() if (path / "config.json").exists())))

# %% [markdown]
# ## Swap it
#
# **Exercise** (difficulty 2, 20 minutes and a GPU). Go back to the first cell, set `MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"` and UltraFeedback, restart and run all. Before you do, write down: which of the claims above will still hold, and which figure tells you first that a learning rate is wrong?
#
# <details><summary>What to expect</summary>
# The losses start at ln 2 again, the run that was cut off agrees with the whole one again, and both reward models are right on well below 80 % of labels that a strong judge gave. A rate that is too high shows in the KL before it shows in the loss: it leaps from near 0 to tens of nats within a few steps. The
# proxy's win rates will look better than the judge's. Which of the two do you report?
# </details>
#
# ## Recap
#
# - Look at a foreign model's template and at a file's first rows before any loss curve.
# - Without gold, hold a judge back: other pairs, other prompts. It shares the labels' biases, so read answers, too.
# - 16 bytes a parameter that trains, 4 that does not, then activations. Shorter texts, bf16, checkpointing, LoRA, more GPUs: in this order.
# - Keep state: a run that cannot be resumed is a run that you will pay for twice.
# - When one GPU is not enough, hand over, and read what the other trainer does differently before you compare numbers.
#
# **Discuss:** your proxy says 75 % wins, your judge 55 %, and a colleague who read fifty answers prefers the SFT model. What do you do next, and what would each answer have cost you at the start?
#
# **Further reading:** Rajbhandari et al. 2020, *ZeRO: memory optimizations toward training trillion parameter models*, section 3. Micikevicius et al. 2018, *Mixed precision training*. Chen et al. 2016, *Training deep nets with sublinear memory cost*. Hu et al. 2021, *LoRA: low-rank adaptation of large
# language models*, equation 3. Gao et al. 2023, *Scaling laws for reward model overoptimization*, section 2. Tunstall et al. 2023, *Zephyr: direct distillation of LM alignment*.
