"""A tokenizer and models so small that a test builds its own."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from picollm_lite.chat import ASSISTANT_END, BOS, CHAT_TEMPLATE, PAD, SPECIAL_TOKENS

TEXTS = ["What is a token?", "A token is a unit of text.", "Be brief.", "Why?", "It splits words.", "Thanks."]


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


@pytest.fixture
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
