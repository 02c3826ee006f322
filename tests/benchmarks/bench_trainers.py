"""Training speed: our loops against TRL's trainers, interleaved, on the shipped SFT model or any other.

    python tests/benchmarks/bench_trainers.py [--parts dpo reward sft ppo] [--pairs FILE] [--rows 1280] [--rounds 7]
    python tests/benchmarks/bench_trainers.py --device cuda [--model 135M] [--bf16]
    pip install --no-deps --target DIR 'trl==1.10.*'   # the last TRL with PPO; then add: --trl110 DIR

Both sides train from the same weights on the same rows in batches of 64, in fp32, on a CPU with 2 threads, one epoch,
with as many optimizer steps. The clock starts when the rows are tokens; it includes our reference log-probs and the
centering of our reward model. TRL does without activation checkpointing, logging and checkpoints, which only cost time
here. Each part has a process of its own, in which the sides take turns; the one for PPO sees TRL 1.10 alone. A random
Llama (`--model`) ends next to no answer in PPO. What came out is in speed.md.
"""

import argparse
import gc
import io
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset
from llamas import add_model_options, model_name, open_model
from reporting import finish, machine, spread
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import PrinterCallback, TrainingArguments

from picollm_lite.chat import MAX_NEW_TOKENS, encode_prompt, user
from picollm_lite.data import encode_demos, encode_pairs, load_demos, load_preferences, load_suite
from picollm_lite.models import RewardModel, ValueModel, mixed_precision
from picollm_lite.paths import DEMOS, PREFERENCES, SUITE
from picollm_lite.stages import dpo, ppo, reward, sft

BATCH = 64
RATE = 1e-5  # so low that no side's answers change in length while it is timed
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # TRL 1.16 on transformers 5.23
}
# Before transformers 5.20 it has the second name.
CHECKPOINTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(TrainingArguments, name)
)
Run = Callable[[], object]


class Part(NamedTuple):
    """Two factories: each call makes a run over `rows` rows that starts from the same weights."""

    unit: str
    rows: int
    ours: Callable[[], Run]
    peer: Callable[[], Run]


def spend(model: nn.Module, records: Iterator, args: argparse.Namespace) -> None:
    with mixed_precision(model, bf16=args.bf16):
        for _ in records:
            pass


def trl_run(trainer) -> Run:
    trainer.remove_callback(PrinterCallback)
    return trainer.train


def trl_options(args: argparse.Namespace, folder: str) -> dict:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "optim": "adamw_torch_fused",
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "use_cpu": args.device == "cpu",
        "bf16": args.bf16,
        CHECKPOINTING: False,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def dpo_part(args: argparse.Namespace, folder: str) -> Part:
    from trl import DPOConfig, DPOTrainer

    policy, tokenizer = open_model(args)
    data = preferences(args)
    pairs = encode_pairs(data, tokenizer)

    def ours() -> Run:
        model = deepcopy(policy)
        return lambda: spend(
            model, dpo.train(model, pairs, tokenizer=tokenizer, batch_size=BATCH, learning_rate=RATE), args
        )

    def peer() -> Run:
        settings = DPOConfig(**trl_options(args, folder))
        return trl_run(
            DPOTrainer(
                deepcopy(policy), deepcopy(policy), args=settings, train_dataset=data, processing_class=tokenizer
            )
        )

    return Part("pairs", len(pairs), ours, peer)


def reward_part(args: argparse.Namespace, folder: str) -> Part:
    from trl import RewardConfig, RewardTrainer

    policy, tokenizer = open_model(args)
    data = preferences(args)
    pairs = encode_pairs(data, tokenizer)
    settings = {"off_prompt_weight": 0.0, "batch_size": BATCH, "learning_rate": RATE}

    def ours() -> Run:
        reward_model = RewardModel.from_policy(policy, tokenizer)
        return lambda: spend(reward_model, reward.train(reward_model, pairs, **settings), args)

    def peer() -> Run:
        classifier = RewardModel.from_policy(policy, tokenizer).model
        options = RewardConfig(**trl_options(args, folder))
        return trl_run(RewardTrainer(classifier, args=options, train_dataset=data, processing_class=tokenizer))

    return Part("pairs", len(pairs), ours, peer)


def sft_part(args: argparse.Namespace, folder: str) -> Part:
    from trl import SFTConfig, SFTTrainer

    policy, tokenizer = open_model(args)
    data = load_demos(DEMOS).select_columns("messages").shuffle(seed=0)
    data = data.select(range(min(args.rows, len(data))))
    demos = encode_demos(data, tokenizer)
    settings = {"pad_token_id": tokenizer.pad_token_id, "epochs": 1, "batch_size": BATCH, "learning_rate": RATE}

    def ours() -> Run:
        model = deepcopy(policy)
        return lambda: spend(model, sft.train(model, demos, **settings), args)

    def peer() -> Run:
        options = SFTConfig(**trl_options(args, folder), assistant_only_loss=True)
        return trl_run(SFTTrainer(deepcopy(policy), args=options, train_dataset=data, processing_class=tokenizer))

    return Part("rows", len(demos), ours, peer)


