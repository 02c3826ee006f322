"""Our stages in TRL's terms: the settings under its names, and where the same settings do something else there.

TRL is not imported. tests/peers/test_handoff.py runs the TRL that is installed on these settings.
"""

from picollm_lite.data import encode_pairs
from picollm_lite.evaluation.training_record import defaults
from picollm_lite.kernels.losses import dpo_loss
from picollm_lite.stages import dpo, reward, sft
from picollm_lite.stages.group_policy import GRPOConfig
from picollm_lite.stages.optimization import BETAS

STAGES = ("sft", "reward", "dpo", "grpo")
VERSIONS = "trl>=1.16,<2"
# What `accelerate launch --config_file` reads: a part of the model on each GPU, whole again where it is saved. How many
# GPUs there are is said on the command line, and the precision in config.yaml.
LAUNCHES = {
    "fsdp.yaml": {
        "distributed_type": "FSDP",
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_state_dict_type": "FULL_STATE_DICT",
        },
    },
    "deepspeed.yaml": {
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"zero_stage": 3, "zero3_init_flag": True, "zero3_save_16bit_model": True},
    },
}


def settings(stage: str) -> dict[str, object]:
    """The defaults of our stage for `trl STAGE --config`; paths are relative to the folder that TRL is started in."""
    everywhere = {
        "model_name_or_path": "model",
        "dataset_name": "data",
        "output_dir": "trained",
        "dtype": "float32",
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",  # the model is saved at the end
        "logging_steps": 1,
        "report_to": "none",
    }
    if stage == "grpo":
        return everywhere | _grpo(GRPOConfig())
    ours = {"weight_decay": 0.0} | defaults({"sft": sft.train, "reward": reward.train, "dpo": dpo.train}[stage])
    special = {
        "sft": {"assistant_only_loss": True},
        "reward": {"disable_dropout": True},
        "dpo": {
            "disable_dropout": True,
            "loss_type": ["sigmoid"],
            "beta": defaults(dpo_loss)["beta"],
            "precompute_ref_log_probs": True,
        },
    }
    return everywhere | {
        "num_train_epochs": ours["epochs"],
        "per_device_train_batch_size": ours["batch_size"],
        "max_length": defaults(encode_pairs)["max_length"],
        "learning_rate": ours["learning_rate"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": ours["warmup"],  # below 1 it is a share of the steps
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "weight_decay": ours["weight_decay"],
        "max_grad_norm": ours["max_grad_norm"],
        "seed": ours["seed"],
        **special[stage],
    }


def _grpo(ours: GRPOConfig) -> dict[str, object]:
    minibatches = ours.batch_size // ours.minibatch_size
    return {
        "reward_model_name_or_path": "reward_model",
        "max_steps": ours.steps * minibatches * ours.epochs,  # TRL counts updates, we count batches of answers
        "per_device_train_batch_size": ours.minibatch_size,
        "steps_per_generation": minibatches,
        "num_generations": ours.group_size,
        "num_iterations": ours.epochs,
        "max_completion_length": ours.max_new_tokens,
        "temperature": ours.temperature,
        "loss_type": "grpo",
        "scale_rewards": "group",
        "beta": ours.kl_coef,
        "use_bias_correction_kl": False,
        "epsilon": ours.clip,
        "disable_dropout": True,
        "learning_rate": ours.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": ours.warmup,
        "adam_epsilon": 1e-5,  # as in stages.optimization.adam
        "max_grad_norm": ours.max_grad_norm,
        "seed": ours.seed,
    }


def launch(stage: str, name: str) -> str:
    """The shell command, in the folder, that trains on several GPUs as one of `LAUNCHES` says."""
    return f"accelerate launch --config_file {name} --num_processes GPUS -m trl.scripts.{stage} --config config.yaml"


def readme(stage: str, rows: int) -> str:
    """What the folder holds, how to train on it and open the result, and where TRL differs, as Markdown."""
    reward_model = "- `reward_model/`: scores the answers\n" if stage == "grpo" else ""
    opened = "RewardModel.load" if stage == "reward" else "load_policy"
    launches = "\n".join(launch(stage, name) for name in LAUNCHES)
    differences = "\n".join(f"- {line}" for line in (*EVERYWHERE, *DIFFERENCES[stage]))
    return f"""# {stage}, handed off to TRL

In this folder, which you may move to another machine:

```
pip install "{VERSIONS}"
trl {stage} --config config.yaml
```

- `model/`: what training starts from, with its tokenizer and chat template
{reward_model}- `data/train.jsonl`: {rows} rows
- `config.yaml`: the settings; each can also be given on the command line, such as `--learning_rate 1e-5`
- `trained/`: where TRL writes the result; `picollm_lite.models.{opened}("trained")` opens it

For a model that does not fit into one GPU, divided among as many as you put for `GPUS` (the second needs
`pip install deepspeed`):

```
{launches}
```

## Where TRL differs from picollm_lite

{differences}
"""


EVERYWHERE = (
    "`per_device_train_batch_size` is for each device: divide it by their number to keep the batch.",
    "The learning rate starts at 0, so that it warms up one update later.",
    "Weights are in fp32, on disk and in training (`dtype`, `bf16`). On a GPU that has it, `bf16: true` is "
    "faster; for a model that does not fit, set `gradient_checkpointing: true`.",
)
_RANDOM = "A batch has random rows; ours have rows of nearly equal length."
_CUT = "A row with more than `max_length` tokens is cut at the end"
DIFFERENCES = {
    "sft": (
        _RANDOM,
        "`assistant_only_loss` is our response mask: what the chat template's generation block marks, the end token "
        "included.",
        f"{_CUT}; ours refuses it.",
    ),
    "reward": (
        _RANDOM,
        "`model/` is the policy with our new head instead of the vocabulary; TRL would draw one of its own.",
        "There is no loss on answers to other prompts (our `off_prompt_weight`; here it is 0).",
        "A pair with a side of more than `max_length` tokens is left out; ours cuts it at the end.",
        "The scores are not centered: `picollm_lite.stages.reward.center(reward_model, pairs)` does it afterwards.",
        "Where the pad token is the end token, the score is read at the last token before it.",
    ),
    "dpo": (
        _RANDOM,
        "The reference is the model as it comes, asked once before training, as ours (`precompute_ref_log_probs`).",
        f"{_CUT}, as ours. A pair whose prompt fills `max_length` is left out, and pairs whose sides have become the "
        "same stay; ours drops both, with a warning.",
        "Where a side goes on for several turns, the loss counts what the user says in it; ours does not.",
        "Of the other losses, `ipo` divides log-probs by the length, and `sigmoid` ignores `label_smoothing`.",
    ),
    "grpo": (
        "A step is one update; ours is one batch of answers with all its updates. `max_steps` says the same work, but "
        "the learning rate falls with every update.",
        "Prompts that do not fill a batch are left out of an epoch; ours go round. Where there are fewer than a batch "
        "holds, `data/train.jsonl` has them several times.",
        "Scores are divided by the unbiased standard deviation of their group, so that advantages are smaller by "
        "sqrt(1 - 1 / `num_generations`).",
        "An answer that does not end is scored as if it did; ours gets `unfinished_score`. "
        "`mask_truncated_completions: true` takes it out of the loss.",
        "To reward by a rule, write a function into `rules.py`, and `reward_funcs: [rules.NAME]` in place of "
        "`reward_model_name_or_path`.",
    ),
}
