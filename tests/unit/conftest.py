"""A tokenizer, models and pairs so small that a test builds its own."""

from copy import deepcopy

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from picollm_lite.chat import ASSISTANT_END, BOS, CHAT_TEMPLATE, PAD, SPECIAL_TOKENS, encode_conversation, user
from picollm_lite.data import Pair
from picollm_lite.stages import sft

TEXTS = ["What is a token?", "A token is a unit of text.", "Be brief.", "Why?", "It splits words.", "Thanks."]
CHOICES = [  # a question, the better answer, the worse one
    ("What is a token?", "A token is a unit of text.", "Thanks."),
    ("Why?", "It splits words.", "Why? Be brief. Why? Be brief."),
    ("Be brief. What is a token?", "A unit.", "It is a token."),
    ("What is a unit of text?", "A token.", "It splits words. Thanks."),
    ("Why is it a token? Be brief.", "Thanks. It is a token. A token is a unit.", "Why?"),
]


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE like the course's: each word of TEXTS is one token, all else is bytes. Copy it to change it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=ASSISTANT_END,
        pad_token=PAD,
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in (BOS, ASSISTANT_END, PAD)],
        chat_template=CHAT_TEMPLATE,
        model_max_length=96,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def tiny_model(tokenizer):
    """A random Llama over that tokenizer's tokens; the same seed gives the same weights."""

    def make(*, seed=0, **config):
        torch.manual_seed(seed)
        settings = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        settings |= {"num_key_value_heads": 1, "max_position_embeddings": 96, "tie_word_embeddings": True}
        settings |= {"initializer_range": 0.2, "vocab_size": len(tokenizer), **config}
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        return LlamaForCausalLM(LlamaConfig(**settings, **ids)).eval()

    return make


@pytest.fixture(scope="session")
def encode(tokenizer):
    """A question and its answer as tokens."""
    return lambda question, answer: encode_conversation(
        tokenizer, [*user(question), {"role": "assistant", "content": answer}]
    )


@pytest.fixture(scope="session")
def pairs(encode):
    """CHOICES as tokens."""
    return [Pair(encode(question, better), encode(question, worse)) for question, better, worse in CHOICES]


@pytest.fixture(scope="session")
def taught(tokenizer, tiny_model, pairs):
    """A tiny policy after a little SFT: most of its answers end, at different lengths. Each call gives a new copy."""
    model, demos = tiny_model(), [pair.chosen for pair in pairs]
    for _ in sft.train(model, demos, pad_token_id=tokenizer.pad_token_id, epochs=12, batch_size=8, learning_rate=0.03):
        pass
    return lambda: deepcopy(model)


@pytest.fixture
def applied_norms():
    """The norm of the gradient that each optimizer step was given: after clipping."""
    norms = []

    def note(optimizer, args, kwargs):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))

    hook = register_optimizer_step_pre_hook(note)
    yield norms
    hook.remove()
