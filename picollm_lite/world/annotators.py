"""A panel of simulated annotators: Bradley-Terry choices on the gold reward plus each one's own bias and noise."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from picollm_lite.world.rubric import judge_sentences, score


@dataclass(frozen=True)
class Annotator:
    """Prefers A over B with probability sigmoid(u(A) - u(B)); see `utility`.

    `gold` is the weight of the gold reward (1 = its own scale; small = noisy; negative = against it),
    `per_word` and `per_flattery` the log-odds that each word or flattering sentence adds, `share` how much of the
    panel's labeling this annotator does.
    """

    name: str
    gold: float
    per_word: float = 0.0
    per_flattery: float = 0.0
    share: float = 1.0

    def utility(self, prompt: str, response: str) -> float:
        """What this annotator's choice rests on, in log-odds."""
        flattery = sum(verdict.flattery for verdict in judge_sentences(response))
        words = len(response.split())
        return self.gold * score(prompt, response).total + self.per_word * words + self.per_flattery * flattery

    def probability(self, prompt: str, a: str, b: str) -> float:
        """True probability that this annotator prefers `a` over `b` (Bradley and Terry 1952)."""
        margin = self.utility(prompt, a) - self.utility(prompt, b)
        return 1.0 / (1.0 + math.exp(-max(-50.0, min(50.0, margin))))

    def prefers_first(self, prompt: str, a: str, b: str, rng: random.Random) -> bool:
        """One sampled label."""
        return rng.random() < self.probability(prompt, a, b)


PANEL = (
    Annotator("careful", gold=3.0, share=0.15),
    Annotator("hurried", gold=0.8, per_flattery=4.0, share=0.12),
    Annotator("length_lover", gold=1.5, per_word=0.25, share=0.08),
    Annotator("flattered", gold=2.5, per_flattery=5.0, share=0.6),
    Annotator("contrarian", gold=-0.5, share=0.05),
)


def draw(rng: random.Random, panel: Sequence[Annotator] = PANEL) -> Annotator:
    """Whoever labels the next pair, by share."""
    return rng.choices(panel, [annotator.share for annotator in panel])[0]


def panel_probability(prompt: str, a: str, b: str, panel: tuple[Annotator, ...] = PANEL) -> float:
    """Probability that whoever labels the pair prefers `a` over `b`: the Bayes-optimal prediction."""
    total = sum(annotator.share for annotator in panel)
    return sum(annotator.share * annotator.probability(prompt, a, b) for annotator in panel) / total
