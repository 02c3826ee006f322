"""Rows of demonstrations and preferences as other tools write them, made into messages. Plain Python."""

import re
from collections.abc import Sequence

ROLES = ("system", "user", "assistant")
SIDES = ("chosen", "rejected")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
# A turn opens after a blank line. Names that other transcripts use stand here to be refused, not taken for text.
TURN = re.compile(r"(?:\A\s*|\n[ \t]*\n)((?i:human|assistant)|User|System|Bot|GPT|AI):")
OPENING = re.compile(r"\s*Human:")


def demonstration(row: object, where: str) -> dict:
    """One demonstration as an object with a list of `messages`; other columns stay as they are.

    Reads TRL's `{"messages": [...]}` and `{"prompt": [...], "completion": [...]}`, and picoLLM's bare list of messages.
    Raises ValueError that begins with `where`.
    """
    if isinstance(row, list):
        row = {"messages": row}
    elif isinstance(row, dict) and row.get("messages") is None:
        prompt, completion = row.get("prompt"), row.get("completion")
        rest = {key: value for key, value in row.items() if key not in ("prompt", "completion")}
        if isinstance(prompt, list) and isinstance(completion, list):
            row = {**rest, "messages": prompt + completion}
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        raise ValueError(
            f"{where}: expected a list of messages, or an object with such a list as `messages`, "
            "or with two, `prompt` and `completion`"
        )
    check_messages(row["messages"], where)
    if row["messages"][-1]["role"] != "assistant":
        raise ValueError(
            f"{where}: the last message must be the assistant's answer, got {row['messages'][-1]['role']!r}"
        )
    return row


def preference(row: object, where: str) -> dict:
    """One preference with `prompt`, `chosen` and `rejected` as lists of messages; other columns stay as they are.

    Reads what TRL calls conversational (with `prompt`, or two conversations that begin alike) and standard (three
    texts, kept to the letter), UltraFeedback's two conversations beside a text as `prompt`, and HH-RLHF's transcripts,
    whole or with their beginning as `prompt`. Of two whole conversations the prompt is what both begin with, but never
    a last message. Raises ValueError that begins with `where`.
    """
    prompt, chosen, rejected = _columns(row, where)
    if isinstance(chosen, str):
        prompt, chosen, rejected = _conversations(prompt, chosen, rejected, where)
    question = prompt
    if not isinstance(prompt, list):
        prompt, chosen, rejected = _parted(chosen, rejected)
    for side, messages in zip(SIDES, (chosen, rejected), strict=True):
        check_messages([*prompt, *messages], f"{where}, {side}")
        if not messages or messages[-1]["role"] != "assistant":
            raise ValueError(f"{where}: `{side}` must end with the assistant's answer to the prompt")
    if not prompt:
        raise ValueError(f"{where}: no prompt: give one, or begin `chosen` and `rejected` with the same message")
    if isinstance(question, str):
        first = next((message["content"] for message in prompt if message["role"] == "user"), "")
        if question.strip() != first.strip():
            raise ValueError(
                f"{where}: `prompt` and the user's first message, which both sides share, must be the same text, "
                f"got {_excerpt(question)} and {_excerpt(first)}"
            )
    return row | {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def check_messages(messages: Sequence[object], where: str) -> None:
    """Raise ValueError at `where` unless every message has a known role and a non-empty text."""
    if not messages:
        raise ValueError(f"{where}: the conversation is empty")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise ValueError(f"{where}: message {number} must be an object with `role` and `content`")
        if message["role"] not in ROLES:
            raise ValueError(
                f"{where}: message {number} has the unknown role {message['role']!r}: use {', '.join(ROLES)}"
            )
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise ValueError(f"{where}: message {number} ({message['role']}) is empty: give it text or take it out")


def _columns(row: object, where: str) -> tuple[str | list | None, str | list, str | list]:
    """Prompt, chosen and rejected, of types that go together: the sides alike, no list beside texts."""
    if not isinstance(row, dict):
        hint = ""
        if isinstance(row, list):
            whole = any(isinstance(item, dict) and not item.keys().isdisjoint(SIDES) for item in row)
            hint = ": one object a line, not one array" if whole else ": demonstrations are read with load_demos"
        raise ValueError(f"{where}: expected an object with `chosen` and `rejected`, got {_kind(row)}{hint}")
    missing = [f"`{side}`" for side in SIDES if row.get(side) is None]
    if missing:
        alone = "messages" in row and len(missing) == 2
        hint = ": demonstrations are read with load_demos" if alone else ""
        raise ValueError(f"{where}: a preference needs {' and '.join(missing)}{hint}")
    prompt, chosen, rejected = (row.get(key) for key in ("prompt", *SIDES))
    for kind in (str, list):
        if isinstance(chosen, kind) and isinstance(rejected, kind) and isinstance(prompt, kind | str | None):
            return prompt, chosen, rejected
    raise ValueError(
        f"{where}: expected texts or lists of messages, all alike, got {_kind(prompt)} as `prompt`, "
        f"{_kind(chosen)} as `chosen` and {_kind(rejected)} as `rejected`"
    )


def _conversations(prompt: str | None, chosen: str, rejected: str, where: str) -> tuple[str | None, list, list]:
    """Texts as whole conversations; the prompt is None where it has become a part of them."""
    sides = [chosen, rejected]
    if prompt is not None and not any(map(OPENING.match, sides)):
        if not OPENING.match(prompt):
            question = {"role": "user", "content": prompt}
            return prompt, *([question, {"role": "assistant", "content": side}] for side in sides)
        prompt, sides = None, [prompt + side for side in sides]
    return prompt, *(_transcript(text, f"{where}, {side}") for side, text in zip(SIDES, sides, strict=True))


def _transcript(text: str, where: str) -> list[dict]:
    """Messages of "Human: ... Assistant: ...", a blank line before each turn; white space around a turn is no text."""
    before, *turns = TURN.split(text.replace("\r\n", "\n"))
    if before or not turns:
        raise ValueError(
            f"{where}: expected an HH-RLHF transcript, which begins with 'Human:', got {_excerpt(text)}: "
            "where these are plain answers, add their question as `prompt`"
        )
    odd = next((name for name in turns[::2] if name not in SPEAKERS), None)
    if odd:
        raise ValueError(
            f"{where}: a turn opens with 'Human:' or 'Assistant:' after a blank line, got '{odd}:': "
            "rename it or, where it is text, take out the blank line"
        )
    return [
        {"role": SPEAKERS[name], "content": said.strip()} for name, said in zip(turns[::2], turns[1::2], strict=True)
    ]


def _parted(chosen: list, rejected: list) -> tuple[list, list, list]:
    """Two conversations as the messages that both begin with, and the rest of each, which keeps its last message."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _kind(value: object) -> str:
    kinds = {type(None): "nothing", str: "a text", list: "a list", dict: "a single message (put it in a list)"}
    return kinds.get(type(value), type(value).__name__)


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
