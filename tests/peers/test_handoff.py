"""TRL runs on what `hand_off` writes: its own scripts, parser and trainers, two steps each, and once its command line.

Each script gets config.yaml as it is, trains, and saves; from the same files its tokens and masks are ours.
"""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import trl
from datasets import Dataset

from picollm_lite.chat import encode_prompt, user
from picollm_lite.data import collate, encode_demos, encode_pairs, load_demos, load_preferences
from picollm_lite.files import write_jsonl
from picollm_lite.handoff import command, hand_off
from picollm_lite.models import RewardModel, load_policy, save
from picollm_lite.trl_settings import settings

# Inside TRL 1.16: transformers 5.23 has new names for these settings, which older ones do not know.
pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning")

TRAINERS = {"sft": "SFTTrainer", "reward": "RewardTrainer", "dpo": "DPOTrainer", "grpo": "GRPOTrainer"}
SHORT = ["--max_steps", "2", "--use_cpu", "--disable_tqdm", "true"]
FEW_ANSWERS = ["--per_device_train_batch_size", "8", "--steps_per_generation", "1", "--max_completion_length", "4"]


def said(text):
    return [{"role": "assistant", "content": text}]


SYSTEM = [{"role": "system", "content": "Be brief."}]
DEMOS = [
    {"messages": user("What is a token?") + said("A token is a unit of text.")},
    {"messages": SYSTEM + user("Why?") + said("It splits words.") + user("What is text?") + said("A unit.")},
]
PAIRS = [
    {"prompt": user("What is a token?"), "chosen": said("A token is a unit of text."), "rejected": said("Thanks.")},
    {"prompt": SYSTEM + user("Why?"), "chosen": said("It splits words."), "rejected": said("Why? It is a unit.")},
    {"prompt": user("Why?") + said("Thanks.") + user("Be brief."), "chosen": said("A unit."), "rejected": said("Why?")},
]


@pytest.fixture
def folder(tiny_model, tokenizer, tmp_path, monkeypatch):
    """The hand-off of a stage, where TRL is then started; what TRL caches goes with the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def make(stage):
        save(tiny_model(), tokenizer, tmp_path / "sft")
        save(RewardModel.from_policy(tiny_model(seed=1), tokenizer).model, tokenizer, tmp_path / "reward")
        data = write_jsonl(tmp_path / "given.jsonl", DEMOS if stage == "sft" else PAIRS)
        other = {"reward_model": tmp_path / "reward"} if stage == "grpo" else {}
        into = hand_off(stage, model=tmp_path / "sft", data=data, into=tmp_path / "out", **other)
        monkeypatch.chdir(into)
        return into

    return make


@pytest.fixture
def run(folder, monkeypatch):
    """What `trl STAGE --config config.yaml` does, in this process; returns the folder and the trainer."""

    def make(stage, *more):
        into, trainers = folder(stage), []
        kind = getattr(trl, TRAINERS[stage])
        train = kind.train

        def watched(trainer, *args, **kwargs):
            trainers.append(trainer)
            return train(trainer, *args, **kwargs)

        monkeypatch.setattr(kind, "train", watched)
        script = importlib.import_module(f"trl.scripts.{stage}")
        # Unlike the script, this refuses a setting that TRL does not know.
        script.main(*script.make_parser().parse_args_and_config(["--config", "config.yaml", *SHORT, *more]))
        assert trainers[0].state.global_step == 2
        return into, trainers[0]

    return make


def batch_of(trainer, columns):
    """Every row in order, through the trainer's own tokenization and collator."""
    rows = [trainer.train_dataset[row] for row in range(len(trainer.train_dataset))]
    return [trainer.data_collator(rows)[column] for column in columns]


def changed(before, after):
    return any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def check_policy(into, tokenizer):
    (before, _), (after, got) = (load_policy(into / name, device="cpu") for name in ("model", "trained"))
    assert changed(before, after)
    assert (got.chat_template, got.eos_token_id, got.pad_token_id) == (
        *(tokenizer.chat_template, tokenizer.eos_token_id, tokenizer.pad_token_id),
    )


def test_sft(run, tokenizer):
    into, trainer = run("sft")
    tokens, mask = collate(encode_demos(load_demos(into / "data/train.jsonl"), tokenizer), tokenizer.pad_token_id)
    got, labels = batch_of(trainer, ["input_ids", "labels"])
    assert torch.equal(got, tokens)
    assert torch.equal(labels, tokens.masked_fill(~mask, -100))
    check_policy(into, tokenizer)


def test_dpo(run, tokenizer):
    into, trainer = run("dpo")
    pairs = encode_pairs(load_preferences(into / "data/train.jsonl"), tokenizer)
    sides = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    tokens, mask = collate(sides, tokenizer.pad_token_id)
    got, completion = batch_of(trainer, ["input_ids", "completion_mask"])
    assert torch.equal(got, tokens)
    assert torch.equal(completion.bool(), mask)
    logs = trainer.state.log_history
    assert logs[0]["loss"] == pytest.approx(0.693147, abs=1e-4)  # policy and reference are one model: ln 2
    check_policy(into, tokenizer)


def test_reward(run, tokenizer):
    into, trainer = run("reward")
    pairs = encode_pairs(load_preferences(into / "data/train.jsonl"), tokenizer)
    sides = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    assert torch.equal(*batch_of(trainer, ["input_ids"]), collate(sides, tokenizer.pad_token_id).tokens)
    before, after = (RewardModel.load(into / name, device="cpu") for name in ("model", "trained"))
    assert changed(before, after)
    assert after.score_mean == 0


def test_grpo(run, tokenizer):
    into, trainer = run("grpo", *FEW_ANSWERS)
    prompts = [row["prompt"] for row in PAIRS]
    got = trainer.processing_class.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True)
    assert got["input_ids"] == [encode_prompt(tokenizer, prompt) for prompt in prompts]
    proxy, whole = (
        RewardModel.load(into / "reward_model", device="cpu"),
        encode_pairs(Dataset.from_list(PAIRS), tokenizer),
    )
    with torch.no_grad():
        scores = trainer.reward_funcs[0](collate([pair.chosen for pair in whole], tokenizer.pad_token_id).tokens)
        torch.testing.assert_close(scores.logits.squeeze(-1) - proxy.score_mean, proxy([pair.chosen for pair in whole]))
    check_policy(into, tokenizer)


@pytest.mark.parametrize("stage", TRAINERS)
def test_every_setting_arrives(folder, stage):
    folder(stage)
    parser = importlib.import_module(f"trl.scripts.{stage}").make_parser()
    parts = parser.parse_args_and_config(["--config", "config.yaml", "--use_cpu"])
    got = {name: value for part in parts for name, value in vars(part).items()}
    assert {name: got[name] for name in settings(stage)} == settings(stage) | {"report_to": []}


def test_the_command_that_is_printed(folder, tokenizer):
    """Through the shell, `trl`, and the accelerate launch that it makes."""
    into = folder("dpo")
    trl_command = shutil.which("trl", path=Path(sys.executable).parent)
    line = command("dpo", into).replace("trl dpo", f"{trl_command} dpo") + " " + " ".join(SHORT)
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    check_policy(into, tokenizer)
