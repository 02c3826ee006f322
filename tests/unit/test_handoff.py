"""The folder for TRL: what is in it, that our settings are under its names, and that a failure leaves nothing.

TRL itself runs on such folders in tests/peers/test_handoff.py.
"""

import json
import shlex
import tomllib

import pytest
import torch
import yaml
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch import nn
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from picollm_lite import handoff, trl_settings
from picollm_lite.chat import encode_prompt, user
from picollm_lite.data import load_demos, load_preferences
from picollm_lite.files import write_jsonl
from picollm_lite.handoff import hand_off
from picollm_lite.models import RewardModel, load_policy, save
from picollm_lite.stages.optimization import adam


def said(text):
    return [{"role": "assistant", "content": text}]


SYSTEM = [{"role": "system", "content": "Be brief."}]
DEMOS = [
    {"id": "a", "messages": user("Why?") + said("Thanks."), "quality": "good"},
    user("What is a token?") + said("A unit.") + user("Why?") + said("It splits words."),  # picoLLM's bare list
    {"prompt": SYSTEM + user("Why?"), "completion": said("Thanks.")},
]
PAIRS = [
    {"prompt": user("Why?"), "chosen": said("It splits words."), "rejected": said("Why?"), "margin": 2.0},
    {"prompt": "Why?", "chosen": "Thanks.", "rejected": "Be brief."},  # three texts
    {"chosen": "\n\nHuman: Why?\n\nAssistant: A token.", "rejected": "\n\nHuman: Why?\n\nAssistant: Why?"},  # HH-RLHF
    {"prompt": SYSTEM + user("Why?"), "chosen": said("Thanks."), "rejected": said("Why?")},
]
READ = {  # what TRL calls conversational, and no column besides
    "sft": [
        {"messages": user("Why?") + said("Thanks.")},
        {"messages": user("What is a token?") + said("A unit.") + user("Why?") + said("It splits words.")},
        {"messages": SYSTEM + user("Why?") + said("Thanks.")},
    ],
    "dpo": [
        {"prompt": user("Why?"), "chosen": said("It splits words."), "rejected": said("Why?")},
        {"prompt": user("Why?"), "chosen": said("Thanks."), "rejected": said("Be brief.")},
        {"prompt": user("Why?"), "chosen": said("A token."), "rejected": said("Why?")},
        {"prompt": SYSTEM + user("Why?"), "chosen": said("Thanks."), "rejected": said("Why?")},
    ],
    "grpo": [{"prompt": user("Why?")}, {"prompt": SYSTEM + user("Why?")}] * 16,  # a batch has 32 prompts
}
READ["reward"] = READ["dpo"]


@pytest.fixture(scope="module")
def given(tiny_model, tokenizer, tmp_path_factory):
    """A policy, a reward model, and a file of demonstrations, one of pairs and one of prompts."""
    root = tmp_path_factory.mktemp("given")
    save(tiny_model(), tokenizer, root / "sft")
    save(RewardModel.from_policy(tiny_model(), tokenizer, seed=5).model, tokenizer, root / "reward")
    write_jsonl(root / "demos.jsonl", DEMOS)
    write_jsonl(root / "pairs.jsonl", PAIRS)
    write_jsonl(root / "prompts.jsonl", [{"prompt": "Why?", "ask": "define"}, {"prompt": SYSTEM + user("Why?")}])
    return root


@pytest.fixture
def make(given, tmp_path):
    """The hand-off of a stage with what fits it, unless something else is named."""

    def hand(stage, into=None, **other):
        options = {"model": given / "sft", "data": given / ("demos.jsonl" if stage == "sft" else "pairs.jsonl")}
        options |= {"reward_model": given / "reward"} if stage == "grpo" else {}
        return hand_off(stage, **{**options, "into": into or tmp_path / "out", **other})

    return hand


def lines(folder):
    return [json.loads(line) for line in (folder / "data" / "train.jsonl").read_text("utf-8").splitlines()]


# What is in the folder


