"""Every loop for a few steps, alike in one process and in several: test_accelerate.py compares what they record.

`accelerate launch several.py MODEL REF INTO` leaves the records, and what else the processes wrote, in INTO;
`python several.py MODEL REF INTO notebook` does so by way of `notebook_launcher`.
"""

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from accelerate import notebook_launcher

from picollm_lite import processes
from picollm_lite.chat import encode_conversation, user
from picollm_lite.data import Pair
from picollm_lite.models import RewardModel, load_policy, save
from picollm_lite.processes import is_main
from picollm_lite.stages import dpo, group_policy, online_dpo, ppo, rejection, reward, sampling, sft
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
WORK = Counter()  # of this process: answers that it sampled, and that it scored


def brevity(prompts, responses):
    WORK["scored"] += len(responses)
    return [-len(response) / 10 for response in responses]


def respond(policy, tokenizer, prompts, **settings):
    WORK["sampled"] += len(prompts)
    return RESPOND(policy, tokenizer, prompts, **settings)


def late():
    """As `is_main`, but the main process takes its time: others that do not wait for it find nothing."""
    time.sleep(0.3 * is_main())
    return is_main()


def large():
    """Enough numbers for two threads."""
    return torch.ones(2**20)


def pairs(tokenizer):
    def encode(question, answer):
        return encode_conversation(tokenizer, [*user(question), {"role": "assistant", "content": answer}])

    return [Pair(encode(question, better), encode(question, worse)) for question, better, worse in CHOICES]


def runs(model, ref):
    """The name of each loop, its run and the model that it trains. Batches of 7 and of 1 do not halve."""
    demos = [side for pair in pairs(load_policy(model, device="cpu")[1]) for side in pair][:7]
    groups = {"group_size": 3, "batch_size": 9, **SAMPLED}
    for loop in ("sft", "reward", "dpo", "ppo", "rloo", "grpo", "online_dpo", "rejection"):
        policy, tokenizer = load_policy(model, device="cpu")
        rated = {"tokenizer": tokenizer, "ref": load_policy(ref, device="cpu")[0], "gold_fn": brevity}
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
    return [list(record) for record in records], [weight.sum().item() for weight in model.parameters()]


def launched(model, ref, into):
    """In every process. What a process other than the main one writes shows by its name."""
    large().exp()
    rank, into, sampling.respond, processes.is_main = os.environ["RANK"], Path(into), respond, late
    found, work = {}, {}
    for loop, run, trained in runs(model, ref):
        WORK.clear()
        found[loop], work[loop] = numbers(run, trained), dict(WORK)
    policy, tokenizer = load_policy(model)
    settings = {"tokenizer": tokenizer, "ref": load_policy(ref)[0], "batch_size": 4, **SAMPLED}
    records = list(ppo.train(policy, brevity, PROMPTS, resume=Resume(into / f"state{rank}", every=2), **settings))
    save(policy, tokenizer, into / f"model{rank}")
    # At once, and by all: they may read what the main one has written.
    again, _ = load_policy(model)
    kept = list(ppo.train(again, brevity, PROMPTS, resume=Resume(into / "state0", every=2), **settings))
    saved, _ = load_policy(into / "model0")
    same = [repr(kept) == repr(records), is_main() == (rank == "0")]
    for one, other, half in zip(policy.parameters(), again.parameters(), saved.parameters(), strict=True):
        same += [torch.equal(one, other), torch.equal(one.half().float(), half)]
    (into / f"found{rank}.json").write_text(json.dumps({"loops": found, "work": work, "same": all(same)}))


RESPOND = sampling.respond
if __name__ == "__main__":
    if sys.argv[4:] == ["notebook"]:
        torch.set_num_threads(2)  # a notebook has computed something before, with OpenMP's threads
        large().exp()
        free_port = {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0"}
        notebook_launcher(launched, sys.argv[1:4], num_processes=2, **free_port)
    else:
        launched(*sys.argv[1:])
