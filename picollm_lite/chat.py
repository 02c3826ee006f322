"""picoLLM's chat format: special tokens, template, prompt and response spans, and answers as text."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from picollm_lite.kernels.rollout import Rollout, greedy_rollout, rollout

BOS = "<|bos|>"
USER_START, USER_END = "<|user_start|>", "<|user_end|>"
ASSISTANT_START, ASSISTANT_END = "<|assistant_start|>", "<|assistant_end|>"
PAD = "<|pad|>"  # ours: a pad that is no other token, so that the end token is learned like any other
SPECIAL_TOKENS = (BOS, USER_START, USER_END, ASSISTANT_START, ASSISTANT_END, PAD)
SYSTEM_PROMPT = "You are a compact teaching assistant for an LLM course."
MAX_NEW_TOKENS = 56  # room for the longest perfect answer of the small world

# A system message has no token of its own: like picoLLM, it opens the first user turn.
# The generation block lets transformers return the mask of what the assistant wrote (its end token included).
CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- set ns = namespace(system='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}"
    "{%- set ns.system = ns.system + message['content'] + '\n\n' -%}"
    "{%- elif message['role'] == 'user' -%}"
    "{{- '<|user_start|>' + ns.system + message['content'] + '<|user_end|>' -}}"
    "{%- set ns.system = '' -%}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- '<|assistant_start|>' -}}"
    "{%- generation -%}{{- message['content'] + '<|assistant_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- raise_exception('unknown role: ' + message['role']) -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if ns.system -%}{{- raise_exception('a system message needs a user message after it') -}}{%- endif -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant_start|>' -}}{%- endif -%}"
)
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Encoded(NamedTuple):
    """A conversation as token ids; `response_mask` is True on what the assistant wrote, its end token included."""

    tokens: list[int]
    response_mask: list[bool]


class Responses(NamedTuple):
    """What a model said: tokens with their log-probs, and the same as text without special tokens."""

    rollout: Rollout
    texts: list[str]


def user(text: str) -> list[dict[str, str]]:
    """A conversation that holds one user message."""
    return [{"role": "user", "content": text}]


def conversation(prompt: str | Sequence[dict]) -> list[dict]:
    """A question as the conversation that it opens; a conversation as it is."""
    return user(prompt) if isinstance(prompt, str) else list(prompt)


def readable(messages: Sequence[dict]) -> str:
    """A conversation for people: a lone message is its content, several are told apart by their roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict]) -> list[int]:
    """Token ids of the conversation so far, ready for the assistant to answer.

    Raises ValueError when the tokenizer has no chat template, or a message holds the text of a control token.
    """
    return _template(tokenizer, messages, add_generation_prompt=True)["input_ids"]


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict]) -> Encoded:
    """Token ids and response mask of a whole conversation.

    A chat template with a generation block says itself what the assistant wrote. Of any other, as most on the hub are,
    it is what each assistant message adds to the prompt before it, up to the last control token.
    Raises ValueError as `encode_prompt` does, for a conversation without an assistant message, and for a chat template
    from which neither can be read.
    """
    if not any(message.get("role") == "assistant" for message in messages):
        raise ValueError("the conversation has no assistant message: there is nothing to learn from")
    if tokenizer.chat_template is not None and _GENERATION.search(tokenizer.get_chat_template()):
        out = _template(tokenizer, messages, return_assistant_tokens_mask=True)
        return Encoded(out["input_ids"], [bool(m) for m in out["assistant_masks"]])
    return _mark_additions(tokenizer, messages)


def answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str | Sequence[dict]],
    *,
    temperature: float = 1.0,
    seed: int | None = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[str]:
    """The model's answer to each question or conversation as text.

    Temperature 0 takes the likeliest token at every step.
    """
    return respond(model, tokenizer, questions, temperature=temperature, seed=seed, max_new_tokens=max_new_tokens).texts


