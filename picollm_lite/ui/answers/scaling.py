"""Exercises of notebook 08."""

from picollm_lite.ui.grading import Exercise


def training_bytes(trained: int, frozen: int) -> int:
    """Bytes of what stays in memory: weight, gradient and AdamW's two averages; of a frozen parameter its weight."""
    return 4 * 4 * trained + 4 * frozen  # a number in fp32 has 4 bytes


EXERCISES = (
    Exercise(
        "training_bytes",
        training_bytes,
        [(1000, 0), (1000, 1000), (5, 70)],
        {
            "the weights alone: a parameter that is trained has a gradient and two averages beside it": lambda t, f: (
                4 * (t + f)
            ),
            "AdamW keeps two averages for each parameter that it trains": lambda t, f: 2 * 4 * t + 4 * f,
            "one of four numbers is missing: weight, gradient, AdamW's two averages": lambda t, f: 4 * (3 * t + f),
            "a frozen parameter has no gradient, and no averages": lambda t, f: 4 * 4 * (t + f),
            "a frozen parameter still has its weight": lambda t, f: 4 * 4 * t,
            "these are numbers: each takes 4 bytes": lambda t, f: 4 * t + f,
            "a number in fp32 takes 4 bytes: these are 2": lambda t, f: 8 * t + 2 * f,
        },
        difficulty=1,
        minutes=5,
    ),
)
