"""Peer check: from the same conversations, model and settings, TRL's trainers and ours get the same numbers.

TRL's own tokenization, collation and `compute_loss` are used. Where its conventions differ, both are computed.
"""

from functools import partial

import pytest
import torch
from datasets import Dataset
from torch.testing import assert_close
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from picollm_lite.chat import user
from picollm_lite.data import collate, encode_demos, encode_pairs
from picollm_lite.kernels.losses import (
    bradley_terry_loss,
    cdpo_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    robust_dpo_loss,
)
from picollm_lite.models import RewardModel
from picollm_lite.stages import dpo, reward, sft
from picollm_lite.stages.optimization import BETAS, cosine_schedule

# Inside TRL 1.16: it asks transformers 5.23 for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

BETA, EPS = 0.5, 0.1
EPOCHS, RATE = 3, 1e-3  # every epoch is one step, so that the order of the rows does not matter
SYSTEM = {"role": "system", "content": "Be brief."}
PAIRS = [  # answers of unequal lengths: a loss that averages over tokens would show
    (user("What is a token?"), "A token is a unit of text.", "Thanks."),
    (user("Why?"), "It splits words.", "Why? It is a unit of text. A token splits it. Thanks."),
    ([SYSTEM, *user("What is a unit?")], "Text.", "A unit is a token."),
    (user("Is text a token?"), "Thanks. Why?", "It is."),
]
DEMOS = [
    [*user("What is a token?"), {"role": "assistant", "content": "A token is a unit of text."}],
    [SYSTEM, *user("Why?"), {"role": "assistant", "content": "It splits words."}],
    [
        *user("Why?"),
        {"role": "assistant", "content": "Thanks."},
        *user("What is text? Be brief."),
        {"role": "assistant", "content": "A unit."},
    ],
]

close = partial(assert_close, rtol=1e-5, atol=1e-5, check_dtype=False)


@pytest.fixture
def model(tiny_model):
    """Weights large enough that implicit rewards differ by more than a nat: both arms of the hinge are used."""
    return partial(tiny_model, initializer_range=0.5)


@pytest.fixture(scope="module")
def preferences():
    def said(text):
        return [{"role": "assistant", "content": text}]

    return Dataset.from_list([{"prompt": x, "chosen": said(c), "rejected": said(r)} for x, c, r in PAIRS])


@pytest.fixture(scope="module")
def pairs(preferences, tokenizer):
    return encode_pairs(preferences, tokenizer)


