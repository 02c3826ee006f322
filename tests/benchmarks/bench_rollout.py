"""Tokens sampled a second: `rollout` against transformers' `generate`, interleaved in one process.

    python tests/benchmarks/bench_rollout.py [--checkpoint DIR] [--prompts 128] [--max-new-tokens 56] [--rounds 15]
    python tests/benchmarks/bench_rollout.py --device cuda [--model 135M]

All sample at temperature 1 without top-k or top-p from the same prompts, in fp32, on a CPU with 2 threads, after a
warm-up; a token counts when it lies in the response, its end token included. `rollout` also returns log-probs, which
`generate` here does not. On a GPU `generate` runs a second time with a static cache, for which it compiles the model.
Where the gain on a CPU comes from: fused projections and norms, a cache written in place, finished rows taken out of
the batch, and one uniform number a row instead of one exponential a vocabulary entry. On a GPU: a step that is one CUDA
graph, the draw included. A random Llama (`--model`) ends next to no answer, so that nothing comes from finished rows.
What was measured is in speed.md.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from llamas import add_model_options, model_name, open_model
from reporting import machine, spread
from torch import Tensor

from picollm_lite.chat import encode_prompt, user
from picollm_lite.data import load_suite
from picollm_lite.kernels.rollout import rollout
from picollm_lite.paths import SUITE

STATIC = {"cache_implementation": "static"}  # with it, `generate` compiles the model of its own accord, on a GPU only


def generate_tokens(model, ids: Tensor, mask: Tensor, options: dict, seed: int) -> int:
    torch.manual_seed(seed)
    with torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0, **options)
    response = out[:, ids.shape[1] :]
    ended = (response == options["eos_token_id"]).int().cumsum(1)
    return int((ended - (response == options["eos_token_id"]).int() == 0).sum())


def rollout_tokens(model, prompts: list[list[int]], options: dict, seed: int) -> int:
    return int(rollout(model, prompts, seed=seed, **options).response_mask.sum())


def rate(sample: Callable[[int], int], seed: int) -> float:
    start = time.perf_counter()
    tokens = sample(seed)
    return tokens / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add_model_options(parser)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--max-new-tokens", type=int, default=56)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--static", action="store_true", help="the static cache on a CPU too, where nothing compiles")
    args = parser.parse_args()
    torch.set_num_threads(2)
    model, tokenizer = open_model(args)
    questions = list(load_suite(SUITE)["prompt"])
    prompts = [encode_prompt(tokenizer, user(questions[i % len(questions)])) for i in range(args.prompts)]
    options = {
        "max_new_tokens": args.max_new_tokens,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(args.device)
    generate = partial(generate_tokens, model, padded["input_ids"], padded["attention_mask"])
    sides = {"rollout": partial(rollout_tokens, model, prompts, options), "generate": partial(generate, options)}
    if args.static or args.device == "cuda":
        sides["static"] = partial(generate, options | STATIC)
    for seed in range(2):
        for sample in sides.values():
            sample(seed)
    rates = {side: [] for side in sides}
    for seed in range(args.rounds):
        for side, sample in sides.items():
            rates[side].append(rate(sample, seed))
    print(f"{machine(args.device)}; {args.prompts} prompts, {args.rounds} rounds, {model_name(args)}")
    for side in sides:
        print(f"{side:9} tokens/s  {spread(rates[side])}")
    for side in list(sides)[1:]:
        ratios = [ours / theirs for ours, theirs in zip(rates["rollout"], rates[side], strict=True)]
        print(f"{'rollout / ' + side:18}  {spread(ratios)}")


if __name__ == "__main__":
    main()