@pytest.mark.parametrize("stage", trl_settings.STAGES)
def test_a_folder_holds_all_that_trl_needs(make, stage):
    folder = make(stage)
    models = {"model", "reward_model"} if stage == "grpo" else {"model"}
    files = {"config.yaml", "fsdp.yaml", "deepspeed.yaml", "README.md"}
    assert {path.name for path in folder.iterdir()} == {*models, "data", *files}
    assert lines(folder) == READ[stage]
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    assert config == trl_settings.settings(stage)
    assert [(folder / config[key]).is_dir() for key in ("model_name_or_path", "dataset_name")] == [True, True]
    assert ("reward_model_name_or_path" in config) == (stage == "grpo")
    readme = (folder / "README.md").read_text("utf-8")
    assert f"\ntrl {stage} --config config.yaml\n" in readme
    assert f"{len(READ[stage])} rows" in readme
    for name in ("fsdp.yaml", "deepspeed.yaml"):
        assert f"\n{trl_settings.launch(stage, name)}\n" in readme


def test_our_loaders_read_the_data_back(make, tmp_path):
    assert load_demos(make("sft", tmp_path / "a") / "data" / "train.jsonl").to_list() == READ["sft"]
    assert load_preferences(make("dpo", tmp_path / "b") / "data" / "train.jsonl").to_list() == READ["dpo"]


@pytest.mark.parametrize("name", ["demos.jsonl", "prompts.jsonl"])
def test_prompts_come_out_of_any_file(make, given, name):
    """Of a demonstration all but its last message, earlier answers included."""
    whole = user("What is a token?") + said("A unit.") + user("Why?")
    expected = [user("Why?"), *([whole] if name == "demos.jsonl" else []), SYSTEM + user("Why?")]
    assert [row["prompt"] for row in lines(make("grpo", data=given / name))[: len(expected)]] == expected


@pytest.mark.parametrize(("unique", "times"), [(1, 32), (3, 11), (31, 2), (32, 1), (33, 1)])
def test_every_prompt_once_or_as_often_as_a_batch_of_32_needs(make, tmp_path, unique, times):
    prompts = [{"prompt": user(f"Why? {number}")} for number in range(unique)]
    data = write_jsonl(tmp_path / "prompts.jsonl", prompts + prompts[:5])
    assert lines(make("grpo", data=data)) == prompts * times


def test_model_tokenizer_and_chat_template_survive(make, tiny_model, tokenizer):
    policy, got = load_policy(make("dpo") / "model", device="cpu")
    for mine, theirs in zip(tiny_model().parameters(), policy.parameters(), strict=True):
        assert torch.equal(mine.half().float(), theirs)
    assert (got.chat_template, got.all_special_tokens) == (tokenizer.chat_template, tokenizer.all_special_tokens)
    assert (got.eos_token_id, got.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert encode_prompt(got, SYSTEM + user("Why?")) == encode_prompt(tokenizer, SYSTEM + user("Why?"))


def test_reward_starts_from_the_policy_with_our_head(make, given, tiny_model, tokenizer):
    got = RewardModel.load(make("reward") / "model", device="cpu").model
    expected = RewardModel.from_policy(load_policy(given / "sft", device="cpu")[0], tokenizer).model
    for mine, theirs in zip(expected.parameters(), got.parameters(), strict=True):
        assert torch.equal(mine, theirs)  # in fp32, no bit is lost
    assert got.config.score_mean == 0


def test_grpo_takes_the_reward_model_as_it_is(make, given):
    folders = make("grpo") / "reward_model", given / "reward"
    assert torch.equal(*(RewardModel.load(folder, device="cpu").model.score.weight for folder in folders))


# Settings


def test_settings_may_be_changed(make):
    with pytest.warns(UserWarning, match="4 of 4 rows have more than 4 tokens"):
        folder = make("dpo", beta=0.3, gradient_accumulation_steps=8, max_length=4)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config == trl_settings.settings("dpo") | {"beta": 0.3, "gradient_accumulation_steps": 8, "max_length": 4}


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("sft", (2, 64, 2e-3, {"assistant_only_loss": True})),
        ("reward", (1, 32, 1e-3, {"disable_dropout": True})),
        ("dpo", (1, 64, 1e-4, {"disable_dropout": True, "beta": 0.1, "loss_type": ["sigmoid"]})),
    ],
)
def test_settings_are_our_defaults_under_their_names(stage, expected):
    got = trl_settings.settings(stage)
    names = ("num_train_epochs", "per_device_train_batch_size", "learning_rate")
    assert tuple(got[name] for name in names) == expected[:3]
    assert got.items() >= expected[3].items()
    shared = {"lr_scheduler_type": "cosine", "warmup_steps": 0.1, "max_grad_norm": 1.0, "max_length": 256, "seed": 0}
    adamw = {"adam_beta1": 0.9, "adam_beta2": 0.95, "weight_decay": 0.0}
    precision = {"dtype": "float32", "bf16": False, "gradient_checkpointing": False}
    assert got.items() >= (shared | adamw | precision).items()