@pytest.fixture
def options(tmp_path):
    """For every TRL configuration: our optimizer's settings, fp32 on the CPU, nothing written or reported."""
    return {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": len(PAIRS),
        "num_train_epochs": EPOCHS,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


@pytest.fixture
def dpo_trainer(tokenizer, preferences, options):
    def make(policy, ref, data=preferences, **settings):
        args = DPOConfig(**options, beta=BETA, **settings)
        return DPOTrainer(
            policy, ref, args=args, train_dataset=data, processing_class=tokenizer, optimizers=optimizers(policy)
        )

    return make


@pytest.fixture
def reward_trainer(tokenizer, preferences, options):
    def make(classifier):
        return RewardTrainer(
            classifier,
            args=RewardConfig(**options),
            train_dataset=preferences,
            processing_class=tokenizer,
            optimizers=optimizers(classifier),
        )

    return make


@pytest.fixture
def sft_trainer(tokenizer, options):
    def make(policy):
        return SFTTrainer(
            policy,
            args=SFTConfig(**options, assistant_only_loss=True),
            train_dataset=Dataset.from_list([{"messages": messages} for messages in DEMOS]),
            processing_class=tokenizer,
            optimizers=optimizers(policy),
        )

    return make


@pytest.fixture
def demos(tokenizer):
    return encode_demos(Dataset.from_list([{"messages": messages} for messages in DEMOS]), tokenizer)


def optimizers(trained):
    """transformers counts the warmup one step later than we do, so TRL gets our schedule."""
    optimizer = torch.optim.AdamW(trained.parameters(), lr=RATE, betas=BETAS, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: cosine_schedule(done + 1, EPOCHS, 0.1))
    return optimizer, schedule


def whole_batch(trainer):
    """Every row in order, through the trainer's data set and collator."""
    return trainer.data_collator([trainer.train_dataset[row] for row in range(len(trainer.train_dataset))])


def ours(loss, policy, ref, pairs, pad, **settings):
    logp = dpo.pair_logprobs(policy, pairs, dpo.reference_logprobs(ref, pairs, pad), pad)
    return dpo.pair_loss(partial(loss, beta=BETA, **settings), logp)


def same_gradients(model, other):
    for (name, parameter), (other_name, twin) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert name == other_name
        close(parameter.grad, twin.grad, msg=lambda text, name=name: f"{name}: {text}")


def same_steps(records, trainer, names):
    """`names`: our field -> TRL's metric, at every step of a whole run."""
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(records) == len(logs) == EPOCHS
    for field, metric in {"loss": "loss", "grad_norm": "grad_norm", "learning_rate": "learning_rate", **names}.items():
        got, expected = [getattr(record, field) for record in records], [log[metric] for log in logs]
        assert got == pytest.approx(expected, rel=1e-5, abs=1e-5), field


# ---- DPO and its family


def test_dpo_tokens_and_completion_masks(model, dpo_trainer, pairs, tokenizer):
    batch = whole_batch(dpo_trainer(model(), model(seed=1)))
    tokens, mask = collate([p.chosen for p in pairs] + [p.rejected for p in pairs], tokenizer.pad_token_id)
    assert torch.equal(batch["input_ids"], tokens)
    assert torch.equal(batch["completion_mask"].bool(), mask)


def test_dpo_log_probs_and_implicit_rewards(model, dpo_trainer, pairs, tokenizer):
    policy, ref = model(), model(seed=1)
    trainer = dpo_trainer(policy, ref)
    batch = whole_batch(trainer)
    theirs = [torch.stack(trainer.compute_ref_log_probs(side, batch), dim=1) for side in (policy, ref)]  # (B, 2)
    for logp, side in zip(theirs, (policy, ref), strict=True):
        close(dpo.reference_logprobs(side, pairs, tokenizer.pad_token_id), logp)
    got = ours(dpo_loss, policy, ref, pairs, tokenizer.pad_token_id)
    close(torch.stack(got[1:], dim=1), BETA * (theirs[0] - theirs[1]))
    assert (got.chosen_rewards - got.rejected_rewards).abs().max() > 1


@pytest.mark.parametrize(
    ("loss", "settings", "theirs"),
    [
        (dpo_loss, {}, {"loss_type": "sigmoid"}),
        (hinge_loss, {}, {"loss_type": "hinge"}),
        (robust_dpo_loss, {"label_smoothing": EPS}, {"loss_type": "robust", "label_smoothing": EPS}),
    ],
)
def test_preference_losses_and_their_gradients(model, dpo_trainer, pairs, tokenizer, loss, settings, theirs):
    policy, twin, ref = model(), model(), model(seed=1)
    trainer = dpo_trainer(twin, ref, **theirs)
    expected = trainer.compute_loss(twin, whole_batch(trainer))
    got = ours(loss, policy, ref, pairs, tokenizer.pad_token_id, **settings).losses.mean()
    close(got, expected)
    got.backward(), expected.backward()
    same_gradients(policy, twin)


def test_cdpo_is_what_trl_calls_aot_on_one_pair(model, dpo_trainer, preferences, pairs, tokenizer):
    """TRL 1.16 has no conservative DPO: "sigmoid" ignores label_smoothing. "aot" sorts the batch, then smooths."""
    policy, ref, pad = model(), model(seed=1), tokenizer.pad_token_id
    for row, pair in enumerate(pairs[:2]):
        trainer = dpo_trainer(policy, ref, preferences.select([row]), loss_type="aot", label_smoothing=EPS)
        expected = trainer.compute_loss(policy, whole_batch(trainer))
        close(ours(cdpo_loss, policy, ref, [pair], pad, label_smoothing=EPS).losses.mean(), expected)
    trainer = dpo_trainer(policy, ref, loss_type="sigmoid", label_smoothing=EPS)
    close(ours(dpo_loss, policy, ref, pairs, pad).losses.mean(), trainer.compute_loss(policy, whole_batch(trainer)))


def test_ipo_sums_log_probs_where_trl_averages_them(model, dpo_trainer, pairs, tokenizer):
    """Ours follows Azar et al., eq. 17, where h is the ratio of whole answers; TRL divides each side by its length.

    One formula, two inputs: on the log-probs a token it gives TRL's number, on their sums the paper's.
    """
    policy, ref = model(), model(seed=1)
    trainer = dpo_trainer(policy, ref, loss_type="ipo")
    batch = whole_batch(trainer)
    logp, ref_logp = (torch.cat(trainer.compute_ref_log_probs(side, batch)) for side in (policy, ref))  # (2 B,)
    lengths = batch["completion_mask"].sum(1)  # (2 B,)
    averaged = ipo_loss(*(logp / lengths).chunk(2), *(ref_logp / lengths).chunk(2), beta=BETA).losses
    close(averaged.mean(), trainer.compute_loss(policy, batch))
    chosen, rejected = (logp - ref_logp).chunk(2)  # (B,) each
    summed = ours(ipo_loss, policy, ref, pairs, tokenizer.pad_token_id).losses
    close(summed, (chosen - rejected - 1 / (2 * BETA)) ** 2)
    assert summed.mean() > 2 * averaged.mean()  # the lengths here make the two conventions far apart


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({}, {"loss_type": "sigmoid"}),
        ({"sft_weight": 0.3}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.3]}),
    ],
)
def test_a_run_of_dpo(model, dpo_trainer, pairs, tokenizer, settings, theirs):
    policy, twin, ref = model(), model(), model(seed=1)
    run = {"epochs": EPOCHS, "batch_size": len(pairs), "learning_rate": RATE, "beta": BETA, **settings}
    records = list(dpo.train(policy, pairs, tokenizer=tokenizer, ref=ref, **run))
    names = {f"{side}_reward": f"rewards/{side}" for side in ("chosen", "rejected")}
    names |= {f"{side}_logp": f"logps/{side}" for side in ("chosen", "rejected")}
    same_steps(
        records,
        dpo_trainer(twin, ref, **theirs),
        {**names, "margin": "rewards/margins", "accuracy": "rewards/accuracies"},
    )


