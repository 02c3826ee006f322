"""Peak memory of one optimizer step of SFT, reward model, DPO and PPO, by model size.

    python tests/benchmarks/bench_memory.py [--device cuda] [--sizes 1M 30M 135M 360M] [--stages sft reward dpo ppo]
        [--batch 8] [--tokens 128] [--checkpointing] [--bf16] [--into tests/benchmarks/memory.md]

The loops of `stages/` run with their defaults on randomly initialized Llamas, each in a process of its own: one step to
warm up, then the one that is measured. A batch is so many texts (SFT), pairs of texts (reward, DPO), or questions to
answer (PPO: one update of policy and critic). Half of a text is the answer, and no answer ends early.
A GPU says what torch had allocated at the peak; the CUDA context, some hundreds of MiB, comes on top. On a CPU it is
the peak resident set of the process, warm-up and building of models included, less what it held after its imports.
Some 25 MiB of that are code that loads with the first step.
"""

import argparse
import gc
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from llamas import SHAPES, WORDS, default_device, random_llama, shipped_tokenizer
from reporting import machine
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from picollm_lite.chat import Encoded, encode_conversation, user
from picollm_lite.data import Pair
from picollm_lite.evaluation.data_card import markdown_table
from picollm_lite.models import RewardModel, ValueModel, mixed_precision
from picollm_lite.stages import dpo, ppo, reward, sft

STEPS = 3  # the warm-up, the measured one, and one that never comes, as loops evaluate and center after their last
TRAINED, FROZEN = 16, 4  # bytes a parameter in fp32: weight, gradient and Adam's two moments; a weight alone
MIB = 2**20


class Loop(NamedTuple):
    """A training loop, and the models that lie in memory while it runs."""

    steps: Iterator
    trained: Sequence[nn.Module]
    frozen: Sequence[nn.Module] = ()


class Usage(NamedTuple):
    """Parameters of trained and of frozen models, and the measured peak in bytes: None where it did not fit."""

    trained: int
    frozen: int
    peak: int | None