def ppo_part(args: argparse.Namespace, folder: str) -> Part:
    """64 answers a batch, 2 epochs of 2 minibatches. TRL's batch is one micro-batch, else it would step less often."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    policy, tokenizer = open_model(args)
    tokenizer.padding_side = "left"
    reward_model = RewardModel.from_policy(policy, tokenizer)
    questions = list(load_suite(SUITE)["prompt"])
    prompts = Dataset.from_dict({"input_ids": [encode_prompt(tokenizer, user(question)) for question in questions]})
    steps = max(1, args.rows // (4 * BATCH))
    settings = {"steps": steps, "batch_size": BATCH, "minibatch_size": BATCH // 2, "epochs": 2}
    settings |= {"learning_rate": RATE, "critic_learning_rate": RATE, "unfinished_score": None}

    def ours() -> Run:
        model, critic = deepcopy(policy), ValueModel.from_reward_model(reward_model)
        models = {"tokenizer": tokenizer, "critic": critic}
        return lambda: spend(model, ppo.train(model, reward_model.score, questions, **models, **settings), args)

    def peer() -> Run:
        options = PPOConfig(
            **trl_options(args, folder),
            total_episodes=steps * BATCH,
            num_ppo_epochs=2,
            num_mini_batches=2,
            response_length=MAX_NEW_TOKENS,
            stop_token="eos",
            temperature=1.0,
            num_sample_generations=0,
        )
        models = {"model": deepcopy(policy), "ref_model": deepcopy(policy), "value_model": deepcopy(reward_model.model)}
        return trl_run(
            PPOTrainer(
                options,
                tokenizer,
                **models,
                reward_model=deepcopy(reward_model.model),
                train_dataset=prompts,
                eval_dataset=prompts,
            )
        )

    return Part("episodes", steps * BATCH, ours, peer)


PARTS = {"dpo": dpo_part, "reward": reward_part, "sft": sft_part, "ppo": ppo_part}
# Each was found by timing our side without it or TRL's with it, on one thread, with the shipped model.
GAINS = {
    "dpo": "no padding and no logits of the prompt are computed; an LM head keeps its logits for the backward pass "
    "and scores them block by block, where TRL computes them twice. Not the reference: one pass for both in one epoch",
    "reward": "no padding is computed, and the last layer goes on at the last token alone",
    "sft": "no padding and no logits of the prompt are computed; an LM head that computes its logits once, as in dpo",
    "ppo": "sampling with an engine of its own; updates that compute no padding and no logits of the prompt: against "
    "padded groups of like length, a policy update takes 2/3 of the time and a critic update 4/5",
}


def preferences(args: argparse.Namespace) -> Dataset:
    data = load_preferences(args.pairs).select_columns(["prompt", "chosen", "rejected"])
    data = data.filter(lambda pair: pair["chosen"] != pair["rejected"]).shuffle(seed=0)
    return data.select(range(min(args.rows, len(data))))


@contextmanager
def counted() -> Iterator[Counter]:
    """Tokens that enter an embedding, padding included, with gradient (True) and without. Our sampling passes none."""
    counts = Counter()

    def count(module: nn.Module, inputs: tuple) -> None:
        if isinstance(module, nn.Embedding):
            counts[torch.is_grad_enabled()] += inputs[0].numel()

    hook = register_module_forward_pre_hook(count)
    try:
        yield counts
    finally:
        hook.remove()


def seconds(run: Run, device: str) -> float:
    gc.collect()
    with redirect_stdout(io.StringIO()):  # TRL's PPO announces itself
        finish(device)
        start = time.perf_counter()
        run()
        finish(device)
        return time.perf_counter() - start


def measure(name: str, args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        part = PARTS[name](args, folder)
        sides = {"ours": part.ours, "TRL": part.peer}
        tokens, rates = {}, {side: [] for side in sides}
        for side, make in sides.items():  # the warm-up
            with counted() as tokens[side]:
                seconds(make(), args.device)
        for number in range(args.rounds):
            for side in list(sides)[:: 1 if number % 2 == 0 else -1]:
                rates[side].append(part.rows / seconds(sides[side](), args.device))
    print(f"\n{name}: {part.rows} {part.unit} a run, {args.rounds} rounds, TRL {version('trl')}")
    for side in sides:
        print(f"{side:5} {part.unit + '/s':10}  {spread(rates[side])}")
    print(f"{'ratio':16}  {spread([a / b for a, b in zip(rates['ours'], rates['TRL'], strict=True)])}")
    passes = "; ".join(
        f"{side} {tokens[side][True] / part.rows:.0f} with gradient and {tokens[side][False] / part.rows:.0f} without"
        for side in sides
    )
    print(f"tokens through models for one of the {part.unit}, padding included: {passes}")
    if args.device == "cpu" and not args.model and not args.bf16:
        print(f"the gain: {GAINS[name]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add_model_options(parser)
    parser.add_argument("--pairs", type=Path, default=PREFERENCES, help="JSONL in TRL's conversational format")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--trl110", type=Path, help="folder with TRL 1.10, for ppo")
    parser.add_argument("--rows", type=int, default=1280, help="rows a run; a quarter as many episodes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bf16", action="store_true", help="products in bf16 on both sides, weights in fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        measure(args.worker, args)
        return
    torch.set_num_threads(args.threads)
    print(f"{machine(args.device)}; {model_name(args)}", flush=True)
    for name in args.parts:
        paths = os.environ.get("PYTHONPATH", "")
        if name == "ppo":
            if args.trl110 and not (args.trl110 / "trl" / "experimental" / "ppo").is_dir():
                parser.error(f"no TRL with PPO in {args.trl110}: see the top of this file")
            if args.trl110 is None:
                print("\nppo: skipped, as it needs the last TRL that has PPO: see --trl110 at the top of this file")
                continue
            paths = os.pathsep.join([str(args.trl110.resolve()), paths])
        env = {**os.environ, **QUIET, "OMP_NUM_THREADS": str(args.threads), "PYTHONPATH": paths}
        env.setdefault("CUDA_VISIBLE_DEVICES", "0")  # on several GPUs TRL would split each batch
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--worker", name], env=env, check=True)


if __name__ == "__main__":
    main()