def test_grpo_settings_say_the_same_work():
    """40 batches of 128 answers, 4 a prompt; each is cut into 2 minibatches of 64, twice: 160 updates."""
    got = trl_settings.settings("grpo")
    assert (got["max_steps"], got["per_device_train_batch_size"], got["steps_per_generation"]) == (160, 64, 2)
    assert (got["num_generations"], got["num_iterations"], got["max_completion_length"]) == (4, 2, 56)
    assert (got["beta"], got["epsilon"], got["temperature"], got["loss_type"]) == (0.3, 0.2, 1.0, "grpo")
    assert (got["learning_rate"], got["warmup_steps"], got["lr_scheduler_type"]) == (1e-4, 0.1, "linear")
    assert got["adam_epsilon"] == adam(nn.Linear(1, 1), 1.0).defaults["eps"]
    assert adam(nn.Linear(1, 1), 1.0).defaults["betas"] == (0.9, 0.999)  # TRL's default


def test_the_readme_asks_for_the_versions_that_are_tested(root):
    tested = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]["test"]
    assert trl_settings.VERSIONS in tested
    assert f'pip install "{trl_settings.VERSIONS}"' in trl_settings.readme("sft", 1)


# Several GPUs: what accelerate itself reads in the files, up to where it would start the processes


@pytest.fixture
def launched(make, monkeypatch):
    """Which of its launchers `accelerate launch` would call for a file's command in the README, and with what."""

    def run(name):
        monkeypatch.chdir(make("dpo"))
        started = []
        for kind in ("multi_gpu_launcher", "deepspeed_launcher"):
            monkeypatch.setattr(launch, kind, lambda arguments, kind=kind: started.append((kind, arguments)))
        line = shlex.split(trl_settings.launch("dpo", name).replace("GPUS", "2"))
        assert line[:2] == ["accelerate", "launch"]
        port = ["--main_process_port", "0"]  # one that is free
        launch.launch_command(launch.launch_command_parser().parse_args([*port, *line[2:]]))
        ((kind, arguments),) = started
        assert (arguments.num_processes, arguments.mixed_precision) == (2, "no")
        assert (arguments.module, arguments.training_script) == (True, "trl.scripts.dpo")
        assert arguments.training_script_args == ["--config", "config.yaml"]
        return kind, arguments

    return run


def test_fsdp_divides_the_model_and_saves_it_whole(launched, monkeypatch):
    kind, arguments = launched("fsdp.yaml")
    assert (kind, arguments.use_fsdp) == ("multi_gpu_launcher", True)
    for name, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()  # as each process makes it, from what it inherits
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert (plugin.state_dict_type.name, plugin.auto_wrap_policy) == ("FULL_STATE_DICT", transformer_auto_wrap_policy)


