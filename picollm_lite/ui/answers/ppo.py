"""Exercises of notebook 04."""

import torch

from picollm_lite.ui.grading import Exercise


def kl_estimators(logp: torch.Tensor, ref_logp: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """k1 = -log r, k2 = (log r)^2 / 2 and k3 = (r - 1) - log r, r = ref / policy, on tokens sampled from the policy."""
    log_r = ref_logp - logp
    return -log_r, log_r.square() / 2, torch.expm1(log_r) - log_r  # expm1(x) is exp(x) - 1 without loss of digits


def advantages(rewards: torch.Tensor, values: torch.Tensor, gamma: float, lam: float) -> torch.Tensor:
    """A_t = delta_t + gamma lam A_(t+1), delta_t = r_t + gamma V_(t+1) - V_t; V and A are 0 after the last token."""
    result = torch.zeros_like(rewards)  # (T,)
    next_value, next_advantage = 0.0, 0.0
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * next_value - values[t]
        next_advantage = delta + gamma * lam * next_advantage
        next_value = values[t]
        result[t] = next_advantage
    return result


def clipped_loss(
    logp: torch.Tensor, old_logp: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip: float
) -> torch.Tensor:
    """-mean over True of min(rho A, clamp(rho, 1 - clip, 1 + clip) A), rho = pi / pi_old; tensors (B, T)."""
    rho = (logp - old_logp).exp()  # (B, T)
    surrogate = torch.minimum(rho * advantages, rho.clamp(1 - clip, 1 + clip) * advantages)  # (B, T)
    return -surrogate[mask].mean()  # ()


def old_logprobs(logits: torch.Tensor, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
    """log p of each token under softmax(logits / temperature), where it came from; logits (T, V), tokens (T,)."""
    logp = (logits / temperature).log_softmax(-1)  # (T, V)
    return logp.gather(-1, tokens[:, None]).squeeze(-1)  # (T,)


def final_scores(scores: torch.Tensor, finished: torch.Tensor, penalty: float) -> torch.Tensor:
    """The scores, with the penalty in place of the score of every answer that never ended; all (B,)."""
    return scores.masked_fill(~finished, penalty)  # (B,)


def _one_ratio_turned(logp: torch.Tensor, ref_logp: torch.Tensor, which: int) -> tuple[torch.Tensor, ...]:
    turned = kl_estimators(ref_logp, logp)
    return tuple(turned[i] if i == which else k for i, k in enumerate(kl_estimators(logp, ref_logp)))


def _deltas(rewards: torch.Tensor, values: torch.Tensor, gamma: float, after: float = 0.0) -> torch.Tensor:
    next_values = torch.cat([values[1:], values.new_tensor([after])])
    return rewards + gamma * next_values - values


def _sweep(deltas: torch.Tensor, decay: float) -> torch.Tensor:
    return advantages(deltas, torch.zeros_like(deltas), decay, 1.0)


def _surrogate(rho: torch.Tensor, a: torch.Tensor, clip: float) -> torch.Tensor:
    return torch.minimum(rho * a, rho.clamp(1 - clip, 1 + clip) * a)


def _picked(logp: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return logp.gather(-1, tokens[:, None]).squeeze(-1)


EXERCISES = (
    Exercise(
        "kl_estimators",
        kl_estimators,
        [
            (torch.tensor([-1.0, -0.5, -2.0, -0.25]), torch.tensor([-1.5, -0.5, -1.25, -2.25])),
            (torch.tensor([[-3.0, -0.75], [-1.25, -0.5]]), torch.tensor([[-1.5, -1.0], [-1.0, -3.5]])),
        ],
        {
            "k1 has the sign turned round: it is log policy - log ref": lambda p, q: _one_ratio_turned(p, q, 0),
            "k3 has the ratio turned round: r is ref / policy, else it estimates chi-squared minus KL": lambda p, q: (
                _one_ratio_turned(p, q, 2)
            ),
            "the ratio is turned round throughout: r is ref / policy": lambda p, q: kl_estimators(q, p),
            "k1 must keep its sign: one token may be negative, the mean is the KL": lambda p, q: (
                (p - q).abs(),
                *kl_estimators(p, q)[1:],
            ),
            "k2 lacks the half": lambda p, q: (p - q, (p - q).square(), kl_estimators(p, q)[2]),
            "k3 lacks the -1: it must be 0 where the two models agree": lambda p, q: (
                *kl_estimators(p, q)[:2],
                (q - p).exp() - (q - p),
            ),
            "k3 lacks the log r: r - 1 alone has mean 0, whatever the KL": lambda p, q: (
                *kl_estimators(p, q)[:2],
                torch.expm1(q - p),
            ),
            "means: return one estimate a token": lambda p, q: tuple(k.mean() for k in kl_estimators(p, q)),
        },
        difficulty=2,
        minutes=8,
    ),
    Exercise(
        "advantages",
        advantages,
        [
            (torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.25, 0.5, 0.75]), 0.9, 0.5),
            (torch.tensor([-0.125, 0.25, -0.5, 1.5]), torch.tensor([0.5, -0.25, 1.0, 0.75]), 1.0, 0.95),
            (torch.tensor([-0.25, -0.5, 0.125, 0.0, -2.0]), torch.tensor([-1.0, -0.5, 0.25, -1.5, 1.0]), 0.8, 0.75),
        ],
        {
            "lambda is not used: this is the whole return minus the value (lam = 1)": lambda r, v, g, lam: advantages(
                r, v, g, 1.0
            ),
            "only the one-step delta (lam = 0): add gamma lam times the next advantage": lambda r, v, g, lam: (
                advantages(r, v, g, 0.0)
            ),
            "delta lacks gamma: the next value counts gamma times": lambda r, v, g, lam: _sweep(
                _deltas(r, v, 1.0), g * lam
            ),
            "the next advantage counts gamma lam times, not lam times": lambda r, v, g, lam: _sweep(
                _deltas(r, v, g), lam
            ),
            "the last value is used again after the end: there the answer is over, V is 0": lambda r, v, g, lam: _sweep(
                _deltas(r, v, g, after=float(v[-1])), g * lam
            ),
            "these are the returns: subtract the values": lambda r, v, g, lam: advantages(r, v, g, lam) + v,
            "delta lacks its own value: an advantage is what came beyond V_t": lambda r, v, g, lam: _sweep(
                _deltas(r, v, g) + v, g * lam
            ),
            "the recursion runs forward: an advantage sums what comes later, begin at the end": lambda r, v, g, lam: (
                _sweep(_deltas(r, v, g).flip(0), g * lam).flip(0)
            ),
            "the rewards are shifted by one: delta_t takes the reward of its own token": lambda r, v, g, lam: (
                advantages(torch.cat([r[1:], r.new_zeros(1)]), v, g, lam)
            ),
            "a list: stack it into one tensor of shape (T,)": lambda r, v, g, lam: list(advantages(r, v, g, lam)),
        },
        difficulty=3,
        minutes=15,
    ),
    Exercise(
        "clipped_loss",
        clipped_loss,
        [  # ratios above, inside and below the range, with advantages of both signs; anything may stand at padding
            (
                torch.tensor([[-0.5, -2.5, -0.5], [-1.0, -1.5, -1.0]]),
                torch.tensor([[-1.0, -2.0, -0.5], [-1.5, -0.75, -3.0]]),
                torch.tensor([[1.0, 2.0, -0.5], [-1.5, -1.0, 3.0]]),
                torch.tensor([[True, True, True], [True, True, False]]),
                0.2,
            ),
            (
                torch.tensor([[-1.0, -0.25, -3.0, -2.0], [-0.5, -1.25, -2.0, -0.75]]),
                torch.tensor([[-1.0, -1.75, -1.5, -2.25], [-2.0, -0.25, -1.0, -0.75]]),
                torch.tensor([[2.0, -0.5, -1.0, 0.5], [1.25, 1.5, -2.0, 1.0]]),
                torch.tensor([[False, True, True, True], [True, True, False, False]]),
                0.5,
            ),
        ],
        {
            "the maximum: take the minimum, the more cautious of the two": lambda p, q, a, m, c: (
                -torch.maximum((p - q).exp() * a, (p - q).exp().clamp(1 - c, 1 + c) * a)[m].mean()
            ),
            "the minus is missing: the surrogate is to rise, a loss is to fall": lambda p, q, a, m, c: (
                -clipped_loss(p, q, a, m, c)
            ),
            "the ratio is turned round: it is new / old": lambda p, q, a, m, c: clipped_loss(q, p, a, m, c),
            "the ratio is exp(logp - old_logp): this is its logarithm": lambda p, q, a, m, c: (
                -_surrogate(p - q, a, c)[m].mean()
            ),
            "only the clipped term: without the minimum, a bad move out of the range is never undone": (
                lambda p, q, a, m, c: -((p - q).exp().clamp(1 - c, 1 + c) * a)[m].mean()
            ),
            "nothing is clipped: a ratio far from 1 gains without limit": lambda p, q, a, m, c: (
                -((p - q).exp() * a)[m].mean()
            ),
            "the logarithm was clipped to +-clip: clip the ratio to [1 - clip, 1 + clip]": lambda p, q, a, m, c: (
                -torch.minimum((p - q).exp() * a, (p - q).clamp(-c, c).exp() * a)[m].mean()
            ),
            "the mask is not used: padding counts too": lambda p, q, a, m, c: -_surrogate((p - q).exp(), a, c).mean(),
            "the mean runs over every position: divide by the number of True": lambda p, q, a, m, c: (
                -(_surrogate((p - q).exp(), a, c) * m).mean()
            ),
            "the mean of row means: here every token counts the same, whatever its row": lambda p, q, a, m, c: (
                -((_surrogate((p - q).exp(), a, c) * m).sum(1) / m.sum(1)).mean()
            ),
            "a sum: divide by the number of True": lambda p, q, a, m, c: -_surrogate((p - q).exp(), a, c)[m].sum(),
        },
        difficulty=2,
        minutes=10,
    ),
    Exercise(
        "old_logprobs",
        old_logprobs,
        [
            (
                torch.tensor([[1.0, -0.5, 0.25, 0.0], [0.5, 2.0, -1.0, 0.75], [-0.25, 0.5, 1.5, -1.5]]),
                torch.tensor([1, 3, 2]),
                0.5,
            ),
            (
                torch.tensor([[0.0, 1.5, -2.0], [2.5, -0.5, 1.0], [-1.0, 0.75, 0.5], [1.25, 0.25, -0.75]]),
                torch.tensor([0, 2, 1, 0]),
                1.5,
            ),
        ],
        {
            "the temperature is not used: nothing was sampled from the distribution at 1": lambda z, y, t: _picked(
                z.log_softmax(-1), y
            ),
            "multiplied: the logits are divided by the temperature": lambda z, y, t: old_logprobs(z, y, 1 / t),
            "log-probs were divided after the softmax: divide the logits, else p does not sum to 1": lambda z, y, t: (
                _picked(z.log_softmax(-1) / t, y)
            ),
            "the temperature was applied twice": lambda z, y, t: old_logprobs(z, y, t * t),
            "no log-softmax: logits are not log-probs yet": lambda z, y, t: _picked(z / t, y),
            "probabilities: take their log": lambda z, y, t: _picked((z / t).softmax(-1), y),
        },
        difficulty=2,
        minutes=8,
    ),
    Exercise(
        "final_scores",
        final_scores,
        [
            (torch.tensor([1.5, -0.5, 2.0, -4.0]), torch.tensor([True, False, False, False]), -3.0),
            (torch.tensor([0.5, 2.5, -1.5, 1.0, -0.25]), torch.tensor([False, True, False, True, True]), -1.0),
        ],
        {
            "nothing was replaced: an answer that never ends keeps its score, so running on may pay": lambda s, f, p: (
                s.clone()
            ),
            "turned round: `finished` is True for the answers that keep their score": lambda s, f, p: s.masked_fill(
                f, p
            ),
            "added: a high score would outweigh the penalty and running on still pay; our rule replaces": (
                lambda s, f, p: s + p * ~f
            ),
            "subtracted: the penalty is negative, so this raises the score; our rule replaces it": lambda s, f, p: (
                s - p * ~f
            ),
            "set to 0: that beats many answers that did end; the penalty is the new score": lambda s, f, p: s * f,
            "the penalty went to all: an answer that ended keeps its score": lambda s, f, p: torch.full_like(s, p),
            "the lower of the two: our rule replaces, whatever the score was": lambda s, f, p: torch.where(
                f, s, s.clamp(max=p)
            ),
            "unfinished answers were left out: every answer keeps its place": lambda s, f, p: s[f],
        },
        difficulty=1,
        minutes=5,
    ),
)