class Task:
    """Texts of one length for `STEPS` batches."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, batch: int, tokens: int):
        self.tokenizer, self.batch, self.prompt = tokenizer, batch, tokens // 2
        self.answer = tokens - self.prompt
        self.rng = random.Random(0)

    def questions(self) -> list[str]:
        """Each a prompt of `self.prompt` tokens: four control tokens come on top of the words."""
        return [self._words(self.prompt - 4) for _ in range(STEPS * self.batch)]

    def encoded(self, question: str) -> Encoded:
        """The question and an answer to it of `self.answer` tokens, the end token included."""
        answer = {"role": "assistant", "content": self._words(self.answer - 1)}
        return encode_conversation(self.tokenizer, [*user(question), answer])

    def pairs(self) -> list[Pair]:
        return [Pair(self.encoded(question), self.encoded(question)) for question in self.questions()]

    def _words(self, count: int) -> str:
        return "".join(f" {word}" for word in self.rng.choices(WORDS, k=count))


def sft_loop(policy: PreTrainedModel, task: Task) -> Loop:
    demos = [task.encoded(question) for question in task.questions()]
    pad = task.tokenizer.pad_token_id
    return Loop(sft.train(policy, demos, pad_token_id=pad, epochs=1, batch_size=task.batch), [policy])


def reward_loop(policy: PreTrainedModel, task: Task) -> Loop:
    reward_model = RewardModel.from_policy(policy, task.tokenizer)
    return Loop(reward.train(reward_model, task.pairs(), batch_size=task.batch), [reward_model])


def dpo_loop(policy: PreTrainedModel, task: Task) -> Loop:
    ref = deepcopy(policy)
    steps = dpo.train(policy, task.pairs(), tokenizer=task.tokenizer, ref=ref, batch_size=task.batch)
    return Loop(steps, [policy], [ref])


def ppo_loop(policy: PreTrainedModel, task: Task) -> Loop:
    ref, reward_model = deepcopy(policy), RewardModel.from_policy(policy, task.tokenizer)
    critic = ValueModel.from_policy(policy)
    settings = {"steps": STEPS, "batch_size": task.batch, "minibatch_size": task.batch, "epochs": 1}
    settings |= {"max_new_tokens": task.answer, "unfinished_score": None}
    models = {"tokenizer": task.tokenizer, "ref": ref, "critic": critic}
    steps = ppo.train(policy, reward_model.score, task.questions(), **models, **settings)
    return Loop(steps, [policy, critic], [ref, reward_model])


LOOPS = {"sft": sft_loop, "reward": reward_loop, "dpo": dpo_loop, "ppo": ppo_loop}


def parameters(models: Sequence[nn.Module]) -> int:
    """How many; tied ones count once."""
    return sum(weight.numel() for model in models for weight in model.parameters())


def held_bytes(usage: Usage) -> int:
    """What lies in memory between two steps: derived, not measured."""
    return TRAINED * usage.trained + FROZEN * usage.frozen


def measure(size: str, stage: str, args: argparse.Namespace) -> Usage:
    """Run the two steps in this process, which should have done nothing else before."""
    on_gpu = args.device == "cuda"
    before = 0 if on_gpu else peak_resident()
    tokenizer = shipped_tokenizer()
    task = Task(tokenizer, batch=args.batch, tokens=args.tokens)
    loop = LOOPS[stage](random_llama(SHAPES[size], tokenizer, args.device), task)
    gc.collect()  # the policy that a reward model was made from
    if args.checkpointing:
        save_activations(loop.trained)
    sizes = (parameters(loop.trained), parameters(loop.frozen))
    try:
        with mixed_precision(loop.trained[0], bf16=args.bf16):
            next(loop.steps)
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            next(loop.steps)
    except torch.OutOfMemoryError:
        return Usage(*sizes, None)
    return Usage(*sizes, (torch.cuda.max_memory_allocated() if on_gpu else peak_resident()) - before)


def save_activations(models: Sequence[nn.Module]) -> None:
    """Turn activation checkpointing on, by the name that it has in this transformers."""
    for part in [part for model in models for part in model.modules() if isinstance(part, PreTrainedModel)]:
        getattr(part, "activation_checkpointing_enable", part.gradient_checkpointing_enable)()


def peak_resident() -> int:
    """Bytes that this process held at most since it began."""
    import resource  # not there on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def report(usages: dict[tuple[str, str], Usage], args: argparse.Namespace) -> str:
    """A section of Markdown: the machine, the settings, and a row a measurement."""
    products = "products in bf16" if args.bf16 else "fp32"
    saved = "with activation checkpointing" if args.checkpointing else "all activations kept"
    what = "allocated on the GPU" if args.device == "cuda" else "resident"
    rows = [
        {
            "model": size,
            "stage": stage,
            "trained, M": f"{usage.trained / 1e6:.1f}",
            "frozen, M": f"{usage.frozen / 1e6:.1f}",
            "derived, MiB": mebibytes(held_bytes(usage)),
            f"peak {what}, MiB": "out of memory" if usage.peak is None else mebibytes(usage.peak),
        }
        for (size, stage), usage in usages.items()
    ]
    return (
        f"## {machine(args.device)}\n\nBatch {args.batch}, {args.tokens} tokens a text, {products}, {saved}.\n\n"
        f"{markdown_table(pd.DataFrame(rows))}\n"
    )


def mebibytes(count: int) -> str:
    return f"{count / MIB:,.0f}"


def in_own_process(size: str, stage: str) -> Usage:
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", size, stage]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    usage = Usage(*json.loads(out.splitlines()[-1]))
    print(size, stage, usage, file=sys.stderr, flush=True)  # should a later one fail
    return usage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default_device())
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, help="default: all on a GPU, without 360M on a CPU")
    parser.add_argument("--stages", nargs="+", choices=LOOPS, default=list(LOOPS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128, help="in a text, prompt and answer")
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again in backward")
    parser.add_argument("--bf16", action="store_true", help="inside models.mixed_precision")
    parser.add_argument("--into", type=Path, help="Markdown file to add the table to")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tokens < 16:
        parser.error(f"--tokens must be at least 16, as a prompt has four control tokens, got {args.tokens}")
    if args.worker:
        print(json.dumps(measure(*args.worker, args)))
        return
    sizes = args.sizes or [size for size in SHAPES if args.device == "cuda" or size != "360M"]
    text = report({(size, stage): in_own_process(size, stage) for size in sizes for stage in args.stages}, args)
    print(text)
    if args.into:
        with args.into.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}")


if __name__ == "__main__":
    main()
