"""PPO runs that are killed: `python killed.py MODEL STATE` prints the records of a run that was never cut off, and then
those of one that was killed three times; test_resume.py compares them. Each run is a child of this process.
"""

import json
import os
import random
import signal
import sys
import time
from itertools import islice

from picollm_lite.models import load_policy
from picollm_lite.stages import ppo
from picollm_lite.stages.resume import Resume

PROMPTS = ["What is a token?", "Why?", "Be brief. What is a token?", "Thanks.", "It splits words."]
SETTINGS = {"steps": 12, "batch_size": 8, "minibatch_size": 3, "max_new_tokens": 6, "kl_target": 0.1, "kl_horizon": 50}


def brevity(prompts, responses):
    return [-len(response) / 10 for response in responses]


def child(model, resume):
    """A process that writes each record as a line, and the end of the pipe that it writes to."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, os.fdopen(read)
    policy, tokenizer = load_policy(model, device="cpu")
    for record in ppo.train(policy, brevity, PROMPTS, tokenizer=tokenizer, resume=resume, **SETTINGS):
        os.write(write, f"{record!r}\n".encode())
    os._exit(0)


def finished(model, resume):
    pid, lines = child(model, resume)
    records = list(lines)
    os.waitpid(pid, 0)
    return records


def main(model, state):
    started = time.perf_counter()
    whole, rng, seen = finished(model, None), random.Random(0), 0
    step = (time.perf_counter() - started) / len(whole)  # seconds
    for _ in range(3):
        pid, lines = child(model, Resume(state, every=1))
        seen = len(list(islice(lines, seen + rng.randint(2, 3))))
        time.sleep(step * rng.random())  # anywhere in a step, or while it is written
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    print(json.dumps({"whole": whole, "resumed": finished(model, Resume(state, every=1)), "seen": seen}))


main(*sys.argv[1:])
