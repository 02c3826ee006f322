"""Load and save: policies, which are any causal transformers model with its tokenizer, and reward models."""

import json
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Self

import torch
from accelerate.utils import is_cuda_available
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from picollm_lite.adapters import merged, shared_copy
from picollm_lite.chat import Encoded, encode_conversation, user, without_control_tokens
from picollm_lite.compat import (
    HeadlessTrunk,
    complete_buffers,
    complete_tokenizer,
    has_classifier,
    has_trunk,
    hidden_size,
    open_scorer,
    trunk_of,
    with_score,
)
from picollm_lite.files import replaced_folder
from picollm_lite.kernels.rollout import context_length
from picollm_lite.paths import check_hub
from picollm_lite.processes import by_main, launched
from picollm_lite.scoring import (
    Sequences,
    group_limit,
    in_order,
    length_groups,
    on_grid,
    recomputes,
    run_group,
    trunk_states,
)

_ORIGIN = ("is_local", "local_files_only", "name_or_path")


def load_policy(
    path_or_id: str | Path, *, device: str = "auto", dtype: str | torch.dtype = "auto", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, in eval mode, from a folder or, if you are online, a hub id.

    device "auto" is cuda, then mps, then cpu; dtype "auto" is float32, as weights that train need it.
    Raises FileNotFoundError when the folder is missing or holds no checkpoint, ValueError when it holds a reward model.
    """
    return _load(_open_policy, path_or_id, device, dtype, trust_remote_code)


class RewardModel(nn.Module):
    """A language model's trunk with one number for the whole answer where the vocabulary was.

    `model` is a plain transformers sequence classifier with one label; the number is read at the last real token, then
    `config.score_mean` is taken off, so that the scores of the training answers center on 0.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        if model.config.num_labels != 1 or not isinstance(getattr(model, "score", None), nn.Linear):
            raise ValueError(
                f"a reward model needs a classifier with one label and a linear `score` head, got "
                f"{type(model).__name__} with {model.config.num_labels} labels"
            )
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def from_policy(cls, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> Self:
        """A copy of the policy's trunk with a new head, normal with std 1 / sqrt(d + 1) (Stiennon et al. 2020).

        LoRA adapters are merged into the copy.
        """
        policy = merged(policy)
        config = deepcopy(policy.config)
        config.num_labels, config.score_mean, config.pad_token_id = 1, 0.0, tokenizer.pad_token_id
        if has_classifier(config):
            model = AutoModelForSequenceClassification.from_config(config, dtype=policy.dtype)
            model.base_model.load_state_dict(policy.base_model.state_dict())
        else:
            model = with_score(deepcopy(policy))
            model.config = config
        d = model.score.in_features
        head = torch.randn(1, d, generator=torch.Generator().manual_seed(seed)) / (d + 1) ** 0.5
        model.score.weight.data.copy_(head)
        return cls(model.to(policy.device).eval(), tokenizer)

    @classmethod
    def load(
        cls,
        path_or_id: str | Path,
        *,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        trust_remote_code: bool = False,
    ) -> Self:
        """From a folder that `save(reward_model.model, ...)` wrote, or any one-label classifier."""
        return cls(*_load(open_scorer, path_or_id, device, dtype, trust_remote_code))

    @property
    def score_mean(self) -> float:
        """What is taken off every score; it is kept in the model's config."""
        return getattr(self.model.config, "score_mean", 0.0)

    @score_mean.setter
    def score_mean(self, mean: float) -> None:
        self.model.config.score_mean = mean

    def get_extra_state(self) -> Float[Tensor, ""]:
        """The mean, as torch wants it: so that it is in the state dict too."""
        return torch.tensor(self.score_mean, dtype=torch.float64)

    def set_extra_state(self, state: Float[Tensor, ""]) -> None:
        """Undo `get_extra_state`."""
        self.score_mean = state.item()

    def forward(self, examples: Sequence[Encoded]) -> Float[Tensor, " B"]:
        """The score of each conversation, in order; with gradient unless under `torch.no_grad()`."""
        lengths = torch.tensor([len(example.tokens) for example in examples])
        trunk, scores, order = trunk_of(self.model), [], []

        def compute(rows: Tensor, length: int) -> Tensor:
            part = [examples[row].tokens for row in rows]
            tokens = torch.tensor([row + row[-1:] * (length - len(row)) for row in part])  # (b, l)
            last = torch.arange(length) == lengths[rows, None] - 1  # (b, l)
            inputs = (part.to(self.model.device) for part in (tokens, lengths[rows], last))
            return _one_number(self.model.score, trunk_states(trunk, *inputs)).float()  # (b,)

        for rows, length in length_groups(lengths, group_limit(self)):
            scores.append(run_group(compute, rows, length, like=self.model.score.weight, recompute=recomputes(self)))
            order.append(rows)
        return in_order(scores, order) - self.score_mean

    @torch.no_grad()
    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Float[Tensor, " B"]:
        """The score of each answer to its prompt: the proxy reward.

        The name of a control token in an answer is written apart, as only a chat template may write it. What goes
        beyond the model's context, since broken characters have more tokens as text than when they were sampled, is cut
        off at the end with a warning.
        """
        conversations = [
            [*user(prompt), {"role": "assistant", "content": without_control_tokens(self.tokenizer, response)}]
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        examples = [encode_conversation(self.tokenizer, messages) for messages in conversations]
        return self(_within(context_length(self.model), examples)).float()


class ValueModel(nn.Module):
    """A critic: a trunk of its own, and a value at every token, linear in the hidden state."""

    def __init__(self, trunk: nn.Module, head: nn.Linear):
        super().__init__()
        self.trunk, self.head = trunk, head

    @classmethod
    def from_policy(cls, policy: PreTrainedModel) -> Self:
        """A copy of the policy's trunk with a head of zeros: every first value is 0.

        Of a LoRA policy: adapters of its own, on the policy's frozen weights.
        """
        trunk = shared_copy(policy.base_model) if has_trunk(policy) else HeadlessTrunk(shared_copy(policy))
        d = hidden_size(policy)
        # In fp32 at least, as it trains; so do adapters on a policy in half precision.
        head = nn.Linear(d, 1, device=policy.device, dtype=torch.promote_types(policy.dtype, torch.float32))
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return cls(trunk, head)

    @classmethod
    def from_reward_model(cls, reward_model: RewardModel) -> Self:
        """A copy of the reward model: its score of the text so far is the first value."""
        critic = cls.from_policy(reward_model.model)
        critic.head.weight.data.copy_(reward_model.model.score.weight.data)
        critic.head.bias.data.fill_(-reward_model.score_mean)
        return critic

    def forward(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        """V(state) at every position, the token at that position included in the state."""
        return _one_number(self.head, self.trunk(input_ids=tokens).last_hidden_state)

    def at(self, sequences: Sequences) -> Float[Tensor, "B L-1"]:
        """V of the state in which each response token was chosen, 0 outside the mask; with gradient, as `forward`."""

        def value(rows: Tensor, length: int) -> Tensor:
            tokens, mask = sequences.tokens[rows, : length - 1], sequences.mask[rows, : length - 1]
            return _one_number(self.head, trunk_states(self.trunk, tokens, sequences.lengths[rows] - 1, mask))  # (n,)

        settings = {"limit": group_limit(self), "recompute": recomputes(self)}
        return on_grid(sequences.mask, sequences.lengths, value, **settings)


def _one_number(head: nn.Linear, states: Float[Tensor, "... d"]) -> Float[Tensor, "..."]:
    """The head's output in its own precision: autocast would round it to 8 bits, and tie answers of like worth."""
    with torch.autocast(states.device.type, enabled=False):
        return head(states.to(head.weight.dtype)).squeeze(-1)


def _load(
    open_model: Callable[..., PreTrainedModel],
    path_or_id: str | Path,
    device: str,
    dtype: str | torch.dtype,
    trust_remote_code: bool,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    _check_source(path_or_id)
    if not trust_remote_code:
        _refuse_own_code(path_or_id)
    device = best_device() if device == "auto" else device
    dtype = torch.float32 if dtype == "auto" else dtype
    options = {"trust_remote_code": trust_remote_code}
    model = open_model(path_or_id, dtype=dtype, use_safetensors=True, **options)
    complete_buffers(model)
    tokenizer = AutoTokenizer.from_pretrained(path_or_id, **options)
    complete_tokenizer(tokenizer)
    return model.to(device).eval(), tokenizer


def _open_policy(path_or_id: str | Path, **options) -> PreTrainedModel:
    """transformers opens a reward model, too: with a tied head no weight is missing, and the score is left over."""
    model, info = AutoModelForCausalLM.from_pretrained(path_or_id, output_loading_info=True, **options)
    if "score.weight" in info["unexpected_keys"]:
        raise ValueError(f"{path_or_id} holds a reward model, not a language model: RewardModel.load opens it")
    return model


def _refuse_own_code(path: str | Path) -> None:
    """Raise ValueError for a folder whose model only its own Python code can open, as picoLLM exports it."""
    file = Path(path) / "config.json"
    config = json.loads(file.read_text("utf-8")) if file.exists() else {}
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(
            f"{path} comes with its own Python code, which would run here: if you trust it, say trust_remote_code=True "
            "(in notebook 08 TRUST_REMOTE_CODE)"
        )


@torch.no_grad()
def interpolate(start: PreTrainedModel, end: PreTrainedModel, share: float) -> PreTrainedModel:
    """A new model, each weight a `share` of the way from that of `start` to that of `end`: 0 is start, 1 is end.

    From a policy's initialization to the policy: "linear interpolation towards initialization", Ramé et al. 2024, WARP.
    LoRA adapters are merged first: what moves in a line is W + BA, not B and A.
    Raises ValueError unless both have weights of the same names and shapes.
    """
    start, end = merged(start), merged(end)
    shapes = [{name: tuple(weight.shape) for name, weight in model.named_parameters()} for model in (start, end)]
    if shapes[0] != shapes[1]:
        differ = sorted(name for name, _ in shapes[0].items() ^ shapes[1].items())
        raise ValueError(f"expected two models with the same weights, got others at {differ[0]}: start from one model")
    model = deepcopy(start)
    for weight, target in zip(model.parameters(), end.parameters(), strict=True):  # a tied weight comes once
        weight.lerp_(target.to(weight), share)
    return model


def _within(context: int | None, examples: Sequence[Encoded]) -> Sequence[Encoded]:
    too_long = 0 if context is None else sum(len(example.tokens) > context for example in examples)
    if not too_long:
        return examples
    warnings.warn(f"{too_long} of {len(examples)} answers cut at the reward model's {context} tokens", stacklevel=4)
    return [Encoded(example.tokens[:context], example.response_mask[:context]) for example in examples]


def best_device() -> str:
    """The fastest device of this machine: cuda, mps or cpu; of several processes, what accelerate gives to each."""
    if launched() is not None:
        return str(launched().device)
    if is_cuda_available():  # asks without touching the GPU, so that a notebook can launch processes afterwards
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def mixed_precision(model: nn.Module, *, bf16: bool | None = None) -> torch.autocast:
    """A context in which matrix products run in bf16 and weights, losses and optimizer stay as they are.

    Put a loop inside: `with mixed_precision(policy): ...`. The default is bf16 where the GPU computes in it, which
    before Ampere, such as on a T4, none does; never on a CPU. Log-probs are then good to some .01 nats a token, or
    less where logits are large, so that a first PPO ratio is not quite 1: `rollout` samples from a Llama-shaped model
    in fp32 all the same.
    """
    device = next(model.parameters()).device.type
    if bf16 is None:
        bf16 = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    # The cache keeps the weights in bf16 until the context ends: all steps would see those of the first.
    return torch.autocast(device, dtype=torch.bfloat16, enabled=bf16, cache_enabled=False)


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write a checkpoint that plain `from_pretrained` opens: safetensors, fp16 on disk, read back as fp32.

    fp16 rounds weights to 11 bits, and with them most of what a learning rate of 1e-6 has changed: then say float32.
    LoRA adapters are merged into it; they alone are what `model.save_pretrained` writes.
    Written aside, then renamed, so that an interruption leaves the old checkpoint or the new one, never half of one.
    Called in several processes, as it has to be in each, the main one writes.
    Raises ValueError when a weight is not finite in `dtype`, FileExistsError when `path` holds anything but a
    checkpoint.
    """
    path = Path(path)
    by_main(lambda: _write(model, tokenizer, path, dtype))
    return path


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, dtype: torch.dtype) -> None:
    _check_target(path)
    model = merged(model)
    state = model.state_dict(keep_vars=True)
    stored = {id(tensor): _stored(tensor, dtype) for tensor in state.values()}
    weights = {name: stored[id(tensor)] for name, tensor in state.items()}  # tied weights stay one tensor, stored once
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        short = str(dtype).removeprefix("torch.")
        raise ValueError(f"{path}: not saved, {broken[0]} is not finite in {short}: the training has diverged")
    with replaced_folder(path) as aside:
        model.save_pretrained(aside, state_dict=weights)
        tokenizer.save_pretrained(aside)
        _forget_origin(aside / "tokenizer_config.json")
        for file in aside.iterdir():
            file.chmod(0o644)  # safetensors closes its file to others


def _forget_origin(config: Path) -> None:
    """Drop what transformers notes of how the tokenizer was opened: the same tokenizer shall give the same file."""
    kept = {key: value for key, value in json.loads(config.read_text("utf-8")).items() if key not in _ORIGIN}
    config.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _stored(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()


def _check_target(path: Path) -> None:
    other = path.is_dir() and any(path.iterdir()) and not (path / "config.json").exists()
    if path.is_file() or other:
        raise FileExistsError(f"{path} is not a checkpoint, and saving would replace it: name a folder of its own")


def _check_source(path_or_id: str | Path) -> None:
    path = Path(path_or_id)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise FileNotFoundError(f"{path} holds no checkpoint (no config.json): name the folder that save() wrote")
        if not any(path.glob("*.safetensors")):
            raise FileNotFoundError(
                f"{path} has a config.json but no .safetensors weights: save it again as safetensors"
            )
        return
    check_hub(path_or_id, f"no checkpoint at {path}: check the path, or run the notebook that makes it")
