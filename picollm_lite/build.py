"""Rebuild `data/`: demonstrations, tokenizer, base model and SFT model, bit for bit on one machine.

    python -m picollm_lite.build

Inputs are `data/world/` and `data/prompts/suite.jsonl`, which people wrote, and the seed below.
"""

import hashlib
import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from picollm_lite.chat import ASSISTANT_END, BOS, CHAT_TEMPLATE, PAD, SPECIAL_TOKENS, Encoded
from picollm_lite.data import encode_demos, load_demos, write_jsonl
from picollm_lite.models import load_policy, save
from picollm_lite.paths import CHECKPOINTS, DATA, DEMOS
from picollm_lite.stages import sft
from picollm_lite.world.texts import base_document, demonstrations

SEED = 2026
THREADS = 2  # sums come out differently on another number of threads
VOCABULARY = 2048
CONTEXT = 256
N_VAL = 200  # the first demonstrations are kept for validation
BASE_STEPS, BASE_BATCH, BASE_LENGTH = 600, 32, 128
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
    for part in (build_demos, build_base, build_sft, update_readme):
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
    run = sft.train(
        model,
        corpus,
        pad_token_id=tokenizer.pad_token_id,
        epochs=1,
        batch_size=BASE_BATCH,
        learning_rate=4e-3,
        weight_decay=0.05,
        seed=SEED,
    )
    for record in run:
        if record.step % 100 == 0:
            print(f"  base step {record.step}/{record.steps}: loss {record.loss:.3f}", flush=True)
    save(model, tokenizer, CHECKPOINTS / "base")


def build_sft() -> None:
    """`data/checkpoints/sft`: the base model after the demonstrations, with the settings of notebook 01."""
    model, tokenizer = load_policy(CHECKPOINTS / "base", device="cpu")
    demos = encode_demos(load_demos(DEMOS), tokenizer)
    for _ in sft.train(model, demos[N_VAL:], pad_token_id=tokenizer.pad_token_id, seed=SEED):
        pass
    save(model, tokenizer, CHECKPOINTS / "sft")


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
    lines += [_table_row(path) for path in sorted(DATA.rglob("*")) if path.is_file() and path != readme]
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