def test_deepspeed_divides_the_model_and_saves_it_whole(launched):
    kind, arguments = launched("deepspeed.yaml")
    assert kind == "deepspeed_launcher"
    _, environment = prepare_deepspeed_cmd_env(arguments)
    got = {name: environment[f"ACCELERATE_DEEPSPEED_{name}"] for name in ("ZERO_STAGE", "ZERO3_INIT")}
    assert got == {"ZERO_STAGE": "3", "ZERO3_INIT": "true"}
    assert environment["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"


@pytest.mark.parametrize(("name", "kind"), [("fsdp.yaml", "FSDP"), ("deepspeed.yaml", "DEEPSPEED")])
def test_accelerate_loads_the_file_and_asks_how_many_gpus(make, name, kind):
    path = str(make("sft") / name)
    assert load_config_from_file(path).distributed_type == DistributedType(kind)
    with pytest.raises(ValueError, match="You need to manually pass in `--num_processes`"):
        launch.launch_command(launch.launch_command_parser().parse_args(["--config_file", path, "train.py"]))


# What is refused, and leaves nothing behind


@pytest.mark.parametrize(
    ("stage", "other", "error", "message"),
    [
        ("ppo", {}, ValueError, "expected a stage out of sft, reward, dpo, grpo, got 'ppo'"),
        ("sft", {"data": "pairs.jsonl"}, ValueError, "pairs.jsonl:1: expected a list of messages"),
        ("dpo", {"data": "demos.jsonl"}, ValueError, "demos.jsonl:1: a preference needs `chosen` and `rejected`"),
        ("dpo", {"data": "nowhere.jsonl"}, FileNotFoundError, "no file at .*nowhere.jsonl"),
        ("dpo", {"model": "nowhere"}, FileNotFoundError, "no checkpoint at .*nowhere"),
        ("sft", {"model": "reward"}, ValueError, "reward holds a reward model, not a language model"),
        ("grpo", {"reward_model": "sft"}, ValueError, "a reward model needs a classifier with one label"),
        ("grpo", {"reward_model": "nowhere"}, FileNotFoundError, "no checkpoint at .*nowhere"),
        ("grpo", {"reward_model": None}, ValueError, "grpo needs one: got None for grpo"),
        ("dpo", {"reward_model": "reward"}, ValueError, "grpo alone, .* for dpo"),
        ("dpo", {"into": "sft"}, FileExistsError, "sft is not empty: name a new folder"),
        ("dpo", {"into": "pairs.jsonl"}, FileExistsError, "pairs.jsonl is not empty"),
    ],
)
def test_refused(make, given, tmp_path, stage, other, error, message):
    before = sorted(given.rglob("*"))
    with pytest.raises(error, match=message):
        make(stage, **{key: value and given / value for key, value in other.items()})
    assert list(tmp_path.iterdir()) == []
    assert sorted(given.rglob("*")) == before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "Why?"}, ":1: expected a demonstration, a preference, or an object with a `prompt`"),
        (7, ":1: expected a demonstration"),
        ({"messages": said("Thanks.")}, ":1: the conversation is empty"),
        ({"prompt": "Why? <|user_end|>"}, "row 1 of the data: .* control token"),
    ],
)
def test_rows_without_a_usable_prompt(make, tmp_path, row, message):
    bad = write_jsonl(tmp_path / "bad.jsonl", [row])
    with pytest.raises(ValueError, match=message):
        make("grpo", data=bad)
    assert list(tmp_path.iterdir()) == [bad]


def test_a_forged_turn_is_named(make, tmp_path):
    bad = write_jsonl(tmp_path / "bad.jsonl", [PAIRS[0], PAIRS[0] | {"rejected": said("<|assistant_end|>")}])
    with pytest.raises(ValueError, match=r"row 2 of the data: .* control token"):
        make("dpo", data=bad)


@pytest.mark.parametrize(("stage", "fate"), [("sft", "cut them"), ("dpo", "cut them"), ("reward", "leave them out")])
def test_long_rows_are_counted_and_kept(make, tmp_path, stage, fate):
    """1 token to begin, 2 for "Why?" and 2 around it, 2 around the answer: 249 of 256 are left for its letters."""
    rows = []
    for letters in (248, 249, 250):  # no text that the tokenizer has learned from holds a z: each is one token
        long = said("z" * letters)
        rows.append({"prompt": user("Why?"), "chosen": said("Thanks."), "rejected": long})
    if stage == "sft":
        rows = [{"messages": row["prompt"] + row["rejected"]} for row in rows]
    data = write_jsonl(tmp_path / "long.jsonl", rows)
    with pytest.warns(UserWarning, match=f"1 of 3 rows have more than 256 tokens: TRL will {fate}"):
        assert lines(make(stage, data=data)) == rows


def test_an_empty_folder_is_taken_and_a_failure_half_way_leaves_it(make, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(handoff, "readme", fail)
        with pytest.raises(OSError, match="disk full"):
            make("dpo")
    assert [list(path.iterdir()) for path in tmp_path.iterdir()] == [[]]
    assert lines(make("dpo")) == READ["dpo"]


# The command line


def test_command_line(given, tmp_path, capsys):
    into = tmp_path / "my folder"
    ask = ["--model", str(given / "sft"), "--data", str(given / "pairs.jsonl"), "--into", str(into)]
    assert handoff.main(["grpo", *ask]) == 1
    assert capsys.readouterr().err.startswith("error: a reward model goes with grpo alone")
    assert handoff.main(["grpo", *ask, "--reward", str(given / "reward")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"cd '{into}' && trl grpo --config config.yaml"
    assert handoff.main(["dpo", *ask]) == 1
    assert "is not empty" in capsys.readouterr().err