def respond(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str | Sequence[dict]],
    *,
    temperature: float = 1.0,
    seed: int | None = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
    first_row: int = 0,
) -> Responses:
    """As `answer`, with the tokens and log-probs behind the texts; `first_row` as in `rollout`."""
    prompts = [encode_prompt(tokenizer, conversation(question)) for question in questions]
    sizes = {"max_new_tokens": max_new_tokens, "eos_token_id": end_ids(model, tokenizer)}
    sizes["pad_token_id"] = padding_id(tokenizer)
    if temperature == 0:
        sample = greedy_rollout(model, prompts, **sizes)
    else:
        sample = rollout(model, prompts, temperature=temperature, seed=seed, first_row=first_row, **sizes)
    mask = sample.response_mask.cpu()
    tokens = sample.tokens[:, -mask.shape[1] :].cpu()
    texts = [tokenizer.decode(row[kept], skip_special_tokens=True) for row, kept in zip(tokens, mask, strict=True)]
    return Responses(sample, texts)


def without_control_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with each name of a control token written apart: a model may spell one out of other tokens."""
    for token in _control_tokens(tokenizer).values():
        text = text.replace(token, _apart(token))
    return text


def end_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: the tokenizer's end token, the generation config's, and the one in the chat template.

    The last is what training teaches, and a base model's tokenizer may name another. Raises ValueError when there are
    none.
    """
    more = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    more = [more] if isinstance(more, int) else more or []
    ends = {tokenizer.eos_token_id, *more, _turn_end(tokenizer)} - {None}
    if not ends:
        raise ValueError("neither tokenizer nor model has an end token: set tokenizer.eos_token to what ends an answer")
    return sorted(ends)


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What to pad with: the pad token, or the end token where there is none, or else 0 (masks say what counts)."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token_id for token_id in ids if token_id is not None)


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The control token that ends the assistant's turn in the chat template, if one can be told."""
    try:
        turn = encode_conversation(tokenizer, [*user("?"), {"role": "assistant", "content": "!"}])
    except ValueError:  # no template, or one that nobody can train with
        return None
    control, last = _control_tokens(tokenizer), max(place for place, counts in enumerate(turn.response_mask) if counts)
    return turn.tokens[last] if turn.tokens[last] in control else None


def _mark_additions(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict]) -> Encoded:
    tokens = _template(tokenizer, messages)["input_ids"]
    mask = [False] * len(tokens)
    control = _control_tokens(tokenizer)
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = encode_prompt(tokenizer, messages[:number])
        so_far = _template(tokenizer, messages[: number + 1])["input_ids"]
        ends = [place for place in range(len(prompt), len(so_far)) if so_far[place] in control]
        if so_far[: len(prompt)] != prompt or tokens[: len(so_far)] != so_far or not ends:
            raise ValueError(
                f"the chat template does not show what the assistant wrote in message {number + 1}: "
                + ("no control token ends it" if not ends else "the conversation does not begin as its prompt does")
                + "; add a {% generation %} block to the template, or see picollm_lite.compat.add_chat_format"
            )
        stop = ends[-1] + 1  # what the template writes behind it, often a line break, is never sampled
        mask[len(prompt) : stop] = [True] * (stop - len(prompt))
    return Encoded(tokens, mask)


def _template(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict], **options) -> dict:
    if tokenizer.chat_template is None:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template: "
            "call picollm_lite.compat.add_chat_format(model, tokenizer) and train with SFT, or set "
            "tokenizer.chat_template to the format that the model was trained in"
        )
    _refuse_control_tokens(tokenizer, messages)
    return tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=True, **options)


def _apart(token: str) -> str:
    return f"{token[0]} {token[1:]}"


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}


def _refuse_control_tokens(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict]) -> None:
    # Rendered first and tokenized after, a text that spells a control token would become one and could forge a turn.
    control = _control_tokens(tokenizer).values()
    for number, message in enumerate(messages, start=1):
        held = next((token for token in control if token in str(message.get("content"))), None)
        if held:
            raise ValueError(
                f"message {number} ({message.get('role')}) holds the control token {held}, which only the chat "
                f"template may write: take it out, or write it apart, such as {_apart(held)}"
            )
