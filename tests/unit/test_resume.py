"""A run that was cut off goes on as if it had not been: same records and weights to the bit, in every loop."""

import json
import os
import random
import subprocess
import sys
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from picollm_lite.kernels.losses import ipo_loss
from picollm_lite.models import RewardModel, save
from picollm_lite.stages import dpo, group_policy, online_dpo, ppo, rejection, resume, reward, sft
from picollm_lite.stages.resume import Resume

from .loops import brevity, length, weights

PROMPTS = ["What is a token?", "Why?", "Be brief. What is a token?", "Thanks.", "It splits words."]
SAMPLED = {"steps": 6, "batch_size": 8, "max_new_tokens": 6, "learning_rate": 0.01, "gold_fn": length}
SAMPLING = {  # so that all that a loop can keep changes: the coefficient, the order of minibatches, the reference
    "ppo": (ppo.train, {"minibatch_size": 3, "kl_target": 0.1, "kl_horizon": 20, "target_kl": 0.02}),
    "rloo": (group_policy.rloo, {"group_size": 2}),
    "grpo": (group_policy.grpo, {"group_size": 2, "minibatch_size": 3}),
    "online_dpo": (online_dpo.train, {"group_size": 2, "move_ref_every": 2}),
    "rejection": (rejection.train, {"group_size": 2, "minibatch_size": 2, "keep": rejection.keep_random}),
}
LOOPS = ["sft", "reward", "dpo", *SAMPLING]


@pytest.fixture
def start(tokenizer, tiny_model, taught, pairs):
    """A run from the beginning, and the model that it trains."""

    def make(loop, **options):
        if loop == "sft":
            policy, demos = tiny_model(attention_dropout=0.5), [side for pair in pairs for side in pair]
            settings = {"pad_token_id": tokenizer.pad_token_id, "epochs": 2, "batch_size": 4, "val": demos[:2]}
            return sft.train(policy, demos, **{**settings, "eval_every": 2, **options}), policy
        if loop == "reward":
            model = RewardModel.from_policy(taught(), tokenizer)
            settings = {"epochs": 2, "batch_size": 2, "learning_rate": 0.01}
            return reward.train(model, pairs, **{**settings, **options}), model
        policy = taught()
        if loop == "dpo":
            settings = {"epochs": 2, "batch_size": 2, "learning_rate": 0.01, "prompts": PROMPTS, "eval_every": 2}
            return dpo.train(policy, pairs, tokenizer=tokenizer, **{**settings, **options}), policy
        train, settings = SAMPLING[loop]
        reward_fn = options.pop("reward_fn", brevity)
        return train(policy, reward_fn, PROMPTS, tokenizer=tokenizer, **{**SAMPLED, **settings, **options}), policy

    return make


@pytest.fixture
def state(tmp_path):
    return Resume(tmp_path / "run" / "state", every=2)


def first(count, run):
    """As many records, and then no more of the run."""
    found = [record for _, record in zip(range(count), run, strict=False)]
    run.close()
    return found


@pytest.mark.parametrize("loop", LOOPS)
def test_a_run_that_was_cut_off_twice_is_the_run_that_never_was(start, state, loop, applied_norms):
    """Six steps, the state kept every second: cut off after the third and the fifth, it goes on from 2 and from 4."""
    run, model = start(loop)
    whole, updates = list(run), len(applied_norms)
    assert len(whole) == 6 and whole[0].steps == 6
    assert repr(first(3, start(loop, resume=state)[0])) == repr(whole[:3])
    assert repr(first(5, start(loop, resume=state)[0])) == repr(whole[:5])
    applied_norms.clear()
    run, resumed = start(loop, resume=state)
    torch.manual_seed(99)  # dropout goes on where it was
    assert repr(list(run)) == repr(whole)
    assert 0 < len(applied_norms) < updates / 2
    assert_close(weights(resumed), weights(model), rtol=0, atol=0)
    applied_norms.clear()
    run, again = start(loop, resume=state)
    assert repr(list(run)) == repr(whole) and applied_norms == []  # the end is kept too
    assert_close(weights(again), weights(model), rtol=0, atol=0)
    if loop == "reward":
        assert again.score_mean == resumed.score_mean == model.score_mean != 0


def test_the_coefficient_of_ppo_and_the_reference_of_online_dpo_did_move(start):
    """Else the test above would say nothing of them."""
    assert len({record.kl_coef for record in start("ppo")[0]}) == 6
    kept = list(start("online_dpo", move_ref_every=None)[0])
    assert kept[3].loss != list(start("online_dpo")[0])[3].loss


def test_the_policy_does_not_drop_out_while_the_records_are_yielded_again(start, state):
    first(2, start("sft", resume=state)[0])
    run, policy = start("sft", resume=state)
    policy.train()
    next(run)
    assert not policy.training


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_a_run_that_stops_while_it_writes_leaves_the_older_state(start, state, monkeypatch, stop):
    whole = list(start("grpo")[0])
    first(3, start("grpo", resume=state)[0])

    def half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise stop

    with monkeypatch.context() as patch, pytest.raises(stop):
        patch.setattr(resume, "save_file", half)
        list(start("grpo", resume=state)[0])
    assert repr(list(start("grpo", resume=state)[0])) == repr(whole)
    assert [file.name for file in state.path.parent.iterdir()] == ["state"]


@pytest.mark.parametrize(
    ("loop", "options", "message"),
    [
        ("grpo", {"learning_rate": 0.02}, "its learning_rate is 0.01, here it is 0.02; call as that run was called"),
        ("grpo", {"temperature": 0.9}, "its temperature is 1.0, here it is 0.9"),
        ("grpo", {"reward_fn": length}, r"its reward_fn is \S+\.brevity, here it is \S+\.length"),
        ("rloo", {}, "its clip is 0.2, here it is not given"),
    ],
)
def test_the_state_of_another_run_is_refused(start, state, loop, options, message):
    first(2, start("grpo", resume=state)[0])
    with pytest.raises(ValueError, match=f"^{state.path} holds the state of another run: {message}"):
        next(start(loop, **options, resume=state)[0])


