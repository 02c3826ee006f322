"""Supervised fine-tuning: next-token loss on what the assistant wrote, and on nothing else.

Left out of the usual recipe: attention masks, as rows are padded on the right, where a causal model does not look.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from picollm_lite.chat import Encoded
from picollm_lite.data import Batch, collate, epoch_batches
from picollm_lite.kernels.losses import sft_loss
from picollm_lite.processes import spread
from picollm_lite.scoring import masked_logprobs
from picollm_lite.stages.optimization import adamw, check_loss, cosine_schedule, descend, set_rate
from picollm_lite.stages.resume import Resume, Run


class SFTStep(NamedTuple):
    """One optimizer step. Losses are in nats a response token; `val_loss` is NaN on steps without an evaluation."""

    step: int  # from 1
    steps: int  # in the whole run
    epoch: float
    loss: float
    val_loss: float
    learning_rate: float
    grad_norm: float  # before clipping


def train(
    policy: nn.Module,
    demos: Sequence[Encoded],
    *,
    pad_token_id: int,
    val: Sequence[Encoded] = (),
    epochs: int = 2,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    warmup: float = 0.1,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    eval_every: int = 20,
    seed: int = 0,
    resume: Resume | None = None,
) -> Iterator[SFTStep]:
    """Train `policy` in place; yields a record a step. Stop whenever you like: the policy stays usable.

    AdamW, linear warmup over the first `warmup` share of the steps, then cosine decay to zero. With `resume` a run that
    was cut off goes on.
    Raises ValueError for no demonstrations, FloatingPointError naming the step when loss or gradient is not finite.
    """
    given = dict(locals())
    if not demos:
        raise ValueError("sft: no demonstrations to train on")
    lengths = [len(example.tokens) for example in demos]
    batches = epoch_batches(lengths, batch_size, epochs=epochs, seed=seed)
    optimizer = adamw(policy, learning_rate, weight_decay)
    run = Run(resume, SFTStep, given, policy=policy, optimizer=optimizer)
    try:
        policy.eval()
        yield from run.records
        for step, rows in run.rest(enumerate(batches, start=1)):
            policy.train()
            loss = batch_loss(policy, collate([demos[row] for row in rows], pad_token_id))
            check_loss(loss, f"sft, step {step}")
            optimizer.zero_grad()
            loss.backward()
            rate = learning_rate * cosine_schedule(step, len(batches), warmup)
            set_rate(optimizer, rate)
            norm = descend(optimizer, policy.parameters(), f"sft, step {step}", max_grad_norm=max_grad_norm)
            policy.eval()  # the caller may sample, save or stop at every yield
            due = val and (step % eval_every == 0 or step == len(batches))
            val_loss = evaluate(policy, val, pad_token_id=pad_token_id) if due else math.nan
            epoch = step * epochs / len(batches)
            yield run.keep(SFTStep(step, len(batches), epoch, loss.item(), val_loss, rate, norm))
    finally:
        policy.eval()


@torch.no_grad()
def evaluate(policy: nn.Module, demos: Sequence[Encoded], *, pad_token_id: int, batch_size: int = 128) -> float:
    """Mean loss in nats a response token, dropout off."""
    was_training = policy.training
    policy.eval()
    total, count = 0.0, 0
    rows = sorted(range(len(demos)), key=lambda row: len(demos[row].tokens))
    for start in range(0, len(rows), batch_size):
        batch = collate([demos[row] for row in rows[start : start + batch_size]], pad_token_id)
        n = int(batch.response_mask[:, 1:].sum())
        total, count = total + n * batch_loss(policy, batch).item(), count + n
    policy.train(was_training)
    return total / count


def batch_loss(policy: nn.Module, batch: Batch) -> Tensor:
    """SFT loss of one batch."""
    logp = spread(lambda *rows: masked_logprobs(policy, *rows)[0], *batch)  # (B, L-1)
    return sft_loss(logp, batch.response_mask[:, 1:].to(logp.device))  # ()
