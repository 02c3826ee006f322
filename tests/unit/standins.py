"""Checkpoints as others make them, tiny and random, each with a tokenizer of its own; `write[name](folder)` makes one.

qwen2   a ChatML template without a generation block, as on the hub
llama   its own template; the end token is the padding; generation also ends at a second token
gpt2    learned positions and a template in plain words
bare    a GPT-2 without a chat template
picollm a model that comes with its code, as picoLLM exports it: no KV cache, no trunk, no template; our chat tokens
"""

import json

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from picollm_lite.chat import ASSISTANT_END, BOS, SPECIAL_TOKENS

TEXTS = ["What is a token?", "A token is a unit of text.", "Why?", "It splits words.", "Be brief.", "Thanks."]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token }}{% else %}{{ '[INST]' + message['content'] + '[/INST]' }}{% endif %}"
    "{% endfor %}"
)
WORDS = (
    "{% for message in messages %}{{ message['role'] + ':\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"num_key_value_heads": 1, "max_position_embeddings": 96, "initializer_range": 0.2}

MODELING = """
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_tiny import TinyConfig


class TinyForCausalLM(PreTrainedModel):
    config_class = TinyConfig
    base_model_prefix = "transformer"  # a dict of parts, which cannot be called
    main_input_name = "input_ids"

    def __init__(self, config):
        super().__init__(config)
        d, V = config.n_embd, config.vocab_size + 5  # rows that no token has
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(V, d), "mix": nn.Linear(d, d, bias=False)})
        self.lm_head = nn.Linear(d, V, bias=False)
        angle = torch.arange(config.sequence_len)[:, None] / 10.0 ** torch.arange(d)
        self.register_buffer("places", angle.cos(), persistent=False)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, (nn.Embedding, nn.Linear)):
            nn.init.normal_(module.weight, std=0.5)

    def get_input_embeddings(self):
        return self.transformer["wte"]

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, head):
        self.lm_head = head

    def forward(self, input_ids=None, attention_mask=None, **_):
        L = input_ids.shape[1]
        x = self.transformer["wte"](input_ids) + self.places[:L]
        seen = x.cumsum(1) / torch.arange(1, L + 1)[:, None]  # each position sees the mean of those before it
        x = F.rms_norm(x + torch.tanh(self.transformer["mix"](seen)), x.shape[-1:])
        logits = self.lm_head(x)[..., : self.config.vocab_size].float()
        return CausalLMOutputWithPast(logits=15.0 * torch.tanh(logits / 15.0))
"""
CONFIGURATION = """
from transformers import PretrainedConfig


class TinyConfig(PretrainedConfig):
    model_type = "tiny_with_code"

    def __init__(self, vocab_size=300, n_embd=16, sequence_len=96, **kwargs):
        self.vocab_size, self.n_embd, self.sequence_len = vocab_size, n_embd, sequence_len
        super().__init__(**kwargs)
"""


def tokenizer_of(special_tokens, **settings):
    """Byte-level BPE trained on TEXTS."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(special_tokens), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False, **settings)


def saved(folder, kind, config, tokenizer, **generation):
    torch.manual_seed(0)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    model = kind(config)
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def qwen2(folder):
    tokens = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": ["<|im_start|>"]}
    tokenizer = tokenizer_of(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], chat_template=CHATML, **tokens)
    config = Qwen2Config(vocab_size=len(tokenizer) + 7, tie_word_embeddings=True, **SMALL)
    return saved(folder, Qwen2ForCausalLM, config, tokenizer)


def llama(folder):
    special = ["<s>", "</s>", "<stop>", "[INST]", "[/INST]"]
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "additional_special_tokens": special[2:]}
    tokenizer = tokenizer_of(special, chat_template=INST, **tokens)
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=False, **SMALL)
    return saved(folder, LlamaForCausalLM, config, tokenizer, eos_token_id=[1, 2])


def _gpt2(folder, **settings):
    tokenizer = tokenizer_of(["<|endoftext|>"], bos_token="<|endoftext|>", eos_token="<|endoftext|>", **settings)
    shape = {"n_positions": 96, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.2}
    return saved(folder, GPT2LMHeadModel, GPT2Config(vocab_size=len(tokenizer), **shape), tokenizer)


def gpt2(folder):
    return _gpt2(folder, chat_template=WORDS)


def bare(folder):
    return _gpt2(folder)


def picollm(folder):
    """Config, code, weights and tokenizer as files: nothing of it is ever in a module of ours."""
    tokens = {"bos_token": BOS, "eos_token": ASSISTANT_END, "pad_token": ASSISTANT_END}
    chat = [token for token in SPECIAL_TOKENS[:5] if token not in tokens.values()]
    tokenizer = tokenizer_of(SPECIAL_TOKENS[:5], additional_special_tokens=chat, **tokens)
    tokenizer.save_pretrained(folder)
    (folder / "modeling_tiny.py").write_text(MODELING)
    (folder / "configuration_tiny.py").write_text(CONFIGURATION)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    code = {"AutoConfig": "configuration_tiny.TinyConfig", "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"}
    V, d = len(tokenizer), 16
    config = {"model_type": "tiny_with_code", "architectures": ["TinyForCausalLM"], "auto_map": code, "vocab_size": V}
    config |= {"n_embd": d, "sequence_len": 96, "use_cache": False, "tie_word_embeddings": False, **ids}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(ids))
    numbers = torch.Generator().manual_seed(0)
    shapes = {"transformer.wte.weight": (V + 5, d), "transformer.mix.weight": (d, d), "lm_head.weight": (V + 5, d)}
    weights = {name: 0.5 * torch.randn(shape, generator=numbers) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


write = {make.__name__: make for make in (qwen2, llama, gpt2, bare, picollm)}