# ---- Reward model


def test_reward_loss_scores_and_gradients(model, reward_trainer, pairs, tokenizer):
    reward_model, twin = (RewardModel.from_policy(model(), tokenizer) for _ in range(2))
    trainer = reward_trainer(twin.model)
    expected, outputs = trainer.compute_loss(twin.model, whole_batch(trainer), return_outputs=True)
    chosen, rejected = reward.score_pairs(reward_model, pairs)
    close(torch.cat([chosen, rejected]), outputs.logits.squeeze(-1))
    got = bradley_terry_loss(chosen, rejected).mean()
    close(got, expected)
    got.backward(), expected.backward()
    same_gradients(reward_model.model, twin.model)


def test_a_run_of_the_reward_model(model, reward_trainer, pairs, tokenizer):
    reward_model, twin = (RewardModel.from_policy(model(), tokenizer) for _ in range(2))
    run = {"epochs": EPOCHS, "batch_size": len(pairs), "learning_rate": RATE, "off_prompt_weight": 0.0}
    records = list(reward.train(reward_model, pairs, **run))
    same_steps(records, reward_trainer(twin.model), {"accuracy": "accuracy", "margin": "margin"})


# ---- SFT


def test_sft_labels_loss_and_gradients(model, sft_trainer, demos, tokenizer):
    policy, twin = model(), model()
    trainer = sft_trainer(twin)
    batch = whole_batch(trainer)
    tokens, mask = collate(demos, tokenizer.pad_token_id)
    assert torch.equal(batch["input_ids"], tokens)
    assert torch.equal(batch["labels"], tokens.masked_fill(~mask, -100))
    expected = trainer.compute_loss(twin, batch)
    got = sft.batch_loss(policy, collate(demos, tokenizer.pad_token_id))
    close(got, expected)
    got.backward(), expected.backward()
    same_gradients(policy, twin)


def test_a_run_of_sft(model, sft_trainer, demos, tokenizer):
    policy, twin = model(), model()
    run = {"epochs": EPOCHS, "batch_size": len(demos), "learning_rate": RATE}
    records = list(sft.train(policy, demos, pad_token_id=tokenizer.pad_token_id, **run))
    same_steps(records, sft_trainer(twin), {})
