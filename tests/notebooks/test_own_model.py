"""Notebook 08 on somebody else's model and pairs: the environment chooses, nothing is fetched, all stages run."""

import gzip
import json
import os
import runpy
import subprocess
from types import SimpleNamespace

import pyarrow as pa
import pytest
from pyarrow import parquet

from ..unit import standins

THINGS = ["token", "unit", "text", "word", "split", "brief", "question", "answer", "model", "reward"]
QUESTIONS = [f"What is a {thing}?" for thing in THINGS] + [f"Why is it a {thing}?" for thing in THINGS]
ROWS = [(q, f"It is a unit of text, {i}.", f"No, {i}.") for q in QUESTIONS for i in range(24)]


def said(role, content):
    return {"role": role, "content": content}


def texts(folder):
    """TRL's standard format, as JSON lines."""
    return jsonl(folder / "prefs.jsonl", [{"prompt": q, "chosen": good, "rejected": bad} for q, good, bad in ROWS])


def conversations(folder):
    """TRL's conversational format."""
    rows = [
        {"prompt": [said("user", q)], "chosen": [said("assistant", good)], "rejected": [said("assistant", bad)]}
        for q, good, bad in ROWS
    ]
    return jsonl(folder / "talks.jsonl", rows)


def hh_rlhf(folder):
    """A folder as HH-RLHF lies on the hub: transcripts, compressed."""
    rows = [
        {side: f"\n\nHuman: {q}\n\nAssistant: {text}" for side, text in (("chosen", good), ("rejected", bad))}
        for q, good, bad in ROWS
    ]
    (folder / "hh").mkdir()
    (folder / "hh" / "train.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return folder / "hh"


def ultrafeedback(folder):
    """A folder as UltraFeedback-binarized lies on the hub: Parquet, with splits of its own."""
    rows = [
        {
            "prompt": q,
            "chosen": [said("user", q), said("assistant", good)],
            "rejected": [said("user", q), said("assistant", bad)],
        }
        for q, good, bad in ROWS
    ]
    (folder / "ultra" / "data").mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(rows), folder / "ultra" / "data" / "train_prefs-00000-of-00001.parquet")
    return folder / "ultra"


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def scaled_up(root, tmp_path, monkeypatch, capsys):
    """Runs the notebook's cells as a script, training loops cut to 15 steps; returns its names and output."""

    def run(model, pairs, **environment):
        chosen = {"PICOLLM_MODEL": str(model), "PICOLLM_PREFERENCES": str(pairs), **environment}
        fixed = {"PICOLLM_OUTPUTS": str(tmp_path / "out"), "PICOLLM_QUICK": "15", "PICOLLM_SOLVE": "1"}
        for name, value in (chosen | fixed | {"PICOLLM_CLAIMS": "", "PICOLLM_THREADS": "1"}).items():
            monkeypatch.setenv(name, value)
        names = runpy.run_path(str(root / "notebooks" / "08_scaling_up.py"))
        return SimpleNamespace(**names), capsys.readouterr().out

    return run


@pytest.fixture
def processes(monkeypatch):
    """Instead of two real ones, which the last test has."""
    two = SimpleNamespace(returncode=0, stdout="[0, 0, 0, 0]", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: two)


@pytest.mark.parametrize(
    ("name", "pairs", "environment"),
    [
        ("qwen2", texts, {}),
        ("llama", ultrafeedback, {"PICOLLM_SPLIT": "train_prefs[:400]"}),
        ("gpt2", hh_rlhf, {}),
        ("bare", conversations, {}),
    ],
)
def test_another_model_and_other_pairs(scaled_up, tmp_path, processes, name, pairs, environment):
    result, out = scaled_up(standins.write[name](tmp_path / "model"), pairs(tmp_path), **environment)
    assert not result.OURS and os.environ["PICOLLM_CLAIMS"] == "report"
    assert sum(len(part) for part in result.pairs.values()) == (400 if environment else 480)
    assert "CLAIM ok: cut off and gone on, the run has the losses of the run without a break, to the last bit" in out
    assert "CLAIM ok: the first loss is ln 2" in out
    assert set(result.scores) == {"proxy", "judge"}  # no gold: nobody knows it here
    assert ("It got ours" in out) == (name == "bare")
    assert "trl dpo --config config.yaml" in out
    assert len(result.again) == len(result.whole) >= 10  # the second half after the break
    for stage in ("sft", "dpo", "dpo_lora", "ppo", "reward"):
        assert (result.OWN / stage / "model.safetensors").exists()


def test_what_is_done_is_not_done_again(scaled_up, tmp_path, processes):
    """After a disconnect: run all again, and every stage has the records and the weights that it had."""
    model, pairs = standins.write["qwen2"](tmp_path / "model"), texts(tmp_path)
    first, _ = scaled_up(model, pairs)
    written = {path: path.stat().st_mtime_ns for path in first.OWN.glob("*.state") if path.stem != "disconnect"}
    assert sorted(path.stem for path in written) == ["dpo", "judge", "ppo", "sft", "train"]
    second, _ = scaled_up(model, pairs)
    assert written == {path: path.stat().st_mtime_ns for path in written}
    assert [record.loss for record in second.whole] == [record.loss for record in first.whole]
    assert second.texts == first.texts


def test_a_picollm_export(scaled_up, tmp_path):
    """With its own code, which has to be allowed, and without a KV cache; shared by two real processes."""
    model, pairs = standins.write["picollm"](tmp_path / "model"), texts(tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        scaled_up(model, pairs)
    result, out = scaled_up(model, pairs, PICOLLM_TRUST_REMOTE_CODE="1")
    assert "without a KV cache" in out and type(result.ppo_policy).__name__ == "TinyForCausalLM"
    assert "CLAIM ok: two processes have the losses of one, to the fourth digit" in out
    assert "skipped: hand_off does not pass on a model's own code" in out
