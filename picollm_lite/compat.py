"""What a model from elsewhere may lack: a chat format, a trunk that can be called without the head, its buffers."""

from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from picollm_lite.chat import ASSISTANT_END, BOS, CHAT_TEMPLATE, PAD, SPECIAL_TOKENS

CHAT_TOKENS = SPECIAL_TOKENS[:-1]  # of picoLLM; the pad token is ours


def add_chat_format(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> None:
    """Give a base model picoLLM's chat format, in place: tokens, template, and rows of embedding for new tokens.

    The model has yet to learn what the tokens mean: train it with SFT. Raises ValueError if there is a chat template.
    """
    if tokenizer.chat_template is not None:
        raise ValueError("the tokenizer has a chat template already, which its model was trained in")
    more = [token for token in CHAT_TOKENS if token not in (BOS, ASSISTANT_END)]
    tokenizer.add_special_tokens(
        {"bos_token": BOS, "eos_token": ASSISTANT_END, "pad_token": PAD, "additional_special_tokens": more}
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    with torch.random.fork_rng():  # new rows are drawn from the distribution of the old ones
        torch.manual_seed(seed)
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer))
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id


def complete_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the chat template of a tokenizer that has picoLLM's chat tokens but none, as picoLLM exports it."""
    if tokenizer.chat_template is None and set(CHAT_TOKENS) <= set(tokenizer.get_vocab()):
        tokenizer.chat_template = CHAT_TEMPLATE


@torch.no_grad()
def complete_buffers(model: PreTrainedModel) -> None:
    """Compute the buffers that a checkpoint leaves out, such as a table of rotations, for a model with its own code.

    transformers builds a model without memory and leaves such a buffer unset unless the model's `_init_weights` fills
    it, which code written for transformers 4 does not do: the model would load in silence and be wrong.
    """
    if not type(model).__module__.startswith("transformers_modules"):
        return
    buffers = dict(model.named_non_persistent_buffers())
    if buffers:
        built = type(model)(model.config)
        for name, buffer in buffers.items():
            buffer.copy_(built.get_buffer(name))


def has_trunk(model: PreTrainedModel) -> bool:
    """Whether `model.base_model` is a model of its own, which gives hidden states."""
    return isinstance(model.base_model, PreTrainedModel) and model.base_model is not model


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """What gives the last hidden states; a model without a trunk of its own loses its head (`HeadlessTrunk`)."""
    return model.base_model if has_trunk(model) else HeadlessTrunk(model)


class HeadlessTrunk(nn.Module):
    """The hidden states that a language model's head would read, for a model without a trunk of its own.

    Changes the model it is given: the head is replaced by what keeps its input and computes nothing.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        model.set_output_embeddings(_KeepInput())

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        self.model(input_ids=input_ids)
        return SimpleNamespace(last_hidden_state=self.model.get_output_embeddings().taken())


class _KeepInput(nn.Module):
    """In the place of a head: empty logits."""

    kept: Tensor | None = None

    def forward(self, states: Tensor) -> Tensor:
        self.kept = states
        return states[..., :0]

    def taken(self) -> Tensor:
        states, self.kept = self.kept, None  # a module that holds part of a graph cannot be copied
        return states


def has_classifier(config: PretrainedConfig) -> bool:
    """Whether transformers has a sequence classifier for this architecture."""
    return type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


def hidden_size(model: PreTrainedModel) -> int:
    """Numbers in a last hidden state: what the head reads, be it of a language model or `score`."""
    head = model.score if hasattr(model, "score") else model.get_output_embeddings()
    return head.weight.shape[1]


def with_score(model: PreTrainedModel) -> PreTrainedModel:
    """The language model as one that gives a score, in place: no head, and `score`, a linear map to one number."""
    d = hidden_size(model)
    trunk_of(model)
    model.score = nn.Linear(d, 1, bias=False, device=model.device, dtype=model.dtype)
    return model


def open_scorer(path: str | Path, *, use_safetensors: bool, **options) -> PreTrainedModel:
    """A classifier from a folder or the hub, or, where there is none for the architecture, what `with_score` made.

    Raises ValueError when a folder of the latter kind holds no score.
    """
    config = AutoConfig.from_pretrained(path, trust_remote_code=options["trust_remote_code"])
    if has_classifier(config):
        return AutoModelForSequenceClassification.from_pretrained(path, use_safetensors=use_safetensors, **options)
    weights = load_file(Path(path) / "model.safetensors")
    if "score.weight" not in weights:
        raise ValueError(f"{path} holds no reward model: its weights have no `score`; make one with from_policy")
    model = with_score(AutoModelForCausalLM.from_config(config, **options))
    model.load_state_dict(weights)
    return model
