"""Load and save policies: any causal transformers model with its tokenizer."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

_ORIGIN = ("is_local", "local_files_only", "name_or_path")


def load_policy(
    path_or_id: str | Path, *, device: str = "auto", dtype: str | torch.dtype = "auto", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, in eval mode, from a folder or, if you are online, a hub id.

    device "auto" is cuda, then mps, then cpu; dtype "auto" is float32 on the cpu and the checkpoint's own elsewhere.
    Raises FileNotFoundError when the folder is missing or holds no checkpoint.
    """
    _check_source(path_or_id)
    device = best_device() if device == "auto" else device
    if dtype == "auto" and torch.device(device).type == "cpu":
        dtype = torch.float32  # half precision is emulated, and slow, on most CPUs
    options = {"trust_remote_code": trust_remote_code}
    model = AutoModelForCausalLM.from_pretrained(path_or_id, dtype=dtype, use_safetensors=True, **options)
    tokenizer = AutoTokenizer.from_pretrained(path_or_id, **options)
    return model.to(device).eval(), tokenizer


def best_device() -> str:
    """The fastest device of this machine: cuda, mps or cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str | Path) -> Path:
    """Write a checkpoint that plain `from_pretrained` opens: safetensors, fp16 on disk, read back as fp32.

    Written aside, then renamed, so that an interruption leaves the old checkpoint or the new one, never half of one.
    Raises ValueError when a weight is not finite in fp16, FileExistsError when `path` holds anything but a checkpoint.
    """
    path = Path(path)
    _check_target(path)
    state = model.state_dict(keep_vars=True)
    halves = {id(tensor): _half(tensor) for tensor in state.values()}
    weights = {name: halves[id(tensor)] for name, tensor in state.items()}  # tied weights stay one tensor, stored once
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"{path}: not saved, {broken[0]} is not finite in fp16: the training has diverged")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        model.save_pretrained(aside, state_dict=weights)
        tokenizer.save_pretrained(aside)
        _forget_origin(aside / "tokenizer_config.json")
        aside.chmod(0o755)  # mkdtemp closes the folder to others, safetensors its file
        for file in aside.iterdir():
            file.chmod(0o644)
        _swap(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return path


def _forget_origin(config: Path) -> None:
    """Drop what transformers notes of how the tokenizer was opened: the same tokenizer shall give the same file."""
    kept = {key: value for key, value in json.loads(config.read_text("utf-8")).items() if key not in _ORIGIN}
    config.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _half(tensor: torch.Tensor) -> torch.Tensor:
    dtype = torch.float16 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype).contiguous()


def _swap(new: Path, path: Path) -> None:
    old = new.with_name(new.name + "-old")
    if path.exists():
        path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


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
    looks_like_id = (
        isinstance(path_or_id, str) and path_or_id.count("/") == 1 and not path_or_id.startswith((".", "/", "~"))
    )
    if not looks_like_id or path.parent.exists():
        raise FileNotFoundError(f"no checkpoint at {path}: check the path, or run the notebook that makes it")
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "on", "yes"):
        raise FileNotFoundError(
            f"no folder {path}, and the course is offline: to take it from the hub, set HF_HUB_OFFLINE=0 and restart"
        )
