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
# # 01 · Supervised fine-tuning
#
# A base model continues text. Supervised fine-tuning (SFT) turns it into an assistant by showing it conversations. In this notebook you
# will see exactly which tokens are learned from and which are not, compute the loss by hand, train, and then find out why SFT is
# only the beginning.
#
# | | |
# |---|---|
# | **You will be able to** | render a chat with its template, build a response mask, compute the SFT loss by hand, train and judge an SFT model, and say what SFT cannot do |
# | **Time** | 2 minutes to run, 30 to work through (2 CPU cores) |
# | **Needs** | the base model and the demonstrations, both shipped in `data/` |
# | **Produces** | `outputs/checkpoints/sft`, which later notebooks pick up |

# %% tags=["setup"]
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything ships with the course; nothing is downloaded
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import numpy as np
import torch

from picollm_lite.chat import ASSISTANT_END, ASSISTANT_START, answer, encode_conversation, encode_prompt, user
from picollm_lite.data import collate, encode_demos, load_demos, load_suite
from picollm_lite.evaluation.metrics import gold_scores, mean_interval, paired_win_rate
from picollm_lite.evaluation.training_record import save_settings
from picollm_lite.kernels.logprobs import token_logprobs
from picollm_lite.kernels.losses import sft_loss
from picollm_lite.kernels.rollout import rollout
from picollm_lite.models import load_policy, save
from picollm_lite.paths import CHECKPOINTS, DEMOS, SUITE, outputs
from picollm_lite.stages import sft
from picollm_lite.stages.sampling import samples
from picollm_lite.ui import plots
from picollm_lite.ui.claims import check
from picollm_lite.ui.exercises import exercise
from picollm_lite.ui.explorers.answers import show_answers
from picollm_lite.ui.panel import TrainingPanel
from picollm_lite.ui.setup import start

# %%
SEED = 0
EPOCHS = 2
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
N_VAL = 200  # demonstrations kept out of training
DEVICE = start(SEED)

