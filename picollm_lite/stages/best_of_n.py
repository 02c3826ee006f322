"""Best-of-n: draw n answers, keep the one with the highest score. It trains nothing, and every answer costs n.

From one set of N draws a prompt follows what every n up to N would give, and how far that is from the policy.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import rel_entr
from torch import nn
from transformers import PreTrainedTokenizerBase

from picollm_lite.chat import MAX_NEW_TOKENS, respond
from picollm_lite.stages.sampling import RewardFn, checked_scores


class Draws(NamedTuple):
    """N answers to each of P prompts."""

    prompts: list[str]
    texts: list[list[str]]  # (P, N)
    proxy: Float[np.ndarray, "P N"]  # as the reward function gave it
    gold: Float[np.ndarray, "P N"]  # NaN without a gold_fn
    score: Float[np.ndarray, "P N"]  # what is picked by: the proxy, or `unfinished_score` for what never ended
    logp: Float[np.ndarray, "P N"]  # nats an answer, under the sampling policy
    length: Float[np.ndarray, "P N"]  # tokens
    finished: Float[np.ndarray, "P N"]  # 1 for an answer that ended, else 0
    answer: Int[np.ndarray, "P N"]  # the number of the first draw for its prompt with the same tokens


class BestOfN(NamedTuple):
    """What best-of-n gives at one n: means over the prompts, expected over the draws."""

    n: int
    rollouts: int  # answers sampled, n a prompt
    proxy: float
    gold: float  # NaN without a gold_fn
    kl: float  # to the sampling policy, measured: nats an answer
    kl_bound: float  # log n - (n-1)/n
    length: float  # tokens
    finished: float  # share of answers that ended


def draw(
    policy: nn.Module,
    reward_fn: RewardFn,
    prompts: Sequence[str],
    n: int,
    *,
    tokenizer: PreTrainedTokenizerBase,
    gold_fn: RewardFn | None = None,
    unfinished_score: float | None = -3.0,
    temperature: float = 1.0,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 512,
    seed: int = 0,
) -> Draws:
    """Sample n answers a prompt and score them; the same answer to a prompt is scored once.

    Raises ValueError without prompts, for n < 1, and for scores that are not one finite number each.
    """
    if not prompts or n < 1:
        raise ValueError(f"expected at least one prompt and n >= 1, got {len(prompts)} prompts and n = {n}")
    repeated = [prompt for prompt in prompts for _ in range(n)]
    texts, tokens, numbers = [], [], []
    for number, start in enumerate(range(0, len(repeated), batch_size)):
        options = {"temperature": temperature, "max_new_tokens": max_new_tokens}
        batch = repeated[start : start + batch_size]
        sample, said = respond(policy, tokenizer, batch, seed=seed * 1_000_003 + number, **options)
        texts += said
        response, mask = sample.tokens[:, -sample.response_mask.shape[1] :], sample.response_mask
        tokens += [tuple(row[counts].tolist()) for row, counts in zip(response, mask, strict=True)]
        numbers.append(torch.stack([sample.logp.sum(1), mask.sum(1), sample.finished]).double().cpu())
    shape = (len(prompts), n)
    logp, length, finished = torch.cat(numbers, dim=1).numpy().reshape(3, *shape)
    proxy = _scored_once(reward_fn, repeated, texts, "best-of-n").reshape(shape)
    gold = np.full(shape, math.nan)
    if gold_fn is not None:
        gold = _scored_once(gold_fn, repeated, texts, "best-of-n, gold").reshape(shape)
    score = proxy if unfinished_score is None else np.where(finished, proxy, unfinished_score)
    answer = np.array([_first_places(row) for row in _split(tokens, n)])
    return Draws(list(prompts), _split(texts, n), proxy, gold, score, logp, length, finished, answer)


def best(draws: Draws, n: int | None = None) -> list[str]:
    """Each prompt's answer with the highest score among its first n draws, or all: what best-of-n says.

    Raises ValueError unless n draws a prompt are there.
    """
    n = draws.score.shape[1] if n is None else n
    if not 1 <= n <= draws.score.shape[1]:
        raise ValueError(f"expected n from 1 to the {draws.score.shape[1]} draws a prompt, got {n}")
    return [row[i] for row, i in zip(draws.texts, draws.score[:, :n].argmax(1), strict=True)]


def curve(draws: Draws) -> list[BestOfN]:
    """Best-of-n for every n from 1 to N. The KL is the less certain the nearer n is to N: see `level_masses`."""
    P, N = draws.score.shape
    n = np.arange(1, N + 1)
    values = (draws.proxy, draws.gold, draws.length, draws.finished)
    proxy, gold, length, finished = (expected_best(draws.score, value) for value in values)
    per_prompt = zip(draws.score, draws.logp, draws.answer, strict=True)
    kl = np.mean([best_of_n_kl(level_masses(*row), n) for row in per_prompt], axis=0)
    rows = zip(n, n * P, proxy, gold, kl, kl_bound(n), length, finished, strict=True)
    return [BestOfN(int(k), int(rollouts), *map(float, rest)) for k, rollouts, *rest in rows]


def expected_best(score: Float[np.ndarray, "P N"], values: Float[np.ndarray, "P N"]) -> Float[np.ndarray, " N"]:
    """Expected value of the draw with the highest score among n = 1 to N, mean over prompts.

    Unbiased, as the mean over all subsets of n out of N: the i-th best is the best of C(N-i, n-1) of them (the
    estimator of WebGPT, Nakano et al. 2021; Hilton and Gao 2022). Ties are broken evenly.
    """
    N = score.shape[1]
    share = np.array(
        [[math.comb(N - i, n - 1) / math.comb(N, n) for n in range(1, N + 1)] for i in range(1, N + 1)]
    )  # (N, N): rank, n
    total = np.zeros(N)
    for scores, row in zip(score, values, strict=True):
        _, tied, counts = np.unique(-scores, return_inverse=True, return_counts=True)
        evened = (np.bincount(tied, row) / counts)[tied]
        total += evened[np.argsort(tied)] @ share
    return total / len(score)


def kl_bound(n: Int[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """log n - (n-1)/n: the KL of best-of-n where no two answers have one score (Stiennon et al. 2020).

    With ties, or answers that have mass, it is an upper bound: Beirami et al. 2024.
    """
    n = np.asarray(n)
    return np.log(n) - (n - 1) / n


def best_of_n_kl(masses: Float[np.ndarray, " S"], n: Int[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """KL(best-of-n || policy) in nats, exact, from the policy's mass on each score, lowest score first.

    Let F(s) and F-(s) be the masses at or below the score s and below it, so that p(s) = F - F-. The best of n has the
    score s with probability q(s) = F^n - F-^n (all n at or below s, but not all below). Given s it is an answer that
    the policy would give at s, as ties are broken evenly: so pi_n(y) / pi(y) = q(s) / p(s) for every answer at s, and
    KL = sum_s q log(q / p). Where each p is small q / p tends to n F^(n-1), whose KL is `kl_bound`.
    """
    F = np.cumsum(masses) / np.sum(masses)  # (S,)
    powers = np.concatenate([[0.0], F]) ** np.asarray(n)[:, None]  # (K, S+1)
    return rel_entr(np.diff(powers), np.diff(F, prepend=0.0)).sum(1)


def level_masses(
    score: Float[np.ndarray, " N"], logp: Float[np.ndarray, " N"], answer: Int[np.ndarray, " N"]
) -> Float[np.ndarray, " S"]:
    """The policy's mass on each score among N draws for one prompt, lowest first: an estimate that sums to 1.

    An answer that was drawn counts with its probability exp(logp). The rest of the mass is on answers that were not
    drawn. Those drawn once tell best where it lies (Good 1953), so it is shared out evenly over them. Exact once all
    answers are drawn. Where none was drawn twice each draw counts 1/N, and the KL at n = N is some .04 nats too low.
    """
    _, first, counts = np.unique(answer, return_index=True, return_counts=True)
    mass = np.exp(logp[first])  # (A,): of the distinct answers
    once = counts == 1
    if once.any():
        mass[once] += max(0.0, 1.0 - mass.sum()) / once.sum()
    _, level = np.unique(score[first], return_inverse=True)
    levels = np.bincount(level, mass)
    return levels / levels.sum()


def _scored_once(reward_fn: RewardFn, prompts: list[str], texts: list[str], where: str) -> np.ndarray:
    """Equal answers get equal scores, whatever the rounding of the batch that they would stand in."""
    pairs = list(zip(prompts, texts, strict=True))
    distinct = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
    asked, said = zip(*distinct, strict=True)
    scores = checked_scores(reward_fn, list(asked), list(said), where).double().numpy()
    return scores[[distinct[pair] for pair in pairs]]


def _first_places(row: Sequence[tuple[int, ...]]) -> list[int]:
    places: dict[tuple[int, ...], int] = {}
    return [places.setdefault(tokens, i) for i, tokens in enumerate(row)]


def _split(rows: Sequence, size: int) -> list[list]:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]
