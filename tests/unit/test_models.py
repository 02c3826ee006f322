"""Checkpoints: what is on disk, what comes back, what an interruption leaves, and what is refused in one line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from picollm_lite import models
from picollm_lite.models import best_device, load_policy, save

IDS = torch.tensor([[0, 1, 40, 50, 60, 2, 3]])


def on_disk(path):
    with safe_open(path / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def saved(tmp_path, tiny_model, tokenizer):
    return save(tiny_model(), tokenizer, tmp_path / "sft")


def refused(path_or_id, **options):
    """The message for a source that holds no checkpoint: one line."""
    with pytest.raises(FileNotFoundError) as error:
        load_policy(path_or_id, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_half_precision_on_disk_and_full_in_memory(saved, tiny_model):
    model, _ = load_policy(saved, device="cpu")
    original = dict(tiny_model().named_parameters())
    stored = on_disk(saved)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for name, parameter in model.named_parameters():
        assert_close(parameter, original[name].half().float(), rtol=0, atol=0)
    assert not model.training
    assert_close(model(IDS).logits, tiny_model()(IDS).logits, rtol=0, atol=0.05)


def test_a_tied_weight_is_stored_once(saved, tiny_model, tokenizer):
    assert sum(tensor.numel() for tensor in on_disk(saved).values()) == tiny_model().num_parameters()
    model, _ = load_policy(saved, device="cpu")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    untied = save(tiny_model(tie_word_embeddings=False), tokenizer, saved.parent / "untied")
    assert "lm_head.weight" in on_disk(untied)


def test_plain_transformers_opens_it(saved, tokenizer):
    ours, _ = load_policy(saved, device="cpu")
    model, plain = AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    assert model.dtype == torch.float32
    assert_close(model(IDS).logits, ours(IDS).logits, rtol=0, atol=0)
    assert plain.get_vocab() == tokenizer.get_vocab() and plain.chat_template == tokenizer.chat_template
    assert (plain.bos_token, plain.eos_token, plain.pad_token) == ("<|bos|>", "<|assistant_end|>", "<|pad|>")
    assert plain("A token <|user_end|>")["input_ids"] == tokenizer("A token <|user_end|>")["input_ids"]
    generated = model.generate(IDS, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] <= 10


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_saving_what_was_loaded_changes_no_byte(saved, tmp_path, name):
    again = save(*load_policy(saved, device="cpu"), tmp_path / "again")
    assert (again / name).read_bytes() == (saved / name).read_bytes()


def test_saving_leaves_the_model_as_it_was(tmp_path, tiny_model, tokenizer):
    model = tiny_model().train()
    save(model, tokenizer, tmp_path / "sft")
    assert model.training and model.dtype == torch.float32
    for (name, got), wanted in zip(model.named_parameters(), tiny_model().parameters(), strict=True):
        assert_close(got, wanted, rtol=0, atol=0, msg=name)


def test_nothing_in_a_checkpoint_needs_unpickling_and_others_may_read_it(saved):
    assert {Path(name).suffix for name in names(saved)} <= {".json", ".jinja", ".safetensors"}
    assert saved.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in saved.iterdir()} == {0o644}


def test_integers_stay_integers(tmp_path, tiny_model, tokenizer):
    model = tiny_model()
    model.register_buffer("seen", torch.tensor([70_000]))  # beyond what fp16 holds
    stored = on_disk(save(model, tokenizer, tmp_path / "sft"))["seen"]
    assert stored.dtype == torch.int64 and stored.item() == 70_000


def test_overwriting_replaces_the_whole_checkpoint(saved, tiny_model, tokenizer):
    (saved / "stale.txt").write_text("of the old one")
    assert save(tiny_model(seed=1), tokenizer, str(saved)) == saved
    assert "stale.txt" not in names(saved)
    assert names(saved.parent) == ["sft"]
    wanted = tiny_model(seed=1).get_input_embeddings().weight
    assert_close(on_disk(saved)["model.embed_tokens.weight"], wanted.detach().half(), rtol=0, atol=0)


def test_folders_on_the_way_are_made(tmp_path, tiny_model, tokenizer):
    assert save(tiny_model(), tokenizer, tmp_path / "a" / "b" / "sft").is_dir()


class Killed(BaseException):
    """Like KeyboardInterrupt, but pytest does not stop for it."""


def crash(*args, **options):
    raise Killed


@pytest.mark.parametrize("where", ["model", "tokenizer", "rename"])
@pytest.mark.parametrize("there", [True, False])
def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path, tiny_model, tokenizer, monkeypatch, where, there):
    path = tmp_path / "sft"
    if there:
        save(tiny_model(), tokenizer, path)
    before = {name: (path / name).read_bytes() for name in names(path)} if there else {}
    model, rename = tiny_model(seed=1), Path.rename

    def half_a_model(folder, **options):
        (folder / "config.json").write_text("{")
        raise Killed

    def last_rename_crashes(self, target):
        if target == path and not self.name.endswith("-old"):
            raise Killed
        return rename(self, target)

    if where == "model":
        model.save_pretrained = half_a_model
    elif where == "tokenizer":
        monkeypatch.setattr(type(tokenizer), "save_pretrained", crash)
    else:
        monkeypatch.setattr(Path, "rename", last_rename_crashes)
    with pytest.raises(Killed):
        save(model, tokenizer, path)
    assert names(tmp_path) == (["sft"] if there else [])
    assert all((path / name).read_bytes() == content for name, content in before.items())


def test_the_new_checkpoint_is_complete_before_it_takes_the_name(saved, tiny_model, tokenizer, monkeypatch):
    moved, rename = [], Path.rename

    def watch(self, target):
        moved.append((self.name, target.name, names(self)))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watch)
    save(tiny_model(seed=1), tokenizer, saved)
    (old, aside, _), (new, target, files) = moved
    assert (old, target, aside) == ("sft", "sft", f"{new}-old")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])  # 1e6 is more than fp16 holds
def test_weights_that_are_not_finite_are_refused(saved, tiny_model, tokenizer, value):
    model = tiny_model(seed=1)
    with torch.no_grad():
        model.model.norm.weight[3] = value
    before = on_disk(saved)
    with pytest.raises(
        ValueError, match=r"sft: not saved, model\.norm\.weight is not finite in fp16: the training has"
    ):
        save(model, tokenizer, saved)
    assert names(saved.parent) == ["sft"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in on_disk(saved).items())


def test_saving_never_replaces_anything_but_a_checkpoint(tmp_path, tiny_model, tokenizer):
    """`save(policy, tokenizer, outputs())` would otherwise remove everything that a learner has made."""
    (tmp_path / "outputs").mkdir()
    save(tiny_model(), tokenizer, tmp_path / "outputs")  # an empty folder is free
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("dear")
    for path in (tmp_path / "mine", tmp_path / "mine" / "notes.txt"):
        with pytest.raises(FileExistsError, match=rf"{path} is not a checkpoint, .* name a folder of its own"):
            save(tiny_model(), tokenizer, path)
    assert names(tmp_path / "mine") == ["notes.txt"]


def test_a_missing_folder_is_named(tmp_path):
    message = refused(tmp_path / "nowhere")
    assert message == f"no checkpoint at {tmp_path / 'nowhere'}: check the path, or run the notebook that makes it"


@pytest.mark.parametrize("name", ["sft", "./a/b", "../x/y", "~/x", "a/b/c", "data/sft"])
def test_what_looks_like_a_path_is_never_looked_up(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    Path("data").mkdir()
    assert refused(name).startswith(f"no checkpoint at {Path(name)}: check the path")


def test_a_folder_without_config_is_named(tmp_path):
    assert refused(tmp_path) == f"{tmp_path} holds no checkpoint (no config.json): name the folder that save() wrote"


@pytest.mark.parametrize("weights", [None, "pytorch_model.bin"])
def test_a_folder_without_safetensors_is_named(saved, weights):
    (saved / "model.safetensors").unlink()
    if weights:
        (saved / weights).write_bytes(b"a pickle")
    assert refused(saved) == f"{saved} has a config.json but no .safetensors weights: save it again as safetensors"


@pytest.mark.parametrize("value", ["1", "true", "ON", "Yes"])
def test_a_hub_id_offline_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert refused("some/model") == (
        "no folder some/model, and the course is offline: to take it from the hub, set HF_HUB_OFFLINE=0 and restart"
    )


class Recorder:
    """Stands in for AutoModelForCausalLM: notes how it was called."""

    def from_pretrained(self, source, **options):
        self.called = (source, options)
        raise Killed


@pytest.mark.parametrize("value", ["0", None])
def test_a_hub_id_online_goes_to_transformers(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", value) if value else monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(models, "AutoModelForCausalLM", hub := Recorder())
    with pytest.raises(Killed):
        load_policy("some/model", device="cpu")
    source, options = hub.called
    assert source == "some/model"
    assert options["trust_remote_code"] is False and options["use_safetensors"] is True


def test_code_that_comes_with_a_model_is_not_run(saved):
    (saved / "evil.py").write_text(f"open({str(saved / 'ran')!r}, 'w').close()\nclass Evil: pass\n")
    config = json.loads((saved / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    (saved / "config.json").write_text(json.dumps(config))
    load_policy(saved, device="cpu")
    assert not (saved / "ran").exists()


@pytest.fixture
def half_config(tmp_path, tiny_model, tokenizer):
    """A checkpoint whose own precision is fp16."""
    return save(tiny_model().half(), tokenizer, tmp_path / "half")


def test_dtype(half_config):
    assert load_policy(half_config, device="cpu")[0].dtype == torch.float32  # half precision is slow on CPUs
    assert load_policy(half_config, device="meta")[0].dtype == torch.float16  # elsewhere the checkpoint's own
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert load_policy(half_config, device="cpu", dtype=dtype)[0].dtype == dtype


def test_device(saved, monkeypatch):
    assert load_policy(saved, device="meta")[0].device.type == "meta"
    monkeypatch.setattr(models, "best_device", lambda: "meta")
    assert load_policy(saved)[0].device.type == "meta"
    assert load_policy(saved, device="cpu")[0].device.type == "cpu"


@pytest.mark.parametrize(
    ("cuda", "mps", "best"), [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_best_device(monkeypatch, cuda, mps, best):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert best_device() == best


def test_a_tokenizer_that_was_loaded_is_saved_as_it_was(tiny_model, tokenizer, tmp_path):
    """transformers notes how a tokenizer was opened; a rebuilt checkpoint must not depend on that."""
    first = save(tiny_model(), tokenizer, tmp_path / "first")
    second = save(*load_policy(first, device="cpu"), tmp_path / "second")
    for name in ("tokenizer_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