def test_the_default_of_a_setting_is_that_setting(start, state):
    first(2, start("grpo", resume=state)[0])
    assert next(start("grpo", seed=0, ref=None, resume=Resume(str(state.path), every=1))[0]).step == 1


class Step(NamedTuple):
    step: int
    steps: int


def relabeled(tokenizer):
    other = deepcopy(tokenizer)
    other.chat_template += " "
    return other


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        (lambda t: PROMPTS, lambda t: PROMPTS[::-1], r"5 rows \w{12}, here it is 5 rows \w{12};"),
        (lambda t: PROMPTS, lambda t: PROMPTS[:4], "5 rows .*, here it is 4 rows"),
        (lambda t: torch.nn.Linear(2, 2), lambda t: torch.nn.Linear(2, 2), r"Linear \w{12}, here it is Linear \w{12};"),
        (lambda t: t, relabeled, r"\w+ \w{12}, here it is"),
        (lambda t: ipo_loss, lambda t: partial(ipo_loss, beta=0.5), r"\S+ipo_loss, here it is .* {'beta': 0.5}"),
        (lambda t: Scorer(0).score, lambda t: Scorer(1).score, r"\S+Scorer.score of Scorer \w{12}, here it is"),
        (lambda t: Judge(), lambda t: length, r"\S+\.Judge, here"),
    ],
)
def test_what_another_run_is_told_by(tokenizer, state, was, now, message):
    resume.Run(state, Step, {"this": was(tokenizer)}).keep(Step(2, 4))
    with pytest.raises(ValueError, match=f"its this is {message}"):
        resume.Run(state, Step, {"this": now(tokenizer)})


class Scorer(torch.nn.Module):
    """A reward model in small: what it is told by is its weight."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(float(weight)))

    def score(self, prompts, responses):
        return self.weight


class Judge:
    def __call__(self, prompts, responses):
        return [0.0] * len(responses)


def test_the_same_things_made_anew_are_the_same_run(tokenizer, state):
    things = [lambda: list(PROMPTS), lambda: Scorer(0), lambda: deepcopy(tokenizer), lambda: Scorer(1).score, Judge]
    for number, make in enumerate([*things, lambda: partial(ipo_loss, beta=0.5), lambda: 0.1 + 0.2, lambda: None]):
        place = Resume(state.path.with_name(f"{number}"), every=1)
        resume.Run(place, Step, {"this": make()}).keep(Step(1, 4))
        assert resume.Run(place, Step, {"this": make(), "settings": {}, "resume": place}).records == [Step(1, 4)]


def test_the_state_is_written_every_so_many_steps_and_at_the_end(state):
    run, kept = resume.Run(state, Step, {}), []
    for step in range(1, 6):
        run.keep(Step(step, 5))
        kept.append(resume.Run(state, Step, {}).done)
    assert kept == [0, 2, 2, 4, 5]
    assert list(resume.Run(None, Step, {}).rest("abc")) == ["a", "b", "c"]


def test_optimizer_and_orders_come_back(state):
    """Two tensors of one optimizer, tied weights, two generators: each to its own place."""
    torch.manual_seed(3)
    weight = torch.nn.Linear(3, 3, bias=False)
    tied = torch.nn.ModuleList([weight, torch.nn.Linear(3, 3, bias=False)])
    tied[1].weight = weight.weight
    optimizer, order, choice = torch.optim.Adam(tied.parameters()), random.Random(1), random.Random(2)
    weight(torch.ones(3)).sum().backward()
    optimizer.step()
    numbers = order.getstate(), choice.getstate(), torch.get_rng_state()
    kept = {"model": tied, "optimizer": optimizer, "order": order, "choice": choice}
    before = deepcopy((tied.state_dict(), optimizer.state_dict()))
    resume.Run(state, Step, {}, **kept).keep(Step(2, 4))
    optimizer.step()
    weight.weight.data += 1
    order.random(), choice.random(), torch.rand(1)
    resume.Run(state, Step, {}, **kept)
    assert_close((tied.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)
    assert (order.getstate(), choice.getstate()) == numbers[:2] and torch.equal(torch.get_rng_state(), numbers[2])


def test_what_is_no_state_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"expected the path of a file .*, got the folder {tmp_path}"):
        Resume(tmp_path)
    with pytest.raises(ValueError, match="expected every >= 1 step, got 0"):
        Resume(tmp_path / "state", every=0)
    for content in (b"", b"half of something"):
        (tmp_path / "state").write_bytes(content)
        with pytest.raises(ValueError, match=f"^{tmp_path / 'state'} is not the state of a run .*: name another file"):
            resume.Run(Resume(tmp_path / "state"), Step, {})
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="is not the state of a run"):
        resume.Run(Resume(tmp_path / "model.safetensors"), Step, {})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="killed.py forks")
def test_a_killed_process_goes_on(tokenizer, taught, tmp_path):
    """Three times kill -9, anywhere in a step or while it is written; the fourth process finishes."""
    save(taught(), tokenizer, tmp_path / "model")
    script = Path(__file__).with_name("killed.py")
    command = [sys.executable, str(script), str(tmp_path / "model"), str(tmp_path / "state")]
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])}
    out = subprocess.run(command, env=os.environ | threads, check=True, capture_output=True, text=True).stdout
    found = json.loads(out)
    assert len(found["whole"]) == 12 and 6 <= found["seen"] < 12
    assert found["resumed"] == found["whole"]
