"""Rebuild `data/`: demonstrations, preferences, and the checkpoint of every stage, bit for bit on one machine.

    python -m picollm_lite.build

Inputs are `data/world/` and `data/prompts/suite.jsonl`, which people wrote, and the seed below.
"""

import hashlib
import itertools
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from picollm_lite.chat import ASSISTANT_END, BOS, CHAT_TEMPLATE, PAD, SPECIAL_TOKENS, Encoded, answer, user
from picollm_lite.data import encode_demos, encode_pairs, load_demos, load_preferences
from picollm_lite.evaluation.training_record import defaults, save_settings
from picollm_lite.files import write_jsonl
from picollm_lite.models import RewardModel, load_policy, save
from picollm_lite.paths import CHECKPOINTS, DATA, DEMOS, PREFERENCES, PREFERENCES_TEST, QUALITY, RESULTS, SEEDS
from picollm_lite.stages import dpo, group_policy, online_dpo, ppo, reward, sft
from picollm_lite.world.annotators import draw
from picollm_lite.world.asks import ASKS
from picollm_lite.world.rubric import score
from picollm_lite.world.texts import base_document, demonstrations, training_prompts

SEED = 2026
THREADS = 2  # sums come out differently on another number of threads
VOCABULARY = 2048
CONTEXT = 256
N_PAIRS, N_TEST_PAIRS, N_DPO_PAIRS = 12_000, 1_000, 5_000
SAMPLE_BATCH = 512
DPO_BETA = 0.3
ONLINE = {"steps": 20, "group_size": 4, "learning_rate": 3e-4}  # of notebook 06
N_VAL = 200  # the first demonstrations are kept for validation
BASE_STEPS, BASE_BATCH, BASE_LENGTH = 800, 32, 128
MODEL = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def main() -> None:
    """Rebuild everything, in order, saying how long each part took."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    logging.disable_progress_bar()
    for part in (
        build_demos,
        build_base,
        build_sft,
        build_preferences,
        build_reward,
        build_ppo,
        build_dpo,
        build_online_dpo,
        build_grpo,
        update_readme,
    ):
        start = time.perf_counter()
        part()
        print(f"{part.__name__}: {time.perf_counter() - start:.0f} s", flush=True)


def build_demos() -> None:
    """`data/demos.jsonl`."""
    write_jsonl(DEMOS, [{"id": f"demo-{i:05d}", **demo} for i, demo in enumerate(demonstrations(SEED))])


def build_base() -> None:
    """`data/checkpoints/base`: the tokenizer, and a model that has read the base corpus and no chat."""
    tokenizer = train_tokenizer()
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **MODEL,
        )
    )
    corpus = packed_corpus(tokenizer, BASE_STEPS * BASE_BATCH)
    settings = {"epochs": 1, "batch_size": BASE_BATCH, "learning_rate": 3e-3, "weight_decay": 0.05, "seed": SEED}
    run = sft.train(model, corpus, pad_token_id=tokenizer.pad_token_id, **settings)
    for record in run:
        if record.step % 100 == 0:
            print(f"  base step {record.step}/{record.steps}: loss {record.loss:.3f}", flush=True)
    keep(model, tokenizer, "base", start="random weights", rows=len(corpus), **settings)


def build_sft() -> None:
    """`data/checkpoints/sft`: the base model after the demonstrations, with the settings of notebook 01."""
    model, tokenizer = load_policy(CHECKPOINTS / "base", device="cpu")
    demos = encode_demos(load_demos(DEMOS), tokenizer)[N_VAL:]
    for _ in sft.train(model, demos, pad_token_id=tokenizer.pad_token_id, seed=SEED):
        pass
    settings = defaults(sft.train, "epochs", "batch_size", "learning_rate")
    keep(model, tokenizer, "sft", start="base", demonstrations=len(demos), **settings, seed=SEED)


def build_preferences() -> None:
    """`data/preferences.jsonl` and its test split: two samples of the SFT policy a prompt, labeled by the panel."""
    policy, tokenizer = load_policy(CHECKPOINTS / "sft", device="cpu")
    rng = random.Random(SEED)
    test, rest = preference_prompts(rng)
    for path, prompts, count in ((PREFERENCES, rest, N_PAIRS), (PREFERENCES_TEST, test, N_TEST_PAIRS)):
        pairs = itertools.islice(sampled_pairs(policy, tokenizer, prompts, rng), count)
        rows = [labeled(prompt, a, b, rng) for prompt, a, b in pairs]
        write_jsonl(path, [{"id": f"{path.stem}-{i:05d}", **row} for i, row in enumerate(rows)])


def preference_prompts(rng: random.Random) -> tuple[list[str], list[str]]:
    """Prompts for the test split and for training, none in both, every ask as often as any other."""
    by_ask = {ask: training_prompts(ask, SEED) for ask in ASKS}
    test, rest = [], []
    for prompts in by_ask.values():
        rng.shuffle(prompts)
        n_test = N_TEST_PAIRS // len(ASKS) + 40  # some pairs are dropped: both samples may be the same
        test += prompts[:n_test]
        rest.append(prompts[n_test:])
    rng.shuffle(test)
    return test, [rng.choice(rng.choice(rest)) for _ in range(N_PAIRS * 5 // 4)]


def sampled_pairs(
    policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], rng: random.Random
) -> Iterator[tuple[str, str, str]]:
    """Each prompt with two different answers, sampled at temperature 1; prompts whose answers agree are left out."""
    for start in range(0, len(prompts), SAMPLE_BATCH):
        batch = prompts[start : start + SAMPLE_BATCH]
        answers = answer(policy, tokenizer, batch * 2, seed=rng.randrange(2**32))
        for prompt, a, b in zip(batch, answers[: len(batch)], answers[len(batch) :], strict=True):
            if a != b and a.strip() and b.strip():
                yield prompt, a, b


def labeled(prompt: str, a: str, b: str, rng: random.Random) -> dict:
    """A pair as one annotator of the panel ranked it; the gold columns are for evaluation only."""
    annotator = draw(rng)
    chosen, rejected = (a, b) if annotator.prefers_first(prompt, a, b, rng) else (b, a)
    return {
        "prompt": user(prompt),
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "annotator": annotator.name,
        "gold_chosen": round(score(prompt, chosen).total, 4),
        "gold_rejected": round(score(prompt, rejected).total, 4),
    }


def build_reward() -> None:
    """`data/checkpoints/reward`: a reward model from the preferences, with the settings of notebook 03."""
    policy, tokenizer = load_policy(CHECKPOINTS / "sft", device="cpu")
    model = RewardModel.from_policy(policy, tokenizer, seed=SEED)
    pairs = encode_pairs(load_preferences(PREFERENCES), tokenizer)
    for _ in reward.train(model, pairs, seed=SEED):
        pass
    settings = defaults(reward.train, "epochs", "off_prompt_weight", "batch_size", "learning_rate")
    keep(model.model, tokenizer, "reward", start="sft", pairs=len(pairs), **settings, seed=SEED)


def build_ppo() -> None:
    """`data/checkpoints/ppo`: the SFT model after PPO against the reward model, with the settings of notebook 04."""
    against_reward("ppo", ppo.train, **defaults(ppo.PPOConfig, "steps", "kl_coef", "learning_rate"))


def build_online_dpo() -> None:
    """`data/checkpoints/online_dpo`: the SFT model after online DPO, with the settings of notebook 06."""
    against_reward("online_dpo", online_dpo.train, **ONLINE, beta=0.1)


def build_grpo() -> None:
    """`data/checkpoints/grpo`: the SFT model after GRPO, with the settings of notebook 06."""
    against_reward("grpo", group_policy.grpo, **ONLINE, kl_coef=0.3, epochs=1)


def against_reward(stage: str, train: Callable, **settings: float) -> None:
    """Train the SFT model on scores of the reward model, and keep it."""
    policy, tokenizer = load_policy(CHECKPOINTS / "sft", device="cpu")
    model = RewardModel.load(CHECKPOINTS / "reward", device="cpu")
    prompts = sorted({prompt[-1]["content"] for prompt in load_preferences(PREFERENCES)["prompt"]})
    settings |= defaults(ppo.PPOConfig, "batch_size", "unfinished_score")
    for _ in train(policy, model.score, prompts, tokenizer=tokenizer, seed=SEED, **settings):
        pass
    keep(policy, tokenizer, stage, start="sft", prompts=len(prompts), **settings, seed=SEED)


def build_dpo() -> None:
    """`data/checkpoints/dpo`: the SFT model after DPO on the preferences, with the settings of notebook 05."""
    policy, tokenizer = load_policy(CHECKPOINTS / "sft", device="cpu")
    pairs = encode_pairs(load_preferences(PREFERENCES).select(range(N_DPO_PAIRS)), tokenizer)
    for _ in dpo.train(policy, pairs, tokenizer=tokenizer, beta=DPO_BETA, seed=SEED):
        pass
    settings = defaults(dpo.train, "epochs", "batch_size", "learning_rate")
    keep(policy, tokenizer, "dpo", start="sft", pairs=len(pairs), beta=DPO_BETA, **settings, seed=SEED)


def keep(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, stage: str, **settings: object) -> None:
    """Save the checkpoint of a stage, and beside it what it was trained with.

    The time stays out: it would be another one in every build, and speak of a machine that the reader does not have.
    """
    save_settings(save(model, tokenizer, CHECKPOINTS / stage), {"stage": stage, **settings})


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with picoLLM's chat tokens and template; it adds no token of its own to a plain text."""
    rng = random.Random(SEED)
    texts = [base_document(rng) for _ in range(4000)]
    texts += [message["content"] for demo in demonstrations(SEED) for message in demo["messages"]]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=ASSISTANT_END,
        pad_token=PAD,
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in (BOS, ASSISTANT_END, PAD)],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def packed_corpus(tokenizer: PreTrainedTokenizerFast, rows: int) -> list[Encoded]:
    """Documents, each after a BOS, run together and cut into rows of one length, every token counted."""
    stream = _token_stream(tokenizer)
    mask = [True] * BASE_LENGTH
    return [Encoded([next(stream) for _ in range(BASE_LENGTH)], mask) for _ in range(rows)]


