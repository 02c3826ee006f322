"""The model of a benchmark: a checkpoint, or a randomly initialized Llama where size matters and skill does not."""

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from picollm_lite.models import load_policy
from picollm_lite.paths import CHECKPOINTS

SHIPPED = CHECKPOINTS / "sft"
CONTEXT = 2048  # tokens
WORDS = ("model", "token", "reward", "policy")  # behind a space each is one token of the course's tokenizer


class Shape(NamedTuple):
    """What sets the size of a Llama whose embeddings are its head too."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    intermediate: int
    vocabulary: int


SHAPES = {
    "1M": Shape(128, 4, 4, 2, 384, 2048),  # the course's own
    "30M": Shape(384, 8, 6, 2, 1024, 49152),
    "135M": Shape(576, 30, 9, 3, 1536, 49152),  # SmolLM2-135M
    "360M": Shape(960, 32, 15, 5, 2560, 49152),  # SmolLM2-360M
}


def random_llama(shape: Shape, tokenizer: PreTrainedTokenizerBase, device: str = "cpu") -> LlamaForCausalLM:
    """In fp32 and eval mode; the same weights every time. The tokenizer may know fewer tokens than the vocabulary."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocabulary,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")},
    )
    with torch.device(device):
        return LlamaForCausalLM(config).eval()


def shipped_tokenizer() -> PreTrainedTokenizerBase:
    """The course's."""
    return AutoTokenizer.from_pretrained(SHIPPED)


def default_device() -> str:
    """Where a benchmark runs unless told otherwise."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that `open_model` reads."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default_device())
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--checkpoint", type=Path, default=SHIPPED)
    which.add_argument("--model", choices=SHAPES, help="a random Llama of this size, with the course's tokenizer")


def open_model(args: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that the options name, in fp32, with its tokenizer."""
    if args.model:
        tokenizer = shipped_tokenizer()
        return random_llama(SHAPES[args.model], tokenizer, args.device), tokenizer
    return load_policy(args.checkpoint, device=args.device, dtype=torch.float32)


def model_name(args: argparse.Namespace) -> str:
    """The same in words."""
    return f"a random Llama of {args.model}" if args.model else args.checkpoint.name
