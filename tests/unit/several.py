"""Every loop for a few steps, alike in one process and in several: test_processes.py compares what they record.

`accelerate launch several.py MODEL REF INTO` leaves the records, and what else the processes wrote, in INTO;
`python several.py MODEL REF INTO notebook` does so by way of `notebook_launcher`.
"""

import json
import os
import sys
from pathlib import Path

from accelerate import notebook_launcher

from picollm_lite.chat import encode_conversation, user
from picollm_lite.data import Pair
from picollm_lite.models import RewardModel, load_policy, save
from picollm_lite.processes import is_main
from picollm_lite.stages import dpo, group_policy, online_dpo, ppo, rejection, reward, sft
from picollm_lite.stages.resume import Resume

PROMPTS = ["What is a token?", "Why?", "Be brief. What is a token?", "Thanks.", "It splits words."]
CHOICES = [  # sides of different lengths, so that a mean of means would be another number
    ("What is a token?", "A token is a unit of text.", "Thanks."),
    ("Why?", "It splits words.", "Why? Be brief. Why? Be brief."),
    ("Be brief. What is a token?", "A unit.", "It is a token."),
    ("What is a unit of text?", "A token.", "It splits words. Thanks."),
    ("Why is it a token? Be brief.", "Thanks. It is a token. A token is a unit.", "Why?"),
]
RATES = {"learning_rate": 0.005, "warmup": 0.0}
SAMPLED = {"steps": 3, "max_new_tokens": 6, "seed": 1, **RATES}


def brevity(prompts, responses):
    return [-len(response) / 10 for response in responses]


def pairs(tokenizer):
    def encode(question, answer):
        return encode_conversation(tokenizer, [*user(question), {"role": "assistant", "content": answer}])

    return [Pair(encode(question, better), encode(question, worse)) for question, better, worse in CHOICES]


def runs(model, ref):
    """The name of each loop, its run and the model that it trains. Batches of 7 and of 1 do not halve."""
    demos = [side for pair in pairs(load_policy(model)[1]) for side in pair][:7]
    groups = {"group_size": 3, "batch_size": 9, **SAMPLED}
    for loop in ("sft", "reward", "dpo", "ppo", "rloo", "grpo", "online_dpo", "rejection"):
        policy, tokenizer = load_policy(model)
        rated = {"tokenizer": tokenizer, "ref": load_policy(ref)[0], "gold_fn": brevity}
        sampled = (policy, brevity, PROMPTS)
        if loop == "sft":
            settings = {"pad_token_id": tokenizer.pad_token_id, "batch_size": 3, "val": demos, "eval_every": 2}
            yield loop, sft.train(policy, demos, epochs=1, **settings, **RATES), policy
        elif loop == "reward":
            scorer = RewardModel.from_policy(policy, tokenizer)
            run = reward.train(scorer, pairs(tokenizer), val=pairs(tokenizer)[:3], batch_size=3, epochs=2, **RATES)
            yield loop, run, scorer.model
        elif loop == "dpo":
            settings = {"prompts": PROMPTS, "eval_every": 2, "sft_weight": 0.1, "batch_size": 3, "beta": 0.5}
            yield loop, dpo.train(policy, pairs(tokenizer), **rated, **settings, **RATES), policy
        elif loop == "ppo":
            yield loop, ppo.train(*sampled, batch_size=7, minibatch_size=3, kl_target=1.0, **rated, **SAMPLED), policy
        elif loop == "rejection":
            yield loop, rejection.train(*sampled, minibatch_size=2, **rated, **groups), policy
        else:
            train = online_dpo.train if loop == "online_dpo" else getattr(group_policy, loop)
            more = {"grpo": {"minibatch_size": 4}, "online_dpo": {"move_ref_every": 1}}
            yield loop, train(*sampled, **rated, **groups, **more.get(loop, {})), policy


def numbers(records, model):
    """What two runs are compared by: all that is recorded, and the sums of the trained weights."""
    return [list(record) for record in records], [float(weight.sum()) for weight in model.parameters()]


def launched(model, ref, into):
    """In every process. What a process other than the main one writes shows by its name."""
    rank = os.environ["RANK"]
    found = {loop: numbers(run, trained) for loop, run, trained in runs(model, ref)}
    (Path(into) / f"found{rank}.json").write_text(json.dumps(found))
    policy, tokenizer = load_policy(model)
    state = Resume(Path(into) / f"state{rank}", every=1)
    list(ppo.train(policy, brevity, PROMPTS, tokenizer=tokenizer, batch_size=4, resume=state, **SAMPLED))
    save(policy, tokenizer, Path(into) / f"model{rank}")
    assert is_main() == (rank == "0")


if __name__ == "__main__":
    if sys.argv[4:] == ["notebook"]:
        free_port = {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0"}
        notebook_launcher(launched, sys.argv[1:4], num_processes=2, **free_port)
    else:
        launched(*sys.argv[1:])
