"""Hand-off to TRL: a folder with a model, data and our settings, on which TRL's command line trains.

    python -m picollm_lite.handoff dpo --model CHECKPOINT --data FILE --into FOLDER

The stages are sft (demonstrations), reward and dpo (preferences) and grpo (the prompts of either, or rows with a
`prompt` alone; it needs --reward CHECKPOINT too). TRL is not needed here, only where the folder is used; its README.md
says how, and where TRL differs.
"""

import argparse
import math
import shlex
import sys
import warnings
from pathlib import Path

import torch
import yaml
from transformers import PreTrainedTokenizerBase

from picollm_lite.chat import conversation, encode_conversation, encode_prompt
from picollm_lite.data import load_demos, load_preferences, prompt_key
from picollm_lite.files import read_rows, replaced_folder, write_jsonl
from picollm_lite.formats import SIDES, check_messages, demonstration, preference
from picollm_lite.models import RewardModel, load_policy, save
from picollm_lite.stages.group_policy import GRPOConfig
from picollm_lite.trl_settings import LAUNCHES, STAGES, readme, settings


def hand_off(
    stage: str,
    *,
    model: str | Path,
    data: str | Path,
    into: str | Path,
    reward_model: str | Path | None = None,
    **changes: object,
) -> Path:
    """Write `into`: model/, data/train.jsonl, config.yaml and README.md, for grpo reward_model/ too. Returns it.

    Beside them stand fsdp.yaml and deepspeed.yaml, which `accelerate launch` reads for a model too large for one GPU.
    `model` is a policy, of which the reward stage gets a copy with a new head; both models are checkpoints as
    `models.save` writes them. `changes` are settings by TRL's names, which go before ours. Every row is tokenized once:
    a warning counts those beyond `max_length`. Raises ValueError for another stage, data that do not fit it, a model of
    the wrong kind or a chat template that does not mark the assistant's words, FileNotFoundError for what is missing,
    FileExistsError for a target that is not empty. Then nothing is written.
    """
    into = Path(into)
    if stage not in STAGES:
        raise ValueError(f"expected a stage out of {', '.join(STAGES)}, got {stage!r}")
    if (stage == "grpo") != (reward_model is not None):
        raise ValueError(f"a reward model goes with grpo alone, and grpo needs one: got {reward_model} for {stage}")
    if into.is_file() or (into.is_dir() and any(into.iterdir())):
        raise FileExistsError(f"{into} is not empty: name a new folder")
    rows = _rows(stage, data)
    told = settings(stage) | changes
    policy, tokenizer = load_policy(model, device="cpu")
    _check_rows(stage, rows, tokenizer, limit=told.get("max_length", math.inf))
    if stage == "grpo":
        rows = _prompt_rows(rows)
    start = RewardModel.from_policy(policy, tokenizer).model if stage == "reward" else policy
    with replaced_folder(into) as aside:
        save(start, tokenizer, aside / "model", dtype=torch.float32)
        if reward_model is not None:
            judge = RewardModel.load(reward_model, device="cpu")
            save(judge.model, judge.tokenizer, aside / "reward_model", dtype=torch.float32)
        write_jsonl(aside / "data" / "train.jsonl", rows)
        for name, content in {"config.yaml": told, **LAUNCHES}.items():
            (aside / name).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        (aside / "README.md").write_text(readme(stage, len(rows)), encoding="utf-8")
    return into


def command(stage: str, folder: Path) -> str:
    """The shell command that trains on what `hand_off` wrote."""
    return f"cd {shlex.quote(str(folder))} && trl {stage} --config config.yaml"


def _rows(stage: str, path: str | Path) -> list[dict]:
    """The columns that the stage reads, in TRL's conversational form; TRL would take some others, such as `margin`."""
    if stage == "sft":
        return load_demos(path).select_columns(["messages"]).to_list()
    if stage == "grpo":
        return list(read_rows(path, _prompt))
    return load_preferences(path).select_columns(["prompt", *SIDES]).to_list()


def _prompt(row: object, where: str) -> dict:
    """The prompt alone: of a demonstration all but the last message."""
    if isinstance(row, list) or (isinstance(row, dict) and not row.keys().isdisjoint(("messages", "completion"))):
        prompt = demonstration(row, where)["messages"][:-1]
    elif isinstance(row, dict) and not row.keys().isdisjoint(SIDES):
        prompt = preference(row, where)["prompt"]
    elif isinstance(row, dict) and isinstance(row.get("prompt"), str | list):
        prompt = conversation(row["prompt"])
    else:
        raise ValueError(f"{where}: expected a demonstration, a preference, or an object with a `prompt`")
    check_messages(prompt, where)
    return {"prompt": prompt}


def _prompt_rows(rows: list[dict]) -> list[dict]:
    """Each prompt once, or as often as it takes to fill a batch: TRL leaves out what does not fill one."""
    unique = list({prompt_key(row["prompt"]): row for row in rows}.values())
    config = GRPOConfig()
    return unique * math.ceil(config.batch_size / config.group_size / len(unique))


def _check_rows(stage: str, rows: list[dict], tokenizer: PreTrainedTokenizerBase, *, limit: float) -> None:
    """Raise ValueError for a row that cannot be tokenized; warn of rows that TRL will not take as they are."""
    too_long = 0
    for number, row in enumerate(rows, start=1):
        try:
            too_long += _length(row, tokenizer) > limit
        except ValueError as error:
            raise ValueError(f"row {number} of the data: {error}") from None
    if too_long:
        what = "leave them out" if stage == "reward" else "cut them at the end"
        warnings.warn(
            f"{too_long} of {len(rows)} rows have more than {limit} tokens: TRL will {what}, "
            "unless you raise max_length in config.yaml",
            stacklevel=3,
        )


def _length(row: dict, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the row's longest conversation."""
    if "messages" in row:
        whole = [row["messages"]]
    elif "chosen" in row:
        whole = [row["prompt"] + row[side] for side in SIDES]
    else:
        return len(encode_prompt(tokenizer, row["prompt"]))
    return max(len(encode_conversation(tokenizer, messages).tokens) for messages in whole)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m picollm_lite.handoff", description=__doc__.split("\n\n")[0])
    parser.add_argument("stage", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--model", required=True, metavar="CHECKPOINT", help="the policy to start from")
    parser.add_argument("--data", required=True, metavar="FILE", help="demonstrations, preferences or prompts")
    parser.add_argument("--into", required=True, type=Path, metavar="FOLDER", help="a new folder")
    parser.add_argument("--reward", metavar="CHECKPOINT", help="for grpo: the reward model")
    options = parser.parse_args(arguments)
    try:
        folder = hand_off(
            options.stage, model=options.model, data=options.data, into=options.into, reward_model=options.reward
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{folder} is ready, its README.md says more. Train with:\n{command(options.stage, folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