def _token_stream(tokenizer: PreTrainedTokenizerFast) -> Iterator[int]:
    rng = random.Random(SEED)
    while True:
        for tokens in tokenizer([BOS + base_document(rng) for _ in range(1000)])["input_ids"]:
            yield from tokens


def update_readme() -> None:
    """The table of files in `data/README.md`: rows, size and sha256 as they now are."""
    readme = DATA / "README.md"
    lines = ["| file | rows | bytes | sha256 |", "|---|---|---|---|"]
    lines += [
        _table_row(path)
        for path in sorted(DATA.rglob("*"))
        if path.is_file() and path not in (readme, RESULTS, QUALITY, SEEDS)
    ]
    text = readme.read_text(encoding="utf-8")
    table = "<!-- files: begin -->\n" + "\n".join(lines) + "\n<!-- files: end -->"
    readme.write_text(
        re.sub(r"<!-- files: begin -->.*<!-- files: end -->", lambda _: table, text, flags=re.S), encoding="utf-8"
    )


def _table_row(path: Path) -> str:
    content = path.read_bytes()
    rows = sum(1 for line in content.splitlines() if json.loads(line)) if path.suffix == ".jsonl" else ""
    return f"| `{path.relative_to(DATA)}` | {rows} | {len(content)} | `{hashlib.sha256(content).hexdigest()}` |"


if __name__ == "__main__":
    main()