# %%
policy, tokenizer = load_policy(CHECKPOINTS / "base", device=DEVICE)
base, _ = load_policy(CHECKPOINTS / "base", device=DEVICE)  # stays as it is, to compare with
demos = load_demos(DEMOS)
suite = load_suite(SUITE)
questions = list(suite["prompt"])
print(
    f"{policy.num_parameters():,} parameters, {len(tokenizer)} tokens, {len(demos)} demonstrations, {len(suite)} suite prompts"
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A chat is one long text
#
# A language model reads one sequence of tokens. A **chat template** writes a conversation as such a sequence, with *special tokens* that
# say who speaks. Ours are picoLLM's:
#
# `<|bos|>` opens the text, `<|user_start|> ... <|user_end|>` holds what the user says, `<|assistant_start|> ... <|assistant_end|>`
# what the assistant says.

# %%
demo = demos[0]["messages"]
print(tokenizer.apply_chat_template(demo, tokenize=False))

# %% [markdown]
# To get an answer, we render the conversation up to and including `<|assistant_start|>`, and let the model go on. It is done when it writes
# `<|assistant_end|>`. That token is the only way a model has to say "I have finished".

# %%
print(tokenizer.convert_ids_to_tokens(encode_prompt(tokenizer, user("What is a KV cache?"))))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Which tokens teach?
#
# We want the model to learn to *answer*, not to ask. So the loss counts only the tokens that the assistant wrote. The **response
# mask** says which: `True` counts.
#
# One token decides more than it seems to: is the final `<|assistant_end|>` in the mask? Yes. The assistant wrote it, and a model that is never taught
# to write it never stops. The opening `<|assistant_start|>` is not: it is part of what the model is given.
#
# ### Exercise: the response mask
# *Difficulty 1 of 3, about 8 minutes.* Given the token ids of a conversation and the two special ids, return a list of bools, one a token.
# A conversation may have several turns.
#
# <details><summary>Hint</summary>Walk along the tokens and remember whether you are inside an assistant turn. What happens at the start
# token, what at the end token?</details>


# %%
@exercise("response_mask")
def response_mask(tokens, assistant_start, assistant_end):
    raise NotImplementedError


# %% [markdown]
# Your mask (or the reference, if you skipped the exercise) on the demonstration above. It must be the one that `transformers` derives from the
# template itself, where the `{% generation %}` block marks what the assistant wrote.

# %%
start_id, end_id = tokenizer.convert_tokens_to_ids([ASSISTANT_START, ASSISTANT_END])
encoded = encode_conversation(tokenizer, demo)
by_hand = response_mask(encoded.tokens, start_id, end_id)
assert by_hand == encoded.response_mask
table = list(zip(tokenizer.convert_ids_to_tokens(encoded.tokens), by_hand, strict=True))
opening = encoded.tokens.index(start_id)
for token, counts in [*table[opening - 3 : opening + 4], ("...", True), *table[-3:]]:
    print(f"{token.replace('Ġ', ' '):<22} {'counts' if counts else '-'}")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The loss, by hand
#
# A language model gives, at every position, a distribution over the next token. SFT raises the probability of each response token given
# everything before it:
#
# $$L^{SFT} = -\frac{1}{\sum_t m_t} \sum_t m_t \,\log \pi_\theta(y_t \mid x, y_{<t})$$
#
# where $t$ runs over the tokens of every conversation in the batch, $y_t$ is the token at $t$, $x$ the prompt, $\pi_\theta$ the policy (the model we train), and $m_t$ the mask: 1 on
# response tokens, 0 elsewhere. So a long response counts for more than a short one. The unit is *nats a token*, natural logarithms throughout.
#
# The one thing to get right is the **shift**. The logits at position $t$ are computed from tokens up to and including $t$, so they predict token
# $t+1$. Score token $t$ with the logits at $t$ and the model is asked to predict something that it has just been shown.
#
# ### Exercise: the next-token loss
# *Difficulty 2 of 3, about 10 minutes.* `logits` is (L, V), `tokens` and `mask` are (L,). Return the loss, a scalar tensor.
#
# <details><summary>Hint 1</summary>Drop the last logits and the first token. What must happen to the mask?</details>
# <details><summary>Hint 2</summary><code>log_softmax</code> over V, then <code>gather</code> the token that really came next.</details>


# %%
@exercise("next_token_loss")
def next_token_loss(logits, tokens, mask):
    raise NotImplementedError


# %% [markdown]
# Now a real batch: three demonstrations of different lengths, padded on the right to one rectangle. Padding needs no special care here: it stands
# after the response, and in a causal model no earlier token sees it; the mask keeps it out of the loss.

# %%
batch = collate([encode_conversation(tokenizer, demos[i]["messages"]) for i in (0, 1, 2)], tokenizer.pad_token_id)
tokens, mask = batch.tokens.to(DEVICE), batch.response_mask.to(DEVICE)  # (B, L) each
print("tokens", tuple(tokens.shape), " response tokens in each row:", mask.sum(1).tolist())

# %%
with torch.no_grad():
    logits = policy(input_ids=tokens[:, :-1]).logits  # (B, L-1, V): position t predicts token t+1
y, m = tokens[:, 1:], mask[:, 1:]  # (B, L-1) each
logp = logits.log_softmax(-1).gather(-1, y[..., None]).squeeze(-1)  # (B, L-1): log pi(y_t | x, y_<t)
L_sft = -(m * logp).sum() / m.sum()  # ()
torch.testing.assert_close(token_logprobs(logits, y), logp)
torch.testing.assert_close(sft_loss(logp, m), L_sft)
torch.testing.assert_close(sft.batch_loss(policy, batch).detach(), L_sft)
print(
    f"loss by hand {L_sft:.4f} nats a token; a uniform guess over {len(tokenizer)} tokens: {np.log(len(tokenizer)):.4f}"
)

# %% [markdown]
# The kernel `token_logprobs` gives the same numbers without building a second tensor of logits, and `sft_loss` is the masked mean.
# From here on we use the kernels.
#
# Nearly three nats, yet far below a uniform guess: $e^{L}$, the **perplexity**, is about 17, as if the model chose among seventeen tokens, not among all. How, when it has never
# seen a chat? Look where the loss sits, token by token, in the shortest of the three: the first word of the response comes as a surprise, and so does the
# end token, but once the first words are given, the model knows how the fact goes on.

# %%
shortest = m.sum(1).argmin()
counted = m[shortest]
for token, nats in zip(tokenizer.convert_ids_to_tokens(y[shortest][counted]), -logp[shortest][counted], strict=True):
    print(f"{token.replace('Ġ', ' '):<20} {nats:5.2f}")

# %%
for start_of_text in ("<|bos|>KV cache. Definition:", "<|bos|>Dropout. Analogy:"):
    ids = tokenizer(start_of_text)["input_ids"]
    out = base.generate(torch.tensor([ids], device=DEVICE), max_new_tokens=24, do_sample=False, eos_token_id=None)
    print(tokenizer.decode(out[0], skip_special_tokens=True))

# %% [markdown]
# And indeed, in the style of the text it was trained on, it can say what it knows. The facts are in there. SFT does not have to teach them; it has to
# teach which one to say when, and where to stop.
#
# ## The demonstrations
#
# Now look at what we imitate. The `quality` column says which defect was planted; training never reads it, and in real life you would not have it.

# %% slideshow={"slide_type": "slide"}
table = demos.to_pandas()
table["gold"] = [gold_scores([m[0]["content"]], [m[1]["content"]])[0] for m in table.messages]
for quality, rows in table.groupby("quality"):
    prompt, response = rows.messages.iloc[0]
    print(
        f"[{quality}, {len(rows) / len(table):.0%}, mean gold {rows.gold.mean():+.2f}]\nQ {prompt['content']}\nA {response['content']}\n"
    )

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Train
#
# **Predict before you run:** the demonstrations have a mean gold score that you could compute from the list above. After training, will the
# model's own answers be better than that, worse, or the same? Write down a number.
#
# The loop is a generator: it yields one record a step, and this cell decides what to do with it. Interrupt it whenever you like
# (the stop button, or Kernel, Interrupt): the step that runs is finished, what has been trained so far is kept, and the rest of the notebook runs on it.

# %%
examples = encode_demos(demos, tokenizer)
gold_while_training = []


def measure_gold(record):
    """Every 60 steps the policy answers the suite; the panel shows mean gold and three of the answers."""
    if record.step % 60 and record.step > 1:
        return {}
    answers = answer(policy, tokenizer, questions, seed=SEED)
    gold = torch.tensor(gold_scores(questions, answers))
    gold_while_training.append((record.step, gold.mean().item()))
    return {"gold": gold.mean().item(), "samples": samples(questions, answers, None, gold)}


run = sft.train(
    policy,
    examples[N_VAL:],
    val=examples[:N_VAL],
    pad_token_id=tokenizer.pad_token_id,
    epochs=EPOCHS,
    batch_size=BATCH_SIZE,
    learning_rate=LEARNING_RATE,
    seed=SEED,
)
panel = TrainingPanel("sft", {"loss, nats a response token": ("loss", "val_loss"), "gold": ("gold",)})
records = panel.follow(run, measure_gold)

# %% slideshow={"slide_type": "slide"}
steps = [record.step for record in records]
figure = plots.curves(
    {"train": [record.loss for record in records], "validation": [record.val_loss for record in records]},
    x=steps,
    xlabel="step",
    ylabel="loss (nats a response token)",
)
plots.show(figure, alt="Training and validation loss against step: both fall fast, then slowly")

# %% [markdown]
# Both losses fall steeply at first, while the model learns the format, and slowly after that, while it learns which fact goes with which question. At the
# end they are close to each other, if you look past the spikes: every demonstration was seen only twice, too little to memorize it. The spikes are batches of short answers (a batch is made of rows of like length), many of them cut off
# at a random place, which nobody can foresee. Much of the loss that is left is of that kind: which of the planted defects an answer will have, which flattering sentence, where it ends. The rest is what the model has not learned.

# %%
at, gold_then = zip(*gold_while_training, strict=True)
figure = plots.curves({"gold": gold_then}, x=at, xlabel="step", ylabel="mean gold of sampled answers")
plots.show(
    figure,
    alt="Mean gold score of sampled answers against training step: it rises, with jumps, from about -2 to above 0",
)

# %% tags=["nbval-check-output"]
val_losses = [record.val_loss for record in records if np.isfinite(record.val_loss)] or [np.nan]  # stopped too early
last_train_losses = [record.loss for record in records[-20:]]
check("validation loss fell below half of its first value", min(val_losses) < 0.5 * val_losses[0])
check(
    "at the end training and validation loss are within 0.1 of each other",
    abs(np.mean(last_train_losses) - val_losses[-1]) < 0.1,
)
check("gold rose while the loss fell", gold_then[-1] > gold_then[0] + 1 and val_losses[-1] < val_losses[0])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Base against SFT
#
# One answer to each prompt of the frozen suite from each model, at temperature 1. The points show mean gold with a 95 % **bootstrap interval**: draw as many
# prompts as there are, with replacement, take the mean, repeat 2,000 times, and keep the middle 95 %.

# %%
comparison = suite.to_pandas()[["prompt", "split", "ask"]]
for name, model in {"base": base, "sft": policy}.items():
    comparison[name] = gold_scores(questions, answer(model, tokenizer, questions, seed=SEED))
groups = {
    split.replace("_", " "): {name: mean_interval(rows[name]) for name in ("base", "sft")}
    for split, rows in comparison.groupby("split", sort=False)
}
plots.show(
    plots.intervals(groups, ylabel="mean gold"),
    alt="Mean gold of base and SFT on the three splits of the suite: SFT is higher on each",
)

# %% [markdown]
# A fairer way to compare two models uses that both answered the *same* prompts. The **paired win rate** asks, prompt by prompt, which answer
# has the higher gold; a tie counts half.

# %%
win = paired_win_rate(comparison.sft, comparison.base)
print(f"SFT beats base on {win.rate:.0%} of prompts, 95 % interval [{win.low:.0%}, {win.high:.0%}]")
print(f"{win.wins} wins, {win.ties} ties, {win.losses} losses")

# %% tags=["nbval-check-output"]
check("SFT beats base on the suite: the win rate's interval lies above 50 %", win.low > 0.5)
check(
    "SFT beats base on every split, held-out ones too",
    all(rows["sft"].low > rows["base"].high for rows in groups.values()),
)
check(
    "SFT's mean on every split is above -1, what a perfect answer about another concept has",
    all(rows["sft"].low > -1 for rows in groups.values()),
)

# %% [markdown]
# SFT generalizes: it answers phrasings that it never saw, and combinations of concept and ask that it was never shown (which of the two it does better, 42 prompts a split hardly tell). It learned the facts in
# pretraining and the asks from other concepts, and puts the two together: talking well about the wrong concept would have earned about -1.

# %% slideshow={"slide_type": "slide"}
question = "What is the difference between a base model and a chat-SFT model?"
show_answers(
    question,
    {name: answer(model, tokenizer, [question], seed=SEED)[0] for name, model in {"base": base, "sft": policy}.items()},
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Why this is not the end
#
# Ask one question eight times.

# %%
question = "Define dropout and say why it matters."
answers = answer(policy, tokenizer, [question] * 8, seed=SEED)
for gold, text in sorted(zip(gold_scores([question] * 8, answers), answers, strict=True), reverse=True):
    print(f"{gold:+.2f}  {text}")

# %% [markdown]
# Some are perfect, some speak of something else or break off: inconsistent. Now the whole suite, eight answers each, beside the demonstrations.

# %%
eight = [prompt for prompt in questions for _ in range(8)]
scores = gold_scores(eight, answer(policy, tokenizer, eight, seed=SEED)).reshape(-1, 8)  # (prompts, 8)
greedy = gold_scores(questions, answer(policy, tokenizer, questions, temperature=0))
spread = scores.max(1) - scores.min(1)
print(f"demonstrations {table.gold.mean():+.2f} | one sample {scores.mean():+.2f} | greedy {greedy.mean():+.2f}")
print(
    f"best of 8 {scores.max(1).mean():+.2f} | worst of 8 {scores.min(1).mean():+.2f} | median spread {np.median(spread):.2f}"
)
figure = plots.histogram({"demonstrations": table.gold, "SFT samples": scores.ravel()}, xlabel="gold", bins=20)
plots.show(
    figure, alt="Gold scores of demonstrations and of SFT samples: both reach +2, and the samples reach further down"
)

# %% [markdown]
# What we see:
#
# - The samples are not better than the demonstrations. SFT imitates the whole mixture, the bad with the good, and adds mistakes of its own.
# - For the same prompt, the best of eight answers is far better than the worst. The model *can* give the good answer. It does not know that it is the one we
#   want.
# - Taking the likeliest token every time (**greedy** decoding) is much better than sampling: the good answers agree with each other, the bad ones
#   are bad in different ways. It is no cure: greedy decoding gives what is most common in the mixture. Had most demonstrations flattered, it would flatter every time.
#
# A demonstration says "this is an answer". What is missing is a signal that says "this one is *better*".

# %% tags=["nbval-check-output"]
check("SFT samples are no better than the demonstrations they imitate", scores.mean() < table.gold.mean())
check("for most prompts, eight samples spread over more than one point of gold", np.median(spread) > 1)
check("the best of eight beats the mean by more than half a point", scores.max(1).mean() > scores.mean() + 0.5)
check("greedy decoding beats sampling", greedy.mean() > scores.mean())

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The end token
#
# Back to the token that decides more than it seems to. Let us leave it out of the loss and see.
#
# ### Exercise: a mask without the end token
# *Difficulty 1 of 3, about 4 minutes.* Given token ids and a response mask, both lists, and the id of the end token, return the mask as a list with every
# end token set to `False`.


# %%
@exercise("without_end")
def without_end(tokens, mask, assistant_end):
    raise NotImplementedError


# %% [markdown]
# **Predict before you run:** two short runs on the same 1,400 demonstrations, one with the end token in the loss and one without. What share of each
# model's answers will end within 56 tokens? What will the others look like?


# %%
def finished_share(examples):
    """Train briefly from base; return the share of suite answers that end, one answer, and the mean of the last losses."""
    model, _ = load_policy(CHECKPOINTS / "base", device=DEVICE)
    settings = {"pad_token_id": tokenizer.pad_token_id, "epochs": 1, "batch_size": 32, "learning_rate": LEARNING_RATE}
    losses = [record.loss for record in sft.train(model, examples, **settings, seed=SEED)]
    prompts = [encode_prompt(tokenizer, user(q)) for q in questions]
    sample = rollout(
        model, prompts, max_new_tokens=56, eos_token_id=end_id, pad_token_id=tokenizer.pad_token_id, seed=SEED
    )
    longest = sample.tokens[sample.response_mask.sum(1).argmax(), -sample.response_mask.shape[1] :]
    ended = sample.finished.float().mean().item()
    return ended, tokenizer.decode(longest, skip_special_tokens=True), np.mean(losses[-20:])


few = examples[N_VAL : N_VAL + 1400]
no_end = [e._replace(response_mask=without_end(e.tokens, e.response_mask, end_id)) for e in few]
with_end, without = finished_share(few), finished_share(no_end)
for name, (ended, _, loss) in {"in": with_end, "not in": without}.items():
    print(f"end token {name} the loss: {loss:.2f} nats a token on the last 20 batches, {ended:.0%} of answers end")
print(f"for example:\n{without[1]}")

# %% tags=["nbval-check-output"]
check("with the end token in the loss, most answers end", with_end[0] > 0.5)
check("without it, hardly any answer ends", without[0] < 0.1)

# %% [markdown]
# Would the loss have told you? Nothing in the second line looks wrong, and the two losses do not even compare, as they are means over different tokens. The model simply was never
# asked about stopping. A pad token that is the same as the end token, masked out as padding, causes exactly this bug in practice.
#
# ## Keep it
#
# The checkpoint goes to `outputs/checkpoints/sft`. The other notebooks use it from now on; delete the folder to go back to the shipped one.

# %%
folder = save(policy, tokenizer, outputs() / "checkpoints" / "sft")
settings = {"start": "base", "demonstrations": len(demos) - N_VAL, "steps": len(records), "batch_size": BATCH_SIZE}
save_settings(folder, {"stage": "sft", **settings, "learning_rate": LEARNING_RATE, "seed": SEED}, panel.seconds)
again, _ = load_policy(folder, device=DEVICE)
same = answer(again, tokenizer, questions[:8], temperature=0) == answer(policy, tokenizer, questions[:8], temperature=0)
print(f"saved {folder.parent.name}/{folder.name}")

# %% tags=["nbval-check-output"]
check("the saved model gives the same greedy answers", same)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Recap
#
# - A chat is one token sequence; the response mask says which tokens the loss counts, the end token among them.
# - $L^{SFT}$ is the mean of $-\log \pi_\theta(y_t \mid x, y_{<t})$ over response tokens, with logits at $t$ scoring token $t+1$.
# - SFT beats base on every split of the suite, also where phrasing or combination was held out.
# - It imitates the mixture it is shown: inconsistent, no better than its demonstrations, with good answers within reach.
#
# **Discuss:** we could filter the demonstrations and keep only good ones. Who would do the filtering, how would they know, and what would that cost
# compared with asking "which of these two is better"?
#
# **Further reading:** Ouyang et al. 2022, section 3.5 (SFT as the first step of RLHF). Zhou et al. 2023, *LIMA*, on how few demonstrations suffice if they
# are good. Gudibande et al. 2023, *The false promise of imitating proprietary LLMs*, on what imitation does and does not transfer. Next: [02, preference data](02_preference_data.ipynb).
