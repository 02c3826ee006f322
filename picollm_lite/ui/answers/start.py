"""Exercises of notebook 00."""

from picollm_lite.ui.grading import Exercise


def gold_total(criteria: dict[str, float]) -> float:
    """2 x correct + asked + concise + clean - 3."""
    return 2 * criteria["correct"] + criteria["asked"] + criteria["concise"] + criteria["clean"] - 3


def who_wrote_it(answers: list[str]) -> list[str]:
    """The base model never learned to end an answer, so it runs on and is cut off; the SFT model ends with a period."""
    return ["sft" if answer.endswith(".") and len(answer.split()) < 45 else "base" for answer in answers]


_CASES = (
    {"correct": 1.0, "asked": 1.0, "concise": 1.0, "clean": 1.0},
    {"correct": 0.0, "asked": 0.0, "concise": 1.0, "clean": 1.0},
    {"correct": 0.5, "asked": 1.0, "concise": 0.2, "clean": -0.5},
    {"correct": 0.75, "asked": 0.0, "concise": 0.0, "clean": 0.5},
)
# Answers in the manner of the two models; sampled while this exercise was written, then frozen.
_ANSWERS = [
    "A gradient is the list of slopes saying how fast the loss changes with each weight.",
    "zespite its name, a rotary embedding is not a learned table; it has no trained weights.Attention head. "
    "Example: For",
    "Warmup is the early phase of training when the learning rate climbs gradually from near zero. With 100 steps of "
    "linear warmup to 0.001, step 50 uses a learning rate of 0.0005.",
    "me copy does not replacement per training answer; it only computes the gradients that the optimizer then "
    "uses.Adam. Definition: Adam is an optimizer",
    "RMSNorm is like turning each song up or down so that all play at equal loudness.",
    " to people. A chat template is the fixed layout that joins a list of messages into one text. A chat template is "
    "the fixed layout that joins a list of messages into one text. A chat template is like a printed form, with a "
    "label for each part. A prompt is the input text that a model receives.",
    "A learning rate is the step size of an optimizer.Learning rate. Why it matters: A rate that is too",
]

EXERCISES = (
    Exercise(
        "gold_total",
        gold_total,
        [(case,) for case in _CASES],
        {
            "correct weighs 2, not 1": lambda c: sum(c.values()) - 3,
            "the constant is missing: a perfect answer scores +2, so subtract 3": lambda c: gold_total(c) + 3,
            "the constant has the wrong sign: subtract 3": lambda c: gold_total(c) + 6,
            "this is the weighted mean; the rubric takes the weighted sum, minus 3": lambda c: (gold_total(c) + 3) / 5,
            "clean may be negative: do not cut the criteria off at 0": lambda c: gold_total(
                {name: max(0.0, value) for name, value in c.items()}
            ),
        },
        difficulty=1,
        minutes=3,
    ),
    Exercise(
        "who_wrote_it",
        who_wrote_it,
        [(_ANSWERS,)],
        {
            "the other way round: the base model is the one that does not stop": lambda answers: [
                "base" if name == "sft" else "sft" for name in who_wrote_it(answers)
            ],
            "length alone is not enough: a cut-off answer can be short": lambda answers: [
                "sft" if len(answer.split()) < 45 else "base" for answer in answers
            ],
            "the last character alone is not enough: a long text can be cut just after a period": lambda answers: [
                "sft" if answer.endswith(".") else "base" for answer in answers
            ],
            "the first character alone is not enough: look at how each answer ends": lambda answers: [
                "sft" if answer[0].isupper() else "base" for answer in answers
            ],
            "every answer has the same author here; two models wrote them": lambda answers: ["sft"] * len(answers),
        },
        difficulty=1,
        minutes=5,
    ),
)
